"""The drawing of `align`: both tokenisations one over the other, cell by cell, in rows that fit the output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

from rich.cells import cell_len, set_cell_size

from .align_cells import Cell, Side
from .align_tokens import Atom, Pen

_STYLES = ("#1f2328 on #cfe3ff", "#1f2328 on #d3f2d0", "#1f2328 on #ffe9bd", "#1f2328 on #ead9ff")
_GAP = "#ffffff on #b3261e"
_SIGN = "#59606b"
_LEAST_WIDTH = 16
_LONGEST_NAME = 16


Line = list[tuple[str, str]]
"""Stretches of a line, each with its style."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A cell, or as much of one as fits a row.

    Attributes:
        sides: what each side draws; none where it has nothing.
        width: cells of the terminal that it takes.
        style: its colours.
        is_last: whether the cell ends with it.
    """

    sides: tuple[list[Atom], list[Atom]]
    width: int
    style: str
    is_last: bool


@dataclass(frozen=True)
class Drawing:
    """Draws cells.

    Attributes:
        student: the student's side.
        teacher: the teacher's.
        pen: draws tokens.
        width: cells of the terminal in a line.
    """

    student: Side
    teacher: Side
    pen: Pen
    width: int

    @property
    def names(self) -> tuple[str, str]:
        """What stands before the lines: names of equal width, roles where the names are the same."""
        names = [side.vocab.name for side in (self.student, self.teacher)]
        if names[0] == names[1]:
            names = ["student", "teacher"]
        widest = min(max(map(cell_len, names)), _LONGEST_NAME)
        return set_cell_size(names[0], widest), set_cell_size(names[1], widest)

    def lines(self, cells: Iterable[Cell]) -> Iterator[Line]:
        """Three lines for each row: an empty one, the student's, and the teacher's."""
        names = self.names
        for row in self._rows(cells):
            yield []
            for side in (0, 1):
                yield self._line(names[side], row, side)

    def _line(self, name: str, row: list[Piece], side: int) -> Line:
        signs = self.pen.signs
        line = [(f"{name} {signs.border}", "")]
        for piece in row:
            atoms = piece.sides[side] or [Atom(signs.nothing * piece.width, is_sign=True)]
            dimmed = _dimmed(piece.style)
            line += [(atom.text, dimmed if atom.is_sign else piece.style) for atom in atoms]
            line.append((" " * (piece.width - _width(atoms)), piece.style))
            if piece.is_last:
                line.append((signs.border, ""))
        return line

    def _rows(self, cells: Iterable[Cell]) -> Iterator[list[Piece]]:
        room = max(self.width - cell_len(self.names[0]) - 2, _LEAST_WIDTH)
        row: list[Piece] = []
        left = room
        for cell in cells:
            pieces = self._pieces(cell, room)
            if row and pieces[0].width >= left:
                yield row
                row, left = [], room
            for piece in pieces:
                row.append(piece)
                left -= piece.width + 1
                if not piece.is_last:
                    yield row
                    row, left = [], room
            # A row ends where the text's line does.
            if row and self._ends_line(cell):
                yield row
                row, left = [], room
        if row:
            yield row

    def _pieces(self, cell: Cell, room: int) -> list[Piece]:
        sides = [self._draw(self.student, cell.student, cell), self._draw(self.teacher, cell.teacher, cell)]
        style = _GAP if cell.chunk is None else _STYLES[cell.chunk % len(_STYLES)]
        cut = [_cut(atoms, room - 1) for atoms in sides]
        count = max(map(len, cut))
        return [
            Piece((own, other), max(_width(own), _width(other)), style, is_last=number == count)
            for number, (own, other) in enumerate(zip_longest(*cut, fillvalue=[Atom("", is_sign=True)]), 1)
        ]

    def _draw(self, side: Side, tokens: tuple[int, int], cell: Cell) -> list[Atom]:
        outside = side.chunk[slice(*tokens)] < 0
        return self.pen.tokens(side.surfaces(tokens), (outside & (cell.chunk is not None)).tolist())

    def _ends_line(self, cell: Cell) -> bool:
        return any(
            side.surfaces((tokens[1] - 1, tokens[1]))[0].endswith(b"\n")
            for side, tokens in ((self.student, cell.student), (self.teacher, cell.teacher))
            if tokens[1] > tokens[0]
        )


def _cut(atoms: list[Atom], room: int) -> list[list[Atom]]:
    """Atoms in lines of at most `room` cells; one line at least."""
    lines: list[list[Atom]] = [[]]
    left = room
    for atom in atoms:
        width = cell_len(atom.text)
        if width > left and lines[-1]:
            lines.append([])
            left = room
        lines[-1].append(atom)
        left -= width
    return lines


def _width(atoms: list[Atom]) -> int:
    return cell_len("".join(atom.text for atom in atoms))


def _dimmed(style: str) -> str:
    return style if style == _GAP else f"{_SIGN} on {style.rpartition(' ')[2]}"
