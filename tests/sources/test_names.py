from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtoken_align.sources.locate import hub_name, path_name, safe_name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/My-Model/tokenizer.json", "my-model"),
        ("/models/My-Model/tekken.json", "my-model"),
        ("/models/My-Model/vocab.txt", "my-model"),
        ("/models/cl100k_base.tiktoken", "cl100k_base"),
        ("/models/cl100k_base.tiktoken.gz", "cl100k_base"),
        ("/models/tekken_240911.json", "tekken_240911"),
        ("/models/Qwen3-4B.Q4_K_M.gguf", "qwen3-4b.q4_k_m"),
        ("/models/mistral_240323.model.v3", "mistral_240323.v3"),
        ("/cache/models--Org--Some-Model/snapshots/0123abcd/tokenizer.json", "some-model"),
    ],
)
def test_a_file_is_named_by_its_stem_or_by_its_directory(path: str, name: str) -> None:
    assert path_name(Path(path)) == name


def test_a_directory_is_named_by_its_own_name(tmp_path: Path) -> None:
    directory = tmp_path / "Model v1.5"
    directory.mkdir()
    assert path_name(directory) == "model-v1.5"


def test_a_hub_repository_is_named_by_the_part_after_the_slash() -> None:
    assert hub_name("Qwen/Qwen3-4B") == "qwen3-4b"
    assert hub_name("gpt2") == "gpt2"


def test_windows_device_names_are_avoided() -> None:
    assert safe_name("CON") == "con-tokenizer"
    assert safe_name("nul.v1") == "nul-tokenizer.v1"
    assert safe_name("console") == "console"


def test_names_without_a_safe_character_stay_apart() -> None:
    assert safe_name("模型") != safe_name("語彙")


@given(st.text(max_size=200))
def test_any_text_becomes_a_safe_name_and_safe_names_stay(text: str) -> None:
    name = safe_name(text)
    assert re.fullmatch(r"[a-z0-9_][a-z0-9._-]*", name)
    assert not name.endswith((".", "-"))
    assert safe_name(name) == name
