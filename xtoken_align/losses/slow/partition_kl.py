"""Partition-KL: both sides' predictions compared on the bins that first pieces make of the two vocabularies."""

from __future__ import annotations

import torch

from ...mapping.mapping import Mapping
from .batch import Batch, Chunk, TeacherRow, live_ids
from .common import Outcomes, masses
from .numbers import log_mass, log_sum
from .options import SlowOptions
from .value import Value, positions


class PartitionKL:
    """KL(bins of p_T || bins of p_S), with a rest bin where both sides have tokens in no bin.

    Args:
        mapping: its bins are the outcomes.
        options: `temperature` and `merge` are read.
    """

    def __init__(self, mapping: Mapping, options: SlowOptions) -> None:
        self.options = options
        self.student_bin, self.teacher_bin = (side.tolist() for side in mapping.bins())
        student, teacher = live_ids(mapping.student), live_ids(mapping.teacher)
        names = sorted({self.student_bin[token] for token in student} & {self.teacher_bin[token] for token in teacher})
        # The number -1 of the tokens in no bin is there if both sides have such tokens: the rest bin.
        self.has_rest = -1 in names
        self.outcomes = Outcomes(
            student=[[token for token in student if self.student_bin[token] == name] for name in names],
            teacher=[[token for token in teacher if self.teacher_bin[token] == name] for name in names],
        )
        self.students = [token for ids in self.outcomes.student for token in ids]
        self.teachers = [token for ids in self.outcomes.teacher for token in ids]

    def is_misfit(self, chunk: Chunk) -> bool:
        """Whether the chunk's first tokens lie in different bins, or one in none that counts."""
        ours, theirs = self.student_bin[chunk.student_tokens[0]], self.teacher_bin[chunk.teacher_tokens[0]]
        return bool(ours != theirs or (ours == -1 and not self.has_rest))

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value."""
        if self.is_misfit(chunk):
            return Value(misfit=True)
        rows = [self._of_bins(batch.teacher(at)) for at in positions(chunk.teacher, self.options.merge)]
        made = masses(
            self.outcomes,
            [row for row, _ in rows],
            [batch.student(at, self.students) for at in positions(chunk.student, self.options.merge)],
        )
        return Value(made.divergence(self.options.temperature), kept=sum(kept for _, kept in rows) / len(rows))

    def _of_bins(self, row: TeacherRow) -> tuple[TeacherRow, float]:
        """A row in which only tokens in bins have a probability, and how much of it they had."""
        total = log_sum([log_mass(row.log_probs, self.teachers), row.log_rest])
        if total == -torch.inf:
            return row, 0.0
        return TeacherRow(row.log_probs - total, row.listed, row.log_rest - total), float(total.exp())
