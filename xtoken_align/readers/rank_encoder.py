"""The encoder of rank files: tiktoken over the ranks, which needs no merges."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal, cast

from ..errors import MissingExtraError, OptionError
from .panics import refused

NormalForm = Literal["NFC", "NFD", "NFKC", "NFKD"]


class RankEncoder:
    """Byte-pair encoding by rank (Sennrich et al., 2016; ranks as in tiktoken).

    Args:
        ranks: token bytes -> rank.
        pattern: the regular expression that splits a text before merging.
        normalizer: a Unicode normal form applied first (`NFC`), or None.
        offset: what is added to a rank to make an id (tekken puts its special tokens first).

    Raises:
        MissingExtraError: tiktoken is not installed.
        OptionError: the pattern is not a regular expression that tiktoken accepts.
    """

    dummy_prefix = False

    def __init__(
        self, ranks: dict[bytes, int], pattern: str, *, normalizer: str | None = None, offset: int = 0
    ) -> None:
        try:
            import tiktoken
        except ImportError as error:
            raise MissingExtraError("Encoding with a rank file", "tiktoken") from error
        self._refusal = f"tiktoken does not accept the split pattern {pattern!r:.200}"
        with refused(self._refusal, OptionError):
            self._encoding = tiktoken.Encoding("ranks", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._normalizer = normalizer
        self._offset = offset
        # tiktoken panics on a byte that no rank spells; a text with such a byte cannot be encoded at all.
        self._unspellable = bytes(byte for byte in range(256) if bytes([byte]) not in ranks)

    def _spellable(self, data: bytes) -> bool:
        return not self._unspellable or len(data.translate(None, self._unspellable)) == len(data)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns one list of ids per text; [] for a text with a byte that the vocabulary lacks."""
        if self._normalizer is not None:
            texts = [self.normalize(text) for text in texts]
        if self._unspellable:
            texts = [text if self._spellable(text.encode("utf-8", "replace")) else "" for text in texts]
        encode, offset = self._encoding.encode_ordinary, self._offset
        # A pattern that matches nothing at all, or backtracks without end, shows only in a text.
        with refused(self._refusal, OptionError):
            if offset:
                return [[token + offset for token in encode(text)] for text in texts]
            return [encode(text) for text in texts]

    def normalize(self, text: str) -> str:
        """Returns the text in the vocabulary's normal form."""
        if self._normalizer is None or text.isascii():
            return text
        return unicodedata.normalize(cast("NormalForm", self._normalizer), text)

    def encode_bytes(self, data: bytes) -> list[int] | None:
        """Returns the merges over `data` as one piece; [] where a byte is missing."""
        if not self._spellable(data):
            return []
        return [token + self._offset for token in self._encoding._encode_single_piece(data)]  # noqa: SLF001
