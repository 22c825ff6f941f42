"""Bins: the parts into which first pieces split both vocabularies, on which both sides' predictions can be compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class BinSizes:
    """How many bins there are and how many tokens the largest hold, each side by itself."""

    count: int
    largest_student: int
    largest_teacher: int

    def to_dict(self) -> dict[str, int]:
        """The JSON of the commands."""
        return {
            "count": self.count,
            "largest_student": self.largest_student,
            "largest_teacher": self.largest_teacher,
        }


def split_into_bins(
    student_first: NDArray[np.int32], teacher_first: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Connected components over the edges from each token to its first piece on the other side.

    Args:
        student_first: int32 (student width,), each student token's first teacher piece, -1 for none.
        teacher_first: int32 (teacher width,), each teacher token's first student piece, -1 for none.

    Returns:
        int32 (student width,) and int32 (teacher width,): the bin of each token, numbered by lowest student id; -1
        for a token in a component that has tokens of one side only.
    """
    width = len(student_first)
    tails = np.concatenate([np.flatnonzero(student_first >= 0), np.flatnonzero(teacher_first >= 0) + width])
    heads = np.concatenate([student_first[student_first >= 0] + width, teacher_first[teacher_first >= 0]])
    label = np.arange(width + len(teacher_first))
    # Every token has at most one outgoing edge, so labels sink along short chains; pointer jumping halves what is left.
    while True:
        lower = np.minimum(label[tails], label[heads])
        sunk = label.copy()
        np.minimum.at(sunk, label[tails], lower)
        np.minimum.at(sunk, label[heads], lower)
        sunk = sunk[sunk]
        if np.array_equal(sunk, label):
            break
        label = sunk
    # The lowest label of a component with student tokens is a student id, and vice versa.
    in_student = np.bincount(label[:width], minlength=len(label)) > 0
    in_teacher = np.bincount(label[width:], minlength=len(label)) > 0
    shared = in_student & in_teacher
    number = np.where(shared, np.cumsum(shared) - 1, -1).astype(np.int32)
    return number[label[:width]], number[label[width:]]


def measure_bins(student_bin: NDArray[np.int32], teacher_bin: NDArray[np.int32]) -> BinSizes:
    """Counts bins and the tokens in the largest."""

    def largest(bins: NDArray[np.int32]) -> int:
        counted = bins[bins >= 0]
        return int(np.bincount(counted).max()) if len(counted) else 0

    return BinSizes(int(student_bin.max(initial=-1)) + 1, largest(student_bin), largest(teacher_bin))
