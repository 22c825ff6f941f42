"""From the predicting positions of a chunk to one distribution: their arithmetic mean, in log space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Owners:
    """Which of c chunks each of r rows belongs to.

    Attributes:
        chunk: int64 (r,), 0 to c - 1; every chunk has a row.
        size: int64 (c,), how many rows each chunk has.
    """

    chunk: torch.Tensor
    size: torch.Tensor


def having_mass(log_rows: torch.Tensor, owners: Owners | None) -> Owners | None:
    """The owners with the number of their rows that are distributions: a row at -inf throughout is none."""
    if owners is None:
        return None
    defined = (log_rows > -math.inf).any(dim=1)
    return Owners(owners.chunk, torch.zeros_like(owners.size).index_add_(0, owners.chunk, defined.long()).clamp_min_(1))


def mean_rows(log_rows: torch.Tensor, owners: Owners | None) -> torch.Tensor:
    """Log of the mean of exp(log_rows) over each chunk's rows, (r, K) to (c, K); without owners a row is a chunk."""
    if owners is None:
        return log_rows
    chunks = len(owners.size)
    index = owners.chunk.unsqueeze(1).expand(log_rows.shape)
    top = log_rows.new_full((chunks, log_rows.shape[1]), -math.inf).scatter_reduce(0, index, log_rows, "amax")
    top.clamp_min_(torch.finfo(log_rows.dtype).min)
    total = torch.zeros_like(top).index_add_(0, owners.chunk, (log_rows - top[owners.chunk]).exp_())
    return top.add_(total.log_()).sub_(owners.size.to(top.dtype).log().unsqueeze(1))


def rows_gradient(
    gradient: torch.Tensor, log_rows: torch.Tensor, log_chunks: torch.Tensor, owners: Owners | None
) -> torch.Tensor:
    """The gradient of normalised rows from that of their chunks: (c, K) to (r, K).

    The rows are log_softmax of something; what comes back is its gradient, so each row sums to 0.
    """
    if owners is None:
        return gradient
    whole = log_chunks + owners.size.to(log_chunks.dtype).log().unsqueeze(1)
    share = log_rows - whole.clamp_min_(torch.finfo(log_rows.dtype).min)[owners.chunk]
    spread = gradient[owners.chunk].mul_(share.exp_())
    return spread.sub_(log_rows.exp().mul_(spread.sum(dim=1, keepdim=True)))
