"""Reading whole vocabularies: the mistakes that users of other tools meet, one test each, and the facts of a source."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import FAMILIES, FAMILIES_AND_WORDY, add, id_in, surfaces, vocab_of

from xtoken_align import Vocab, build, read_vocab
from xtoken_align.errors import OptionError, VocabularyError, XTokenWarning
from xtoken_align.vocab.kinds import Kind

Real = Callable[[str], Vocab]


def written(tmp_path: Path, data: dict[str, Any], **config: Any) -> Path:
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


# What goes wrong elsewhere


def test_the_logit_width_is_not_the_tokenizers_size(tmp_path: Path) -> None:
    vocab = read_vocab(written(tmp_path, FAMILIES["gpt2"].data(), vocab_size=576))
    assert (vocab.sizes.with_added, vocab.sizes.logits, len(vocab)) == (520, 576, 576)
    assert (vocab.kinds[520:] == Kind.PADDING).all()
    mapping = build(student=vocab, teacher=FAMILIES["llama3"].vocab())
    assert mapping.W.shape == (576, len(FAMILIES["llama3"].vocab()))
    assert mapping.W[520:].nnz == 0


def test_a_tokenizer_with_more_ids_than_logits_is_cut_with_a_warning(tmp_path: Path) -> None:
    data = add(FAMILIES["llama2"].data(), "<a>", "<b>", "<c>", "<d>", special=True)
    with pytest.warns(XTokenWarning, match="are left out"):
        vocab = read_vocab(written(tmp_path, data, vocab_size=700))
    assert (vocab.sizes.with_added, len(vocab)) == (704, 700)


def test_equal_size_is_not_equal_vocabulary_and_equal_vocabulary_is_not_equal_ids() -> None:
    data = FAMILIES["gpt2"].data()
    one, other = id_in(data, "Ġthe"), id_in(data, "Ġcat")
    data["model"]["vocab"] |= {"Ġthe": other, "Ġcat": one}
    swapped, plain = vocab_of(data), FAMILIES["gpt2"].vocab()
    assert len(swapped) == len(plain)
    assert Counter(swapped.surfaces) == Counter(plain.surfaces)
    assert swapped.fingerprint != plain.fingerprint
    mapping = build(student=swapped, teacher=plain)
    assert mapping.row(" the").links[0].teacher_id == one


@pytest.mark.parametrize("change", ["surface", "id", "normaliser", "pattern", "lookup"])
def test_fingerprints_differ_where_text_would_become_other_ids(change: str) -> None:
    data = FAMILIES["qwen"].data()
    if change == "surface":
        last = "".join(data["model"]["merges"].pop())
        data["model"]["vocab"]["zq"] = data["model"]["vocab"].pop(last)
    elif change == "id":
        data = add(data, "zzz")
    elif change == "normaliser":
        data["normalizer"] = None
    elif change == "pattern":
        data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+|[^\p{L}]+"
    else:
        data["model"]["ignore_merges"] = True
        data["model"]["vocab"]["Ġlazy"] = max(data["model"]["vocab"].values()) + 40
    assert vocab_of(data).fingerprint != FAMILIES["qwen"].vocab().fingerprint


@pytest.mark.parametrize("name", list(FAMILIES))
def test_fingerprints_do_not_depend_on_specials_padding_or_width(name: str) -> None:
    data = add(FAMILIES[name].data(), "<|extra marker|>", special=True)
    assert vocab_of(data, logits=1024).fingerprint == FAMILIES[name].vocab().fingerprint


def test_the_family_shows_in_the_decoder_and_not_in_the_characters() -> None:
    data = FAMILIES["metaspace-never"].data()
    literal = data["model"]["vocab"]
    literal["Ċ"] = len(literal)
    sentencepiece, byte_level = vocab_of(data), FAMILIES["gpt2"].vocab()
    assert sentencepiece.surfaces[literal["Ċ"]] == "Ċ".encode()
    assert byte_level.surfaces[list(byte_level.raw).index("Ċ")] == b"\n"


def test_a_byte_escape_and_its_letter_are_two_ids_with_one_surface() -> None:
    vocab = FAMILIES["llama2"].vocab()
    holders = [token for token, surface in enumerate(vocab.surfaces) if surface == b"a"]
    assert sorted(Kind(int(vocab.kinds[token])) for token in holders) == [Kind.TEXT, Kind.BYTE]
    assert vocab.repeated_surfaces > 90


@pytest.mark.parametrize("text", ["<br>", "<div>", "<x1>", "<>"])
def test_markup_in_a_vocabulary_is_text(text: str) -> None:
    vocab = vocab_of(add(FAMILIES["gemma"].data(), text))
    assert vocab.kinds[list(vocab.raw).index(text)] == Kind.TEXT


def test_partial_characters_are_all_different() -> None:
    vocab = FAMILIES["gpt2"].vocab()
    partial = [surface for surface in vocab.surfaces if b"\xef\xbf\xbd" in surface or not _whole(surface)]
    assert len(partial) == len(set(partial)) > 100


def _whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("student", ["gpt2", "llama2", "metaspace-always", "gemma", "t5"])
@pytest.mark.parametrize("teacher", ["llama2", "metaspace-first", "metaspace-always", "nllb", "t5", "gemma"])
def test_no_decomposition_begins_with_a_space_that_its_token_does_not_have(student: str, teacher: str) -> None:
    one, other = FAMILIES[student].vocab(), FAMILIES[teacher].vocab()
    pieces = build(student=one, teacher=other).decompositions("student")
    for token in one.ids_of(Kind.TEXT).tolist():
        first = pieces[token][:1]
        if first and not one.surfaces[token][:1].isspace():
            assert not other.surfaces[first[0]].startswith(b" ")


def test_a_row_that_a_normaliser_changes_is_counted_as_lossy() -> None:
    student = vocab_of(add(FAMILIES["gpt2"].data(), "cafe\u0301"))
    mapping = build(student=student, teacher=FAMILIES["qwen"].vocab())
    assert mapping.coverage().lossy >= 1
    assert build(student=student, teacher=FAMILIES["llama3"].vocab()).coverage().lossy == 0


def test_padding_and_holes_have_no_surface_and_no_row(tmp_path: Path) -> None:
    data = add(FAMILIES["gpt2"].data(), "<table>")
    data["added_tokens"][-1]["id"] += 5
    vocab = read_vocab(written(tmp_path, data, vocab_size=540))
    silent = np.flatnonzero(vocab.kinds >= Kind.PADDING)
    assert [Kind(int(kind)) for kind in vocab.kinds[[520, 524, 526, 539]]] == [Kind.HOLE] * 2 + [Kind.PADDING] * 2
    assert {vocab.surfaces[token] for token in silent} == {b""}
    assert b"" not in vocab.lowest_text_id
    assert np.diff(build(student=vocab, teacher=vocab).W.indptr)[silent].sum() == 0


def test_several_special_tokens_of_one_configuration_stay_apart(tmp_path: Path) -> None:
    data = add(FAMILIES["gpt2"].data(), "<a>", "<b>", "<c>", special=True)
    path = written(tmp_path, data)
    config = {"additional_special_tokens": ["<a>", "<b>", "<c>"], "eos_token": "<a>", "pad_token": "<a>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    vocab = read_vocab(path)
    assert vocab.roles["eos"] == vocab.roles["pad"] == (520,)
    mapping = build(student=vocab, teacher=vocab_of(add(FAMILIES["llama3"].data(), "<c>", "<b>", special=True)))
    assert [mapping.row(token).links[0].surface for token in (521, 522)] == [b"<b>", b"<c>"]


def test_names_that_merely_look_alike_are_not_one_special_token() -> None:
    student = vocab_of(add(FAMILIES["gpt2"].data(), "<|start_of_thing|>", special=True))
    teacher = vocab_of(add(FAMILIES["gpt2"].data(), "<|start_of_things|>", "zz", special=True))
    assert not build(student=student, teacher=teacher).row(len(student) - 1).links


def test_a_look_up_by_surface_finds_every_duplicate() -> None:
    vocab = vocab_of(add(FAMILIES["gemma"].data(), "Ġ", "<table>x"))
    assert vocab.lowest_text_id[b"  "] <= vocab.highest_text_id[b"  "]
    data = add(FAMILIES["gpt2"].data(), " the")
    doubled = vocab_of(data)
    assert (doubled.lowest_text_id[b" the"], doubled.highest_text_id[b" the"]) == (id_in(data, "Ġthe"), 520)
    assert doubled.repeated_surfaces == FAMILIES["gpt2"].vocab().repeated_surfaces + 1


# Sources


def test_ids_above_the_width_that_the_user_gives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="ids up to 519, above the logit width 519"):
        read_vocab(written(tmp_path, FAMILIES["gpt2"].data()), logits=519)


def test_the_width_that_the_user_gives_wins_over_the_models(tmp_path: Path) -> None:
    assert len(read_vocab(written(tmp_path, FAMILIES["gpt2"].data(), vocab_size=576), logits=640)) == 640


@pytest.mark.parametrize("logits", [0, -5])
def test_a_width_below_one_is_no_width(tmp_path: Path, logits: int) -> None:
    with pytest.raises(OptionError, match="positive"):
        read_vocab(written(tmp_path, FAMILIES["gpt2"].data()), logits=logits)


def test_a_width_that_no_model_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="what was given"):
        read_vocab(written(tmp_path, FAMILIES["gpt2"].data()), logits=2**40)


@pytest.mark.parametrize("name", list(FAMILIES_AND_WORDY))
def test_reading_twice_gives_one_vocabulary(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, FAMILIES_AND_WORDY[name].data())
    first, second = read_vocab(path), read_vocab(path / "tokenizer.json", name="other")
    assert first.fingerprint == second.fingerprint
    assert first.surfaces.list == second.surfaces.list
    assert (first.kinds == second.kinds).all()
    assert (first.name, second.name) == (tmp_path.name.lower(), "other")


def test_real_special_strings_never_come_out_of_text(real: Real) -> None:
    for alias in ("llama-3", "qwen3", "deepseek", "mistral-v1", "mistral-tekken"):
        vocab = real(alias)
        specials = [vocab.raw[token] for token in np.flatnonzero(vocab.kinds > Kind.BYTE).tolist() if vocab.raw[token]]
        for ids, text in zip(vocab.encode_batch(specials), specials, strict=True):
            assert (vocab.kinds[ids] <= Kind.BYTE).all()
            assert surfaces(vocab, ids).decode() == text.replace("▁", " " if alias == "mistral-v1" else "▁")
