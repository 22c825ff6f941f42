"""What the slow losses share: sums of probabilities one by one, the batch as they read it, outcomes of both sides."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from xtoken_align.errors import OptionError
from xtoken_align.losses import TopK, options
from xtoken_align.mapping.mapping import Mapping, Side
from xtoken_align.spans.spans import Spans
from xtoken_align.vocab.kinds import Kind


def minus_infinity() -> Tensor:
    """The logarithm of nothing, float64 scalar."""
    return torch.tensor(-torch.inf, dtype=torch.float64)


def zero() -> Tensor:
    """float64 scalar 0."""
    return torch.zeros((), dtype=torch.float64)


def log_probabilities(logits: Tensor, live: Sequence[int]) -> Tensor:
    """Log softmax over some ids.

    Args:
        logits: floats (V,); -inf is a token that cannot be.
        live: the ids that share the probability.

    Returns:
        float64 (V,), -inf at all other ids; -inf everywhere if every live logit is -inf.

    >>> log_probabilities(torch.tensor([0.0, 5.0, 0.0]), [0, 2]).exp().tolist()
    [0.5, 0.0, 0.5]
    """
    possible = [token for token in live if logits[token] > -torch.inf]
    row = torch.full(logits.shape, -torch.inf, dtype=torch.float64)
    if not possible:
        return row
    kept = logits[possible].double()
    return row.index_put((torch.tensor(possible),), kept - torch.logsumexp(kept, 0))


def log_sum(values: Iterable[Tensor]) -> Tensor:
    """The logarithm of a sum of exponentials of scalars; no slope comes from those at -inf.

    >>> round(log_sum([torch.tensor(0.25).log(), torch.tensor(0.25).log(), minus_infinity()]).exp().item(), 6)
    0.5
    """
    possible = [value for value in values if value > -torch.inf]
    return torch.logsumexp(torch.stack(possible), 0) if possible else minus_infinity()


def log_mass(log_probs: Tensor, tokens: Iterable[int]) -> Tensor:
    """The logarithm of the probability of some tokens together."""
    return log_sum(log_probs[token] for token in tokens)


def log_mean(values: Sequence[Tensor]) -> Tensor:
    """The logarithm of the arithmetic mean of exponentials of scalars.

    >>> round(log_mean([torch.tensor(0.25).log(), minus_infinity()]).exp().item(), 6)
    0.125
    """
    return log_sum(values) - torch.tensor(len(values), dtype=torch.float64).log()


def tempered_kl(log_teacher: Tensor, log_student: Tensor, temperature: float) -> Tensor:
    """KL between two distributions over the same outcomes, each raised to 1/T and renormalised, times T^2.

    T^2 * sum_k t_k (log t_k - log s_k), t = p_T^(1/T) / sum p_T^(1/T), s = p_S^(1/T) / sum p_S^(1/T)

    Args:
        log_teacher: float64 (K,), logarithms of the outcomes' masses, of any sum.
        log_student: float64 (K,). An outcome that the student cannot give (-inf) is not comparable: it is dropped, and
            the teacher renormalised over the others.
        temperature: T.

    Returns:
        Scalar; 0 where no outcome is left that the teacher can give.

    >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    >>> round(tempered_kl(p, q, 1.0).item(), 4)
    0.1438
    """
    comparable = log_student > -torch.inf
    log_teacher, log_student = log_teacher[comparable], log_student[comparable]
    if not (log_teacher > -torch.inf).any():
        return zero()
    teacher = torch.log_softmax(log_teacher / temperature, 0)
    student = torch.log_softmax(log_student / temperature, 0)
    given = teacher > -torch.inf
    return temperature**2 * (teacher[given].exp() * (teacher[given] - student[given])).sum()


LossKind = Literal["partition-kl", "c-kl", "p-kl", "h-kl", "gold", "uld", "alm"]
Merge = Literal["first", "mean"]

KINDS = ("partition-kl", "c-kl", "p-kl", "h-kl", "gold", "uld", "alm")


@dataclass(frozen=True, kw_only=True)
class SlowOptions:
    """What the families read; `slow_loss` says what each is."""

    kind: str
    temperature: float = 1.0
    merge: str = "first"
    top_k: int | None = None
    unreached: str = "reroute"
    normalize: str = "rest"
    threshold: float = 0.6
    uncommon_top_k: int = 8192

    def __post_init__(self) -> None:
        options.check_one_of("kind", self.kind, KINDS)
        options.check_one_of("merge", self.merge, ("first", "mean"))
        options.check_one_of("unreached", self.unreached, ("reroute", "drop"))
        options.check_one_of("normalize", self.normalize, ("rest", "none"))
        options.check_positive("temperature", self.temperature)
        options.check_share("threshold", self.threshold)
        options.check_size("uncommon_top_k", self.uncommon_top_k)
        if self.top_k is not None:
            options.check_size("top_k", self.top_k)
        if self.merge == "mean" and self.kind in {"c-kl", "alm"}:
            raise OptionError(f"{self.kind} reads single positions: it takes merge='first', but got merge='mean'")


@dataclass(frozen=True)
class Chunk:
    """A chunk in use: the flattened positions of its predicting logits, and the ids that they predict.

    Attributes:
        student: positions in (B * T_s), one per student token.
        teacher: positions in (B * T_t), one per teacher token.
        student_tokens: ids.
        teacher_tokens: ids.
        weight: the chunk's weight.
    """

    student: list[int]
    teacher: list[int]
    student_tokens: list[int]
    teacher_tokens: list[int]
    weight: float


@dataclass(frozen=True, eq=False)
class TeacherRow:
    """What is known of the teacher's probabilities at a position.

    Attributes:
        log_probs: float64 (V_t,), -inf where a token is impossible, unknown or no token.
        listed: the tokens whose probability is known: all that are tokens, or a `TopK`'s.
        log_rest: float64 scalar, log of the probability of all other tokens together.
    """

    log_probs: Tensor
    listed: frozenset[int]
    log_rest: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Both sides' logits by flattened position.

    Attributes:
        student_logits: float64 (B * T_s, V_s), with a graph.
        teacher_logits: float64 (B * T_t, V_t), or a `TopK`.
        student_live: ids that are tokens: neither padding nor holes.
        teacher_live: the same of the teacher.
    """

    student_logits: Tensor
    teacher_logits: Tensor | TopK
    student_live: list[int]
    teacher_live: list[int]

    @classmethod
    def of(cls, mapping: Mapping, student_logits: Tensor, teacher_logits: Tensor | TopK) -> Batch:
        """Flattens (B, T, V) logits."""
        if isinstance(teacher_logits, Tensor):
            teacher_logits = teacher_logits.detach().double().flatten(0, 1)
        return cls(
            student_logits.double().flatten(0, 1), teacher_logits, live_ids(mapping.student), live_ids(mapping.teacher)
        )

    @property
    def knows_all(self) -> bool:
        """Whether the teacher's whole distribution is known."""
        return isinstance(self.teacher_logits, Tensor)

    def student(self, position: int, live: list[int] | None = None) -> Tensor:
        """float64 (V_s,), log softmax over `live` (by default all tokens), -inf elsewhere."""
        return log_probabilities(self.student_logits[position], self.student_live if live is None else live)

    def teacher(self, position: int) -> TeacherRow:
        """What is known of the teacher at a position."""
        if isinstance(self.teacher_logits, Tensor):
            row = log_probabilities(self.teacher_logits[position], self.teacher_live)
            return TeacherRow(row, frozenset(self.teacher_live), minus_infinity())
        top = self.teacher_logits
        live = set(self.teacher_live)
        row = torch.full((top.width,), -torch.inf, dtype=torch.float64)
        listed = set()
        ids, log_probs = top.ids.flatten(0, 1)[position].tolist(), top.log_probs.detach().double().flatten(0, 1)
        for rank, token in enumerate(ids):
            if token in live:
                row[token] = log_probs[position, rank]
                listed.add(token)
        return TeacherRow(row, frozenset(listed), top.rest.detach().double().flatten()[position].log())


def live_ids(side: Side) -> list[int]:
    """The ids that are tokens."""
    return [token for token, kind in enumerate(side.kinds.tolist()) if kind not in {Kind.PADDING, Kind.HOLE}]


def chunks_of(spans: Spans) -> list[Chunk]:
    """The chunks in use, in the order of `Spans.predictions`."""
    made = spans.predictions()
    student, teacher = (_plain(side).tolist() for side in (made.student, made.teacher))
    student_tokens, teacher_tokens = (_plain(side).tolist() for side in (made.student_tokens, made.teacher_tokens))
    ours, theirs = (_plain(side).tolist() for side in (made.student_offsets, made.teacher_offsets))
    return [
        Chunk(
            student[ours[number] : ours[number + 1]],
            teacher[theirs[number] : theirs[number + 1]],
            student_tokens[ours[number] : ours[number + 1]],
            teacher_tokens[theirs[number] : theirs[number + 1]],
            weight,
        )
        for number, weight in enumerate(_plain(made.weight).tolist())
    ]


def _plain(array: Any) -> Any:
    return array if isinstance(array, np.ndarray) else array.numpy(force=True)


@dataclass(frozen=True, eq=False)
class Value:
    """A chunk's value.

    Attributes:
        kd: float64 scalar with the student's graph, where anything was compared.
        misfit: whether the chunk cannot be compared; then `kd` is 0.
        kept: the share of the teacher's probability that has a place in the common space, before the temperature.
    """

    kd: Tensor = field(default_factory=zero)
    misfit: bool = False
    kept: float = 1.0


def positions(side: list[int], merge: str) -> list[int]:
    """The positions of a chunk that are read: its first one, or all that are averaged."""
    return side if merge == "mean" else side[:1]


@dataclass(frozen=True)
class Outcomes:
    """Outcomes by their tokens.

    Attributes:
        student: the student ids of each outcome.
        teacher: the teacher ids of each outcome.
    """

    student: list[list[int]]
    teacher: list[list[int]]


@dataclass(frozen=True, eq=False)
class Masses:
    """The masses that both sides give to the outcomes, before the temperature.

    Attributes:
        teacher: float64 (K,), logarithms.
        touched: bool (K,), the outcomes with a token whose probability the teacher lists.
        rest: float64 scalar, logarithm of the teacher's mass on the tokens that it does not list.
        student: float64 (K,), logarithms.
    """

    teacher: Tensor
    touched: Tensor
    rest: Tensor
    student: Tensor

    @property
    def kept(self) -> float:
        """The teacher's mass that has a place in the common space."""
        return float(self.teacher.exp().sum() + self.rest.exp())

    def divergence(self, temperature: float) -> Tensor:
        """T^2 KL(teacher || student) on the outcomes; those that no listed token touches are one."""
        if self.touched.all():
            return tempered_kl(self.teacher, self.student, temperature)
        log_teacher = torch.cat((self.teacher[self.touched], self.rest[None]))
        untouched = log_sum(self.student[~self.touched])
        return tempered_kl(log_teacher, torch.cat((self.student[self.touched], untouched[None])), temperature)


def masses(outcomes: Outcomes, teacher: Sequence[TeacherRow], student: Sequence[Tensor]) -> Masses:
    """Bins both sides' rows, averaged over the positions.

    Args:
        outcomes: K outcomes.
        teacher: a row per teacher position.
        student: float64 (V_s,) log-probabilities per student position.
    """
    return teacher_masses(outcomes.teacher, teacher, stack(mean_mass(student, ids) for ids in outcomes.student))


def teacher_masses(members: Sequence[Sequence[int]], teacher: Sequence[TeacherRow], student: Tensor) -> Masses:
    """Bins the teacher's rows alone; the student's masses are there already."""
    listed = frozenset[int]().union(*(row.listed for row in teacher))
    return Masses(
        teacher=stack(mean_mass([row.log_probs for row in teacher], ids) for ids in members),
        touched=torch.tensor([not listed.isdisjoint(ids) for ids in members], dtype=torch.bool),
        rest=log_mean([row.log_rest for row in teacher]),
        student=student,
    )


def mean_mass(rows: Sequence[Tensor], tokens: Sequence[int]) -> Tensor:
    """The logarithm of some tokens' probability, averaged over rows."""
    return log_mean([log_mass(row, tokens) for row in rows])


def stack(values: Iterable[Tensor]) -> Tensor:
    """Scalars as one float64 tensor, empty ones too."""
    listed = list(values)
    return torch.stack(listed) if listed else torch.zeros(0, dtype=torch.float64)


def tempered(rows: Sequence[Tensor], temperature: float) -> Tensor:
    """Rows of log-probabilities averaged (as probabilities), raised to 1/T and renormalised.

    Args:
        rows: float64 (V,) each, -inf at impossible tokens.
        temperature: T.

    Returns:
        float64 (V,) log-probabilities; -inf everywhere if no token is possible.
    """
    mean = stack(log_mean([row[token] for row in rows]) for token in range(len(rows[0])))
    possible = mean > -torch.inf
    if not possible.any():
        return mean
    found = mean[possible] / temperature
    return torch.full_like(mean, -torch.inf).masked_scatter(possible, found - torch.logsumexp(found, 0))


def sorted_l1(
    student: Tensor, student_ids: Collection[int], teacher: Tensor, teacher_ids: Collection[int], ranks: int
) -> Tensor:
    """sum_i |i-th largest of the student's - i-th largest of the teacher's| over the first ranks.

    Args:
        student: float64 (V_s,) log-probabilities.
        student_ids: the tokens that are sorted.
        teacher: float64 (V_t,) log-probabilities.
        teacher_ids: the same of the teacher.
        ranks: how many are compared; past the end of a list there are zeros.

    >>> p, q = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.4, 0.6]).log()
    >>> round(sorted_l1(p, [0, 1], q, [0, 1], 1).item(), 6), round(sorted_l1(p, [0, 1], q, [0, 1], 3).item(), 6)
    (0.3, 0.6)
    """
    listed = [stack(row[token].exp() for token in ids) for row, ids in ((student, student_ids), (teacher, teacher_ids))]
    ours, theirs = (side.sort(descending=True).values[:ranks] for side in listed)
    longest = max(len(ours), len(theirs))
    ours, theirs = (torch.nn.functional.pad(side, (0, longest - len(side))) for side in (ours, theirs))
    return (ours - theirs).abs().sum()
