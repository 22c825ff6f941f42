"""Texts as one side's token ids: encoded, cut to a length, and with the tokens that begin and end a text."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError
from ..vocab.vocab import Vocab
from .units import End, check_side, offsets_of, runs

Numbers = NDArray[np.int64]

_TOGETHER = 1 << 17
"""Characters encoded at a time."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """The ids of some texts, one text after another.

    Attributes:
        ids: int64 (tokens,), with the tokens that begin and end a text.
        counts: int64 (texts,), tokens per text.
        first: int64 (texts,), the first of the text's own tokens that was kept.
        kept: int64 (texts,), how many of the text's own tokens were kept.
        whole: int64, the ids of every text before cutting, one text after another.
        whole_counts: int64 (texts,), how many each text has.
        begin: the token put before every text, None for none.
        end: the token put after every text, None for none; a text cut on the right has none.
    """

    ids: Numbers
    counts: Numbers
    first: Numbers
    kept: Numbers
    whole: Numbers
    whole_counts: Numbers
    begin: int | None
    end: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """What happens at the edges of every text.

    Attributes:
        bos: put the token that begins a text before it, where the tokenizer has one.
        eos: put the token that ends a text after it, where the tokenizer has one, but for texts cut on the right.
        truncation_side: where to cut.
    """

    bos: bool = False
    eos: bool = False
    truncation_side: End = "right"

    def __post_init__(self) -> None:
        check_side("truncation_side", self.truncation_side)


def encode_flat(texts: Sequence[str], vocab: Vocab) -> tuple[Numbers, Numbers]:
    """The ids of texts, one text after another, and how many each text has.

    Texts are encoded some at a time and their ids packed at once, while they lie in the processor's cache: taking lists
    of numbers from memory costs more than aligning them.
    """
    ids, counts = array("i"), array("i")
    begin, size = 0, 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= _TOGETHER or end == len(texts):
            for row in vocab.encode_batch(texts[begin:end]):
                # The standard library's array takes a list of small numbers twice as fast as numpy does.
                ids.fromlist(row)
                counts.append(len(row))
            begin, size = end, 0
    flat = (np.frombuffer(side, dtype=np.intc).astype(np.int64) for side in (ids, counts))
    return next(flat), next(flat)


def encode(texts: Sequence[str], vocab: Vocab, edges: Edges, *, max_tokens: int | None = None) -> Encoded:
    """Encodes texts as ordinary text.

    Args:
        texts: the texts.
        vocab: the tokenizer.
        edges: what happens at their edges.
        max_tokens: cut to so many tokens, those at the edges included.

    Raises:
        OptionError: `max_tokens` leaves no room for text.
    """
    begin = vocab.roles.get("bos", (None,))[0] if edges.bos else None
    end = vocab.roles.get("eos", (None,))[0] if edges.eos else None
    around = (begin is not None) + (end is not None)
    if max_tokens is not None and not isinstance(max_tokens, int):
        raise OptionError(f"a maximum of tokens is a whole number, got {max_tokens!r}")
    if max_tokens is not None and max_tokens <= around:
        raise OptionError(f"a maximum of {max_tokens} tokens leaves no room for text beside {around} around it")
    kinds: set[type] = set(map(type, texts))
    strange = {kind.__name__ for kind in kinds if not issubclass(kind, str)}
    if strange:
        raise OptionError(f"texts are a sequence of strings, got one of type {min(strange)}")
    whole, lengths = encode_flat(texts, vocab)
    kept, first, ends = lengths, np.zeros_like(lengths), np.full(len(lengths), end is not None)
    if max_tokens is not None:
        room = max_tokens - (begin is not None)
        too_long = lengths + ends > room
        # A text cut on the right does not end where the tokens do.
        ends &= ~too_long | (edges.truncation_side == "left")
        kept = np.where(too_long, np.maximum(room - ends, 0), lengths)
        first = lengths - kept if edges.truncation_side == "left" else first
    counts = kept + (begin is not None) + ends
    if begin is None and end is None and kept is lengths:
        return Encoded(whole, counts, first, kept, whole, lengths, begin, end)
    ids = np.empty(int(counts.sum()), dtype=np.int64)
    offsets = offsets_of(counts)
    if begin is not None:
        ids[offsets[:-1]] = begin
    if end is not None:
        ids[offsets[1:][ends] - 1] = end
    ids[runs(offsets[:-1] + (begin is not None), kept)] = whole[runs(offsets_of(lengths)[:-1] + first, kept)]
    return Encoded(ids, counts, first, kept, whole, lengths, begin, end)
