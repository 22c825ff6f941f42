from __future__ import annotations

import string
import unicodedata

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xtoken_align.coverage import CLASSES, classify
from xtoken_align.vocab.kinds import Kind

SCRIPTS = {
    "latin": "Latin",
    "cyrillic": "Cyrillic",
    "greek": "Greek",
    "arabic": "Arabic",
    "hebrew": "Hebrew",
    "devanagari": "Devanagari",
    "thai": "Thai",
    "han": "Han",
    "kana": "Hiragana|Katakana",
    "hangul": "Hangul",
}
PUNCTUATION = regex.escape(string.punctuation, special_only=False)
LINES = {
    "digits_1": r"[0-9]",
    "digits_2": r"[0-9]{2}",
    "digits_3": r"[0-9]{3}",
    "digits_4plus": r"[0-9]{4,}",
    "digits_spaced": r" [0-9]+",
    "digits_other": r"\p{Nd}+",
    "whitespace": r"\s+",
    "ascii_punct_1": rf" ?[{PUNCTUATION}]",
    "ascii_punct": rf"[\s{PUNCTUATION}]+",
    "ascii_word": r" ?[A-Za-z]+",
    "code": r"[\x00-\x7f]*",
}


def slow_class(surface: bytes) -> str:
    """Classifies one text token line by line: the definition."""
    try:
        text = surface.decode()
    except UnicodeDecodeError:
        return "partial_utf8"
    for name, pattern in LINES.items():
        if regex.fullmatch(pattern, text):
            return name
    rest = regex.sub(r"[\s\x00-\x7f]", "", text)
    scripts = {script_of(char) for char in rest if regex.match(r"[\p{L}\p{M}]", char)} - {""}
    if len(scripts) > 1:
        return "mixed"
    if scripts:
        (script,) = scripts
        return script if script in SCRIPTS else "other"
    return "other" if regex.search(r"\p{L}", rest) else "symbol"


def script_of(char: str) -> str:
    if regex.match(r"\p{Script=Common}|\p{Script=Inherited}", char):
        return ""
    for name, scripts in SCRIPTS.items():
        if any(regex.match(rf"\p{{Script={script}}}", char) for script in scripts.split("|")):
            return name
    return unicodedata.name(char, "unnamed").partition(" ")[0]


def class_of(surface: bytes | str, kind: Kind = Kind.TEXT) -> str:
    data = surface.encode() if isinstance(surface, str) else surface
    (number,) = classify(np.array([kind], np.uint8), [data])
    return CLASSES[int(number)]


ALPHABET = st.one_of(
    st.sampled_from(" \t\n\u3000\xa0\x1c\x00az9.[~é́яλשַअािไทํ汉かナー한ქა١９µ🙂️”\u2028ªⅧ々ﾞـَ"),
    st.characters(codec="utf-8"),
)
SURFACES = st.lists(st.one_of(st.text(ALPHABET, max_size=6).map(str.encode), st.binary(max_size=4)), max_size=12)


@settings(deadline=None)  # the first example compiles the patterns
@given(SURFACES)
@example(["\u00c0\U00017000".encode(), "\U00017000".encode(), "\u10e5\U00017000".encode()])
@example([b"", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xef\xbb\xbf", b"\xed\xb2\x80"])
def test_classify_agrees_with_the_definition_applied_to_one_token_at_a_time(surfaces: list[bytes]) -> None:
    numbers = classify(np.zeros(len(surfaces), np.uint8), surfaces)

    assert [CLASSES[number] for number in numbers] == [slow_class(surface) for surface in surfaces]
    assert numbers.dtype == np.uint8


@pytest.mark.parametrize(
    ("surface", "expected"),
    [
        ("7", "digits_1"),
        ("42", "digits_2"),
        ("000", "digits_3"),
        ("2026", "digits_4plus"),
        (" 7", "digits_spaced"),
        (" 2026", "digits_spaced"),
        ("  7", "code"),
        ("\t7", "code"),
        ("٣", "digits_other"),
        ("1\uff12", "digits_other"),
        ("1.5", "code"),
        (" ", "whitespace"),
        ("\r\n\t", "whitespace"),
        ("\u3000\xa0", "whitespace"),
        ("\x1c", "code"),
        ("\x00", "code"),
        ("_", "ascii_punct_1"),
        (" (", "ascii_punct_1"),
        ("\n(", "ascii_punct"),
        ("  (", "ascii_punct"),
        ("());\n", "ascii_punct"),
        (".\u3000", "ascii_punct"),
        ("word", "ascii_word"),
        (" Word", "ascii_word"),
        ("  word", "code"),
        ("don't", "code"),
        ("x1", "code"),
        ("café", "latin"),
        ("ﬁ", "latin"),
        ("слово", "cyrillic"),
        ("a-слово", "cyrillic"),
        (" λόγος", "greek"),
        ("سلام", "arabic"),
        ("שָׁלוֹם", "hebrew"),
        ("हिन्दी", "devanagari"),
        ("ไทย", "thai"),
        ("汉字", "han"),
        ("人々", "han"),
        ("ひらカタ", "kana"),
        ("한글", "hangul"),
        ("ქართული", "other"),
        ("食べる", "mixed"),
        ("яλ", "mixed"),
        ("—", "symbol"),
        ("🙂", "symbol"),
        ("❤️", "symbol"),
        ("\u22125", "symbol"),
        ("x²", "symbol"),
    ],
)
def test_a_token_falls_into_the_first_line_that_fits(surface: str, expected: str) -> None:
    assert class_of(surface) == expected


@pytest.mark.parametrize(
    ("surface", "expected"), [("セーター", "kana"), ("ー", "other"), ("µ", "other"), ("µм", "cyrillic")]
)
def test_a_letter_of_no_single_script_follows_the_others(surface: str, expected: str) -> None:
    assert class_of(surface) == expected


@pytest.mark.parametrize(("surface", "expected"), [("ा", "devanagari"), (" ิ", "thai"), ("\u0301", "symbol")])
def test_a_mark_counts_as_a_letter_where_it_has_a_script(surface: str, expected: str) -> None:
    assert class_of(surface) == expected


def test_two_scripts_without_a_class_make_a_mixed_token() -> None:
    assert class_of("ქա") == "mixed"


@pytest.mark.parametrize("surface", [b"\xe4", b"a\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"])
def test_bytes_that_are_not_utf8_are_partial(surface: bytes) -> None:
    assert class_of(surface) == "partial_utf8"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.SPECIAL, "special"),
        (Kind.RESERVED, "reserved"),
        (Kind.PADDING, "reserved"),
        (Kind.HOLE, "reserved"),
        (Kind.BYTE, "byte"),
    ],
)
def test_the_kind_decides_before_the_surface(kind: Kind, expected: str) -> None:
    assert class_of("42", kind) == expected


def test_an_empty_surface_of_kind_text_is_code() -> None:
    assert class_of(b"") == "code"


def test_neighbours_do_not_influence_each_other() -> None:
    kinds = np.array([Kind.TEXT, Kind.TEXT, Kind.SPECIAL, Kind.TEXT, Kind.TEXT, Kind.TEXT], np.uint8)
    surfaces = [b"", b"\xe4", b"<s>", b"", b"\xb8\xad", b"12"]

    names = [CLASSES[number] for number in classify(kinds, surfaces)]

    assert names == ["code", "partial_utf8", "special", "code", "partial_utf8", "digits_2"]


def test_a_vocabulary_without_ids_has_no_classes() -> None:
    assert classify(np.zeros(0, np.uint8), []).shape == (0,)


def test_classes_are_distinct_and_in_the_order_in_which_they_are_tried() -> None:
    assert len(set(CLASSES)) == len(CLASSES) == 28
    assert CLASSES[:4] == ("special", "reserved", "byte", "partial_utf8")
    assert CLASSES[-3:] == ("other", "mixed", "symbol")
