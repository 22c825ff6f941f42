"""Finding tokens by what people type for them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from small_vocabs import make_vocab, vocabs

from xtoken_align import Vocab
from xtoken_align.mapping.find import find_tokens
from xtoken_align.mapping.side import Side
from xtoken_align.vocab.kinds import Kind

SIDE = Side.of(
    make_vocab(
        [
            *("the", " the", "the", "\n", "##", b"\xe4\xb8", "er "),
            (b"8", Kind.BYTE),
            (b"<s>", Kind.SPECIAL),
            (b"", Kind.PADDING),
            (b"ghost", Kind.HOLE),
        ]
    )
)


@pytest.mark.parametrize(
    ("token", "ids"),
    [
        ("the", [0, 2]),
        (b" the", [1]),
        ("Ġthe", [1]),
        ("▁the", [1]),
        ("Ċ", [3]),
        ("ä¸", [5]),
        (b"\xe4\xb8", [5]),
        ("er</w>", [6]),
        ("##the", [0, 2]),
        ("##", [4]),
        ("8", [7]),
        ("<0x38>", [7]),
        ("<s>", [8]),
        ("", []),
        (b"", []),
        ("ghost", []),
        ("nope", []),
        ("<0x39>", []),
        ("\ud800", []),
    ],
)
def test_a_token_is_found_by_its_surface_or_else_by_a_raw_string(token: str | bytes, ids: list[int]) -> None:
    assert find_tokens(SIDE, token) == ids


def test_a_surface_goes_before_a_raw_string() -> None:
    assert find_tokens(Side.of(make_vocab(["Ġthe", " the", "<0x38>", (b"8", Kind.BYTE)])), "Ġthe") == [0]
    assert find_tokens(Side.of(make_vocab(["<0x38>", (b"8", Kind.BYTE)])), "<0x38>") == [0]


def test_a_byte_escape_never_means_a_text_token() -> None:
    assert find_tokens(Side.of(make_vocab(["8"])), "<0x38>") == []


@given(vocabs())
@settings(max_examples=80, deadline=None)
def test_every_token_is_found_by_its_surface(vocab: Vocab) -> None:
    side = Side.of(vocab)
    for token_id in range(len(vocab)):
        if vocab.kinds[token_id] < Kind.PADDING:
            assert token_id in find_tokens(side, vocab.surfaces[token_id])
