"""Which rows of a batch are read in which block, and what is compared there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..spans.spans import Predictions
from ..spans.units import offsets_of
from .chain_plan import Levels, Outcomes, spell_out
from .prefix_tree import Ids, PrefixTree

IGNORED = -100
"""The label of a token that has no cross-entropy."""


@dataclass(frozen=True, eq=False)
class PlannedLevels:
    """The levels of one restricted side; slots and chunks count within their block."""

    chunk: Ids
    restricted_slot: Ids
    spoken_slot: Ids
    outcomes: Outcomes


@dataclass(frozen=True, eq=False)
class Plan:
    """A batch cut into blocks of whole chunks.

    A block's rows begin with those of level one, chunk by chunk; rows of further levels and rows with nothing but a
    label follow.

    Attributes:
        student_rows: int64, flattened positions, block after block.
        teacher_rows: int64.
        labels: int64, like `student_rows`: what the row's logits are to predict, -100 for nothing.
        student_size: int64 (N,), how many rows of level one each chunk has.
        teacher_size: int64 (N,).
        levels: of the restricted student and of the restricted teacher; none for most losses.
        edges: int64 (blocks + 1, 3 + levels): where each block begins among student rows, teacher rows, chunks, and
            the levels of each restricted side.
    """

    student_rows: Ids
    teacher_rows: Ids
    labels: Ids
    student_size: Ids
    teacher_size: Ids
    levels: tuple[PlannedLevels, ...]
    edges: Ids


def make_plan(
    predictions: Predictions,
    *,
    merge: str,
    block_rows: int,
    levels: Sequence[tuple[Levels, PrefixTree, bool]] = (),
    labels: Ids | None = None,
) -> Plan:
    """Cuts a batch into blocks.

    Args:
        predictions: numpy arrays.
        merge: "first" reads a chunk's first predicting position on both sides, "mean" all.
        block_rows: about how many rows a block has.
        levels: levels with the tree of their restricted side, and whether that is the student's.
        labels: int64 (B * T_s), what the logits at each position are to predict, -100 for nothing.
    """
    student = _Side(*_leading_rows(predictions.student, predictions.student_offsets, merge))
    teacher = _Side(*_leading_rows(predictions.teacher, predictions.teacher_offsets, merge))
    bounds = _block_bounds(np.maximum(student.offsets, teacher.offsets), block_rows)
    placed = [_Placed(part, tree, bounds, of_student=of_student) for part, tree, of_student in levels]
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        student.add(first, last, [part.rows_of(student=True) for part in placed])
        teacher.add(first, last, [part.rows_of(student=False) for part in placed])
        for part in placed:
            part.find_slots(student.blocks[-1], teacher.blocks[-1])
    block_labels = _labels_of_blocks(student, teacher, labels, block_rows)
    blocks = len(student.blocks)
    edges = [side.edges() for side in (student, teacher)]
    edges += [_extended(bounds, blocks), *(_extended(part.edges, blocks) for part in placed)]
    return Plan(
        student_rows=_joined(student.blocks),
        teacher_rows=_joined(teacher.blocks),
        labels=_joined(block_labels),
        student_size=np.diff(student.offsets),
        teacher_size=np.diff(teacher.offsets),
        levels=tuple(part.planned() for part in placed),
        edges=np.stack(edges, axis=1),
    )


class _Side:
    """One side's rows, block by block.

    Attributes:
        leading: the rows of level one.
        offsets: where each chunk's begin.
        blocks: the rows of the blocks so far.
    """

    def __init__(self, leading: Ids, offsets: Ids) -> None:
        self.leading, self.offsets = leading, offsets
        self.blocks: list[Ids] = []

    def add(self, first: int, last: int, further: list[Ids]) -> None:
        """The rows of a block's chunks, and those of its further levels that are not among them."""
        rows = self.leading[self.offsets[first] : self.offsets[last]]
        if any(map(len, further)):
            rows = np.concatenate([rows, np.setdiff1d(np.concatenate(further), rows)])
        self.blocks.append(rows)

    def edges(self) -> Ids:
        """Where each block begins."""
        return offsets_of(np.array([len(rows) for rows in self.blocks], dtype=np.int64))


class _Placed:
    """Levels restricted on one side, and where their rows stand in the blocks."""

    def __init__(self, levels: Levels, tree: PrefixTree, bounds: Ids, *, of_student: bool) -> None:
        self.levels, self.tree, self.bounds, self.of_student = levels, tree, bounds, of_student
        self.edges = np.searchsorted(levels.chunk, bounds)
        self.restricted: list[Ids] = []
        self.spoken: list[Ids] = []

    def rows_of(self, *, student: bool) -> Ids:
        """The rows that the next block's levels read on one side."""
        rows = self.levels.restricted_row if student == self.of_student else self.levels.spoken_row
        block = len(self.restricted)
        return rows[self.edges[block] : self.edges[block + 1]]

    def find_slots(self, student: Ids, teacher: Ids) -> None:
        """Looks up the next block's rows among those of the block."""
        restricted, spoken = (student, teacher) if self.of_student else (teacher, student)
        wanted = self.rows_of(student=self.of_student), self.rows_of(student=not self.of_student)
        self.restricted.append(_slots(restricted, wanted[0]))
        self.spoken.append(_slots(spoken, wanted[1]))

    def planned(self) -> PlannedLevels:
        """The levels with their slots."""
        chunk = self.levels.chunk
        within = chunk - self.bounds[np.searchsorted(self.bounds, chunk, side="right") - 1]
        return PlannedLevels(
            within, _joined(self.restricted), _joined(self.spoken), spell_out(self.tree, self.levels.node)
        )


def _labels_of_blocks(student: _Side, teacher: _Side, labels: Ids | None, block_rows: int) -> list[Ids]:
    """Each row's label in the first block that reads it; rows that none reads get blocks of their own."""
    if labels is None:
        return [np.full(len(rows), IGNORED) for rows in student.blocks]
    pending = labels.copy()
    found = []
    for rows in student.blocks:
        found.append(pending[rows])
        pending[rows] = IGNORED
    alone = np.flatnonzero(pending != IGNORED)
    for first in range(0, len(alone), block_rows):
        rows = alone[first : first + block_rows]
        student.blocks.append(rows)
        teacher.blocks.append(alone[:0])
        found.append(pending[rows])
    return found


def _leading_rows(rows: Ids, offsets: Ids, merge: str) -> tuple[Ids, Ids]:
    """The rows of level one and where each chunk's begin."""
    if merge == "mean":
        return rows, offsets
    return rows[offsets[:-1]], np.arange(len(offsets))


def _block_bounds(offsets: Ids, block_rows: int) -> Ids:
    """Where blocks begin among the chunks: as many whole chunks as fit, one at least."""
    bounds = [0]
    while bounds[-1] < len(offsets) - 1:
        full = int(np.searchsorted(offsets, offsets[bounds[-1]] + block_rows, side="right")) - 1
        bounds.append(max(full, bounds[-1] + 1))
    return np.array(bounds)


def _slots(rows: Ids, wanted: Ids) -> Ids:
    """Where each wanted row stands among the rows."""
    order = np.argsort(rows)
    return order[np.searchsorted(rows, wanted, sorter=order)]


def _extended(edges: Ids, blocks: int) -> Ids:
    """Edges for the blocks without chunks too."""
    return np.concatenate([edges, np.repeat(edges[-1:], blocks + 1 - len(edges))])


def _joined(parts: list[Ids]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
