"""The canary: several thousand lines on which tokenizers with equal tokens but other merges, patterns, normalisers or
flags differ.

The lines are the same on every machine and under every version of Python: they are made from fixed tables and from a
vocabulary's own surfaces, never from what a library knows of Unicode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

SHORT = (
    "The quick brown fox can't jump over 1234567890 lazy dogs, they've 3.14159 reasons; isn't that 'odd'?",
    "  indented\n\tdef f(x): return x**2 + 1  # comment\r\n\n\n    pass\n",
    " 201 20 2 007 1,000,000 3rd x86_64 IPv6 2001:db8::1 12:30",
    "Größe naïve cafe\u0301 Æsir ﬁn ½ ² Ⅷ Å \u212b",
    "Привет, мир! Γειά σου Κόσμε שלום مرحبا नमस्ते สวัสดี",
    "你好，世界。日本語のテキスト 한국어 텍스트",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 \u200b\u00a0\u3000 \ufeff end",
    'CamelCaseIdentifier snake_case SHOUTING mIxEd!!! ...--- <tag attr="v"> {}[]()',
)
"""A few lines for a first check, when a tokenizer is read; the earlier form of the fingerprint has no others."""

_SPACES = (" ", "\t", "\n", "\r\n")
_RARE_SPACES = ("\r", "\v", "\f", "\u0085", "\u00a0", "\u1680", "\u2003", "\u200b", "\u2028", "\u2029", "\u202f",
                "\u3000", "\ufeff")  # fmt: skip
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~¡§«·»¿‐–—‘’“”…、。「」，！？"
_ENDINGS = ("s", "t", "re", "ve", "m", "ll", "d", "x")

# First and last character of stretches of Unicode that have been assigned for long, and how far apart the characters
# are that stand in the canary: what normalisers change stands there whole.
_STRETCHES = (
    *((0x00A1, 0x024F, 1), (0x0250, 0x036F, 1), (0x0374, 0x0377, 1), (0x0384, 0x0386, 1), (0x0388, 0x0390, 1)),
    *((0x0391, 0x03A1, 1), (0x03A3, 0x052F, 1), (0x05D0, 0x05EA, 1), (0x0621, 0x064A, 1), (0x064B, 0x0669, 1)),
    *((0x0671, 0x06D3, 1), (0x0905, 0x094D, 1), (0x0958, 0x096F, 1), (0x0985, 0x098C, 1), (0x0A05, 0x0A0A, 1)),
    *((0x0A85, 0x0A8B, 1), (0x0B85, 0x0B8A, 1), (0x0C05, 0x0C0C, 1), (0x0C85, 0x0C8C, 1), (0x0D05, 0x0D0C, 1)),
    *((0x0E01, 0x0E3A, 1), (0x0E3F, 0x0E5B, 1), (0x0E81, 0x0E82, 1), (0x0F40, 0x0F47, 1), (0x1000, 0x1049, 1)),
    *((0x10A0, 0x10C5, 1), (0x10D0, 0x10F0, 1), (0x1200, 0x1248, 4), (0x13A0, 0x13F4, 4), (0x1780, 0x17B3, 1)),
    *((0x1E00, 0x1EFF, 1), (0x1F00, 0x1F15, 1), (0x1F18, 0x1F1D, 1), (0x1F20, 0x1F45, 1), (0x1F80, 0x1FB4, 1)),
    *((0x1FB6, 0x1FC4, 1), (0x1FC6, 0x1FD3, 1), (0x1FD6, 0x1FDB, 1), (0x1FDD, 0x1FEF, 1), (0x1FF2, 0x1FF4, 1)),
    *((0x2000, 0x2027, 1), (0x202F, 0x205F, 1), (0x2070, 0x2071, 1), (0x2074, 0x208E, 1), (0x20A0, 0x20B5, 1)),
    *((0x2100, 0x214D, 1), (0x2153, 0x2188, 1), (0x2190, 0x23FF, 8), (0x2460, 0x24FF, 1), (0x2500, 0x27BF, 16)),
    *((0x2A74, 0x2A76, 1), (0x2E80, 0x2E99, 1), (0x2F00, 0x2FD5, 3), (0x3001, 0x303F, 1), (0x3041, 0x3096, 1)),
    *((0x3099, 0x30FF, 1), (0x3105, 0x312C, 1), (0x3131, 0x318E, 1), (0x3192, 0x319F, 1), (0x3200, 0x321E, 1)),
    *((0x3220, 0x3243, 1), (0x3260, 0x327B, 1), (0x3280, 0x32FE, 1), (0x3300, 0x33FF, 1), (0x3400, 0x4DB5, 131)),
    *((0x4E00, 0x9FA5, 41), (0xA000, 0xA48C, 64), (0xAC00, 0xD7A3, 53), (0xF900, 0xFA2D, 1), (0xFA30, 0xFA6A, 1)),
    *((0xFB00, 0xFB06, 1), (0xFB13, 0xFB17, 1), (0xFB1D, 0xFB36, 1), (0xFB50, 0xFBB1, 1), (0xFE30, 0xFE44, 1)),
    *((0xFBD3, 0xFD3D, 5), (0xFDF0, 0xFDFC, 1)),
    *((0xFE49, 0xFE52, 1), (0xFE54, 0xFE66, 1), (0xFE70, 0xFE72, 1), (0xFE76, 0xFEFC, 1), (0xFF01, 0xFFBE, 1)),
    *((0xFFE0, 0xFFE6, 1), (0x10330, 0x1034A, 2), (0x10400, 0x1044F, 4), (0x1D400, 0x1D454, 3), (0x1D7CE, 0x1D7FF, 1)),
    *((0x1F300, 0x1F320, 2), (0x1F600, 0x1F640, 2), (0x20000, 0x2A6D6, 3001), (0x2F800, 0x2FA1D, 8)),
)  # fmt: skip
_MARKS = "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0323\u0327\u0328"
_MARKED = "AEIOUaeiouycdgklnrstzwαεηιοωЕеИи"

_FRAGMENTS = (
    *("the", " the", " and", "ing", " of", " quick", "Under", "stand", " HTTP", "Server", "iPhone", " don't", " I'LL"),
    *(" über", "straße", " être", " año", " mañana", " не", " знаю", "книга", " είναι", " और", "भारत", " لا", "كتاب"),
    *("日本", "の", "東京", "中文", "，", "한국", " 사람", "ไทย", " việt", "שלום", "é", "e\u0301", "😀", "👍🏽", "🇩🇪"),
    *("0", "7", "12", " 42", "201", "1999", "31415", "1,000", "3.5", "0x1F", "1e-5", " 100%", "v2", "²", "½", "٣", "५"),
    *(" ", "  ", "   ", "    ", "        ", "\n", "\n\n", "\n    ", "\t", "\t\t", "\r\n", "\u00a0", " \n", "\n \n"),
    *(".", ",", "!", "?", "...", " -", "--", " =", "==", " !=", "()", "();", "{}", "[i]", "->", "=>", "::", "//", "/*"),
    *("_", "__init__", "self.", "foo_bar", "fooBar", "FOO", "<div>", "</a>", "&amp;", "http://", ".com", "@", "#"),
    *("'s", "'S", "’s", '"', "'", "`", "\\n", "\\", "%d", "€", "→", "∑", "™", "ﬁ", "Ａ", "№", "\u200d"),
)  # fmt: skip
_RANDOM_LINES = 600

_EDGE = 128
_SPREAD = 1200
_TOGETHER = 4


def canary(text_ids: NDArray[np.int64], surfaces: Sequence[bytes]) -> list[str]:
    """The lines for a vocabulary: those that all have, then those made of its own tokens.

    Args:
        text_ids: int64, its ids of kind text, ascending.
        surfaces: of all its ids.
    """
    return [*common_lines(), *_own_lines(text_ids, surfaces)]


@cache
def common_lines() -> tuple[str, ...]:
    """The lines that are the same for every vocabulary, each once."""
    parts = (SHORT, _white_space(), _numbers(), _marks_and_words(), _characters(), _both_normal_forms(), _at_random())
    return tuple(dict.fromkeys(line for part in parts for line in part))


def _white_space() -> Iterator[str]:
    """Every run of up to three kinds of white space, and long ones of each kind, at each place of a line."""
    runs = ["".join(run) for size in (1, 2, 3) for run in product(_SPACES, repeat=size)]
    runs += [space * count for space in _SPACES for count in (*range(4, 18), 24, 31, 32, 33, 64, 65)]
    runs += [left + space + right for space in _RARE_SPACES for left, right in product(("", " ", "\n"), repeat=2)]
    for run in runs:
        yield f"a{run}b"
        yield run
        yield f".{run}("
        yield f"{run}Word{run}"
        yield f"1{run}2{run}\n"


def _numbers() -> Iterator[str]:
    """Numerals of every length, with what stands around them, and the digits of other scripts."""
    digits = "31415926535897932384626433832795"
    for size in range(1, 33):
        number = digits[:size]
        yield from (number, f" {number}", f"x{number}y", f"-{number}.{number[:3]}", f"${number},{number[::-1]}")
    for value in range(0, 1000, 13):
        yield f"{value} {value:03}{value % 10}"
    for zero in (0x0660, 0x0966, 0x09E6, 0x0E50, 0xFF10):
        others = "".join(chr(zero + int(digit)) for digit in digits[:12])
        yield from (others, f"a{others[:3]} {others[3:5]}1")


def _marks_and_words() -> Iterator[str]:
    """Punctuation by itself, doubled and beside everything else; contractions; changes between cases and scripts."""
    for mark in _PUNCTUATION:
        yield from (mark, mark * 2, f" {mark}", f"a{mark}b {mark}c{mark} 1{mark}2{mark}\n\n")
        yield f"{mark * 3}\n{mark} {mark}\r\n"
        yield mark.join(_PUNCTUATION)
    for quote, ending in product("'’", _ENDINGS):
        upper = ending.upper()
        yield f"it{quote}{ending} IT{quote}{upper} it{quote}{upper} {quote}{ending} x {quote} {ending}{quote}"
        yield f"{quote}{ending}o1{quote}{ending}2 ж{quote}{ending}"
    for letter in "aeonstxzAEHOW=-_#*.":
        yield from (letter * size for size in (3, 4, 5, 7, 8, 9, 16, 21))
    words = ("word", "WORD", "Word", "wOrd", "слово", "СЛОВО", "λόγος", "語", "คำ", "كلمة", "שם", "शब्द", "12", "_", "é")
    for left, right in product(words, repeat=2):
        yield f"{left}{right}"
        yield f"{left} {right}-{left}.{right}"


def _characters() -> Iterator[str]:
    """The stretches of Unicode, sixteen characters to a line; each character between others, and each by itself."""
    for first, last, step in _STRETCHES:
        characters = [chr(code) for code in range(first, last + 1, step)]
        for at in range(0, len(characters), 16):
            some = characters[at : at + 16]
            yield "".join(some)
            yield " ".join(some)


def _both_normal_forms() -> Iterator[str]:
    """Letters and marks apart, where the stretches of Unicode have them as one character; jamo apart."""
    for mark in _MARKS:
        yield "".join(letter + mark for letter in _MARKED)
        yield f"x{mark}y {mark} {mark}\u0327a\u0323{mark}"
    for lead in range(0x1100, 0x1113):
        syllables = (chr(lead) + chr(vowel) + tail for vowel in range(0x1161, 0x1176, 4) for tail in ("", "\u11a8"))
        yield "".join(syllables)
    yield from ("\u212b \u2126 \u212a \u1e9b\u0323", "\u0958 \u0915\u093c", "a\u0315\u0300\u05ae\u0327b \u0344")


def _at_random() -> Iterator[str]:
    """Pieces of text and code in any order, drawn by a generator that is written out here."""
    # The constants of the C standard's example of rand(): x becomes 1103515245 x + 12345, and its high bits are used.
    state = 1
    for _ in range(_RANDOM_LINES):
        line = []
        for _ in range(8):
            state = (1103515245 * state + 12345) % (1 << 31)
            line.append(_FRAGMENTS[(state >> 12) % len(_FRAGMENTS)])
        yield "".join(line)


def _own_lines(text_ids: NDArray[np.int64], surfaces: Sequence[bytes]) -> Iterator[str]:
    """Tokens at both ends of the vocabulary, where added ones stand, among what flags look at; others apart."""
    # Ids 0 to 9 with edges of two and a spread of three: 0 1 8 9 among other characters, and 2 4 6 apart.
    edges = np.unique(np.concatenate([text_ids[:_EDGE], text_ids[-_EDGE:]]))
    for token in _texts(edges, surfaces):
        yield f"x{token} {token}  {token}{token}\n{token}1"
    inner = text_ids[_EDGE:-_EDGE]
    count = min(len(inner), _SPREAD * _TOGETHER)
    spread = inner[np.arange(count) * len(inner) // max(count, 1)]
    # Neighbours in the vocabulary are of one kind, so that a line takes tokens from all over it.
    lines = -(-count // _TOGETHER)
    for at in range(lines):
        # Apart, each is a word of its own. A file of ranks merges a token in more ways than the list of merges that
        # converters make of it, which shows inside of longer words and is no reason to call the two different.
        yield "\n".join(_texts(spread[at::lines], surfaces))


def _texts(ids: NDArray[np.int64], surfaces: Sequence[bytes]) -> Iterator[str]:
    """The surfaces that are whole characters."""
    for token_id in ids.tolist():
        try:
            yield surfaces[token_id].decode()
        except UnicodeDecodeError:
            continue
