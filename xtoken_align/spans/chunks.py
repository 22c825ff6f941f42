"""Chunks of units whose two sides say the same text, or one the beginning of the other's: the fast path.

A *chunk* is the run between two neighbouring byte boundaries that both sides have. "x = 123", where the student has a
token `123` and the teacher has single digits:

    student   x  " ="  " "  123          ends  1 3 4 7          chunk  0 1 2 3
    teacher   x  " ="  " "  1  2  3      ends  1 3 4 5 6 7      chunk  0 1 2 3 3 3

1, 3, 4 and 7 are common ends, and a token's chunk is the number of common ends before its own. So a whole batch takes a
few cumulative sums and one look-up per token, and time grows with the length alone. The student's and the teacher's
tokens stand in one array, the teacher's after the student's, since numpy charges by the call.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .tables import PairTables, paired_specials
from .units import Flags, Numbers, offsets_of, runs

T = TypeVar("T", np.int32, np.int64)

BLOCK_TOKENS = 1 << 16
"""Tokens looked at together: what they need stays in the processor's second-level cache."""

_SPECIAL, _STUDENT_TRIMMED, _TEACHER_TRIMMED = -1, -2, -3
"""Numbers in place of a surface's: equal for paired specials, different for tokens that lost a dummy prefix."""


@dataclass(frozen=True, eq=False)
class Chunks:
    """The chunks of some units.

    Attributes:
        student: int32 (student tokens,), chunk ids that count up through all units, -1 outside every chunk.
        teacher: int32 (teacher tokens,).
        count: int64 (units,), chunks per unit.
        differs: bool (units,), units that have no chunks here, since neither text is the beginning of the other.
    """

    student: NDArray[np.int32]
    teacher: NDArray[np.int32]
    count: Numbers
    differs: Flags


def chunks_of(
    student_ids: Numbers,
    student_counts: Numbers,
    teacher_ids: Numbers,
    teacher_counts: Numbers,
    tables: PairTables,
    *,
    whole_texts: bool = False,
    block_tokens: int = BLOCK_TOKENS,
) -> Chunks:
    """Aligns units by the bytes of their tokens.

    Args:
        student_ids: int (tokens,), the student's ids, one unit after another.
        student_counts: int64 (units,), tokens per unit.
        teacher_ids: the same of the teacher.
        teacher_counts: the same.
        tables: the pair's tables.
        whole_texts: whether both sides are one whole text: then a difference of one space is a dummy prefix.
        block_tokens: about how many tokens are looked at together; units are not cut.

    Returns:
        The chunks. Every one has been compared: its two sides' bytes are equal.
    """
    if len(student_ids) + len(teacher_ids) <= 2 * block_tokens:
        return _chunks_of_block(
            student_ids, student_counts, teacher_ids, teacher_counts, tables, whole_texts=whole_texts
        )
    offsets = offsets_of(student_counts), offsets_of(teacher_counts)
    both = offsets[0] + offsets[1]
    units = len(student_counts)
    block_ends = np.arange(block_tokens, int(both[-1]), block_tokens)
    cuts = sorted({0, units, *np.minimum(both.searchsorted(block_ends), units).tolist()})
    student, teacher = np.empty(len(student_ids), dtype=np.int32), np.empty(len(teacher_ids), dtype=np.int32)
    count, differs = np.empty(units, dtype=np.int64), np.empty(units, dtype=np.bool_)
    chunks_before = 0
    for first, last in pairwise(cuts):
        student_part, teacher_part = (slice(*side[[first, last]].tolist()) for side in offsets)
        block = slice(first, last)
        part = _chunks_of_block(
            student_ids[student_part],
            student_counts[block],
            teacher_ids[teacher_part],
            teacher_counts[block],
            tables,
            whole_texts=whole_texts,
        )
        for whole, where, chunk in ((student, student_part, part.student), (teacher, teacher_part, part.teacher)):
            np.add(chunk, (chunk >= 0) * np.int32(chunks_before), out=whole[where])
        count[block], differs[block] = part.count, part.differs
        chunks_before += int(part.count.sum())
    return Chunks(student, teacher, count, differs)


def _chunks_of_block(
    student_ids: Numbers,
    student_counts: Numbers,
    teacher_ids: Numbers,
    teacher_counts: Numbers,
    tables: PairTables,
    *,
    whole_texts: bool,
) -> Chunks:
    """Finds the ends that both sides have, numbers the chunks by them, and compares the bytes.

    Every token leaves the number of its surface at its end on the axis, and every token of the other side takes what
    lies at its own end. Of the text "ab cd", surfaces numbered ab 1, " cd" 2, " " 3, cd 4:

        student  ab " cd"       ends 2 5       takes  1 4    both ends are common; 1 is the token's own number
        teacher  ab " " cd      ends 2 3 5     takes  1 0 2  0: the student has no end at 3

    A token that takes its own number is a chunk by itself and needs no comparison: equal tokens with one end have one
    beginning. The bytes of all others are compared.
    """
    axis = _lay(
        np.concatenate((student_ids, teacher_ids + len(tables.student))),
        np.concatenate((student_counts, teacher_counts)),
        tables,
        whole_texts=whole_texts,
    )
    units, middle = axis.units, axis.middle
    taken = np.empty(len(axis.ids), dtype=np.int32)
    student, teacher = slice(0, middle), slice(middle, len(taken))
    for here, there in ((student, teacher), (teacher, student)):
        marks = np.zeros(axis.size + 1, dtype=np.int32)
        marks[axis.ends[there]] = axis.numbers[there]
        # Ends lie on the axis by construction; `take` is faster where it need not check that.
        marks.take(axis.ends[here], out=taken[here], mode="clip")
    is_common = taken != 0
    # A token's chunk is the number of common ends before its own, on both sides through all units.
    chunk = is_common.cumsum(dtype=np.int32)
    common_before = _before_each_side(chunk, axis.offsets)
    chunk -= is_common
    unequal: Numbers = (taken != axis.numbers).nonzero()[0]
    differs = np.zeros(units, dtype=np.bool_)
    if axis.base is not None:
        tail, differs = _compare_tails(axis, chunk, common_before)
        unequal = unequal[~tail[unequal]]
        if tables.student.ends_words or tables.teacher.ends_words:
            # The longer text may have nothing more than a space that its last word invents.
            differs |= axis.totals[0] != axis.totals[1]
    if len(unequal):
        differs[_units_with_other_bytes(axis, unequal)] = True
    # The teacher's tokens came after all of the student's; their chunks count from 0 too.
    chunk[middle:] -= common_before[units]
    count = common_before[1 : units + 1] - common_before[:units]
    if axis.base is not None:
        chunk[tail] = -1
    if differs.any():
        # Units that differ lose their chunks, and those of later units move up.
        count_kept = np.where(differs, 0, count)
        shift = (offsets_of(count) - offsets_of(count_kept))[:-1].astype(np.int32)
        chunk -= np.concatenate((shift, shift)).repeat(axis.counts) * (chunk >= 0)
        chunk[np.concatenate((differs, differs)).repeat(axis.counts)] = -1
        count = count_kept
    if axis.positions is not None:
        of_tokens_with_bytes = chunk
        chunk = np.full(len(student_ids) + len(teacher_ids), -1, dtype=np.int32)
        chunk[axis.positions] = of_tokens_with_bytes
    return Chunks(chunk[: len(student_ids)], chunk[len(student_ids) :], count, differs)


def _units_with_other_bytes(axis: _Axis, tokens: Numbers) -> Numbers:
    """The units in which some of these tokens of both sides, which cover as many bytes, cover other ones."""
    # One half of the bytes is the student's.
    data = axis.bytes_of(tokens)
    wrong = data[: len(data) // 2] != data[len(data) // 2 :]
    of_student = tokens[: tokens.searchsorted(axis.middle)]
    wrong_tokens = of_student.repeat(axis.lengths[of_student])[wrong]
    units: Numbers = axis.offsets.searchsorted(wrong_tokens, side="right") - 1
    return units


class _Axis(NamedTuple):
    """The tokens that cover a piece of the axis. A "side" is one unit on one side: the student's sides come first.

    Attributes:
        tables: the pair's tables.
        ids: int64 (tokens,), the student's ids, then the teacher's as `PairTables` counts them.
        counts: int64 (sides,), tokens of each side.
        offsets: int64 (sides + 1,), where each side's tokens begin.
        lengths: int32 (tokens,), bytes that a token covers; a paired special covers one.
        numbers: int32 (tokens,), never 0: equal numbers are equal bytes.
        ends: int64 (tokens,), where each ends on the axis; a unit begins at the same place on both sides.
        totals: int64 (2, units), bytes of each side.
        base: int64 (units,), where each unit begins on the axis; None where no unit is longer on one side.
        size: the axis' length.
        positions: int64 (tokens,), where these tokens stand among all; None where they are all.
        trimmed: int64, the positions among all tokens of those that lost a dummy prefix; None where none did.
        units: how many units there are.
        middle: where the teacher's tokens begin.
    """

    tables: PairTables
    ids: Numbers
    counts: Numbers
    offsets: Numbers
    lengths: NDArray[np.int32]
    numbers: NDArray[np.int32]
    ends: Numbers
    totals: Numbers
    base: Numbers | None
    size: int
    positions: Numbers | None
    trimmed: Numbers | None
    units: int
    middle: int

    def bytes_of(self, tokens: Numbers) -> NDArray[np.uint8]:
        """uint8, the bytes of tokens, one after another."""
        begins = self.tables.begins[self.ids[tokens]]
        if self.trimmed is not None and len(self.trimmed):
            begins += np.isin(tokens if self.positions is None else self.positions[tokens], self.trimmed)
        return self.tables.blob[runs(begins, self.lengths[tokens])]


def _lay(ids: Numbers, counts: Numbers, tables: PairTables, *, whole_texts: bool) -> _Axis:
    """Lays tokens along the axis, without those that cover nothing of it.

    Two units, "ab" and "c", where the teacher goes on with "d" in the second:

        sides            student "ab"   student "c"   teacher "ab"   teacher "c" "d"
        running length   2              3             5              6 7
        base             0              2             0              2
        ends             2              3             2              3 4                 size 4

    The base of a unit is the sum of the longer sides of the units before it.
    """
    units = len(counts) // 2
    offsets = offsets_of(counts)
    lengths, numbers = tables.lengths.take(ids), tables.text.take(ids)
    trimmed = positions = base = None
    if tables.student.encoder.dummy_prefix or tables.teacher.encoder.dummy_prefix:
        trimmed = _spare_dummy_prefixes(ids, offsets, lengths, tables, whole_texts=whole_texts)
        lengths[trimmed] -= 1
        numbers[trimmed] = np.where(trimmed < offsets[units], _STUDENT_TRIMMED, _TEACHER_TRIMMED)
    if len(ids) and not lengths.min():
        paired = _specials_with_counterpart(ids, offsets, lengths, tables)
        lengths[paired], numbers[paired] = 1, _SPECIAL
        positions = lengths.nonzero()[0]
        ids, lengths, numbers = ids[positions], lengths[positions], numbers[positions]
        offsets = positions.searchsorted(offsets)
        counts = offsets[1:] - offsets[:-1]
    middle = int(offsets[units])
    ends = lengths.cumsum(dtype=np.int64)
    bytes_before = _before_each_side(ends, offsets)
    totals = (bytes_before[1:] - bytes_before[:-1]).reshape(2, units)
    if (totals[0] != totals[1]).any():
        bases = offsets_of(totals.max(axis=0))
        base, size = bases[:-1], int(bases[-1])
        ends += (np.concatenate((base, base)) - bytes_before[:-1]).repeat(counts)
    else:
        size = int(bytes_before[units])
        ends[middle:] -= size
    return _Axis(
        tables, ids, counts, offsets, lengths, numbers, ends, totals, base, size, positions, trimmed, units, middle
    )


def _spare_dummy_prefixes(
    ids: Numbers, offsets: Numbers, lengths: NDArray[np.int32], tables: PairTables, *, whole_texts: bool
) -> Numbers:
    """Positions of the tokens that begin a text with a dummy prefix where the other side's text has no such space.

    Of " a" against "a" the space is one; and of "  a" against " a", if these are whole texts.
    """
    units = (len(offsets) - 1) // 2
    with_bytes = lengths.nonzero()[0]
    first: Numbers = np.append(with_bytes, len(ids))[with_bytes.searchsorted(offsets[:-1])]
    has_first = first < offsets[1:]
    spaced = np.zeros(len(first), dtype=np.bool_)
    spaced[has_first] = tables.spaced[ids[first[has_first]]]
    student, teacher = spaced[:units], spaced[units:]
    longer = np.zeros(units, dtype=np.int64)
    if (
        whole_texts
        and (student & teacher).any()
        and tables.student.encoder.dummy_prefix != tables.teacher.encoder.dummy_prefix
    ):
        bytes_of = np.diff(offsets_of(lengths)[offsets]).reshape(2, units)
        longer = np.where(student & teacher, bytes_of[0] - bytes_of[1], 0)
    is_spare = np.concatenate(
        (
            student & (~teacher | (longer == 1)) & tables.student.encoder.dummy_prefix,
            teacher & (~student | (longer == -1)) & tables.teacher.encoder.dummy_prefix,
        )
    )
    spare: Numbers = first[is_spare]
    return spare


def _specials_with_counterpart(
    ids: Numbers, offsets: Numbers, lengths: NDArray[np.int32], tables: PairTables
) -> Numbers:
    """Positions of the specials that correspond to one at the same place on the other side."""
    units = (len(offsets) - 1) // 2
    silent = (lengths == 0).nonzero()[0]
    rows = tables.special[ids[silent]]
    silent, rows = silent[rows >= 0], rows[rows >= 0]
    of_student = int(silent.searchsorted(offsets[units]))
    if not 0 < of_student < len(silent):
        return np.zeros(0, dtype=np.int64)
    bytes_before = offsets_of(lengths)
    side = offsets.searchsorted(silent, side="right") - 1
    # The unit in the high bits, the bytes of the unit before the special in the low ones.
    places = ((side % units) << 40) + bytes_before[silent] - bytes_before[offsets[side]]
    left, right = paired_specials(
        rows[:of_student], places[:of_student], rows[of_student:], places[of_student:], tables.same_special
    )
    return np.concatenate((silent[left], silent[of_student + right]))


def _before_each_side(running: NDArray[T], offsets: Numbers) -> NDArray[T]:
    """A running sum over the tokens as it stands before every side, and after the last.

    >>> _before_each_side(np.array([2, 3, 5, 6, 7]), np.array([0, 1, 2, 2, 5])).tolist()
    [0, 2, 3, 3, 7]
    """
    before = np.zeros(len(offsets), dtype=running.dtype)
    not_first = offsets > 0
    before[not_first] = running[offsets[not_first] - 1]
    return before


def _compare_tails(axis: _Axis, chunk: NDArray[np.int32], common_before: NDArray[np.int32]) -> tuple[Flags, Flags]:
    """Which tokens come after their side's last common end, and in which units these tails are not one text.

    Of the text "ab cd" the student has `ab` and ` c`, the teacher `ab` and ` `. The last common end is 2, the tails
    are " c" and " ". They are compared as far as both go, one byte, so the unit does not differ.

    Args:
        axis: the tokens.
        chunk: int32 (tokens,), common ends before each token.
        common_before: int32 (sides + 1,), common ends before each side.

    Returns:
        bool (tokens,) and bool (units,).
    """
    assert axis.base is not None
    units = axis.units
    has_common = common_before[1:] > common_before[:-1]
    first = axis.offsets[:-1].copy()
    # A side's tail begins with the first token before which all of the side's common ends lie.
    first[has_common] = chunk.searchsorted(common_before[1:][has_common])
    is_tail = np.zeros(len(chunk), dtype=np.bool_)
    is_tail[runs(first, axis.offsets[1:] - first)] = True
    # Of each tail, the bytes up to the end of the shorter side.
    shorter = axis.totals.min(axis=0)
    base, limit = np.concatenate((axis.base, axis.base)), np.concatenate((shorter, shorter))
    tail_begin = np.where(has_common, axis.ends[np.where(has_common, first - 1, 0)] - base, 0)
    tail_bytes = limit - tail_begin
    stop = np.empty_like(first)
    for half in (slice(0, units), slice(units, 2 * units)):
        begin, end = axis.offsets[half.start], axis.offsets[half.stop]
        stop[half] = begin + axis.ends[begin:end].searchsorted(base[half] + limit[half]) + 1
    counts = np.where(tail_bytes > 0, np.minimum(stop, axis.offsets[1:]) - first, 0)
    data = axis.bytes_of(runs(first, counts))
    has_tail = counts > 0
    lengths = np.zeros_like(tail_bytes)
    lengths[has_tail] = axis.ends[(first + counts - 1)[has_tail]] - (base + tail_begin)[has_tail]
    tails = data[runs(offsets_of(lengths)[:-1], tail_bytes)]
    wrong = tails[: len(tails) // 2] != tails[len(tails) // 2 :]
    differs = np.zeros(units, dtype=np.bool_)
    differs[np.arange(units).repeat(tail_bytes[:units])[wrong]] = True
    return is_tail, differs
