"""`tokenizer.json` as published files are written: old forms, odd forms, and what each says of its surfaces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from families import (
    FAMILIES,
    FAMILIES_AND_WORDY,
    add,
    corpus,
    id_in,
    surfaces,
    vocab_of,
    wordpiece,
)
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from xtoken_align import Vocab
from xtoken_align.vocab.kinds import Kind

Json = dict[str, Any]


def ids_of(data: Json, text: str) -> list[int]:
    """What the file's own tokenizer makes of a text."""
    ids: list[int] = Tokenizer.from_str(json.dumps(data)).encode(text, add_special_tokens=False).ids
    return ids


def said(vocab: Vocab, text: str) -> list[bytes]:
    return [vocab.surfaces[token] for token in vocab.encode_batch([text])[0]]


def kind(vocab: Vocab, text: str) -> Kind:
    return Kind(int(vocab.kinds[list(vocab.raw).index(text)]))


def with_string_merges(data: Json) -> Json:
    data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
    return data


# Old files


@pytest.mark.parametrize("name", ["gpt2", "llama3", "llama2", "gemma", "t5", "nllb", "bert-uncased", "word-level"])
def test_a_file_without_a_model_type_is_told_by_its_other_fields(name: str) -> None:
    data = FAMILIES_AND_WORDY[name].data()
    del data["model"]["type"]
    old = vocab_of(data)
    assert old.fingerprint == FAMILIES_AND_WORDY[name].vocab().fingerprint
    assert old.surfaces.list == FAMILIES_AND_WORDY[name].vocab().surfaces.list


@pytest.mark.parametrize("name", ["gpt2", "qwen", "llama2", "gemma", "clip", "gpt1"])
def test_merges_are_read_as_strings_and_as_pairs(name: str) -> None:
    family = FAMILIES_AND_WORDY[name]
    assert vocab_of(with_string_merges(family.data())).fingerprint == family.vocab().fingerprint


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("name", ["t5", "nllb", "metaspace-always"])
def test_the_old_fields_of_metaspace_are_read(name: str, prefix: bool) -> None:
    data = FAMILIES[name].data()
    old = {"type": "Metaspace", "replacement": "▁", "str_rep": "▁", "add_prefix_space": prefix}
    splitter = data["pre_tokenizer"]
    data["pre_tokenizer"] = old if splitter["type"] == "Metaspace" else {**splitter, "pretokenizers": [
        old if step["type"] == "Metaspace" else step for step in splitter["pretokenizers"]
    ]}  # fmt: skip
    vocab = vocab_of(data)
    assert vocab.surfaces.list == FAMILIES[name].vocab().surfaces.list
    assert said(vocab, "the cat")[0] == b"the"
    if prefix:
        assert vocab.encode_batch([" the cat"])[0] == ids_of(data, " the cat")


def test_a_file_without_a_byte_fallback_field_still_has_the_bytes_that_its_decoder_names() -> None:
    data = FAMILIES["llama2"].data()
    del data["model"]["byte_fallback"]
    vocab = vocab_of(data)
    assert kind(vocab, "<0x41>") == Kind.BYTE
    assert vocab.surfaces[list(vocab.raw).index("<0x41>")] == b"A"


@pytest.mark.parametrize("name", list(FAMILIES_AND_WORDY))
def test_a_file_without_a_decoder_has_the_same_surfaces(name: str) -> None:
    data = FAMILIES_AND_WORDY[name].data()
    data["decoder"] = None
    assert vocab_of(data).surfaces.list == FAMILIES_AND_WORDY[name].vocab().surfaces.list


# Surfaces


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "byte-normaliser"])
def test_a_surface_is_what_the_decoder_writes_between_two_others(name: str) -> None:
    vocab, original = FAMILIES[name].vocab(), FAMILIES[name].original()
    mark = next(token for token in vocab.ids_of(Kind.TEXT).tolist() if vocab.surfaces[token] == b"x")
    for token in vocab.ids_of(Kind.TEXT).tolist():
        try:
            surface = vocab.surfaces[token].decode()
        except UnicodeDecodeError:
            continue
        assert original.decode([mark, token, mark], skip_special_tokens=False) == f"x{surface}x"


def test_the_family_shows_in_the_components_and_not_in_the_characters() -> None:
    bytes_of_space = FAMILIES["gpt2"].vocab()
    data = FAMILIES["gemma"].data()
    data["model"]["vocab"]["ĉ"] = len(data["model"]["vocab"]) + len(data["added_tokens"])
    data["added_tokens"] = [entry for entry in data["added_tokens"] if entry["id"] < len(data["model"]["vocab"]) - 1]
    literal = vocab_of(data)
    assert literal.surfaces[list(literal.raw).index("ĉ")] == "ĉ".encode()
    assert bytes_of_space.surfaces[list(bytes_of_space.raw).index("ĉ")] == b"\t"


def test_a_byte_level_encoder_outweighs_a_decoder_that_a_later_save_put_there() -> None:
    data = FAMILIES["llama3"].data()
    data["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    assert vocab_of(data).fingerprint == FAMILIES["llama3"].vocab().fingerprint


def test_every_partial_character_keeps_its_own_bytes() -> None:
    vocab = FAMILIES["gpt2"].vocab()
    singles = [surface for surface in vocab.surfaces.list if len(surface) == 1 and surface >= b"\x80"]
    assert sorted(singles) == [bytes([byte]) for byte in range(0x80, 0x100)]


def test_a_byte_escape_and_a_letter_are_two_ids_with_one_surface() -> None:
    vocab = FAMILIES["llama2"].vocab()
    escape, letter = list(vocab.raw).index("<0x61>"), list(vocab.raw).index("a")
    assert vocab.surfaces[escape] == vocab.surfaces[letter] == b"a"
    assert (kind(vocab, "<0x61>"), kind(vocab, "a")) == (Kind.BYTE, Kind.TEXT)
    assert vocab.encode_batch(["a"]) == [[letter]]


def test_a_space_mark_of_the_files_own_choosing_is_a_space() -> None:
    data = json.loads(json.dumps(FAMILIES["metaspace-first"].data(), ensure_ascii=False).replace("▁", "·"))
    assert said(vocab_of(data), " the cat") == [b" the", b" cat"]


def test_a_decoders_replacement_is_inserted_as_it_stands() -> None:
    data = FAMILIES["gpt2"].data()
    data["pre_tokenizer"] = None
    data["decoder"] = {"type": "Replace", "pattern": {"Regex": "^(th)e$"}, "content": r"\1"}
    vocab = vocab_of(data)
    assert vocab.surfaces[list(vocab.raw).index("the")] == rb"\1"


def test_a_subword_prefix_of_bpe_is_spelled_as_word_pieces_are() -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["[UNK]"], continuing_subword_prefix="##", show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    data = json.loads(tokenizer.to_str())
    assert b"".join(said(vocab_of(data), "the cattle (x)")) == b" the cattle( x)"
    assert vocab_of(data).joins_words


def test_a_word_piece_file_with_another_prefix_is_spelled_by_it() -> None:
    text = json.dumps(wordpiece(lowercase=False)).replace('"##', '"@@')
    vocab = vocab_of(json.loads(text))
    assert b"".join(said(vocab, "catthe the")) == b" catthe the"


# Added tokens


def test_an_added_token_that_is_text_is_matched_and_spelled_as_it_stands() -> None:
    data = add(FAMILIES["gpt2"].data(), "<table>", "naïve", "ďé")
    vocab = vocab_of(data)
    assert said(vocab, "a<table>b naïve ďé")[1] == b"<table>"
    assert b"".join(said(vocab, "a<table>b naïve ďé")) == "a<table>b naïve ďé".encode()
    assert [kind(vocab, text) for text in ("<table>", "naïve")] == [Kind.TEXT, Kind.TEXT]


def test_an_added_token_whose_decoder_would_write_other_bytes_is_listed_as_disagreeing() -> None:
    data = add(FAMILIES["gpt2"].data(), "ĠĠzz", "plain")
    vocab = vocab_of(data)
    assert vocab.surfaces[len(vocab) - 2] == "ĠĠzz".encode()
    assert vocab.disagreeing == (len(vocab) - 2,)


@pytest.mark.parametrize("flag", ["single_word", "lstrip", "rstrip", "normalized"])
@pytest.mark.parametrize("name", ["gpt2", "qwen", "gemma", "t5", "bert-uncased"])
def test_the_flags_of_added_text_act_as_in_the_original(name: str, flag: str) -> None:
    data = add(FAMILIES_AND_WORDY[name].data(), "<table>", **{flag: True})
    vocab = vocab_of(data)
    for text in (" a <table> b", " a<table>b", " <table>", " a\n<table>\n"):
        assert vocab.encode_batch([text])[0] == ids_of(data, text)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_no_space_appears_behind_an_added_token(name: str) -> None:
    vocab = vocab_of(add(FAMILIES[name].data(), "<table>"))
    assert b"".join(said(vocab, "a<table>b")) == b"a<table>b"


def test_an_added_token_that_repeats_a_base_string_under_another_id_is_never_produced() -> None:
    data = FAMILIES["gpt2"].data()
    data["added_tokens"].append({**data["added_tokens"][0], "id": 600, "content": "the", "special": False})
    vocab = vocab_of(data)
    assert vocab.surfaces[600] == b"the"
    assert vocab.encode_batch(["the"]) == [[id_in(data, "the")]]


def test_special_tokens_that_a_normaliser_would_make_equal_stay_apart() -> None:
    data = add(FAMILIES["unigram-bytes"].data(), "<ｓ>", "<s>", special=True)
    vocab = vocab_of(data)
    assert [kind(vocab, text) for text in ("<ｓ>", "<s>")] == [Kind.SPECIAL, Kind.SPECIAL]
    assert surfaces(vocab, vocab.encode_batch(["<ｓ><s>"])[0]) == b"<s><s>"


# Normalisers


def test_a_normaliser_that_strips_both_ends_keeps_the_space_of_a_leading_space_token() -> None:
    data = FAMILIES["nllb"].data()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Strip()
    data["normalizer"] = json.loads(tokenizer.to_str())["normalizer"]
    vocab = vocab_of(data)
    assert b"".join(said(vocab, " the cat")) == b" the cat"
    assert b"".join(said(vocab, "the cat")) == b"the cat"


def test_accents_that_an_encoder_drops_are_missing_from_its_surfaces() -> None:
    assert b"".join(said(FAMILIES_AND_WORDY["bert-uncased"].vocab(), "naïve Größe")) == b" naive gro\xc3\x9fe"
    assert b"".join(said(FAMILIES_AND_WORDY["bert-cased"].vocab(), "naïve")) == " naïve".encode()


def test_words_and_their_pieces_say_where_spaces_stand() -> None:
    vocab = FAMILIES_AND_WORDY["bert-cased"].vocab()
    assert b"".join(said(vocab, "the cat, the (x86) 你好")) == " the cat, the( x86)你好".encode()
    clip = FAMILIES_AND_WORDY["clip"].vocab()
    assert b"".join(said(clip, "the cat")) == b"the cat "
    assert clip.ends_words


def test_a_decoder_made_of_many_steps_is_read_step_by_step() -> None:
    data = FAMILIES["metaspace-never"].data()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Sequence([decoders.Replace("▁", " ")]),
            decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]),
            decoders.Strip(" ", 1, 0),
        ]
    )
    data["decoder"] = json.loads(tokenizer.to_str())["decoder"]
    assert vocab_of(data).fingerprint == FAMILIES["metaspace-never"].vocab().fingerprint
