"""The distance of two sorted lists of probabilities, which needs no word about which token is which."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from .common import stack
from .numbers import log_mean


def tempered(rows: Sequence[Tensor], temperature: float) -> Tensor:
    """Rows of log-probabilities averaged (as probabilities), raised to 1/T and renormalised.

    Args:
        rows: float64 (V,) each, -inf at impossible tokens.
        temperature: T.

    Returns:
        float64 (V,) log-probabilities; -inf everywhere if no token is possible.
    """
    mean = stack(log_mean([row[token] for row in rows]) for token in range(len(rows[0])))
    possible = mean > -torch.inf
    if not possible.any():
        return mean
    found = mean[possible] / temperature
    return torch.full_like(mean, -torch.inf).masked_scatter(possible, found - torch.logsumexp(found, 0))


def sorted_l1(
    student: Tensor, student_ids: Collection[int], teacher: Tensor, teacher_ids: Collection[int], ranks: int
) -> Tensor:
    """sum_i |i-th largest of the student's - i-th largest of the teacher's| over the first ranks.

    Args:
        student: float64 (V_s,) log-probabilities.
        student_ids: the tokens that are sorted.
        teacher: float64 (V_t,) log-probabilities.
        teacher_ids: the same of the teacher.
        ranks: how many are compared; past the end of a list there are zeros.

    >>> p, q = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.4, 0.6]).log()
    >>> round(sorted_l1(p, [0, 1], q, [0, 1], 1).item(), 6), round(sorted_l1(p, [0, 1], q, [0, 1], 3).item(), 6)
    (0.3, 0.6)
    """
    listed = [stack(row[token].exp() for token in ids) for row, ids in ((student, student_ids), (teacher, teacher_ids))]
    ours, theirs = (side.sort(descending=True).values[:ranks] for side in listed)
    longest = max(len(ours), len(theirs))
    ours, theirs = (torch.nn.functional.pad(side, (0, longest - len(side))) for side in (ours, theirs))
    return (ours - theirs).abs().sum()
