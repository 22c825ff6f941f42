"""H-KL and GOLD: a KL on the tokens that both sides have, and the sorted distance of everything else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...coverage.common import relaxed_common, strict_common
from ...mapping.mapping import Mapping
from .batch import Batch, Chunk, TeacherRow, live_ids
from .common import Outcomes, masses
from .numbers import zero
from .options import SlowOptions
from .sorted_l1 import sorted_l1, tempered
from .uld import as_listed, check_top_k
from .value import Value, positions


class HKL:
    """T^2 KL(p_T || p_S) on common pairs and a rest, plus T^2 * the sorted L1 distance of the uncommon tokens.

    Args:
        mapping: its strict pairs make GOLD, its relaxed ones H-KL.
        options: `kind`, `temperature`, `merge`, `normalize`, `threshold` and `uncommon_top_k` are read.
    """

    def __init__(self, mapping: Mapping, options: SlowOptions) -> None:
        self.options = options
        student, teacher = live_ids(mapping.student), live_ids(mapping.teacher)
        self.pairs = common_pairs(mapping, options)
        self.student_rest = [token for token in student if token not in {pair[0] for pair in self.pairs}]
        self.teacher_rest = [token for token in teacher if token not in {pair[1] for pair in self.pairs}]
        ours, theirs = [[pair[0]] for pair in self.pairs], [[pair[1]] for pair in self.pairs]
        if self.student_rest and self.teacher_rest:
            ours, theirs = [*ours, self.student_rest], [*theirs, self.teacher_rest]
        self.outcomes = Outcomes(student=ours, teacher=theirs)

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value.

        Raises:
            OptionError: the teacher is a `TopK` and T is not 1.
        """
        check_top_k(batch, self.options.temperature)
        teacher = [batch.teacher(at) for at in positions(chunk.teacher, self.options.merge)]
        student = [batch.student(at) for at in positions(chunk.student, self.options.merge)]
        ours = tempered(student, self.options.temperature)
        theirs = self._whole(batch, teacher)
        if not ((ours > -torch.inf).any() and (theirs > -torch.inf).any()):
            return Value(kept=0.0)
        if self.options.normalize == "none":
            part, kept = self.options.temperature**2 * unnormalised_kl(self.pairs, ours, theirs), 1.0
        else:
            made = masses(self.outcomes, teacher, student)
            part, kept = made.divergence(self.options.temperature), made.kept
        listed = frozenset[int]().union(*(row.listed for row in teacher))
        left = [token for token in self.teacher_rest if token in listed]
        ranks = min(len(self.student_rest), len(left), self.options.uncommon_top_k)
        remainder = sorted_l1(ours, self.student_rest, theirs, left, ranks)
        return Value(part + self.options.temperature**2 * remainder, kept=kept)

    def _whole(self, batch: Batch, rows: list[TeacherRow]) -> Tensor:
        log_probs = [row.log_probs for row in rows]
        return tempered(log_probs, self.options.temperature) if batch.knows_all else as_listed(log_probs)


def common_pairs(mapping: Mapping, options: SlowOptions) -> list[tuple[int, int]]:
    """The pairs (student id, teacher id) that are compared by themselves, by student id."""
    column, weight = mapping.matrix.top
    if options.kind == "gold":
        marked = strict_common(mapping.matrix.owner, column)
    else:
        marked = relaxed_common(column, weight, options.threshold)
    return [(row, int(column[row])) for row in np.flatnonzero(marked).tolist()]


def unnormalised_kl(pairs: list[tuple[int, int]], student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over pairs of p_T (log p_T - log p_S); negative where the student has more mass on them than the teacher.

    Args:
        pairs: student and teacher ids. Pairs that the student cannot give are left out.
        student: float64 (V_s,) log-probabilities.
        teacher: float64 (V_t,).

    >>> p, q = torch.tensor([0.3, 0.2, 0.5]).log(), torch.tensor([0.5, 0.4, 0.1]).log()
    >>> round(unnormalised_kl([(0, 0), (1, 1)], q, p).item(), 4)
    -0.2919
    """
    terms = [
        teacher[theirs].exp() * (teacher[theirs] - student[ours])
        for ours, theirs in pairs
        if teacher[theirs] > -torch.inf and student[ours] > -torch.inf
    ]
    return sum(terms, zero())
