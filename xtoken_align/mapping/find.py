"""Finding a mapping's rows by a token's text or id, and showing one row for people."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..readers.spelling import bytes_of
from ..vocab.byte_strings import ByteStrings
from ..vocab.kinds import Kind
from .side import Side


def json_surface(surface: bytes) -> str | dict[str, str]:
    """A surface as JSON holds it: a string where it is UTF-8, else its bytes in hexadecimal.

    >>> json_surface(b" the"), json_surface(bytes([0xE4, 0xB8]))
    (' the', {'hex': 'e4b8'})
    """
    try:
        return surface.decode()
    except UnicodeDecodeError:
        return {"hex": surface.hex()}


@dataclass(frozen=True, slots=True)
class Link:
    """One entry of W."""

    teacher_id: int
    surface: bytes
    weight: float
    position: int
    rule: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `show`."""
        return {
            "teacher_id": self.teacher_id,
            "surface": json_surface(self.surface),
            "weight": round(self.weight, 7),
            "position": self.position,
        }


@dataclass(frozen=True, slots=True)
class Row:
    """One student token's row, its links in the order of their positions.

    Attributes:
        id: student id.
        surface: its bytes.
        kind: its kind's name in lower case.
        rule: the rule that owns the row, `none` for an empty one.
        links: the row's entries.
        reason: why the row is empty, None where it is not.
        lossy: whether its decomposition spells another text.
    """

    id: int
    surface: bytes
    kind: str
    rule: str
    links: tuple[Link, ...]
    reason: str | None = None
    lossy: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `show`."""
        return {
            "id": self.id,
            "surface": json_surface(self.surface),
            "kind": self.kind,
            "rule": self.rule,
            "row": [link.to_dict() for link in self.links],
            **({"reason": self.reason} if self.reason is not None else {}),
            **({"lossy": True} if self.lossy else {}),
        }


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
