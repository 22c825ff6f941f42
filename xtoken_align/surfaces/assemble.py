"""The surfaces of a whole vocabulary, from its file's facts and the kinds of its ids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..readers.parsed import Declared, Parsed
from ..vocab.kinds import Kind
from .spell import RankStrings, spell, spell_all, utf8

__all__ = ["RankStrings", "disagreeing_ids", "surfaces_of"]


def surfaces_of(parsed: Parsed, kinds: NDArray[np.uint8]) -> list[bytes]:
    """The surface of every id below the logit width.

    Base tokens are spelled by the model's steps. Special and reserved tokens, and added tokens that the base vocabulary
    does not have, are the text that the encoder matches: their own UTF-8. Holes and padding have none.

    Args:
        parsed: what the file says.
        kinds: uint8 (logits,), the kind of each id.
    """
    width, count = len(kinds), min(len(kinds), len(parsed.declared))
    surfaces = [b""] * width
    spelled = parsed.in_base[:count] & (kinds[:count] <= Kind.BYTE)
    base = np.flatnonzero(spelled).tolist()
    if parsed.token_bytes is not None:
        for token_id in base:
            surfaces[token_id] = parsed.token_bytes[token_id] or b""
    else:
        texts = [parsed.raw[token_id] or "" for token_id in base]
        for token_id, surface in zip(base, spell_all(texts, parsed.spelling), strict=True):
            surfaces[token_id] = surface
    literal = ~spelled & (kinds[:count] <= Kind.RESERVED)
    for token_id in np.flatnonzero(literal).tolist():
        surfaces[token_id] = _literal(parsed, token_id)
    return surfaces


def _literal(parsed: Parsed, token_id: int) -> bytes:
    text = parsed.raw[token_id]
    if text is None and parsed.token_bytes is not None:
        return parsed.token_bytes[token_id] or b""
    return utf8(text or "")


def disagreeing_ids(parsed: Parsed, kinds: NDArray[np.uint8], surfaces: list[bytes]) -> tuple[int, ...]:
    """Text ids, added beside the base vocabulary, whose decoder spells another text than the encoder consumes."""
    count = min(len(kinds), len(parsed.declared))
    beside = (parsed.declared[:count] == Declared.ADDED) & ~parsed.in_base[:count] & (kinds[:count] == Kind.TEXT)
    return tuple(
        token_id
        for token_id in np.flatnonzero(beside).tolist()
        if spell(parsed.raw[token_id] or "", parsed.spelling) != surfaces[token_id]
    )
