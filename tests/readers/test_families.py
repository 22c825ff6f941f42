"""Every family of tokenizers: what its surfaces spell, what text may become, and that nothing else is encoded."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from families import ALPHABET, ESCAPES, SPELLED, Family, families
from hypothesis import given, settings
from hypothesis import strategies as st

from xtoken_align import Vocab, read_vocab
from xtoken_align.readers.tokenizer_json import parse_tokenizer_json
from xtoken_align.vocab.kinds import Kind

NAMES = tuple(families())
every_family = pytest.mark.parametrize("name", NAMES)
soon = settings(max_examples=60, deadline=None)

ordinary = st.lists(st.sampled_from((*ALPHABET, *("the ", " cat", "été", "  ", "\n\n"))), max_size=14).map("".join)
spelling_specials = st.lists(
    st.sampled_from((*(text for text in SPELLED if text != "▁"), " ", "  ", "cat", "\n\n")), max_size=8
).map("".join)
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@cache
def vocab_of(name: str) -> Vocab:
    return read_vocab(families()[name].original, name=name)


def spelled(vocab: Vocab, text: str) -> bytes:
    return b"".join(vocab.surfaces[token] for token in vocab.encode_batch([text])[0])


def check_spelling(family: Family, text: str) -> None:
    vocab = vocab_of(family.name)
    expected = family.spoken(text)
    if family.loose:
        got = spelled(vocab, text).decode()
        assert "".join(got.split()) == "".join(expected.split())
    else:
        assert spelled(vocab, text) == expected.encode()


def check_kinds(vocab: Vocab, text: str, *, unknown: bool) -> None:
    allowed = {Kind.TEXT, Kind.BYTE}
    for token in vocab.encode_batch([text])[0]:
        assert vocab.kinds[token] in allowed or (unknown and token in vocab.roles["unk"])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "word-level"])
@soon
@given(text=st.one_of(ordinary, spelling_specials))
def test_surfaces_of_an_encoding_concatenate_to_the_text(name: str, text: str) -> None:
    check_spelling(families()[name], text)


@pytest.mark.parametrize("name", [name for name in NAMES if families()[name].complete and name != "clip"])
@soon
@given(text=anything)
def test_surfaces_concatenate_to_any_text_where_every_byte_has_an_id(name: str, text: str) -> None:
    check_spelling(families()[name], text)


@every_family
@soon
@given(text=st.one_of(spelling_specials, anything))
def test_no_special_reserved_padding_or_hole_id_comes_out_of_text(name: str, text: str) -> None:
    check_kinds(vocab_of(name), text, unknown=not families()[name].complete)


@pytest.mark.parametrize("name", [name for name in NAMES if not families()[name].loose])
@soon
@given(text=st.sampled_from(("the", "cat", "7", "你好", "x=1;", "été", ".")))
def test_no_space_comes_before_a_text_that_has_none(name: str, text: str) -> None:
    first = vocab_of(name).encode_batch([text])[0][0]
    assert not vocab_of(name).surfaces[first].startswith(b" ")


def original_ids(name: str, text: str) -> list[int]:
    ids: list[int] = _original(name).encode(text, add_special_tokens=False).ids
    return ids


@cache
def _original(name: str):
    return families()[name].original


@pytest.mark.parametrize("name", [name for name in NAMES if not families()[name].prefix])
@soon
@given(text=st.one_of(ordinary, anything))
def test_ordinary_text_encodes_as_by_the_original(name: str, text: str) -> None:
    assert vocab_of(name).encode_batch([text])[0] == original_ids(name, text)


@pytest.mark.parametrize("name", [name for name in NAMES if families()[name].prefix])
@soon
@given(text=ordinary.filter(lambda text: text[:1].strip() != ""))
def test_the_originals_dummy_prefix_is_a_space_that_the_text_must_have(name: str, text: str) -> None:
    assert vocab_of(name).encode_batch([" " + text])[0] == original_ids(name, text)


@pytest.mark.parametrize("name", [name for name in NAMES if families()[name].prefix and name != "llama-2"])
@soon
@given(text=st.one_of(ordinary, anything))
def test_after_a_space_even_a_prefixing_family_encodes_as_the_original(name: str, text: str) -> None:
    assert vocab_of(name).encode_batch([" " + text])[0] == original_ids(name, " " + text)


@every_family
def test_an_empty_text_has_no_ids_and_texts_keep_their_order(name: str) -> None:
    vocab = vocab_of(name)
    texts = ["cat", "", " the", "12", ""]
    batch = vocab.encode_batch(texts)
    assert batch[1] == batch[4] == []
    assert batch == [vocab.encode_batch([text])[0] for text in texts]
    assert vocab.encode_batch([]) == []


@every_family
def test_a_lone_surrogate_is_read_as_the_replacement_character(name: str) -> None:
    assert vocab_of(name).encode_batch(["cat \ud800"]) == vocab_of(name).encode_batch(["cat \ufffd"])


@every_family
def test_kinds_are_a_partition_with_the_declared_specials(name: str) -> None:
    vocab = vocab_of(name)
    flagged = {entry["id"] for entry in families()[name].data["added_tokens"] if entry["special"]}
    expected = flagged | set(vocab.roles.get("unk", ())) | set(vocab.roles.get("think_start", ()))
    assert set(vocab.ids_of(Kind.SPECIAL).tolist()) | set(vocab.ids_of(Kind.RESERVED).tolist()) >= expected
    assert len(vocab.kinds) == len(vocab.surfaces) == len(vocab.raw) == vocab.sizes.logits


def kind_of(name: str, text: str) -> Kind:
    vocab = vocab_of(name)
    return Kind(int(vocab.kinds[list(vocab.raw).index(text)]))


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("byte-level", "<|endoftext|>", Kind.SPECIAL),
        ("byte-level", "<think>", Kind.SPECIAL),
        ("byte-level", "  \n", Kind.TEXT),
        ("byte-level-nfc", "<s>", Kind.TEXT),
        ("byte-level-nfc", "<unk>", Kind.TEXT),
        ("llama-2", "<unk>", Kind.SPECIAL),
        ("llama-2", "<0x41>", Kind.BYTE),
        ("gemma", "\n\n", Kind.TEXT),
        ("gemma", "▁▁", Kind.TEXT),
        ("gemma", "<table>", Kind.TEXT),
        ("gemma", "<unused0>", Kind.RESERVED),
        ("unigram", "<pad>", Kind.SPECIAL),
        ("unigram-bytes", "<0x0A>", Kind.BYTE),
        ("word-piece", "[unused0]", Kind.RESERVED),
        ("word-piece", "[MASK]", Kind.SPECIAL),
        ("clip", "<|startoftext|>", Kind.SPECIAL),
        ("word-level", "[UNK]", Kind.SPECIAL),
    ],
)
def test_a_token_has_the_kind_that_its_family_gives_it(name: str, text: str, kind: Kind) -> None:
    assert kind_of(name, text) == kind


@pytest.mark.parametrize(
    ("name", "token", "surface"),
    [
        ("byte-level", "Ġ", b" "),
        ("byte-level", "Ċ", b"\n"),
        ("byte-level", "  \n", b"  \n"),
        ("llama-2", "▁the", b" the"),
        ("llama-2", "<0xE2>", b"\xe2"),
        ("gemma", "▁▁", b"  "),
        ("gemma", "<table>", b"<table>"),
        ("unigram", "▁", b" "),
        ("word-piece", "the", b" the"),
        ("word-piece", "##a", b"a"),
        ("word-piece", ".", b"."),
        ("word-piece", "你", "你".encode()),
        ("clip", "the</w>", b"the "),
        ("word-level", "the", b" the"),
    ],
)
def test_a_token_has_the_surface_that_its_family_gives_it(name: str, token: str, surface: bytes) -> None:
    vocab = vocab_of(name)
    assert vocab.surfaces[list(vocab.raw).index(token)] == surface


@pytest.mark.parametrize("name", ["llama-2", "metaspace-first", "gemma", "unigram-bytes"])
def test_byte_escapes_are_the_bytes_and_never_read_from_text(name: str) -> None:
    vocab = vocab_of(name)
    bytes_there = sorted(vocab.surfaces[token] for token in vocab.ids_of(Kind.BYTE).tolist())
    assert bytes_there == [bytes([byte]) for byte in range(256)]
    text = "".join(ESCAPES)
    assert spelled(vocab, text).decode() == text


@pytest.mark.parametrize("name", ["byte-level", "byte-level-nfc"])
@soon
@given(data=st.binary(max_size=12))
def test_byte_level_families_merge_any_bytes(name: str, data: bytes) -> None:
    ids = vocab_of(name).encoder.encode_bytes(data)
    assert ids is not None
    assert b"".join(vocab_of(name).surfaces[token] for token in ids) == data


@pytest.mark.parametrize("name", ["llama-2", "unigram", "word-piece"])
def test_other_families_have_no_merges_over_bytes(name: str) -> None:
    assert vocab_of(name).encoder.encode_bytes(b"\xc3") is None


@every_family
@soon
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_the_mask_hides_never_comes_out_of_text(name: str, seed: int) -> None:
    parsed = parse_tokenizer_json(families()[name].data)
    rng = np.random.default_rng(seed)
    speakable = rng.random(len(parsed.declared)) < 0.8
    ids = parsed.make_encoder(speakable).encode_batch(["the cat sat don't return <s> <0x41> 2024 \n\n  été"])[0]
    unknown = {parsed.raw.index(text) for text in ("<unk>", "[UNK]", "<|endoftext|>") if text in parsed.raw}
    assert {token for token in ids if not speakable[token]} <= unknown
