"""Comparisons of whole distributions: sorted remainders (ULD, H-KL, GOLD) and the paper's common part."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .merging import Owners, having_mass, mean_rows, rows_gradient
from .sorting import sorted_distance


@dataclass(frozen=True, eq=False)
class Whole:
    """What of two distributions is compared without a common space.

    Attributes:
        student_live: int64, the student's tokens that have a probability, ascending.
        teacher_live: int64, the teacher's.
        student_rest: int64, places in `student_live` whose probabilities are sorted and compared.
        teacher_rest: int64, places in `teacher_live`.
        limit: how many ranks are compared at most; None for all, filled up with zeros.
        student_common: int64 (M,), places of the pairs for the common part of the paper's form; None without it.
        teacher_common: int64 (M,).
    """

    student_live: torch.Tensor
    teacher_live: torch.Tensor
    student_rest: torch.Tensor
    teacher_rest: torch.Tensor
    limit: int | None
    student_common: torch.Tensor | None
    teacher_common: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class WholeBlock:
    """Values and gradients of some chunks.

    Attributes:
        value: floats (c,), T^2 times the sorted distance, plus the common part where it is asked for.
        gradient: floats (r, V_s), or None.
        agrees: bool (c,), the likeliest pair is one on both sides; False without pairs.
        compared: bool (c,), both sides have a distribution.
    """

    value: torch.Tensor
    gradient: torch.Tensor | None
    agrees: torch.Tensor
    compared: torch.Tensor


def compare_whole(
    student: torch.Tensor,
    teacher: torch.Tensor,
    whole: Whole,
    *,
    temperature: float,
    student_owners: Owners | None = None,
    teacher_owners: Owners | None = None,
    coefficient: torch.Tensor | None = None,
) -> WholeBlock:
    """Compares the rows of a block; arguments as for `comparison.compare`."""
    log_rows = _log_softmax(student.index_select(1, whole.student_live))
    student_owners = having_mass(log_rows, student_owners)
    log_mean = mean_rows(log_rows, student_owners)
    log_student = _tempered(log_mean, temperature)
    log_teacher_rows = _log_softmax(teacher.index_select(1, whole.teacher_live))
    log_teacher = _tempered(mean_rows(log_teacher_rows, having_mass(log_teacher_rows, teacher_owners)), temperature)
    probabilities = log_student.exp()
    # Without a teacher's distribution, or one of the student, there is no comparison.
    compared = (log_teacher > -math.inf).any(dim=1) & (log_student > -math.inf).any(dim=1)
    value, slope = sorted_distance(
        probabilities.index_select(1, whole.student_rest),
        log_teacher.index_select(1, whole.teacher_rest).exp(),
        whole.limit,
    )
    # From here on slopes are those of log-probabilities: p times the slope of p.
    gradient = torch.zeros_like(log_student).index_copy_(1, whole.student_rest, slope).mul_(probabilities)
    agrees = torch.zeros_like(compared)
    if whole.student_common is not None and whole.teacher_common is not None:
        common_student = log_student.index_select(1, whole.student_common)
        common_teacher = log_teacher.index_select(1, whole.teacher_common)
        mass = common_teacher.exp()
        possible = (mass > 0) & (common_student > -math.inf)
        value = value + (mass * torch.where(possible, common_teacher - common_student, 0.0)).sum(dim=1)
        gradient.index_add_(1, whole.student_common, torch.where(possible, -mass, 0.0))
        if common_student.shape[1]:
            agrees = (common_student.argmax(dim=1) == common_teacher.argmax(dim=1)) & compared
    value = torch.where(compared, value * temperature**2, 0.0)
    if coefficient is None:
        return WholeBlock(value, None, agrees, compared)
    gradient.mul_((coefficient * compared * temperature).unsqueeze(1))
    gradient.sub_(probabilities.mul_(gradient.sum(dim=1, keepdim=True)))
    rows = rows_gradient(gradient, log_rows, log_mean, student_owners)
    full = torch.zeros_like(student).index_copy_(1, whole.student_live, rows)
    return WholeBlock(value, full, agrees, compared)


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """A row without any mass stays at -inf."""
    rows = logits.log_softmax(dim=1)
    return rows.masked_fill_(rows.isnan(), -math.inf)


def _tempered(log_probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    return log_probabilities if temperature == 1 else _log_softmax(log_probabilities / temperature)
