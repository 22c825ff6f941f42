"""Divergences of two distributions over common outcomes, and what of them can be compared.

`Measure` says how two distributions are compared. `compare` does it for outcomes in rows, `compare_segments` for
outcomes of which every comparison has another number: both drop what cannot be compared, keep the best outcomes, apply
the temperature and add up `Measure.terms`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import OptionError
from .options import check_one_of, check_positive, check_share, check_top_k
from .tables import LEFT, VOID, log_sum

DIVERGENCES = ("forward", "reverse", "jsd")
LOWEST = 4 * VOID
"""Stands for the logarithm of nothing, told from void columns. Times weights and T^2 it still is finite, as the
least number of a dtype would not be, and infinity times 0 is no slope."""


@dataclass(frozen=True)
class Measure:
    """How two distributions over the same outcomes are compared.

    P', Q' = the teacher's and the student's masses to the power 1 / T, normalised; M = beta P' + (1 - beta) Q':

        forward: T^2 KL(P' || Q')
        reverse: T^2 KL(Q' || P')
        jsd:     T^2 (beta KL(P' || M) + (1 - beta) KL(Q' || M)), whose ends beta = 0 and 1 are the two above

    An outcome at -inf on the student's side is dropped on both sides. One at -inf on the teacher's makes KL(Q' || P')
    infinite: the reverse KL is then that of the other outcomes, both sides normalised there, less log of the student's
    mass on them. So it is 0 only where the student gives nothing that the teacher cannot.

    Attributes:
        divergence: "forward", "reverse" or "jsd".
        beta: the teacher's share of M; other divergences than "jsd" have none.
        temperature: T.
        top_k: keep the teacher's k likeliest outcomes of each comparison, all others become one; None keeps all.
        student_top_k: compare the student's k likeliest outcomes alone, both sides normalised on them.

    Raises:
        OptionError: for a value out of range, or `beta` without "jsd".

    Source: beta as in TRL's `GKDTrainer`; Agarwal et al. (arXiv:2306.13649, 2023).
    """

    divergence: str = "forward"
    beta: float = 0.5
    temperature: float = 1.0
    top_k: int | None = None
    student_top_k: int | None = None

    def __post_init__(self) -> None:
        check_one_of("divergence", self.divergence, DIVERGENCES)
        check_share("beta", self.beta)
        check_positive("temperature", self.temperature)
        check_top_k(self.top_k)
        check_top_k(self.student_top_k, "student_top_k")
        if self.beta != Measure.beta and self.divergence != "jsd":
            raise OptionError(
                f"beta is the teacher's share in divergence='jsd', but the divergence is {self.divergence!r}; leave it "
                "out"
            )

    @property
    def effective(self) -> str:
        """The divergence, where the ends of "jsd" are the KL that they equal."""
        if self.divergence == "jsd" and self.beta in {0, 1}:
            return "reverse" if self.beta else "forward"
        return self.divergence

    def terms(self, log_teacher: torch.Tensor, log_student: torch.Tensor) -> torch.Tensor:
        """What each outcome adds to the divergence, before T^2.

        Args:
            log_teacher: floats, any shape, normalised over the outcomes of each comparison; finite or far below zero.
            log_student: floats of that shape; finite or far below zero.

        Returns:
            Floats of that shape, of any sign.

        Example:
            >>> teacher, student = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
            >>> measures = Measure(), Measure("reverse"), Measure("jsd")
            >>> [round(float(one.terms(teacher, student).sum()), 4) for one in measures]
            [0.1438, 0.1308, 0.0338]
        """
        if self.effective == "forward":
            return log_teacher.exp() * (log_teacher - log_student)
        if self.effective == "reverse":
            return log_student.exp() * (log_student - log_teacher)
        mixture = torch.logaddexp(log_teacher + math.log(self.beta), log_student + math.log1p(-self.beta))
        ours, theirs = (side.exp() * (side - mixture) for side in (log_student, log_teacher))
        return self.beta * theirs + (1 - self.beta) * ours


@dataclass(frozen=True, eq=False)
class Divergence:
    """What comparing two sides' outcomes gave.

    Attributes:
        value: floats (c,), T^2 times the divergence, never negative; 0 where nothing can be compared.
        agrees: bool (c,), both sides' likeliest outcome is one.
        dropped: floats (c,), the teacher's mass on outcomes that were not compared.
        compared: bool (c,), there was an outcome to compare.
    """

    value: torch.Tensor
    agrees: torch.Tensor
    dropped: torch.Tensor
    compared: torch.Tensor


def compare(
    log_teacher: torch.Tensor,
    log_student: torch.Tensor,
    *,
    measure: Measure,
    log_rest: torch.Tensor | None = None,
    looks: bool = True,
) -> Divergence:
    """The divergence of two sides' outcomes, row by row.

    With `top_k` or `log_rest` the outcomes that are left over become one, the rest. What cannot be compared is dropped
    then, and the student's best outcomes are taken last.

    Args:
        log_teacher: floats (c, K), log-probabilities without a graph, about -1e30 or less in columns without outcome.
        log_student: floats (c, K), normalised log-probabilities.
        measure: how they are compared.
        log_rest: floats (c,), the teacher's mass that is on none of the K outcomes: outcomes at -inf are then unknown,
            not impossible, and join the rest.
        looks: values may be looked at to take shorter ways, as is cheap on a CPU.
    """
    looks = looks and log_student.device.type == "cpu"
    top_k, temperature = measure.top_k, measure.temperature
    closed = log_rest is not None or (top_k is not None and top_k < log_teacher.shape[1])
    agrees = _same_top(log_teacher, log_student) if closed else None
    if log_rest is not None:
        log_teacher, log_student = _known_and_rest(log_teacher, log_student, top_k, log_rest)
    elif closed and top_k is not None:
        log_teacher, log_student = _best_and_rest(log_teacher, log_student, top_k, looks=looks)
    log_teacher, log_student, dropped, compared = _possible(log_teacher, log_student, looks=looks)
    if agrees is None:
        agrees = _same_top(log_teacher, log_student)
    count = measure.student_top_k
    if count is not None and count < log_student.shape[1]:
        chosen = places_of_best(log_student, count) if looks else log_student.detach().topk(count, dim=1).indices
        log_teacher, log_student = log_teacher.gather(1, chosen), log_student.gather(1, chosen)
        compared = compared & _some(log_teacher)
        dropped = 1 - (1 - dropped) * log_teacher.exp().sum(dim=1).clamp_max(1)
    # The reverse KL has to know what the teacher cannot give; afterwards the temperature would hide it.
    given = None
    if measure.effective == "reverse":
        given = (log_teacher > VOID / 2) | ~compared.unsqueeze(1)
    if temperature != 1 or count is not None:
        log_teacher = (log_teacher / temperature).log_softmax(dim=1)
        log_student = (log_student / temperature).log_softmax(dim=1)
    inside = None
    if given is not None:
        inside = log_student.masked_fill(~given, -math.inf).logsumexp(dim=1)
        log_student = log_student.masked_fill(~given, LOWEST).log_softmax(dim=1)
        log_teacher = log_teacher.masked_fill(~given, LOWEST)
    if measure.effective != "forward":
        # What a mask of the least number of a dtype leaves is nothing, whose product with T^2 must stay finite.
        log_student = log_student.clamp_min(LOWEST)
    value = measure.terms(log_teacher, log_student).sum(dim=1)
    value = (value if inside is None else value - inside) * temperature**2
    return Divergence(never_negative(value).masked_fill(~compared, 0), agrees & compared, dropped, compared)


def _possible(
    log_teacher: torch.Tensor, log_student: torch.Tensor, *, looks: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both sides without what the student cannot give, in finite numbers; (c,) the teacher's mass that was dropped; and
    bool (c,), where an outcome is left.
    """
    dropped = log_student.new_zeros(len(log_student))
    compared = torch.ones_like(dropped, dtype=torch.bool)
    if not looks or _some_below(log_student, -math.inf):
        impossible = log_student == -math.inf
        dropped = torch.where(impossible, log_teacher, -math.inf).logsumexp(dim=1).exp()
        log_teacher = log_teacher.masked_fill(impossible, -math.inf)
        compared = _some(log_teacher)
        log_teacher = log_teacher.log_softmax(dim=1).masked_fill(~compared.unsqueeze(1), -math.inf).clamp_min(LOWEST)
        log_student = log_student.clamp_min(LOWEST)
    elif _some_below(log_teacher, -math.inf):
        compared = _some(log_teacher)
        log_teacher = log_teacher.clamp_min(LOWEST)
    return log_teacher, log_student, dropped, compared


def compare_segments(
    log_teacher: torch.Tensor, log_student: torch.Tensor, segment: torch.Tensor, count: int, measure: Measure
) -> torch.Tensor:
    """T^2 times the divergence of each segment's outcomes, as `compare` makes it of rows; no `top_k`.

    Args:
        log_teacher: floats (n,), logarithms of masses of any sum, without a graph; -inf where impossible.
        log_student: floats (n,), the same of the student.
        segment: int64 (n,), the comparison that each outcome belongs to.
        count: how many comparisons there are.
        measure: how they are compared.

    Returns:
        Floats (count,), never negative; 0 for segments in which nothing can be compared.

    Example:
        >>> teacher, student = torch.tensor([0.1, 0.1, 0.3]).log(), torch.tensor([0.25, 0.75, 0.5]).log()
        >>> values = compare_segments(teacher, student, torch.tensor([0, 0, 1]), 2, Measure())
        >>> [round(value, 4) for value in values.tolist()]
        [0.1438, 0.0]
    """
    temperature = measure.temperature
    log_student, _ = normalised_segments(log_student, segment, count)
    impossible = log_student.detach() == -math.inf
    if measure.student_top_k is not None:
        impossible = impossible | (_ranks(log_student.detach(), segment, count) >= measure.student_top_k)
    log_teacher, mass = normalised_segments(log_teacher.masked_fill(impossible, -math.inf), segment, count)
    if temperature != 1 or measure.student_top_k is not None:
        log_student, _ = normalised_segments(
            log_student.masked_fill(impossible, -math.inf) / temperature, segment, count
        )
        log_teacher, _ = normalised_segments(log_teacher / temperature, segment, count)
    outside = None
    if measure.effective == "reverse":
        log_student, inside = normalised_segments(
            log_student.masked_fill(log_teacher == -math.inf, -math.inf), segment, count
        )
        outside = -inside
    # Where the teacher has no mass on any outcome there is no comparison and must be no gradient.
    terms = measure.terms(log_teacher.clamp_min(LOWEST), log_student.clamp_min(LOWEST))
    value = terms.new_zeros(count)
    if terms.device.type == "cpu":
        value = value.index_add(0, segment, terms)
    else:
        value = value.index_put((segment,), terms, accumulate=True)
    value = value if outside is None else value + outside
    return never_negative((value * temperature**2).masked_fill(mass == -math.inf, 0))


def _ranks(values: torch.Tensor, segment: torch.Tensor, count: int) -> torch.Tensor:
    """The rank of each value in its segment, 0 for the largest; of equal ones the first is larger.

    >>> _ranks(torch.tensor([0.2, 0.5, 0.3, 0.9]), torch.tensor([0, 0, 0, 1]), 2).tolist()
    [2, 0, 1, 0]
    """
    order = values.argsort(descending=True, stable=True)
    order = order[segment[order].argsort(stable=True)]
    sizes = torch.bincount(segment, minlength=count)
    begins = sizes.cumsum(0) - sizes
    places = torch.arange(len(values), device=values.device) - begins[segment[order]]
    return torch.empty_like(places).index_copy(0, order, places)


def normalised_segments(values: torch.Tensor, segment: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The values normalised within each segment, and log of the sum of exp(values) over each segment.

    A segment at -inf, or an empty one, has the sum -inf; its values stay at -inf.

    Args:
        values: floats (n,).
        segment: int64 (n,), the segment of each.
        count: how many segments there are.

    Example:
        >>> own, sums = normalised_segments(torch.tensor([0.2, 0.2, 0.4]).log(), torch.tensor([0, 0, 1]), 2)
        >>> [round(number, 4) for number in own.exp().tolist()], [round(number, 4) for number in sums.exp().tolist()]
        ([0.5, 0.5, 1.0], [0.4, 0.4])
    """
    # Relative to each segment's largest value, so that none underflows beside a distant one.
    top = values.detach().new_full((count,), -math.inf).scatter_reduce(0, segment, values.detach(), "amax")
    top.clamp_min_(torch.finfo(values.dtype).min)
    above = values - top[segment]
    total = values.new_zeros(count)
    # On a GPU `index_put` sorts the segments, where `index_add` adds in an order that varies.
    if values.device.type == "cpu":
        total = total.index_add(0, segment, above.exp())
    else:
        total = total.index_put((segment,), above.exp(), accumulate=True)
    nothing = total == 0
    log_total = total.masked_fill(nothing, 1).log()
    return above - log_total[segment], (top + log_total).masked_fill(nothing, -math.inf)


def never_negative(value: torch.Tensor) -> torch.Tensor:
    """The value, at least 0; its gradient is the value's own, since below 0 it is by rounding alone."""
    return value + (value.clamp_min(0) - value).detach()


def normalised(masses: torch.Tensor, *, looks: bool = True) -> torch.Tensor:
    """log_softmax of each row (n, K); a row without any mass is at -inf throughout, with a gradient of 0."""
    if not masses.shape[1]:
        return masses
    undefined = masses.detach().amax(dim=1, keepdim=True) < LEFT / 2
    if looks and masses.device.type == "cpu" and not bool(undefined.any()):
        return masses.log_softmax(dim=1)
    return masses.masked_fill(undefined, 0).log_softmax(dim=1).masked_fill(undefined, -math.inf)


def _best_and_rest(
    log_teacher: torch.Tensor, log_student: torch.Tensor, count: int, *, looks: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's best outcomes of each row and one more that holds all others: (c, count + 1) of both sides."""
    best = places_of_best(log_teacher, count) if looks else log_teacher.topk(count, dim=1, sorted=False).indices
    sides = []
    for side in (log_teacher, log_student):
        # A rest of void columns alone is none.
        others = side.scatter(1, best, -math.inf)
        rest = log_sum(others)
        rest = rest.masked_fill(rest < VOID / 2, -math.inf)
        sides.append(torch.cat([side.gather(1, best), rest.unsqueeze(1)], dim=1))
    return sides[0], sides[1]


def _known_and_rest(
    log_teacher: torch.Tensor, log_student: torch.Tensor, top_k: int | None, log_rest: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outcomes that a cached teacher knows and one more that holds all others: (c, K + 1) of both sides."""
    keep = log_teacher > VOID / 2
    if top_k is not None and top_k < log_teacher.shape[1]:
        keep = keep & _largest(log_teacher, top_k)
    left = torch.logaddexp(torch.where(keep, -math.inf, log_teacher).logsumexp(dim=1), log_rest)
    student_left = log_sum(log_student.masked_fill(keep | (log_student < VOID / 2), -math.inf))
    student = torch.cat([log_student.masked_fill(~keep, -math.inf), student_left.unsqueeze(1)], dim=1)
    teacher = torch.cat([log_teacher.masked_fill(~keep, -math.inf), left.unsqueeze(1)], dim=1)
    teacher = teacher.log_softmax(dim=1).nan_to_num(nan=-math.inf, neginf=-math.inf)
    # What a row leaves out is known, and impossible.
    return teacher.masked_fill(teacher < LEFT / 2, -math.inf), student


_SAMPLED = 16
"""One of so many values is looked at to guess how large the best ones are."""


def places_of_best(values: torch.Tensor, count: int) -> torch.Tensor:
    """int64 (n, count), the places of the largest of each row on a CPU; among equals the first ones.

    A sample of each row gives a bound that a few more than `count` values reach; only those are looked at closely.
    """
    rows, width = values.shape
    if not rows:
        return torch.zeros((0, count), dtype=torch.int64)
    # numpy's selection is vectorised: a fifth of the time of torch.topk for 8,192 of 110,000.
    array = values.detach().numpy()
    sample = array[:, ::_SAMPLED]
    rank = min(int(count / _SAMPLED * 1.1) + 32, sample.shape[1])
    bound = np.partition(sample, -rank, axis=1)[:, [-rank]]
    near = np.flatnonzero(array >= bound)
    ends = np.searchsorted(near, np.arange(1, rows + 1) * width)
    places = np.empty((rows, count), dtype=np.int64)
    for row, (begin, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
        own = near[begin:end] - row * width if end - begin >= count else np.arange(width)
        places[row] = own[_first_largest(array[row][own], count)]
    return torch.from_numpy(places)


def _first_largest(values: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """The places of the `count` largest values, ascending; among equals the first ones."""
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    equal = np.flatnonzero(values == least)[: count - len(above)]
    return np.sort(np.concatenate([above, equal])) if len(equal) else above


def _largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Marks the `count` largest of each row; among equals the first ones."""
    bound = values.topk(count, dim=1, sorted=True).values[:, -1:]
    above = values > bound
    ties = values == bound
    return above | (ties & (ties.cumsum(dim=1) <= count - above.sum(dim=1, keepdim=True)))


def _same_top(log_teacher: torch.Tensor, log_student: torch.Tensor) -> torch.Tensor:
    """Whether an outcome is the likeliest on both sides: the sum then has both maxima. Looking for places is slower."""
    log_student = log_student.detach()
    if not log_teacher.shape[1]:
        return torch.zeros(len(log_teacher), dtype=torch.bool, device=log_teacher.device)
    return (log_teacher + log_student).amax(dim=1) >= log_teacher.amax(dim=1) + log_student.amax(dim=1)


def _some(log_teacher: torch.Tensor) -> torch.Tensor:
    """Which rows have an outcome at all. NaN counts as an outcome, so that it shows in the loss."""
    return ~(log_teacher <= VOID / 2).all(dim=1)


def _some_below(values: torch.Tensor, bound: float) -> bool:
    """Whether any value is as low as that."""
    return values.numel() > 0 and float(values.detach().amin()) <= bound
