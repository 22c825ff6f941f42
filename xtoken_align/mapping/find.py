"""Finding the tokens that a user means by a string: a surface first, a raw string second."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ..readers.byte_table import bytes_of
from ..vocab.byte_strings import ByteStrings
from ..vocab.kinds import Kind
from .side import Side

_ESCAPE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def find_tokens(side: Side, token: str | bytes) -> list[int]:
    """The ids, ascending, of the tokens with a surface; where none has it, of those with a raw string.

    A mapping keeps surfaces only, so a raw string is read in each way in which tokenizers write one: by the byte table,
    with `▁` for a space, as a byte escape, as a word piece.

    Args:
        side: where to look.
        token: a surface, as text or bytes, or a raw string.
    """
    if isinstance(token, bytes):
        return _with_surface(side, token)
    found = _with_surface(side, token.encode("utf-8", "surrogatepass"))
    if found:
        return found
    for surface, kind in _raw_readings(token):
        ids = [i for i in _with_surface(side, surface) if kind is None or side.kinds[i] == kind]
        if ids:
            return ids
    return []


def _raw_readings(token: str) -> Iterator[tuple[bytes, Kind | None]]:
    escape = _ESCAPE.fullmatch(token)
    if escape:
        yield bytes([int(escape[1], 16)]), Kind.BYTE
    by_table = bytes_of(token)
    if by_table is not None:
        yield by_table, None
    if "▁" in token:
        yield token.replace("▁", " ").encode(), None
    if token.endswith("</w>"):
        yield token.removesuffix("</w>").encode() + b" ", None
    if token.startswith("##"):
        yield token.removeprefix("##").encode(), None


def _with_surface(side: Side, surface: bytes) -> list[int]:
    if not surface:
        return []
    strings: ByteStrings = side.surfaces
    candidates = np.flatnonzero((strings.lengths == len(surface)) & (side.kinds < Kind.PADDING))
    return [token_id for token_id in candidates.tolist() if strings[token_id] == surface]
