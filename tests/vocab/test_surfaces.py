"""From token strings to the bytes they contribute in mid-sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from xtoken_align.readers.spelling import (
    ByteFallback,
    ByteLevel,
    Replace,
    Spelling,
    Suffix,
    WordPieces,
    byte_to_character,
    bytes_of,
    characters_of,
)
from xtoken_align.vocab.surfaces import RankStrings, spell, spell_all

BYTES = Spelling((ByteLevel(),))
PIECES = Spelling((Replace("▁", " "), ByteFallback()))
CLIP = Spelling((Suffix("</w>"), ByteLevel()))
WORDS = Spelling((WordPieces("##"),))


def test_the_byte_table_is_gpt_2s() -> None:
    assert set(byte_to_character()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert bytes_of("ĠĊ") == b" \n"


@given(st.binary())
def test_every_byte_string_has_one_spelling(data: bytes) -> None:
    assert bytes_of(characters_of(data)) == data
    assert spell(characters_of(data), BYTES) == data


@pytest.mark.parametrize(
    ("token", "spelling", "surface"),
    [
        ("Ġthe", BYTES, b" the"),
        ("中", BYTES, "中".encode()),
        ("\u00ad", BYTES, "\u00ad".encode()),
        ("▁the", PIECES, b" the"),
        ("▁▁", PIECES, b"  "),
        ("<0x0A>", PIECES, b"\n"),
        ("<0xE4>", PIECES, b"\xe4"),
        ("<0x0A>x", PIECES, b"<0x0A>x"),
        ("<0x0A>", BYTES, b"<0x0A>"),
        ("ĉ", PIECES, "ĉ".encode()),
        ("cat</w>", CLIP, b"cat "),
        ("Ã©</w>", CLIP, "é ".encode()),
        ("cat", CLIP, b"cat"),
        ("##ing", WORDS, b"ing"),
        ("ing", WORDS, b" ing"),
        ("##", WORDS, b"##"),
        (",", WORDS, b","),
        ("$", WORDS, b"$"),
        ("。", WORDS, "。".encode()),
        ("中", WORDS, "中".encode()),
        ("##中", WORDS, "中".encode()),
        ("ab", Spelling((Replace("a+", "x", regex=True),)), b"xb"),
        ("plain", Spelling(), b"plain"),
    ],
)
def test_a_token_is_spelled_by_its_models_steps(token: str, spelling: Spelling, surface: bytes) -> None:
    assert spell(token, spelling) == surface
    assert spell_all([token], spelling) == [surface]


@given(st.lists(st.text(max_size=6), max_size=5))
def test_the_short_path_of_byte_level_spells_as_the_long_one(tokens: list[str]) -> None:
    assert spell_all(tokens, BYTES) == [spell(token, BYTES) for token in tokens]


def test_a_rank_has_the_string_that_a_tokenizer_json_would_give_it() -> None:
    strings = RankStrings([None, "<|end|>", None], [b" a\xff", None, None])
    assert list(strings) == ["Ġaÿ", "<|end|>", ""]
    assert strings[0:2] == ["Ġaÿ", "<|end|>"]
