"""The pass over a batch, block by block: values of all chunks, cross-entropy, and the student's gradient.

Logits exist for one block at a time. The gradient is made in the same pass, while the block is in the cache.
"""

from __future__ import annotations

import torch

from .block_sizes import block_sizes
from .chain_levels import LevelBlock, compare_levels
from .comparison import Comparison
from .direct import Buffers
from .direct_gpu import can_compare_on_gpu
from .parts import compare_part, parts_of
from .passes import Index, LevelIndex, Pass, Recipe, Wanted, Weights, resolved
from .plan import IGNORED
from .rows import Gradients, Source, compute_dtype, new_gradients


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
    found = _run_blocks(student, teacher, recipe, index, weights, wanted, Buffers())
    alone = index.student_size is None and index.teacher_size is None and teacher.rest is None
    dtype = compute_dtype(student.states)
    if not alone or not can_compare_on_gpu(student.states.device, dtype, recipe.comparison, top_k=recipe.top_k):
        return found
    # What the kernels compared is looked at here, once, since looking waits for the device.
    if bool(found.value.isfinite().all()):
        return found
    del found
    return _run_blocks(student, teacher, recipe, index, weights, wanted, None)


def _run_blocks(
    student: Source,
    teacher: Source,
    recipe: Recipe,
    index: Index,
    weights: Weights,
    wanted: Wanted,
    buffers: Buffers | None,
) -> Pass:
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


def _run_block(
    number: int,
    student: Source,
    teacher: Source,
    recipe: Recipe,
    index: Index,
    weights: Weights,
    gradients: Gradients | None,
    buffers: Buffers | None,
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
        at_once = block_sizes(scores.device, scores.shape[1], teachers.shape[1]).part
        for part in parts_of(index, begin, end, at_once):
            compare_part(part, scores, teachers, rest, recipe, weights, gradient, buffers, out)
        for side, levels in enumerate(index.levels):
            block = _level_block(levels, number)
            if len(block.chunk):
                chunk = block.chunk + begin[2]
                _add_levels(side, block, chunk, scores, teachers, rest, recipe, weights, gradient, out)
    if index.labels is not None:
        _add_cross_entropy(scores, index.labels[begin[0] : end[0]], weights.label, gradient, out)
    if gradients is not None and gradient is not None and place is None:
        gradients.add(rows, scores, gradient)


def _add_levels(
    side: int,
    block: LevelBlock,
    chunk: torch.Tensor,
    scores: torch.Tensor,
    teachers: torch.Tensor,
    rest: torch.Tensor | None,
    recipe: Recipe,
    weights: Weights,
    gradient: torch.Tensor | None,
    out: Pass,
) -> None:
    """C-KL's levels of a block at which one side, the student's or the teacher's, is restricted."""
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
    at_once = block_sizes(scores.device, scores.shape[1]).part
    for first in range(0, len(scores), at_once):
        rows = slice(first, first + at_once)
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
