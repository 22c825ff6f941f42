"""Tokens as `align` draws them: what would not be seen, or would move what stands beside it, is written out."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import regex
from rich.cells import cell_len

from ..visible import MARKS, visible

LONGEST = 160
"""Tokens of a cell that are drawn: two tokenizers may agree on no border for pages."""

LEFT_TO_RIGHT = "\u200e"

# A surrogate is how Python writes a byte that is no part of a character.
_RUNS = regex.compile("[\udc80-\udcff]+|[^\udc80-\udcff]+")
_PARTS = regex.compile(rf"{MARKS}|\X")


class Atom(NamedTuple):
    """What stays together where a line is broken.

    Attributes:
        text: characters.
        is_sign: whether they stand for something else than themselves.
    """

    text: str
    is_sign: bool


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
        atoms += _bytes(run, pen.signs) if "\udc80" <= run[0] <= "\udcff" else _text(run, pen)
    return tuple(atoms)


def _bytes(run: str, signs: Signs) -> list[Atom]:
    codes = [f"{byte:02x}" for byte in run.encode("utf-8", "surrogateescape")]
    codes = [codes[0], *(f" {code}" for code in codes[1:])]
    codes[0] = signs.opening + codes[0]
    codes[-1] += signs.closing
    return [Atom(code, is_sign=True) for code in codes]


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
    if (
        not pen.has(part)
        or part == pen.signs.border
        or (not part.isascii() and part in astuple(pen.signs))
        or _is_half_a_flag(part)
    ):
        return Atom(_escaped(part), is_sign=True)
    if cell_len(part):
        return Atom(part, is_sign=False)
    if unicodedata.category(part[0]).startswith("M") and pen.has("◌"):
        return Atom(f"◌{part}", is_sign=False)
    return Atom(_escaped(part), is_sign=True)


def _is_half_a_flag(part: str) -> bool:
    return len(part) == 1 and "\U0001f1e6" <= part <= "\U0001f1ff"


def _escaped(part: str) -> str:
    return f"\\x{ord(part):02x}" if part.isascii() else part.encode("ascii", "backslashreplace").decode()
