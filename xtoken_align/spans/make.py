"""Makes the `Spans` of a batch from its aligned units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .chunks import Chunks
from .spans import Spans
from .units import Units, offsets_of

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Aligned:
    """Units of both sides with their chunks, before they are put into rows and columns.

    Attributes:
        student: the student's units.
        teacher: the teacher's.
        chunks: their chunks.
        student_labelled: bool (student tokens,), which tokens count in the loss; None for all.
        teacher_labelled: bool (teacher tokens,).
    """

    student: Units
    teacher: Units
    chunks: Chunks
    student_labelled: Flags | None = None
    teacher_labelled: Flags | None = None


def make_spans(aligned: Aligned) -> Spans:
    """Puts chunks into rows and columns and weighs them."""
    student, teacher, chunks = aligned.student, aligned.teacher, aligned.chunks
    student_labelled, teacher_labelled = aligned.student_labelled, aligned.teacher_labelled
    rows = student.shape[0]
    count = np.bincount(student.rows, chunks.count, minlength=rows).astype(np.int64)
    bases = offsets_of(count)
    weight = np.ones(int(bases[-1]), dtype=np.float32)
    for side, chunk, labelled in (
        (student, chunks.student, student_labelled),
        (teacher, chunks.teacher, teacher_labelled),
    ):
        if labelled is not None:
            weight[_chunked(chunk[~labelled])] = 0
        # Nothing in its own document comes before a document's first token.
        weight[_chunked(chunk[side.offsets[:-1][side.counts > 0]])] = 0
    columns = np.arange(int(count.max(initial=0)))
    weights = np.zeros((rows, len(columns)), dtype=np.float32)
    weights[columns < count[:, None]] = weight
    return Spans(
        student=_in_rows(student, chunks.student, bases),
        teacher=_in_rows(teacher, chunks.teacher, bases),
        count=count.astype(np.int32),
        weight=weights,
        student_ids=student.spread(student.ids.astype(np.int64, copy=False), 0),
        teacher_ids=teacher.spread(teacher.ids.astype(np.int64, copy=False), 0),
        student_loss_mask=student.spread(_counted(student_labelled, student), 0).astype(np.bool_),
        teacher_loss_mask=teacher.spread(_counted(teacher_labelled, teacher), 0).astype(np.bool_),
        student_segments=student.spread(student.segments.repeat(student.counts).astype(np.int32)),
        teacher_segments=teacher.spread(teacher.segments.repeat(teacher.counts).astype(np.int32)),
    )


def _counted(labelled: Flags | None, side: Units) -> NDArray[np.int32]:
    return np.ones(len(side.ids), dtype=np.int32) if labelled is None else labelled.astype(np.int32)


def _chunked(chunk: NDArray[np.int32]) -> NDArray[np.int32]:
    return chunk[chunk >= 0]


def _in_rows(side: Units, chunk: NDArray[np.int32], bases: NDArray[np.int64]) -> NDArray[np.int32]:
    """Chunk ids counted from 0 in every row, at their places."""
    shift = bases[side.rows].repeat(side.counts).astype(np.int32)
    return side.spread(np.where(chunk >= 0, chunk - shift, -1))
