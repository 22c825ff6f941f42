"""A rendered chat as tokens: the template's special tokens parsed, everything else encoded as ordinary text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab
from .chat_contents import Rendered
from .offsets import said_in
from .resync import Said, said_by
from .stretches import common_stretches
from .tables import PairTables

Numbers = NDArray[np.int64]
Piece = tuple[str, int | None]
"""A stretch of a rendered chat, and the special token that it is, None for text."""


@dataclass(frozen=True, eq=False)
class ChatTokens:
    """One chat's tokens.

    Attributes:
        ids: int64 (tokens,).
        said: what they say, on the axis of the rendered text's bytes.
    """

    ids: Numbers
    said: Said


def tokenize_chats(chats: Sequence[Rendered], vocab: Vocab, tables: PairTables, *, first_id: int) -> list[ChatTokens]:
    """Tokenises rendered chats.

    Special tokens are parsed in what the template wrote alone: what looks like one in a message is text.

    Args:
        chats: the rendered chats.
        vocab: the side's tokenizer.
        tables: the pair's tables.
        first_id: what `PairTables` adds to this side's ids.
    """
    pieces = [list(_pieces(chat, vocab)) for chat in chats]
    encoded = iter(vocab.encode_batch([text for row in pieces for text, special in row if special is None]))
    made: list[ChatTokens] = []
    for row in pieces:
        parts: list[Said] = []
        ids: list[list[int]] = []
        for text, special in row:
            own = [special] if special is not None else next(encoded)
            ids.append(own)
            parts.append(_said(text, np.array(own, dtype=np.int64), special, vocab, tables, first_id))
        made.append(ChatTokens(np.array([token for part in ids for token in part], dtype=np.int64), _after(parts)))
    return made


def _pieces(chat: Rendered, vocab: Vocab) -> Iterator[Piece]:
    """Cuts a chat at the special tokens that the template wrote."""
    pattern, id_of = _specials(vocab)
    edges = [0, *(edge for region in chat.regions for edge in (region.begin, region.end)), len(chat.text)]
    done = 0
    for begin, end in list(pairwise(edges))[::2]:
        for match in pattern.finditer(chat.text, begin, end):
            if match.start() > done:
                yield chat.text[done : match.start()], None
            yield match[0], id_of[match[0]]
            done = match.end()
    if done < len(chat.text):
        yield chat.text[done:], None


@lru_cache(maxsize=16)
def _specials(vocab: Vocab) -> tuple[re.Pattern[str], dict[str, int]]:
    ids = ((vocab.kinds == Kind.SPECIAL) | (vocab.kinds == Kind.RESERVED)).nonzero()[0].tolist()
    id_of = {vocab.raw[token_id]: token_id for token_id in reversed(ids) if vocab.raw[token_id]}
    longest_first = sorted(id_of, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)"), id_of


def _said(text: str, ids: Numbers, special: int | None, vocab: Vocab, tables: PairTables, first_id: int) -> Said:
    """What the tokens of a piece say, on the axis of the piece's bytes."""
    own = ids + first_id
    if special is None:
        said = said_in(text, ids, vocab, tables, first_id=first_id)
        return said if said is not None else _found_in(text.encode("utf-8", "surrogatepass"), own, tables)
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    zero, sharp = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.bool_)
    return Said(data, zero, zero, sharp, sharp, ~sharp, tables.special[own])


def _found_in(data: bytes, own: Numbers, tables: PairTables) -> Said:
    """Tokens whose surfaces are not the text: those in a stretch that is."""
    said = said_by(own, tables, trim=False, fold=False)
    text = np.frombuffer(data, dtype=np.uint8)
    begin, end = np.zeros_like(said.begin), np.zeros_like(said.end)
    inside = np.zeros(len(own), dtype=np.bool_)
    for start, there, length in common_stretches(said.text, text):
        within = (said.begin >= start) & (said.end <= start + length)
        inside |= within
        begin = np.where(within, said.begin - start + there, begin)
        end = np.where(within, said.end - start + there, end)
    begin = np.maximum.accumulate(begin)
    end = np.maximum(end, begin)
    return Said(text, begin, end, said.sharp_begin, said.sharp_end, said.speaks & inside, said.specials)


def _after(parts: Sequence[Said]) -> Said:
    """Pieces one after another on one axis."""
    sizes = np.array([len(part.text) for part in parts], dtype=np.int64)
    starts = sizes.cumsum() - sizes
    if not parts:
        nothing = np.zeros(0, dtype=np.int64)
        none = np.zeros(0, dtype=np.bool_)
        return Said(np.zeros(0, np.uint8), nothing, nothing, none, none, none, np.zeros(0, np.int32))
    return Said(
        text=np.concatenate([part.text for part in parts]),
        begin=np.concatenate([part.begin + start for part, start in zip(parts, starts, strict=True)]),
        end=np.concatenate([part.end + start for part, start in zip(parts, starts, strict=True)]),
        sharp_begin=np.concatenate([part.sharp_begin for part in parts]),
        sharp_end=np.concatenate([part.sharp_end for part in parts]),
        speaks=np.concatenate([part.speaks for part in parts]),
        specials=np.concatenate([part.specials for part in parts]),
    )
