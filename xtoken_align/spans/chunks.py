"""Chunks of units whose two sides say the same text, or one the beginning of the other's: the fast path.

Both sides' tokens are laid along one axis of bytes. A *chunk* is the run between two neighbouring byte boundaries that
both sides have: sums, two marks and an intersection over the whole batch. The student's and the teacher's tokens stand
in one array, the teacher's after the student's, since numpy charges by the call.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .specials import matched
from .tables import PairTables
from .units import Ids, offsets_of, runs

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]

T = TypeVar("T", np.int32, np.int64)

_BLOCK = 1 << 16
"""Tokens looked at together: what they need stays in the processor's second-level cache."""


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
    student_ids: Ids, student_counts: Numbers, teacher_ids: Ids, teacher_counts: Numbers, tables: PairTables
) -> Chunks:
    """Aligns units by the bytes of their tokens.

    Args:
        student_ids: int (tokens,), the student's ids, one unit after another.
        student_counts: int64 (units,), tokens per unit.
        teacher_ids: the same of the teacher.
        teacher_counts: the same.
        tables: the pair's tables.

    Returns:
        The chunks. Every one has been compared: its two sides' bytes are equal.
    """
    if len(student_ids) + len(teacher_ids) <= 2 * _BLOCK:
        return _block(student_ids, student_counts, teacher_ids, teacher_counts, tables)
    offsets = offsets_of(student_counts), offsets_of(teacher_counts)
    cuts = _cuts(offsets[0] + offsets[1])
    student, teacher = np.empty(len(student_ids), dtype=np.int32), np.empty(len(teacher_ids), dtype=np.int32)
    count, differs = np.empty(len(student_counts), dtype=np.int64), np.empty(len(student_counts), dtype=np.bool_)
    base = 0
    for first, last in pairwise(cuts):
        ours, theirs = (slice(*side[[first, last]].tolist()) for side in offsets)
        units = slice(first, last)
        part = _block(student_ids[ours], student_counts[units], teacher_ids[theirs], teacher_counts[units], tables)
        for whole, where, chunk in ((student, ours, part.student), (teacher, theirs, part.teacher)):
            np.add(chunk, (chunk >= 0) * np.int32(base), out=whole[where])
        count[units], differs[units] = part.count, part.differs
        base += int(part.count.sum())
    return Chunks(student, teacher, count, differs)


def _cuts(offsets: Numbers) -> list[int]:
    """Where to cut units into blocks of about `_BLOCK` tokens."""
    units = len(offsets) - 1
    wanted = np.arange(_BLOCK, int(offsets[-1]), _BLOCK)
    return sorted({0, units, *np.minimum(offsets.searchsorted(wanted), units).tolist()})


def _block(
    student_ids: Ids, student_counts: Numbers, teacher_ids: Ids, teacher_counts: Numbers, tables: PairTables
) -> Chunks:
    laid = _Laid(
        np.concatenate((student_ids, teacher_ids + len(tables.student))),
        np.concatenate((student_counts, teacher_counts)),
        tables,
    )
    rest = laid.meet()
    chunk = laid.chunk
    differs = np.zeros(laid.units, dtype=np.bool_)
    if laid.uneven:
        first = laid.tails()
        tails = runs(first, laid.offsets[1:] - first)
        open_ = np.zeros(len(chunk), dtype=np.bool_)
        open_[tails] = True
        rest = rest[~open_[rest]]
        differs |= laid.tails_differ(first)
        if tables.student.ends_words or tables.teacher.ends_words:
            # The longer text may have nothing more than a space that its last word invents.
            differs |= laid.totals[0] != laid.totals[1]
    if len(rest):
        differs |= laid.different(rest)
    chunk[laid.middle :] -= laid.until[laid.units]
    count = laid.until[1 : laid.units + 1] - laid.until[: laid.units]
    if laid.uneven:
        chunk[tails] = -1
    if differs.any():
        kept = np.where(differs, 0, count)
        shift = (offsets_of(count) - offsets_of(kept))[:-1].astype(np.int32)
        tokens = laid.counts
        chunk -= np.concatenate((shift, shift)).repeat(tokens) * (chunk >= 0)
        chunk[np.concatenate((differs, differs)).repeat(tokens)] = -1
        count = kept
    chunk = laid.back(chunk)
    return Chunks(chunk[: len(student_ids)], chunk[len(student_ids) :], count, differs)


class _Laid:
    """Tokens laid along the axis. Arrays over "sides" have the student's units first, then the teacher's.

    Args:
        ids: int64 (tokens,), the student's ids, then the teacher's as `PairTables` counts them.
        counts: int64 (sides,), tokens of each unit on each side.
        tables: the pair's tables.
    """

    def __init__(self, ids: Numbers, counts: Numbers, tables: PairTables) -> None:
        self.tables = tables
        self.all = len(ids)
        self.units = len(counts) // 2
        self.ids = ids
        self.counts = counts
        self.offsets = offsets_of(counts)
        self.lengths = tables.lengths.take(ids)
        self.numbers = tables.text.take(ids)
        self.trimmed: Numbers | None = None
        self.kept: Numbers | None = None
        if tables.student.encoder.dummy_prefix or tables.teacher.encoder.dummy_prefix:
            self._trim()
        if len(ids) and not self.lengths.min():
            self._pair_specials()
            self._drop_gaps()
        self.middle = int(self.offsets[self.units])
        self.ends = self.lengths.cumsum(dtype=np.int64)
        reached = self._until(self.ends)
        self.totals = (reached[1:] - reached[:-1]).reshape(2, self.units)
        self.uneven = bool((self.totals[0] != self.totals[1]).any())
        if self.uneven:
            base = offsets_of(self.totals.max(axis=0))
            self.base, self.size = base[:-1], int(base[-1])
            self.ends += (np.concatenate((self.base, self.base)) - reached[:-1]).repeat(self.counts)
        else:
            self.size = int(reached[self.units])
            self.ends[self.middle :] -= self.size

    def _trim(self) -> None:
        """Takes the dummy prefix away where the other side's text does not begin with a space."""
        spoken = self.lengths.nonzero()[0]
        first = np.append(spoken, self.all)[spoken.searchsorted(self.offsets[:-1])]
        begins = first < self.offsets[1:]
        spaced = np.zeros(len(first), dtype=np.bool_)
        spaced[begins] = self.tables.spaced[self.ids[first[begins]]]
        ours, theirs = spaced[: self.units], spaced[self.units :]
        may = self.tables.student.encoder.dummy_prefix, self.tables.teacher.encoder.dummy_prefix
        spare = np.concatenate((ours & ~theirs & may[0], theirs & ~ours & may[1]))
        self.trimmed = first[spare]
        self.lengths[self.trimmed] -= 1
        self.numbers[first[spare]] = np.where(self.trimmed < self.offsets[self.units], -2, -3)

    def _pair_specials(self) -> None:
        """Gives specials that correspond one place on the axis, so that they become chunks like everything else."""
        gaps = (self.lengths == 0).nonzero()[0]
        rows = self.tables.special[self.ids[gaps]]
        gaps, rows = gaps[rows >= 0], rows[rows >= 0]
        middle = int(gaps.searchsorted(self.offsets[self.units]))
        if not 0 < middle < len(gaps):
            return
        ends = np.concatenate((_ZERO, self.lengths.cumsum(dtype=np.int64)))
        side = self.offsets.searchsorted(gaps, side="right") - 1
        places = ((side % self.units) << 40) + ends[gaps] - ends[self.offsets[side]]
        same = self.tables.same_special
        ours, theirs = matched(rows[:middle], places[:middle], rows[middle:], places[middle:], same)
        pairs = np.concatenate((gaps[ours], gaps[middle + theirs]))
        self.lengths[pairs] = 1
        self.numbers[pairs] = -1

    def _drop_gaps(self) -> None:
        self.kept = self.lengths.nonzero()[0]
        self.ids, self.lengths = self.ids[self.kept], self.lengths[self.kept]
        self.numbers = self.numbers[self.kept]
        self.offsets = self.kept.searchsorted(self.offsets)
        self.counts = self.offsets[1:] - self.offsets[:-1]

    def back(self, chunk: NDArray[np.int32]) -> NDArray[np.int32]:
        """int32 (all tokens,), from a value per token with a length; -1 for the others."""
        if self.kept is None:
            return chunk
        out = np.full(self.all, -1, dtype=np.int32)
        out[self.kept] = chunk
        return out

    def meet(self) -> Numbers:
        """Finds the ends that both sides have: `chunk`, the number of them before each token, and `until`, per side.

        Returns:
            The positions of the tokens that do not end where an equal token of the other side ends. Equal tokens with
            one end have one beginning: they are a chunk of one token each, already compared.
        """
        middle = self.middle
        met = np.empty(len(self.ids), dtype=np.int32)
        ours, theirs = slice(0, middle), slice(middle, len(met))
        for here, there in ((ours, theirs), (theirs, ours)):
            axis = np.zeros(self.size + 1, dtype=np.int32)
            axis[self.ends[there]] = self.numbers[there]
            # Ends lie on the axis by construction; without a check taking is faster.
            axis.take(self.ends[here], out=met[here], mode="clip")
        common = met != 0
        self.chunk = common.cumsum(dtype=np.int32)
        self.until = self._until(self.chunk)
        self.chunk -= common
        rest: Numbers = (met != self.numbers).nonzero()[0]
        return rest

    def different(self, rest: Numbers) -> Flags:
        """Units, bool (units,), whose chunks of tokens that are not equal have other bytes on the two sides."""
        said = self._said(rest)
        wrong = said[: len(said) // 2] != said[len(said) // 2 :]
        differs = np.zeros(self.units, dtype=np.bool_)
        if wrong.any():
            tokens = rest[: rest.searchsorted(self.middle)]
            wrong_tokens = tokens.repeat(self.lengths[tokens])[wrong]
            differs[self.offsets.searchsorted(wrong_tokens, side="right") - 1] = True
        return differs

    def tails(self) -> Numbers:
        """Tokens, int64 (sides,): the first after the last chunk of a side."""
        some = self.until[1:] > self.until[:-1]
        first = self.offsets[:-1].copy()
        # It is the first before which so many chunks are closed.
        first[some] = self.chunk.searchsorted(self.until[1:][some])
        return first

    def tails_differ(self, first: Numbers) -> Flags:
        """Units, bool (units,), where what follows the last chunk is not one text, as far as both sides go."""
        shorter = self.totals.min(axis=0)
        base, least = np.concatenate((self.base, self.base)), np.concatenate((shorter, shorter))
        some = self.until[1:] > self.until[:-1]
        reached = np.where(some, self.ends[np.where(some, first - 1, 0)] - base, 0)
        left = least - reached
        stop = np.empty_like(first)
        for half in (slice(0, self.units), slice(self.units, 2 * self.units)):
            begin, end = self.offsets[half.start], self.offsets[half.stop]
            stop[half] = begin + self.ends[begin:end].searchsorted(base[half] + least[half]) + 1
        counts = np.where(left > 0, np.minimum(stop, self.offsets[1:]) - first, 0)
        said = self._said(runs(first, counts))
        spoken = counts > 0
        lengths = np.zeros_like(left)
        lengths[spoken] = self.ends[(first + counts - 1)[spoken]] - (base + reached)[spoken]
        texts = said[runs(offsets_of(lengths)[:-1], left)]
        wrong = texts[: len(texts) // 2] != texts[len(texts) // 2 :]
        differs = np.zeros(self.units, dtype=np.bool_)
        differs[np.arange(self.units).repeat(left[: self.units])[wrong]] = True
        return differs

    def _until(self, values: NDArray[T]) -> NDArray[T]:
        """A running sum over the tokens as it stands before every side, and after the last."""
        made = np.zeros(len(self.offsets), dtype=values.dtype)
        some = self.offsets > 0
        made[some] = values[self.offsets[some] - 1]
        return made

    def _said(self, tokens: Numbers) -> NDArray[np.uint8]:
        """uint8, the bytes of tokens, one after another."""
        lengths = self.lengths[tokens]
        begins = self.tables.begins[self.ids[tokens]]
        if self.trimmed is not None and len(self.trimmed):
            begins += np.isin(tokens if self.kept is None else self.kept[tokens], self.trimmed)
        return self.tables.blob[runs(begins, lengths)]


_ZERO = np.zeros(1, dtype=np.int64)
