"""What a pass over a batch takes and what it finds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .bins import Bins
from .comparison import Comparison
from .pairs import Pairs
from .projection import Projection
from .whole import Whole


@dataclass(frozen=True, eq=False)
class Recipe:
    """What is compared.

    Attributes:
        comparison: common outcomes, or None; plain arrays are made into index arrays in the pass.
        whole: sorted remainders, or None; their value is added.
        student_silent: int64, the student's tokens without a probability; for C-KL's levels.
        teacher_silent: int64.
        temperature: T.
        top_k: the teacher's outcomes that are kept, or None.
        widths: V_s and V_t, or None where the arrays are checked elsewhere.
    """

    comparison: Comparison | Bins | Projection | Pairs | None
    whole: Whole | None
    student_silent: torch.Tensor
    teacher_silent: torch.Tensor
    temperature: float
    top_k: int | None
    widths: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class LevelIndex:
    """A plan's levels as tensors; level and outcome count through the batch, `edges` cuts them into blocks.

    Attributes:
        chunk: int64 (m,).
        restricted_slot: int64 (m,).
        spoken_slot: int64 (m,).
        level: int64 (outcomes,).
        piece: int64 (outcomes,).
        token: int64 (tokens,).
        outcome: int64 (tokens,).
        edges: int64 (blocks + 1, 3) on the CPU: where levels, outcomes and tokens begin.
    """

    chunk: torch.Tensor
    restricted_slot: torch.Tensor
    spoken_slot: torch.Tensor
    level: torch.Tensor
    piece: torch.Tensor
    token: torch.Tensor
    outcome: torch.Tensor
    edges: torch.Tensor


@dataclass(frozen=True, eq=False)
class Index:
    """A plan as tensors.

    Attributes:
        student_rows: int64.
        teacher_rows: int64.
        labels: int64, like `student_rows`, or None.
        student_size: int64 (N,), None where each chunk has one row of level one on that side.
        teacher_size: int64 (N,), or None.
        levels: of the restricted student and of the restricted teacher; or empty.
        edges: int64 (blocks + 1, 7) on the CPU: where student rows, teacher rows, chunks, and the chunks' rows of
            level one on both sides begin; then the first position where a block's rows follow each other and stand in
            no other block, student and teacher, else -1.
    """

    student_rows: torch.Tensor
    teacher_rows: torch.Tensor
    labels: torch.Tensor | None
    student_size: torch.Tensor | None
    teacher_size: torch.Tensor | None
    levels: tuple[LevelIndex, ...]
    edges: torch.Tensor


@dataclass(frozen=True, eq=False)
class Weights:
    """What the gradient is of: the sum of chunk * value and label * cross-entropy.

    Attributes:
        chunk: floats (N,).
        label: scalar.
    """

    chunk: torch.Tensor
    label: torch.Tensor


@dataclass(frozen=True, eq=False)
class Pass:
    """What a pass over a batch found.

    Attributes:
        value: floats (N,), each chunk's divergence.
        cross_entropy: scalar, summed over the labels.
        agrees: floats (N,), 1 or 0.
        dropped: floats (N,), the teacher's mass that was not compared.
        empty: floats (N,), the student's mass on tokens without a counterpart.
        compared: floats (N,), 1 where both sides have a common space in which they could agree.
        states: the gradient of logits or hidden states, or None.
        weight: of the head, or None.
        bias: of the head, or None.
        links: of the links' log weights, or None.
    """

    value: torch.Tensor
    cross_entropy: torch.Tensor
    agrees: torch.Tensor
    dropped: torch.Tensor
    empty: torch.Tensor
    compared: torch.Tensor
    states: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    links: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Wanted:
    """Which gradients are made."""

    states: bool
    weight: bool
    bias: bool
    links: bool

    @property
    def any(self) -> bool:
        """Whether one is."""
        return self.states or self.weight or self.bias or self.links


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with index arrays."""
    if recipe.comparison is None or isinstance(recipe.comparison, Comparison):
        return recipe
    return replace(recipe, comparison=recipe.comparison.resolved())
