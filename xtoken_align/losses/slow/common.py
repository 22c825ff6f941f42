"""A common space of both sides: outcomes, each made of some tokens of either side, and what falls into them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .batch import TeacherRow
from .numbers import log_mass, log_mean, log_sum, tempered_kl


@dataclass(frozen=True)
class Outcomes:
    """Outcomes by their tokens.

    Attributes:
        student: the student ids of each outcome.
        teacher: the teacher ids of each outcome.
    """

    student: list[list[int]]
    teacher: list[list[int]]


@dataclass(frozen=True, eq=False)
class Masses:
    """The masses that both sides give to the outcomes, before the temperature.

    Attributes:
        teacher: float64 (K,), logarithms.
        touched: bool (K,), the outcomes with a token whose probability the teacher lists.
        rest: float64 scalar, logarithm of the teacher's mass on the tokens that it does not list.
        student: float64 (K,), logarithms.
    """

    teacher: Tensor
    touched: Tensor
    rest: Tensor
    student: Tensor

    @property
    def kept(self) -> float:
        """The teacher's mass that has a place in the common space."""
        return float(self.teacher.exp().sum() + self.rest.exp())

    def divergence(self, temperature: float) -> Tensor:
        """T^2 KL(teacher || student) on the outcomes; those that no listed token touches are one."""
        if self.touched.all():
            return tempered_kl(self.teacher, self.student, temperature)
        log_teacher = torch.cat((self.teacher[self.touched], self.rest[None]))
        untouched = log_sum(self.student[~self.touched])
        return tempered_kl(log_teacher, torch.cat((self.student[self.touched], untouched[None])), temperature)


def masses(outcomes: Outcomes, teacher: Sequence[TeacherRow], student: Sequence[Tensor]) -> Masses:
    """Bins both sides' rows, averaged over the positions.

    Args:
        outcomes: K outcomes.
        teacher: a row per teacher position.
        student: float64 (V_s,) log-probabilities per student position.
    """
    return teacher_masses(outcomes.teacher, teacher, stack(mean_mass(student, ids) for ids in outcomes.student))


def teacher_masses(members: Sequence[Sequence[int]], teacher: Sequence[TeacherRow], student: Tensor) -> Masses:
    """Bins the teacher's rows alone; the student's masses are there already."""
    listed = frozenset[int]().union(*(row.listed for row in teacher))
    return Masses(
        teacher=stack(mean_mass([row.log_probs for row in teacher], ids) for ids in members),
        touched=torch.tensor([not listed.isdisjoint(ids) for ids in members], dtype=torch.bool),
        rest=log_mean([row.log_rest for row in teacher]),
        student=student,
    )


def mean_mass(rows: Sequence[Tensor], tokens: Sequence[int]) -> Tensor:
    """The logarithm of some tokens' probability, averaged over rows."""
    return log_mean([log_mass(row, tokens) for row in rows])


def stack(values: Iterable[Tensor]) -> Tensor:
    """Scalars as one float64 tensor, empty ones too."""
    listed = list(values)
    return torch.stack(listed) if listed else torch.zeros(0, dtype=torch.float64)
