"""Units whose two sides say different bytes: what they have in common becomes an axis, and tokens find their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .covered import Placed
from .fold import Folding
from .specials import matched
from .stretches import Stretch, common_stretches
from .tables import PairTables
from .units import runs

Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Said:
    """What one side's tokens say, on that side's own axis.

    Attributes:
        text: uint8, what is compared.
        begin: int64 (tokens,), where each token begins in it.
        end: int64 (tokens,), where each ends.
        sharp_begin: bool (tokens,), whether a boundary compares there.
        sharp_end: bool (tokens,).
        speaks: bool (tokens,), whether a token says anything; one inside a character that folding changed may cover
            nothing of the text and yet speak.
        specials: int32 (tokens,), rows or columns of the pair's table, -1 for others.
    """

    text: NDArray[np.uint8]
    begin: Numbers
    end: Numbers
    sharp_begin: NDArray[np.bool_]
    sharp_end: NDArray[np.bool_]
    speaks: NDArray[np.bool_]
    specials: NDArray[np.int32]


@lru_cache(maxsize=8)
def folding_of(tables: PairTables) -> Folding:
    """The pair's folding; kept for the characters it has met."""
    return Folding(tables.student, tables.teacher)


def surfaces_of(ids: Numbers, tables: PairTables) -> NDArray[np.uint8]:
    """The bytes of tokens' surfaces, uint8; `ids` as `PairTables` counts them."""
    return tables.blob[runs(tables.begins[ids], tables.lengths[ids])]


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


def said_by(ids: Numbers, tables: PairTables, *, trim: bool, fold: bool = True) -> Said:
    """What tokens say, folded as the pair's normalisers fold.

    Args:
        ids: int64 (tokens,), ids as `PairTables` counts them.
        tables: the pair's tables.
        trim: whether the first token has a dummy prefix.
        fold: whether to fold at all.
    """
    lengths = tables.lengths[ids].astype(np.int64)
    text = surfaces_of(ids, tables).tobytes()
    if trim and lengths.any():
        text = text[1:]
        lengths[(lengths > 0).argmax()] -= 1
    end = lengths.cumsum()
    begin = end - lengths
    speaks = lengths > 0
    specials = np.where(tables.lengths[ids] == 0, tables.special[ids], -1).astype(np.int32)
    folding = folding_of(tables)
    if not fold or not folding.changes:
        sharp = np.ones(len(ids), dtype=np.bool_)
        return Said(np.frombuffer(text, dtype=np.uint8), begin, end, sharp, sharp, speaks, specials)
    folded = folding.fold(text)
    sharp = folded.sharp
    return Said(folded.text, folded.at[begin], folded.at[end], sharp[begin], sharp[end], speaks, specials)


def place(student: Said, teacher: Said, tables: PairTables) -> tuple[Placed, Placed]:
    """Puts both sides' tokens on the axis of what their texts have in common.

    Between two stretches the axis has a step of one that no token covers.
    """
    stretches = common_stretches(student.text, teacher.text)
    sides = []
    for side, which in ((student, 0), (teacher, 1)):
        begins = np.array([stretch[which] for stretch in stretches], dtype=np.int64)
        sides.append(_on_axis(side, begins, stretches))
    return with_specials((student.specials, teacher.specials), (sides[0], sides[1]), tables)


def _on_axis(side: Said, begins: Numbers, stretches: Sequence[Stretch]) -> tuple[Placed, Numbers]:
    """A side's tokens on the axis, and the place of every token that covers nothing."""
    lengths = np.array([stretch[2] for stretch in stretches], dtype=np.int64)
    bases = lengths.cumsum() - lengths + np.arange(len(lengths)) + 1
    count = len(side.begin)
    if not len(lengths):
        nowhere = np.full(count, -1, dtype=np.int64)
        return Placed(nowhere, nowhere, nowhere * 0, nowhere >= 0), nowhere + 1
    at = begins.searchsorted(side.begin, side="right") - 1
    within = (at >= 0) & (side.end <= begins[at] + lengths[at])
    spoken = within & side.speaks & ((side.end > side.begin) | ~side.sharp_begin | ~side.sharp_end)
    begin = np.where(spoken & side.sharp_begin, bases[at] + side.begin - begins[at], -1)
    end = np.where(spoken & side.sharp_end, bases[at] + side.end - begins[at], -1)
    before = begins.searchsorted(side.begin, side="left") - 1
    places = np.where(before >= 0, bases[before] + np.minimum(side.begin - begins[before], lengths[before]), 0)
    return Placed(begin, end, np.where(spoken, side.end - side.begin, 0), spoken), places


def with_specials(
    specials: tuple[NDArray[np.int32], NDArray[np.int32]],
    sides: tuple[tuple[Placed, Numbers], tuple[Placed, Numbers]],
    tables: PairTables,
) -> tuple[Placed, Placed]:
    """Gives specials that correspond and stand at one place a piece of the axis, of length one.

    Args:
        specials: per side int32 (tokens,), rows or columns of the pair's table, -1 for other tokens.
        sides: per side the tokens, and int64 (tokens,) where each stands, ascending.
        tables: the pair's tables.
    """
    at = [(side >= 0).nonzero()[0] for side in specials]
    rows, columns = specials[0][at[0]], specials[1][at[1]]
    pairs = matched(rows, sides[0][1][at[0]], columns, sides[1][1][at[1]], tables.same_special)
    made: list[Placed] = []
    for (placed, places), where, chosen in zip(sides, at, pairs, strict=True):
        ids = where[chosen]
        is_pair = np.zeros(len(placed.begin), dtype=np.int64)
        is_pair[ids] = 1
        moved = is_pair.cumsum() - is_pair
        begin = np.where(placed.begin >= 0, placed.begin + moved, -1)
        end = np.where(placed.end >= 0, placed.end + moved, -1)
        begin[ids], end[ids] = places[ids] + moved[ids], places[ids] + moved[ids] + 1
        made.append(Placed(begin, end, np.where(is_pair == 1, 1, placed.cover), placed.on_axis | (is_pair == 1)))
    return made[0], made[1]
