"""Decompositions: every token of one vocabulary as the other one writes it, from its encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab


@dataclass(frozen=True, eq=False)
class Pieces:
    """A list of ids per token, as one array.

    Attributes:
        lengths: int32 (width,), how many pieces each token has; 0 where it has none.
        ids: int32 (total,), the pieces one token after another.
        lossy: int32, ascending ids of the tokens whose pieces spell another text (a normaliser's doing).
    """

    lengths: NDArray[np.int32]
    ids: NDArray[np.int32]
    lossy: NDArray[np.int32]

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """int64 (width + 1,), where each token's pieces begin."""
        offsets = np.zeros(len(self.lengths) + 1, dtype=np.int64)
        np.cumsum(self.lengths, out=offsets[1:])
        return offsets

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, token_id: int) -> list[int]:
        return self.ids[self.offsets[token_id] : self.offsets[token_id + 1]].tolist()

    @cached_property
    def first(self) -> NDArray[np.int32]:
        """int32 (width,), the first piece of each token, -1 where it has none."""
        first = np.full(len(self.lengths), -1, dtype=np.int32)
        some = self.lengths > 0
        first[some] = self.ids[self.offsets[:-1][some]]
        return first

    @classmethod
    def of(cls, width: int, pieces: dict[int, Sequence[int]], lossy: Iterable[int]) -> Pieces:
        """Packs a table token id -> pieces."""
        lengths = np.zeros(width, dtype=np.int32)
        order = sorted(pieces)
        counts = np.fromiter((len(pieces[token_id]) for token_id in order), dtype=np.int32, count=len(order))
        lengths[order] = counts
        flat = (piece for token_id in order for piece in pieces[token_id])
        ids = np.fromiter(flat, dtype=np.int32, count=int(counts.sum()))
        return cls(lengths, ids, np.array(sorted(lossy), dtype=np.int32))


def is_utf8(data: bytes) -> bool:
    """Whether the bytes are whole UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def decompose(tokens: Vocab, by: Vocab) -> Pieces:
    """Writes every text and byte token of one vocabulary in the other.

    An equal surface of the same kind is its own only piece (the lowest id). Everything else comes from encoding:
    looking pieces up by string would give tokens that the encoder never produces.

    Args:
        tokens: whose tokens are written.
        by: who writes them.
    Returns:
        Pieces over `tokens`' ids. A token that cannot be written has none: nothing was produced, or an unknown token.
    """
    surfaces = tokens.surfaces.list
    equal_text, equal_byte = by.lowest_text_id, by.lowest_byte_id
    found: dict[int, Sequence[int]] = {}
    lossy: list[int] = []
    to_encode: list[int] = []
    texts: list[str] = []
    raw_bytes: list[int] = []
    for token_id in tokens.ids_of(Kind.TEXT).tolist():
        surface = surfaces[token_id]
        match = equal_text.get(surface)
        if match is not None:
            found[token_id] = (match,)
            continue
        try:
            texts.append(surface.decode())
        except UnicodeDecodeError:
            raw_bytes.append(token_id)
        else:
            to_encode.append(token_id)
    for token_id in tokens.ids_of(Kind.BYTE).tolist():
        match = equal_byte.get(surfaces[token_id])
        if match is not None:
            found[token_id] = (match,)
        else:
            raw_bytes.append(token_id)
    spell = Speller(by)
    for token_id, ids in zip(to_encode, by.encode_batch(texts), strict=True):
        if spell.speakable(ids):
            found[token_id] = ids
            if not spell.equals(ids, surfaces[token_id]):
                lossy.append(token_id)
    for token_id in raw_bytes:
        ids = _spell_bytes(surfaces[token_id], by, spell, is_byte=bool(tokens.kinds[token_id] == Kind.BYTE))
        if ids:
            found[token_id] = ids
            if not spell.equals(ids, surfaces[token_id]):
                lossy.append(token_id)
    return Pieces.of(len(tokens), found, lossy)


class Speller:
    """What a vocabulary's ids say, for comparing it with what they were to say."""

    def __init__(self, vocab: Vocab) -> None:
        self._surfaces = vocab.surfaces.list
        self._speaks = (vocab.kinds <= Kind.BYTE).tolist()
        self._joins, self._ends = vocab.joins_words, vocab.ends_words

    def speakable(self, ids: Sequence[int]) -> bool:
        """Whether there are ids and all of them are text: an unknown token among them makes the rest worthless."""
        width = len(self._speaks)
        return bool(ids) and all(token_id < width and self._speaks[token_id] for token_id in ids)

    def equals(self, ids: Sequence[int], surface: bytes) -> bool:
        """Whether ids spell the surface, up to the one space that word starts or word ends bring along."""
        said = b"".join([self._surfaces[token_id] for token_id in ids])
        if said == surface:
            return True
        if self._joins and said.removeprefix(b" ") == surface.removeprefix(b" "):
            return True
        return self._ends and said.removesuffix(b" ") == surface.removesuffix(b" ")


def _spell_bytes(data: bytes, by: Vocab, spell: Speller, *, is_byte: bool) -> list[int]:
    """Writes bytes that need not be UTF-8, or a byte token's one byte.

    An equal surface of the other kind comes first, then the model's own merges over the bytes, then its encoding of the
    stretches that are UTF-8 with byte tokens for the rest.

    Args:
        data: the surface.
        by: who writes it.
        spell: what `by`'s ids say.
        is_byte: whether `data` is a byte token's (then the other kind is text).
    Returns:
        The ids, [] where `by` cannot spell the bytes.
    """
    other = by.lowest_text_id.get(data) if is_byte else by.lowest_byte_id.get(data)
    if other is not None:
        return [other]
    merged = by.encoder.encode_bytes(data)
    if merged and spell.speakable(merged) and spell.equals(merged, data):
        return merged
    return _spell_stretches(data, by, spell)


def _spell_stretches(data: bytes, by: Vocab, spell: Speller) -> list[int]:
    ids: list[int] = []
    for stretch, valid in _stretches(data):
        if valid:
            part = by.encode_batch([stretch.decode()])[0]
            if not spell.speakable(part):
                return []
            ids += part
            continue
        for value in stretch:
            byte = bytes([value])
            single = by.lowest_byte_id.get(byte, by.lowest_text_id.get(byte))
            if single is None:
                return []
            ids.append(single)
    return ids


def _stretches(data: bytes) -> list[tuple[bytes, bool]]:
    """Cuts bytes into maximal stretches that are UTF-8 (True) and that are not (False)."""
    parts: list[tuple[bytes, bool]] = []
    while data:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            if error.start:
                parts.append((data[: error.start], True))
            parts.append((data[error.start : error.end], False))
            data = data[error.end :]
        else:
            parts.append((data, True))
            break
    return parts
