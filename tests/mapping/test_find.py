"""Finding tokens by what people type for them, and rows as people and programs read them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from small_vocabs import make_vocab, vocabs

from xtoken_align import Vocab
from xtoken_align.mapping.find import Link, Row, find_tokens, json_surface
from xtoken_align.vocab.kinds import Kind

SIDE = make_vocab(
    [
        *("the", " the", "the", "\n", "##", b"\xe4\xb8", "er "),
        (b"8", Kind.BYTE),
        (b"<s>", Kind.SPECIAL),
        (b"", Kind.PADDING),
        (b"ghost", Kind.HOLE),
    ]
)


def find(vocab: Vocab, token: str | bytes) -> list[int]:
    return find_tokens(vocab.kinds, vocab.surfaces, token)


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
    assert find(SIDE, token) == ids


def test_a_surface_goes_before_a_raw_string() -> None:
    assert find(make_vocab(["Ġthe", " the", "<0x38>", (b"8", Kind.BYTE)]), "Ġthe") == [0]
    assert find(make_vocab(["<0x38>", (b"8", Kind.BYTE)]), "<0x38>") == [0]


def test_a_byte_escape_never_means_a_text_token() -> None:
    assert find(make_vocab(["8"]), "<0x38>") == []


@given(vocabs())
def test_every_token_is_found_by_its_surface(vocab: Vocab) -> None:
    for token_id in range(len(vocab)):
        if vocab.kinds[token_id] < Kind.PADDING:
            assert token_id in find(vocab, vocab.surfaces[token_id])


def test_surfaces_are_strings_where_they_are_utf8_and_hexadecimal_elsewhere() -> None:
    assert json_surface(" é\n".encode()) == " é\n"
    assert json_surface(b"\xe4\xb8") == {"hex": "e4b8"}
    assert json_surface(b"") == ""


def test_a_row_has_the_keys_that_programs_rely_on() -> None:
    link = Link(7, b"2", 0.9009009, 0, "digits")
    row = Row(id=3, surface=b"20", kind="text", rule="digits", links=(link,))
    assert row.to_dict() == {
        "id": 3,
        "surface": "20",
        "kind": "text",
        "rule": "digits",
        "row": [{"teacher_id": 7, "surface": "2", "weight": 0.9009009, "position": 0}],
    }


def test_an_empty_row_says_why_and_a_lossy_row_that_it_is() -> None:
    empty = Row(id=0, surface=b"", kind="hole", rule="none", links=(), reason="hole").to_dict()
    assert (empty["row"], empty["reason"]) == ([], "hole")
    lossy = Row(id=0, surface=b"a", kind="text", rule="decompose", links=(), lossy=True).to_dict()
    assert lossy["lossy"] is True


def test_every_row_is_json() -> None:
    row = Row(id=0, surface=b"\xff", kind="text", rule="bytes", links=(Link(1, b"\xff", 1.0, 0, "bytes"),))
    assert json.loads(json.dumps(row.to_dict()))["surface"] == {"hex": "ff"}
