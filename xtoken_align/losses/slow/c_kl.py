"""C-KL: the chain rule along the pieces of a token that one side writes in one and the other in several."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...mapping.mapping import Mapping
from .batch import Batch, Chunk, TeacherRow, live_ids
from .common import stack
from .numbers import log_mass, log_sum, tempered_kl
from .options import SlowOptions
from .partition_kl import PartitionKL
from .value import Value


class CKL:
    """Partition-KL at the first position, plus the levels along the pieces.

    At a level the one side is restricted to A(h), its tokens whose decomposition begins with h, and grouped by their
    next piece; the other side says at its own position after h which piece comes next. END is: none of these.

    Args:
        mapping: its bins and both directions' decompositions.
        options: `temperature` is read.
    """

    def __init__(self, mapping: Mapping, options: SlowOptions) -> None:
        self.options = options
        self.level_one = PartitionKL(mapping, options)
        student, teacher = mapping.decompositions("student"), mapping.decompositions("teacher")
        self.student_pieces = {token: student[token] for token in live_ids(mapping.student) if student[token]}
        self.teacher_pieces = {token: teacher[token] for token in live_ids(mapping.teacher) if teacher[token]}

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value: the sum of its levels."""
        first = self.level_one(batch, chunk)
        if first.misfit:
            return first
        total = first.kd
        if len(chunk.student) == 1 and self.student_pieces.get(chunk.student_tokens[0]) == chunk.teacher_tokens:
            restricted = batch.student(chunk.student[0])
            for history, position in levels(chunk.teacher_tokens, chunk.teacher):
                total = total + self._student_restricted(history, restricted, batch.teacher(position))
        if len(chunk.teacher) == 1 and self.teacher_pieces.get(chunk.teacher_tokens[0]) == chunk.student_tokens:
            known = batch.teacher(chunk.teacher[0])
            for history, position in levels(chunk.student_tokens, chunk.student):
                total = total + self._teacher_restricted(history, known, batch.student(position), batch)
        return Value(total, kept=first.kept)

    def _student_restricted(self, history: list[int], student: Tensor, teacher: TeacherRow) -> Tensor:
        """T^2 KL(p_T(next | h), END the rest || p_S on A(h) by next piece, END the tokens equal to h)."""
        children, ends = split(self.student_pieces, history)
        if not children:
            return teacher.log_rest.new_zeros(())
        listed = [child for child in children if child in teacher.listed]
        others = [token for token in teacher.listed if token not in children]
        # What the teacher does not list, children or not, cannot be told from its END.
        ends = ends + [token for child in children if child not in listed for token in children[child]]
        log_teacher = [teacher.log_probs[child] for child in listed]
        log_student = [log_mass(student, children[child]) for child in listed]
        log_teacher.append(log_sum([log_mass(teacher.log_probs, others), teacher.log_rest]))
        log_student.append(log_mass(student, ends))
        return tempered_kl(stack(log_teacher), stack(log_student), self.options.temperature)

    def _teacher_restricted(self, history: list[int], teacher: TeacherRow, student: Tensor, batch: Batch) -> Tensor:
        """T^2 KL(p_T on A_T(h) by next piece, END the tokens equal to h || p_S(next | h), END the rest)."""
        children, ends = split(self.teacher_pieces, history)
        if not children:
            return teacher.log_rest.new_zeros(())
        others = [token for token in batch.student_live if token not in children]
        log_teacher = [log_mass(teacher.log_probs, tokens) for tokens in children.values()]
        log_student = [student[child] for child in children]
        log_teacher.append(log_mass(teacher.log_probs, ends))
        log_student.append(log_mass(student, others))
        return tempered_kl(stack(log_teacher), stack(log_student), self.options.temperature)


def levels(pieces: Sequence[int], predicting: Sequence[int]) -> list[tuple[list[int], int]]:
    """For levels 2 to n + 1 the pieces before, and the position that predicts the next.

    >>> levels([7, 8], [20, 21])
    [([7], 21), ([7, 8], 22)]
    """
    after = [*predicting[1:], predicting[-1] + 1]
    return [(list(pieces[: number + 1]), position) for number, position in enumerate(after)]


def split(table: dict[int, list[int]], history: list[int]) -> tuple[dict[int, list[int]], list[int]]:
    """The tokens whose pieces begin with a history, by their next piece, and those that end there.

    >>> split({1: [5], 2: [5, 6], 3: [5, 6, 7], 4: [6]}, [5])
    ({6: [2, 3]}, [1])
    """
    size = len(history)
    children: dict[int, list[int]] = {}
    ends = []
    for token, pieces in table.items():
        if pieces[:size] == history:
            if len(pieces) == size:
                ends.append(token)
            else:
                children.setdefault(pieces[size], []).append(token)
    return children, ends
