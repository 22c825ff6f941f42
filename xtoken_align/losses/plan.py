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
        labels: int64 (B * T_s,), what the logits at each position are to predict, -100 for nothing.
    """
    student, student_offsets = _leading_rows(predictions.student, predictions.student_offsets, merge)
    teacher, teacher_offsets = _leading_rows(predictions.teacher, predictions.teacher_offsets, merge)
    bounds = _block_bounds(np.maximum(student_offsets, teacher_offsets), block_rows)
    if labels is None:
        # Levels read no further than the row after a chunk's last one.
        labels = np.full(int(predictions.student.max(initial=-1)) + 2, IGNORED)
    pending = labels.copy()
    level_edges = [np.searchsorted(part.chunk, bounds) for part, _, _ in levels]
    rows: tuple[list[Ids], list[Ids]] = ([], [])
    slots: list[tuple[list[Ids], list[Ids]]] = [([], []) for _ in levels]
    block_labels: list[Ids] = []
    for block, (first, last) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        here = [slice(int(edges[block]), int(edges[block + 1])) for edges in level_edges]
        wanted: tuple[list[Ids], list[Ids]] = ([], [])
        for (part, _, student_is_restricted), place in zip(levels, here, strict=True):
            wanted[not student_is_restricted].append(part.restricted_row[place])
            wanted[student_is_restricted].append(part.spoken_row[place])
        block_rows_of = [
            _with_further(leading[offsets[first] : offsets[last]], further)
            for leading, offsets, further in zip(
                (student, teacher), (student_offsets, teacher_offsets), wanted, strict=True
            )
        ]
        for side in range(2):
            rows[side].append(block_rows_of[side])
        for (part, _, student_is_restricted), place, (restricted, spoken) in zip(levels, here, slots, strict=True):
            restricted.append(_slots(block_rows_of[not student_is_restricted], part.restricted_row[place]))
            spoken.append(_slots(block_rows_of[student_is_restricted], part.spoken_row[place]))
        block_labels.append(pending[block_rows_of[0]])
        pending[block_rows_of[0]] = IGNORED
    alone = np.flatnonzero(pending != IGNORED)
    for first in range(0, len(alone), block_rows):
        rows[0].append(alone[first : first + block_rows])
        rows[1].append(alone[:0])
        block_labels.append(pending[rows[0][-1]])
    blocks = len(rows[0])
    edges = [offsets_of(np.array([len(part) for part in side], dtype=np.int64)) for side in rows]
    edges += [_extended(bounds, blocks), *(_extended(part, blocks) for part in level_edges)]
    return Plan(
        student_rows=_joined(rows[0]),
        teacher_rows=_joined(rows[1]),
        labels=_joined(block_labels),
        student_size=np.diff(student_offsets),
        teacher_size=np.diff(teacher_offsets),
        levels=tuple(
            PlannedLevels(
                part.chunk - bounds[np.searchsorted(bounds, part.chunk, side="right") - 1],
                _joined(restricted),
                _joined(spoken),
                spell_out(tree, part.node),
            )
            for (part, tree, _), (restricted, spoken) in zip(levels, slots, strict=True)
        ),
        edges=np.stack(edges, axis=1),
    )


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


def _with_further(leading: Ids, further: list[Ids]) -> Ids:
    if not any(map(len, further)):
        return leading
    return np.concatenate([leading, np.setdiff1d(np.concatenate(further), leading)])


def _slots(rows: Ids, wanted: Ids) -> Ids:
    """Where each wanted row stands among the rows."""
    order = np.argsort(rows)
    return order[np.searchsorted(rows, wanted, sorter=order)]


def _extended(edges: Ids, blocks: int) -> Ids:
    """Edges for the blocks without chunks too."""
    return np.concatenate([edges, np.repeat(edges[-1:], blocks + 1 - len(edges))])


def _joined(parts: list[Ids]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
