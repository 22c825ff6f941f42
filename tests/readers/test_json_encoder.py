"""Encoding with a `tokenizer.json` from which everything but text was taken: ids, prefixes and hidden tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from families import FAMILIES, FAMILIES_AND_WORDY, add, surfaces, vocab_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from xtoken_align import Vocab
from xtoken_align.errors import VocabularyError
from xtoken_align.vocab.kinds import Kind

Json = dict[str, Any]


def said(vocab: Vocab, text: str) -> list[bytes]:
    return [vocab.surfaces[token] for token in vocab.encode_batch([text])[0]]


def spread(data: Json, gap: int) -> Json:
    """The same file with holes: ids from the middle on lie higher."""
    middle = len(data["model"]["vocab"]) // 2
    vocab = data["model"]["vocab"]
    data["model"]["vocab"] = {text: token if token < middle else token + gap for text, token in vocab.items()}
    for entry in data["added_tokens"]:
        entry["id"] += 0 if entry["id"] < middle else gap
    return data


# Ids


@pytest.mark.parametrize("gap", [1, 3, 5000])
@pytest.mark.parametrize("name", ["gpt2", "qwen", "llama2", "gemma", "bert-cased", "clip", "word-level"])
def test_holes_move_no_id(name: str, gap: int) -> None:
    plain = FAMILIES_AND_WORDY[name]
    data = add(spread(plain.data(), gap), "<table>")
    vocab, middle = vocab_of(data), len(plain.data()["model"]["vocab"]) // 2
    text = " the cat Hello World <s> <table>x +="
    expected = vocab_of(add(plain.data(), "<table>")).encode_batch([text])[0]
    assert vocab.encode_batch([text])[0] == [token if token < middle else token + gap for token in expected]
    assert (vocab.kinds[middle : middle + gap] == Kind.HOLE).all()


def test_a_hole_before_an_added_token_is_no_token() -> None:
    data = add(FAMILIES["gpt2"].data(), "<table>", "<chair>")
    data["added_tokens"][-1]["id"] += 50
    vocab = vocab_of(data)
    assert said(vocab, "a<chair>b<table>") == [b"a", b"<chair>", b"b", b"<table>"]
    assert len(vocab.ids_of(Kind.HOLE)) == 50


def test_bytes_are_merged_under_the_files_own_ids() -> None:
    vocab = vocab_of(spread(FAMILIES["gpt2"].data(), 7))
    ids = vocab.encoder.encode_bytes(b"\xe4\xbd the")
    assert ids is not None
    assert surfaces(vocab, ids) == b"\xe4\xbd the"


# Hidden tokens


@pytest.mark.parametrize("name", list(FAMILIES_AND_WORDY))
def test_a_text_that_spells_the_name_of_a_hidden_token_does_not_become_it(name: str) -> None:
    vocab = FAMILIES_AND_WORDY[name].vocab()
    names = [f"\uffff{token}\uffff" for token in range(len(vocab))]
    unknown = vocab.roles.get("unk", ())
    for ids in vocab.encode_batch([*names, *(" " + text for text in names), "".join(names)]):
        assert all(vocab.kinds[token] <= Kind.BYTE or token in unknown for token in ids)


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
def test_a_word_that_is_looked_up_whole_is_no_byte_escape(kind: str) -> None:
    data = FAMILIES["metaspace-never" if kind == "BPE" else "unigram-bytes"].data()
    if kind == "BPE":
        data["model"]["ignore_merges"] = True
    vocab = vocab_of(data)
    for text in ("<0x41>", "a<0x41><0x0A>", "<0x41>", "<<0x41>"):
        ids = vocab.encode_batch([text])[0]
        assert surfaces(vocab, ids).decode() == text
        assert not {vocab.raw[token] for token in ids} & {"<0x41>", "<0x0A>"}


@pytest.mark.parametrize("name", ["gpt2", "llama3", "llama2", "metaspace-never", "nllb", "t5", "bert-cased"])
def test_a_base_token_that_is_special_gives_way_to_its_parts(name: str) -> None:
    data = FAMILIES_AND_WORDY[name].data()
    word = "▁the" if name in ("llama2", "metaspace-never", "nllb", "t5") else "the"
    vocab = vocab_of(add(data, word, special=True))
    text = " the cat"
    assert surfaces(vocab, vocab.encode_batch([text])[0]) == text.encode()
    assert word not in {vocab.raw[token] for token in vocab.encode_batch([text, "the"])[0]}


@settings(max_examples=40)
@given(st.data())
def test_merges_never_pass_through_a_hidden_token(draw: st.DataObject) -> None:
    data = FAMILIES["gpt2"].data()
    words = [text for text, token in data["model"]["vocab"].items() if token > 300]
    hidden = draw.draw(st.lists(st.sampled_from(words), max_size=5, unique=True))
    vocab = vocab_of(add(data, *hidden, special=True))
    text = draw.draw(st.sampled_from(("the cat sat", "Hello World", "return f(x):", "привет мир", "    def")))
    ids = vocab.encode_batch([text])[0]
    assert surfaces(vocab, ids).decode() == text
    assert (vocab.kinds[ids] == Kind.TEXT).all()


# Prefixes


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_first_word_of_a_text_carries_no_space_that_it_does_not_have(name: str) -> None:
    vocab = FAMILIES[name].vocab()
    assert b"".join(said(vocab, "the")) == b"the"
    assert b"".join(said(vocab, " the")) == b" the"
    assert said(vocab, "") == []


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_metaspace_without_splits_is_kept_as_it_is(scheme: str) -> None:
    data = FAMILIES["metaspace-first"].data()
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    vocab = vocab_of(data)
    original = Tokenizer.from_str(json.dumps(data))
    assert vocab.encode_batch([" the cat"])[0] == original.encode(" the cat", add_special_tokens=False).ids
    assert b"".join(said(vocab, "the  cat")) == b"the  cat"


@pytest.mark.parametrize("name", ["falcon", "starcoder"])
def test_a_byte_level_step_inside_a_sequence_loses_its_prefix_too(name: str) -> None:
    data = FAMILIES[name].data()
    for step in data["pre_tokenizer"]["pretokenizers"]:
        if step["type"] == "ByteLevel":
            step["add_prefix_space"] = True
    assert b"".join(said(vocab_of(data), "ab 12, cat")) == b"ab 12, cat"


# Characters that no token spells


def test_a_unigram_model_without_an_unknown_piece_leaves_out_what_it_cannot_spell() -> None:
    data = FAMILIES["nllb"].data()
    data["model"]["unk_id"] = None
    vocab = vocab_of(data)
    assert b"".join(said(vocab, "cat\u0f00")) == b"cat"
    assert said(vocab, "\u0f00") == []
    assert all(token < len(vocab) for token in vocab.encode_batch(["\u0f00 cat"])[0])


def test_an_unknown_character_becomes_the_unknown_token_where_there_is_one() -> None:
    vocab = FAMILIES["nllb"].vocab()
    ids = vocab.encode_batch(["cat\u0f00"])[0]
    assert ids[-1] in vocab.roles["unk"]


# Files that the library would choke on


def test_a_merge_that_would_take_the_process_down_is_refused() -> None:
    data = FAMILIES["gemma"].data()
    data["model"]["continuing_subword_prefix"] = "x"
    with pytest.raises(VocabularyError, match="without the prefix 'x'"):
        vocab_of(data)


def test_a_panic_of_the_library_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    data = FAMILIES["nllb"].data()
    data["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    with pytest.raises(VocabularyError, match="tokenizers does not accept") as caught:
        vocab_of(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("merge", ["the", "t h e", ["t"], ["t", "h", "e"], 5, None, ["t", 5]])
def test_a_merge_in_no_known_form_is_refused(merge: object) -> None:
    data = add(FAMILIES["gpt2"].data(), "the", special=True)
    data["model"]["merges"].append(merge)
    with pytest.raises(VocabularyError):
        vocab_of(data)
