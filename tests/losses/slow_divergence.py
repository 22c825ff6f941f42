"""Divergences between two distributions over the same outcomes, and the older kinds by any of them.

TRL's convention (`GKDTrainer`, `DistillationTrainer`; Agarwal et al., arXiv:2306.13649, 2023): `beta` is the teacher's
share of the mixture, 0 is the forward KL and 1 the reverse one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from slow_loss import HKL, PKL, PartitionKL, best_columns, projected
from slow_parts import (
    Batch,
    Chunk,
    Masses,
    SlowOptions,
    Value,
    live_ids,
    log_mean,
    log_sum,
    masses,
    positions,
    sorted_l1,
    stack,
    teacher_masses,
    tempered,
    zero,
)
from torch import Tensor

from xtoken_align.losses import options as checks
from xtoken_align.mapping.mapping import Mapping

Divergence = Literal["forward", "reverse", "jsd"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How two distributions are compared.

    With t and s the teacher's and the student's masses, each raised to 1/T and renormalised, and m = beta t +
    (1 - beta) s:

        forward: T^2 sum_k t_k log(t_k / s_k)
        reverse: T^2 sum_k s_k log(s_k / t_k)
        jsd:     T^2 (beta sum_k t_k log(t_k / m_k) + (1 - beta) sum_k s_k log(s_k / m_k)); its ends are the others

    Two kinds of outcomes have a rule of their own:

    - One that the student cannot give (-inf) is dropped on both sides, whatever the divergence: nothing can be learnt.
    - One that the teacher cannot give makes a reverse KL infinite. The reverse KL is then taken on the other outcomes,
      both sides renormalised, plus -log of the student's mass on these: 0 exactly if the student gives nothing that
      the teacher cannot, with a slope that takes such mass away.

    Attributes:
        divergence: which.
        beta: the teacher's share of the mixture; only `jsd` reads it.
        temperature: T.
        student_top_k: only the student's best k outcomes are compared, both sides renormalised on them; of equal ones
            the earlier. Which they are is a constant for the gradient.
    """

    divergence: Divergence = "forward"
    beta: float = 0.5
    temperature: float = 1.0
    student_top_k: int | None = None

    def __post_init__(self) -> None:
        checks.check_one_of("divergence", self.divergence, ("forward", "reverse", "jsd"))
        checks.check_share("beta", self.beta)
        checks.check_positive("temperature", self.temperature)
        if self.student_top_k is not None:
            checks.check_size("student_top_k", self.student_top_k)

    @property
    def effective(self) -> Divergence:
        """`jsd` at its ends is one of the KLs."""
        if self.divergence == "jsd" and self.beta in {0.0, 1.0}:
            return "forward" if self.beta == 0.0 else "reverse"
        return self.divergence

    def __call__(self, log_teacher: Tensor, log_student: Tensor) -> Tensor:
        """The divergence.

        Args:
            log_teacher: float64 (K,), logarithms of the outcomes' masses, of any sum.
            log_student: float64 (K,).

        Returns:
            Scalar, at least 0; 0 where no outcome is left that the teacher can give.

        >>> t, s = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> round(Measure()(t, s).item(), 4), round(Measure(divergence="reverse")(t, s).item(), 4)
        (0.1438, 0.1308)
        """
        comparable = log_student > -torch.inf
        log_teacher, log_student = log_teacher[comparable], log_student[comparable]
        if self.student_top_k is not None:
            order = sorted(range(len(log_student)), key=lambda at: (-float(log_student[at].detach()), at))
            best = sorted(order[: self.student_top_k])
            log_teacher, log_student = log_teacher[best], log_student[best]
        if not (log_teacher > -torch.inf).any():
            return zero()
        teacher = torch.log_softmax(log_teacher / self.temperature, 0)
        student = torch.log_softmax(log_student / self.temperature, 0)
        how = {"forward": forward_kl, "reverse": reverse_kl, "jsd": self._jsd}[self.effective]
        return self.temperature**2 * how(teacher, student)

    def _jsd(self, teacher: Tensor, student: Tensor) -> Tensor:
        mixture = (self.beta * teacher.exp() + (1 - self.beta) * student.exp()).log()
        return self.beta * forward_kl(teacher, mixture) + (1 - self.beta) * forward_kl(student, mixture)


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """sum_k t_k log(t_k / s_k) of log-probabilities, over the outcomes that the teacher can give."""
    given = teacher > -torch.inf
    return (teacher[given].exp() * (teacher[given] - student[given])).sum()


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(s || t) where the teacher can give something, both renormalised there, and -log of the student's mass there.

    >>> t, s = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.3, 0.3, 0.4]).log()
    >>> round(reverse_kl(t, s).item(), 4) == round(-torch.tensor(0.6).log().item(), 4)
    True
    """
    given = teacher > -torch.inf
    inside = torch.logsumexp(student[given], 0)
    return forward_kl(student[given] - inside, teacher[given]) - inside


def compared(made: Masses, measure: Measure) -> Tensor:
    """The divergence of two sides' masses; outcomes that no listed teacher token touches are one, with the rest."""
    if made.touched.all():
        return measure(made.teacher, made.student)
    log_teacher = torch.cat((made.teacher[made.touched], made.rest[None]))
    untouched = log_sum(made.student[~made.touched])
    return measure(log_teacher, torch.cat((made.student[made.touched], untouched[None])))


class PartitionBy(PartitionKL):
    """Partition-KL's bins by any divergence.

    Args:
        mapping: its bins are the outcomes.
        options: `merge` is read.
        measure: how the bins are compared.
    """

    def __init__(self, mapping: Mapping, options: SlowOptions, measure: Measure) -> None:
        super().__init__(mapping, options)
        self.measure = measure

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value."""
        if self.is_misfit(chunk):
            return Value(misfit=True)
        rows = [self._of_bins(batch.teacher(at)) for at in positions(chunk.teacher, self.options.merge)]
        student = [batch.student(at, self.students) for at in positions(chunk.student, self.options.merge)]
        made = masses(self.outcomes, [row for row, _ in rows], student)
        return Value(compared(made, self.measure), kept=sum(kept for _, kept in rows) / len(rows))


class ProjectionBy(PKL):
    """P-KL's columns by any divergence, weighted by the kept mass.

    Args:
        mapping: its W.
        options: `merge`, `unreached` and `top_k` are read.
        measure: how the columns are compared.
    """

    def __init__(self, mapping: Mapping, options: SlowOptions, measure: Measure) -> None:
        super().__init__(mapping, options)
        self.measure = measure

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value."""
        student = [batch.student(at, self.rows) for at in positions(chunk.student, self.options.merge)]
        made = teacher_masses(
            self.members,
            [batch.teacher(at) for at in positions(chunk.teacher, self.options.merge)],
            stack(log_mean([projected(row, links) for row in student]) for links in self.links),
        )
        kept = made.kept
        if self.options.top_k is not None:
            made = best_columns(made, self.options.top_k)
        return Value(kept * compared(made, self.measure), kept=kept)


class CommonBy(HKL):
    """H-KL and GOLD whose common part, closed by a rest, is any divergence; the remainder stays the sorted L1.

    Args:
        mapping: its common pairs.
        options: `kind`, `merge`, `threshold` and `uncommon_top_k` are read. `normalize="none"` has no divergence.
        measure: how the common part is compared. Its temperature is the remainder's, too.
        pairs: in place of the mapping's.
    """

    def __init__(
        self, mapping: Mapping, options: SlowOptions, measure: Measure, pairs: list[tuple[int, int]] | None = None
    ) -> None:
        super().__init__(mapping, options)
        self.measure = measure
        if pairs is not None:
            self.pairs = pairs
            self.student_rest = [token for token in live_ids(mapping.student) if token not in {s for s, _ in pairs}]
            self.teacher_rest = [token for token in live_ids(mapping.teacher) if token not in {t for _, t in pairs}]
            self.outcomes.student[:] = [[s] for s, _ in pairs]
            self.outcomes.teacher[:] = [[t] for _, t in pairs]
            if self.student_rest and self.teacher_rest:
                self.outcomes.student.append(self.student_rest)
                self.outcomes.teacher.append(self.teacher_rest)

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value."""
        temperature = self.measure.temperature
        teacher = [batch.teacher(at) for at in positions(chunk.teacher, self.options.merge)]
        student = [batch.student(at) for at in positions(chunk.student, self.options.merge)]
        ours, theirs = tempered(student, temperature), tempered([row.log_probs for row in teacher], temperature)
        if not ((ours > -torch.inf).any() and (theirs > -torch.inf).any()):
            return Value(kept=0.0)
        made = masses(self.outcomes, teacher, student)
        ranks = min(len(self.student_rest), len(self.teacher_rest), self.options.uncommon_top_k)
        remainder = sorted_l1(ours, self.student_rest, theirs, self.teacher_rest, ranks)
        return Value(compared(made, self.measure) + temperature**2 * remainder, kept=made.kept)
