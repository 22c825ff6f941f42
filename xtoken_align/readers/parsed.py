"""What every reader returns: a tokenizer as its file states it, its encoders, and rows cut at their added tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .spelling import Spelling


class Declared(IntEnum):
    """How the file itself declares an id. Values are internal and never stored."""

    ABSENT = 0
    """No token has this id (a hole)."""
    NORMAL = 1
    """An entry of the base vocabulary."""
    ADDED = 2
    """Added beside the model and matched literally, without the special flag (SentencePiece: user-defined)."""
    SPECIAL = 3
    """Flagged special, or of a control type."""
    UNKNOWN = 4
    """The model's unknown token."""
    BYTE = 5
    """A byte-fallback piece `<0xNN>` of a model that falls back to bytes."""


class Encoder(Protocol):
    """Encodes ordinary text: no special tokens are added or parsed, and no dummy prefix is put before it.

    Attributes:
        dummy_prefix: whether the tokenizer itself puts a space before a text.
    """

    dummy_prefix: bool

    def normalize(self, text: str) -> str:
        """What the normaliser makes of a stretch of text without spaces; the text itself where there is none."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns one list of ids per text, in order."""
        ...

    def encode_bytes(self, data: bytes) -> list[int] | None:
        """Applies the model's own merges to bytes that need not be valid UTF-8.

        Returns the ids, [] where the vocabulary cannot spell the bytes, None where the model has no merges over bytes.
        """
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of a row's text and the tokens that stand for it: one special, or tokens of text.

    Attributes:
        text: the stretch. White space that a special takes from its neighbours belongs to the special.
        ids: the tokens.
        offsets: for every token its first character in `text` and the one after its last; None where the encoder does
            not tell.
    """

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]] | None = None


Part = tuple[str, int | None]
"""A part of a row: text (None), or the text of a control token that was written as such, with its id."""


class RowEncoder(Protocol):
    """Encodes rows for training: the ids that the tokenizer itself gives, its dummy prefix included.

    Added tokens without the special flag (`<think>` of Qwen3) are found in every text, as the tokenizer does. Control
    tokens are found nowhere: a row is given in parts, and its control tokens are parts of their own.
    """

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns one list of ids per text, in order."""
        ...

    def encode_parts(self, rows: Sequence[Sequence[Part]]) -> list[list[Run]]:
        """Returns the runs of every row; their texts, joined, are the row's."""
        ...


@dataclass(frozen=True, slots=True)
class RowTokens:
    """Which ids a row of text may become, for `RowEncoderFactory`.

    Attributes:
        speakable: bool (ids,), as for an `EncoderFactory`.
        literal: added tokens without the special flag, found in every text: string -> id.
        controls: tokens that only a template writes, or a caller who wants them parsed: string -> id.
    """

    speakable: NDArray[np.bool_]
    literal: Mapping[str, int]
    controls: Mapping[str, int]


RowEncoderFactory = Callable[[RowTokens], RowEncoder]

EncoderFactory = Callable[[NDArray[np.bool_]], Encoder]
"""Makes the encoder from a mask over ids (length: highest id + 1): True where text may become the id (kinds text and
byte), False where the id must never come out of text (special, reserved, padding, holes)."""


Stated = Mapping[str, tuple[str, Any]]
"""Parts of a tokenizer by value: part -> the form in which the file states it, and bytes or what JSON can hold. Two
values of one part in one form are equal exactly where the tokenizers behave alike in it."""

StateFactory = Callable[[NDArray[np.bool_]], Stated]
"""Reads the parts off a file, from the mask over ids of an `EncoderFactory`: flags of text tokens are a part of their
own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """One tokenizer as its file states it; the arrays and sequences are indexed by id, 0 to the highest id.

    Attributes:
        format: the reader's name: `tokenizer.json`, `tiktoken`, `tekken`, `sentencepiece`, `gguf`.
        raw: the token strings as the file writes them, `""` for an absent id. For rank formats the base tokens' entries
            may be None: they have no string, only bytes.
        token_bytes: the tokens' bytes where the file gives bytes (rank formats), else None. Entries of special tokens
            are None and come from `raw`.
        declared: uint8 (ids,), values of `Declared`.
        in_base: bool (ids,), True where the model's own vocabulary has the id (False: added tokens outside it).
        base_size: number of tokens of the model's own vocabulary.
        spelling: how the raw string of a base token becomes bytes.
        make_encoder: see `EncoderFactory`.
        make_row_encoder: makes what encodes rows for training; None cuts texts at the added tokens and encodes the
            stretches between.
        state: reads the parts that the file states; None where it states none.
        rewrites: regular expressions of several characters that the normaliser replaces at once (ALBERT's two quotes).
        roles: role name -> token strings, from the file's own configuration (`bos`, `eos`, `pad`, `unk`, ...).
        preset_roles: the same from an alias's table; consulted where `roles` is silent.
        width: logit width that the source states, None when it is silent.
        width_source: where `width` comes from (`config.json`, `gguf tensor`, `preset`), for messages.
        flagged: token strings that a configuration file declares special although the tokenizer file does not.
        found: ids whose strings the tokenizer finds in a text that it is given, its added tokens; None for every
            special token. `[unused1]` in a base vocabulary alone is found by no tokenizer.
        chat_template: the Jinja template that writes a chat as text, None where the source has none.
        warnings: sentences the user should read.
    """

    format: str
    raw: Sequence[str | None]
    token_bytes: Sequence[bytes | None] | None = None
    declared: NDArray[np.uint8]
    in_base: NDArray[np.bool_]
    base_size: int
    spelling: Spelling
    make_encoder: EncoderFactory
    make_row_encoder: RowEncoderFactory | None = None
    state: StateFactory | None = None
    rewrites: tuple[str, ...] = ()
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    preset_roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    width: int | None = None
    width_source: str = ""
    flagged: frozenset[str] = frozenset()
    found: frozenset[int] | None = None
    chat_template: str | None = None
    warnings: tuple[str, ...] = ()


@lru_cache(maxsize=64)
def pattern_of(strings: frozenset[str]) -> re.Pattern[str]:
    """Finds strings in a text, of several at one place the longest.

    >>> pattern_of(frozenset(("<a>", "<a>b"))).findall("x<a>b<a>")
    ['<a>b', '<a>']
    """
    longest_first = sorted(strings, key=lambda string: (-len(string), string))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def cut(text: str, ids: Mapping[str, int], others: Iterable[str] = ()) -> Iterator[Part]:
    """Cuts a text at tokens: text with None, and a token's string with its id.

    Args:
        text: the text.
        ids: the tokens to cut at.
        others: strings of further tokens, which are looked for too and left in the text: one that holds a token of
            `ids` inside of it goes first.

    >>> list(cut("a<s>b", {"<s>": 1}))
    [('a', None), ('<s>', 1), ('b', None)]
    """
    done = 0
    for match in pattern_of(frozenset((*ids, *others))).finditer(text):
        if match[0] in ids:
            if match.start() > done:
                yield text[done : match.start()], None
            yield match[0], ids[match[0]]
            done = match.end()
    if done < len(text):
        yield text[done:], None


class SegmentEncoder:
    """Cuts rows at their added tokens and encodes the stretches between.

    Args:
        encoder: encodes a stretch as the tokenizer itself does at the beginning of a text.
        tokens: the added tokens.
        later: encodes a stretch behind an added token; by default as at the beginning.
    """

    def __init__(self, encoder: Encoder, tokens: RowTokens, *, later: Encoder | None = None) -> None:
        self._encoder = encoder
        self._later = later or encoder
        self._literal = dict(tokens.literal)
        self._found = pattern_of(frozenset(self._literal))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns one list of ids per text."""
        if not self._literal:
            return self._encoder.encode_batch(texts)
        has_token = [self._found.search(text) is not None for text in texts]
        if not any(has_token):
            return self._encoder.encode_batch(texts)
        return [
            [token for run in row for token in run.ids] for row in self.encode_parts([[(text, None)] for text in texts])
        ]

    def encode_parts(self, rows: Sequence[Sequence[Part]]) -> list[list[Run]]:
        """Returns the runs of every row, without offsets."""
        pieces: list[list[Part]] = [
            [piece for text, token in row for piece in (cut(text, self._literal) if token is None else [(text, token)])]
            for row in rows
        ]
        first = [row[0][0] for row in pieces if row and row[0][1] is None]
        later = [text for row in pieces for text, token in row[1:] if token is None]
        encoded_first, encoded_later = iter(self._encoder.encode_batch(first)), iter(self._later.encode_batch(later))
        runs: list[list[Run]] = []
        for row in pieces:
            runs.append([])
            for at, (text, token) in enumerate(row):
                ids = [token] if token is not None else next(encoded_later if at else encoded_first)
                runs[-1].append(Run(text, ids))
        return runs
