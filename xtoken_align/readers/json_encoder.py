"""The encoder of a `tokenizer.json`: `tokenizers` on a copy of it that holds ordinary text alone, without a prefix."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..errors import VocabularyError
from .byte_table import characters_of
from .json_copy import NONCHARACTER, has_prefix, text_only, without_prefix
from .panics import refused
from .tokenizer_json import AddedToken, model_type

_SEAM = re.compile(rf"(?<=<)(?=0x[0-9A-Fa-f]{{2}}>)|(?<={NONCHARACTER})")
_SPACE = re.compile(r"\s")
_CANNOT_ENCODE = "tokenizers cannot encode with this tokenizer.json"


class JsonEncoder:
    """Encodes with the file's own model, normaliser and pre-tokenizer.

    Args:
        data: the file's JSON; it is not changed.
        added: its added tokens by id.
        speakable: bool (ids,), which ids text may become.
        byte_level: whether the base vocabulary is spelled by the byte table.

    Raises:
        VocabularyError: `tokenizers` refuses the components.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        added: Mapping[int, AddedToken],
        speakable: NDArray[np.bool_],
        *,
        byte_level: bool,
    ) -> None:
        copy, base_ids = text_only(data, added, speakable)
        self._byte_level = byte_level
        self._bare = _load(without_prefix(copy))
        self._prefixed = self._bare
        self._ids = self._file_ids(copy, base_ids)
        # A Unigram model and one that looks whole words up read a byte piece's own name as the byte.
        looks_up = model_type(data["model"]) == "Unigram" or bool(data["model"].get("ignore_merges"))
        self._cuts_escapes = looks_up and bool(data["model"].get("byte_fallback"))
        self._leading_lost = self._inner_lost = False
        self.dummy_prefix = has_prefix(copy)
        if self.dummy_prefix:
            self._leading_lost, self._inner_lost = self._loses("x", " x"), self._loses("xy", "x y")
            if self._leading_lost:
                self._prefixed = _load(copy)

    def _file_ids(self, copy: Mapping[str, Any], base_ids: Mapping[int, int]) -> dict[int, int]:
        """The file's number of every id that the copy numbers otherwise; -1 for what is no token of the file."""
        vocab = copy["model"]["vocab"]
        own = vocab if isinstance(vocab, dict) else {piece for piece, _ in vocab}
        given = dict(base_ids)
        for entry in reversed(copy["added_tokens"]):
            # A base token that is listed under another number too is produced under its own.
            mine = self._bare.token_to_id(entry["content"])
            if mine is not None and entry["content"] not in own:
                given[mine] = int(entry["id"])
        return {mine: theirs for mine, theirs in given.items() if mine != theirs}

    def _loses(self, without: str, with_space: str) -> bool:
        """Whether the pre-tokenizer cannot tell two texts that differ in a space."""

        def seen(text: str) -> str:
            normalizer, splitter = self._bare.normalizer, self._bare.pre_tokenizer
            text = text if normalizer is None else normalizer.normalize_str(text)
            return text if splitter is None else "".join(piece for piece, _ in splitter.pre_tokenize_str(text))

        with refused(_CANNOT_ENCODE, VocabularyError):
            return seen(without) == seen(with_space)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns one list of ids per text.

        Where the pre-tokenizer drops spaces, the words that follow one keep the dummy prefix (it is their space) and
        the word that begins the text goes without.
        """
        if any(self._has_seam(text) for text in texts):
            return [self._encode_in_parts(text) for text in texts]
        return self._encode(texts)

    def _has_seam(self, text: str) -> bool:
        return (self._cuts_escapes and "<0x" in text) or NONCHARACTER in text

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not self._leading_lost:
            return self._run(self._bare, texts)
        cuts = [self._first_space(text) for text in texts]
        heads = self._run(self._bare, [text[:cut] for text, cut in zip(texts, cuts, strict=True)])
        tails = self._run(self._prefixed, [text[cut:] for text, cut in zip(texts, cuts, strict=True)])
        return [head + tail for head, tail in zip(heads, tails, strict=True)]

    def _first_space(self, text: str) -> int:
        if text[:1].isspace():
            return 0
        found = _SPACE.search(text) if self._inner_lost else None
        return found.start() if found else len(text)

    def _encode_in_parts(self, text: str) -> list[int]:
        # Cut inside every name that only a token which text must not become can have.
        parts = self._encode(_SEAM.split(text)) if self._has_seam(text) else self._encode([text])
        return [token for part in parts for token in part]

    def _run(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        clean = [_scalar(text) for text in texts]
        with refused(_CANNOT_ENCODE, VocabularyError):
            encodings = tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        if not self._ids:
            return [encoding.ids for encoding in encodings]
        find = self._ids.get
        found = ([find(token, token) for token in encoding.ids] for encoding in encodings)
        return [[token for token in ids if token >= 0] for ids in found]

    def encode_offsets(self, text: str) -> list[tuple[int, int, int]]:
        """Encodes one text.

        Returns:
            Each token with the characters of the text that it stands for: id, first character, the one after the last.
        """
        placed: list[tuple[int, int, int]] = []
        start = 0
        for part in _SEAM.split(text) if self._has_seam(text) else [text]:
            cut = self._first_space(part) if self._leading_lost else len(part)
            for tokenizer, piece in ((self._bare, part[:cut]), (self._prefixed, part[cut:])):
                placed += self._run_offsets(tokenizer, piece, start)
                start += len(piece)
        return placed

    def _run_offsets(self, tokenizer: Tokenizer, text: str, start: int) -> list[tuple[int, int, int]]:
        if not text:
            return []
        with refused(_CANNOT_ENCODE, VocabularyError):
            encoding = tokenizer.encode(_scalar(text), add_special_tokens=False)
        found = (self._ids.get(token, token) for token in encoding.ids)
        pairs = zip(found, encoding.offsets, strict=True)
        return [(token, start + begin, start + end) for token, (begin, end) in pairs if token >= 0]

    def normalize(self, text: str) -> str:
        """Returns what the file's normaliser makes of a stretch of text without spaces."""
        normalizer = self._bare.normalizer
        if normalizer is None:
            return text
        with refused(_CANNOT_ENCODE, VocabularyError):
            return str(normalizer.normalize_str(_scalar(text)))

    def encode_bytes(self, data: bytes) -> list[int] | None:
        """Returns the model's merges over the byte table's characters, None where it has no byte table."""
        if not self._byte_level:
            return None
        with refused(_CANNOT_ENCODE, VocabularyError):
            ids = [token.id for token in self._bare.model.tokenize(characters_of(data))]
        found = [self._ids.get(token, token) for token in ids]
        return found if min(found, default=0) >= 0 else []


def _scalar(text: str) -> str:
    """Lone surrogates become U+FFFD: Rust strings cannot hold them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _load(data: Mapping[str, Any]) -> Tokenizer:
    with refused("tokenizers does not accept this tokenizer.json", VocabularyError):
        return Tokenizer.from_str(json.dumps(data, ensure_ascii=False))
