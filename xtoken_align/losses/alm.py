"""ALM: both models' likelihoods of each chunk, for vocabularies without a mapping."""

from __future__ import annotations

import torch

from ..spans.spans import Predictions
from .compat.tokenkit_alm import binary_ce
from .forms import Hidden, Logits
from .options import one_of
from .rows import compute_dtype
from .rowwise import REDUCTIONS, row_weights, share_of_row


def alm(
    student_log_likelihood: torch.Tensor,
    teacher_log_likelihood: torch.Tensor,
    *,
    tau: float = 100.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """The binary cross-entropy of "this chunk" against "another", a = l_T / tau - 1e-6, b = l_S / tau - 1e-6.

    -(exp(a) b + (1 - exp(a)) log(1 - exp(b))); least where the likelihoods are equal, but not 0 there.

    Args:
        student_log_likelihood: floats (N,), natural logarithms of at most 0.
        teacher_log_likelihood: floats (N,); gets no gradient.
        tau: the temperature of the likelihoods; there is no T^2.
        weight: floats (N,), a factor per chunk.
        reduction: "none", "sum", or "mean", the sum divided by that of the weights.

    Returns:
        Scalar, or floats (N,) for "none".

    Raises:
        OptionError: for two shapes or an option out of range.

    Example:
        >>> round(float(alm(torch.tensor([-0.7]), torch.tensor([-0.5]))), 4)
        0.0317

    Source: tokenkit, `compute_alm_loss`, 2025; Minixhofer et al. 2025.
    """
    one_of("reduction", reduction, REDUCTIONS)
    values = binary_ce(teacher_log_likelihood.detach(), student_log_likelihood, tau=tau)
    values = values * (row_weights(values, weight) * share_of_row(len(values), weight, reduction))
    return values if reduction == "none" else values.sum()


def chunk_log_likelihoods(
    side: torch.Tensor | Logits | Hidden, predictions: Predictions, which: str, silent: torch.Tensor
) -> torch.Tensor:
    """Floats (N,): the log-likelihood of each chunk's tokens, at most 0; NaN where a position has no distribution.

    From hidden states the logits of all predicting positions are made at once: this baseline is not fused.

    Args:
        side: logits (B, T, V), or hidden states with their head.
        predictions: tensors on the side's device.
        which: "student" or "teacher".
        silent: int64, tokens without a probability.
    """
    rows = getattr(predictions, which)
    logits = _logits_of(side, rows)
    scores = logits.to(compute_dtype(logits)).index_fill(1, silent, -torch.inf)
    own = getattr(predictions, f"{which}_tokens").long()
    # A row without any mass would make NaN of its gradient too.
    undefined = (scores == -torch.inf).all(dim=1)
    scores = scores.masked_fill(undefined.unsqueeze(1), 0.0)
    log_probabilities = scores.log_softmax(dim=1).gather(1, own.unsqueeze(1)).squeeze(1)
    log_probabilities = log_probabilities.masked_fill(undefined, torch.nan)
    offsets = getattr(predictions, f"{which}_offsets")
    chunk = torch.arange(len(offsets) - 1, device=rows.device).repeat_interleave(offsets.diff())
    return log_probabilities.new_zeros(len(offsets) - 1).index_add(0, chunk, log_probabilities).clamp_max(0)


def _logits_of(side: torch.Tensor | Logits | Hidden, rows: torch.Tensor) -> torch.Tensor:
    if isinstance(side, Hidden):
        states = side.states.flatten(0, 1).index_select(0, rows)
        logits = torch.nn.functional.linear(states, side.weight, side.bias) * side.scale
        return logits if side.softcap is None else side.softcap * torch.tanh(logits / side.softcap)
    return (side.logits if isinstance(side, Logits) else side).flatten(0, 1).index_select(0, rows)
