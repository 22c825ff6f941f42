"""ULD: the distance of sorted probabilities, for vocabularies without a mapping."""

from __future__ import annotations

import torch

from .h_kl import live_tokens
from .pairs import everything
from .passes import Recipe
from .rowwise import compare_rows, temperature_of
from .whole import Whole


def uld(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    student_live: torch.Tensor | None = None,
    teacher_live: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 times the sum over ranks of |sorted softmax(z_S / T) - sorted softmax(z_T / T)|.

    Both are sorted in descending order, the shorter is filled up with zeros. It equals
    `(q.sort(-1, True)[0] - F.pad(p, (0, V_s - V_t)).sort(-1, True)[0]).abs().sum(-1)` for V_s >= V_t and T = 1.

    Args:
        student_logits: floats (N, V_s). float64 is computed in float64, all else in float32.
        teacher_logits: floats (N, V_t); gets no gradient.
        student_live: bool (V_s,), False for tokens without a probability; all have one by default.
        teacher_live: bool (V_t,).
        weight: floats (N,), a factor per row.
        temperature: T.
        reduction: "none", "sum", or "mean", the sum divided by that of the weights.

    Returns:
        Scalar, or floats (N,) for "none", from 0 to 2 T^2 a row.

    Raises:
        OptionError: for shapes that do not belong together, or an option out of range.

    Example:
        >>> student, teacher = torch.tensor([[0.1, 0.9]]).log(), torch.tensor([[0.6, 0.2, 0.2]]).log()
        >>> round(float(uld(student, teacher)), 4)
        0.6

    Source: Boizard et al. 2024.
    """
    students, teachers = live_tokens(student_live, student_logits), live_tokens(teacher_live, teacher_logits)
    return compare_rows(
        student_logits,
        teacher_logits,
        recipe_of_everything(everything(students, teachers), temperature_of(temperature)),
        weight=weight,
        reduction=reduction,
    )


def recipe_of_everything(whole: Whole, temperature: float) -> Recipe:
    """Whole vocabularies, compared."""
    none = whole.student_live.new_zeros(0)
    return Recipe(None, whole, none, none, temperature, None)
