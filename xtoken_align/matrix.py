"""From links to W: canonical compressed sparse rows, with every link's rule and position beside its weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .rules.links import RULE_NUMBER, Links


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
        """int32 (links,), the row of every link."""
        return np.repeat(np.arange(self.shape[0], dtype=np.int32), np.diff(self.indptr))

    @cached_property
    def owner(self) -> NDArray[np.uint8]:
        """uint8 (rows,), the number of the rule that owns each row; 0 for an empty row.

        Links of the reverse pass own a row only where there is nothing else.
        """
        owner = np.zeros(self.shape[0], dtype=np.uint8)
        backward = self.rule == RULE_NUMBER["reverse"]
        owner[self.rows[backward]] = RULE_NUMBER["reverse"]
        owner[self.rows[~backward]] = self.rule[~backward]
        return owner

    @cached_property
    def top(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Each row's heaviest link: column (int32, -1 for empty rows) and weight; on a tie the earliest piece."""
        order = np.lexsort((self.position, -self.data, self.rows))
        first = order[np.unique(self.rows[order], return_index=True)[1]]
        column = np.full(self.shape[0], -1, dtype=np.int32)
        weight = np.zeros(self.shape[0], dtype=np.float32)
        column[self.rows[first]] = self.indices[first]
        weight[self.rows[first]] = self.data[first]
        return column, weight


def assemble_matrix(links: Sequence[Links], shape: tuple[int, int]) -> Matrix:
    """Sorts, sums and normalises links.

    A column that occurs twice in a row (the two zeros of `200`) becomes one link: the weights add up, the position is
    the first one's.

    Args:
        links: what the rules gave.
        shape: (student logit width, teacher logit width).
    """
    rows = np.concatenate([part.rows for part in links]).astype(np.int64)
    columns = np.concatenate([part.columns for part in links])
    positions = np.concatenate([part.positions for part in links])
    weights = np.concatenate([part.weights for part in links])
    rules = np.concatenate([np.full(len(part.rows), part.rule, dtype=np.uint8) for part in links])
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
