"""One side's tokens as flat arrays of units: from ids as callers have them, or from texts that are encoded here.

A *unit* is what is aligned on its own: a row of a batch, or one document of a packed row. Two rows with padding and
the flat arrays that they become:

    ids    [[5, 6, 0],     mask [[1, 1, 0],     Units: ids    [5, 6, 7]
            [7, 0, 0]]           [1, 0, 0]]            counts [2, 1]
                                                       keep   [1, 1, 0, 1, 0, 0]
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import index
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError
from ..readers.parsed import Part, cut
from ..vocab.vocab import Vocab

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]

End = Literal["left", "right"]

_LAST_SEGMENT = 2**31 - 1

_ENCODED_TOGETHER = 1 << 17
"""Characters that are encoded at a time."""

T = TypeVar("T", np.bool_, np.int32, np.int64)


@dataclass(frozen=True, eq=False)
class Units:
    """The tokens of one side, without padding, one unit after another.

    Attributes:
        ids: int (tokens,).
        counts: int64 (units,), tokens per unit.
        rows: int64 (units,), the row that a unit stands in, ascending.
        segments: int64 (units,), the unit's number in its row as the caller gave it.
        keep: bool (rows * columns,), True where a token stands in the flattened batch; None where no row is padded. A
            mask takes half the time that positions would.
        shape: rows and columns of the batch.
    """

    ids: Numbers
    counts: Numbers
    rows: Numbers
    segments: Numbers
    keep: Flags | None
    shape: tuple[int, int]

    def spread(self, values: NDArray[T], fill: int = -1) -> NDArray[T]:
        """(rows, columns), a value per token at its place, `fill` at padding."""
        if self.keep is None:
            return values.reshape(self.shape)
        size = self.shape[0] * self.shape[1]
        # Zeros cost nothing where they are not touched, and most of a batch of texts of all lengths is padding.
        batch = np.full(size, fill, dtype=values.dtype) if fill else np.zeros(size, dtype=values.dtype)
        batch[self.keep] = values
        return batch.reshape(self.shape)

    @property
    def mask(self) -> Flags:
        """Tokens, bool (rows, columns), False at padding."""
        filled = np.ones(self.shape[0] * self.shape[1], dtype=np.bool_) if self.keep is None else self.keep
        return filled.reshape(self.shape)

    @property
    def offsets(self) -> Numbers:
        """int64 (units + 1,), where each unit's tokens begin."""
        return offsets_of(self.counts)


def offsets_of(counts: NDArray[np.signedinteger] | NDArray[np.bool_]) -> Numbers:
    """int64 (n + 1,), the sum of the counts before each position.

    >>> offsets_of(np.array([2, 0, 3])).tolist()
    [0, 2, 2, 5]
    """
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def runs(begins: Numbers, counts: NDArray[np.signedinteger]) -> Numbers:
    """int64 (sum of counts,), the numbers begin, begin + 1, ... of every run, one run after another.

    >>> runs(np.array([5, 0, 7]), np.array([2, 0, 3])).tolist()
    [5, 6, 7, 8, 9]
    """
    ends = counts.cumsum(dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    numbers: Numbers = (begins - ends + counts).repeat(counts)
    numbers += np.arange(total)
    return numbers


def units_of(ids: Any, *, width: int, mask: Any = None, segments: Any = None, side: str) -> Units:
    """Flattens one side of a batch.

    Args:
        ids: a 2-D array or tensor of ids, or a sequence with a sequence of ids per row.
        width: ids are below this logit width.
        mask: bool (rows, columns), False at padding, whose ids are not looked at. Lists of ids need none.
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
    # A unit begins where the row or the number of the document changes.
    row_of = np.repeat(rows, counts)
    same_row = row_of[1:] == row_of[:-1]
    begins = np.ones(len(flat), dtype=np.bool_)
    begins[1:] = ~same_row | (numbers[1:] != numbers[:-1])
    if ((numbers[1:] < numbers[:-1]) & same_row).any():
        raise OptionError(f"{side}_segments are the numbers of the documents of a row in ascending order")
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=len(flat))
    return Units(flat, lengths, row_of[starts], numbers[starts].astype(np.int64), keep, shape)


def one_per_row(ids: Numbers, counts: Numbers, padding_side: End = "right", multiple: int = 1) -> Units:
    """A unit and a row per run of ids, padded to the longest.

    Args:
        ids: int64 (tokens,).
        counts: int64 (rows,), tokens per row.
        padding_side: where shorter rows are padded.
        multiple: row lengths are padded to a multiple of this.
    """
    rows = np.arange(len(counts))
    columns = -(-int(counts.max(initial=0)) // multiple) * multiple
    keep = token_mask(counts, columns, padding_side)
    return Units(ids, counts, rows, np.zeros_like(rows), keep, (len(rows), columns))


def token_mask(counts: Numbers, columns: int, padding_side: End) -> Flags | None:
    """Where rows of some lengths have their tokens: bool (rows * columns,), or None where no row is padded.

    >>> token_mask(np.array([2, 1]), 2, "left").tolist()
    [True, True, False, True]
    """
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


def with_equal_units(student: Units, teacher: Units) -> tuple[Units, Units]:
    """Both sides with the same units: a document that one side does not have becomes an empty unit there."""
    if student.shape[0] != teacher.shape[0]:
        raise OptionError(
            f"student ids have {student.shape[0]} rows, teacher ids {teacher.shape[0]}: one of each per text"
        )
    keys = [side.rows << 32 | side.segments for side in (student, teacher)]
    if np.array_equal(keys[0], keys[1]):
        return student, teacher
    all_keys = np.union1d(keys[0], keys[1])
    sides = []
    for side, side_keys in zip((student, teacher), keys, strict=True):
        counts = np.zeros(len(all_keys), dtype=np.int64)
        counts[np.searchsorted(all_keys, side_keys)] = side.counts
        sides.append(Units(side.ids, counts, all_keys >> 32, all_keys & 0xFFFFFFFF, side.keep, side.shape))
    return sides[0], sides[1]


def values_of(values: Any, units: Units, name: str) -> NDArray[Any]:
    """A value per token of `units` from values in the shape of their ids."""
    if not hasattr(values, "shape") and len(values) == units.shape[0]:
        flat, lengths = _ragged(values, name)
        if np.array_equal(lengths, np.bincount(units.rows, units.counts, minlength=units.shape[0])):
            return flat
    flat = _like(values, units.shape, name).reshape(-1)
    return flat if units.keep is None else flat[units.keep]


def _flat(ids: Any, mask: Any, segments: Any, side: str) -> tuple[Numbers, Flags | None, Numbers, tuple[int, int]]:
    """Ids without padding, where they stand, tokens per row, and the batch's shape."""
    if not hasattr(ids, "shape") and mask is None and segments is None:
        flat, lengths = _ragged(ids, f"{side} ids")
        longest = int(lengths.max(initial=0))
        return flat, token_mask(lengths, longest, "right"), lengths, (len(lengths), longest)
    batch = _array(ids, f"{side} ids")
    if batch.ndim != 2:
        raise OptionError(f"{side} ids have {batch.ndim} dimensions, expected (rows, tokens) or a list per row")
    shape = (batch.shape[0], batch.shape[1])
    keep = None
    if mask is not None:
        keep = _like(mask, shape, f"{side}_mask").astype(np.bool_, copy=False)
    if segments is not None:
        in_document = _like(segments, shape, f"{side}_segments") >= 0
        keep = in_document if keep is None else keep & in_document
    if keep is None or keep.all():
        # A copy: the spans keep the ids, and the caller may write into its own.
        flat = batch.reshape(-1).astype(np.int64)
        return flat, None, np.full(shape[0], shape[1], dtype=np.int64), shape
    counts = np.count_nonzero(keep, axis=1).astype(np.int64)
    keep = keep.reshape(-1)
    return batch.reshape(-1)[keep].astype(np.int64, copy=False), keep, counts, shape


def _ragged(rows: Sequence[Any], name: str) -> tuple[Numbers, Numbers]:
    """The values of rows of any lengths, one row after another, and each row's length."""
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
        numbers = np.asarray(values.numpy(force=True) if hasattr(values, "numpy") else values)
    except ValueError as error:
        raise OptionError(
            f"{name}: rows of different lengths need no mask and no segments, or have to be padded"
        ) from error
    if numbers.size and numbers.dtype.kind not in "iub":
        raise OptionError(f"{name} are whole numbers, got {numbers.dtype}")
    return numbers


def _like(values: Any, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    numbers = _array(values, name)
    if numbers.shape != shape:
        raise OptionError(f"{name} has shape {numbers.shape}, the ids have {shape}")
    return numbers


@dataclass(frozen=True, eq=False)
class EncodedTexts:
    """The ids of some texts, one text after another.

    Attributes:
        ids: int64 (tokens,), with the tokens that begin and end a text.
        counts: int64 (texts,), tokens per text.
        first_kept: int64 (texts,), the first of the text's own tokens that was not cut off.
        kept_counts: int64 (texts,), how many of the text's own tokens were not cut off.
        uncut_ids: int64, the ids of every text before cutting, one text after another.
        uncut_counts: int64 (texts,), how many each text has.
        bos: the token put before every text, None for none.
        eos: the token put after every text, None for none; a text cut on the right has none.
    """

    ids: Numbers
    counts: Numbers
    first_kept: Numbers
    kept_counts: Numbers
    uncut_ids: Numbers
    uncut_counts: Numbers
    bos: int | None
    eos: int | None


def encode_texts(
    texts: Sequence[str],
    vocab: Vocab,
    *,
    bos: bool,
    eos: bool,
    max_tokens: int | None = None,
    truncation_side: End = "right",
    parse_special: bool = False,
) -> EncodedTexts:
    """Encodes texts as the tokenizer itself does, puts the tokens around them that begin and end a text, and cuts them.

    With a limit of 4 tokens, BOS `<` and EOS `>`, and a text of the tokens a b c d:

        cut on the right  < a b c     the text does not end here, so there is no EOS
        cut on the left   < c d >

    Args:
        texts: the texts.
        vocab: the tokenizer.
        bos: put the token that begins a text before it, where the tokenizer has one.
        eos: put the token that ends a text after it, where the tokenizer has one, but for texts cut on the right.
        max_tokens: cut to so many tokens, BOS and EOS included.
        truncation_side: where to cut.
        parse_special: whether what looks like a control token is one.

    Raises:
        OptionError: `max_tokens` leaves no room for text.
    """
    begin = vocab.roles.get("bos", (None,))[0] if bos else None
    end = vocab.roles.get("eos", (None,))[0] if eos else None
    around = (begin is not None) + (end is not None)
    if max_tokens is not None and not isinstance(max_tokens, int):
        raise OptionError(f"a maximum of tokens is a whole number, got {max_tokens!r}")
    if max_tokens is not None and max_tokens <= around:
        raise OptionError(f"a maximum of {max_tokens} tokens leaves no room for text beside {around} around it")
    for kind in set(map(type, texts)):
        if not issubclass(kind, str):
            raise OptionError(f"texts are a sequence of strings, got one of type {kind.__name__}")
    uncut, lengths = _encode_flat(texts, vocab, parse_special=parse_special)
    kept, first_kept, has_end = lengths, np.zeros_like(lengths), np.full(len(lengths), end is not None)
    if max_tokens is not None:
        room = max_tokens - (begin is not None)
        too_long = lengths + has_end > room
        has_end &= ~too_long | (truncation_side == "left")
        kept = np.where(too_long, np.maximum(room - has_end, 0), lengths)
        first_kept = lengths - kept if truncation_side == "left" else first_kept
    if begin is None and end is None and kept is lengths:
        return EncodedTexts(uncut, lengths, first_kept, kept, uncut, lengths, begin, end)
    counts = kept + (begin is not None) + has_end
    ids = np.empty(int(counts.sum()), dtype=np.int64)
    offsets = offsets_of(counts)
    if begin is not None:
        ids[offsets[:-1]] = begin
    if end is not None:
        ids[offsets[1:][has_end] - 1] = end
    ids[runs(offsets[:-1] + (begin is not None), kept)] = uncut[runs(offsets_of(lengths)[:-1] + first_kept, kept)]
    return EncodedTexts(ids, counts, first_kept, kept, uncut, lengths, begin, end)


def parts_of_text(text: str, vocab: Vocab, *, parse_special: bool) -> list[Part]:
    """A text as `row_encoder` takes it: in one part, or cut at what looks like a control token."""
    literal = () if vocab.row_tokens is None else vocab.row_tokens.literal
    return list(cut(text, vocab.controls, literal)) if parse_special else [(text, None)] if text else []


def _encode_flat(texts: Sequence[str], vocab: Vocab, *, parse_special: bool) -> tuple[Numbers, Numbers]:
    """The ids of texts, one text after another, and how many each text has.

    Some texts are encoded at a time and their ids packed at once, while they lie in the processor's cache: taking lists
    of numbers from memory costs more than aligning them.
    """

    def encode_parsed(some: Sequence[str]) -> list[list[int]]:
        rows = vocab.row_encoder.encode_parts([parts_of_text(text, vocab, parse_special=True) for text in some])
        return [[token for run in row for token in run.ids] for row in rows]

    encode = encode_parsed if parse_special else vocab.row_encoder.encode_batch
    ids, counts = array("i"), array("i")
    begin, size = 0, 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= _ENCODED_TOGETHER or end == len(texts):
            for row in encode(texts[begin:end]):
                # The standard library's array takes a list of small numbers twice as fast as numpy does.
                ids.fromlist(row)
                counts.append(len(row))
            begin, size = end, 0
    return (
        np.frombuffer(ids, dtype=np.intc).astype(np.int64),
        np.frombuffer(counts, dtype=np.intc).astype(np.int64),
    )
