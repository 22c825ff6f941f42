"""The engine: a batch is planned as a list of blocks, and a loss's formulas are called on one block after another.

For each block the log-probabilities of some rows are read, from logits or from hidden states through a head; the
formulas give a value per chunk; autograd makes the gradient inside of the block; and gradients are added up in float32.
So nothing of size (positions, vocabulary) exists beside the inputs and their gradients. The common comparison of
outcomes has faster ways, `cpu` and `triton`, which write the same gradient in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ..errors import OptionError
from ..spans.spans import IGNORED
from . import cpu, sorting, triton
from .chain import Levels, Reads, first_shares, level_values, level_weights
from .divergence import Measure
from .inputs import (
    Compared,
    Gradients,
    Result,
    Rows,
    Source,
    Totals,
    Weights,
    compute_dtype,
    new_gradients,
    totals_of,
)
from .lines import AT_ONCE, AT_ONCE_OF_STATES, LevelLines, Lines, level_lines_of, lines_of, live_of
from .plan import Batch, Block, Further, Ids, Part, block_sizes
from .tables import Outcomes, Ranks, Table, without


@dataclass(frozen=True, eq=False)
class Term:
    """A part of a loss: the values of its terms add up.

    Attributes:
        formula: `(student: Rows, teacher: Rows, table, *, measure, looks) -> Compared`.
        table: what it compares.
        both: whether an outcome that the teacher cannot have is compared on neither side.
    """

    formula: Callable[..., Compared]
    table: Table
    both: bool = False


@dataclass(frozen=True, eq=False)
class Objective:
    """What the rows of a batch are compared by.

    Attributes:
        terms: the formulas of level one.
        measure: how distributions are compared.
        implementation: "auto", "reference", "cpu" or "triton".
        student_silent: int64, the student's tokens without a probability, for C-KL's levels; None without levels.
        teacher_silent: int64, or None.
        level_weight: how much C-KL's levels count: "plausible", "teacher" or "text".
    """

    terms: tuple[Term, ...]
    measure: Measure = field(default_factory=Measure)
    implementation: str = "auto"
    student_silent: torch.Tensor | None = None
    teacher_silent: torch.Tensor | None = None
    level_weight: str = "text"


@dataclass(frozen=True, eq=False)
class _Pass:
    """What stays the same from block to block; `result` and `gradients` are filled.

    `numbers` (6, N) holds the result's numbers per chunk, `entropies` what the kernels made of labels. With `kernels`
    Triton's compare the first term's outcomes.
    """

    student: Source
    teacher: Source
    objective: Objective
    path: str
    kernels: bool
    numbers: torch.Tensor
    weights: Weights
    gradients: Gradients | None
    result: Result
    entropies: list[torch.Tensor] = field(default_factory=list)
    buffers: cpu.Buffers = field(default_factory=cpu.Buffers)


@torch.no_grad()
def run(
    student: Source,
    teacher: Source,
    objective: Objective,
    blocks: Sequence[Block],
    weights: Weights,
    wanted: Sequence[bool],
) -> Result:
    """One pass over the blocks.

    Args:
        student: the student's rows.
        teacher: the teacher's.
        objective: what is compared.
        blocks: the rows and chunks of each block.
        weights: the gradient is that of `Totals.loss`.
        wanted: whether the gradient of states, head, bias and links is.
    """
    dtype, device = compute_dtype(student.states), student.states.device
    count = len(weights.chunk)
    zeros = torch.zeros(6 * count + 1, dtype=dtype, device=device)
    numbers = zeros[:-1].view(6, count)
    value, agrees, dropped, empty, compared_, plausible = numbers
    result = Result(value, agrees, dropped, empty, compared_, plausible, zeros[-1], gradients=[None] * 4)
    compared, links = _with_leaf(objective) if wanted[3] else (objective, None)
    lift = _lift(student, weights)
    path = _path(objective.implementation, student, teacher)
    kernels = path == "triton" and _suits_kernels(compared, teacher)
    lines, levels = None, None
    if kernels and _whole(compared, student, teacher, blocks):
        lines = lines_of(blocks, in_batch=True, labels=weights.labels)
        lines = lines.with_idle(len(student.states)) if any(wanted) else lines
        levels = level_lines_of(blocks, in_batch=True) if _suits_level_kernels(compared) else None
        blocks = tuple(_without_rows(blocks, levels=levels is None))
    firsts = _firsts([block.student_rows for block in blocks]), _firsts([block.teacher_rows for block in blocks])
    # What is added to what level one has written, or in another dtype than the logits', is added up in blocks apart.
    firsts = [-1] * len(blocks) if lines is not None or student.states.dtype != dtype else firsts[0], firsts[1]
    gradients = None
    if any(wanted):
        written = [block.student_rows for block, first in zip(blocks, firsts[0], strict=True) if first >= 0]
        whole = lines is not None
        gradients = new_gradients(student, written, whole=whole, weight=wanted[1], bias=wanted[2], links=links)
    lifted = weights if lift is None else replace(weights, factors=weights.factors * lift)
    pass_ = _Pass(student, teacher, compared, path, kernels, numbers, lifted, gradients, result)
    with torch.autocast(device.type, enabled=False):
        if lines is not None:
            out = None if gradients is None else gradients.states
            _compare_lines(lines, student.states, teacher.states, pass_, out)
            if levels is not None:
                _compare_level_lines(levels, student.states, teacher.states, pass_, out)
        for block, student_first, teacher_first in zip(blocks, *firsts, strict=True):
            _run_block(block, student_first, teacher_first, pass_)
    if path == "triton":
        # Where lines are those of the batch, they have all labels.
        entropies = [*pass_.entropies, result.cross_entropy[None]]
        entropy = entropies[0] if lines is not None else torch.cat(entropies)
        made = triton.add_up(numbers, entropy, weights.chunk, weights.factors)
        result.totals = Totals(*made)
        result.cross_entropy = result.totals.ce
    if gradients is not None:
        result.gradients = [gradients.states, gradients.weight, gradients.bias, gradients.links]
        for gradient in result.gradients:
            if gradient is not None and lift is not None:
                gradient.div_(lift)
    return result


def _path(implementation: str, student: Source, teacher: Source) -> str:
    """The way in which outcomes are compared where they are of the common case: "cpu", "triton" or "reference"."""
    device, dtype = student.states.device, compute_dtype(student.states)
    if implementation == "auto":
        if device.type == "cpu":
            return "cpu"
        works = device.type == "cuda" and dtype == torch.float32
        return "triton" if works and _kernels_work(student, teacher) else "reference"
    if implementation == "cpu" and device.type != "cpu":
        raise OptionError(f"implementation='cpu' needs logits on the CPU, but they are on {device}; use 'auto'")
    if implementation == "triton" and dtype != torch.float32:
        return "reference"
    if implementation == "triton" and not _kernels_work(student, teacher):
        raise OptionError(f"implementation='triton' needs Triton and a GPU, but the logits are on {device}; use 'auto'")
    return implementation


def _kernels_work(student: Source, teacher: Source) -> bool:
    dtypes = (_native(side, torch.float32) for side in (student, teacher))
    return triton.kernels_work(student.states.device, *dtypes)


def _native(source: Source, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a block's scores where kernels read logits as they are; `dtype` of those that are worked upon."""
    plain = source.ids is None and source.scale == 1 and source.softcap is None
    return source.states.dtype if plain and source.states.dtype in triton.DTYPES else dtype


def _suits_kernels(objective: Objective, teacher: Source) -> bool:
    """Whether Triton's kernels can compare the first term's outcomes: of whole distributions, all or a side's best."""
    measure = objective.measure
    if not objective.terms or teacher.ids is not None:
        return False
    table = objective.terms[0].table
    if not isinstance(table, Outcomes) or not table.in_place or table.student.index is None:
        return False
    few = [most is not None and most < table.student.count for most in (measure.top_k, measure.student_top_k)]
    return not all(few)


def _whole(objective: Objective, student: Source, teacher: Source, blocks: Sequence[Block]) -> bool:
    """Whether the kernels can do level one of the whole batch at once, from logits that lie there."""
    if len(objective.terms) > 1 or not all(_one_row_each(block) for block in blocks):
        return False
    if objective.level_weight == "teacher" and any(block.levels for block in blocks):
        # It asks for the teacher's rows of level one.
        return False
    return all(
        side.weight is None and side.states.dtype in triton.DTYPES and (side.states.stride(1) == 1 or side.width == 1)
        for side in (student, teacher)
    )


def _one_row_each(block: Block) -> bool:
    return all(part.student_size is None for part in block.parts)


def _suits_level_kernels(objective: Objective) -> bool:
    """Whether Triton's kernels can compare C-KL's levels, too."""
    asks_for_rows = objective.level_weight == "teacher"
    return objective.measure.student_top_k is None and objective.student_silent is not None and not asks_for_rows


def _without_rows(blocks: Sequence[Block], *, levels: bool) -> Iterator[Block]:
    """What is left of the blocks where level one and labels are done, and without `levels` these: further levels and
    comparisons with their rows.

    Of a block with the rows 10, 12, 11 of which the levels read places 0 and 2, the rows 10, 11 are left, and these
    become 0 and 1.
    """
    for block in blocks:
        own = block.levels if levels else ()
        beside: tuple[Levels | Further, ...] = (*own, *block.further)
        if not beside:
            continue
        ours, theirs = (np.unique(np.concatenate(side)) for side in zip(*(one.rows() for one in beside), strict=True))
        places = partial(_place_among, ours), partial(_place_among, theirs)
        yield Block(
            block.student_rows[ours],
            block.teacher_rows[theirs],
            (),
            0,
            tuple(one.placed(*places) for one in own),
            tuple(one.placed(*places) for one in block.further),
        )


def _place_among(rows: Ids, read: Ids) -> Ids:
    """Where rows stand among others, which are in order."""
    return np.asarray(np.searchsorted(rows, read))


def _compare_lines(
    lines: Lines, scores: torch.Tensor, teachers: torch.Tensor, pass_: _Pass, gradient: torch.Tensor | None
) -> None:
    """Rows compared by Triton's kernels, with the labels' cross-entropies."""
    term, weights = pass_.objective.terms[0], pass_.weights
    assert isinstance(term.table, Outcomes)
    wanted = triton.Wanted(weights.chunk, weights.factors, weights.labels, gradient)
    at_once = AT_ONCE if pass_.student.weight is None else AT_ONCE_OF_STATES
    given = {"measure": pass_.objective.measure, "both": term.both, "at_once": at_once}
    pass_.entropies.append(
        triton.compare_rows(scores, teachers, term.table, lines, wanted, pass_.numbers, **given)  # type: ignore[arg-type]
    )


def _compare_level_lines(
    levels: LevelLines, scores: torch.Tensor, teachers: torch.Tensor, pass_: _Pass, gradient: torch.Tensor | None
) -> None:
    """C-KL's levels by Triton's kernels, where level one of their chunks is done."""
    objective, weights = pass_.objective, pass_.weights
    assert objective.student_silent is not None
    assert objective.teacher_silent is not None
    live = (
        live_of(objective.student_silent, pass_.student.width),
        live_of(objective.teacher_silent, pass_.teacher.width),
    )
    triton.compare_levels(
        scores,
        teachers,
        levels,
        live,
        triton.Wanted(weights.chunk, weights.factors, out=gradient),
        pass_.numbers,
        measure=objective.measure,
        plausibly=objective.level_weight == "plausible",
    )


def _run_block(block: Block, student_first: int, teacher_first: int, pass_: _Pass) -> None:
    """Reads a block's rows, calls the formulas, and adds up values and gradients."""
    student, teacher, gradients = pass_.student, pass_.teacher, pass_.gradients
    device, dtype = student.states.device, pass_.result.value.dtype
    rows = torch.from_numpy(block.student_rows).to(device, non_blocking=True)
    read = [_native(side, dtype) if pass_.path == "triton" else dtype for side in (student, teacher)]
    scores = student.read(rows, read[0], student_first).scores
    gradient = None
    in_place = student_first >= 0 and student.weight is None
    by_kernels = pass_.kernels and _one_row_each(block)
    if gradients is not None:
        # The gradient of logits that follow each other is written where it is to stand.
        place = gradients.states[student_first : student_first + len(rows)]
        own = _dtype_of_gradient(scores, pass_) if by_kernels else dtype
        gradient = place if in_place else torch.empty_like(scores, dtype=own)
        # The formulas overwrite the rows of level one; levels and cross-entropies are added to what is there.
        gradient[block.level_one if pass_.objective.terms else 0 :] = 0
    teachers = Rows(scores.new_empty(0, teacher.width, dtype=read[1]))
    if len(block.teacher_rows):
        others = torch.from_numpy(block.teacher_rows).to(device, non_blocking=True)
        teachers = teacher.read(others, read[1], teacher_first)
    if by_kernels:
        lines = lines_of([block], in_batch=False, labels=pass_.weights.labels)
        _compare_lines(lines, scores, teachers.scores, pass_, gradient)
    if len(block.teacher_rows):
        _compare_chunks(block, scores, teachers, pass_, gradient, skips=by_kernels)
        _compare_levels_of(block, scores, teachers, pass_, gradient, by_kernels=by_kernels)
        for further in block.further:
            _compare_further(further, scores, teachers, pass_, gradient)
    if block.labels is not None and pass_.weights.labels and not by_kernels:
        _add_cross_entropy(scores, block.labels, pass_.weights.factors[1], gradient, pass_.result)
    if gradients is not None and gradient is not None and not in_place:
        gradients.add(rows, scores, gradient)


def _dtype_of_gradient(scores: torch.Tensor, pass_: _Pass) -> torch.dtype:
    """That in which formulas are computed; but kernels that alone write a block's do so in that of the head's products,
    which read it.
    """
    alone = pass_.student.weight is not None and len(pass_.objective.terms) == 1
    return scores.dtype if alone else pass_.result.value.dtype


def _with_leaf(objective: Objective) -> tuple[Objective, torch.Tensor]:
    """The objective with the links' log weights as a leaf."""
    (term,) = objective.terms
    assert isinstance(term.table, Outcomes)
    assert term.table.links is not None
    leaf = term.table.links.log_weight.detach().requires_grad_()
    table = replace(term.table, links=replace(term.table.links, log_weight=leaf))
    return replace(objective, terms=(Term(term.formula, table),)), leaf


def _lift(student: Source, weights: Weights) -> torch.Tensor | None:
    """What brings the largest weight near 1 where a head's products run in float16, in which less than 6e-8 is 0; else
    None.
    """
    if student.weight is None or student.states.dtype != torch.float16:
        return None
    largest = torch.cat([weights.of_values, weights.factors[1:2]] if weights.labels else [weights.of_values])
    if not len(largest):
        return None
    # A power of two, which changes no digit.
    return torch.exp2(-largest.amax().clamp(1e-30, 1e30).log2().ceil())


def _firsts(rows: list[Ids]) -> list[int]:
    """Each block's first row where its rows follow each other, so that nothing need be gathered; -1 elsewhere, and
    everywhere if any row is read by two blocks.
    """
    if sum(map(len, rows)) != len(np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *rows]))):
        return [-1] * len(rows)
    return [int(own[0]) if len(own) and (np.diff(own) == 1).all() else -1 for own in rows]


def _compare_chunks(
    block: Block,
    scores: torch.Tensor,
    teachers: Rows,
    pass_: _Pass,
    gradient: torch.Tensor | None,
    *,
    skips: bool,
) -> None:
    """Level one of a block: the values of its chunks, and the gradient of their rows; `skips` the first term's."""
    # Terms add up: the first writes its gradient over what was there, further ones add theirs. The first says what
    # could be compared: of H-KL that is the common part, the remainders follow.
    for part in block.parts:
        student, teacher = _rows_of(block, part, scores, teachers)
        place = None if gradient is None else gradient[part.student]
        chunks = part.chunks if isinstance(part.chunks, slice) else part.chunks.to(scores.device, non_blocking=True)
        weight = pass_.weights.of_values[chunks]
        for number, term in enumerate(pass_.objective.terms):
            found = None
            if number == 0 and skips:
                continue
            if number == 0 and pass_.path == "cpu":
                found = _in_place(term, student, teacher, pass_, weight, place)
            elif pass_.path == "triton" and isinstance(term.table, Ranks):
                found = _by_counting(term.table, student, teacher, pass_, weight, place, adds=number > 0)
            if found is None:
                found = _differentiate(term, student, teacher, pass_, weight, place, adds=number > 0)
            result = pass_.result
            result.value[chunks] += found.value
            if number == 0:
                for name in ("agrees", "dropped", "empty", "compared"):
                    getattr(result, name)[chunks] = getattr(found, name).to(result.value.dtype)
                if found.plausible is not None:
                    result.plausible[chunks] = found.plausible


def _rows_of(block: Block, part: Part, scores: torch.Tensor, teachers: Rows) -> tuple[Rows, Rows]:
    """Both sides' rows of a part's chunks, with what level one has to know of them."""
    student, teacher = Rows(scores[part.student]), Rows(teachers.scores[part.teacher])
    if teachers.log_rest is not None:
        teacher = replace(teacher, log_rest=teachers.log_rest[part.teacher])
    if part.student_size is not None and part.teacher_size is not None:
        student, teacher = _merged(student, part.student_size), _merged(teacher, part.teacher_size)
    if block.left is not None:
        first, last = (at - block.parts[0].range.start for at in (part.range.start, part.range.stop))
        left = block.left.between(first, last, moved=first).cells(scores.device)
        student, teacher = replace(student, left=left[0]), replace(teacher, left=left[1])
    if part.text is not None:
        teacher = replace(teacher, text=torch.from_numpy(part.text).to(scores.device, non_blocking=True))
    return student, teacher


def _merged(rows: Rows, size: Ids) -> Rows:
    """The rows as those of chunks of these sizes."""
    device = rows.scores.device
    # Sizes 1, 3, 2 are the chunks 0 1 1 1 2 2 of the rows.
    chunk = np.repeat(np.arange(len(size)), size)
    sizes, chunks = (torch.from_numpy(one).to(device, non_blocking=True) for one in (size, chunk))
    return replace(rows, chunk=chunks, size=sizes)


def _in_place(
    term: Term, student: Rows, teacher: Rows, pass_: _Pass, weight: torch.Tensor, place: torch.Tensor | None
) -> Compared | None:
    """Outcomes compared in place, where rows are chunks and every outcome is possible; None where this is not so."""
    outcomes, measure = term.table, pass_.objective.measure
    if student.chunk is not None or teacher.log_rest is not None:
        return None
    if not isinstance(outcomes, Outcomes) or not outcomes.in_place:
        return None
    coefficient = None if place is None else weight
    return cpu.compare_outcomes(
        student.scores,
        teacher.scores,
        outcomes,
        buffers=pass_.buffers,
        measure=measure,
        coefficient=coefficient,
        out=place,
        left=(student.left, teacher.left),
        text=teacher.text,
    )


def _by_counting(
    ranks: Ranks,
    student: Rows,
    teacher: Rows,
    pass_: _Pass,
    weight: torch.Tensor,
    place: torch.Tensor | None,
    *,
    adds: bool,
) -> Compared | None:
    """Ranks compared by Triton's kernels, where rows are chunks; None where this is not so."""
    rows_are_chunks = student.chunk is None and teacher.log_rest is None and len(student.scores) > 0
    if not rows_are_chunks or not sorting.compares(ranks, student.scores.device):
        return None
    scores, temperature = (student.scores, teacher.scores), pass_.objective.measure.temperature
    return sorting.compare_ranks(*scores, ranks, temperature=temperature, coefficient=weight, out=place, adds=adds)


def _differentiate(
    term: Term,
    student: Rows,
    teacher: Rows,
    pass_: _Pass,
    weight: torch.Tensor,
    place: torch.Tensor | None,
    *,
    adds: bool,
) -> Compared:
    """Calls a formula; autograd makes the gradient, which is written to its place or added to what is there."""
    objective, gradients = pass_.objective, pass_.gradients
    options: dict[str, Any] = {"measure": objective.measure, "looks": pass_.path == "cpu"}
    dtype = pass_.result.value.dtype
    student, teacher = (replace(side, scores=side.scores.to(dtype)) for side in (student, teacher))
    if place is None or gradients is None:
        return term.formula(student, teacher, term.table, **options)
    # The leaf is the block's rows alone, so that the graph ends here and its memory is free for the next block.
    leaf = student.scores.detach().requires_grad_()
    with torch.enable_grad():
        found = term.formula(replace(student, scores=leaf), teacher, term.table, **options)
        total = (found.value * weight).sum()
    leaves = [leaf] if gradients.link_leaf is None else [leaf, gradients.link_leaf]
    slopes: Sequence[torch.Tensor | None] = [None] * len(leaves)
    if total.requires_grad:
        slopes = torch.autograd.grad(total, leaves, allow_unused=True)
    if not adds:
        place.zero_() if slopes[0] is None else place.copy_(slopes[0])
    elif slopes[0] is not None:
        place.add_(slopes[0])
    if len(slopes) > 1 and slopes[1] is not None and gradients.links is not None:
        gradients.links.add_(slopes[1])
    return replace(found, value=found.value.detach())


def _compare_levels_of(
    block: Block,
    scores: torch.Tensor,
    teachers: Rows,
    pass_: _Pass,
    gradient: torch.Tensor | None,
    *,
    by_kernels: bool,
) -> None:
    """All of a block's levels, by the kernels where they did level one and can do these."""
    if by_kernels and _suits_level_kernels(pass_.objective):
        lines = level_lines_of([block], in_batch=False)
        if lines is not None:
            _compare_level_lines(lines, scores, teachers.scores, pass_, gradient)
        return
    for levels in block.levels:
        _compare_levels(block, levels, scores, teachers, pass_, gradient)


def _compare_levels(
    block: Block, levels: Levels, scores: torch.Tensor, teachers: Rows, pass_: _Pass, gradient: torch.Tensor | None
) -> None:
    """Some of C-KL's levels of a block: their values are added to their chunks', their gradient to their rows'."""
    objective = pass_.objective
    assert objective.student_silent is not None
    assert objective.teacher_silent is not None
    student = Reads(scores, objective.student_silent, wanted=gradient is not None)
    teacher = Reads(teachers.scores, objective.teacher_silent, teachers.log_rest)
    chunk = torch.from_numpy(levels.chunk).to(scores.device, non_blocking=True)
    factor = pass_.weights.of_values[chunk]
    how = objective.level_weight
    with torch.set_grad_enabled(gradient is not None):
        value, shares = level_values(student, teacher, levels, measure=objective.measure, level_weight=how)
        if how != "text":
            value = value * level_weights(levels, _first_weights(block, levels, teachers, pass_), shares)
        total = (value * factor).sum()
    if gradient is not None:
        student.add_gradient(total, gradient)
    pass_.result.value.index_put_((chunk,), value.detach(), accumulate=True)


def _first_weights(block: Block, levels: Levels, teachers: Rows, pass_: _Pass) -> torch.Tensor:
    """How much the first level of each chunk counts that has some of these levels: floats (c,)."""
    chunks, objective = np.unique(levels.chunk), pass_.objective
    if objective.level_weight == "plausible":
        return pass_.result.plausible[torch.from_numpy(chunks).to(teachers.scores.device)]
    assert objective.teacher_silent is not None
    # Level one's rows stand first in a block, one a chunk.
    own = chunks - block.parts[0].range.start
    rows = torch.from_numpy(own).to(teachers.scores.device, non_blocking=True)
    scores = teachers.scores.index_select(0, rows).to(pass_.result.value.dtype)
    left = None if block.left is None else block.left.teacher.among(own).cells(scores.device)
    log_rest = None if teachers.log_rest is None else teachers.log_rest.index_select(0, rows)
    return first_shares(levels, scores if left is None else without(scores, left), log_rest, objective.teacher_silent)


def _compare_further(
    further: Further, scores: torch.Tensor, teachers: Rows, pass_: _Pass, gradient: torch.Tensor | None
) -> None:
    """Comparisons beside level one: values and gradients are added, what else was found is noted."""
    objective, result = pass_.objective, pass_.result
    assert objective.student_silent is not None
    assert objective.teacher_silent is not None
    outcomes = objective.terms[0].table
    assert isinstance(outcomes, Outcomes)
    student = Reads(scores.to(result.value.dtype), objective.student_silent, wanted=gradient is not None)
    teacher = Reads(teachers.scores.to(result.value.dtype), objective.teacher_silent, teachers.log_rest)
    chunk = torch.from_numpy(further.chunk).to(scores.device, non_blocking=True)
    with torch.set_grad_enabled(gradient is not None):
        value, found = further.values(student, teacher, outcomes, objective.measure)
        total = (value * pass_.weights.of_values[chunk]).sum()
    if gradient is not None:
        student.add_gradient(total, gradient)
    result.value.index_put_((chunk,), value.detach(), accumulate=True)
    if found is not None:
        # A chunk's first comparison says what of it is compared.
        first = torch.from_numpy(np.flatnonzero(np.diff(further.chunk, prepend=-1))).to(chunk.device)
        for name in ("agrees", "dropped", "compared"):
            getattr(result, name).index_copy_(0, chunk[first], getattr(found, name)[first].to(result.value.dtype))


def _add_cross_entropy(
    scores: torch.Tensor, labels: Ids, weight: torch.Tensor, gradient: torch.Tensor | None, result: Result
) -> None:
    """The cross-entropy of the labelled rows; it runs over the whole width, as everywhere."""
    # d CE / dz = softmax(z) - onehot(label), per labelled row; some rows at a time, since softmax(z) takes memory.
    labelled = np.flatnonzero(labels != IGNORED)
    at_once = block_sizes(scores.device, scores.shape[1]).part
    for start in range(0, len(labelled), at_once):
        own = labelled[start : start + at_once]
        slots, targets = (torch.from_numpy(one).to(scores.device, non_blocking=True) for one in (own, labels[own]))
        leaf = scores.index_select(0, slots).to(result.value.dtype)
        with torch.set_grad_enabled(gradient is not None):
            total = torch.nn.functional.cross_entropy(
                leaf.requires_grad_(gradient is not None), targets, reduction="sum"
            )
        result.cross_entropy += total.detach()
        if gradient is not None:
            (slope,) = torch.autograd.grad(total, leaf)
            gradient.index_add_(0, slots, slope.mul_(weight).to(gradient.dtype))


class _Attached(torch.autograd.Function):
    """A value whose gradients were made beforehand."""

    @staticmethod
    def forward(
        ctx: Any,
        value: list[torch.Tensor],
        rows_of: torch.Tensor | None,
        made: list[Sequence[torch.Tensor | None]],
        again: Callable[[], Sequence[torch.Tensor | None]],
        *inputs: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.rows_of, ctx.made, ctx.again = rows_of, made, again
        ctx.inputs = [None if one is None else (one.dtype, one.shape) for one in inputs]
        # In a list it is no input, so that it becomes the result as it is.
        return value[0]

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        # PyTorch's own guard lets constants through where the loss itself is differentiated, as if they had no slope.
        if torch.is_grad_enabled():
            raise OptionError(
                "expected a backward without a graph of its own, got create_graph=True: the loss can be differentiated "
                "once, since its gradient is made in the forward pass; leave create_graph out"
            )
        if ctx.rows_of is not None:
            slope = slope[ctx.rows_of].unsqueeze(1)
        scaled: list[torch.Tensor | None] = []
        # They are given away, since autograd may change them; whoever asks once more gets new ones.
        gradients = ctx.made.pop() if ctx.made else ctx.again()
        for gradient, kept in zip(gradients, ctx.inputs, strict=True):
            if gradient is None or kept is None:
                scaled.append(None)
                continue
            # In its own memory: a gradient can be as large as the logits.
            if slope.device.type == "cuda" and slope.numel() == 1:
                triton.multiply(gradient, slope)
            elif not (slope.device.type == "cpu" and slope.numel() == 1 and float(slope) == 1):
                gradient.mul_(slope.to(gradient.dtype))
            scaled.append(gradient.to(kept[0]).view(kept[1]))
        return None, None, None, None, *scaled


def attach(
    value: torch.Tensor,
    inputs: Sequence[torch.Tensor | None],
    gradients: Sequence[torch.Tensor | None],
    again: Callable[[], Sequence[torch.Tensor | None]],
    rows_of: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gives a value the graph of its inputs.

    Args:
        value: scalar, or floats (N,) with `rows_of`.
        inputs: what it was computed from.
        gradients: the gradient of the scalar by each input, of as many numbers; with `rows_of`, row r holds that of
            value[rows_of[r]]. They are handed to autograd as they are.
        again: makes the gradients once more, for a second backward through a graph that was kept.
        rows_of: int64 (rows,), the value that each row of the only input belongs to.

    Returns:
        The value. It can be differentiated once: the gradients are constants, and `create_graph=True` is refused.
    """
    if all(gradient is None for gradient in gradients):
        return value
    result: torch.Tensor = _Attached.apply([value], rows_of, [gradients], again, *inputs)  # type: ignore[no-untyped-call]
    return result


def run_batch(
    student: Source,
    teacher: Source,
    objective: Objective,
    batch: Batch,
    weights: Weights,
    link_log_weight: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Result]:
    """The sum of the chunks' weighted values and of the labels' cross-entropies, times their factors.

    Args:
        student: the student.
        teacher: the teacher; gets no gradient.
        objective: what is compared.
        batch: the plan.
        weights: those of its chunks; whether there are labels is seen here.
        link_log_weight: floats (links,), with a graph, where W is learnt.

    Returns:
        That scalar with the graph of the student and of the links' weights, and the pass with its totals.
    """
    inputs = [*student.inputs, link_log_weight]
    wanted = [torch.is_grad_enabled() and one is not None and one.requires_grad for one in inputs]
    weights = replace(weights, labels=any(block.labels is not None for block in batch.blocks))
    arguments = (student, teacher, objective, batch.blocks, weights, wanted)
    result = run(*arguments)
    if result.totals is None:
        result.totals = totals_of(result, weights)
    loss = attach(result.totals.loss, inputs, result.gradients, lambda: run(*arguments).gradients)
    return loss, result
