"""Token sets as group numbers: what bins, projections and pairs of tokens hand to the pass over a batch.

These keep what a user gives, plain arrays over the vocabularies; `resolved` makes the index arrays of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .comparison import Comparison
from .grouping import in_place, make_grouping

MASKED = -2
"""The bin of a token that has no probability: padding and holes."""


@dataclass(frozen=True, eq=False)
class Bins:
    """A partition of both vocabularies.

    Attributes:
        student_bin: integers (V_s,), -1 for tokens in no bin, -2 for tokens without a probability.
        teacher_bin: integers (V_t,).
    """

    student_bin: torch.Tensor
    teacher_bin: torch.Tensor

    def numbers(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Both sides' bins numbered from 0, the rest bin last; negative for tokens in none.

        A bin counts if both sides have tokens in it; so does the rest, which holds all others.
        """
        student, teacher = self.student_bin.long(), self.teacher_bin.long()
        size = 1 + max((int(bins.max()) for bins in (student, teacher) if len(bins)), default=-1)
        size = max(size, 0)
        shared = torch.zeros(size, dtype=torch.bool, device=student.device)
        shared[student[student >= 0]] = True
        also = torch.zeros_like(shared)
        also[teacher[teacher >= 0]] = True
        shared &= also
        number = torch.where(shared, shared.cumsum(0) - 1, -1)
        count = int(shared.sum())
        numbered = []
        for bins in (student, teacher):
            moved = bins.clone()
            moved[bins >= 0] = number[bins[bins >= 0]]
            numbered.append(moved)
        if bool((numbered[0] == -1).any()) and bool((numbered[1] == -1).any()):
            numbered = [torch.where(bins == -1, count, bins) for bins in numbered]
            count += 1
        return numbered[0], numbered[1], count

    def resolved(self) -> Comparison:
        """The groups."""
        student, teacher, count = in_place(*self.numbers())
        return Comparison(
            student=make_grouping(student, count, self.student_bin != MASKED),
            teacher=make_grouping(teacher, count, self.teacher_bin != MASKED),
            links=None,
            weigh_by_kept=False,
        )
