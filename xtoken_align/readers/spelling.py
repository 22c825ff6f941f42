"""How a tokenizer writes bytes as token strings, as a tuple of steps read from its model and decoder components.

A spelling is data. `xtoken_align.surfaces` interprets it.
"""

from __future__ import annotations

from dataclasses import dataclass


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


Step = ByteLevel | Replace | ByteFallback | Suffix | WordPieces


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
        """Whether word starts carry a space that the text may not have."""
        return any(isinstance(step, WordPieces) for step in self.steps)

    @property
    def end_of_word(self) -> bool:
        """Whether word ends carry a space that the text may not have."""
        return any(isinstance(step, Suffix) for step in self.steps)
