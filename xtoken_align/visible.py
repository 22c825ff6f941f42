r"""Making strings visible: a token may be a newline, half a character, or a mark that turns the rest of a line around.

The written form is unambiguous: a backslash always begins an escape, so a token's own is doubled. `\xNN` is a byte,
`\uNNNN` a code point. Spaces stay spaces, so that they can be searched for, and are marked when they are drawn.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex
    from markupsafe import Markup

LONGEST = 160
"""Characters of a string that are shown: more would bury the others, and one token may have thousands."""

MARKS = r"\\(?:\\|[tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|\u2026\[[0-9]+ more\])|[ ]+"
"""What stands out in a visible string: escapes and runs of spaces. Read alike by Python and by the page's script."""

_NAMED = {"\t": r"\t", "\n": r"\n", "\r": r"\r", "\\": r"\\"}
_MARKS = re.compile(MARKS)


_CONTROLS = {
    code: f"\\u{code:04x}"
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""C0 and C1 controls and what turns the direction of a line around, written as JSON writes them."""

_CONTROLS_IN_LINES = {code: escape for code, escape in _CONTROLS.items() if chr(code) not in "\n\t"}


def printable(text: str, *, one_line: bool = False) -> str:
    r"""Writes out the controls that could move a terminal's cursor or rename its window; all the rest stays.

    Args:
        text: any text, JSON too, which stays the JSON of the same value.
        one_line: whether line breaks and tabs are written out as well, as in a name.

    >>> print(printable("a\x1b[2Jb"), printable("a\nb", one_line=True))
    a\u001b[2Jb a\u000ab
    """
    return text.translate(_CONTROLS if one_line else _CONTROLS_IN_LINES)


@cache
def _hidden() -> regex.Pattern[str]:
    import regex  # late: its tables of characters take a while to load

    # Controls, bidirectional overrides, lone surrogates and unassigned code points are all of category C. Fillers and
    # variation selectors are letters and marks that draw nothing; so is the Braille pattern without dots.
    return regex.compile(r"[[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}\u2800\\]--[\ ]]", regex.V1)


def visible(text: str) -> str:
    r"""Writes out every character that would not be seen, and cuts what is too long.

    >>> print(visible("a\tb\u202e\\n"), visible(" the"), sep="|")
    a\tb\u202e\\n| the
    """
    rest = len(text) - LONGEST
    shown = _hidden().sub(lambda match: _escape(match[0]), text[:LONGEST])
    return f"{shown}\\…[{rest} more]" if rest > 0 else shown


def visible_bytes(surface: bytes) -> str:
    r"""The same for a surface; bytes that are no part of a character are written one by one.

    >>> print(visible_bytes(b"\xe4\xb8"), visible_bytes("é".encode()))
    \xe4\xb8 é
    """
    return visible(surface.decode("utf-8", "surrogateescape"))


def markup(shown: str) -> Markup:
    """A visible string as HTML: escapes and spaces in elements of their own, all the rest escaped.

    Args:
        shown: from `visible` or `visible_bytes`.

    Returns:
        Markup that a template includes as it is.
    """
    from markupsafe import Markup

    if not shown:
        return Markup('<span class="tok none">no text</span>')
    # A combining mark at the start has nothing to sit on; the style sheet gives it a dotted circle.
    style = "tok mark" if unicodedata.category(shown[0]).startswith("M") else "tok"
    parts, at = [Markup('<bdi class="{}">').format(style)], 0
    for match in _MARKS.finditer(shown):
        name = "sp" if match[0].startswith(" ") else "esc"
        parts += [Markup.escape(shown[at : match.start()]), Markup('<span class="{}">{}</span>').format(name, match[0])]
        at = match.end()
    return Markup("").join([*parts, Markup.escape(shown[at:]), Markup("</bdi>")])


def _escape(character: str) -> str:
    code = ord(character)
    if character in _NAMED:
        return _NAMED[character]
    if 0xDC80 <= code <= 0xDCFF:  # how Python writes a byte that is no part of a character
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
