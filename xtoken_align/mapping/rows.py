"""One row of a mapping, for people: a student token, its rule and its pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
