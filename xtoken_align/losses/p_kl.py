"""P-KL: the student's distribution projected through W onto the teacher's vocabulary."""

from __future__ import annotations

import torch

from .compat.nemo_pairs import check_links
from .options import columns_kept
from .passes import Recipe
from .projection import Projection
from .rowwise import check_width, compare_rows, temperature_of


def p_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    weights: torch.Tensor,
    *,
    target: torch.Tensor | None = None,
    top_k: int | None = None,
    weight: torch.Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 KL(P' || Q') on the teacher's columns that W reaches.

    q = W^T softmax(z_S), p = softmax(z_T) with the mass of unreached columns moved or dropped; P', Q' = p, q to the
    power 1 / T, normalised. A row is multiplied by the teacher's mass that was not dropped. At T = 1, with all columns
    reached, it equals `F.kl_div((softmax(z_S) @ W).log(), softmax(z_T), reduction="none").sum(1)`.

    Args:
        student_logits: floats (N, V_s). float64 is computed in float64, all else in float32. Tokens without a link
            are left out of the softmax.
        teacher_logits: floats (N, V_t); gets no gradient.
        rows: integers (links,), the student ids of W's links.
        columns: integers (links,), the teacher ids.
        weights: floats (links,), above 0; each row's sum to 1.
        target: integers (V_t,), the column to which the mass of an unreached column moves, -1 where it is dropped, -2
            for tokens without a probability. By default all unreached mass is dropped.
        top_k: keep the teacher's k likeliest columns of each row, all others become one.
        weight: floats (N,), a factor per row.
        temperature: T; the projection is made at T = 1.
        reduction: "none", "sum", or "mean", the sum divided by that of the weights.

    Returns:
        Scalar, or floats (N,) for "none". Never negative.

    Raises:
        OptionError: for shapes that do not belong together, ids outside of the logits, or an option out of range.

    Example:
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> links = torch.tensor([0, 1]), torch.tensor([0, 1]), torch.ones(2)
        >>> round(float(p_kl(student, teacher, *links, target=torch.tensor([-1, -1, 1]))), 4)
        0.0

    Source: X-Token (arXiv:2605.21699, 2026). What becomes of unreached columns is this library's.
    """
    check_links(rows, columns, weights, (student_logits.shape[-1], teacher_logits.shape[-1]))
    if target is None:
        target = rows.new_full((teacher_logits.shape[-1],), -1)
    check_width("target", target, teacher_logits, "(V_t,)")
    projection = Projection(
        rows,
        columns,
        weights,
        target,
        torch.ones(student_logits.shape[-1], dtype=torch.bool, device=rows.device),
        weighted=True,
    )
    return compare_rows(
        student_logits,
        teacher_logits,
        recipe_of_projection(projection, temperature_of(temperature), columns_kept(top_k)),
        weight=weight,
        reduction=reduction,
    )


def recipe_of_projection(projection: Projection, temperature: float, top_k: int | None) -> Recipe:
    """A projection, compared."""
    none = projection.rows.new_zeros(0, dtype=torch.int64)
    return Recipe(projection, None, none, none, temperature, top_k)
