"""Comparing the rows of two mappings whose tokens have been matched."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..mapping.mapping import Mapping
from .tokens import Match

TOLERANCE = 1e-6
"""Weights are float32: two that differ by less are the same."""


@dataclass(frozen=True, eq=False)
class RowComparison:
    """The rows of two mappings, student tokens matched by `student`, teacher tokens by `teacher`."""

    old: Mapping
    new: Mapping
    student: Match
    teacher: Match

    @cached_property
    def distance(self) -> NDArray[np.float64]:
        """float64 (old student logits,), L1 distance between a token's rows.

        A link to a token that the other teacher does not have counts whole.
        """
        old, new = self.old.matrix, self.new.matrix
        if self.old.content_hash == self.new.content_hash:
            return np.zeros(old.shape[0])
        new_rows = self.student.old_of_new[new.rows]
        columns = self.teacher.old_of_new[new.indices].astype(np.int64)
        columns = np.where(columns >= 0, columns, old.shape[1] + new.indices)
        kept = new_rows >= 0
        before = _Cells(old.rows, old.indices.astype(np.int64), old.data)
        after = _Cells(new_rows[kept], columns[kept], new.data[kept])
        # Most rows are one link on both sides, and need no sorting to be compared.
        single = (before.counts(old.shape[0]) == 1) & (after.counts(old.shape[0]) == 1)
        distance = _distance_of_many(before.without(single), after.without(single), old.shape)
        rows = np.flatnonzero(single)
        (was, weight_was), (now, weight_now) = (cells.of_single(single, old.shape[0]) for cells in (before, after))
        distance[rows] = np.where(was == now, np.abs(weight_was - weight_now), weight_was + weight_now)
        return distance

    @cached_property
    def _pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Old and new ids of the student tokens that both mappings have."""
        old_ids = np.flatnonzero(self.student.new_of_old >= 0)
        return old_ids, self.student.new_of_old[old_ids]

    def _both(self) -> NDArray[np.bool_]:
        old_ids, new_ids = self._pairs
        return (self.old.matrix.owner[old_ids] > 0) & (self.new.matrix.owner[new_ids] > 0)

    @cached_property
    def rule(self) -> NDArray[np.int64]:
        """Old ids whose row another rule owns now."""
        old_ids, new_ids = self._pairs
        other_rule = self.old.matrix.owner[old_ids] != self.new.matrix.owner[new_ids]
        return np.asarray(old_ids[self._both() & other_rule])

    @cached_property
    def weights(self) -> NDArray[np.int64]:
        """Old ids whose row the same rule owns and whose links or weights are others."""
        old_ids, new_ids = self._pairs
        same_rule = self._both() & (self.old.matrix.owner[old_ids] == self.new.matrix.owner[new_ids])
        return np.asarray(old_ids[same_rule & (self.distance[old_ids] > TOLERANCE)])

    @cached_property
    def same(self) -> int:
        """How many rows are the same."""
        return int(self._both().sum()) - len(self.rule) - len(self.weights)

    @cached_property
    def added(self) -> NDArray[np.int64]:
        """New ids that have a row now: their token is new, or its row was empty."""
        filled = self.new.matrix.owner > 0
        before = self.student.old_of_new
        had = np.zeros(len(filled), dtype=np.bool_)
        had[before >= 0] = self.old.matrix.owner[before[before >= 0]] > 0
        return np.flatnonzero(filled & ~had & self.student.used_new)

    @cached_property
    def removed(self) -> NDArray[np.int64]:
        """Old ids that had a row: their token is gone, or its row is empty now."""
        filled = self.old.matrix.owner > 0
        after = self.student.new_of_old
        has = np.zeros(len(filled), dtype=np.bool_)
        has[after >= 0] = self.new.matrix.owner[after[after >= 0]] > 0
        return np.flatnonzero(filled & ~has & self.student.used_old)


@dataclass(frozen=True, eq=False)
class _Cells:
    """Links as rows, columns and weights, in the old mapping's ids."""

    rows: NDArray[np.int32]
    columns: NDArray[np.int64]
    weights: NDArray[np.float32]

    def counts(self, height: int) -> NDArray[np.int64]:
        return np.bincount(self.rows, minlength=height)

    def without(self, rows: NDArray[np.bool_]) -> _Cells:
        kept = ~rows[self.rows]
        return _Cells(self.rows[kept], self.columns[kept], self.weights[kept])

    def of_single(self, rows: NDArray[np.bool_], height: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The column and the weight of each marked row, which has one link, by ascending row."""
        kept = rows[self.rows]
        columns, weights = np.zeros(height, dtype=np.int64), np.zeros(height)
        columns[self.rows[kept]] = self.columns[kept]
        weights[self.rows[kept]] = self.weights[kept]
        return columns[rows], weights[rows]


def _distance_of_many(before: _Cells, after: _Cells, shape: tuple[int, int]) -> NDArray[np.float64]:
    width = max(int(after.columns.max(initial=0)) + 1, shape[1])
    cells = np.concatenate([part.rows.astype(np.int64) * width + part.columns for part in (before, after)])
    weights = np.concatenate([before.weights.astype(np.float64), -after.weights.astype(np.float64)])
    unique, inverse = np.unique(cells, return_inverse=True)
    change = np.abs(np.bincount(inverse, weights, minlength=len(unique)))
    # Without cells bincount counts, in integers.
    return np.bincount(unique // width, change, minlength=shape[0]).astype(np.float64)
