"""Tokenizer objects, directories with their configuration files, slow-only directories and files of older releases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, FAMILIES_AND_WORDY, WORDY, add
from tokenizers import Tokenizer

from xtoken_align import Vocab, read_vocab
from xtoken_align.errors import SourceError, XTokenWarning
from xtoken_align.vocab.kinds import Kind

Json = dict[str, Any]
TEXTS = ["the cat  sat", " don't\n\nreturn 2024", "Größe привет 你好", "<s> <unk> <0x41> [CLS] <|endoftext|>", ""]


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return path


def from_file(directory: Path, data: Json) -> Vocab:
    return read_vocab(write(directory / "tokenizer.json", data))


def assert_same(first: Vocab, second: Vocab) -> None:
    assert first.surfaces.list == second.surfaces.list
    assert first.kinds.tolist() == second.kinds.tolist()
    assert first.encode_batch(TEXTS) == second.encode_batch(TEXTS)
    assert first.fingerprint == second.fingerprint


# Objects


@pytest.mark.parametrize("name", list(FAMILIES_AND_WORDY))
def test_a_tokenizer_object_is_its_file(tmp_path: Path, name: str) -> None:
    data = FAMILIES_AND_WORDY[name].data()
    assert_same(read_vocab(Tokenizer.from_str(json.dumps(data))), from_file(tmp_path, data))


@pytest.mark.parametrize("name", ["gpt2", "llama2", "t5", "bert-cased"])
def test_a_fast_tokenizer_of_transformers_is_its_file_with_roles(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    data = FAMILIES_AND_WORDY[name].data()
    special = next(entry["content"] for entry in data["added_tokens"] if entry["special"])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)), pad_token=special
    )
    vocab = read_vocab(fast, name="mine")
    assert_same(vocab, from_file(tmp_path, data))
    assert vocab.name == "mine"
    assert [vocab.raw[token] for token in vocab.roles["pad"]] == [special]


def test_tokens_added_to_an_object_later_are_read(tmp_path: Path) -> None:
    tokenizer = FAMILIES["gpt2"].original()
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.add_tokens(["table of contents"])
    vocab = read_vocab(tokenizer)
    marker, text = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("table of contents")
    assert (vocab.kinds[marker], vocab.kinds[text]) == (Kind.SPECIAL, Kind.TEXT)
    assert vocab.roles["eot"] == (marker,)
    assert vocab.encode_batch(["table of contents"]) == [[text]]


def test_an_object_is_not_changed_by_reading_it() -> None:
    tokenizer = FAMILIES["llama2"].original()
    before = tokenizer.to_str()
    read_vocab(tokenizer).encode_batch(TEXTS)
    assert tokenizer.to_str() == before


@pytest.mark.parametrize("thing", [None, 5, object(), ["tokenizer.json"], {"model": {}}])
def test_an_object_that_is_no_tokenizer_is_refused(thing: object) -> None:
    with pytest.raises(SourceError, match=r"expected a tokenizers\.Tokenizer"):
        read_vocab(thing)


# Directories


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    data = add(FAMILIES["gpt2"].data(), "<|im_end|>", "<|pad|>", special=True)
    made = tmp_path / "My-Model"
    made.mkdir()
    write(made / "tokenizer.json", data)
    return made


def test_a_directory_gives_roles_and_width_by_its_configuration(directory: Path) -> None:
    names = {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "pad_token": "<|endoftext|>", "bos_token": None}
    write(directory / "tokenizer_config.json", names)
    write(directory / "config.json", {"vocab_size": 600})
    vocab = read_vocab(directory)
    raw = {role: tuple(vocab.raw[token] for token in ids) for role, ids in vocab.roles.items()}
    assert raw["eos"] == ("<|im_end|>",)
    assert raw["pad"] == ("<|endoftext|>",)
    assert raw["eot"] == ("<|im_end|>",)
    assert "bos" not in raw
    assert vocab.sizes.logits == 600
    assert vocab.kinds[-1] == Kind.PADDING
    assert (vocab.name, vocab.source) == ("my-model", "My-Model")


def test_special_tokens_map_speaks_where_tokenizer_config_is_silent(directory: Path) -> None:
    write(directory / "special_tokens_map.json", {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"})
    write(directory / "tokenizer_config.json", {"pad_token": "<|pad|>"})
    vocab = read_vocab(directory)
    assert [vocab.raw[token] for token in vocab.roles["eos"]] == ["<|im_end|>"]
    assert [vocab.raw[token] for token in vocab.roles["pad"]] == ["<|pad|>"]


def test_the_width_of_a_model_with_several_parts_is_its_text_parts(directory: Path) -> None:
    write(directory / "config.json", {"vision_config": {"vocab_size": 7}, "text_config": {"vocab_size": 640}})
    assert read_vocab(directory).sizes.logits == 640


def test_tokens_that_only_the_configuration_knows_are_read(directory: Path) -> None:
    high = read_vocab(directory).sizes.ids + 3
    listed = {
        str(high): {"content": "<|tool|>", "special": True},
        str(high + 1): {"content": "plain", "special": False},
    }
    write(directory / "tokenizer_config.json", {"added_tokens_decoder": listed})
    vocab = read_vocab(directory)
    assert [Kind(int(kind)) for kind in vocab.kinds[high - 1 :]] == [Kind.HOLE, Kind.SPECIAL, Kind.TEXT]
    assert vocab.encode_batch(["plain"]) == [[high + 1]]


def test_the_configurations_special_flag_makes_an_added_token_special(directory: Path) -> None:
    data = add(json.loads((directory / "tokenizer.json").read_text(encoding="utf-8")), "END", special=False)
    write(directory / "tokenizer.json", data)
    assert read_vocab(directory).kinds[-1] == Kind.TEXT
    write(directory / "tokenizer_config.json", {"additional_special_tokens": ["END"]})
    assert read_vocab(directory).kinds[-1] == Kind.SPECIAL


@pytest.mark.parametrize("content", ["[]", "null", '"x"', "5"])
def test_a_configuration_that_is_no_table_says_nothing(directory: Path, content: str) -> None:
    expected = read_vocab(directory).fingerprint
    for name in ("tokenizer_config.json", "config.json", "special_tokens_map.json"):
        (directory / name).write_text(content, encoding="utf-8")
    assert read_vocab(directory).fingerprint == expected


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_half_a_configuration_is_refused(directory: Path, name: str) -> None:
    (directory / name).write_text('{"vocab_size": 6', encoding="utf-8")
    with pytest.raises(SourceError, match=name):
        read_vocab(directory)


def test_a_path_may_be_a_string_and_end_in_a_slash(directory: Path) -> None:
    assert read_vocab(f"{directory}/").name == read_vocab(directory).name == "my-model"


# Directories that only a slow tokenizer reads


def merges_text(data: Json) -> str:
    return "#version: 0.2\n" + "".join(f"{' '.join(merge)}\n" for merge in data["model"]["merges"])


def test_vocab_json_and_merges_go_through_transformers_with_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    data = FAMILIES["gpt2"].data()
    slow = tmp_path / "slow"
    slow.mkdir()
    write(slow / "vocab.json", data["model"]["vocab"])
    (slow / "merges.txt").write_text(merges_text(data), encoding="utf-8")
    write(slow / "config.json", {"model_type": "gpt2", "vocab_size": 530})
    write(slow / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"})
    with pytest.warns(XTokenWarning, match="transformers converted it"):
        vocab = read_vocab(slow)
    expected = from_file(tmp_path, data)
    assert vocab.surfaces[: len(expected)] == expected.surfaces.list
    assert vocab.encode_batch(TEXTS) == expected.encode_batch(TEXTS)
    assert vocab.sizes.logits == 530
    assert [vocab.raw[token] for token in vocab.roles["eos"]] == ["<|endoftext|>"]


def test_a_slow_tokenizer_whose_files_are_no_utf8_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write(tmp_path / "vocab.json", {"a": 0})
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\n\xff\xfe a\n")
    write(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    with pytest.raises(SourceError, match=r"has no tokenizer\.json, and transformers cannot load it: "):
        read_vocab(tmp_path)


def test_vocab_txt_goes_through_transformers_with_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    data = WORDY["bert-uncased"].data()
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "vocab.txt").write_text("".join(f"{piece}\n" for piece in data["model"]["vocab"]), encoding="utf-8")
    write(slow / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    write(slow / "config.json", {"model_type": "bert"})
    with pytest.warns(XTokenWarning, match="transformers converted it"):
        vocab = read_vocab(slow)
    expected = from_file(tmp_path, data)
    assert vocab.encode_batch(TEXTS) == expected.encode_batch(TEXTS)
    assert vocab.fingerprint == expected.fingerprint


def test_a_slow_directory_that_transformers_cannot_load_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write(tmp_path / "tokenizer_config.json", {"tokenizer_class": "NoSuchTokenizer"})
    with pytest.raises(SourceError, match=r"no tokenizer\.json"):
        read_vocab(tmp_path)


def test_code_beside_a_slow_tokenizer_is_never_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n", encoding="utf-8")
    names = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    write(tmp_path / "tokenizer_config.json", names)
    with pytest.raises(SourceError):
        read_vocab(tmp_path)
    assert not (tmp_path / "ran").exists()


# Files of older releases


def older(name: str) -> Json:
    """The file without what its first releases did not write."""
    data = FAMILIES_AND_WORDY[name].data()
    del data["model"]["type"]
    return data


@pytest.mark.parametrize("name", ["gpt2", "llama2", "t5", "nllb", "bert-cased", "clip", "word-level"])
def test_a_file_without_the_models_type_is_told_by_its_other_fields(tmp_path: Path, name: str) -> None:
    assert_same(from_file(tmp_path, older(name)), FAMILIES_AND_WORDY[name].vocab())


@pytest.mark.parametrize("name", ["gpt2", "qwen", "llama2", "gemma", "clip"])
def test_merges_as_strings_and_as_pairs_are_the_same(tmp_path: Path, name: str) -> None:
    data = FAMILIES_AND_WORDY[name].data()
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in data["model"]["merges"]]
    data["model"]["merges"] = [" ".join(pair) for pair in pairs]
    strings = from_file(tmp_path, data)
    data["model"]["merges"] = pairs
    assert_same(strings, from_file(tmp_path, data))


def metaspaces(data: Json) -> list[Json]:
    splitter = data["pre_tokenizer"]
    return [leaf for leaf in splitter.get("pretokenizers", [splitter]) if leaf["type"] == "Metaspace"]


@pytest.mark.parametrize(("name", "prefix"), [("nllb", True), ("t5", True), ("metaspace-never", False)])
def test_add_prefix_space_is_the_older_name_of_the_prepend_scheme(tmp_path: Path, name: str, prefix: bool) -> None:
    data = FAMILIES[name].data()
    for leaf in metaspaces(data):
        del leaf["prepend_scheme"]
        leaf.pop("split", None)
        leaf.update(add_prefix_space=prefix, str_rep="▁")
    assert_same(from_file(tmp_path, data), FAMILIES[name].vocab())


def test_a_file_without_optional_sections_is_read(tmp_path: Path) -> None:
    data = FAMILIES["gpt2"].data()
    for section in ("version", "truncation", "padding", "post_processor", "normalizer", "added_tokens"):
        data.pop(section, None)
    vocab = from_file(tmp_path, data)
    assert vocab.surfaces.list == FAMILIES["gpt2"].vocab().surfaces.list


def test_padding_and_truncation_in_the_file_do_not_touch_encoding(tmp_path: Path) -> None:
    data = FAMILIES["gpt2"].data()
    data["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    assert_same(from_file(tmp_path, data), FAMILIES["gpt2"].vocab())
