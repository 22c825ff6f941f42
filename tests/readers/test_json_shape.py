"""Damaged parts of a `tokenizer.json` are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from families import FAMILIES

from xtoken_align.errors import VocabularyError
from xtoken_align.readers.json_shape import check_shape, parts_of


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("normalizer", "NFC", "normalizer of the.json"),
        ("normalizer", {"type": "Sequence", "normalizers": None}, "normalizer of the.json"),
        ("normalizer", {"type": "Sequence", "normalizers": [3]}, "normalizer of the.json"),
        ("pre_tokenizer", ["ByteLevel"], "pre_tokenizer of the.json"),
        ("pre_tokenizer", {"type": 5}, "type of a step in the pre_tokenizer"),
        ("pre_tokenizer", {"type": "Metaspace", "replacement": 5}, "replacement of Metaspace in the pre_tokenizer"),
        ("decoder", {"type": "WordPiece", "prefix": None}, "prefix of WordPiece in the decoder"),
        ("decoder", {"type": "BPEDecoder", "suffix": []}, "suffix of BPEDecoder in the decoder"),
        ("decoder", {"type": "Replace", "content": " "}, "a Replace in the decoder"),
        ("decoder", {"type": "Replace", "pattern": {"String": "x"}}, "content of Replace in the decoder"),
        ("decoder", {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}, "the decoder of the.json replaces"),
        ("added_tokens", {"0": "<s>"}, "added_tokens of the.json"),
        ("added_tokens", ["<s>"], "an added token without an id"),
        ("added_tokens", [{"id": 0, "content": None}], "an added token without an id"),
    ],
)
def test_the_part_that_is_wrong_is_named(part: str, value: Any, named: str) -> None:
    with pytest.raises(VocabularyError, match=named):
        check_shape({**FAMILIES["gpt2"].data(), part: value}, "the.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [("unk_token", 0), ("unk_id", "0"), ("unk_id", True), ("type", 1), ("merges", "a b"), ("end_of_word_suffix", [])],
)
def test_the_field_of_the_model_that_is_wrong_is_named(key: str, value: object) -> None:
    data = FAMILIES["gpt2"].data()
    data["model"][key] = value
    with pytest.raises(VocabularyError, match=f"{key} of the model in the.json"):
        check_shape(data, "the.json")


def test_components_nested_without_end_are_refused() -> None:
    component: dict[str, Any] = {"type": "NFC"}
    for _ in range(400):
        component = {"type": "Sequence", "normalizers": [component]}
    with pytest.raises(VocabularyError, match="nested more than"):
        check_shape({**FAMILIES["gpt2"].data(), "normalizer": component}, "the.json")


def test_a_long_wrong_value_is_shown_in_part() -> None:
    with pytest.raises(VocabularyError) as caught:
        check_shape({**FAMILIES["gpt2"].data(), "normalizer": "x" * 10_000}, "the.json")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_whole_file_passes(name: str) -> None:
    check_shape(FAMILIES[name].data(), "the.json")


def test_a_merge_has_two_halves_in_either_form() -> None:
    assert parts_of("Ġ t") == parts_of(["Ġ", "t"]) == ("Ġ", "t")
    with pytest.raises(ValueError, match="neither"):
        parts_of("Ġt")
