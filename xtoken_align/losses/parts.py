"""Level one of a block: its chunks, some at a time, compared on common outcomes and in sorted order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .comparison import Block, Comparison, compare
from .direct import Buffers, can_compare_directly, compare_directly
from .direct_gpu import can_compare_on_gpu, compare_on_gpu
from .merging import Owners
from .passes import Index, Pass, Recipe, Weights
from .whole import compare_whole


@dataclass(frozen=True, eq=False)
class Part:
    """Some chunks of a block: their numbers, and their rows of level one among the block's rows."""

    chunks: slice
    student: slice
    teacher: slice
    student_owners: Owners | None
    teacher_owners: Owners | None


def parts_of(index: Index, begin: list[int], end: list[int], at_once: int) -> Iterator[Part]:
    """The parts of a block. Chunks with one row a side are taken a few at a time, others all at once.

    Args:
        index: the blocks.
        begin: the block's row of `index.edges`.
        end: the next one.
        at_once: how many chunks are taken.
    """
    if index.student_size is None and index.teacher_size is None:
        for first in range(begin[2], end[2], at_once):
            last = min(first + at_once, end[2])
            place = slice(first - begin[2], last - begin[2])
            yield Part(slice(first, last), place, place, None, None)
        return
    chunks = slice(begin[2], end[2])
    sides = [None if size is None else size[chunks] for size in (index.student_size, index.teacher_size)]
    counts = [end[column] - begin[column] for column in (3, 4)]
    yield Part(
        chunks,
        slice(0, counts[0]),
        slice(0, counts[1]),
        *(None if size is None else _owners(size, count) for size, count in zip(sides, counts, strict=True)),
    )


def _owners(size: torch.Tensor, rows: int) -> Owners:
    chunk = torch.arange(len(size), device=size.device).repeat_interleave(size, output_size=rows)
    return Owners(chunk, size)


def compare_part(
    part: Part,
    student: torch.Tensor,
    teacher: torch.Tensor,
    rest: torch.Tensor | None,
    recipe: Recipe,
    weights: Weights,
    gradient: torch.Tensor | None,
    buffers: Buffers | None,
    out: Pass,
) -> None:
    """Compares the chunks of a part: writes their values into `out` and the gradient into their rows.

    Args:
        part: the chunks.
        student: floats (rows of the block, V_s).
        teacher: floats (rows of the block, V_t).
        rest: floats (rows of the block,), a cached teacher's mass on unknown tokens.
        recipe: what is compared.
        weights: what the gradient is of.
        gradient: floats (rows of the block, V_s), or None.
        buffers: memory to compare in directly; None where that may not be done.
        out: what is found.
    """
    coefficient = weights.chunk[part.chunks] if gradient is not None else None
    place = None if gradient is None else gradient[part.student]
    rest = None if rest is None else rest[part.teacher]
    student, teacher = student[part.student], teacher[part.teacher]
    if isinstance(recipe.comparison, Comparison):
        block = _outcomes(part, student, teacher, rest, recipe, recipe.comparison, coefficient, place, buffers)
        for found, kept in (
            (out.value, block.value),
            (out.agrees, block.agrees),
            (out.dropped, block.dropped),
            (out.empty, block.empty),
            (out.compared, block.compared),
        ):
            found[part.chunks] = kept.to(found.dtype)
        if out.links is not None and block.link_gradient is not None:
            out.links.add_(block.link_gradient)
    if recipe.whole is None:
        return
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
    if place is not None and added.gradient is not None:
        place += added.gradient


def _outcomes(
    part: Part,
    student: torch.Tensor,
    teacher: torch.Tensor,
    rest: torch.Tensor | None,
    recipe: Recipe,
    comparison: Comparison,
    coefficient: torch.Tensor | None,
    place: torch.Tensor | None,
    buffers: Buffers | None,
) -> Block:
    """Common outcomes compared, directly where that can be done."""
    block = None
    alone = part.student_owners is None and part.teacher_owners is None
    if buffers is not None and rest is None and alone:
        block = _directly(student, teacher, recipe, comparison, coefficient, place, buffers)
    if block is not None:
        return block
    return compare(
        student,
        teacher,
        comparison,
        temperature=recipe.temperature,
        top_k=recipe.top_k,
        student_owners=part.student_owners,
        teacher_owners=part.teacher_owners,
        log_rest=rest,
        coefficient=coefficient,
        out=place,
    )


def _directly(
    student: torch.Tensor,
    teacher: torch.Tensor,
    recipe: Recipe,
    comparison: Comparison,
    coefficient: torch.Tensor | None,
    place: torch.Tensor | None,
    buffers: Buffers,
) -> Block | None:
    """The common case, None where this is another."""
    temperature, top_k = recipe.temperature, recipe.top_k
    # The kernels step through rows; those of transposed logits lie apart.
    in_rows = all(one is None or one.stride(1) == 1 for one in (student, teacher, place))
    if in_rows and can_compare_on_gpu(student.device, student.dtype, comparison, top_k=top_k):
        return compare_on_gpu(student, teacher, comparison, temperature=temperature, coefficient=coefficient, out=place)
    if not can_compare_directly(student, comparison, temperature=temperature, top_k=top_k):
        return None
    return compare_directly(
        student,
        teacher,
        comparison,
        buffers,
        temperature=temperature,
        top_k=top_k,
        coefficient=coefficient,
        out=place,
    )
