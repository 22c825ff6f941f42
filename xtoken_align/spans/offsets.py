"""What tokens say by their characters in the original text: where a normaliser made a side say something else."""

from __future__ import annotations

import numpy as np
import regex
from numpy.typing import NDArray

from ..readers.parsed import OffsetEncoder
from ..vocab.vocab import Vocab
from .resync import Said
from .tables import PairTables
from .units import runs

Numbers = NDArray[np.int64]

_SPACE = ord(" ")
_IS_ASCII_SPACE = np.array([code < 0x80 and chr(code).isspace() for code in range(256)])
_OTHER_SPACES = regex.compile(b"|".join(chr(code).encode() for code in range(0x80, 0x10000) if chr(code).isspace()))
_MARKS = regex.compile(r"[\p{M}\p{Cf}]*")


def said_in(text: str, ids: Numbers, vocab: Vocab, tables: PairTables, *, first_id: int) -> Said | None:
    """Places the tokens of a whole text on the text itself.

    Args:
        text: the text.
        ids: int64 (tokens,), what the vocabulary made of it.
        vocab: whose tokens they are.
        tables: the pair's tables.
        first_id: what `PairTables` adds to this side's ids.

    Returns:
        The tokens on the axis of the text's bytes; None where their surfaces are not the text and the encoder does not
        say which characters they stand for, or says it wrongly.
    """
    own = ids + first_id
    data = text.encode("utf-8", "surrogatepass")
    lengths = tables.lengths[own].astype(np.int64)
    if int(lengths.sum()) == len(data) and tables.blob[runs(tables.begins[own], lengths)].tobytes() == data:
        end = lengths.cumsum()
        sharp = np.ones(len(ids), dtype=np.bool_)
        return _said(data, end - lengths, end, sharp, sharp, own, tables)
    if not isinstance(vocab.encoder, OffsetEncoder):
        return None
    placed = np.array(vocab.encoder.encode_offsets(text), dtype=np.int64).reshape(-1, 3)
    if not np.array_equal(placed[:, 0], ids):
        return None
    byte_at = _byte_positions(text)
    begin, end = byte_at[placed[:, 1]], byte_at[placed[:, 2]]
    if not _plausible(data, begin, end, vocab):
        return None
    _take_spaces(data, begin, end, own, tables)
    return _said(data, *_one_by_one(begin, end), own, tables)


def _byte_positions(text: str) -> Numbers:
    """int64 (characters + 1,), where each character begins in UTF-8."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    at = np.zeros(len(codes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=at[1:])
    return at


def _plausible(data: bytes, begin: Numbers, end: Numbers, vocab: Vocab) -> bool:
    """Whether the characters that no token stands for are nothing to the normaliser.

    Behind a character that a `Precompiled` normaliser removes, the offsets of tokenizers 0.23 are too low by one.
    """
    reached = np.maximum.accumulate(np.append(0, end))
    until = np.maximum(np.append(begin, len(data)), reached)
    letters = np.append(0, (~_spaces(data)).cumsum())
    return not any(
        vocab.encoder.normalize(data[reached[at] : until[at]].decode("utf-8", "replace").strip()).strip()
        for at in (letters[until] > letters[reached]).nonzero()[0].tolist()
    )


def _take_spaces(data: bytes, begin: Numbers, end: Numbers, own: Numbers, tables: PairTables) -> None:
    """Gives tokens what their characters leave out beside them: a space of their surface, marks that modify them."""
    text = np.frombuffer(data, dtype=np.uint8)
    before = np.append(0, end[:-1])
    short = (begin > before) & tables.spaced[own]
    short[short] = (text[begin[short] - 1] == _SPACE) & (text[begin[short]] != _SPACE)
    begin -= short
    after = np.append(begin[1:], len(data))
    open_ = after > end
    open_[open_] = text[end[open_]] >= 0x80
    for at in open_.nonzero()[0].tolist():
        # Marks that a normaliser strips go with the character that they modify.
        marks = _MARKS.match(data[end[at] : after[at]].decode("utf-8", "replace"))
        end[at] += len(marks[0].encode()) if marks else 0
    last = tables.begins[own] + tables.lengths[own] - 1
    short = (after > end) & (tables.lengths[own] > 0) & (tables.blob[last] == _SPACE)
    short[short] = (text[end[short]] == _SPACE) & (text[end[short] - 1] != _SPACE)
    end += short


def _one_by_one(begin: Numbers, end: Numbers) -> tuple[Numbers, Numbers, NDArray[np.bool_], NDArray[np.bool_]]:
    """Lets tokens of the same characters share them: the first covers all, and only the outer edges compare."""
    reach = np.maximum.accumulate(np.append(0, end[:-1])) if len(end) else end
    shared = begin < reach
    closed = np.append(~shared[1:], True)[: len(shared)]
    covered_from = np.where(shared, reach, begin)
    # Inside a shared run every token ends where the run reaches so far.
    return covered_from, np.maximum.accumulate(np.maximum(end, covered_from)) if len(end) else end, ~shared, closed


def _said(
    data: bytes,
    begin: Numbers,
    end: Numbers,
    sharp_begin: NDArray[np.bool_],
    sharp_end: NDArray[np.bool_],
    own: Numbers,
    tables: PairTables,
) -> Said:
    speaks = tables.lengths[own] > 0
    text = np.frombuffer(data, dtype=np.uint8)
    if any(vocab.joins_words or vocab.ends_words for vocab in (tables.student, tables.teacher)):
        # Where surfaces invent spaces, a space is no text.
        at = np.zeros(len(data) + 1, dtype=np.int64)
        kept = ~_spaces(data)
        np.cumsum(kept, out=at[1:])
        text, begin, end = text[kept], at[begin], at[end]
    return Said(
        text=text,
        begin=begin,
        end=end,
        sharp_begin=sharp_begin,
        sharp_end=sharp_end,
        speaks=speaks,
        specials=np.where(speaks, -1, tables.special[own]).astype(np.int32),
    )


def _spaces(data: bytes) -> NDArray[np.bool_]:
    """Bytes, bool (bytes,), that are white space."""
    found = _IS_ASCII_SPACE[np.frombuffer(data, dtype=np.uint8)]
    for match in _OTHER_SPACES.finditer(data) if not data.isascii() else ():
        found[match.start() : match.end()] = True
    return found
