"""Partition-KL: both sides' predictions compared on the bins that first pieces make of the two vocabularies."""

from __future__ import annotations

from ...mapping.mapping import Mapping
from .batch import Batch, Chunk, live_ids
from .common import Outcomes, masses
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

    def is_misfit(self, chunk: Chunk) -> bool:
        """Whether the chunk's first tokens lie in different bins, or one in none that counts."""
        ours, theirs = self.student_bin[chunk.student_tokens[0]], self.teacher_bin[chunk.teacher_tokens[0]]
        return bool(ours != theirs or (ours == -1 and not self.has_rest))

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value."""
        if self.is_misfit(chunk):
            return Value(misfit=True)
        made = masses(
            self.outcomes,
            [batch.teacher(at) for at in positions(chunk.teacher, self.options.merge)],
            [batch.student(at) for at in positions(chunk.student, self.options.merge)],
        )
        return Value(made.divergence(self.options.temperature), kept=made.kept)
