"""Sums of probabilities as logarithms, and the divergence that every loss on a common space uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def minus_infinity() -> Tensor:
    """The logarithm of nothing, float64 scalar."""
    return torch.tensor(-torch.inf, dtype=torch.float64)


def zero() -> Tensor:
    """float64 scalar 0."""
    return torch.zeros((), dtype=torch.float64)


def log_probabilities(logits: Tensor, live: Sequence[int]) -> Tensor:
    """Log softmax over some ids.

    Args:
        logits: floats (V,); -inf is a token that cannot be.
        live: the ids that share the probability.

    Returns:
        float64 (V,), -inf at all other ids; -inf everywhere if every live logit is -inf.

    >>> log_probabilities(torch.tensor([0.0, 5.0, 0.0]), [0, 2]).exp().tolist()
    [0.5, 0.0, 0.5]
    """
    possible = [token for token in live if logits[token] > -torch.inf]
    row = torch.full(logits.shape, -torch.inf, dtype=torch.float64)
    if not possible:
        return row
    kept = logits[possible].double()
    return row.index_put((torch.tensor(possible),), kept - torch.logsumexp(kept, 0))


def log_sum(values: Iterable[Tensor]) -> Tensor:
    """The logarithm of a sum of exponentials of scalars; no slope comes from those at -inf.

    >>> round(log_sum([torch.tensor(0.25).log(), torch.tensor(0.25).log(), minus_infinity()]).exp().item(), 6)
    0.5
    """
    possible = [value for value in values if value > -torch.inf]
    return torch.logsumexp(torch.stack(possible), 0) if possible else minus_infinity()


def log_mass(log_probs: Tensor, tokens: Iterable[int]) -> Tensor:
    """The logarithm of the probability of some tokens together."""
    return log_sum(log_probs[token] for token in tokens)


def log_mean(values: Sequence[Tensor]) -> Tensor:
    """The logarithm of the arithmetic mean of exponentials of scalars.

    >>> round(log_mean([torch.tensor(0.25).log(), minus_infinity()]).exp().item(), 6)
    0.125
    """
    return log_sum(values) - torch.tensor(len(values), dtype=torch.float64).log()


def tempered_kl(log_teacher: Tensor, log_student: Tensor, temperature: float) -> Tensor:
    """KL between two distributions over the same outcomes, each raised to 1/T and renormalised, times T^2.

    T^2 * sum_k t_k (log t_k - log s_k), t = p_T^(1/T) / sum p_T^(1/T), s = p_S^(1/T) / sum p_S^(1/T)

    Args:
        log_teacher: float64 (K,), logarithms of the outcomes' masses, of any sum.
        log_student: float64 (K,). An outcome that the student cannot give (-inf) is not comparable: it is dropped, and
            the teacher renormalised over the others.
        temperature: T.

    Returns:
        Scalar; 0 where no outcome is left that the teacher can give.

    >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    >>> round(tempered_kl(p, q, 1.0).item(), 4)
    0.1438
    """
    comparable = log_student > -torch.inf
    log_teacher, log_student = log_teacher[comparable], log_student[comparable]
    if not (log_teacher > -torch.inf).any():
        return zero()
    teacher = torch.log_softmax(log_teacher / temperature, 0)
    student = torch.log_softmax(log_student / temperature, 0)
    given = teacher > -torch.inf
    return temperature**2 * (teacher[given].exp() * (teacher[given] - student[given])).sum()
