"""C-KL's second form: level 1 knows how the chunk before it ended; a level counts as much as its way is plausible.

The first form (`slow_loss.CKL`) has two faults, and this one two cures:

- *END.* After the student's `12`, a student that also has `123` knows that no 3 follows; the teacher, which writes `1`,
  `2`, `3`, does not. Level 1 after such a chunk leaves out, on each side, what would have continued the other's token.
- *Paths.* Levels at pieces that the teacher would never write teach noise: where the text says 78 and the teacher 36,
  what the teacher says after 7 is worthless. So a level is weighted by how plausible the way to it is.
"""

from __future__ import annotations

from collections.abc import Mapping as Table
from dataclasses import dataclass, replace
from typing import Literal

import torch
from slow_divergence import Measure, PartitionBy, compared
from slow_loss import levels, split
from slow_parts import (
    Batch,
    Chunk,
    SlowOptions,
    TeacherRow,
    Value,
    chunks_of,
    live_ids,
    log_mass,
    log_sum,
    masses,
    stack,
)
from torch import Tensor

from xtoken_align.losses import options as checks
from xtoken_align.mapping.mapping import Mapping
from xtoken_align.spans.spans import Spans

LevelWeight = Literal["plausible", "teacher", "text"]


@dataclass(frozen=True)
class Before:
    """The chunk that ends where another one begins.

    Attributes:
        student_tokens: its ids.
        teacher_tokens: its ids.
    """

    student_tokens: list[int]
    teacher_tokens: list[int]


def chunks_before(spans: Spans) -> list[Before | None]:
    """For each chunk in use the chunk directly before it, in use or not; None at a document's begin and after a gap.

    A chunk that no label marks still says what both sides wrote, so the first chunk of an answer is conditioned on the
    last one of its prompt.
    """
    spans = spans.numpy()
    found: list[Before | None] = []
    for row, chunk in zip(*(spans.weight > 0).nonzero(), strict=True):
        sides = []
        for numbers, ids, segments in (
            (spans.student[row], spans.student_ids[row], spans.student_segments[row]),
            (spans.teacher[row], spans.teacher_ids[row], spans.teacher_segments[row]),
        ):
            here, there = (numbers == chunk).nonzero()[0], (numbers == chunk - 1).nonzero()[0]
            adjacent = len(there) and there[-1] + 1 == here[0] and segments[there[-1]] == segments[here[0]]
            sides.append(ids[there].tolist() if adjacent else None)
        found.append(None if None in sides else Before(*sides))
    return found


class ChainKL:
    """The second form of C-KL (2026).

    KD = KL_1 + sum over levels d >= 2 of w_d KL_d

    KL_1 compares the bins at the chunk's first position, KL_d the next piece after the first d - 1 pieces. The weights
    are constants for the gradient:

        text:       w_d = 1
        teacher:    w_d = the teacher's probability of the way: of the pieces before (the student packs), or of all its
                    tokens that begin with the student's pieces (the teacher packs)
        plausible:  w_2 = P_1(o_1) / max P_1,  w_(d+1) = w_d P_d(o_d) / max P_d

    P_d are the teacher's probabilities of level d's outcomes at T = 1, o_d is the text's outcome; what `end` leaves no
    student token of is no outcome. In both directions
    the same rule: where the teacher packs, the way is which of its tokens still fit the student's pieces. A piece that
    a `TopK` teacher does not list has P = 0.

    With `end`, KL_1 leaves out tokens, both sides renormalised. Let the chunk before be (s, t), written as the mapping
    says. If s is one student token and the teacher wrote its decomposition, the teacher's tokens y leave for which
    decomposition(s) + y is a student token's whole decomposition; if t is one teacher token and the student wrote its
    decomposition, the student's tokens u for which decomposition(t) + u is a teacher token's. Two guards: only tokens
    that *end* a longer token leave (a student with `1`, `2`, `122` and no `12` may well write 2 after 1); and if the
    text goes on with a token that would leave, on either side, none does.

    Args:
        mapping: its bins and both directions' decompositions.
        measure: how outcomes are compared, on every level.
        level_weight: w_d.
        end: whether level 1 knows of the chunk before.
    """

    def __init__(
        self, mapping: Mapping, measure: Measure, *, level_weight: LevelWeight = "plausible", end: bool = True
    ) -> None:
        checks.check_one_of("level_weight", level_weight, ("plausible", "teacher", "text"))
        self.measure, self.level_weight, self.end = measure, level_weight, end
        self.level_one = PartitionBy(mapping, SlowOptions(kind="c-kl"), measure)
        student, teacher = mapping.decompositions("student"), mapping.decompositions("teacher")
        self.student_pieces = {token: student[token] for token in live_ids(mapping.student) if student[token]}
        self.teacher_pieces = {token: teacher[token] for token in live_ids(mapping.teacher) if teacher[token]}

    def __call__(self, batch: Batch, chunk: Chunk, before: Before | None) -> Value:
        """The chunk's value: the sum of its weighted levels."""
        if self.level_one.is_misfit(chunk):
            return Value(misfit=True)
        student_leaves, teacher_leaves = self.leaving(chunk, before)
        row, kept = self.level_one._of_bins(batch.teacher(chunk.teacher[0]))
        row = replace(row, log_probs=without(row.log_probs, teacher_leaves))
        ours = without(batch.student(chunk.student[0], self.level_one.students), student_leaves)
        made = masses(self.level_one.outcomes, [row], [ours])
        total = compared(made, self.measure)
        outcome = next(at for at, ids in enumerate(self.level_one.outcomes.student) if chunk.student_tokens[0] in ids)
        remains = torch.tensor([not student_leaves.issuperset(ids) for ids in self.level_one.outcomes.student])
        listed = made.teacher[made.touched & remains]
        first = share(made.teacher[outcome], stack([*listed, made.rest]).max() if len(listed) else made.rest)
        whole = log_sum([*row.log_probs[list(row.listed)], row.log_rest])
        if len(chunk.student) == 1 and self.student_pieces.get(chunk.student_tokens[0]) == chunk.teacher_tokens:
            weight = self._first(first, row.log_probs[chunk.teacher_tokens[0]], whole)
            restricted = batch.student(chunk.student[0])
            for history, position in levels(chunk.teacher_tokens, chunk.teacher):
                level = self._student_restricted(history, restricted, batch.teacher(position))
                total = total + weight * self.measure(level.teacher, level.student)
                weight *= self._step(level, chunk.teacher_tokens[len(history) :][:1])
        if len(chunk.teacher) == 1 and self.teacher_pieces.get(chunk.teacher_tokens[0]) == chunk.student_tokens:
            begin = [token for token, pieces in self.teacher_pieces.items() if pieces[0] == chunk.student_tokens[0]]
            weight = self._first(first, log_mass(row.log_probs, begin), whole)
            known = batch.teacher(chunk.teacher[0])
            for history, position in levels(chunk.student_tokens, chunk.student):
                level = self._teacher_restricted(history, known, batch.student(position), batch)
                total = total + weight * self.measure(level.teacher, level.student)
                weight *= self._step(level, chunk.student_tokens[len(history) :][:1])
        return Value(total, kept=kept)

    def leaving(self, chunk: Chunk, before: Before | None) -> tuple[set[int], set[int]]:
        """The student's and the teacher's tokens that level 1 leaves out."""
        student: set[int] = set()
        teacher: set[int] = set()
        if not self.end or before is None:
            return student, teacher
        if len(before.student_tokens) == 1:
            pieces = self.student_pieces.get(before.student_tokens[0])
            if pieces == before.teacher_tokens:
                teacher = self._continuing(self.student_pieces, pieces)
        if len(before.teacher_tokens) == 1:
            pieces = self.teacher_pieces.get(before.teacher_tokens[0])
            if pieces == before.student_tokens:
                student = self._continuing(self.teacher_pieces, pieces)
        if chunk.student_tokens[0] in student or chunk.teacher_tokens[0] in teacher:
            return set(), set()
        return student, teacher

    def _continuing(self, table: Table[int, list[int]], pieces: list[int]) -> set[int]:
        """The tokens with which another token's decomposition, beginning with these pieces, ends.

        With {1: [5], 2: [5, 6], 3: [5, 7, 8]} the pieces [5] are continued by 6 alone: 7 ends nothing.
        """
        size = len(pieces)
        return {found[size] for found in table.values() if len(found) == size + 1 and found[:size] == pieces}

    def _first(self, plausible: float, way: Tensor, whole: Tensor) -> float:
        """w_2."""
        if self.level_weight == "text":
            return 1.0
        return plausible if self.level_weight == "plausible" else share(way, whole)

    def _step(self, level: Level, piece: list[int]) -> float:
        """What w_(d+1) has beyond w_d; at the last level, after which no piece follows, it does not matter."""
        if self.level_weight == "text" or not piece:
            return 1.0
        if piece[0] not in level.children:
            return 0.0
        best = level.teacher.max() if self.level_weight == "plausible" else log_sum(level.teacher)
        return share(level.teacher[level.children.index(piece[0])], best)

    def _student_restricted(self, history: list[int], student: Tensor, teacher: TeacherRow) -> Level:
        """The teacher's next piece after the pieces before, and the student's tokens that begin with them."""
        children, ends = split(self.student_pieces, history)
        if not children:
            return Level([], stack([]), stack([]))
        listed = [child for child in children if child in teacher.listed]
        others = [token for token in teacher.listed if token not in children]
        # What the teacher does not list, children or not, cannot be told from its END.
        ends = ends + [token for child in children if child not in listed for token in children[child]]
        log_end = log_sum([log_mass(teacher.log_probs, others), teacher.log_rest])
        return Level(
            listed,
            stack([*(teacher.log_probs[child] for child in listed), log_end]),
            stack([*(log_mass(student, children[child]) for child in listed), log_mass(student, ends)]),
        )

    def _teacher_restricted(self, history: list[int], teacher: TeacherRow, student: Tensor, batch: Batch) -> Level:
        """The teacher's tokens that begin with the student's pieces before, and the student's next token."""
        children, ends = split(self.teacher_pieces, history)
        if not children:
            return Level([], stack([]), stack([]))
        others = [token for token in batch.student_live if token not in children]
        return Level(
            list(children),
            stack([*(log_mass(teacher.log_probs, children[c]) for c in children), log_mass(teacher.log_probs, ends)]),
            stack([*(student[child] for child in children), log_mass(student, others)]),
        )


@dataclass(frozen=True, eq=False)
class Level:
    """A level's outcomes: a next piece each, then END.

    Attributes:
        children: the pieces.
        teacher: float64 (pieces + 1,), logarithms of masses.
        student: the same of the student.
    """

    children: list[int]
    teacher: Tensor
    student: Tensor


def without(log_probs: Tensor, tokens: set[int]) -> Tensor:
    """A row in which some tokens are impossible; no slope goes to them."""
    if not tokens:
        return log_probs
    leaves = torch.zeros(len(log_probs), dtype=torch.bool)
    leaves[list(tokens)] = True
    return log_probs.masked_fill(leaves, -torch.inf)


def share(part: Tensor, whole: Tensor) -> float:
    """exp(part - whole) as a constant; 0 of nothing.

    >>> round(share(torch.tensor(0.2).log(), torch.tensor(0.5).log()), 6)
    0.4
    """
    return 0.0 if whole == -torch.inf or part == -torch.inf else float((part - whole).detach().exp())


def chain_values(kind: ChainKL, batch: Batch, spans: Spans) -> list[Value]:
    """Every chunk's value."""
    return [kind(batch, chunk, before) for chunk, before in zip(chunks_of(spans), chunks_before(spans), strict=True)]
