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
    masks = student.mask, teacher.mask
    return Spans(
        student=_in_rows(student, chunks.student, bases),
        teacher=_in_rows(teacher, chunks.teacher, bases),
        count=count.astype(np.int32),
        weight=weights,
        student_ids=student.spread(student.ids, 0),
        teacher_ids=teacher.spread(teacher.ids, 0),
        student_loss_mask=masks[0] if student_labelled is None else student.spread(student_labelled, fill=0),
        teacher_loss_mask=masks[1] if teacher_labelled is None else teacher.spread(teacher_labelled, fill=0),
        student_segments=_segments(student, masks[0]),
        teacher_segments=_segments(teacher, masks[1]),
    )


def _segments(side: Units, mask: Flags) -> NDArray[np.int32]:
    if not side.segments.any():
        return np.subtract(mask, 1, dtype=np.int32)
    return side.spread(side.segments.astype(np.int32).repeat(side.counts))


def _chunked(chunk: NDArray[np.int32]) -> NDArray[np.int32]:
    return chunk[chunk >= 0]


def _in_rows(side: Units, chunk: NDArray[np.int32], bases: NDArray[np.int64]) -> NDArray[np.int32]:
    """Chunk ids counted from 0 in every row, where their tokens stand."""
    rows = side.spread(chunk) if side.keep is not None else side.spread(chunk).copy()
    rows -= bases[:-1, None].astype(np.int32)
    return np.maximum(rows, np.int32(-1), out=rows)
