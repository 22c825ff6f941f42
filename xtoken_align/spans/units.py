"""Token ids as callers have them (lists, padded arrays, packed rows), as flat arrays of units.

A *unit* is what is aligned on its own: a row of a batch, or one document of a packed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import index
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError

Ids = NDArray[np.int64]

End = Literal["left", "right"]

_LAST_SEGMENT = 2**31 - 1

T = TypeVar("T", np.bool_, np.int32, np.int64)


@dataclass(frozen=True, eq=False)
class Units:
    """The tokens of one side, without padding, one unit after another.

    Attributes:
        ids: int (tokens,).
        counts: int64 (units,), tokens per unit.
        rows: int64 (units,), the row that a unit stands in, ascending.
        segments: int64 (units,), the unit's number in its row as the caller gave it.
        keep: bool (rows * columns,), where the tokens stand in the flattened batch; None where they fill it. Masks take
            half the time of positions.
        shape: rows and columns of the batch.
    """

    ids: Ids
    counts: NDArray[np.int64]
    rows: NDArray[np.int64]
    segments: NDArray[np.int64]
    keep: NDArray[np.bool_] | None
    shape: tuple[int, int]

    def spread(self, values: NDArray[T], fill: int = -1) -> NDArray[T]:
        """(rows, columns), a value per token at its place, `fill` elsewhere."""
        if self.keep is None:
            return values.reshape(self.shape)
        size = self.shape[0] * self.shape[1]
        # Zeros cost nothing where they are not touched, and most of a batch of texts of all lengths is padding.
        out = np.full(size, fill, dtype=values.dtype) if fill else np.zeros(size, dtype=values.dtype)
        out[self.keep] = values
        return out.reshape(self.shape)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Tokens, bool (rows, columns): where they stand."""
        filled = np.ones(self.shape[0] * self.shape[1], dtype=np.bool_) if self.keep is None else self.keep
        return filled.reshape(self.shape)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """int64 (units + 1,), where each unit's tokens begin."""
        return offsets_of(self.counts)


def offsets_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 (n + 1,), the sum of the counts before each position."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def runs(begins: NDArray[np.int64], counts: NDArray[np.signedinteger]) -> NDArray[np.int64]:
    """int64 (sum of counts,), the numbers begin, begin + 1, ... of every run, one run after another.

    >>> runs(np.array([5, 0, 7]), np.array([2, 0, 3])).tolist()
    [5, 6, 7, 8, 9]
    """
    ends = counts.cumsum(dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    made: NDArray[np.int64] = (begins - ends + counts).repeat(counts)
    made += np.arange(total)
    return made


def units_of(ids: Any, *, width: int, mask: Any = None, segments: Any = None, side: str) -> Units:
    """Flattens one side of a batch.

    Args:
        ids: a 2-D array or tensor of ids, or a sequence with a sequence of ids per row.
        width: ids are below this logit width.
        mask: bool (rows, columns), False at padding; with lists of ids not needed. What stands at padding is not
            looked at.
        segments: int (rows, columns), in packed rows the number of each token's document, ascending in a row; negative
            at padding.
        side: `student` or `teacher`, for messages.

    Raises:
        OptionError: shapes differ, an id is out of range, or a row's segments are not in ascending order.
    """
    flat, keep, counts, shape = _flat(ids, mask, segments, side)
    if len(flat) and (int(flat.min()) < 0 or int(flat.max()) >= width):
        bad = flat[(flat < 0) | (flat >= width)][0]
        raise OptionError(
            f"a {side} id is {bad}, but ids go from 0 to {width - 1}: give `{side}_mask`, False at padding, or the "
            "tokenizer that the ids come from"
        )
    rows = np.arange(shape[0])
    if segments is None:
        return Units(flat, counts, rows, np.zeros_like(rows), keep, shape)
    numbers = _array(segments, f"{side}_segments").reshape(-1)
    numbers = numbers if keep is None else numbers[keep]
    if len(numbers) and int(numbers.max()) > _LAST_SEGMENT:
        raise OptionError(f"{side}_segments go up to {_LAST_SEGMENT}, got {numbers.max()}")
    row_of = np.repeat(rows, counts)
    begins = np.ones(len(flat), dtype=np.bool_)
    begins[1:] = (row_of[1:] != row_of[:-1]) | (numbers[1:] != numbers[:-1])
    if ((numbers[1:] < numbers[:-1]) & (row_of[1:] == row_of[:-1])).any():
        raise OptionError(f"{side}_segments are the numbers of the documents of a row in ascending order")
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=len(flat))
    return Units(flat, lengths, row_of[starts], numbers[starts].astype(np.int64), keep, shape)


def padded(ids: Ids, counts: NDArray[np.int64], padding_side: End) -> Units:
    """A unit and a row per run of ids, padded to the longest.

    Args:
        ids: int64 (tokens,).
        counts: int64 (rows,), tokens per row.
        padding_side: where shorter rows are padded.
    """
    rows = np.arange(len(counts))
    longest = int(counts.max(initial=0))
    return Units(ids, counts, rows, np.zeros_like(rows), kept(counts, longest, padding_side), (len(rows), longest))


def kept(counts: NDArray[np.int64], columns: int, padding_side: End) -> NDArray[np.bool_] | None:
    """Tokens, bool (rows * columns,): where rows of some lengths have their tokens; None where no row is padded."""
    if int(counts.min(initial=columns)) == columns:
        return None
    column = np.arange(columns)
    if padding_side == "left":
        return (column >= (columns - counts)[:, None]).reshape(-1)
    return (column < counts[:, None]).reshape(-1)


def check_side(name: str, side: str) -> None:
    """Refuses what is neither `left` nor `right`."""
    if side not in {"left", "right"}:
        raise OptionError(f"{name} is left or right, got {side!r}")


def paired(student: Units, teacher: Units) -> tuple[Units, Units]:
    """The same with equal units on both sides: a document that one side does not have gets an empty unit there."""
    if student.shape[0] != teacher.shape[0]:
        raise OptionError(
            f"student ids have {student.shape[0]} rows, teacher ids {teacher.shape[0]}: one of each per text"
        )
    keys = [side.rows << 32 | side.segments for side in (student, teacher)]
    if np.array_equal(keys[0], keys[1]):
        return student, teacher
    every = np.union1d(keys[0], keys[1])
    made = []
    for side, own in zip((student, teacher), keys, strict=True):
        counts = np.zeros(len(every), dtype=np.int64)
        counts[np.searchsorted(every, own)] = side.counts
        made.append(Units(side.ids, counts, every >> 32, every & 0xFFFFFFFF, side.keep, side.shape))
    return made[0], made[1]


def values_of(values: Any, units: Units, name: str) -> NDArray[Any]:
    """A value per token of `units` from values in the shape of their ids."""
    if not hasattr(values, "shape") and len(values) == units.shape[0]:
        flat, lengths = _ragged(values, name)
        if np.array_equal(lengths, np.bincount(units.rows, units.counts, minlength=units.shape[0])):
            return flat
    flat = _like(values, units.shape, name).reshape(-1)
    return flat if units.keep is None else flat[units.keep]


def _flat(
    ids: Any, mask: Any, segments: Any, side: str
) -> tuple[Ids, NDArray[np.bool_] | None, NDArray[np.int64], tuple[int, int]]:
    """Ids without padding, where they stand, tokens per row, and the batch's shape."""
    if hasattr(ids, "shape"):
        array = _array(ids, f"{side} ids")
    elif mask is None and segments is None:
        flat, lengths = _ragged(ids, f"{side} ids")
        longest = int(lengths.max(initial=0))
        return flat, kept(lengths, longest, "right"), lengths, (len(lengths), longest)
    else:
        array = _array(ids, f"{side} ids")
    if array.ndim != 2:
        raise OptionError(f"{side} ids have {array.ndim} dimensions, expected (rows, tokens) or a list per row")
    shape = (array.shape[0], array.shape[1])
    keep = None
    if mask is not None:
        keep = _like(mask, shape, f"{side}_mask").astype(np.bool_, copy=False)
    if segments is not None:
        own = _like(segments, shape, f"{side}_segments") >= 0
        keep = own if keep is None else keep & own
    if keep is None or keep.all():
        # A copy: the spans keep the ids, and the caller may write into its own.
        flat = array.reshape(-1).astype(np.int64)
        return flat, None, np.full(shape[0], shape[1], dtype=np.int64), shape
    counts = np.count_nonzero(keep, axis=1).astype(np.int64)
    keep = keep.reshape(-1)
    return array.reshape(-1)[keep].astype(np.int64, copy=False), keep, counts, shape


def _ragged(rows: Sequence[Any], name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    try:
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        if len(rows) and hasattr(rows[0], "dtype"):
            return np.concatenate([_array(row, name).astype(np.int64, copy=False) for row in rows]), lengths
        for row in rows:
            # `fromiter` would cut the fraction off.
            index(row[0] if len(row) else 0)
        return np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum())), lengths
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(f"{name} are (rows, tokens), or a list of whole numbers per row") from error


def _array(values: Any, name: str) -> NDArray[Any]:
    try:
        array = np.asarray(values.numpy(force=True) if hasattr(values, "numpy") else values)
    except ValueError as error:
        raise OptionError(
            f"{name}: rows of different lengths need no mask and no segments, or have to be padded"
        ) from error
    if array.size and array.dtype.kind not in "iub":
        raise OptionError(f"{name} are whole numbers, got {array.dtype}")
    return array


def _like(values: Any, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    given = _array(values, name)
    if given.shape != shape:
        raise OptionError(f"{name} has shape {given.shape}, the ids have {shape}")
    return given
