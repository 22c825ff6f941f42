"""Finding tokens by their text, and a row of W as people and programs read it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..readers.spelling import bytes_of
from ..vocab.byte_strings import ByteStrings
from ..vocab.kinds import Kind


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
    """One link of a row: a teacher token, its weight, which piece of the row it is, and the rule that made it."""

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
        lossy: whether its pieces spell another text than the token.
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


def find_tokens(kinds: NDArray[np.uint8], surfaces: ByteStrings, token: str | bytes) -> list[int]:
    """The ids, ascending, of the tokens with a surface; where none has it, of those with a raw string.

    A mapping keeps no raw strings, so a raw string is read in each way in which tokenizers write one: by the byte table
    (`Ġthe`), with `▁` for a space, as a byte escape (`<0x0A>`), as the end of a word (`the</w>`) or as a continued word
    (`##ing`).

    Args:
        kinds: uint8 (ids,), values of `Kind`; holes and padding are never found.
        surfaces: the surface of each id.
        token: a surface, as text or bytes, or a raw string.
    """
    if isinstance(token, bytes):
        readings: Iterable[tuple[bytes, Kind | None]] = [(token, None)]
    else:
        readings = _readings(token)
    for surface, kind in readings:
        if not surface:
            continue
        # Of 128 thousand tokens some thousands have the right length; only their bytes are compared.
        candidates = np.flatnonzero((surfaces.lengths == len(surface)) & (kinds < Kind.PADDING))
        ids = [i for i in candidates.tolist() if surfaces[i] == surface and (kind is None or kinds[i] == kind)]
        if ids:
            return ids
    return []


def _readings(token: str) -> Iterator[tuple[bytes, Kind | None]]:
    """The surfaces that a string may mean, the likeliest first, with the kind that the token must have, if any."""
    yield token.encode("utf-8", "surrogatepass"), None
    escape = _ESCAPE.fullmatch(token)
    if escape:
        yield bytes([int(escape[1], 16)]), Kind.BYTE
    # GPT-2's byte table writes each byte as a visible character: `Ġthe` means ` the`, and `ä¸` the bytes E4 B8.
    by_table = bytes_of(token)
    if by_table is not None:
        yield by_table, None
    # The markers of the other families: SentencePiece's `▁the`, CLIP's `the</w>`, BERT's `##ing`.
    if "▁" in token:
        yield token.replace("▁", " ").encode(), None
    if token.endswith("</w>"):
        yield token.removesuffix("</w>").encode() + b" ", None
    if token.startswith("##"):
        yield token.removeprefix("##").encode(), None
