"""The numerals from 0 to 999, each a cell coloured by how its row is mapped."""

from __future__ import annotations

from dataclasses import dataclass

from ..mapping.mapping import Mapping
from ..mapping.rows import Row
from ..vocab.kinds import Kind
from .palette import way_of
from .visible import visible_bytes

ABSENT = "absent"
"""The student has no token for the numeral: it writes several."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One numeral.

    Attributes:
        way: `exact`, `near`, `split`, `empty` or `absent`; its style class is named after it.
        title: the numeral, its rule and its pieces in words.
        x: column in its block of ten by ten.
        y: row in its block.
    """

    way: str
    title: str
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Hundred:
    """A hundred numerals in ten rows."""

    first: int
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """`0-99`, with a dash."""
        return f"{self.first}–{self.first + 99}"


def numerals(mapping: Mapping) -> tuple[Hundred, ...]:
    """The ten blocks; a numeral that is several tokens counts as its lowest id."""
    wanted = {str(number).encode(): number for number in range(1000)}
    ids: dict[int, int] = {}
    surfaces = mapping.student.surfaces.list
    for token_id in (mapping.student.kinds == Kind.TEXT).nonzero()[0].tolist():
        number = wanted.get(surfaces[token_id])
        if number is not None:
            ids.setdefault(number, token_id)
    cells = [_cell(number, mapping.row(ids[number]) if number in ids else None) for number in range(1000)]
    return tuple(Hundred(first, tuple(cells[first : first + 100])) for first in range(0, 1000, 100))


def counts(hundreds: tuple[Hundred, ...]) -> dict[str, int]:
    """Way -> cells, the ways that occur, in the order of the legend."""
    found = [cell.way for hundred in hundreds for cell in hundred.cells]
    return {way: found.count(way) for way in ("exact", "near", "split", "empty", ABSENT) if way in found}


def _cell(number: int, row: Row | None) -> Cell:
    y, x = divmod(number % 100, 10)
    if row is None:
        return Cell(ABSENT, f"{number}: not a token", x, y)
    if not row.links:
        return Cell("empty", f"{number}: empty, {row.reason}", x, y)
    pieces = ", ".join(f"{visible_bytes(link.surface)} ({link.weight:.4g})" for link in row.links)
    return Cell(way_of(row.rule, len(row.links)), f"{number}: {row.rule}, {pieces}", x, y)
