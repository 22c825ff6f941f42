"""What TRL's losses do to a group: merge its positions to one vector, and compare two such vectors."""

from __future__ import annotations

import math

import torch

from ..options import one_of
from .ids import other_ids
from .trl_groups import MERGES

# The peer's floor, both of the scalar factors of a merge and of the matched probabilities.
_FLOOR = 1e-8


def merge_groups(
    log_probabilities: torch.Tensor, token_ids: torch.Tensor, starts: torch.Tensor, *, merge: str = "observed"
) -> torch.Tensor:
    """One vector per group: a whole distribution times the probabilities of the group's other tokens.

    observed: Q(v) = q_first(v) * product over the later tokens x_i of max(q_i(x_i), 1e-8).
    bayesian: Q(v) = q_last(v) * product over the earlier ones. Neither is renormalised.

    Args:
        log_probabilities: floats (P, V), one row per token, group after group.
        token_ids: integers (P,), the tokens' ids.
        starts: integers (G + 1,), where each group begins, and P.
        merge: "observed" or "bayesian".

    Returns:
        Floats (G, V).

    Example:
        >>> import torch
        >>> log_q = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], dtype=torch.float64).log()
        >>> ids, starts = torch.tensor([0, 1]), torch.tensor([0, 2])
        >>> [round(mass, 4) for mass in merge_groups(log_q, ids, starts)[0].tolist()]
        [0.3, 0.15, 0.05]
        >>> [round(mass, 4) for mass in merge_groups(log_q, ids, starts, merge="bayesian")[0].tolist()]
        [0.12, 0.3, 0.18]

    Source: TRL, `ULDLoss`, 2026. Ours differ: `first` and `mean` merge distributions into distributions.
    """
    whole = starts[1:] - 1 if one_of("merge", merge, MERGES) == "bayesian" else starts[:-1]
    group = torch.arange(len(whole), device=starts.device).repeat_interleave(starts.diff())
    log_factor = log_probabilities.gather(1, token_ids.long().unsqueeze(1)).squeeze(1).clamp_min(math.log(_FLOOR))
    other = torch.ones_like(group, dtype=torch.bool)
    other[whole] = False
    log_product = log_factor.new_zeros(len(whole)).index_add(0, group[other], log_factor[other])
    return log_probabilities.index_select(0, whole).exp() * log_product.exp().unsqueeze(1)


def matched_part(student: torch.Tensor, teacher: torch.Tensor, matched: torch.Tensor, beta: float) -> torch.Tensor:
    """(G,) sums of the generalised divergence over the matched pairs."""
    q = student.index_select(1, matched[:, 0].long()).clamp_min(_FLOOR)
    p = teacher.index_select(1, matched[:, 1].long()).clamp_min(_FLOOR)
    if beta == 0:
        terms = p * (p.log() - q.log())
    elif beta == 1:
        terms = q * (q.log() - p.log())
    else:
        log_mixture = (beta * p + (1 - beta) * q).log()
        terms = beta * p * (p.log() - log_mixture) + (1 - beta) * q * (q.log() - log_mixture)
    return terms.sum(dim=1)


def unmatched_part(student: torch.Tensor, teacher: torch.Tensor, matched: torch.Tensor) -> torch.Tensor:
    """(G,) sorted distances over the ids that no pair holds; 0 where a side has none of them, as in the peer."""
    student = student.index_select(1, other_ids(matched[:, 0], student.shape[1]))
    teacher = teacher.index_select(1, other_ids(matched[:, 1], teacher.shape[1]))
    if not (student.shape[1] and teacher.shape[1]):
        return student.new_zeros(len(student))
    return sorted_distance(student, teacher)


def sorted_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """(G,) L1 distances of the rows in descending order; what one side has beyond the other is compared with 0."""
    ours, theirs = (side.sort(dim=1, descending=True).values for side in (student, teacher))
    length = min(ours.shape[1], theirs.shape[1])
    shared = (ours[:, :length] - theirs[:, :length]).abs().sum(dim=1)
    return shared + ours[:, length:].sum(dim=1) + theirs[:, length:].sum(dim=1)
