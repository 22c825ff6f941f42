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
        """float64 (old student logits,), L1 distance between a token's rows; a link to an unmatched token counts whole."""
        old, new = self.old.matrix, self.new.matrix
        width = old.shape[1] + new.shape[1]
        new_rows = self.student.old_of_new[new.rows]
        columns = self.teacher.old_of_new[new.indices].astype(np.int64)
        columns = np.where(columns >= 0, columns, old.shape[1] + new.indices)
        kept = new_rows >= 0
        cells = np.concatenate(
            [old.rows.astype(np.int64) * width + old.indices, new_rows[kept].astype(np.int64) * width + columns[kept]]
        )
        weights = np.concatenate([old.data.astype(np.float64), -new.data[kept].astype(np.float64)])
        unique, inverse = np.unique(cells, return_inverse=True)
        change = np.abs(np.bincount(inverse, weights, minlength=len(unique)))
        return np.bincount(unique // width, change, minlength=old.shape[0])

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
        return old_ids[self._both() & (self.old.matrix.owner[old_ids] != self.new.matrix.owner[new_ids])]

    @cached_property
    def weights(self) -> NDArray[np.int64]:
        """Old ids whose row the same rule owns and whose links or weights are others."""
        old_ids, new_ids = self._pairs
        same_rule = self._both() & (self.old.matrix.owner[old_ids] == self.new.matrix.owner[new_ids])
        return old_ids[same_rule & (self.distance[old_ids] > TOLERANCE)]

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
