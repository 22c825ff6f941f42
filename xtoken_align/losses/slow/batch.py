"""What the slow losses read: a batch's chunks, and the log-probabilities at a position of either side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...mapping.mapping import Mapping
from ...mapping.side import Side
from ...spans.spans import Spans
from ...vocab.kinds import Kind
from ..forms import TopK
from .numbers import log_probabilities, minus_infinity


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
