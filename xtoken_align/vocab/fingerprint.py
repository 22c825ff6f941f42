"""The fingerprint of a vocabulary's text: equal exactly where two tokenizers mean and produce the same ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .byte_strings import ByteStrings

CANARY = (
    "The quick brown fox can't jump over 1234567890 lazy dogs, they've 3.14159 reasons; isn't that 'odd'?",
    "  indented\n\tdef f(x): return x**2 + 1  # comment\r\n\n\n    pass\n",
    " 201 20 2 007 1,000,000 3rd x86_64 IPv6 2001:db8::1 12:30",
    "Größe naïve cafe\u0301 Æsir ﬁn ½ ² Ⅷ Å \u212b",
    "Привет, мир! Γειά σου Κόσμε שלום مرحبا नमस्ते สวัสดี",
    "你好，世界。日本語のテキスト 한국어 텍스트",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 \u200b\u00a0\u3000 \ufeff end",
    'CamelCaseIdentifier snake_case SHOUTING mIxEd!!! ...--- <tag attr="v"> {}[]()',
)
"""Fixed texts on which tokenizers with equal vocabularies but other patterns, normalisers or merges differ."""


def fingerprint(text_ids: NDArray[np.int64], surfaces: ByteStrings, canary_ids: Iterable[Sequence[int]]) -> str:
    """SHA-256 over (id, surface) of the text and byte ids and over the ids of the canary texts.

    Args:
        text_ids: int64, the ids of kind text and byte, ascending.
        surfaces: of all ids.
        canary_ids: what `encode_batch(CANARY)` returns.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(b"xtoken-align vocabulary 1\n")
    digest.update(text_ids.astype("<i8").tobytes())
    digest.update(surfaces.lengths[text_ids].astype("<i8").tobytes())
    speakable = np.zeros(len(surfaces), dtype=np.bool_)
    speakable[text_ids] = True
    digest.update(surfaces.blob[np.repeat(speakable, surfaces.lengths)].tobytes())
    for ids in canary_ids:
        digest.update(np.asarray([len(ids), *ids], dtype="<i8").tobytes())
    return digest.hexdigest()
