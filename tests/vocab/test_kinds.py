"""Which kind an id is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from xtoken_align import Vocab
from xtoken_align.vocab.kinds import Kind, is_filler, is_marker


@pytest.mark.parametrize(
    "text",
    [
        "<unused12>", "[unused3]", "<|reserved_special_token_5|>", "<|vision_reserved_special_token_9|>",
        "<SPECIAL_20>", "[control_8]", "<|extra_3|>", "<extra_id_7>", "<|placeholder1|>", "<|EXTRA_12_TOKEN|>",
        "<｜place▁holder▁no▁0｜>", "<reserved_106>",
        "<|dummy_85|>", "<|reserved_200000|>", "[UNUSED_TOKEN_9]", "<reserved#>", ">>UNUSED_1<<",
    ],
)  # fmt: skip
def test_a_bracketed_filler_stem_with_a_number_is_reserved(text: str) -> None:
    assert is_filler(text)


@pytest.mark.parametrize(
    "text",
    [" unused", " reserved", "unused12", "<unused>", "<h1>", "<2mass>", "<0x41>", "<special>", "[multimodal]", "<s2>",
     "<extra credit: 5 points>", "|||IP_ADDRESS|||", "<|im_end|>", "", "<>", "[1]"],
)  # fmt: skip
def test_ordinary_words_and_other_names_are_not_reserved(text: str) -> None:
    assert not is_filler(text)


@pytest.mark.parametrize(
    "text",
    ["<|fim_pad|>", "<｜User｜>", "<think>", "</think>", "<tool_call>", "</tool_response>", "[INST]", "[/INST]",
     "<start_of_turn>", "<fim-prefix>"],
)  # fmt: skip
def test_an_added_token_shaped_like_a_marker_is_special_without_the_flag(text: str) -> None:
    assert is_marker(text)


@pytest.mark.parametrize(
    "text", ["<table>", "<h1>", "<2mass>", "[multimodal]", "|||IP_ADDRESS|||", "<s>", "<unk>", "\n\n", "▁▁", "<dsml:"]
)
def test_added_tokens_that_are_ordinary_text_stay_text(text: str) -> None:
    assert not is_marker(text)


@pytest.mark.parametrize(
    ("alias", "text", "special", "reserved", "padding"),
    [
        ("llama-3", 128_000, 5, 251, 0),
        ("llama-3.1", 128_000, 10, 246, 0),
        ("qwen3", 151_643, 26, 0, 267),
        ("gpt-oss", 199_998, 10, 11, 1_069),
        ("mistral-tekken", 130_072, 20, 980, 0),
    ],
)
def test_real_generations_have_the_listed_numbers_of_each_kind(
    real: Callable[[str], Vocab], alias: str, text: int, special: int, reserved: int, padding: int
) -> None:
    vocab = real(alias)
    counts = np.bincount(vocab.kinds, minlength=len(Kind))
    assert counts[[Kind.TEXT, Kind.SPECIAL, Kind.RESERVED, Kind.PADDING]].tolist() == [text, special, reserved, padding]


def test_qwen_3_has_text_tokens_that_look_like_special_ones(real: Callable[[str], Vocab]) -> None:
    qwen = real("qwen3")
    for text in (b"<s>", b"<unk>"):
        assert qwen.kinds[qwen.lowest_text_id[text]] == Kind.TEXT


def test_a_byte_fallback_model_has_256_byte_tokens_and_their_characters_beside(real: Callable[[str], Vocab]) -> None:
    mistral = real("mistral-v1")
    assert len(mistral.ids_of(Kind.BYTE)) == 256
    both = [surface for surface in mistral.lowest_byte_id if surface in mistral.lowest_text_id]
    assert mistral.lowest_byte_id[b"a"] != mistral.lowest_text_id[b"a"]
    assert len(both) > 90
