"""Aligned documents into rows: one a row, or packed several to a row on both sides in lockstep."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError
from .chunks import Chunks
from .make import Aligned
from .units import End, Units, kept, offsets_of, runs

Numbers = NDArray[np.int64]


def in_rows(aligned: Aligned, *, padding_side: End, multiple: int = 1) -> Aligned:
    """One document a row.

    Args:
        aligned: the documents.
        padding_side: where shorter rows are padded.
        multiple: row lengths are padded to a multiple of this.
    """
    rows = np.arange(len(aligned.student.counts))
    return _laid(aligned, rows, np.zeros_like(rows), padding_side, multiple)


def packed(
    aligned: Aligned, *, max_student_tokens: int, max_teacher_tokens: int, padding_side: End, multiple: int = 1
) -> Aligned:
    """Several documents a row: each goes into the first row that has room for it on both sides.

    Args:
        aligned: the documents.
        max_student_tokens: most student tokens in a row.
        max_teacher_tokens: most teacher tokens in a row.
        padding_side: where shorter rows are padded.
        multiple: row lengths are padded to a multiple of this.

    Raises:
        OptionError: a document alone is longer than a row.
    """
    sizes = np.stack([aligned.student.counts, aligned.teacher.counts], axis=1)
    limits = np.array([max_student_tokens, max_teacher_tokens])
    if (sizes > limits).any():
        at = int((sizes > limits).any(axis=1).argmax())
        raise OptionError(
            f"a document has {sizes[at, 0]} student and {sizes[at, 1]} teacher tokens, a packed row at most "
            f"{limits[0]} and {limits[1]}: cut documents to the row"
        )
    # As many rows as documents at most; those before `full` have no room for any further document.
    room = np.tile(limits, (len(sizes), 1))
    rows = np.zeros(len(sizes), dtype=np.int64)
    for document, size in enumerate(sizes):
        rows[document] = (room >= size).all(axis=1).argmax()
        room[rows[document]] -= size
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    first = np.searchsorted(rows, rows)
    return _laid(_reordered(aligned, order), rows, np.arange(len(rows)) - first, padding_side, multiple)


def _reordered(aligned: Aligned, order: Numbers) -> Aligned:
    """The documents in another order."""
    chunks = aligned.chunks
    old = offsets_of(chunks.count)[:-1][order]
    new = offsets_of(chunks.count[order])[:-1]
    sides = []
    for side, chunk, labelled in (
        (aligned.student, chunks.student, aligned.student_labelled),
        (aligned.teacher, chunks.teacher, aligned.teacher_labelled),
    ):
        tokens = runs(side.offsets[:-1][order], side.counts[order])
        moved = chunk[tokens]
        moved = np.where(moved >= 0, moved + (new - old).repeat(side.counts[order]), -1).astype(np.int32)
        units = Units(
            side.ids[tokens], side.counts[order], side.rows[order], side.segments[order], side.keep, side.shape
        )
        sides.append((units, moved, None if labelled is None else labelled[tokens]))
    (student, ours, our_labels), (teacher, theirs, their_labels) = sides
    return Aligned(
        student, teacher, Chunks(ours, theirs, chunks.count[order], chunks.differs[order]), our_labels, their_labels
    )


def _laid(aligned: Aligned, rows: Numbers, segments: Numbers, padding_side: End, multiple: int) -> Aligned:
    student, teacher = (
        _units(side, rows, segments, padding_side, multiple) for side in (aligned.student, aligned.teacher)
    )
    return Aligned(student, teacher, aligned.chunks, aligned.student_labelled, aligned.teacher_labelled)


def _units(side: Units, rows: Numbers, segments: Numbers, padding_side: End, multiple: int) -> Units:
    count = int(rows[-1]) + 1 if len(rows) else 0
    lengths = np.bincount(rows, side.counts, minlength=count).astype(np.int64)
    longest = -(-int(lengths.max(initial=0)) // multiple) * multiple
    return Units(side.ids, side.counts, rows, segments, kept(lengths, longest, padding_side), (count, longest))
