"""What `align` prints: both tokenisations one over the other in rows that fit the output, statistics, or JSON.

The drawing goes from cells (chunks and gaps, from the library) to pieces (as much of a cell as fits a row) to atoms,
which stay together where a line is broken. What would not be seen, or would move what stands beside it, is written out.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache
from itertools import islice, zip_longest
from typing import NamedTuple

import click
import regex
from rich import box
from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from ..coverage.render import percent
from ..mapping.find import json_surface
from ..spans.drawing import CHUNK_COLOURS, GAP_COLOUR, GAP_INK, INK, Cell, Range, Side, cells, count_cells
from ..spans.spans import SpanStatistics
from ..visible import MARKS, visible
from .console import counted, direction, print_table, stdout_console, tell

Sides = tuple[Side, Side]
"""Student and teacher."""

_SORTS = (
    ("1 to 1", "one_to_one"),
    ("1 to n", "one_to_many"),
    ("n to 1", "many_to_one"),
    ("n to m", "many_to_many"),
)
"""A chunk's student tokens to its teacher tokens, and its share in the statistics."""

_CHUNK_STYLES = tuple(f"{INK} on {colour}" for colour in CHUNK_COLOURS)
_GAP_STYLE = f"{GAP_INK} on {GAP_COLOUR}"
_SIGN_INK = "#59606b"
_LEAST_WIDTH = 16
_LONGEST_NAME = 16

LONGEST = 160
"""Tokens of a cell that are drawn: two tokenizers may agree on no border for pages."""

LEFT_TO_RIGHT = "\u200e"

# A surrogate is how Python writes a byte that is no part of a character.
_RUNS = regex.compile("[\udc80-\udcff]+|[^\udc80-\udcff]+")
_PARTS = regex.compile(rf"{MARKS}|\X")


def draw(sides: Sides, statistics: SpanStatistics, *, limit: int | None) -> None:
    """Prints the two tokenisations one over the other, and how many chunks of which sort there are.

    Args:
        sides: student and teacher.
        statistics: of the whole text.
        limit: chunks and gaps that are drawn, None for all.
    """
    console = stdout_console()
    sorts = ", ".join(f"{count:,} {name}" for name, count in _counts(statistics).items() if count)
    has_gaps = statistics.student_gaps or statistics.teacher_gaps
    gaps = f"; in no chunk: {_gaps(statistics)}" if has_gaps else ""
    tell(f"{_direction(sides)}: {counted(statistics.chunks, 'chunk')}{f' ({sorts})' if sorts else ''}{gaps}")
    drawing = Drawing(*sides, Pen(sys.stdout.encoding or "utf-8"), console.width)
    plain = console.no_color or console.color_system is None
    for line in drawing.lines(islice(cells(*sides), limit)):
        # Drawing colours takes most of the time, and there are none in a pipe.
        if plain:
            click.echo("".join(text for text, _ in line))
        else:
            console.print(Text.assemble(*line), soft_wrap=True)
    total = count_cells(*sides)
    if limit is not None and total > limit:
        tell(f"Note: {limit:,} of {total:,} chunks and gaps are shown: --all shows all.", err=True)


def print_statistics(sides: Sides, statistics: SpanStatistics) -> None:
    """Prints the sorts of chunks and the tokens of both sides as tables."""
    tell(f"{_direction(sides)}\n")
    chunks = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), show_footer=True)
    chunks.add_column("student tokens to teacher tokens", "all", no_wrap=True)
    chunks.add_column("chunks", f"{statistics.chunks:,}", justify="right", no_wrap=True)
    chunks.add_column("%", percent(statistics.chunks, statistics.chunks), justify="right", no_wrap=True)
    for name, count in _counts(statistics).items():
        chunks.add_row(name, f"{count:,}", percent(count, statistics.chunks))
    print_table(chunks)
    tell(f"\nTokens: student {statistics.student_tokens:,}, teacher {statistics.teacher_tokens:,}.")
    tell(f"In no chunk: {_gaps(statistics)}.")
    tell(f"The longest chunk has {counted(statistics.longest, 'token')} on one side.")


def print_report(sides: Sides, statistics: SpanStatistics, *, stats_only: bool) -> None:
    """Prints JSON with a line for each chunk; a text has very many."""
    student, teacher = sides
    lines = ['  "schema": 1']
    for name, side in (("student", student), ("teacher", teacher)):
        ids = {} if stats_only else {"ids": side.ids.tolist()}
        facts = {"name": side.vocab.name, "fingerprint": side.vocab.fingerprint, **ids}
        lines.append(f'  "{name}": {json.dumps(facts)}')
    lines.append(f'  "stats": {json.dumps(statistics.to_dict())}')
    if not stats_only:
        ranges = zip(student.ranges.tolist(), teacher.ranges.tolist(), student.chunk_texts(), strict=True)
        chunks = ({"student": own, "teacher": other, "surface": json_surface(text)} for own, other, text in ranges)
        gaps = {"student": student.gaps(), "teacher": teacher.gaps()}
        chunk_lines = ",".join(f"\n    {json.dumps(chunk)}" for chunk in chunks)
        lines += [f'  "chunks": [{chunk_lines}]', f'  "gaps": {json.dumps(gaps)}']
    click.echo("{\n" + ",\n".join(lines) + "\n}")


def _direction(sides: Sides) -> str:
    student, teacher = sides
    return direction(student.vocab.name, teacher.vocab.name)


def _counts(statistics: SpanStatistics) -> dict[str, int]:
    return {name: round(getattr(statistics, share) * statistics.chunks) for name, share in _SORTS}


def _gaps(statistics: SpanStatistics) -> str:
    return f"student {statistics.student_gaps:,}, teacher {statistics.teacher_gaps:,}"


# Rows


class Atom(NamedTuple):
    """What stays together where a line is broken.

    Attributes:
        text: characters.
        is_sign: whether they stand for something else than themselves.
    """

    text: str
    is_sign: bool


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


Line = list[tuple[str, str]]
"""Stretches of a line, each with its style."""


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

    @cached_property
    def names(self) -> tuple[str, str]:
        """What stands before the lines: names of equal width, roles where the names are the same."""
        names = [side.vocab.name for side in (self.student, self.teacher)]
        if names[0] == names[1]:
            names = ["student", "teacher"]
        widest = min(max(map(cell_len, names)), _LONGEST_NAME)
        return set_cell_size(names[0], widest), set_cell_size(names[1], widest)

    def lines(self, cells: Iterable[Cell]) -> Iterator[Line]:
        """Three lines for each row: an empty one, the student's, and the teacher's."""
        for row in self._rows(cells):
            yield []
            for side in (0, 1):
                yield self._line(self.names[side], row, side)

    def _line(self, name: str, row: list[Piece], side: int) -> Line:
        signs = self.pen.signs
        line = [(f"{name} {signs.border}", "")]
        for piece in row:
            atoms = piece.sides[side] or [Atom(signs.nothing * piece.width, is_sign=True)]
            dimmed = piece.style
            if piece.style != _GAP_STYLE:
                dimmed = f"{_SIGN_INK} on {piece.style.rpartition(' ')[2]}"
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
        style = _GAP_STYLE if cell.chunk is None else _CHUNK_STYLES[cell.chunk % len(_CHUNK_STYLES)]
        cut: list[list[list[Atom]]] = []
        for side, tokens in ((self.student, cell.student), (self.teacher, cell.teacher)):
            outside = (side.chunk[slice(*tokens)] < 0) & (cell.chunk is not None)
            cut.append(_cut(self.pen.tokens(side.surfaces(tokens), outside.tolist()), room - 1))
        count = max(map(len, cut))
        return [
            Piece((own, other), max(_width(own), _width(other)), style, is_last=number == count)
            for number, (own, other) in enumerate(zip_longest(*cut, fillvalue=[Atom("", is_sign=True)]), 1)
        ]

    def _ends_line(self, cell: Cell) -> bool:
        def ends(side: Side, tokens: Range) -> bool:
            return tokens[1] > tokens[0] and side.surfaces((tokens[1] - 1, tokens[1]))[0].endswith(b"\n")

        return ends(self.student, cell.student) or ends(self.teacher, cell.teacher)


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


# Tokens


@dataclass(frozen=True, slots=True)
class Signs:
    """The signs of a drawing.

    Attributes:
        border: between cells.
        within: between the tokens of a cell.
        space: a space.
        nothing: where one side has nothing, and before a token inside a chunk that is no part of it.
        opening: before the bytes of a part of a character.
        closing: after them.
    """

    border: str = "│"
    within: str = "┊"
    space: str = "␣"
    nothing: str = "░"
    opening: str = "⟨"
    closing: str = "⟩"


_ASCII_SIGNS = Signs(border="|", within=":", space="_", nothing="#", opening="<", closing=">")


@dataclass(frozen=True)
class Pen:
    """Draws tokens for an output of some encoding; what the encoding lacks is escaped, so that widths stay true."""

    encoding: str

    @cached_property
    def signs(self) -> Signs:
        """The signs that the encoding has."""
        signs = Signs()
        return signs if self.has("".join(astuple(signs))) else _ASCII_SIGNS

    def has(self, text: str) -> bool:
        """Whether the encoding has all characters of a text."""
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            return False
        return True

    def tokens(self, surfaces: Sequence[bytes], outside: Sequence[bool]) -> list[Atom]:
        """Draws one side of a cell.

        Args:
            surfaces: what its tokens stand for.
            outside: which of them stand inside a chunk without being part of it.
        """
        atoms: list[Atom] = []
        for surface, is_outside in zip(surfaces[:LONGEST], outside, strict=False):
            if atoms:
                atoms.append(Atom(self.signs.within, is_sign=True))
            if is_outside:
                atoms.append(Atom(self.signs.nothing, is_sign=True))
            atoms += draw_token(self, surface)
        rest = len(surfaces) - LONGEST
        return [*atoms, Atom(rf"\..[{rest} more]", is_sign=True)] if rest > 0 else atoms


@lru_cache(maxsize=1 << 14)
def draw_token(pen: Pen, surface: bytes) -> tuple[Atom, ...]:
    r"""Draws a token: its text, with the bytes of unfinished characters in hexadecimal.

    >>> "".join(atom.text for atom in draw_token(Pen("utf-8"), b" \xe4\xbd\n"))
    '␣⟨e4 bd⟩\\n'
    """
    atoms: list[Atom] = []
    for run in _RUNS.findall(surface.decode("utf-8", "surrogateescape")):
        if "\udc80" <= run[0] <= "\udcff":
            first, *others = (f"{byte:02x}" for byte in run.encode("utf-8", "surrogateescape"))
            codes = [pen.signs.opening + first, *(f" {code}" for code in others)]
            codes[-1] += pen.signs.closing
            atoms += [Atom(code, is_sign=True) for code in codes]
        else:
            atoms += _text(run, pen)
    return tuple(atoms)


def _text(run: str, pen: Pen) -> list[Atom]:
    atoms = []
    for part in _PARTS.findall(visible(run)):
        if part[0] == " ":
            atoms += [Atom(pen.signs.space, is_sign=True)] * len(part)
        elif part[0] == "\\":
            atoms.append(Atom(part.replace("…", ".."), is_sign=True))
        else:
            atoms.append(_character(part, pen))
    # A terminal that turns Arabic and Hebrew around would otherwise swap this text with a neighbour of its kind.
    if pen.has(LEFT_TO_RIGHT) and any(unicodedata.bidirectional(letter) in {"R", "AL", "AN"} for letter in run):
        atoms.append(Atom(LEFT_TO_RIGHT, is_sign=True))
    return atoms


def _character(part: str, pen: Pen) -> Atom:
    """A character with its marks, escaped where terminals disagree about its width or it could be taken for a sign."""
    half_a_flag = len(part) == 1 and "\U0001f1e6" <= part <= "\U0001f1ff"
    looks_like_a_sign = part == pen.signs.border or (not part.isascii() and part in astuple(pen.signs))
    if pen.has(part) and not half_a_flag and not looks_like_a_sign:
        if cell_len(part):
            return Atom(part, is_sign=False)
        if unicodedata.category(part[0]).startswith("M") and pen.has("◌"):
            return Atom(f"◌{part}", is_sign=False)
    escaped = f"\\x{ord(part):02x}" if part.isascii() else part.encode("ascii", "backslashreplace").decode()
    return Atom(escaped, is_sign=True)
