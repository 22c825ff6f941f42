"""What a tokenizer is made of, each part as a hash: equal where two tokenizers mean and do the same.

Two files of one tokenizer may differ in form. A part that both state in the same form is compared by value; of the
others the canary decides, by the ids that come out.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import XTokenError
from ..readers.parsed import Stated
from .byte_strings import ByteStrings

ENCODING = ("merges", "scores", "model", "normalizer", "pre_tokenizer", "text_flags")
"""Stated parts that decide which ids a text becomes."""

BESIDE = ("decoder", "special_flags", "literals", "post_processor", "chat_template")
"""Stated parts that decide what is put around a text, and how chats and control tokens are read."""

PART_WORDS: Mapping[str, str] = {
    "merges": "list of merges",
    "scores": "list of scores",
    "model": "set of model options",
    "normalizer": "normaliser",
    "pre_tokenizer": "split pattern (pre-tokeniser)",
    "text_flags": "set of flags on added text tokens",
    "decoder": "decoder",
    "special_flags": "set of flags on special tokens",
    "literals": "set of added tokens that any text may become",
    "post_processor": "post-processor (what is put around a text)",
    "chat_template": "chat template",
}
"""Part -> what a user is told that it is."""


@dataclass(frozen=True, eq=False, slots=True)
class Parts:
    """The parts of one tokenizer.

    Attributes:
        text: SHA-256 over the (id, surface) of its text and byte tokens, 64 hexadecimal digits.
        encoding: SHA-256 over the ids of the canary's lines.
        lines: uint16 (lines,), a short hash of each line's ids, which tells how many lines differ and which.
        stated: part -> its form, a colon and the SHA-256 of its value. Values of one form can be compared.
    """

    text: str
    encoding: str
    lines: NDArray[np.uint16]
    stated: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the text tokens and the canary's ids: equal where text means and becomes the same ids."""
        return hashlib.sha256(f"xtoken-align vocabulary 2\n{self.text}{self.encoding}".encode()).hexdigest()

    def to_metadata(self) -> dict[str, Any]:
        """The parts as a mapping's file has them."""
        lines = self.lines.astype("<u2").tobytes().hex()
        return {"text": self.text, "encoding": self.encoding, "lines": lines, "stated": dict(self.stated)}

    @classmethod
    def from_metadata(cls, stored: Mapping[str, Any]) -> Parts:
        """The inverse of `to_metadata`, for parts that `validate` has checked."""
        lines = np.frombuffer(bytes.fromhex(stored["lines"]), dtype="<u2")
        return cls(stored["text"], stored["encoding"], lines, dict(stored["stated"]))


def parts_of(
    text_ids: NDArray[np.int64],
    surfaces: ByteStrings,
    lines: Sequence[str],
    encode_batch: Callable[[Sequence[str]], list[list[int]]],
    stated: Stated,
) -> Parts:
    """Hashes a tokenizer's parts.

    Args:
        text_ids: int64, the ids of kind text and byte, ascending.
        surfaces: of all ids.
        lines: the canary.
        encode_batch: how the tokenizer encodes text.
        stated: what its file states.
    """
    encoding, of_lines = _encoded(_ids_of(lines, encode_batch))
    hashes = {name: f"{form}:{_sha256(value)}" for name, (form, value) in stated.items()}
    return Parts(_text_hash(b"xtoken-align text 1\n", text_ids, surfaces).hexdigest(), encoding, of_lines, hashes)


def compare_stated(one: Mapping[str, str], other: Mapping[str, str], names: Iterable[str]) -> dict[str, bool | None]:
    """Compares what two tokenizers state.

    Args:
        one: part -> form and hash, as in `Parts.stated`.
        other: the same.
        names: the parts to compare.

    Returns:
        Part -> whether it is equal; None where one side does not state it, or states it in another form. Parts that
        neither states are left out.
    """
    found: dict[str, bool | None] = {}
    for name in names:
        values = one.get(name), other.get(name)
        if any(values):
            forms = {value.partition(":")[0] if value else None for value in values}
            found[name] = values[0] == values[1] if len(forms) == 1 else None
    return found


def earlier_fingerprint(text_ids: NDArray[np.int64], surfaces: ByteStrings, canary_ids: Iterable[Sequence[int]]) -> str:
    """The fingerprint as mappings and caches of version 0.2 have it, over eight lines alone.

    Args:
        text_ids: int64, the ids of kind text and byte, ascending.
        surfaces: of all ids.
        canary_ids: the ids of the lines `SHORT`.
    """
    digest = _text_hash(b"xtoken-align vocabulary 1\n", text_ids, surfaces)
    for ids in canary_ids:
        digest.update(np.asarray([len(ids), *ids], dtype="<i8").tobytes())
    hexadecimal: str = digest.hexdigest()
    return hexadecimal


def _text_hash(label: bytes, text_ids: NDArray[np.int64], surfaces: ByteStrings) -> Any:
    digest = hashlib.sha256(label)
    digest.update(text_ids.astype("<i8").tobytes())
    digest.update(surfaces.lengths[text_ids].astype("<i8").tobytes())
    speakable = np.zeros(len(surfaces), dtype=np.bool_)
    speakable[text_ids] = True
    digest.update(surfaces.blob[np.repeat(speakable, surfaces.lengths)].tobytes())
    return digest


def _ids_of(lines: Sequence[str], encode_batch: Callable[[Sequence[str]], list[list[int]]]) -> list[list[int]]:
    """The lines' ids; -1 for a line that the tokenizer refuses, as models without an unknown token may."""
    try:
        return encode_batch(lines)
    except XTokenError:
        return [_ids_or_refusal(line, encode_batch) for line in lines]


def _ids_or_refusal(line: str, encode_batch: Callable[[Sequence[str]], list[list[int]]]) -> list[int]:
    try:
        return encode_batch([line])[0]
    except XTokenError:
        return [-1]


def _encoded(rows: Sequence[Sequence[int]]) -> tuple[str, NDArray[np.uint16]]:
    """SHA-256 over all ids, and 16 bits for each line."""
    # Lines 7 8 | 9 are the lengths 2 1 and the ids 7 8 9; the second line's are the bytes from 8 to 12.
    lengths = np.fromiter(map(len, rows), dtype="<i4", count=len(rows))
    ids = np.fromiter((token_id for row in rows for token_id in row), dtype="<i4", count=int(lengths.sum()))
    data = memoryview(ids.tobytes())
    ends = (4 * np.cumsum(lengths)).tolist()
    checks = [zlib.crc32(data[start:end]) & 0xFFFF for start, end in zip([0, *ends], ends, strict=False)]
    digest = hashlib.sha256(lengths.tobytes())
    digest.update(data)
    return digest.hexdigest(), np.array(checks, dtype=np.uint16)


def _sha256(value: Any) -> str:
    """Of bytes as they are, of anything else as the one JSON text that it has."""
    if not isinstance(value, bytes):
        value = json.dumps(value, ensure_ascii=True, separators=(",", ":"), sort_keys=True).encode()
    return hashlib.sha256(value).hexdigest()
