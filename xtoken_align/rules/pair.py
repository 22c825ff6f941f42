"""The two vocabularies of a build, with what several rules need computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab
from .pieces import Pieces, decompose, equal_surfaces


@dataclass(frozen=True, eq=False)
class Pair:
    """A student and a teacher."""

    student: Vocab
    teacher: Vocab

    @cached_property
    def student_equal(self) -> NDArray[np.int32]:
        """int32 (student width,), the lowest teacher id of the same kind with an equal surface, -1 for none."""
        return equal_surfaces(self.student, self.teacher)

    @cached_property
    def student_pieces(self) -> Pieces:
        """Every student token as the teacher writes it."""
        if self.identical:
            return self._identity(self.student)
        return decompose(self.student, self.teacher, self.student_equal)

    @cached_property
    def teacher_pieces(self) -> Pieces:
        """Every teacher token as the student writes it."""
        if self.identical:
            return self._identity(self.teacher)
        return decompose(self.teacher, self.student, equal_surfaces(self.teacher, self.student))

    @cached_property
    def identical(self) -> bool:
        """Whether both mean and produce the same text ids."""
        return self.student.fingerprint == self.teacher.fingerprint

    @staticmethod
    def _identity(vocab: Vocab) -> Pieces:
        ids = vocab.speakable_ids.astype(np.int32)
        lengths = np.zeros(len(vocab), dtype=np.int32)
        lengths[ids] = 1
        return Pieces(lengths, ids, np.zeros(0, dtype=np.int32))

    def open_text(self, open_rows: NDArray[np.bool_]) -> list[int]:
        """Open student ids of kind text, ascending."""
        ids: list[int] = np.flatnonzero(open_rows & (self.student.kinds == Kind.TEXT)).tolist()
        return ids
