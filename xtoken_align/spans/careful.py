"""Units whose two sides say different bytes: the careful path, one unit at a time, still in linear time.

A normaliser, a template or a cut made the texts differ. What both have in common becomes an axis, and every token gets
its place on it, or none. "Hi, all" against "hi all", both lower-cased for the comparison:

    common stretches        "hi" and " all"; on the axis hi stands at 1-3 and " all" at 4-8
    student  Hi  ,  " all"  chunk  0 -1 1       the comma stands for nothing that the teacher has
    teacher  hi  " all"     chunk  0 1
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .chunks import Chunks, chunks_of
from .fold import SideText, text_by_surfaces
from .tables import PairTables, paired_specials
from .units import Flags, Numbers, Units, offsets_of, runs

Text = NDArray[np.uint8]

TextPair = tuple[SideText, SideText]

Stretch = tuple[int, int, int]
"""Where a stretch begins in the one text, where in the other, and its length."""

_WINDOWS = (32, 8)
"""Bytes that have to be equal, and occur once on each side, for a stretch between two differences to be found."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_FACTOR), -1, 1 << 64))
"""An odd number near 2^64 divided by the golden ratio spreads the sums of a window's bytes; its inverse modulo 2^64."""


def chunks_of_units(
    student: Units,
    teacher: Units,
    tables: PairTables,
    texts_of: Callable[[int], TextPair | None] = lambda _: None,
    doubtful: Flags | None = None,
    *,
    whole_texts: bool = False,
) -> Chunks:
    """Aligns the units of a batch: all by the fast path, and those whose two sides differ by the careful one.

    Args:
        student: the student's tokens.
        teacher: the teacher's, with the same units.
        tables: the pair's tables.
        texts_of: what the two sides of a unit say, for a caller that knows more than the ids.
        doubtful: bool (units,), units for the careful path even where one side's text is the beginning of the other's.
        whole_texts: whether every unit is one whole text on both sides.

    Returns:
        Chunk ids that count up through all units.
    """
    fast = chunks_of(student.ids, student.counts, teacher.ids, teacher.counts, tables, whole_texts=whole_texts)
    careful = (fast.differs if doubtful is None else fast.differs | doubtful).nonzero()[0]
    if not len(careful):
        return fast
    student_offsets, teacher_offsets = student.offsets, teacher.offsets
    placed: list[tuple[Placed, Placed]] = []
    for unit in careful.tolist():
        texts = texts_of(unit)
        if texts is None:
            student_ids = student.ids[student_offsets[unit] : student_offsets[unit + 1]]
            teacher_ids = teacher.ids[teacher_offsets[unit] : teacher_offsets[unit + 1]]
            texts = _texts_by_surfaces(student_ids, teacher_ids + len(tables.student), tables)
        placed.append(place(*texts, tables))
    student_chunk, teacher_chunk, careful_count = chunks_of_placed(placed)
    count = fast.count.copy()
    count[careful] = careful_count
    return Chunks(
        _merged(fast.student, fast.count, student, careful, student_chunk, count),
        _merged(fast.teacher, fast.count, teacher, careful, teacher_chunk, count),
        count,
        np.zeros_like(fast.differs),
    )


def _texts_by_surfaces(student_ids: Numbers, teacher_ids: Numbers, tables: PairTables) -> TextPair:
    student_text, teacher_text = (tables.surfaces(ids).tobytes() for ids in (student_ids, teacher_ids))
    trim_student = tables.student.encoder.dummy_prefix and has_dummy_prefix(student_text, teacher_text)
    trim_teacher = tables.teacher.encoder.dummy_prefix and has_dummy_prefix(teacher_text, student_text)
    student_text, teacher_text = student_text[trim_student:], teacher_text[trim_teacher:]
    ends_words = tables.student.ends_words or tables.teacher.ends_words
    compared = (max if ends_words else min)(len(student_text), len(teacher_text))
    # Without a dummy prefix they may say the same: then nothing is folded.
    fold = not (trim_student or trim_teacher) or student_text[:compared] != teacher_text[:compared]
    return (
        text_by_surfaces(student_ids, tables, trim=trim_student, fold=fold),
        text_by_surfaces(teacher_ids, tables, trim=trim_teacher, fold=fold),
    )


def has_dummy_prefix(text: bytes, other: bytes) -> bool:
    """Whether a text has one space at its beginning that the other side's text has not.

    >>> [has_dummy_prefix(b" a b", other) for other in (b"a b", b" a b", b" a")]
    [True, False, False]
    >>> has_dummy_prefix(b"  a", b" a")
    True
    """
    if not text.startswith(b" ") or not other.startswith(b" "):
        return text.startswith(b" ")
    size = min(len(text), len(other))
    if text[:size] == other[:size]:
        return False
    size = min(len(text) - 1, len(other))
    return text[1 : size + 1] == other[:size]


def _merged(
    fast: NDArray[np.int32],
    fast_count: Numbers,
    side: Units,
    careful_units: Numbers,
    careful: NDArray[np.int32],
    count: Numbers,
) -> NDArray[np.int32]:
    """One side's chunk ids of all units, those of the careful path among those of the fast one.

    Units with 2, 0 and 1 chunks by the fast path, where the careful one finds 3 in the second: the ids of the third
    unit move up by 3, those of the second begin at 2.
    """
    first_id = offsets_of(count)[:-1]
    shift = first_id - offsets_of(fast_count)[:-1]
    chunk = np.where(fast >= 0, fast + shift.repeat(side.counts), -1).astype(np.int32)
    tokens = runs(side.offsets[:-1][careful_units], side.counts[careful_units])
    careful_shift = first_id[careful_units] - offsets_of(count[careful_units])[:-1]
    chunk[tokens] = np.where(careful >= 0, careful + careful_shift.repeat(side.counts[careful_units]), -1)
    return chunk


# Tokens on the axis


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


def place(student: SideText, teacher: SideText, tables: PairTables) -> tuple[Placed, Placed]:
    """Puts both sides' tokens on the axis of what their texts have in common.

    Between two stretches the axis has a step of one that no token covers.
    """
    stretches = np.array(common_stretches(student.text, teacher.text), dtype=np.int64).reshape(-1, 3)
    sides = [_on_axis(side, stretches[:, which], stretches[:, 2]) for which, side in enumerate((student, teacher))]
    return with_specials((student.specials, teacher.specials), (sides[0], sides[1]), tables)


def _on_axis(side: SideText, starts: Numbers, lengths: Numbers) -> tuple[Placed, Numbers]:
    """A side's tokens on the axis, and the place where every token stands, those in no stretch included.

    The student's "Hi, all" has stretches from 0 and 3, of 2 and 4 bytes: they stand at 1 and 4 on the axis. `Hi` covers
    1-3; `,` is in no stretch and stands at 3, where the stretch before it ends; " all" covers 4-8.
    """
    bases = lengths.cumsum() - lengths + np.arange(len(lengths)) + 1
    count = len(side.begin)
    if not len(lengths):
        nowhere = np.full(count, -1, dtype=np.int64)
        return Placed(nowhere, nowhere, nowhere * 0, nowhere >= 0), nowhere + 1
    stretch = starts.searchsorted(side.begin, side="right") - 1
    inside = (stretch >= 0) & (side.end <= starts[stretch] + lengths[stretch])
    on_axis = inside & side.has_text & ((side.end > side.begin) | ~side.sharp_begin | ~side.sharp_end)
    begin = np.where(on_axis & side.sharp_begin, bases[stretch] + side.begin - starts[stretch], -1)
    end = np.where(on_axis & side.sharp_end, bases[stretch] + side.end - starts[stretch], -1)
    before = starts.searchsorted(side.begin, side="left") - 1
    places = np.where(before >= 0, bases[before] + np.minimum(side.begin - starts[before], lengths[before]), 0)
    return Placed(begin, end, np.where(on_axis, side.end - side.begin, 0), on_axis), places


def with_specials(
    specials: tuple[NDArray[np.int32], NDArray[np.int32]],
    sides: tuple[tuple[Placed, Numbers], tuple[Placed, Numbers]],
    tables: PairTables,
) -> tuple[Placed, Placed]:
    """Gives specials that correspond and stand at one place a piece of the axis, of length one.

    Student `a` `<end>` `b` at 1-2, place 2, 2-3, with a `<end>` of the teacher's at place 2 too: `<end>` takes 2-3, and
    all that comes later moves by one, so `b` takes 3-4.

    Args:
        specials: per side int32 (tokens,), rows or columns of the pair's table, -1 for other tokens.
        sides: per side the tokens, and int64 (tokens,) where each stands, ascending.
        tables: the pair's tables.
    """
    at = [(side >= 0).nonzero()[0] for side in specials]
    pairs = paired_specials(
        specials[0][at[0]], sides[0][1][at[0]], specials[1][at[1]], sides[1][1][at[1]], tables.same_special
    )
    moved_sides: list[Placed] = []
    for (placed, places), positions, chosen in zip(sides, at, pairs, strict=True):
        paired = positions[chosen]
        is_paired = np.zeros(len(placed.begin), dtype=np.int64)
        is_paired[paired] = 1
        paired_before = is_paired.cumsum() - is_paired
        begin = np.where(placed.begin >= 0, placed.begin + paired_before, -1)
        end = np.where(placed.end >= 0, placed.end + paired_before, -1)
        begin[paired] = places[paired] + paired_before[paired]
        end[paired] = begin[paired] + 1
        cover = np.where(is_paired == 1, 1, placed.cover)
        moved_sides.append(Placed(begin, end, cover, placed.on_axis | (is_paired == 1)))
    return moved_sides[0], moved_sides[1]


# Chunks of placed tokens


def chunks_of_placed(pairs: Sequence[tuple[Placed, Placed]]) -> tuple[NDArray[np.int32], NDArray[np.int32], Numbers]:
    """Finds the chunks of units whose tokens have been placed, each unit on an axis of its own.

    A chunk goes from a beginning that both sides have to the next end that both have, without a hole between. Two
    stretches at 1-3 and 4-6, and a token `x` that stands for nothing on the axis:

        student  ab  x  cd      begin 1 -1 4   end 3 -1 6   chunk 0 -1 1
        teacher  a  b  cd       begin 1  2 4   end 2  3 6   chunk 0  0 1

    Args:
        pairs: the student's and the teacher's tokens of every unit.

    Returns:
        int32 (student tokens,) and int32 (teacher tokens,), chunk ids that count up through all units, -1 outside every
        chunk; and int64 (units,), the chunks of each.
    """
    if not pairs:
        nothing = np.zeros(0, dtype=np.int32)
        return nothing, nothing, np.zeros(0, dtype=np.int64)
    # The units' axes one after another.
    sizes = [max(int(side.end.max(initial=0)) for side in pair) + 1 for pair in pairs]
    bases = offsets_of(np.array(sizes, dtype=np.int64))
    size = int(bases[-1])
    student, teacher = (_one_after_another([pair[which] for pair in pairs], bases) for which in (0, 1))
    runs_of_sides = _possible_chunks(student, teacher, size), _possible_chunks(teacher, student, size)
    sides_that_end = np.zeros(size + 1, dtype=np.int8)
    for side, (_, last) in zip((student, teacher), runs_of_sides, strict=True):
        sides_that_end[side.end[last]] += 1
    chunks = []
    for side, (first, last) in zip((student, teacher), runs_of_sides, strict=True):
        is_chunk = sides_that_end[side.end[last]] == 2
        opened, closed = (np.zeros(len(side.begin) + 1, dtype=np.int32) for _ in range(2))
        opened[first[is_chunk]] += 1
        closed[last[is_chunk] + 1] = 1
        number = opened[:-1].cumsum(dtype=np.int32) - 1
        # Between two chunks as many are closed as opened.
        inside = (number + 1 > closed[:-1].cumsum()) & side.on_axis
        chunks.append(np.where(inside, number, np.int32(-1)))
    ends = (sides_that_end == 2).nonzero()[0]
    return chunks[0], chunks[1], np.diff(np.searchsorted(ends, bases))


def _one_after_another(units: Sequence[Placed], bases: Numbers) -> Placed:
    """The tokens of all units on one axis, on which each unit begins at its base."""

    def moved(name: str) -> Numbers:
        places = [getattr(unit, name) for unit in units]
        return np.concatenate([np.where(at >= 0, at + base, -1) for at, base in zip(places, bases[:-1], strict=True)])

    return Placed(
        moved("begin"),
        moved("end"),
        np.concatenate([unit.cover for unit in units]),
        np.concatenate([unit.on_axis for unit in units]),
    )


def _possible_chunks(side: Placed, other: Placed, size: int) -> tuple[Numbers, Numbers]:
    """First and last token of every run of a side that is a chunk if the other side has one with the same end."""
    other_begins, other_ends = np.zeros(size + 1, dtype=np.bool_), np.zeros(size + 1, dtype=np.bool_)
    other_begins[other.begin[other.begin >= 0]] = True
    other_ends[other.end[other.end >= 0]] = True
    opens = (side.begin >= 0) & other_begins[side.begin]
    last = ((side.end >= 0) & other_ends[side.end]).nonzero()[0]
    # A run begins with the latest token that may open one.
    first = np.maximum.accumulate(np.where(opens, np.arange(len(opens)), -1))[last]
    last, first = last[first >= 0], first[first >= 0]
    # Without a hole its tokens cover all that lies between its ends.
    covered = side.cover.cumsum()
    whole = covered[last] - covered[first] + side.cover[first] == side.end[last] - side.begin[first]
    # Bytes of a character that a normaliser takes away cover nothing, and nothing is no chunk.
    whole &= side.end[last] > side.begin[first]
    first, last = first[whole], last[whole]
    # Nor do they belong to the chunk that has ended before them.
    new_end = np.ones(len(last), dtype=np.bool_)
    new_end[1:] = side.end[last[1:]] > side.end[last[:-1]]
    return first[new_end], last[new_end]


# Common stretches of two texts


def common_stretches(one: Text, other: Text) -> list[Stretch]:
    """Finds stretches that both texts have, in the same order, in linear time.

    A common beginning and a common end come first. Between them, stretches grow from windows of 32 bytes, then of 8,
    that occur once on each side; of those that cross each other the longest chain is kept (the idea of patience diff).

    Args:
        one: uint8 (n,).
        other: uint8 (m,).

    Returns:
        Stretches, ascending on both sides and without overlap; every one is equal bytes.

    >>> text = lambda string: np.frombuffer(string.encode(), dtype=np.uint8)
    >>> common_stretches(text("user: hello"), text("hello"))
    [(6, 0, 5)]
    """
    stretches: list[Stretch] = []
    _add_stretches(one, other, 0, 0, _WINDOWS, stretches)
    return stretches


def _add_stretches(
    one: Text, other: Text, one_at: int, other_at: int, windows: tuple[int, ...], stretches: list[Stretch]
) -> None:
    """Appends the stretches of two parts of the texts that begin at `one_at` and `other_at`."""
    head = _equal_run(one, other)
    if head:
        stretches.append((one_at, other_at, head))
        one, other, one_at, other_at = one[head:], other[head:], one_at + head, other_at + head
    tail = _equal_run(one[::-1], other[::-1])
    one, other = one[: len(one) - tail], other[: len(other) - tail]
    if windows and min(len(one), len(other)) >= windows[0]:
        one_done, other_done = 0, 0
        for start, other_start, length in [*_anchors(one, other, windows[0]), (len(one), len(other), 0)]:
            # Between two anchors lies what no window of this size could find.
            gap, other_gap = one[one_done:start], other[other_done:other_start]
            _add_stretches(gap, other_gap, one_at + one_done, other_at + other_done, windows[1:], stretches)
            if length:
                stretches.append((one_at + start, other_at + other_start, length))
            one_done, other_done = start + length, other_start + length
    elif len(windows) > 1:
        _add_stretches(one, other, one_at, other_at, windows[1:], stretches)
    if tail:
        stretches.append((one_at + len(one), other_at + len(other), tail))


def _equal_run(one: Text, other: Text) -> int:
    """How many bytes are equal from the beginning on."""
    size = min(len(one), len(other))
    step, done = 64, 0
    while done < size:
        end = min(size, done + step)
        differs = one[done:end] != other[done:end]
        if differs.any():
            return done + int(differs.argmax())
        done, step = end, step * 4
    return size


def _anchors(one: Text, other: Text, window: int) -> list[Stretch]:
    """Stretches around windows that occur once on each side, ascending on both and without overlap."""
    one_codes, one_places = _unique_windows(one, window)
    other_codes, other_places = _unique_windows(other, window)
    _, one_at, other_at = np.intersect1d(one_codes, other_codes, assume_unique=True, return_indices=True)
    starts, other_starts = one_places[one_at], other_places[other_at]
    order = starts.argsort()
    starts, other_starts = starts[order], other_starts[order]
    # Windows that follow each other on both sides are one stretch.
    begins = np.ones(len(starts), dtype=np.bool_)
    begins[1:] = (starts[1:] - starts[:-1] != 1) | (other_starts[1:] - other_starts[:-1] != 1)
    first = begins.nonzero()[0]
    lengths = np.diff(first, append=len(starts)) + window - 1
    seeds = zip(starts[first].tolist(), other_starts[first].tolist(), lengths.tolist(), strict=True)
    return _without_overlap(_longest_chain(_grown(one, other, list(seeds))))


def _unique_windows(text: Text, window: int) -> tuple[NDArray[np.uint64], Numbers]:
    """The codes of the windows that occur once, ascending, and where they begin.

    The code of a window is the sum of (byte + 1) * factor ** position in the window modulo 2^64 (a rolling hash): the
    difference of two running sums, divided by the power where the window begins.
    """
    powers = np.full(len(text) + 1, _FACTOR, dtype=np.uint64)
    powers[0] = 1
    powers = np.cumprod(powers)
    sums = np.zeros(len(text) + 1, dtype=np.uint64)
    np.cumsum((text + np.uint64(1)) * powers[:-1], out=sums[1:])
    inverses = np.full(len(text) - window + 1, _INVERSE, dtype=np.uint64)
    inverses[0] = 1
    codes = (sums[window:] - sums[:-window]) * np.cumprod(inverses)
    values, places, counts = np.unique(codes, return_index=True, return_counts=True)
    return values[counts == 1], places[counts == 1]


def _grown(one: Text, other: Text, seeds: list[Stretch]) -> list[Stretch]:
    """The stretches as far as they go in both directions; those whose bytes differ (equal codes by chance) left out."""
    grown: list[Stretch] = []
    for start, other_start, length in seeds:
        if grown and start - grown[-1][0] == other_start - grown[-1][1] and start < grown[-1][0] + grown[-1][2]:
            continue
        if not np.array_equal(one[start : start + length], other[other_start : other_start + length]):
            continue
        before = _equal_run(one[:start][::-1], other[:other_start][::-1])
        after = _equal_run(one[start + length :], other[other_start + length :])
        grown.append((start - before, other_start - before, before + length + after))
    return grown


def _longest_chain(stretches: list[Stretch]) -> list[Stretch]:
    """The chain, ascending on both sides, with most stretches (patience sorting).

    Stretches come in the order of the one text. Each goes on the leftmost pile whose top ends no earlier in the other
    text, and remembers the top of the pile to its left: from the last pile backwards these make the chain.
    """
    stretches = sorted(set(stretches))
    tops: list[int] = []
    piles: list[int] = []
    previous = [-1] * len(stretches)
    for at, (_, other_start, length) in enumerate(stretches):
        pile = bisect_left(tops, other_start + length)
        previous[at] = piles[pile - 1] if pile else -1
        if pile == len(tops):
            tops.append(other_start + length)
            piles.append(at)
        else:
            tops[pile], piles[pile] = other_start + length, at
    chain: list[Stretch] = []
    at = piles[-1] if piles else -1
    while at >= 0:
        chain.append(stretches[at])
        at = previous[at]
    return chain[::-1]


def _without_overlap(chain: list[Stretch]) -> list[Stretch]:
    """The chain with every overlap taken from the later stretch."""
    apart: list[Stretch] = []
    end = other_end = 0
    for start, other_start, length in chain:
        cut = max(end - start, other_end - other_start, 0)
        if cut < length:
            apart.append((start + cut, other_start + cut, length - cut))
            end, other_end = start + length, other_start + length
    return apart
