"""TRL's groups: which answer tokens of the two sides are merged and compared, from byte offsets or by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...errors import OptionError
from ..options import one_of, same_shape

MERGES = ("observed", "bayesian")
IGNORED = -100
"""The label of a token that is no answer (transformers, 2018 on)."""


@dataclass(frozen=True, eq=False)
class Runs:
    """One side's tokens of G groups, none empty.

    Attributes:
        tokens: int64 (P,), positions in the flattened batch (b * T + t), one group after the other.
        starts: int64 (G + 1,), where each group begins in `tokens`, and P.
    """

    tokens: torch.Tensor
    starts: torch.Tensor


@dataclass(frozen=True, eq=False)
class Groups:
    """G pairs of token runs of a batch.

    Attributes:
        sample: int64 (G,), the sample of each group, ascending.
        student: the student's runs.
        teacher: the teacher's.
    """

    sample: torch.Tensor
    student: Runs
    teacher: Runs

    def __len__(self) -> int:
        return len(self.sample)


def align_ends(student_ends: Sequence[int], teacher_ends: Sequence[int]) -> list[tuple[range, range]]:
    """Pairs the runs of tokens between common byte boundaries of one answer.

    Whichever side's current token ends earlier moves on; equal ends close a group on both sides. What remains when one
    side is used up is one last pair, dropped where a side of it is empty.

    Args:
        student_ends: the byte at which each student token ends, counted from the answer's beginning.
        teacher_ends: the teacher's.

    Returns:
        Runs of token numbers, counted from 0 on each side.

    Example:
        >>> align_ends([2, 4, 5, 9], [4, 5, 7, 12])
        [(range(0, 2), range(0, 1)), (range(2, 3), range(1, 2)), (range(3, 4), range(2, 4))]

    Source: TRL, `ULDLoss`, 2026. Ours differ: `align_ids` leaves what the sides do not share out of every chunk.
    """
    found = []
    here = there = begin = begin_there = 0
    while here < len(student_ends) and there < len(teacher_ends):
        difference = student_ends[here] - teacher_ends[there]
        here += difference <= 0
        there += difference >= 0
        if difference == 0:
            found.append((range(begin, here), range(begin_there, there)))
            begin, begin_there = here, there
    last = (range(begin, len(student_ends)), range(begin_there, len(teacher_ends)))
    return [*found, last] if all(last) else found


def answer_groups(
    student_labels: torch.Tensor,
    teacher_labels: torch.Tensor,
    student_byte_offsets: torch.Tensor | None = None,
    teacher_byte_offsets: torch.Tensor | None = None,
    *,
    extended: bool = True,
    merge: str = "observed",
    skip_student_eos: bool = True,
    skip_teacher_eos: bool = True,
) -> Groups:
    """Groups of the answers of a batch.

    An answer begins at the first label that is not -100 and is as long as there are such labels, whether or not they
    stand together; `skip_*_eos` takes its last token off, whatever it is. Under `merge` "bayesian", where either answer
    begins at index 0 and so has no predictor, both lose their first group.

    Args:
        student_labels: integers (B, T_s), -100 outside of the answer.
        teacher_labels: integers (B, T_t).
        student_byte_offsets: integers (B, T_s, 2), each token's [start, end) in bytes of the answer. For `extended`.
        teacher_byte_offsets: integers (B, T_t, 2).
        extended: group by common byte boundaries; else pair token with token up to the shorter answer.
        merge: "observed" or "bayesian".
        skip_student_eos: leave the student's last answer token out.
        skip_teacher_eos: leave the teacher's out.

    Returns:
        The groups, none for a sample without an answer on both sides.

    Raises:
        OptionError: for an unknown `merge`, missing offsets, or shapes that do not belong together.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[-100, 5, 6]])
        >>> ends = torch.tensor([[[0, 0], [0, 2], [2, 3]]])
        >>> groups = answer_groups(labels, labels, ends, ends, skip_student_eos=False, skip_teacher_eos=False)
        >>> groups.student.tokens.tolist(), groups.student.starts.tolist()
        ([1, 2], [0, 1, 2])

    Source: TRL, `ULDLoss`, 2026.
    """
    one_of("merge", merge, MERGES)
    if len(student_labels) != len(teacher_labels):
        raise OptionError(
            "student_labels and teacher_labels must have one number of samples, but they have "
            f"{len(student_labels)} and {len(teacher_labels)}"
        )
    students, teachers = _spans(student_labels, skip_student_eos), _spans(teacher_labels, skip_teacher_eos)
    student_ends = _ends("student_byte_offsets", student_byte_offsets, student_labels) if extended else None
    teacher_ends = _ends("teacher_byte_offsets", teacher_byte_offsets, teacher_labels) if extended else None
    samples: list[int] = []
    student_runs: list[range] = []
    teacher_runs: list[range] = []
    for sample, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
        if student_ends is None or teacher_ends is None:
            pairs = _by_position(len(student), len(teacher))
        else:
            here, there = student_ends[sample], teacher_ends[sample]
            pairs = align_ends(here[student.start : student.stop], there[teacher.start : teacher.stop])
        if merge == "bayesian" and 0 in {student.start, teacher.start}:
            pairs = pairs[1:]
        samples += [sample] * len(pairs)
        student_runs += [_moved(run, sample * student_labels.shape[1] + student.start) for run, _ in pairs]
        teacher_runs += [_moved(run, sample * teacher_labels.shape[1] + teacher.start) for _, run in pairs]
    device = student_labels.device
    return Groups(
        sample=torch.tensor(samples, dtype=torch.int64, device=device),
        student=_runs(student_runs, device),
        teacher=_runs(teacher_runs, device),
    )


def _spans(labels: torch.Tensor, skip_last: bool) -> list[range]:
    """Each sample's answer as a range of positions."""
    answer = labels != IGNORED
    sizes = answer.sum(dim=1) - int(skip_last)
    # The number of labels before the first that counts; of a row without one, all: an empty span anyway.
    begins = (answer.cumsum(dim=1) == 0).sum(dim=1)
    return [range(begin, begin + max(size, 0)) for begin, size in zip(begins.tolist(), sizes.tolist(), strict=True)]


def _ends(name: str, offsets: torch.Tensor | None, labels: torch.Tensor) -> list[list[int]]:
    if offsets is None:
        raise OptionError(f"extended groups need {name} (B, T, 2), but it is None; give it or set extended=False")
    same_shape(name, offsets, (*labels.shape, 2), "(B, T, 2)")
    ends: list[list[int]] = offsets[..., 1].tolist()
    return ends


def _by_position(student: int, teacher: int) -> list[tuple[range, range]]:
    return [(range(k, k + 1), range(k, k + 1)) for k in range(min(student, teacher))]


def _moved(run: range, offset: int) -> range:
    return range(run.start + offset, run.stop + offset)


def _runs(runs: list[range], device: torch.device) -> Runs:
    return Runs(
        tokens=torch.tensor([token for run in runs for token in run], dtype=torch.int64, device=device),
        starts=torch.tensor([0, *map(len, runs)], dtype=torch.int64, device=device).cumsum(0),
    )
