"""Partition-KL: KL over the bins into which first pieces split both vocabularies."""

from __future__ import annotations

import torch

from .bins import Bins
from .passes import Recipe
from .rowwise import check_width, compare_rows, temperature_of


def partition_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    student_bin: torch.Tensor,
    teacher_bin: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 KL(P' || Q') of the bins' probabilities.

    P[b], Q[b] = sum of softmax(z)[v] over the teacher's and the student's tokens v in bin b, P', Q' = P, Q to the power
    1 / T, normalised. At T = 1 it equals `F.kl_div(Q.log(), P, reduction="none").sum(1)`.

    Args:
        student_logits: floats (N, V_s). float64 is computed in float64, all else in float32.
        teacher_logits: floats (N, V_t); gets no gradient.
        student_bin: integers (V_s,), the bin of each token, as from `Mapping.bins()`. Tokens in no bin, or in a bin
            that the other side has not, are -1: they are one rest bin where both sides have some, else they are left
            out and both sides renormalised. Tokens without a probability (padding) are -2.
        teacher_bin: integers (V_t,).
        weight: floats (N,), a factor per row.
        temperature: T; bins are summed at T = 1.
        reduction: "none", "sum", or "mean", the sum divided by that of the weights.

    Returns:
        Scalar, or floats (N,) for "none". Never negative, 0 where both sides agree in every bin or no bin is shared.

    Raises:
        OptionError: for shapes that do not belong together, or an option out of range.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.5]]).log()
        >>> bins = torch.tensor([0, 0, 1]), torch.tensor([0, 1])
        >>> round(float(partition_kl(student, teacher, *bins)), 4)  # KL of (1/2, 1/2) and (2/3, 1/3)
        0.0589

    Source: this library, 2026; first pieces as in X-Token (arXiv:2605.21699, 2026).
    """
    check_width("student_bin", student_bin, student_logits, "(V_s,)")
    check_width("teacher_bin", teacher_bin, teacher_logits, "(V_t,)")
    return compare_rows(
        student_logits,
        teacher_logits,
        recipe_of_bins(student_bin, teacher_bin, temperature_of(temperature)),
        weight=weight,
        reduction=reduction,
    )


def recipe_of_bins(student_bin: torch.Tensor, teacher_bin: torch.Tensor, temperature: float) -> Recipe:
    """Bins, compared."""
    none = student_bin.new_zeros(0, dtype=torch.int64)
    return Recipe(Bins(student_bin, teacher_bin), None, none, none, temperature, None)
