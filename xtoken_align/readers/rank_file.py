"""Rank files (`.tiktoken`): reading them, and encoding with tiktoken over the ranks."""

from __future__ import annotations

import binascii
import gzip
import hashlib
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, OptionError, SourceError, VocabularyError, refused
from ..limits import MAX_ID, MAX_IDS, MAX_TOKENIZER_BYTES, check_size, read_tokenizer_file
from ..sources.presets import Preset, preset_for_hash
from .parsed import Declared, Parsed
from .spelling import ByteLevel, Spelling

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


GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's split (Radford et al., 2019, encoder.py), assumed where nothing says another."""

# Possessive, so that a file of any size is read once; lines end as on any system, and empty ones are passed over.
# Python refuses to read numbers of thousands of digits, so no rank has more than a 64-bit number always has.
_WHOLE_FILE = re.compile(rb"(?:[ \t]*+(?:[A-Za-z0-9+/]++={0,2}+[ \t]++[0-9]{1,18}+[ \t]*+)?+\r?+(?:\n|\Z))*+")


def looks_like_rank_file(head: bytes) -> bool:
    """Whether the first line of `head` is a `base64 rank` pair."""
    first = head.split(b"\n", 1)[0].split()
    if len(first) != 2 or not first[1].isdigit():
        return False
    try:
        binascii.a2b_base64(first[0], strict_mode=True)
    except binascii.Error:
        return False
    return True


def read_rank_file(path: Path, *, preset: Preset | None = None, pattern: str | None = None) -> Parsed:
    """Reads a `.tiktoken` file, or its gzip-compressed form.

    Args:
        path: the file.
        preset: the alias through which it was named, if any.
        pattern: the user's split pattern; it wins over the preset's.

    Returns:
        The facts, special tokens of the preset included.

    Raises:
        SourceError: the file cannot be read or decompressed.
        VocabularyError: a line is broken, or a rank stands twice.
    """
    data = _read(path)
    ranks = parse_ranks(data, path.name)
    warnings: tuple[str, ...] = ()
    if preset is None:
        preset = preset_for_hash(hashlib.sha256(data).hexdigest())
    known = pattern if pattern is not None else preset.pattern if preset is not None else None
    if known is None:
        known = GPT2_PATTERN
        note = (
            f"{path.name} is no rank file that an alias knows: GPT-2's split pattern is assumed and no special tokens "
            "are known; pass the pattern and the logit width if the model has others"
        )
        warnings = (note,)
    return assemble(
        ranks,
        format="tiktoken",
        pattern=known,
        added={token.id: (token.text, token.special) for token in preset.added} if preset else {},
        normalizer=preset.normalizer if preset else None,
        preset_roles=preset.roles if preset else {},
        width=preset.logits if preset else None,
        warnings=warnings,
    )


def _read(path: Path) -> bytes:
    data = read_tokenizer_file(path)
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        with gzip.open(path) as stream:
            data = stream.read(MAX_TOKENIZER_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path.name} is not a whole gzip file: {error}") from error
    return check_size(data, path.name)


def parse_ranks(data: bytes, name: str) -> Ranks:
    """The tokens and ranks of a rank file, in the file's order.

    Raises:
        VocabularyError: names the first line that is not a pair, or the rank that stands twice.
    """
    if data.count(b"\n") > MAX_IDS:
        raise VocabularyError(f"{name} has over {MAX_IDS:,} lines: no vocabulary has as many ids")
    if not _WHOLE_FILE.fullmatch(data):
        raise _broken_line(data, name)
    words = data.split()
    decode = binascii.a2b_base64
    try:
        tokens = [decode(word, strict_mode=True) for word in words[0::2]]
    except binascii.Error:
        raise _broken_line(data, name) from None
    if not tokens:
        raise VocabularyError(f"{name} holds no tokens: a rank file has one `base64 rank` pair a line")
    return Ranks.checked(tokens, list(map(int, words[1::2])), name)


def _broken_line(data: bytes, name: str) -> VocabularyError:
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            if _WHOLE_FILE.fullmatch(line):
                binascii.a2b_base64(line.split()[0] if line.strip() else b"", strict_mode=True)
                continue
        except binascii.Error:
            pass
        shown = line[:40].decode("utf-8", "replace")
        return VocabularyError(f"line {number} of {name} is not a `base64 rank` pair: {shown!r}")
    raise AssertionError(name)


@dataclass(frozen=True, slots=True)
class Ranks:
    """Tokens and their ranks, in the file's order."""

    tokens: list[bytes]
    ranks: list[int]

    @classmethod
    def checked(cls, tokens: list[bytes], ranks: list[int], name: str) -> Ranks:
        """The same, once it is sure that ranks are in bounds and stand once.

        Raises:
            VocabularyError: names the rank that is wrong.
        """
        if min(ranks) < 0 or max(ranks) > MAX_ID:
            wrong = next(rank for rank in ranks if not 0 <= rank <= MAX_ID)
            raise VocabularyError(f"{name} has the rank {wrong}: ranks lie between 0 and {MAX_ID}")
        if len(set(ranks)) != len(ranks):
            twice = Counter(ranks).most_common(1)[0][0]
            raise VocabularyError(f"rank {twice} of {name} belongs to two tokens: a rank is one token's id")
        return cls(tokens, ranks)


def assemble(
    ranks: Ranks,
    *,
    format: str,  # noqa: A002 - the field's name in Parsed
    pattern: str,
    added: Mapping[int, tuple[str, bool]],
    normalizer: str | None = None,
    offset: int = 0,
    roles: Mapping[str, tuple[str, ...]] | None = None,
    preset_roles: Mapping[str, tuple[str, ...]] | None = None,
    width: int | None = None,
    warnings: tuple[str, ...] = (),
) -> Parsed:
    """Puts ranks and added tokens into one table of ids.

    Args:
        ranks: the base vocabulary; an id is a rank plus `offset`.
        format: the reader's name.
        pattern: the split pattern.
        added: id -> (string, special flag).
        normalizer: a Unicode normal form that comes before splitting.
        offset: number of ids before the first rank's.
        roles: role -> token strings by the file.
        preset_roles: the same by the alias.
        width: logit width by the alias.
        warnings: passed on.

    Raises:
        VocabularyError: an added token has the id of a rank.
    """
    size = max(max(ranks.ranks) + offset, max(added, default=-1)) + 1
    token_bytes: list[bytes | None] = [None] * size
    raw: list[str | None] = [None] * size
    declared = np.zeros(size, dtype=np.uint8)
    for token, rank in zip(ranks.tokens, ranks.ranks, strict=True):
        token_bytes[rank + offset] = token
    in_base = np.zeros(size, dtype=np.bool_)
    in_base[np.array(ranks.ranks) + offset] = True
    declared[in_base] = Declared.NORMAL
    for token_id, (text, special) in added.items():
        if in_base[token_id]:
            raise VocabularyError(f"id {token_id} is both a rank and the added token {text!r}: an id is one token")
        raw[token_id] = text
        declared[token_id] = Declared.SPECIAL if special else Declared.ADDED

    def make_encoder(_: NDArray[np.bool_]) -> RankEncoder:
        # No added token is ever parsed by this encoder, so the mask has nothing to take away.
        lowest = dict(zip(ranks.tokens, ranks.ranks, strict=True))
        if len(lowest) < len(ranks.tokens):
            # Of equal tokens the one of the lowest rank is produced: by falling rank, the last one set stays.
            lowest = {token: rank for rank, token in sorted(zip(ranks.ranks, ranks.tokens, strict=True), reverse=True)}
        return RankEncoder(lowest, pattern, normalizer=normalizer, offset=offset)

    return Parsed(
        format=format,
        raw=raw,
        token_bytes=token_bytes,
        declared=declared,
        in_base=in_base,
        base_size=len(ranks.tokens),
        spelling=Spelling((ByteLevel(),)),
        make_encoder=make_encoder,
        state=lambda _: {"pre_tokenizer": ("ranks", pattern), "normalizer": ("ranks", normalizer)},
        roles=roles or {},
        preset_roles=preset_roles or {},
        width=width,
        width_source="the alias" if width is not None else "",
        warnings=warnings,
    )
