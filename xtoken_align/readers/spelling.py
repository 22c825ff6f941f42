"""How a tokenizer file spells bytes: GPT-2's byte table, byte escapes, and the facts of one family."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


def _printable(byte: int) -> bool:
    return 0x21 <= byte <= 0x7E or (0xA1 <= byte <= 0xFF and byte != 0xAD)


@cache
def byte_to_character() -> tuple[str, ...]:
    """The character of each byte, by byte value."""
    shifted = iter(range(256, 512))
    return tuple(chr(byte) if _printable(byte) else chr(next(shifted)) for byte in range(256))


@cache
def _to_latin1() -> dict[int, int]:
    # A Latin-1 character outside the alphabet must not pass for a byte: it goes where encoding to Latin-1 fails.
    table = dict.fromkeys(range(256), 65535)
    table.update({ord(character): byte for byte, character in enumerate(byte_to_character())})
    return table


@cache
def _from_latin1() -> dict[int, str]:
    return dict(enumerate(byte_to_character()))


def bytes_of(token: str) -> bytes | None:
    r"""The bytes that a token string stands for, None where a character is not in the alphabet.

    >>> bytes_of("Ġthe"), bytes_of("Ã©"), bytes_of("中")
    (b' the', b'\xc3\xa9', None)
    """
    try:
        return token.translate(_to_latin1()).encode("latin-1")
    except UnicodeEncodeError:
        return None


def characters_of(data: bytes) -> str:
    """The token string that stands for `data`; the inverse of `bytes_of`.

    >>> characters_of(b" the")
    'Ġthe'
    """
    return data.decode("latin-1").translate(_from_latin1())


@dataclass(frozen=True, slots=True)
class ByteLevel:
    """Characters stand for bytes by GPT-2's table."""


@dataclass(frozen=True, slots=True)
class Replace:
    """Every match of `pattern` in the token becomes `content` (SentencePiece's `▁` becomes a space)."""

    pattern: str
    content: str
    regex: bool = False


@dataclass(frozen=True, slots=True)
class ByteFallback:
    """A token `<0xNN>` stands for the byte NN."""


@dataclass(frozen=True, slots=True)
class Suffix:
    """A token that ends in `suffix` ends a word: the suffix is a trailing space (CLIP's `</w>`)."""

    suffix: str


@dataclass(frozen=True, slots=True)
class WordPieces:
    """A token that starts with `prefix` continues a word; any other starts one and carries a leading space.

    Punctuation and CJK characters stand alone and carry none (`bare`): their pre-tokenizer isolates them.
    """

    prefix: str


@dataclass(frozen=True, slots=True)
class Unspaced:
    """No token has a space: the pre-tokenizer drops them, and no mark says where words begin."""


Step = ByteLevel | Replace | ByteFallback | Suffix | WordPieces | Unspaced


@dataclass(frozen=True, slots=True)
class Spelling:
    """Steps in the order in which they apply to one token string; no steps: the string's UTF-8 is its surface."""

    steps: tuple[Step, ...] = ()

    @property
    def byte_level(self) -> bool:
        """Whether characters stand for bytes."""
        return any(isinstance(step, ByteLevel) for step in self.steps)

    @property
    def byte_fallback(self) -> bool:
        """Whether `<0xNN>` tokens are bytes."""
        return any(isinstance(step, ByteFallback) for step in self.steps)

    @property
    def word_pieces(self) -> bool:
        """Whether tokens say nothing of spaces: word starts carry one that the text may not have, or none has any."""
        return any(isinstance(step, (WordPieces, Unspaced)) for step in self.steps)

    @property
    def end_of_word(self) -> bool:
        """Whether word ends carry a space that the text may not have."""
        return any(isinstance(step, Suffix) for step in self.steps)
