"""The pass over a batch, block by block: values of all chunks, cross-entropy, and the student's gradient.

Logits exist for one block at a time. The gradient is made in the same pass, while the block is in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from .bins import Bins
from .chain_levels import LevelBlock, compare_levels
from .comparison import Block, Comparison, compare
from .direct import Buffers, can_compare_directly, compare_directly
from .merging import Owners
from .pairs import Pairs
from .plan import IGNORED
from .projection import Projection
from .rows import Gradients, Source, compute_dtype, new_gradients
from .whole import Whole, compare_whole

_ROWS_AT_ONCE = 8
"""How many chunks of a block are compared at a time, so that what is made for them stays in the cache."""


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


@torch.no_grad()
def run(student: Source, teacher: Source, recipe: Recipe, index: Index, weights: Weights, wanted: Wanted) -> Pass:
    """One pass over a batch.

    Args:
        student: the student's rows.
        teacher: the teacher's.
        recipe: what is compared.
        index: the rows and chunks of each block.
        weights: what the gradient is of.
        wanted: which gradients are made.
    """
    recipe = resolved(recipe)
    dtype = compute_dtype(student.states)
    chunks = len(weights.chunk)
    device = student.states.device
    zeros = torch.zeros(chunks, dtype=dtype, device=device)
    out = Pass(
        value=zeros,
        cross_entropy=zeros.new_zeros(()),
        agrees=torch.zeros_like(zeros),
        dropped=torch.zeros_like(zeros),
        empty=torch.zeros_like(zeros),
        compared=torch.zeros_like(zeros),
        states=None,
        weight=None,
        bias=None,
        links=_zero_links(recipe, dtype) if wanted.links else None,
    )
    gradients = None
    if wanted.any:
        runs = (index.edges[:-1, 5] >= 0) * index.edges[:, 0].diff()
        covered = int(runs.sum()) == len(student.states)
        gradients = new_gradients(student, weight=wanted.weight, bias=wanted.bias, covered=covered)
    lift = _lift(student, weights.chunk if index.labels is None else torch.cat([weights.chunk, weights.label[None]]))
    if lift is not None:
        weights = Weights(weights.chunk * lift, weights.label * lift)
    buffers = Buffers()
    with torch.autocast(device.type, enabled=False):
        for number in range(len(index.edges) - 1):
            _run_block(number, student, teacher, recipe, index, weights, gradients, buffers, out)
    if gradients is None:
        return out
    return _with_gradients(out, gradients, lift)


def _lift(student: Source, weights: torch.Tensor) -> torch.Tensor | None:
    """What brings the largest weight near 1 where a head's products run in float16, in which less than 6e-8 is 0."""
    if student.weight is None or student.states.dtype != torch.float16 or not len(weights):
        return None
    # A power of two, which changes no digit.
    return torch.exp2(-weights.amax().clamp(1e-30, 1e30).log2().ceil())


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with index arrays."""
    if recipe.comparison is None or isinstance(recipe.comparison, Comparison):
        return recipe
    return replace(recipe, comparison=recipe.comparison.resolved())


def _run_block(
    number: int,
    student: Source,
    teacher: Source,
    recipe: Recipe,
    index: Index,
    weights: Weights,
    gradients: Gradients | None,
    buffers: Buffers,
    out: Pass,
) -> None:
    begin, end = index.edges[number].tolist(), index.edges[number + 1].tolist()
    rows = index.student_rows[begin[0] : end[0]]
    others = index.teacher_rows[begin[1] : end[1]]
    dtype = out.value.dtype
    scores = student.read(rows, dtype, begin[5])
    gradient = place = None
    if gradients is not None:
        place = gradients.place(len(rows), begin[5], dtype)
        gradient = torch.empty_like(scores) if place is None else place
        # A comparison writes the rows of level one.
        gradient[end[3] - begin[3] if recipe.comparison is not None else 0 :] = 0
    if end[2] > begin[2]:
        teachers, rest = teacher.read(others, dtype, begin[6]), teacher.log_rest(others, dtype)
        for part in _parts(index, begin, end):
            _compare_part(part, scores, teachers, rest, recipe, weights, gradient, buffers, out)
        for side, levels in enumerate(index.levels):
            block = _level_block(levels, number)
            if not len(block.chunk):
                continue
            chunk = block.chunk + begin[2]
            value = compare_levels(
                scores,
                teachers,
                block,
                student_is_restricted=side == 0,
                silent=recipe.teacher_silent if side == 0 else recipe.student_silent,
                temperature=recipe.temperature,
                log_rest=rest,
                coefficient=weights.chunk[chunk] if gradient is not None else None,
                gradient=gradient,
            )
            out.value.index_add_(0, chunk, value)
    if index.labels is not None:
        _add_cross_entropy(scores, index.labels[begin[0] : end[0]], weights.label, gradient, out)
    if gradients is not None and gradient is not None and place is None:
        gradients.add(rows, scores, gradient)


@dataclass(frozen=True, eq=False)
class _Part:
    """Some chunks of a block: their numbers, and their rows of level one among the block's rows."""

    chunks: slice
    student: slice
    teacher: slice
    student_owners: Owners | None
    teacher_owners: Owners | None


def _parts(index: Index, begin: list[int], end: list[int]) -> Iterator[_Part]:
    """Chunks with one row a side are taken a few at a time, others all at once."""
    if index.student_size is None and index.teacher_size is None:
        for first in range(begin[2], end[2], _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE, end[2])
            place = slice(first - begin[2], last - begin[2])
            yield _Part(slice(first, last), place, place, None, None)
        return
    chunks = slice(begin[2], end[2])
    sides = [None if size is None else size[chunks] for size in (index.student_size, index.teacher_size)]
    counts = [end[column] - begin[column] for column in (3, 4)]
    yield _Part(
        chunks,
        slice(0, counts[0]),
        slice(0, counts[1]),
        *(None if size is None else _owners(size, count) for size, count in zip(sides, counts, strict=True)),
    )


def _owners(size: torch.Tensor, rows: int) -> Owners:
    chunk = torch.arange(len(size), device=size.device).repeat_interleave(size, output_size=rows)
    return Owners(chunk, size)


def _compare_part(
    part: _Part,
    scores: torch.Tensor,
    teachers: torch.Tensor,
    rest: torch.Tensor | None,
    recipe: Recipe,
    weights: Weights,
    gradient: torch.Tensor | None,
    buffers: Buffers,
    out: Pass,
) -> None:
    student, teacher = scores[part.student], teachers[part.teacher]
    coefficient = weights.chunk[part.chunks] if gradient is not None else None
    if isinstance(recipe.comparison, Comparison):
        place = None if gradient is None else gradient[part.student]
        block: Block | None = None
        if (
            rest is None
            and part.student_owners is None
            and can_compare_directly(student, recipe.comparison, temperature=recipe.temperature, top_k=recipe.top_k)
        ):
            block = compare_directly(
                student,
                teacher,
                recipe.comparison,
                buffers,
                temperature=recipe.temperature,
                top_k=recipe.top_k,
                coefficient=coefficient,
                out=place,
            )
        if block is None:
            block = compare(
                student,
                teacher,
                recipe.comparison,
                temperature=recipe.temperature,
                top_k=recipe.top_k,
                student_owners=part.student_owners,
                teacher_owners=part.teacher_owners,
                log_rest=None if rest is None else rest[part.teacher],
                coefficient=coefficient,
                out=place,
            )
        out.value[part.chunks] = block.value
        out.agrees[part.chunks] = block.agrees.to(out.value.dtype)
        out.dropped[part.chunks] = block.dropped
        out.empty[part.chunks] = block.empty
        out.compared[part.chunks] = block.compared.to(out.value.dtype)
        if out.links is not None and block.link_gradient is not None:
            out.links.add_(block.link_gradient)
    if recipe.whole is not None:
        added = compare_whole(
            student,
            teacher,
            recipe.whole,
            temperature=recipe.temperature,
            student_owners=part.student_owners,
            teacher_owners=part.teacher_owners,
            coefficient=coefficient,
        )
        out.value[part.chunks] += added.value
        if recipe.comparison is None:
            out.agrees[part.chunks] = added.agrees.to(out.value.dtype)
            out.compared[part.chunks] = added.compared.to(out.value.dtype)
        if gradient is not None and added.gradient is not None:
            gradient[part.student] += added.gradient


def _level_block(levels: LevelIndex, number: int) -> LevelBlock:
    begin, end = levels.edges[number].tolist(), levels.edges[number + 1].tolist()
    of_level, of_outcome, of_token = (slice(begin[column], end[column]) for column in range(3))
    return LevelBlock(
        chunk=levels.chunk[of_level],
        restricted_slot=levels.restricted_slot[of_level],
        spoken_slot=levels.spoken_slot[of_level],
        level=levels.level[of_outcome] - begin[0],
        piece=levels.piece[of_outcome],
        token=levels.token[of_token],
        outcome=levels.outcome[of_token] - begin[1],
    )


def _add_cross_entropy(
    scores: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor | None, out: Pass
) -> None:
    """The cross-entropy of the labelled rows; it runs over the whole width, as everywhere."""
    labelled = labels != IGNORED
    target = torch.where(labelled, labels, 0).unsqueeze(1)
    for first in range(0, len(scores), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        log_probabilities = scores[rows].log_softmax(dim=1)
        own = log_probabilities.gather(1, target[rows]).squeeze(1)
        out.cross_entropy.sub_(torch.where(labelled[rows], own, 0.0).sum())
        if gradient is None:
            continue
        factor = (weight * labelled[rows]).unsqueeze(1)
        undefined = log_probabilities[:, :1].isnan()
        if scores.device.type != "cpu" or bool(undefined.any()):
            # A row without any mass is NaN, which no factor of 0 takes away where there is no label.
            log_probabilities.masked_fill_(undefined & ~labelled[rows].unsqueeze(1), 0.0)
        slope = log_probabilities.exp_().mul_(factor)
        slope.scatter_add_(1, target[rows], -factor)
        gradient[rows] += slope


def _zero_links(recipe: Recipe, dtype: torch.dtype) -> torch.Tensor | None:
    if not isinstance(recipe.comparison, Comparison) or recipe.comparison.links is None:
        return None
    return torch.zeros_like(recipe.comparison.links.log_weight, dtype=dtype)


def _with_gradients(out: Pass, gradients: Gradients, lift: torch.Tensor | None) -> Pass:
    if lift is not None:
        for gradient in (gradients.states, gradients.weight, gradients.bias, out.links):
            if gradient is not None:
                gradient.div_(lift)
    return Pass(
        out.value,
        out.cross_entropy,
        out.agrees,
        out.dropped,
        out.empty,
        out.compared,
        gradients.states,
        gradients.weight,
        gradients.bias,
        out.links,
    )
