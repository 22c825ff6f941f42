"""The pass as one PyTorch operator, opaque to `torch.compile`, and the function that gives its results a graph."""

from __future__ import annotations

from typing import Any

import torch

from .bins import Bins
from .comparison import Comparison, Links
from .grouping import Grouping
from .kernel import Index, LevelIndex, Pass, Recipe, Wanted, Weights, run
from .packing import pack, unpack
from .pairs import Pairs
from .projection import Projection
from .rows import Source, compute_dtype
from .whole import Whole

CLASSES = (
    *(Source, Recipe, Bins, Projection, Pairs, Comparison, Links, Grouping, Whole),
    *(Index, LevelIndex, Weights, Wanted),
)


@torch.library.custom_op("xtoken_align::compare", mutates_args=())
def _compare(tensors: list[torch.Tensor], text: str) -> list[torch.Tensor]:
    arguments = unpack(tensors, text, CLASSES)
    return [part for part in vars(run(*arguments)).values() if part is not None]


@_compare.register_fake
def _(tensors: list[torch.Tensor], text: str) -> list[torch.Tensor]:
    student, _, recipe, _, weights, wanted = unpack(tensors, text, CLASSES)
    dtype = compute_dtype(student.states)
    chunk = student.states.new_empty(weights.chunk.shape, dtype=dtype)
    out = [chunk, chunk.new_empty(()), *(torch.empty_like(chunk) for _ in range(4))]
    if wanted.any:
        kept = torch.bfloat16 if student.weight is None and student.states.dtype == torch.bfloat16 else dtype
        out.append(torch.empty_like(student.states, dtype=kept))
    if wanted.weight and student.weight is not None:
        out.append(torch.empty_like(student.weight, dtype=dtype))
    if wanted.bias and student.bias is not None:
        out.append(torch.empty_like(student.bias, dtype=dtype))
    links = _links(recipe)
    if wanted.links and links is not None:
        out.append(torch.empty_like(links.log_weight, dtype=dtype))
    return out


def compare_batch(
    student: Source, teacher: Source, recipe: Recipe, index: Index, weights: Weights, wanted: Wanted
) -> Pass:
    """`kernel.run` as an operator."""
    tensors, text = pack((student, teacher, recipe, index, weights, wanted))
    parts = iter(_compare(tensors, text))
    always = [next(parts) for _ in range(6)]
    present = (
        wanted.any,
        wanted.weight and student.weight is not None,
        wanted.bias and student.bias is not None,
        wanted.links and _links(recipe) is not None,
    )
    return Pass(*always, *(next(parts) if there else None for there in present))


def _links(recipe: Recipe) -> Links | None:
    return recipe.comparison.links if isinstance(recipe.comparison, Comparison) else None


class _Attached(torch.autograd.Function):
    """A value whose gradients were made beforehand."""

    @staticmethod
    def forward(
        ctx: Any,
        value: torch.Tensor,
        rows_of: torch.Tensor | None,
        count: int,
        *inputs_and_gradients: torch.Tensor | None,
    ) -> torch.Tensor:
        inputs, gradients = inputs_and_gradients[:count], inputs_and_gradients[count:]
        ctx.save_for_backward(rows_of, *gradients)
        ctx.dtypes = [None if one is None else one.dtype for one in inputs]
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        rows_of, *gradients = ctx.saved_tensors
        if rows_of is not None:
            slope = torch.cat([slope, slope.new_zeros(1)])[rows_of].unsqueeze(1)
        scaled = [
            None if gradient is None else (gradient * slope.to(gradient.dtype)).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return None, None, None, *scaled, *(None for _ in gradients)


def attach(
    value: torch.Tensor,
    inputs: list[torch.Tensor | None],
    gradients: list[torch.Tensor | None],
    rows_of: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gives a value the graph of its inputs.

    Args:
        value: scalar, or floats (N,) with `rows_of`.
        inputs: what it was computed from.
        gradients: the gradient of the scalar by each input, of its shape; with `rows_of`, row r holds that of
            value[rows_of[r]].
        rows_of: int64 (rows,), the value that each row of the only input belongs to, N for none.

    Returns:
        The value. It can be differentiated once: the gradients are constants.
    """
    result: torch.Tensor = _Attached.apply(value, rows_of, len(inputs), *inputs, *gradients)  # type: ignore[no-untyped-call]
    return result
