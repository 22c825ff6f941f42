"""Which class a token belongs to: numerals, punctuation, words, code, scripts.

Coverage is counted by class, because a mapping loses tokens by the class (all two-digit numerals, all partial UTF-8),
seldom one by one. To add a class: its name in `CLASSES`, where its turn is, and its line in `_classify_texts`.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from ..vocab.kinds import Kind

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
_ANY_SCRIPT = sum(_BIT[name] for name in (*_SCRIPTS, "unlisted"))
_BEYOND_ASCII = sum(_BIT[name] for name in ("wide_white", "wide_digit", "beyond"))
_CODE_SPACE = 0x110000


def classify(kinds: NDArray[np.uint8], surfaces: Sequence[bytes]) -> NDArray[np.uint8]:
    r"""Names the class of every token, by the first line of `CLASSES` that fits.

    Text means the surface decoded as strict UTF-8. Whitespace is Unicode's White_Space, which leaves out the controls
    U+001C to U+001F. The script classes look at letters and marks beyond ASCII. Those that belong to all scripts
    (`ー`, `µ`, accents) take the script of the others: a token whose only letters are such ones is `other`, and one of
    accents alone is a `symbol`. Two scripts make a token `mixed`, whether they have a class or not. A text token with
    an empty surface is `code`, the first class that it fits.

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


def _classify_texts(joined: str, length: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The class of each text, none of them empty.

    Args:
        joined: the texts one after another.
        length: int64 (texts,), their lengths in characters.
    """
    # ` 12`, `a` and `é!` are ` 12aé!`: lengths 3 1 2, starts 0 3 4. The characters' traits are space,
    # digit, digit, ascii_letter, beyond + latin, punct; per text {space, digit} {ascii_letter} {beyond, latin, punct}.
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")
    starts = np.cumsum(length) - length
    traits_of = _trait_table(points)
    of_character = traits_of[points]
    traits = np.bitwise_or.reduceat(of_character, starts)
    # Many classes look past one leading space: `rest` is {digit}, {ascii_letter}, {beyond, latin, punct}.
    has_space = points[starts] == ord(" ")
    of_character[starts[has_space]] = 0
    rest = np.bitwise_or.reduceat(of_character, starts)

    bare_digits = _only(traits, "digit")
    scripts = traits & _ANY_SCRIPT
    neutral = (traits & _BIT["neutral"]) != 0
    one_unlisted = (scripts == _BIT["unlisted"]) & ~_several_unlisted(traits_of, points, starts)
    lines = {
        "partial_utf8": (traits & _BIT["invalid"]) != 0,
        **{f"digits_{count}": bare_digits & (length == count) for count in (1, 2, 3)},
        "digits_4plus": bare_digits,
        "digits_spaced": _only(rest, "digit"),
        "digits_other": _only(traits, "digit", "wide_digit"),
        "whitespace": _only(traits, "space", "ascii_white", "wide_white"),
        "ascii_punct_1": _only(rest, "punct") & (length - has_space == 1),
        "ascii_punct": _only(traits, "punct", "space", "ascii_white", "wide_white"),
        "ascii_word": _only(rest, "ascii_letter"),
        "code": (traits & _BEYOND_ASCII) == 0,
        **{name: scripts == _BIT[name] for name in _SCRIPTS},
        "other": ((scripts == 0) & neutral) | one_unlisted,
        "symbol": scripts == 0,
    }
    # The first line that fits decides, and what fits none has letters of several scripts.
    return np.select(list(lines.values()), [np.uint8(_NUMBER[name]) for name in lines], np.uint8(_NUMBER["mixed"]))


def _only(traits: NDArray[np.uint32], *names: str) -> NDArray[np.bool_]:
    """Which texts have some of the named traits and no other."""
    # Bits beyond the allowed ones would change the union: with digit allowed, {digit} passes, {digit, punct} does not.
    allowed = sum(_BIT[name] for name in names)
    only: NDArray[np.bool_] = (traits != 0) & ((traits | allowed) == allowed)
    return only


def _trait_table(points: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """uint32 (all code points,), the traits of the characters that occur in `points`, 0 for all others."""
    import regex  # late: reading a report needs the names of the classes alone

    # A vocabulary of 128 thousand tokens has some 5 thousand characters: the patterns run over each of them once.
    seen = np.zeros(_CODE_SPACE, np.bool_)
    seen[points] = True
    alphabet = np.flatnonzero(seen).astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
    table = np.zeros(_CODE_SPACE, np.uint32)
    for name, bit in _BIT.items():
        with_trait = "".join(regex.findall(_TRAITS[name], alphabet, regex.V1))
        table[np.frombuffer(with_trait.encode("utf-32-le", "surrogatepass"), "<u4")] |= bit
    return table


def _several_unlisted(
    traits_of: NDArray[np.uint32], points: NDArray[np.uint32], starts: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Says which texts hold letters of two scripts without a class.

    The `regex` package can test a script but not name one, so the first word of a letter's Unicode name stands for it
    (GEORGIAN, ETHIOPIC). That takes some ancient scripts together (OLD PERSIAN, OLD TURKIC), and so all letters that
    are younger than Python's own table of names.

    Args:
        traits_of: from `_trait_table`.
        points: uint32 (characters,), the texts one after another.
        starts: int64 (texts,), where each begins.
    """
    # `აბ` has the script GEORGIAN twice, `აሀ` also ETHIOPIC: numbers 2 2 and 2 1, whose lowest and highest differ.
    letters = np.flatnonzero(traits_of & _BIT["unlisted"])
    words = [unicodedata.name(chr(letter), "").partition(" ")[0] for letter in letters.tolist()]
    number = {word: position for position, word in enumerate(sorted(set(words)), start=1)}
    table = np.zeros(_CODE_SPACE, np.uint16)
    table[letters] = [number[word] for word in words]
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
