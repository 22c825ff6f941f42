"""From token strings to surfaces: the bytes that tokens contribute to decoded text in mid-sequence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from time import monotonic
from typing import overload

import numpy as np
import regex
from numpy.typing import NDArray

from ..errors import VocabularyError
from ..limits import MAX_PATTERN_SECONDS
from ..readers.parsed import Declared, Parsed
from ..readers.spelling import (
    ByteFallback,
    ByteLevel,
    Replace,
    Spelling,
    Step,
    Suffix,
    Unspaced,
    WordPieces,
    bytes_of,
    characters_of,
)
from .kinds import Kind

_BYTE_ESCAPE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# What BERT's pre-tokenizer isolates (Devlin et al., 2019, tokenization.py): the CJK blocks and punctuation, the latter
# being the Unicode category P and every ASCII symbol.
_STANDS_ALONE = regex.compile(
    r"(?:[\p{P}!-/:-@\[-`{-~]|[\u4E00-\u9FFF\u3400-\u4DBF\U00020000-\U0002A6DF\U0002A700-\U0002B73F"
    r"\U0002B740-\U0002B81F\U0002B820-\U0002CEAF\uF900-\uFAFF\U0002F800-\U0002FA1F])+"
)


def byte_escape(token: str) -> int | None:
    """The byte of a byte-fallback escape `<0xNN>`, None for any other string."""
    match = _BYTE_ESCAPE.fullmatch(token)
    return int(match[1], 16) if match else None


def utf8(text: str) -> bytes:
    """UTF-8 of a token string; a lone surrogate, which no encoder can consume, keeps its three bytes."""
    return text.encode("utf-8", "surrogatepass")


def spell(token: str, spelling: Spelling, *, until: float | None = None) -> bytes:
    """The surface of one base token.

    Args:
        token: the token string as its file writes it.
        spelling: the steps of its tokenizer.
        until: when its regular expressions must be done, by `time.monotonic`; by default within `MAX_PATTERN_SECONDS`.

    Returns:
        The bytes; they need not be valid UTF-8.

    Raises:
        VocabularyError: a regular expression takes longer.

    >>> spell("Ġthe", Spelling((ByteLevel(),)))
    b' the'
    >>> spell("cat</w>", Spelling((Suffix("</w>"), ByteLevel())))
    b'cat '
    >>> spell("##ing", Spelling((WordPieces("##"),))), spell("ing", Spelling((WordPieces("##"),)))
    (b'ing', b' ing')
    """
    text, trailing = token, b""
    for step in spelling.steps:
        if isinstance(step, Suffix):
            if step.suffix and text.endswith(step.suffix):
                text, trailing = text.removesuffix(step.suffix), b" "
        elif isinstance(step, ByteFallback):
            byte = byte_escape(text)
            if byte is not None:
                return bytes([byte])
        elif isinstance(step, ByteLevel):
            data = bytes_of(text)
            return (utf8(text) if data is None else data) + trailing
        elif not isinstance(step, Unspaced):
            text = _rewrite(text, step, until)
    return utf8(text) + trailing


def _rewrite(text: str, step: Step, until: float | None) -> str:
    if isinstance(step, Replace) and not step.regex:
        return text.replace(step.pattern, step.content)
    if isinstance(step, Replace):
        left = MAX_PATTERN_SECONDS if until is None else max(until - monotonic(), 1e-3)
        try:
            # `tokenizers` inserts the content as it stands; in a template a backslash of it would mean something.
            rewritten: str = regex.sub(step.pattern, lambda _: step.content, text, timeout=left)
        except TimeoutError as error:
            raise VocabularyError(
                f"the decoder's pattern {step.pattern!r:.80} takes over {MAX_PATTERN_SECONDS:g} seconds for this "
                "vocabulary: it backtracks without end"
            ) from error
        return rewritten
    if isinstance(step, WordPieces):
        if step.prefix and text.startswith(step.prefix) and text != step.prefix:
            return text.removeprefix(step.prefix)
        return text if _STANDS_ALONE.fullmatch(text) else " " + text
    raise TypeError(step)


def spell_all(tokens: Iterable[str], spelling: Spelling) -> list[bytes]:
    """`spell` for every token; the two common spellings take a shorter path with the same result."""
    if spelling.steps == (ByteLevel(),):
        texts = list(tokens)
        data = bytes_of("".join(texts))
        if data is not None:
            # Every character is one byte, so that the bytes are cut where the strings were.
            ends = list(accumulate(map(len, texts), initial=0))
            return [data[start:end] for start, end in pairwise(ends)]
        spelled = ((token, bytes_of(token)) for token in texts)
        return [utf8(token) if alone is None else alone for token, alone in spelled]
    until = monotonic() + MAX_PATTERN_SECONDS
    return [spell(token, spelling, until=until) for token in tokens]


class RankStrings(Sequence[str]):
    """Token strings of a rank file, which has none: the byte table's characters, made when asked for.

    A `tokenizer.json` of the same vocabulary would hold the same strings.
    """

    def __init__(self, strings: Sequence[str | None], token_bytes: Sequence[bytes | None]) -> None:
        self._strings = strings
        self._bytes = token_bytes

    def __len__(self) -> int:
        return len(self._strings)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        string = self._strings[index]
        if string is not None:
            return string
        data = self._bytes[index]
        return "" if data is None else characters_of(data)


def surfaces_of(parsed: Parsed, kinds: NDArray[np.uint8]) -> list[bytes]:
    """The surface of every id below the logit width.

    Base tokens are spelled by the model's steps. Special and reserved tokens, and added tokens that the base vocabulary
    does not have, are the text that the encoder matches: their own UTF-8. Holes and padding have none.

    Args:
        parsed: what the file says.
        kinds: uint8 (logits,), the kind of each id.
    """
    width, count = len(kinds), min(len(kinds), len(parsed.declared))
    surfaces = [b""] * width
    spelled = parsed.in_base[:count] & (kinds[:count] <= Kind.BYTE)
    base = np.flatnonzero(spelled).tolist()
    if parsed.token_bytes is not None:
        for token_id in base:
            surfaces[token_id] = parsed.token_bytes[token_id] or b""
    else:
        texts = [parsed.raw[token_id] or "" for token_id in base]
        for token_id, surface in zip(base, spell_all(texts, parsed.spelling), strict=True):
            surfaces[token_id] = surface
    literal = ~spelled & (kinds[:count] <= Kind.RESERVED)
    for token_id in np.flatnonzero(literal).tolist():
        text = parsed.raw[token_id]
        if text is None and parsed.token_bytes is not None:
            surfaces[token_id] = parsed.token_bytes[token_id] or b""
        else:
            surfaces[token_id] = utf8(text or "")
    return surfaces


def disagreeing_ids(parsed: Parsed, kinds: NDArray[np.uint8], surfaces: list[bytes]) -> tuple[int, ...]:
    """Added text ids for which the decoder writes another text than the encoder reads; the surface is what it reads."""
    count = min(len(kinds), len(parsed.declared))
    beside = (parsed.declared[:count] == Declared.ADDED) & ~parsed.in_base[:count] & (kinds[:count] == Kind.TEXT)
    ids = np.flatnonzero(beside).tolist()
    decoded = spell_all((parsed.raw[token_id] or "" for token_id in ids), parsed.spelling)
    return tuple(token_id for token_id, text in zip(ids, decoded, strict=True) if text != surfaces[token_id])
