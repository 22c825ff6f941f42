"""Chunks of tokens whose places on a common axis are known one by one, with holes: the careful path.

The fast path lays tokens end to end. Here some tokens stand for nothing that the other side has, and some begin or end
where no boundary compares, so every token says where it begins, where it ends, and how much of the axis it covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Placed:
    """The tokens of one side on an axis, in order.

    Attributes:
        begin: int64 (tokens,), where each begins, -1 where no boundary compares.
        end: int64 (tokens,), where each ends, -1 likewise.
        cover: int64 (tokens,), how much of the axis each covers; the tokens of a character that is cut where nothing
            compares cover it together.
        on_axis: bool (tokens,), False for tokens that stand for nothing on the axis.
    """

    begin: Numbers
    end: Numbers
    cover: Numbers
    on_axis: Flags


def chunks_of_placed(pairs: Sequence[tuple[Placed, Placed]]) -> tuple[NDArray[np.int32], NDArray[np.int32], Numbers]:
    """Finds the chunks of units whose tokens have been placed, each on an axis of its own.

    Args:
        pairs: the student's and the teacher's tokens of every unit.

    Returns:
        int32 (student tokens,) and int32 (teacher tokens,), chunk ids that count up through all units, -1 outside every
        chunk; and int64 (units,), the chunks of each.
    """
    if not pairs:
        nothing = np.zeros(0, dtype=np.int32)
        return nothing, nothing, np.zeros(0, dtype=np.int64)
    sizes = [max(int(side.end.max(initial=0)) for side in pair) + 1 for pair in pairs]
    bases = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    sides = [_joined([pair[which] for pair in pairs], bases) for which in (0, 1)]
    student, teacher, ends = covered_chunks(sides[0], sides[1], int(bases[-1]))
    return student, teacher, np.diff(np.searchsorted(ends, bases))


def _joined(parts: Sequence[Placed], bases: Numbers) -> Placed:
    def moved(name: str) -> Numbers:
        places = [getattr(part, name) for part in parts]
        return np.concatenate([np.where(at >= 0, at + base, -1) for at, base in zip(places, bases[:-1], strict=True)])

    return Placed(
        moved("begin"),
        moved("end"),
        np.concatenate([part.cover for part in parts]),
        np.concatenate([part.on_axis for part in parts]),
    )


def covered_chunks(student: Placed, teacher: Placed, size: int) -> tuple[NDArray[np.int32], NDArray[np.int32], Numbers]:
    """Finds the chunks: from a beginning that both sides have to the next end that both have, without a hole between.

    Args:
        student: the student's tokens.
        teacher: the teacher's.
        size: the axis' length; every place is at most that.

    Returns:
        int32 (student tokens,) and int32 (teacher tokens,), chunk ids that count up, -1 outside every chunk; and
        int64 (chunks,), where each chunk ends.
    """
    ours, theirs = _closings(student, teacher, size), _closings(teacher, student, size)
    both = np.zeros(size + 1, dtype=np.int8)
    for side, (_, last) in zip((student, teacher), (ours, theirs), strict=True):
        both[side.end[last]] += 1
    ends = (both == 2).nonzero()[0]
    chunks = []
    for side, (first, last) in zip((student, teacher), (ours, theirs), strict=True):
        kept = both[side.end[last]] == 2
        chunk = np.full(len(side.begin), -1, dtype=np.int32)
        opened = np.zeros(len(side.begin) + 1, dtype=np.int32)
        opened[first[kept]] += 1
        number = opened[:-1].cumsum(dtype=np.int32) - 1
        closed = np.zeros(len(side.begin) + 1, dtype=np.int32)
        closed[last[kept] + 1] = 1
        inside = (number + 1 > closed[:-1].cumsum()) & side.on_axis
        chunk[inside] = number[inside]
        chunks.append(chunk)
    return chunks[0], chunks[1], ends


def _closings(side: Placed, other: Placed, size: int) -> tuple[Numbers, Numbers]:
    """First and last token of the runs of a side that may be a chunk's."""
    begins, ends = np.zeros(size + 1, dtype=np.bool_), np.zeros(size + 1, dtype=np.bool_)
    begins[other.begin[other.begin >= 0]] = True
    ends[other.end[other.end >= 0]] = True
    opens = (side.begin >= 0) & begins[side.begin]
    last = ((side.end >= 0) & ends[side.end]).nonzero()[0]
    start = np.maximum.accumulate(np.where(opens, np.arange(len(opens)), -1))[last]
    last, start = last[start >= 0], start[start >= 0]
    after = side.cover.cumsum()
    whole = after[last] - after[start] + side.cover[start] == side.end[last] - side.begin[start]
    # Bytes of a character that a normaliser takes away cover nothing, and nothing is no chunk.
    whole &= side.end[last] > side.begin[start]
    start, last = start[whole], last[whole]
    # Nor do they belong to the chunk that has ended before them.
    new = np.ones(len(last), dtype=np.bool_)
    new[1:] = side.end[last[1:]] > side.end[last[:-1]]
    return start[new], last[new]
