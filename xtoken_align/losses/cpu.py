"""The common comparison of outcomes on the CPU, in place: one row a chunk, every outcome possible.

It gives what `functional.outcomes_kl` and autograd give, with a third of the passes over memory, in buffers that every
block uses again: on a CPU new memory costs more than the arithmetic. What it cannot do it leaves to autograd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .divergence import places_of_best
from .inputs import Compared
from .tables import VOID, Grouping, Outcomes, log_masses, share_inside

_LEAST = 1e-30
"""A sum below this has lost digits to underflow, so that its logarithm must be taken another way."""
_LOWEST = {torch.float32: -80.0, torch.float64: -700.0}
"""exp of less is no normal number, and a processor takes ten times as long for it; what it would add to a sum of which
the largest part is 1 is nothing."""


@dataclass(frozen=True, eq=False)
class Buffers:
    """Memory that blocks use one after another, by name."""

    kept: dict[str, torch.Tensor] = field(default_factory=dict)

    def get(self, name: str, like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """An uninitialised matrix."""
        size = shape[0] * shape[1]
        if name not in self.kept or self.kept[name].numel() < size:
            self.kept[name] = like.new_empty(size)
        return self.kept[name][:size].view(*shape)


@dataclass(frozen=True, eq=False)
class _Masses:
    """One side's outcomes relative to the likeliest.

    Attributes:
        log: floats (n, K), log masses less the row's largest.
        linear: floats (n, K), their exponentials.
        total: floats (n, 1), sums of `linear`.
        whole: floats (n,), log of all outcomes' mass.
        shared: floats (n, G), log masses of the shared columns.
    """

    log: torch.Tensor
    linear: torch.Tensor
    total: torch.Tensor
    whole: torch.Tensor
    shared: torch.Tensor


def compare_outcomes(
    student: torch.Tensor,
    teacher: torch.Tensor,
    outcomes: Outcomes,
    *,
    buffers: Buffers,
    temperature: float,
    top_k: int | None,
    coefficient: torch.Tensor | None,
    out: torch.Tensor | None,
) -> Compared | None:
    """The outcomes of some rows compared; None where a row or an outcome is impossible, and for top_k at T > 1.

    Args:
        student: floats (n, V_s), logits; not changed.
        teacher: floats (n, V_t).
        outcomes: indexed, without links.
        buffers: memory to work in.
        temperature: T.
        top_k: the teacher's outcomes that are kept, or None.
        coefficient: floats (n,), what each row's value is multiplied by in the loss; None without a gradient.
        out: floats (n, V_s), where the gradient goes.
    """
    if temperature != 1 and top_k is not None:
        return None
    ours = _masses(student, outcomes.student, buffers, "student", temperature)
    theirs = None if ours is None else _masses(teacher, outcomes.teacher, buffers, "teacher", temperature)
    if ours is None or theirs is None:
        return None
    kept = share_inside(teacher, outcomes.teacher, theirs.whole)
    factor = kept if outcomes.weigh_by_kept else torch.ones_like(kept)
    weight = None if coefficient is None else (coefficient * factor * temperature).unsqueeze(1)
    # Where each column is its head's own token the gradient is written where it is to stand.
    index = outcomes.student.index
    assert index is not None
    in_place = index.head is None and out is not None
    place = out if in_place and out is not None else buffers.get("gradient", student, ours.log.shape)
    if top_k is None or top_k >= outcomes.student.count:
        value, agrees, gradient = _all_outcomes(ours, theirs, weight, place)
    else:
        value, agrees, gradient = _best_outcomes(ours, theirs, top_k, weight, place)
    if not bool(value.isfinite().all()):
        return None
    if gradient is not None and out is not None:
        if in_place:
            # What `_LOWEST` leaves of columns that are no outcomes is little, but not nothing.
            gradient.index_fill_(1, index.alone, 0)
        _spread(gradient, student, ours.shared, outcomes.student, out)
    compared = torch.ones_like(agrees)
    empty = 1 - share_inside(student, outcomes.student, ours.whole)
    return Compared(value.clamp_min_(0) * (factor * temperature**2), agrees, 1 - kept, empty, compared)


def _masses(
    logits: torch.Tensor, grouping: Grouping, buffers: Buffers, side: str, temperature: float
) -> _Masses | None:
    assert grouping.index is not None
    shape = (len(logits), grouping.count)
    # log P = log - log(total): all that follows is relative to the likeliest outcome, whose log mass is `top`, so that
    # no exponential overflows and none is taken twice.
    log = log_masses(logits, grouping, out=buffers.get(f"{side} log", logits, shape))
    shared = log.index_select(1, grouping.index.shared)
    top = log.amax(dim=1, keepdim=True)
    if not bool((top > VOID / 2).all()):
        return None
    linear = buffers.get(f"{side} linear", logits, shape)
    torch.clamp_min(log.sub_(top), _LOWEST[log.dtype], out=linear).exp_()
    total = linear.sum(dim=1, keepdim=True)
    whole = (top + total.log()).squeeze(1)
    if temperature != 1:
        torch.clamp_min(log.mul_(1 / temperature), _LOWEST[log.dtype], out=linear).exp_()
        total = linear.sum(dim=1, keepdim=True)
    return _Masses(log, linear, total, whole, shared)


_Values = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Values (n,), whether both sides' likeliest outcome is one (n,), and the gradient of the student's log masses."""


def _all_outcomes(ours: _Masses, theirs: _Masses, weight: torch.Tensor | None, place: torch.Tensor) -> _Values:
    # The largest sum of both is 0 only where one outcome is the likeliest on both sides. The sums lie for now where the
    # gradient will be.
    agrees = torch.add(ours.log, theirs.log, out=place).amax(dim=1) == 0
    # sum P (log P - log Q), where both logarithms are relative to the totals. Equal sides give exactly 0.
    difference = torch.sub(theirs.log, ours.log, out=theirs.log)
    product = difference.mul_(theirs.linear).sum(dim=1)
    value = product / theirs.total.squeeze(1) - (theirs.total.log() - ours.total.log()).squeeze(1)
    if weight is None:
        return value, agrees, None
    # d KL / d log mass of outcome o = Q[o] - P[o], at T > 1 times T.
    gradient = torch.mul(ours.linear, weight / ours.total, out=place)
    return value, agrees, gradient.addcmul_(theirs.linear, weight / theirs.total, value=-1)


def _best_outcomes(
    ours: _Masses, theirs: _Masses, count: int, weight: torch.Tensor | None, place: torch.Tensor
) -> _Values:
    """The teacher's best outcomes and one rest, the sum of all others (not what is missing to 1)."""
    best = places_of_best(theirs.log, count)
    log_teacher, log_student = theirs.log.gather(1, best), ours.log.gather(1, best)
    agrees = ((log_teacher == 0) & (log_student == 0)).any(dim=1)
    log_teacher, log_student = log_teacher - theirs.total.log(), log_student - ours.total.log()
    # With 0 at the best ones, what is left of `linear` is the rest; the student's is read again for its gradient below.
    rest = [side.linear.scatter_(1, best, 0).sum(dim=1, keepdim=True) / side.total for side in (theirs, ours)]
    if bool((rest[1] < _LEAST).any()):
        return rest[1].flatten().fill_(math.nan), agrees, None
    log_rest = rest[0].clamp_min(_LEAST).log() - rest[1].log()
    teacher, student = log_teacher.exp(), log_student.exp()
    value = (teacher * (log_teacher - log_student)).sum(dim=1) + (rest[0] * log_rest).squeeze(1)
    if weight is None:
        return value, agrees, None
    # Q[o] - P[o] for the best; an outcome of the rest has its share of the rest's: Q[o] (1 - P[rest] / Q[rest]).
    gradient = torch.mul(ours.linear, weight * (1 - rest[0] / rest[1]) / ours.total, out=place)
    return value, agrees, gradient.scatter_(1, best, student.sub_(teacher).mul_(weight))


def _spread(
    gradient: torch.Tensor, scores: torch.Tensor, shared: torch.Tensor, grouping: Grouping, out: torch.Tensor
) -> None:
    """Writes the gradient of the scores from that of the columns' log masses: each member gets its share.

    Args:
        gradient: floats (n, K), finite; `out` itself where every column is its head's own token.
        scores: floats (n, V).
        shared: floats (n, G), the log masses of the shared columns.
        grouping: the columns.
        out: floats (n, V), 0 for tokens in no column.
    """
    index = grouping.index
    assert index is not None
    # Columns 0 and 3 of the tokens [0, 3] and [4, 5, 6] with gradients g0, g3: token 0 gets g0 exp(z0 - m0), token 3
    # g0 exp(z3 - m0), and so on, where m is the column's log mass. A token alone in its column gets all of it.
    shares = None
    if len(index.member):
        shared_by = torch.cat([index.shared, index.shared[index.slot]])
        sharing = torch.cat([index.shared_head, index.member])
        whole = torch.cat([shared, shared.index_select(1, index.slot)], dim=1)
        whole.clamp_min_(torch.finfo(scores.dtype).min)
        shares = (scores.index_select(1, sharing) - whole).exp_().mul_(gradient.index_select(1, shared_by))
    if gradient is not out:
        padded = torch.cat([gradient, gradient.new_zeros(len(gradient), 1)], dim=1)
        torch.index_select(padded, 1, grouping.group, out=out) if out.is_contiguous() else out.copy_(
            padded.index_select(1, grouping.group)
        )
    if shares is not None:
        out.index_copy_(1, sharing, shares)
