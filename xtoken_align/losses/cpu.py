"""The common comparison of outcomes on the CPU, in place: one row a chunk, every outcome possible.

It gives what `functional.outcomes_kl` and autograd give, with a third of the passes over memory, in buffers that every
block uses again: on a CPU new memory costs more than the arithmetic. What it cannot do it leaves to autograd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from .divergence import Divergence, Measure, compare, places_of_best
from .inputs import Compared
from .tables import LEFT, Cells, Grouping, Outcomes, log_masses, share_inside

_LEAST = 1e-30
"""A sum below this has lost digits to underflow, so that its logarithm must be taken another way."""
_LOWEST = {torch.float32: -80.0, torch.float64: -700.0}
"""exp of less is no normal number, and torch takes ten times as long for it; what it would add to a sum of which the
largest part is 1 is nothing."""
_FAR = 1e25
"""A logarithm of the teacher's mass that is so far below the student's is that of nothing, which the reverse KL treats
by a rule of its own."""
_FEW_THREADS = 2
"""On so few numpy's exponentials and logarithms are faster than torch's, which use all threads: 0.45 and 0.38 ms for a
million against 0.84 and 1.03."""


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
        plausible: floats (n,), the text's outcome over the likeliest, or None.
        gone: the rows and columns of outcomes of which everything is left out; None where nothing is left out.
    """

    log: torch.Tensor
    linear: torch.Tensor
    total: torch.Tensor
    whole: torch.Tensor
    shared: torch.Tensor
    plausible: torch.Tensor | None
    gone: Cells | None


def compare_outcomes(
    student: torch.Tensor,
    teacher: torch.Tensor,
    outcomes: Outcomes,
    *,
    buffers: Buffers,
    measure: Measure,
    coefficient: torch.Tensor | None,
    out: torch.Tensor | None,
    left: tuple[Cells | None, Cells | None] = (None, None),
    text: torch.Tensor | None = None,
) -> Compared | None:
    """The outcomes of some rows compared; None where a row or an outcome is impossible.

    Args:
        student: floats (n, V_s), logits; not changed.
        teacher: floats (n, V_t).
        outcomes: indexed, without links.
        buffers: memory to work in.
        measure: how the outcomes are compared.
        coefficient: floats (n,), what each row's value is multiplied by in the loss; None without a gradient.
        out: floats (n, V_s), where the gradient goes.
        left: the tokens that the rows leave out, the student's and the teacher's.
        text: int64 (n,), the outcome that the text has, or None.
    """
    few = any(count is not None and count < outcomes.student.count for count in (measure.top_k, measure.student_top_k))
    # A few outcomes are chosen before the temperature is applied.
    temperature = 1.0 if few else measure.temperature
    ours = _masses(student, outcomes.student, buffers, "student", temperature, left[0])
    theirs = None
    if ours is not None:
        theirs = _masses(teacher, outcomes.teacher, buffers, "teacher", temperature, left[1], text)
    if ours is None or theirs is None:
        return None
    if few and theirs.gone is not None:
        # What the teacher cannot give has a rule of its own in a reverse KL.
        theirs.log[theirs.gone] = -math.inf
    kept = share_inside(teacher, outcomes.teacher, theirs.whole)
    factor = kept if outcomes.weigh_by_kept else torch.ones_like(kept)
    weight = None if coefficient is None else (coefficient * factor).unsqueeze(1)
    # Where each column is its head's own token the gradient is written where it is to stand.
    index = outcomes.student.index
    assert index is not None
    in_place = index.head is None and out is not None
    place = out if in_place and out is not None else buffers.get("gradient", student, ours.log.shape)
    made = (_few_outcomes if few else _all_outcomes)(ours, theirs, measure, weight, place)
    if not bool(made.value.isfinite().all()):
        return None
    if made.gradient is not None and out is not None:
        _spread(made.gradient, student, ours.shared, outcomes.student, out)
        if left[0] is not None:
            out[left[0]] = 0
    empty = 1 - share_inside(student, outcomes.student, ours.whole)
    dropped = 1 - kept if made.dropped is None else 1 - kept * (1 - made.dropped)
    compared = torch.ones_like(made.agrees) if made.compared is None else made.compared
    value = made.value.clamp_min_(0) * factor
    return Compared(value, made.agrees, dropped, empty, compared, theirs.plausible)


def _masses(
    logits: torch.Tensor,
    grouping: Grouping,
    buffers: Buffers,
    side: str,
    temperature: float,
    left: Cells | None,
    text: torch.Tensor | None = None,
) -> _Masses | None:
    assert grouping.index is not None
    shape = (len(logits), grouping.count)
    # log P = log - log(total): all that follows is relative to the likeliest outcome, whose log mass is `top`, so that
    # no exponential overflows and none is taken twice.
    log = log_masses(logits, grouping, out=buffers.get(f"{side} log", logits, shape), left=left)
    shared = log.index_select(1, grouping.index.shared)
    top = log.amax(dim=1, keepdim=True)
    if not bool((top > LEFT / 2).all()):
        return None
    gone = None
    if left is not None:
        column = grouping.group[left[1]]
        # Tokens in no column have the number K.
        row, column = left[0][column < grouping.count], column[column < grouping.count]
        lost = log[row, column] < LEFT / 2
        gone = row[lost], column[lost]
    linear = _exp(log.sub_(top), buffers.get(f"{side} linear", logits, shape))
    plausible = None if text is None else log.gather(1, text.unsqueeze(1)).squeeze(1).exp_()
    total = linear.sum(dim=1, keepdim=True)
    whole = (top + total.log()).squeeze(1)
    if temperature != 1:
        total = _exp(log.mul_(1 / temperature), linear).sum(dim=1, keepdim=True)
    return _Masses(log, linear, total, whole, shared, plausible, gone)


def _exp(values: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """exp(values); 0, or next to nothing, far below 0."""
    if torch.get_num_threads() <= _FEW_THREADS:
        np.exp(values.numpy(), out=out.numpy())
        return out
    lowest = _LOWEST[values.dtype]
    torch.clamp_min(values, lowest, out=out).exp_()
    return out.masked_fill_(values < lowest, 0)


def _log_(values: torch.Tensor) -> torch.Tensor:
    """The logarithms of values of at least 0, in their place; a finite one of 0."""
    values.clamp_min_(torch.finfo(values.dtype).tiny)
    if torch.get_num_threads() <= _FEW_THREADS:
        np.log(values.numpy(), out=values.numpy())
        return values
    return values.log_()


@dataclass(frozen=True, eq=False)
class _Made:
    """Of n rows compared.

    Attributes:
        value: floats (n,), the divergence.
        agrees: bool (n,), whether both sides' likeliest outcome is one.
        gradient: floats (n, K), of the student's log masses; None where not wanted.
        dropped: floats (n,), the share of the teacher's mass in outcomes that was not compared; None for nothing.
        compared: bool (n,), whether there was something to compare; None for all.
    """

    value: torch.Tensor
    agrees: torch.Tensor
    gradient: torch.Tensor | None
    dropped: torch.Tensor | None = None
    compared: torch.Tensor | None = None


def _all_outcomes(
    ours: _Masses, theirs: _Masses, measure: Measure, weight: torch.Tensor | None, place: torch.Tensor
) -> _Made:
    # The largest sum of both is 0 only where one outcome is the likeliest on both sides. The sums lie for now where the
    # gradient will be.
    agrees = torch.add(ours.log, theirs.log, out=place).amax(dim=1) == 0
    formula = {"forward": _forward, "reverse": _reverse, "jsd": _jsd}[measure.effective]
    temperature = measure.temperature
    # The gradient is that of log masses of which the T-th part was compared.
    scaled = None if weight is None else weight * temperature
    value, gradient = formula(ours, theirs, measure.beta, scaled, place)
    return _Made(value * temperature**2, agrees, gradient)


_Values = tuple[torch.Tensor, torch.Tensor | None]
"""Values (n,), and the gradient of the student's log masses (n, K). Below, P is the teacher's distribution, Q the
student's; log P = log - log(total). What is impossible makes 0 times infinity, which is NaN."""


def _forward(ours: _Masses, theirs: _Masses, beta: float, weight: torch.Tensor | None, place: torch.Tensor) -> _Values:
    del beta
    # sum P (log P - log Q), where both logarithms are relative to the totals. Equal sides give exactly 0.
    difference = torch.sub(theirs.log, ours.log, out=theirs.log)
    product = difference.mul_(theirs.linear).sum(dim=1)
    value = product / theirs.total.squeeze(1) - (theirs.total.log() - ours.total.log()).squeeze(1)
    if weight is None:
        return value, None
    # d KL / d log mass of outcome o = Q[o] - P[o].
    gradient = torch.mul(ours.linear, weight / ours.total, out=place)
    return value, gradient.addcmul_(theirs.linear, weight / theirs.total, value=-1)


def _reverse(ours: _Masses, theirs: _Masses, beta: float, weight: torch.Tensor | None, place: torch.Tensor) -> _Values:
    del beta
    # sum Q (log Q - log P), and Q[o] times how far its own term's logarithm lies above the sum.
    difference = torch.sub(ours.log, theirs.log, out=theirs.log)
    if not float(difference.amax()) < _FAR:
        return ours.whole.new_full(ours.whole.shape, math.nan), None
    product = torch.mul(difference, ours.linear, out=place)
    if theirs.gone is not None:
        return _reverse_of_given(ours, theirs, theirs.gone, product, weight)
    mean = product.sum(dim=1, keepdim=True) / ours.total
    value = (mean + (theirs.total.log() - ours.total.log())).squeeze(1)
    return value, _centred(product, mean, ours, weight)


def _reverse_of_given(
    ours: _Masses, theirs: _Masses, gone: Cells, product: torch.Tensor, weight: torch.Tensor | None
) -> _Values:
    """The reverse KL where the teacher cannot give some outcomes: of the others, less log of the student's mass there.

    With G the student's mass on the others and N on all, it is sum over the others of (Q/G) (log (Q/G) - log P) - log
    (G/N), of which the slope is (Q/G) (log Q - log P - mean) - Q/G + Q/N, and Q/N at what the teacher cannot give.
    """
    lost = ours.linear[gone]
    ours.linear[gone] = product[gone] = 0
    given = ours.linear.sum(dim=1, keepdim=True)
    mean = product.sum(dim=1, keepdim=True) / given
    value = (mean + theirs.total.log() + ours.total.log() - 2 * given.log()).squeeze(1)
    gradient = _centred(product, mean, replace(ours, total=given), weight)
    if gradient is not None and weight is not None:
        gradient.addcmul_(ours.linear, weight / ours.total - weight / given)
        gradient[gone] = lost * (weight / ours.total).squeeze(1)[gone[0]]
    return value, gradient


def _jsd(ours: _Masses, theirs: _Masses, beta: float, weight: torch.Tensor | None, place: torch.Tensor) -> _Values:
    # beta sum P (log P - log M) + (1 - beta) sum Q (log Q - log M). M is made relative to the student's total, so that
    # log Q - log M is the difference of what is at hand.
    mixture = torch.mul(theirs.linear, beta * ours.total / theirs.total, out=place).add_(ours.linear, alpha=1 - beta)
    log_mixture = _log_(mixture)
    product = torch.sub(theirs.log, log_mixture, out=theirs.log).mul_(theirs.linear).sum(dim=1, keepdim=True)
    teacher = product / theirs.total - theirs.total.log() + ours.total.log()
    difference = torch.sub(ours.log, log_mixture, out=ours.log)
    product = torch.mul(difference, ours.linear, out=place)
    mean = product.sum(dim=1, keepdim=True) / ours.total
    value = (beta * teacher + (1 - beta) * mean).squeeze(1)
    # d JSD / d log mass of outcome o = (1 - beta) Q[o] (log Q[o] - log M[o] - KL(Q || M)).
    return value, _centred(product, mean, ours, None if weight is None else (1 - beta) * weight)


def _centred(
    product: torch.Tensor, mean: torch.Tensor, ours: _Masses, weight: torch.Tensor | None
) -> torch.Tensor | None:
    """The weighted Q (x - mean), where `product` is `linear` times x, and is overwritten."""
    if weight is None:
        return None
    scale = weight / ours.total
    return product.mul_(scale).addcmul_(ours.linear, scale * mean, value=-1)


def _few_outcomes(
    ours: _Masses, theirs: _Masses, measure: Measure, weight: torch.Tensor | None, place: torch.Tensor
) -> _Made:
    """The teacher's best outcomes and one rest, the sum of all others (not what is missing to 1), or the student's best
    outcomes: so few that autograd makes their gradient.
    """
    closed = measure.top_k is not None and measure.top_k < ours.log.shape[1]
    chosen = (theirs.log, measure.top_k) if closed else (ours.log, measure.student_top_k)
    best = places_of_best(*chosen)  # type: ignore[arg-type]
    log_teacher, log_student = (side.log.gather(1, best) for side in (theirs, ours))
    agrees = ((log_teacher == 0) & (log_student == 0)).any(dim=1)
    log_teacher, log_student = log_teacher - theirs.total.log(), log_student - ours.total.log()
    rest = None
    if closed:
        # With 0 at the best ones, what is left of `linear` is the rest; the student's is read again for its gradient.
        teacher_rest, rest = (
            side.linear.scatter_(1, best, 0).sum(dim=1, keepdim=True) / side.total for side in (theirs, ours)
        )
        log_teacher = torch.cat([log_teacher, teacher_rest.clamp_min(_LEAST).log()], dim=1)
        log_student = torch.cat([log_student, rest.log()], dim=1)
        lost = (rest < _LEAST) | ((teacher_rest < _LEAST) & (measure.effective == "reverse"))
    else:
        lost = ours.log.amin(dim=1, keepdim=True) == -math.inf
    if bool(lost.any()):
        return _Made(agrees.to(log_student.dtype).fill_(math.nan), agrees, None)
    found, slope = _divergence(log_teacher, log_student, replace(measure, top_k=None), slopes=weight is not None)
    dropped = found.dropped if closed else 1 - log_teacher.exp().sum(dim=1)
    gradient = None
    if weight is not None and slope is not None:
        slope.mul_(weight)
        if rest is None:
            gradient = place.zero_().scatter_(1, best, slope)
        else:
            # An outcome of the rest has its share of the rest's slope.
            gradient = torch.mul(ours.linear, slope[:, -1:] / (rest * ours.total), out=place)
            gradient.scatter_(1, best, slope[:, :-1])
    return _Made(found.value, agrees & found.compared, gradient, dropped, found.compared)


def _divergence(
    log_teacher: torch.Tensor, log_student: torch.Tensor, measure: Measure, *, slopes: bool
) -> tuple[Divergence, torch.Tensor | None]:
    """The divergence of a few outcomes, and its slope by the logarithms of the student's masses."""
    teacher, student = log_teacher.exp(), log_student.exp()
    if measure == Measure():
        # The common case without the graph: sum P (log P - log Q), and Q - P.
        value = (teacher * (log_teacher - log_student)).sum(dim=1)
        every = torch.ones_like(value, dtype=torch.bool)
        return Divergence(value, every, torch.zeros_like(value), every), student.sub_(teacher) if slopes else None
    with torch.enable_grad():
        leaf = log_student.requires_grad_(slopes)
        found = compare(log_teacher, leaf, measure=measure)
        whole = found.value.sum()
    if not slopes:
        return found, None
    (slope,) = torch.autograd.grad(whole, leaf)
    # They were normalised: where one grows all others shrink.
    return replace(found, value=found.value.detach()), slope - student * slope.sum(dim=1, keepdim=True)


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
