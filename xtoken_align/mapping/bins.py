"""Bins: groups of student and teacher tokens that first pieces tie together.

Predictions of both sides can be compared bin by bin, since nearly every token of either side lies in one. A chunk is a
misfit if its first student token and its first teacher token lie in different bins; then the bins say nothing about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError


@dataclass(frozen=True, slots=True)
class BinSizes:
    """How many bins there are, and how many tokens of each side the largest hold."""

    count: int
    largest_student: int
    largest_teacher: int

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> BinSizes:
        """Reads the counts of a file, the inverse of `dataclasses.asdict`.

        Raises:
            ArtifactError: a count is missing or is none.
        """
        try:
            counts = [stored[key] for key in ("count", "largest_student", "largest_teacher")]
        except KeyError as error:
            raise ArtifactError(
                f"metadata.bins lacks {error.args[0]!r}; build or download the mapping again"
            ) from error
        if any(type(count) is not int or count < 0 for count in counts):
            raise ArtifactError(f"metadata.bins: expected three counts, found {counts!r:.60}; build the mapping again")
        return cls(*counts)


def split_into_bins(
    student_first: NDArray[np.int32], teacher_first: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Groups the tokens of both sides: a token and its first piece on the other side are in one bin.

    Student `20`, `2`, `a` and teacher `2`, `a`, `ab`: the first pieces of `20` and `2` are both teacher `2`, that of
    teacher `ab` is student `a`. So the bins are {20, 2 | 2} and {a | a, ab}:

    >>> split_into_bins(np.array([0, 0, 1], np.int32), np.array([1, 2, 2], np.int32))
    (array([0, 0, 1], dtype=int32), array([0, 1, 1], dtype=int32))

    Args:
        student_first: int32 (student width,), each student token's first teacher piece, -1 for none.
        teacher_first: int32 (teacher width,), each teacher token's first student piece, -1 for none.

    Returns:
        int32 (student width,) and int32 (teacher width,): the bin of each token, numbered by lowest student id; -1
        for a token whose group has tokens of one side only.
    """
    # Bins are the connected components of a graph: one node per token, teacher ids counted on after the student's,
    # one edge from each token to its first piece. Above: edges 0-3, 1-3, 2-4 from the student, 3-1, 4-2, 5-2 back.
    width = len(student_first)
    tails = np.concatenate([np.flatnonzero(student_first >= 0), np.flatnonzero(teacher_first >= 0) + width])
    heads = np.concatenate([student_first[student_first >= 0] + width, teacher_first[teacher_first >= 0]])
    # Every node takes the lowest label among its neighbours until nothing changes; `label[label]` halves the rounds.
    label = np.arange(width + len(teacher_first))
    while True:
        lower = np.minimum(label[tails], label[heads])
        sunk = label.copy()
        np.minimum.at(sunk, label[tails], lower)
        np.minimum.at(sunk, label[heads], lower)
        sunk = sunk[sunk]
        if np.array_equal(sunk, label):
            break
        label = sunk
    # Above the labels are now 0 0 2 | 0 2 2; the labels that occur on both sides, 0 and 2, become bins 0 and 1.
    in_student = np.bincount(label[:width], minlength=len(label)) > 0
    in_teacher = np.bincount(label[width:], minlength=len(label)) > 0
    shared = in_student & in_teacher
    number = np.where(shared, np.cumsum(shared) - 1, -1).astype(np.int32)
    return number[label[:width]], number[label[width:]]


def measure_bins(student_bin: NDArray[np.int32], teacher_bin: NDArray[np.int32]) -> BinSizes:
    """Counts the bins, and the tokens of each side in the largest."""
    largest = [int(np.bincount(bins[bins >= 0]).max(initial=0)) for bins in (student_bin, teacher_bin)]
    return BinSizes(int(student_bin.max(initial=-1)) + 1, *largest)
