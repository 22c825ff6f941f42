"""Aligning a batch: units through the fast path, and those whose sides differ through the careful one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .chunks import Chunks, chunks_of
from .covered import Placed, chunks_of_placed
from .resync import Said, has_dummy_prefix, place, said_by, surfaces_of
from .tables import PairTables
from .units import Units, offsets_of, runs

Numbers = NDArray[np.int64]
SaidPair = tuple[Said, Said]


def aligned(
    student: Units,
    teacher: Units,
    tables: PairTables,
    said: Callable[[int], SaidPair | None] = lambda _: None,
    doubtful: NDArray[np.bool_] | None = None,
) -> Chunks:
    """Aligns the units of a batch.

    Args:
        student: the student's tokens.
        teacher: the teacher's, with the same units.
        tables: the pair's tables.
        said: what the two sides of a unit say, for a caller that knows more than the ids.
        doubtful: bool (units,), units to ask `said` about even where one side's text is the beginning of the other's.

    Returns:
        Chunk ids that count up through all units.
    """
    fast = chunks_of(student.ids, student.counts, teacher.ids, teacher.counts, tables)
    units = (fast.differs if doubtful is None else fast.differs | doubtful).nonzero()[0]
    if not len(units):
        return fast
    return _careful(student, teacher, tables, fast, units, said)


def _careful(
    student: Units,
    teacher: Units,
    tables: PairTables,
    fast: Chunks,
    units: Numbers,
    said: Callable[[int], SaidPair | None],
) -> Chunks:
    offsets = student.offsets, teacher.offsets
    placed: list[tuple[Placed, Placed]] = []
    for unit in units.tolist():
        ours = student.ids[offsets[0][unit] : offsets[0][unit + 1]]
        theirs = teacher.ids[offsets[1][unit] : offsets[1][unit + 1]] + len(tables.student)
        placed.append(place(*(said(unit) or _said(ours, theirs, tables)), tables))
    student_chunk, teacher_chunk, found = chunks_of_placed(placed)
    count = fast.count.copy()
    count[units] = found
    return Chunks(
        _merged(fast.student, fast.count, student, units, student_chunk, count),
        _merged(fast.teacher, fast.count, teacher, units, teacher_chunk, count),
        count,
        np.zeros_like(fast.differs),
    )


def _said(ours: Numbers, theirs: Numbers, tables: PairTables) -> SaidPair:
    texts = [surfaces_of(ids, tables).tobytes() for ids in (ours, theirs)]
    trims = (
        tables.student.encoder.dummy_prefix and has_dummy_prefix(texts[0], texts[1]),
        tables.teacher.encoder.dummy_prefix and has_dummy_prefix(texts[1], texts[0]),
    )
    return said_by(ours, tables, trim=trims[0]), said_by(theirs, tables, trim=trims[1])


def _merged(
    chunk: NDArray[np.int32], old: Numbers, side: Units, units: Numbers, careful: NDArray[np.int32], count: Numbers
) -> NDArray[np.int32]:
    """Chunk ids of all units from those of the fast path and those of the units that took the careful one."""
    base = offsets_of(count)[:-1]
    shift = base - offsets_of(old)[:-1]
    out = np.where(chunk >= 0, chunk + shift.repeat(side.counts), -1).astype(np.int32)
    tokens = runs(side.offsets[:-1][units], side.counts[units])
    own = offsets_of(count[units])[:-1]
    out[tokens] = np.where(careful >= 0, careful + (base[units] - own).repeat(side.counts[units]), -1)
    return out
