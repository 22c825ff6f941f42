"""Configuration files: roles, flags, added tokens and the width, and nothing that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES

from xtoken_align import Vocab, read_vocab
from xtoken_align.errors import SourceError, VocabularyError, XTokenWarning
from xtoken_align.readers.configs import Configs, configs_of, read_configs
from xtoken_align.vocab.kinds import Kind


def directory(tmp_path: Path, **files: Any) -> Path:
    """A directory with Llama-2's small vocabulary and the given files."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(FAMILIES["llama2"].data()), encoding="utf-8")
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


def kind(vocab: Vocab, text: str) -> Kind:
    return Kind(int(vocab.kinds[list(vocab.raw).index(text)]))


def test_a_token_is_named_by_its_string_or_by_its_fields() -> None:
    configs = configs_of({"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "pad_token": None}, {})
    assert configs.roles == {"bos": ("<s>",), "eos": ("</s>",)}


def test_several_additional_tokens_all_count() -> None:
    configs = configs_of(
        {
            "additional_special_tokens": ["<a>", {"content": "<b>"}],
            "extra_special_tokens": {"image_token": "<c>"},
            "added_tokens_decoder": {"9": {"content": "<d>", "special": True}, "10": {"content": "<e>"}},
        },
        {},
    )
    assert configs.flagged == {"<a>", "<b>", "<c>", "<d>"}
    assert [(token.id, token.text, token.special) for token in configs.added] == [
        (9, "<d>", True),
        (10, "<e>", False),
    ]


@pytest.mark.parametrize("key", ["²", "-1", "1.5", "", "x", "9" * 5000])
def test_an_added_token_without_an_id_is_passed_over(key: str) -> None:
    assert configs_of({"added_tokens_decoder": {key: {"content": "<d>"}}}, {}).added == ()


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"vocab_size": 8}, 8),
        ({"text_config": {"vocab_size": 9}}, 9),
        ({"vocab_size": 8, "text_config": {"vocab_size": 9}}, 8),
        ({"llm_config": {"vocab_size": 7}}, 7),
        ({"vocab_size": None, "text_config": None}, None),
        ({"vocab_size": "8"}, None),
        ({"vocab_size": True}, None),
        ({"vocab_size": 0}, None),
        ({}, None),
    ],
)
def test_the_width_is_the_text_models_vocab_size(config: dict[str, Any], width: int | None) -> None:
    assert configs_of({}, config).width == width


def test_the_tokenizers_own_configuration_wins_over_the_older_map(tmp_path: Path) -> None:
    path = directory(tmp_path, special_tokens_map={"bos_token": "<old>"}, tokenizer_config={"bos_token": "<s>"})
    assert read_configs(path).roles == {"bos": ("<s>",)}


def test_files_that_are_not_there_or_hold_no_table_say_nothing(tmp_path: Path) -> None:
    assert read_configs(tmp_path) == Configs()
    (tmp_path / "config.json").write_text("[1]", encoding="utf-8")
    assert read_configs(tmp_path) == Configs()


def test_a_broken_configuration_is_named(tmp_path: Path) -> None:
    path = directory(tmp_path)
    (path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(SourceError, match=r"tokenizer_config\.json is not whole JSON"):
        read_vocab(path)


def test_roles_come_from_the_configuration_before_well_known_names(tmp_path: Path) -> None:
    vocab = read_vocab(directory(tmp_path, tokenizer_config={"pad_token": "</s>", "eos_token": "<s>"}))
    assert vocab.roles["eos"] == (1,)
    assert vocab.roles["pad"] == (2,)


def test_a_token_that_only_the_configuration_knows_is_there(tmp_path: Path) -> None:
    config = {"added_tokens_decoder": {"705": {"content": "<call>", "special": True}, "706": {"content": "<table>"}}}
    vocab = read_vocab(directory(tmp_path, tokenizer_config=config))
    assert (kind(vocab, "<call>"), kind(vocab, "<table>")) == (Kind.SPECIAL, Kind.TEXT)
    assert [Kind(value) for value in vocab.kinds[700:705]] == [Kind.HOLE] * 5
    assert vocab.encode_batch(["<table>"]) == [[706]]


@pytest.mark.parametrize("key", ["16777216", "99999999"])
def test_an_id_that_no_vocabulary_has_is_passed_over(tmp_path: Path, key: str) -> None:
    vocab = read_vocab(directory(tmp_path, tokenizer_config={"added_tokens_decoder": {key: {"content": "<d>"}}}))
    assert len(vocab) == 700


@pytest.mark.parametrize("name", [[], {}, 3, None])
def test_a_template_whose_name_is_no_text_is_passed_over(tmp_path: Path, name: object) -> None:
    templates = [{"name": name, "template": "odd"}, {"name": "default", "template": "this one"}]
    assert read_vocab(directory(tmp_path, tokenizer_config={"chat_template": templates})).chat_template == "this one"


def test_a_flag_of_the_configuration_makes_a_base_token_special_and_never_a_byte(tmp_path: Path) -> None:
    path = directory(tmp_path, tokenizer_config={"additional_special_tokens": ["<cat>", "<0x41>"]})
    data = FAMILIES["llama2"].data()
    data["model"]["vocab"]["<cat>"] = len(data["model"]["vocab"])
    (path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    vocab = read_vocab(path)
    assert (kind(vocab, "<cat>"), kind(vocab, "<0x41>")) == (Kind.SPECIAL, Kind.BYTE)


def test_padding_reuses_an_ordinary_token_without_changing_it(tmp_path: Path) -> None:
    vocab = read_vocab(directory(tmp_path, tokenizer_config={"pad_token": "!"}))
    assert kind(vocab, "!") == Kind.TEXT


def test_ids_above_the_models_width_are_cut_with_a_warning_that_says_how(tmp_path: Path) -> None:
    path = directory(tmp_path, config={"vocab_size": 690})
    with pytest.warns(XTokenWarning, match=r"ids up to 699, but config\.json gives the model 690 logits"):
        vocab = read_vocab(path)
    assert (len(vocab), vocab.sizes.ids, vocab.sizes.with_added) == (690, 700, 700)
    assert all(token < 690 for token in vocab.encode_batch([" ".join(FAMILIES["llama2"].data()["model"]["vocab"])])[0])


@pytest.mark.parametrize("width", [2**24 + 1, 2**40, 2**70])
def test_a_width_that_no_model_has_is_refused(tmp_path: Path, width: int) -> None:
    with pytest.raises(VocabularyError, match="logits by"):
        read_vocab(directory(tmp_path, config={"vocab_size": width}))
