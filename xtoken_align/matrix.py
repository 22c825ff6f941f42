"""W as arrays, made from links, and its common sets: rows that stand for one teacher token each, no token twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .rules.links import EXACT_RULES, RULE_NUMBER, Links


@dataclass(frozen=True, eq=False)
class Matrix:
    """W as arrays: rows are student tokens, columns teacher tokens, non-empty rows sum to 1.

    Attributes:
        shape: (student logit width, teacher logit width).
        indptr: int32 (rows + 1,), where each row's links begin.
        indices: int32 (links,), columns, ascending in each row.
        data: float32 (links,), weights above 0.
        position: uint8 (links,), which piece of the row's decomposition the column is.
        rule: uint8 (links,), the number of the rule that made the link.
    """

    shape: tuple[int, int]
    indptr: NDArray[np.int32]
    indices: NDArray[np.int32]
    data: NDArray[np.float32]
    position: NDArray[np.uint8]
    rule: NDArray[np.uint8]

    @cached_property
    def rows(self) -> NDArray[np.int32]:
        """int32 (links,), the row of every link: row boundaries 0 2 2 3 give 0 0 2."""
        return np.repeat(np.arange(self.shape[0], dtype=np.int32), np.diff(self.indptr))

    @cached_property
    def owner(self) -> NDArray[np.uint8]:
        """uint8 (rows,), the number of the rule that owns each row; 0 for an empty row.

        Links of the reverse pass own a row only where there is nothing else.
        """
        # The links of the other rules are written last, and so win in a row that has both.
        owner = np.zeros(self.shape[0], dtype=np.uint8)
        backward = self.rule == RULE_NUMBER["reverse"]
        owner[self.rows[backward]] = RULE_NUMBER["reverse"]
        owner[self.rows[~backward]] = self.rule[~backward]
        return owner

    @cached_property
    def top(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Each row's heaviest link: its column (int32, -1 for an empty row) and weight. On a tie the earlier piece."""
        # Sorted by row, then by falling weight, then by position: the first link of each row is its heaviest.
        order = np.lexsort((self.position, -self.data, self.rows))
        first = order[np.unique(self.rows[order], return_index=True)[1]]
        column = np.full(self.shape[0], -1, dtype=np.int32)
        weight = np.zeros(self.shape[0], dtype=np.float32)
        column[self.rows[first]] = self.indices[first]
        weight[self.rows[first]] = self.data[first]
        return column, weight


def assemble_matrix(links: Sequence[Links], shape: tuple[int, int]) -> Matrix:
    """Sorts, sums and normalises links.

    A column that occurs twice in a row becomes one link: the weights add up, and the position is the first one's. If
    `2` is teacher id 17 and `0` is 15, the pieces 2, 0, 0 of `200` become, in the order of the columns:

        columns    17 15 15                 15             17
        positions   0  1  2        ->        1              0
        weights    .9009 .0901 .009         .0991          .9009

    Args:
        links: what the rules gave.
        shape: (student logit width, teacher logit width).
    """
    rows = np.concatenate([part.rows for part in links]).astype(np.int64)
    columns = np.concatenate([part.columns for part in links])
    positions = np.concatenate([part.positions for part in links])
    weights = np.concatenate([part.weights for part in links])
    rules = np.concatenate([np.full(len(part.rows), part.rule, dtype=np.uint8) for part in links])
    # A cell of W is one number, row * width + column: sorted by cell and position, the links to one cell stand together
    # and begin with the earliest piece. A start is where the number changes; `prepend` makes the first link one, too.
    cells = rows * shape[1] + columns
    order = np.lexsort((positions, cells))
    starts = np.flatnonzero(np.diff(cells[order], prepend=-1))
    first = order[starts]
    summed = np.add.reduceat(weights[order], starts) if len(starts) else weights
    rows = rows[first]
    totals = np.bincount(rows, summed, minlength=shape[0])
    indptr = np.zeros(shape[0] + 1, dtype=np.int32)
    np.cumsum(np.bincount(rows, minlength=shape[0]), out=indptr[1:])
    return Matrix(
        shape=shape,
        indptr=indptr,
        indices=columns[first].astype(np.int32),
        data=(summed / totals[rows]).astype(np.float32),
        position=positions[first],
        rule=rules[first],
    )


def strict_common(owner: NDArray[np.uint8], first_link_teacher: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Marks the strict common set: rows of rule identity, exact or special, the lowest student id per teacher token.

    Args:
        owner: uint8 (student ids,), number of the rule that owns each row, 0 for an empty one.
        first_link_teacher: int32 (student ids,), teacher id of each row's first link, -1 for an empty row.

    Returns:
        bool (student ids,).
    """
    exact = np.isin(owner, [RULE_NUMBER[rule] for rule in EXACT_RULES]) & (first_link_teacher >= 0)
    # `_mark` takes the first row of each teacher token, and rows ascend here: the lowest student id is taken.
    candidates = np.flatnonzero(exact)
    return _mark(candidates, first_link_teacher[candidates], len(owner))


def relaxed_common(
    top_teacher: NDArray[np.int32], top_weight: NDArray[np.float32], threshold: float = 0.6
) -> NDArray[np.bool_]:
    """Marks the relaxed common set: rows whose top link weighs enough, the heaviest of those with one teacher token.

    Args:
        top_teacher: int32 (student ids,), teacher id of each row's heaviest link, -1 for an empty row.
        top_weight: float32 (student ids,), the weight of that link.
        threshold: the least weight that counts, compared in float32 as the weights are stored.

    Returns:
        bool (student ids,); between equal weights the lowest student id is marked.

    Example:
        >>> relaxed_common(np.array([7, 7, 3, -1]), np.array([0.7, 0.9, 0.5, 0], np.float32)).tolist()
        [False, True, False, False]
    """
    candidates = np.flatnonzero((top_teacher >= 0) & (top_weight >= np.float32(threshold)))
    heaviest_first = candidates[np.argsort(-top_weight[candidates], kind="stable")]
    return _mark(heaviest_first, top_teacher[heaviest_first], len(top_teacher))


def _mark(rows: NDArray[np.intp], teacher: NDArray[np.int32], size: int) -> NDArray[np.bool_]:
    """Marks, for each teacher token, the first of the rows that name it."""
    _, first = np.unique(teacher, return_index=True)
    marked = np.zeros(size, np.bool_)
    marked[rows[first]] = True
    return marked
