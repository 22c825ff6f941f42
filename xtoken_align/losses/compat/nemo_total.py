"""NeMo-RL's sum of a distillation loss and the student's cross-entropy, with its scale per batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import OptionError
from ..options import same_shape, weight
from .chunks import compute_dtype, rows_at

_LABEL_EPSILON = 1e-8


@dataclass(frozen=True, eq=False)
class TotalLoss:
    """Distillation with cross-entropy.

    Attributes:
        loss: scalar with the student's graph.
        kd: scalar, the distillation loss as given, detached.
        ce: scalar, the cross-entropy, detached.
        kl_scale: scalar, what `dynamic_loss_scaling` multiplied `kd` by, else 1.
    """

    loss: torch.Tensor
    kd: torch.Tensor
    ce: torch.Tensor
    kl_scale: torch.Tensor


def total(
    kd: torch.Tensor,
    student_logits: torch.Tensor,
    student_ids: torch.Tensor,
    *,
    token_mask: torch.Tensor | None = None,
    sample_mask: torch.Tensor | None = None,
    kl_loss_weight: float = 1.0,
    ce_loss_scale: float = 1.0,
    dynamic_loss_scaling: bool = False,
) -> TotalLoss:
    """NeMo-RL's sum of a distillation loss and the student's cross-entropy.

    ce = sum over masked next-token labels of -log softmax(z_S[t])[x[t + 1]], divided by (their number + 1e-8).
    Fixed: loss = kl_loss_weight * kd + ce_loss_scale * ce. Dynamic: loss = |ce| / |kd| * kd + ce, the factor a
    constant and both weights ignored; where kd is 0 the factor is 1.

    What differs from ours: the dynamic factor is this batch's, where ours runs over averages that are clipped and kept;
    it makes the value 2 ce whatever the teacher says, cancels ce where kd is negative, and blows kd's noise up as kd
    falls. Labels are counted in this call.

    Args:
        kd: scalar, the `loss` of `p_kl` or `gold`.
        student_logits: floats (B, T_s, V_s).
        student_ids: integers (B, T_s).
        token_mask: (B, T_s), non-zero where a token may be a label; by default everywhere.
        sample_mask: (B,), non-zero where a sample may count.
        kl_loss_weight: the fixed weight of `kd`.
        ce_loss_scale: the fixed weight of the cross-entropy.
        dynamic_loss_scaling: scale `kd` to the cross-entropy instead.

    Returns:
        The sum and its parts.

    Raises:
        OptionError: for a weight out of range or shapes that do not belong together.

    Example:
        >>> import torch
        >>> logits, ids = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])
        >>> out = total(torch.tensor(0.5), logits, ids, dynamic_loss_scaling=True)
        >>> round(float(out.ce), 4), round(float(out.kl_scale), 4), round(float(out.loss), 4)
        (1.3863, 2.7726, 2.7726)

    Source: NeMo-RL, `CrossTokenizerDistillationLossFn`, 2026.
    """
    weight("kl_loss_weight", kl_loss_weight)
    weight("ce_loss_scale", ce_loss_scale)
    if kd.dim():
        raise OptionError(f"kd must be a scalar, the loss of p_kl or gold, but it has shape {tuple(kd.shape)}")
    ce = _next_token_loss(student_logits, student_ids, token_mask, sample_mask)
    scale = torch.ones_like(ce.detach())
    if dynamic_loss_scaling:
        size_of_kd = kd.detach().abs()
        scale = torch.where(size_of_kd > 0, ce.detach().abs() / size_of_kd, scale)
        loss = scale * kd + ce
    else:
        loss = kl_loss_weight * kd + ce_loss_scale * ce
    return TotalLoss(loss=loss, kd=kd.detach(), ce=ce.detach(), kl_scale=scale)


def _next_token_loss(
    logits: torch.Tensor, ids: torch.Tensor, token_mask: torch.Tensor | None, sample_mask: torch.Tensor | None
) -> torch.Tensor:
    """The masked cross-entropy of the next token, divided by the number of labels + 1e-8."""
    same_shape("student_ids", ids, logits.shape[:2], "(B, T_s)")
    labelled = torch.ones_like(ids, dtype=torch.bool)
    if token_mask is not None:
        same_shape("token_mask", token_mask, ids.shape, "(B, T_s)")
        labelled = token_mask.bool()
    if sample_mask is not None:
        same_shape("sample_mask", sample_mask, ids.shape[:1], "(B,)")
        labelled = labelled & sample_mask.bool().unsqueeze(1)
    sample, position = labelled[:, 1:].nonzero(as_tuple=True)
    rows = rows_at(logits, sample * ids.shape[1] + position, compute_dtype(logits))
    labels = ids[sample, position + 1].long()
    return torch.nn.functional.cross_entropy(rows, labels, reduction="sum") / (len(labels) + _LABEL_EPSILON)
