"""Rows of ids, as a data set keeps them, with or without the chunks that aligning them once has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError
from .align import aligned
from .chunks import Chunks
from .make import Aligned
from .tables import PairTables
from .units import End, padded, units_of


def aligned_columns(
    rows: Sequence[Mapping[str, Any]],
    tables: PairTables,
    limits: tuple[int | None, int | None],
    truncation_side: End = "right",
) -> Aligned:
    """Rows of ids as units, aligned now unless they have chunks already.

    Raises:
        OptionError: a column is missing in some rows, or its lengths do not fit.
    """
    sides = []
    for side, limit, vocab in zip(("student", "teacher"), limits, (tables.student, tables.teacher), strict=True):
        columns = {name: _column(rows, f"{side}_{name}") for name in ("ids", "chunks", "loss_mask")}
        cuts = {"ids": _cut, "chunks": _cut_chunks, "loss_mask": _cut}
        cut = {
            name: None if column is None else cuts[name](column, limit, truncation_side)
            for name, column in columns.items()
        }
        if cut["ids"] is None:
            raise OptionError(f"rows with ids need `{side}_ids`, got {sorted(rows[0])}")
        ids = units_of(cut["ids"], width=len(vocab), side=side)
        chunks, labelled = (_flat(cut[name], ids.counts, f"{side}_{name}") for name in ("chunks", "loss_mask"))
        sides.append((padded(ids.ids, ids.counts, "right"), chunks, None if labelled is None else labelled != 0))
    (ours, our_chunks, our_labels), (theirs, their_chunks, their_labels) = sides
    if our_chunks is None or their_chunks is None:
        return Aligned(ours, theirs, aligned(ours, theirs, tables), our_labels, their_labels)
    return Aligned(
        ours, theirs, _joined(our_chunks, ours.counts, their_chunks, theirs.counts), our_labels, their_labels
    )


def _joined(
    student: NDArray[np.int64], student_counts: NDArray[np.int64], teacher: NDArray[np.int64], counts: NDArray[np.int64]
) -> Chunks:
    """Chunks counted from 0 in every row as chunks that count up, without those that a cut left on one side only."""
    width = int(max(student.max(initial=-1), teacher.max(initial=-1))) + 1
    numbered = [
        np.where(chunk >= 0, np.arange(len(each)).repeat(each) * width + chunk, -1)
        for chunk, each in ((student, student_counts), (teacher, counts))
    ]
    both = np.intersect1d(numbered[0][numbered[0] >= 0], numbered[1][numbered[1] >= 0])
    made = []
    for chunk in numbered:
        at = np.searchsorted(both, chunk)
        found = (at < len(both)) & (chunk >= 0)
        found[found] = both[at[found]] == chunk[found]
        made.append(np.where(found, at, -1).astype(np.int32))
    count = np.bincount(both // max(width, 1), minlength=len(counts)).astype(np.int64)
    return Chunks(made[0], made[1], count, np.zeros(len(counts), dtype=np.bool_))


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any] | None:
    has = [name in row for row in rows]
    if any(has) and not all(has):
        raise OptionError(f"some rows have `{name}` and some have not")
    return [row[name] for row in rows] if all(has) else None


def _cut(rows: list[Any], limit: int | None, truncation_side: End) -> list[Any]:
    if limit is None:
        return rows
    return [row[:limit] if truncation_side == "right" else row[max(len(row) - limit, 0) :] for row in rows]


def _cut_chunks(rows: list[Any], limit: int | None, truncation_side: End) -> list[NDArray[np.int64]]:
    """Chunks of rows that are cut; a chunk that the cut goes through says another text than before, and is dropped."""
    whole = [np.asarray(row, dtype=np.int64) for row in rows]
    kept = _cut(whole, limit, truncation_side)
    sizes = [np.bincount(row[row >= 0]) for row in whole]
    left = [np.bincount(row[row >= 0], minlength=len(size)) for row, size in zip(kept, sizes, strict=True)]
    return [
        np.where((row >= 0) & (now == size)[row] if len(size) else row >= 0, row, -1)
        for row, size, now in zip(kept, sizes, left, strict=True)
    ]


def _flat(column: list[Any] | None, counts: NDArray[np.int64], name: str) -> NDArray[np.int64] | None:
    if column is None:
        return None
    if [len(entry) for entry in column] != counts.tolist():
        raise OptionError(f"`{name}` needs a value for every id of its row")
    flat: NDArray[np.int64] = np.concatenate([np.zeros(0, dtype=np.int64), *column], dtype=np.int64, casting="unsafe")
    return flat
