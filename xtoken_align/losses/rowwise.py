"""What the plain functions share: logits as rows (N, V), one result per row, reductions as in `torch.nn.functional`."""

from __future__ import annotations

import torch

from ..errors import OptionError
from .block_sizes import block_sizes
from .operator import attach, compare_batch
from .options import one_of, positive
from .passes import Index, Recipe, Wanted, Weights
from .rows import Source, compute_dtype

REDUCTIONS = ("mean", "sum", "none")


def compare_rows(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    recipe: Recipe,
    *,
    weight: torch.Tensor | None,
    reduction: str,
) -> torch.Tensor:
    """Compares row with row.

    Args:
        student_logits: floats (N, V_s).
        teacher_logits: floats (N, V_t).
        recipe: what is compared.
        weight: floats (N,), what each row's value is multiplied by; 1 by default.
        reduction: "none", "sum", or "mean": the sum divided by that of the weights.

    Returns:
        Scalar, or floats (N,) for "none", with the student's graph.

    Raises:
        OptionError: for shapes that do not belong together, or an unknown reduction.
    """
    one_of("reduction", reduction, REDUCTIONS)
    check_rows(student_logits, teacher_logits)
    rows = len(student_logits)
    device = student_logits.device
    source = Source(states=student_logits.detach(), width=student_logits.shape[1])
    every = torch.arange(rows, device=device)
    # What divides the sum goes into the pass: a gradient that is right as it is needs not be read once more.
    factors = row_weights(student_logits, weight) * share_of_row(rows, weight, reduction)
    arguments = (
        source,
        Source(states=teacher_logits.detach(), width=teacher_logits.shape[1]),
        recipe,
        Index(every, every, None, None, None, (), block_edges(student_logits, teacher_logits)),
        Weights(factors, student_logits.new_zeros(())),
        wanted(student_logits),
    )
    found = compare_batch(*arguments)
    values = found.value * factors
    return attach(
        values if reduction == "none" else values.sum(),
        [student_logits],
        [found.states],
        lambda: [compare_batch(*arguments).states],
        every if reduction == "none" else None,
    )


def share_of_row(rows: int, weight: torch.Tensor | None, reduction: str) -> float | torch.Tensor:
    """1 over what the sum of weighted rows is divided by: 1 for "none" and "sum"."""
    if reduction != "mean":
        return 1.0
    if weight is None:
        return 1 / max(rows, 1)
    total = weight.detach().double().sum()
    return (1 / torch.where(total > 0, total, 1.0)).to(compute_dtype(weight))


def check_rows(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> None:
    """Refuses logits that are not two matrices of N rows."""
    if student_logits.dim() != 2 or teacher_logits.dim() != 2 or len(student_logits) != len(teacher_logits):
        raise OptionError(
            "student_logits and teacher_logits must have shapes (N, V_s) and (N, V_t), but they have shapes "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )


def check_width(name: str, values: torch.Tensor, logits: torch.Tensor, meaning: str) -> None:
    """Refuses an array over a vocabulary of another width than the logits'."""
    if tuple(values.shape) != (logits.shape[-1],):
        raise OptionError(
            f"{name} must have shape {meaning} = ({logits.shape[-1]},), the width of the logits, but it has shape "
            f"{tuple(values.shape)}"
        )


def temperature_of(value: float) -> float:
    """A temperature, checked."""
    return positive("temperature", value)


def row_weights(logits: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Floats (N,) in the dtype of the values."""
    dtype = compute_dtype(logits)
    if weight is None:
        return logits.new_ones(len(logits), dtype=dtype)
    if tuple(weight.shape) != (len(logits),):
        raise OptionError(f"weight must have shape (N,) = ({len(logits)},), but it has shape {tuple(weight.shape)}")
    return weight.detach().to(dtype)


def wanted(logits: torch.Tensor) -> Wanted:
    """The gradient of logits, where they have a graph."""
    return Wanted(states=logits.requires_grad and torch.is_grad_enabled(), weight=False, bias=False, links=False)


def block_edges(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Blocks of the rows of logits (N, V), each a chunk; on the CPU."""
    rows = len(student)
    bounds = [*range(0, rows, block_sizes(student.device, student.shape[1], teacher.shape[1]).rows), rows]
    return torch.tensor(bounds, dtype=torch.int64).unsqueeze(1).repeat(1, 7)
