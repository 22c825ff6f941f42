"""C-KL below level one: conditional distributions over next pieces, for all levels of a block at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .block_sizes import block_sizes


@dataclass(frozen=True, eq=False)
class LevelBlock:
    """The levels of a block, all restricted on the same side.

    Attributes:
        chunk: int64 (m,), the chunk of each level in the block.
        restricted_slot: int64 (m,), the restricted side's row in the block.
        spoken_slot: int64 (m,), the other side's.
        level: int64 (outcomes,); a level's first outcome is its end.
        piece: int64 (outcomes,), -1 for the end.
        token: int64 (tokens,), the restricted side's tokens.
        outcome: int64 (tokens,), the outcome of each.
    """

    chunk: torch.Tensor
    restricted_slot: torch.Tensor
    spoken_slot: torch.Tensor
    level: torch.Tensor
    piece: torch.Tensor
    token: torch.Tensor
    outcome: torch.Tensor


@dataclass(frozen=True, eq=False)
class Spoken:
    """The side that says the next piece.

    Attributes:
        log_masses: floats (outcomes,), not normalised; a piece's logit, and for the end the log of all else.
        inner: int64 (pieces,), which outcomes are pieces.
    """

    log_masses: torch.Tensor
    inner: torch.Tensor


def compare_levels(
    student: torch.Tensor,
    teacher: torch.Tensor,
    block: LevelBlock,
    *,
    student_is_restricted: bool,
    silent: torch.Tensor,
    temperature: float,
    log_rest: torch.Tensor | None = None,
    coefficient: torch.Tensor | None = None,
    gradient: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each level's T^2 KL(teacher || student).

    Args:
        student: floats (r_s, V_s), logits.
        teacher: floats (r_t, V_t), logits; of a cached teacher log-probabilities, -inf where unknown.
        block: the levels.
        student_is_restricted: which side is.
        silent: int64, the tokens of the other side that have no probability.
        temperature: T.
        log_rest: floats (r_t,), a cached teacher's mass on the unknown tokens.
        coefficient: floats (m,), of each level's value in the loss.
        gradient: floats (r_s, V_s), what the gradient of the student's logits is added to; with `coefficient`.

    Returns:
        Floats (m,).
    """
    levels, outcome = len(block.chunk), block.outcome
    if student_is_restricted:
        spoken = _spoken(teacher, block, silent, log_rest)
        log_teacher = spoken.log_masses
        if log_rest is not None:
            # A next piece that is not among the teacher's best is part of "anything else", on both sides.
            unknown = (log_teacher == -math.inf) & (block.piece >= 0)
            outcome = torch.where(unknown[outcome], _ends(block)[block.level[outcome]], outcome)
        log_student = _restricted(student, block, outcome)
    else:
        spoken = _spoken(student, block, silent, None)
        log_student = spoken.log_masses
        log_teacher = _restricted(teacher, block, outcome)
    masses = log_student
    log_student = _log_softmax(log_student, block.level, levels)
    log_teacher = log_teacher.masked_fill(log_student == -math.inf, -math.inf)
    log_teacher = _log_softmax(log_teacher, block.level, levels)
    if temperature != 1:
        log_student = _log_softmax(log_student / temperature, block.level, levels)
        log_teacher = _log_softmax(log_teacher / temperature, block.level, levels)
    teacher_mass = log_teacher.exp()
    lowest = torch.finfo(student.dtype).min / 4
    terms = teacher_mass * (log_teacher.clamp_min(lowest) - log_student.clamp_min(lowest))
    value = _sums(terms, block.level, levels).mul_(temperature**2).clamp_min_(0)
    if coefficient is None or gradient is None:
        return value
    # Without a teacher's mass on any outcome there is no comparison and must be no gradient.
    compared = _sums(teacher_mass, block.level, levels) > 0
    slope = (coefficient * compared * temperature)[block.level] * (log_student.exp() - teacher_mass)
    if student_is_restricted:
        _add_restricted(gradient, student, block, outcome, masses, slope)
    else:
        _add_spoken(gradient, student, block, silent, spoken, slope)
    return value


def _restricted(scores: torch.Tensor, block: LevelBlock, outcome: torch.Tensor) -> torch.Tensor:
    """(outcomes,), log of the sums over each outcome's tokens, -inf where it has none."""
    row = block.restricted_slot[block.level[block.outcome]]
    return _log_sums(scores[row, block.token], outcome, len(block.level))


def _spoken(scores: torch.Tensor, block: LevelBlock, silent: torch.Tensor, log_rest: torch.Tensor | None) -> Spoken:
    inner = (block.piece >= 0).nonzero().squeeze(1)
    masses = scores.new_empty(len(block.level))
    masses[inner] = scores[block.spoken_slot[block.level[inner]], block.piece[inner]]
    masses[_ends(block)] = torch.cat(
        [scores.new_zeros(0), *(others.logsumexp(dim=1) for _, others in _all_else(scores, block, silent, inner))]
    )
    if log_rest is not None:
        ends = _ends(block)
        masses[ends] = torch.logaddexp(masses[ends], log_rest.to(masses.dtype)[block.spoken_slot])
    return Spoken(masses, inner)


def _all_else(
    scores: torch.Tensor, block: LevelBlock, silent: torch.Tensor, inner: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Whole rows of the levels, a few at a time, in which the next pieces and what is silent are at -inf."""
    levels = block.level[inner]
    at_once = block_sizes(scores.device, scores.shape[1]).levels
    edges = range(0, len(block.chunk), at_once)
    bounds = torch.searchsorted(levels, torch.tensor([*edges, len(block.chunk)], device=levels.device)).tolist()
    for first, begin, end in zip(edges, bounds[:-1], bounds[1:], strict=True):
        slots = block.spoken_slot[first : first + at_once]
        others = scores.index_select(0, slots).index_fill_(1, silent, -math.inf)
        others[levels[begin:end] - first, block.piece[inner[begin:end]]] = -math.inf
        yield slots, others


def _add_restricted(
    gradient: torch.Tensor,
    scores: torch.Tensor,
    block: LevelBlock,
    outcome: torch.Tensor,
    masses: torch.Tensor,
    slope: torch.Tensor,
) -> None:
    row = block.restricted_slot[block.level[block.outcome]]
    share = scores[row, block.token] - masses[outcome].clamp_min(torch.finfo(scores.dtype).min)
    gradient.view(-1).scatter_add_(0, row * gradient.shape[1] + block.token, slope[outcome] * share.exp())


def _add_spoken(
    gradient: torch.Tensor,
    scores: torch.Tensor,
    block: LevelBlock,
    silent: torch.Tensor,
    spoken: Spoken,
    slope: torch.Tensor,
) -> None:
    inner, ends = spoken.inner, _ends(block)
    row = block.spoken_slot[block.level[inner]]
    gradient.view(-1).scatter_add_(0, row * gradient.shape[1] + block.piece[inner], slope[inner])
    first = 0
    for slots, others in _all_else(scores, block, silent, inner):
        here = ends[first : first + len(slots)]
        whole = spoken.log_masses[here].clamp_min(torch.finfo(scores.dtype).min).unsqueeze(1)
        gradient.index_add_(0, slots, others.sub_(whole).exp_().mul_(slope[here].unsqueeze(1)))
        first += len(slots)


def _ends(block: LevelBlock) -> torch.Tensor:
    """int64 (m,), the outcome that is each level's end."""
    return (block.piece < 0).nonzero().squeeze(1)


def _log_sums(values: torch.Tensor, segment: torch.Tensor, count: int) -> torch.Tensor:
    """(count,), log of the sum of exp(values) over each segment, -inf where it has none."""
    top = _tops(values, segment, count)
    return top + _sums((values - top[segment]).exp(), segment, count).log_()


def _log_softmax(values: torch.Tensor, segment: torch.Tensor, count: int) -> torch.Tensor:
    """Normalised within each segment; a segment at -inf stays there."""
    above = values - _tops(values, segment, count)[segment]
    return above - _sums(above.exp(), segment, count).log_().clamp_min_(torch.finfo(values.dtype).min)[segment]


def _tops(values: torch.Tensor, segment: torch.Tensor, count: int) -> torch.Tensor:
    """(count,), each segment's largest value, so that none underflows beside a distant one."""
    top = values.new_full((count,), -math.inf).scatter_reduce(0, segment, values, "amax")
    return top.clamp_min_(torch.finfo(values.dtype).min)


def _sums(values: torch.Tensor, segment: torch.Tensor, count: int) -> torch.Tensor:
    return values.new_zeros(count).scatter_add_(0, segment, values)
