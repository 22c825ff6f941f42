"""Spans from token ids: what a data set holds already, or what a student has just generated."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError
from ..read import as_vocab
from .align import aligned
from .make import Aligned, make_spans
from .spans import Spans
from .tables import pair_tables
from .units import Units, paired, units_of, values_of


def align_ids(
    student_ids: Any,
    teacher_ids: Any,
    *,
    student: Any,
    teacher: Any,
    student_mask: Any = None,
    teacher_mask: Any = None,
    student_segments: Any = None,
    teacher_segments: Any = None,
    student_loss_mask: Any = None,
    teacher_loss_mask: Any = None,
) -> Spans:
    """Aligns two tokenisations of the same texts, row by row.

    Text and byte tokens say their surfaces, specials and padding say nothing. A chunk's two sides say the same bytes;
    where a normaliser changed a text, the same text after both sides' normalisers. What one side alone says, and
    specials without a counterpart at their place, are in no chunk and move nothing else.

    Args:
        student_ids: int (B, T_s) array or tensor, or a sequence with a sequence of ids per row.
        teacher_ids: int (B, T_t) or a sequence per row.
        student: the student's `Vocab`, or a source of it, read anew at every call.
        teacher: the teacher's.
        student_mask: bool (B, T_s), False at padding, on either side of a row; what stands there is not looked at.
            Without it every id is a token.
        teacher_mask: bool (B, T_t).
        student_segments: int (B, T_s), in packed rows the number of each token's document; negative at padding.
            Documents of one number are aligned with each other.
        teacher_segments: int (B, T_t); given together with the student's.
        student_loss_mask: bool (B, T_s), which tokens count in the loss (`labels != -100`). A chunk has weight if all
            its tokens on both sides count.
        teacher_loss_mask: bool (B, T_t).

    Returns:
        The spans, padded as the ids are; rows of different lengths get padding on the right.

    Raises:
        OptionError: shapes do not fit, an id is out of range, or the segments are not in order.

    >>> import xtoken_align
    >>> student, teacher = xtoken_align.read_vocab("llama-3"), xtoken_align.read_vocab("qwen3")
    >>> spans = align_ids([[128000, 4513, 13]], [[16, 17, 18, 13]], student=student, teacher=teacher)
    >>> spans.student.tolist(), spans.teacher.tolist()  # begin of text, 123, full stop
    ([[-1, 0, 1]], [[0, 0, 0, 1]])
    """
    if (student_segments is None) != (teacher_segments is None):
        missing = "student_segments" if student_segments is None else "teacher_segments"
        raise OptionError(f"{missing} are missing: both sides have the numbers of their documents, or neither has")
    tables = pair_tables(as_vocab(student), as_vocab(teacher))
    ours = units_of(
        student_ids, width=len(tables.student), mask=student_mask, segments=student_segments, side="student"
    )
    theirs = units_of(
        teacher_ids, width=len(tables.teacher), mask=teacher_mask, segments=teacher_segments, side="teacher"
    )
    labelled = (
        _labelled(student_loss_mask, ours, "student_loss_mask"),
        _labelled(teacher_loss_mask, theirs, "teacher_loss_mask"),
    )
    ours, theirs = paired(ours, theirs)
    return make_spans(Aligned(ours, theirs, aligned(ours, theirs, tables), *labelled))


def _labelled(mask: Any, units: Units, name: str) -> NDArray[np.bool_] | None:
    return None if mask is None else values_of(mask, units, name).astype(np.bool_)
