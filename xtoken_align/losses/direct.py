"""The common case of a comparison, in place: one row a chunk, every outcome possible.

It does what `comparison.compare` does with a third of the passes over memory, in buffers that every block uses again:
on a CPU new memory costs more than the arithmetic. What it cannot do it leaves to `compare`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .comparison import Block, Comparison
from .grouping import VOID, Grouping, log_masses, scores_gradient, share_inside

_LEAST = 1e-30
"""A sum below this has lost digits to underflow, so that its logarithm must be taken another way."""
_LOWEST = {torch.float32: -80.0, torch.float64: -700.0}
"""exp of less is no normal number, and a processor takes ten times as long for it; what it would add to a sum of which
the largest part is 1 is nothing."""

_SAMPLED = 16
"""One of so many values is looked at to guess how large the best ones are."""


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


def can_compare_directly(
    student: torch.Tensor, comparison: Comparison, *, temperature: float, top_k: int | None
) -> bool:
    """Whether a comparison is of the common case, as far as its options tell."""
    plain = temperature == 1 or top_k is None
    return plain and student.device.type == "cpu" and comparison.links is None and comparison.student.count > 0


def compare_directly(
    student: torch.Tensor,
    teacher: torch.Tensor,
    comparison: Comparison,
    buffers: Buffers,
    *,
    temperature: float,
    top_k: int | None,
    coefficient: torch.Tensor | None,
    out: torch.Tensor | None,
) -> Block | None:
    """As `comparison.compare`, or None where an outcome is impossible or a row has none, which `compare` can do."""
    ours = _masses(student, comparison.student, buffers, "student", temperature)
    theirs = _masses(teacher, comparison.teacher, buffers, "teacher", temperature)
    if ours is None or theirs is None:
        return None
    kept = share_inside(teacher, comparison.teacher, theirs.whole)
    factor = kept if comparison.weigh_by_kept else torch.ones_like(kept)
    weight = None if coefficient is None else (coefficient * factor * temperature).unsqueeze(1)
    place = buffers.get("gradient", student, ours.log.shape)
    if out is not None and comparison.student.head is None:
        place = out
    if top_k is None or top_k >= comparison.student.count:
        value, agrees, gradient = _all_outcomes(ours, theirs, weight, place, buffers)
    else:
        value, agrees, gradient = _best_outcomes(ours, theirs, top_k, weight, place)
    if not bool(value.isfinite().all()):
        return None
    empty = 1 - share_inside(student, comparison.student, ours.whole)
    if gradient is not None:
        if comparison.student.head is None:
            # What `_exp` leaves of columns that are no outcomes is little, but not nothing.
            gradient.index_fill_(1, comparison.student.alone, 0)
        gradient = scores_gradient(gradient, student, ours.shared, comparison.student)
        if out is not None and gradient is not out:
            gradient = out.copy_(gradient)
    compared = torch.ones_like(agrees)
    return Block(value.clamp_min_(0) * (factor * temperature**2), gradient, None, agrees, 1 - kept, empty, compared)


def _masses(
    logits: torch.Tensor, grouping: Grouping, buffers: Buffers, side: str, temperature: float
) -> _Masses | None:
    shape = (len(logits), grouping.count)
    log = log_masses(logits, grouping, out=buffers.get(f"{side} log", logits, shape))
    shared = log.index_select(1, grouping.shared)
    top = log.amax(dim=1, keepdim=True)
    if not bool((top > VOID / 2).all()):
        return None
    linear = _exp(log.sub_(top), buffers.get(f"{side} linear", logits, shape))
    total = linear.sum(dim=1, keepdim=True)
    whole = (top + total.log()).squeeze(1)
    if temperature != 1:
        linear = _exp(log.mul_(1 / temperature), linear)
        total = linear.sum(dim=1, keepdim=True)
    return _Masses(log, linear, total, whole, shared)


def _exp(log: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return torch.clamp_min(log, _LOWEST[log.dtype], out=out).exp_()


_Compared = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Values (n,), whether both sides' likeliest outcome is one (n,), and the gradient of the student's log masses."""


def _all_outcomes(
    ours: _Masses, theirs: _Masses, weight: torch.Tensor | None, place: torch.Tensor, buffers: Buffers
) -> _Compared:
    # The largest sum of both is 0 only where one outcome is the likeliest on both sides.
    agrees = torch.add(ours.log, theirs.log, out=buffers.get("sum", ours.log, ours.log.shape)).amax(dim=1) == 0
    # sum P (log P - log Q), where both logarithms are relative to the totals. Equal sides give exactly 0.
    difference = torch.sub(theirs.log, ours.log, out=theirs.log)
    product = difference.mul_(theirs.linear).sum(dim=1)
    value = product / theirs.total.squeeze(1) - (theirs.total.log() - ours.total.log()).squeeze(1)
    if weight is None:
        return value, agrees, None
    gradient = torch.mul(ours.linear, weight / ours.total, out=place)
    return value, agrees, gradient.addcmul_(theirs.linear, weight / theirs.total, value=-1)


def _best_outcomes(
    ours: _Masses,
    theirs: _Masses,
    count: int,
    weight: torch.Tensor | None,
    place: torch.Tensor,
) -> _Compared:
    """The teacher's best outcomes and one rest, the sum of all others (not what is missing to 1)."""
    best = _places_of_best(theirs.log, count)
    log_teacher, log_student = theirs.log.gather(1, best), ours.log.gather(1, best)
    agrees = ((log_teacher == 0) & (log_student == 0)).any(dim=1)
    log_teacher, log_student = log_teacher - theirs.total.log(), log_student - ours.total.log()
    rest = [side.linear.scatter_(1, best, 0).sum(dim=1, keepdim=True) / side.total for side in (theirs, ours)]
    if bool((rest[1] < _LEAST).any()):
        return rest[1].flatten().fill_(math.nan), agrees, None
    log_rest = rest[0].clamp_min(_LEAST).log() - rest[1].log()
    teacher, student = log_teacher.exp(), log_student.exp()
    value = (teacher * (log_teacher - log_student)).sum(dim=1) + (rest[0] * log_rest).squeeze(1)
    if weight is None:
        return value, agrees, None
    gradient = torch.mul(ours.linear, weight * (1 - rest[0] / rest[1]) / ours.total, out=place)
    return value, agrees, gradient.scatter_(1, best, student.sub_(teacher).mul_(weight))


def _places_of_best(values: torch.Tensor, count: int) -> torch.Tensor:
    """int64 (n, count), the places of the largest of each row; among equals the first ones.

    A sample of each row gives a bound that a few more than `count` values reach; only those are looked at closely.
    """
    rows, width = values.shape
    sample = values.numpy()[:, ::_SAMPLED]
    rank = min(int(count / _SAMPLED * 1.1) + 32, sample.shape[1])
    bound = np.partition(sample, -rank, axis=1)[:, [-rank]]
    near = np.flatnonzero(values.numpy() >= bound)
    ends = np.searchsorted(near, np.arange(1, rows + 1) * width)
    places = np.empty((rows, count), dtype=np.int64)
    for row, (begin, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
        own = near[begin:end] - row * width if end - begin >= count else np.arange(width)
        places[row] = own[_first_largest(values[row].numpy()[own], count)]
    return torch.from_numpy(places)


def _first_largest(values: NDArray[np.floating[Any]], count: int) -> NDArray[np.intp]:
    """The places of the `count` largest values, ascending; among equals the first ones."""
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    equal = np.flatnonzero(values == least)[: count - len(above)]
    return np.sort(np.concatenate([above, equal])) if len(equal) else above
