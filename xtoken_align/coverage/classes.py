"""Which class a token belongs to: numerals, punctuation, words, code, scripts.

The audit counts a mapping by these classes, because what a mapping loses it loses by the class (all two-digit
numerals, all partial UTF-8), seldom token by token.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..vocab.kinds import Kind

if TYPE_CHECKING:
    import regex

_SCRIPTS = {
    "latin": r"\p{Script=Latin}",
    "cyrillic": r"\p{Script=Cyrillic}",
    "greek": r"\p{Script=Greek}",
    "arabic": r"\p{Script=Arabic}",
    "hebrew": r"\p{Script=Hebrew}",
    "devanagari": r"\p{Script=Devanagari}",
    "thai": r"\p{Script=Thai}",
    "han": r"\p{Script=Han}",
    "kana": r"\p{Script=Hiragana}\p{Script=Katakana}",
    "hangul": r"\p{Script=Hangul}",
}

CLASSES: tuple[str, ...] = (
    "special",
    "reserved",
    "byte",
    "partial_utf8",
    "digits_1",
    "digits_2",
    "digits_3",
    "digits_4plus",
    "digits_spaced",
    "digits_other",
    "whitespace",
    "ascii_punct_1",
    "ascii_punct",
    "ascii_word",
    "code",
    *_SCRIPTS,
    "other",
    "mixed",
    "symbol",
)
"""The classes in the order in which they are tried; the position is the number that `classify` returns."""

_NUMBER = {name: number for number, name in enumerate(CLASSES)}

_KIND_CLASSES = {
    Kind.SPECIAL: "special",
    Kind.RESERVED: "reserved",
    Kind.PADDING: "reserved",
    Kind.HOLE: "reserved",
    Kind.BYTE: "byte",
}

_NEUTRAL = r"\p{Script=Common}\p{Script=Inherited}"

_TRAITS = {
    # Every character has exactly one of these, so that a missing bit never reads as "only the others".
    "invalid": "[\udc80-\udcff]",
    "space": r"[\ ]",
    "ascii_white": r"[[\s&&\x00-\x7f]--\ ]",
    "wide_white": r"[\s--[\x00-\x7f]]",
    "digit": r"[0-9]",
    "wide_digit": r"[\p{Nd}--[0-9]]",
    "punct": f"[{re.escape(string.punctuation)}]",
    "ascii_letter": r"[A-Za-z]",
    "control": r"[[\x00-\x7f]--[\s\x20-\x7e]]",
    "beyond": r"[[^\x00-\x7f]--[\s\p{Nd}\p{Cs}]]",
    # On top of "beyond": letters and marks by script. Marks count where they have a script of their own (a Thai or
    # Devanagari vowel sign is a mark to Unicode); an accent has none and follows its letter.
    "neutral": rf"[[\p{{L}}--[\x00-\x7f]]&&[{_NEUTRAL}]]",
    **{name: rf"[[[\p{{L}}\p{{M}}]--[\x00-\x7f]]&&[{scripts}]]" for name, scripts in _SCRIPTS.items()},
    "unlisted": rf"[[[\p{{L}}\p{{M}}]--[\x00-\x7f]]--[{_NEUTRAL}{''.join(_SCRIPTS.values())}]]",
}
"""What a character is, as patterns of the `regex` package (its V1 set operations); bit i stands for entry i."""

_BIT = {name: 1 << position for position, name in enumerate(_TRAITS)}
_CODE_SPACE = 0x110000


def classify(kinds: NDArray[np.uint8], surfaces: Sequence[bytes]) -> NDArray[np.uint8]:
    r"""Names the class of every token, by the first line of `CLASSES` that fits.

    Text means the surface decoded as strict UTF-8. `\s` is Unicode's White_Space, so the controls U+001C to U+001F
    are no whitespace. The script classes look at letters and marks beyond ASCII; those that belong to all scripts
    (`ー`, `µ`, accents) follow the others. A token with no letters but such ones is `other`, one of accents alone a
    `symbol`. Two scripts without a class of their own make a `mixed` token as two listed ones do. A text token with an
    empty surface fits no earlier line than `code`.

    Args:
        kinds: uint8 (ids,), values of `Kind`.
        surfaces: the bytes of each id, as long as `kinds`; looked at for the kind text alone.

    Returns:
        uint8 (ids,), positions in `CLASSES`.

    Example:
        >>> numbers = classify(np.zeros(3, np.uint8), [b"12", " слово".encode(), b"\xe4"])
        >>> [CLASSES[number] for number in numbers]
        ['digits_2', 'cyrillic', 'partial_utf8']
    """
    result = np.full(len(kinds), _NUMBER["code"], np.uint8)
    for kind, name in _KIND_CLASSES.items():
        result[kinds == kind] = _NUMBER[name]
    is_text = kinds == Kind.TEXT
    # Bytes that are not UTF-8 become lone surrogates, which no valid surface decodes to.
    texts = [surface.decode("utf-8", "surrogateescape") for surface in compress(surfaces, is_text.tolist())]
    length = np.fromiter(map(len, texts), np.int64, len(texts))
    spelled = length > 0
    if spelled.any():
        result[np.flatnonzero(is_text)[spelled]] = _classify_texts("".join(texts), length[spelled])
    return result


@dataclass(frozen=True, slots=True)
class _Texts:
    """Facts about each text, one entry per text: traits are the union of its characters' bits.

    `rest` and `rest_length` leave out one leading U+0020.
    """

    length: NDArray[np.int64]
    rest_length: NDArray[np.int64]
    traits: NDArray[np.uint32]
    rest: NDArray[np.uint32]
    several_unlisted: NDArray[np.bool_]


def _classify_texts(joined: str, length: NDArray[np.int64]) -> NDArray[np.uint8]:
    facts = _facts(joined, length)
    lines = {**_ascii_lines(facts), **_script_lines(facts)}
    numbers = [np.uint8(_NUMBER[name]) for name in lines]
    return np.select(list(lines.values()), numbers, np.uint8(_NUMBER["mixed"]))


def _ascii_lines(facts: _Texts) -> dict[str, NDArray[np.bool_]]:
    bare_digits = _only(facts.traits, "digit")
    marks_and_space = ("punct", "space", "ascii_white", "wide_white")
    return {
        "partial_utf8": (facts.traits & _BIT["invalid"]) != 0,
        **{f"digits_{count}": bare_digits & (facts.length == count) for count in (1, 2, 3)},
        "digits_4plus": bare_digits,
        "digits_spaced": _only(facts.rest, "digit"),
        "digits_other": _only(facts.traits, "digit", "wide_digit"),
        "whitespace": _only(facts.traits, "space", "ascii_white", "wide_white"),
        "ascii_punct_1": _only(facts.rest, "punct") & (facts.rest_length == 1),
        "ascii_punct": _only(facts.traits, *marks_and_space),
        "ascii_word": _only(facts.rest, "ascii_letter"),
        "code": (facts.traits & _union("wide_white", "wide_digit", "beyond")) == 0,
    }


def _script_lines(facts: _Texts) -> dict[str, NDArray[np.bool_]]:
    scripts = facts.traits & _union(*_SCRIPTS, "unlisted")
    neutral = (facts.traits & _BIT["neutral"]) != 0
    lines = {name: scripts == _BIT[name] for name in _SCRIPTS}
    lines["other"] = ((scripts == 0) & neutral) | ((scripts == _BIT["unlisted"]) & ~facts.several_unlisted)
    lines["symbol"] = scripts == 0
    return lines


def _union(*names: str) -> int:
    return sum(_BIT[name] for name in names)


def _only(traits: NDArray[np.uint32], *names: str) -> NDArray[np.bool_]:
    allowed = _union(*names)
    only: NDArray[np.bool_] = (traits != 0) & ((traits | allowed) == allowed)
    return only


def _facts(joined: str, length: NDArray[np.int64]) -> _Texts:
    points = _code_points(joined)
    starts = np.cumsum(length) - length
    seen = np.zeros(_CODE_SPACE, np.bool_)
    seen[points] = True
    alphabet = np.flatnonzero(seen).astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")

    traits = _trait_table(alphabet)[points]
    whole = np.bitwise_or.reduceat(traits, starts)
    leading = points[starts] == ord(" ")
    traits[starts[leading]] = 0
    return _Texts(
        length=length,
        rest_length=length - leading,
        traits=whole,
        rest=np.bitwise_or.reduceat(traits, starts),
        several_unlisted=_several_unlisted(alphabet, points, starts),
    )


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


@cache
def _compiled(name: str) -> regex.Pattern[str]:
    import regex  # late: reading a report needs the names of the classes alone

    return regex.compile(_TRAITS[name], regex.V1)


def _trait_table(alphabet: str) -> NDArray[np.uint32]:
    # A vocabulary of 128 thousand tokens has some 5 thousand characters, so patterns run over those alone.
    table = np.zeros(_CODE_SPACE, np.uint32)
    for name, bit in _BIT.items():
        table[_code_points("".join(_compiled(name).findall(alphabet)))] |= bit
    return table


def _several_unlisted(alphabet: str, points: NDArray[np.uint32], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Says which texts hold letters of two scripts without a class.

    The `regex` package can test a script but not name one, so the first word of a letter's Unicode name stands for it
    (GEORGIAN, ETHIOPIC). That takes some ancient scripts together (OLD PERSIAN, OLD TURKIC), and so all letters that
    are younger than Python's own table of names.
    """
    letters = _compiled("unlisted").findall(alphabet)
    words = [unicodedata.name(letter, "").partition(" ")[0] for letter in letters]
    number = {word: position for position, word in enumerate(sorted(set(words)), start=1)}
    table = np.zeros(_CODE_SPACE, np.uint16)
    table[_code_points("".join(letters))] = [number[word] for word in words]
    script = table[points]
    highest: NDArray[np.uint16] = np.maximum.reduceat(script, starts)
    lowest: NDArray[np.uint16] = np.minimum.reduceat(np.where(script == 0, np.iinfo(np.uint16).max, script), starts)
    several: NDArray[np.bool_] = (highest != 0) & (lowest != highest)
    return several


@dataclass(frozen=True, slots=True)
class ClassRow:
    """How many student ids of a class are mapped, and how; exact + near + split + empty = total.

    Attributes:
        total: ids of the class.
        exact: rows of rule identity, exact or special.
        near: rows of rule space, case or nfkc, and overrides with one link.
        split: rows of rule digits, decompose, bytes or reverse, and overrides with more links.
        empty: rows without links.
        common_strict: rows in the strict common set.
        common_relaxed: rows in the relaxed common set.
    """

    total: int = 0
    exact: int = 0
    near: int = 0
    split: int = 0
    empty: int = 0
    common_strict: int = 0
    common_relaxed: int = 0
