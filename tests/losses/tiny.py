"""One text in two tokenisations, with every probability written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from slow_loss import SlowOutput, slow_loss
from small_vocabs import Token, make_vocab

from xtoken_align import align_ids, build
from xtoken_align.vocab.kinds import Kind

Rows = Sequence[Sequence[float]]


class Tiny:
    """A pair of vocabularies; `<s>` comes after the tokens that are given, on both sides.

    Args:
        student: surfaces, or (surface, kind).
        teacher: the same.
        options: of `build`.
    """

    def __init__(self, student: Sequence[str | Token], teacher: Sequence[str | Token], **options: Any) -> None:
        self.student, self.teacher = (
            make_vocab([*tokens, (b"<s>", Kind.SPECIAL)], name=name, roles={"bos": [len(tokens)]})
            for name, tokens in (("student", student), ("teacher", teacher))
        )
        self.mapping = build(student=self.student, teacher=self.teacher, **options)

    def logits(self, vocab: str, rows: Rows) -> torch.Tensor:
        """float64 (1, T, V) with a graph: probabilities by position, the first ones after `<s>`, which has none."""
        table = torch.tensor(rows, dtype=torch.float64)
        width = len(self.student if vocab == "student" else self.teacher)
        padded = torch.zeros(1, len(rows), width, dtype=torch.float64)
        padded[0, :, : table.shape[1]] = table
        return padded.log().requires_grad_(vocab == "student")

    def spans(self, student_ids: Sequence[int], teacher_ids: Sequence[int]) -> Any:
        return align_ids(
            [[len(self.student) - 1, *student_ids]],
            [[len(self.teacher) - 1, *teacher_ids]],
            student=self.student,
            teacher=self.teacher,
        )

    def loss(
        self,
        student_ids: Sequence[int],
        teacher_ids: Sequence[int],
        student_rows: Rows,
        teacher_rows: Rows,
        **options: Any,
    ) -> SlowOutput:
        """The slow loss of one text; the last row says what follows the text."""
        student, teacher = self.logits("student", student_rows), self.logits("teacher", teacher_rows)
        return slow_loss(self.mapping, student, teacher, self.spans(student_ids, teacher_ids), **options)


def kl(teacher: Sequence[float], student: Sequence[float], temperature: float = 1.0) -> float:
    """T^2 KL of two lists of masses, both renormalised."""
    p, q = (torch.tensor(side, dtype=torch.float64) ** (1 / temperature) for side in (teacher, student))
    p, q = p / p.sum(), q / q.sum()
    return float(temperature**2 * torch.where(p > 0, p * (p / q).log(), 0.0).sum())
