"""The pass as one PyTorch operator, opaque to `torch.compile`, and the function that gives its results a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import OptionError
from .bins import Bins
from .comparison import Comparison, Links
from .grouping import Grouping
from .kernel import run
from .packing import field_names, pack, unpack
from .pairs import Pairs
from .passes import Index, LevelIndex, Pass, Recipe, Wanted, Weights
from .projection import Projection
from .rows import Source, compute_dtype, states_gradient_dtype
from .whole import Whole

CLASSES = field_names(
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
        out.append(torch.empty_like(student.states, dtype=states_gradient_dtype(student)))
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
    tensors, text = pack((student, teacher, recipe, index, weights, wanted), CLASSES)
    parts = iter(_compare(tensors, text))
    always = [next(parts) for _ in range(6)]
    present = (
        wanted.any,
        wanted.weight and student.weight is not None,
        wanted.bias and student.bias is not None,
        wanted.links and _links(recipe) is not None,
    )
    return Pass(*always, *(next(parts) if there else None for there in present))


def gradients_of(found: Pass) -> list[torch.Tensor | None]:
    """The gradients of a pass, in the order of `Wanted`."""
    return [found.states, found.weight, found.bias, found.links]


def _links(recipe: Recipe) -> Links | None:
    return recipe.comparison.links if isinstance(recipe.comparison, Comparison) else None


class _Made:
    """Gradients that were made beforehand, handed out once as they are and made anew if they are asked for again."""

    def __init__(self, gradients: list[torch.Tensor | None], again: Callable[[], list[torch.Tensor | None]]) -> None:
        self.gradients: list[torch.Tensor | None] | None = gradients
        self.again = again

    def take(self) -> list[torch.Tensor | None]:
        """The gradients; the caller owns them and may change them."""
        taken = self.again() if self.gradients is None else self.gradients
        self.gradients = None
        return taken


class _Attached(torch.autograd.Function):
    """A value whose gradients were made beforehand."""

    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, rows_of: torch.Tensor | None, made: _Made, *inputs: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.rows_of, ctx.made = rows_of, made
        ctx.inputs = [None if one is None else (one.dtype, one.shape) for one in inputs]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        # PyTorch's own guard lets constants through where the loss itself is differentiated, as if they had no slope.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise OptionError(
                "expected a backward without a graph of its own, got create_graph=True: the loss can be differentiated "
                "once, since its gradient is made in the forward pass; leave create_graph out"
            )
        if ctx.rows_of is not None:
            slope = torch.cat([slope, slope.new_zeros(1)])[ctx.rows_of].unsqueeze(1)
        return (
            None,
            None,
            None,
            *(
                None if gradient is None or kept is None else _scaled(gradient, slope, *kept)
                for gradient, kept in zip(ctx.made.take(), ctx.inputs, strict=True)
            ),
        )


def _scaled(gradient: torch.Tensor, slope: torch.Tensor, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    """The gradient times the slope, in its own memory: it can be as large as the logits."""
    if not (slope.device.type == "cpu" and slope.numel() == 1 and float(slope) == 1):
        gradient.mul_(slope.to(gradient.dtype))
    return gradient.to(dtype).view(shape)


class _AttachedInGraph(torch.autograd.Function):
    """The same for `torch.compile`, which follows tensors and not objects."""

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
        ctx.inputs = [None if one is None else (one.dtype, one.shape) for one in inputs]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        rows_of, *gradients = ctx.saved_tensors
        if rows_of is not None:
            slope = torch.cat([slope, slope.new_zeros(1)])[rows_of].unsqueeze(1)
        scaled = [
            None
            if gradient is None or kept is None
            else (gradient * slope.to(gradient.dtype)).to(kept[0]).view(kept[1])
            for gradient, kept in zip(gradients, ctx.inputs, strict=True)
        ]
        return None, None, None, *scaled, *(None for _ in gradients)


def attach(
    value: torch.Tensor,
    inputs: list[torch.Tensor | None],
    gradients: list[torch.Tensor | None],
    again: Callable[[], list[torch.Tensor | None]],
    rows_of: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gives a value the graph of its inputs.

    Args:
        value: scalar, or floats (N,) with `rows_of`.
        inputs: what it was computed from.
        gradients: the gradient of the scalar by each input, of as many numbers; with `rows_of`, row r holds that of
            value[rows_of[r]]. They are handed to autograd as they are.
        again: makes the gradients once more, for a second backward through a graph that was kept.
        rows_of: int64 (rows,), the value that each row of the only input belongs to, N for none.

    Returns:
        The value. It can be differentiated once: the gradients are constants, and `create_graph=True` is refused.
    """
    if all(gradient is None for gradient in gradients):
        return value
    if torch.compiler.is_compiling():
        arguments = (value, rows_of, len(inputs), *inputs, *gradients)
        result: torch.Tensor = _AttachedInGraph.apply(*arguments)  # type: ignore[no-untyped-call]
    else:
        result = _Attached.apply(value, rows_of, _Made(gradients, again), *inputs)  # type: ignore[no-untyped-call]
    return result
