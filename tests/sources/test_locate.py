"""From what a user types to files on disk and to a short name."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtoken_align.errors import OptionError, SourceError
from xtoken_align.sources import hub
from xtoken_align.sources.locate import hub_name, locate, package_file, path_name, safe_name
from xtoken_align.sources.presets import presets

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HubCache = Callable[..., Path]


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> tuple[Path, str]:
        pytest.fail("the Hub was asked")

    monkeypatch.setattr(hub, "snapshot", refuse)


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtoken_align.sources.locate.find_spec", lambda _: None)


@pytest.mark.usefixtures("no_hub")
def test_a_file_is_located_under_its_directorys_name(tmp_path: Path) -> None:
    file = tmp_path / "My-Model" / "tokenizer.json"
    file.parent.mkdir()
    file.write_text("{}")
    for source in (str(file), file):
        located = locate(source)
        assert (located.name, located.label, located.path) == ("my-model", "tokenizer.json", file)
        assert located.preset is None
        assert located.revision is None


@pytest.mark.usefixtures("no_hub")
def test_a_path_comes_before_an_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama-3").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("llama-3").preset is None


@pytest.mark.usefixtures("no_hub")
def test_the_current_directory_is_named_like_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert (locate(".").name, locate(".").label) == ("here", "here")


@pytest.mark.usefixtures("no_hub")
def test_a_tilde_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert locate("~/model").path == tmp_path / "model"


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    "source",
    [
        "./llama-3",
        "../x",
        "..",
        "/no/such",
        "~/no-such-model",
        "models/tokenizer.json",
        "x.gguf",
        "x.tiktoken.gz",
        "x.model.v3",
        "a/b/c",
        "model/",
        ".\\model",
        "C:\\model",
        "a\\b",
        Path("llama-3"),
    ],
)
def test_what_can_only_be_a_path_is_never_sent_to_the_hub(
    source: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    if str(source) == "..":
        source = "../no-such"
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(SourceError, match="no such file or directory"):
        locate(source)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("source", ["", " ", "x y", "@main", "a//", "ü/x", "x" * 5000 + "?", "a\0b", "user/@x"])
def test_what_is_nothing_at_all_is_refused_without_asking(source: str) -> None:
    with pytest.raises(SourceError):
        locate(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_neither_file_nor_directory(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="neither a file nor a directory"):
        locate(str(tmp_path / "pipe"))


@pytest.mark.usefixtures("no_hub")
def test_an_alias_takes_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "llama_models" / "llama3" / "tokenizer.model"
    file.parent.mkdir(parents=True)
    file.write_text("")
    spec = ModuleSpec("llama_models", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "llama_models")]
    monkeypatch.setattr("xtoken_align.sources.locate.find_spec", lambda _: spec)
    located = locate("llama-3.2")
    assert (located.name, located.label, located.path, located.revision) == ("llama-3.2", "llama-3.2", file, None)
    assert located.preset is presets()["llama-3.2"]


@pytest.mark.usefixtures("no_packages")
def test_an_alias_without_its_package_takes_the_hub(hub_cache: HubCache) -> None:
    directory = hub_cache("Qwen/Qwen3-4B", "tokenizer.json")
    located = locate("qwen3")
    assert (located.name, located.label, located.path) == ("qwen3", "qwen3", directory)
    assert located.preset is presets()["qwen3"]
    assert located.revision == COMMIT


@pytest.mark.usefixtures("no_packages", "hub_cache")
def test_an_alias_found_nowhere_says_what_to_install() -> None:
    with pytest.raises(SourceError, match=r"pip install llama-models.*meta-llama/Meta-Llama-3-8B.*Hub"):
        locate("llama-3")


def test_a_hub_id_is_labelled_by_itself_and_named_by_its_last_part(hub_cache: HubCache) -> None:
    directory = hub_cache("Qwen/Qwen3-4B", "tokenizer.json")
    located = locate("Qwen/Qwen3-4B")
    assert (located.name, located.label, located.path) == ("qwen3-4b", "Qwen/Qwen3-4B", directory)
    assert (located.preset, located.revision) == (None, COMMIT)


def test_an_old_hub_id_has_one_part(hub_cache: HubCache) -> None:
    directory = hub_cache("gpt2", "tokenizer.json")
    assert locate("gpt2").path == directory


def test_a_revision_is_given_by_sign_or_option_or_both_alike(hub_cache: HubCache) -> None:
    directory = hub_cache("user/repo", "tokenizer.json", branch="refs/pr/1")
    for located in (
        locate("user/repo@refs/pr/1"),
        locate("user/repo", revision="refs/pr/1"),
        locate("user/repo@refs/pr/1", revision="refs/pr/1"),
        locate(f"user/repo@{COMMIT}"),
    ):
        assert (located.path, located.label, located.revision) == (directory, "user/repo", COMMIT)


@pytest.mark.usefixtures("no_hub")
def test_two_revisions_that_differ_are_refused() -> None:
    with pytest.raises(OptionError, match="already names revision 'main'"):
        locate("user/repo@main", revision="next")


@pytest.mark.usefixtures("no_hub")
def test_a_revision_of_something_that_has_none_is_refused(tmp_path: Path) -> None:
    for source in (str(tmp_path), "llama-3", "pkg:json/x.json"):
        with pytest.raises(OptionError, match="has no revisions"):
            locate(source, revision="main")
    with pytest.raises(OptionError, match="qwen3 is an alias"):
        locate("qwen3@main")


@pytest.mark.usefixtures("no_hub")
def test_an_empty_revision_is_refused() -> None:
    with pytest.raises(SourceError, match="without a revision"):
        locate("user/repo@")


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(("typed", "meant"), [("llama3", "llama-3"), ("Qwen-3", "qwen3"), ("mistral_v3", "mistral-v3")])
def test_a_misspelt_alias_is_told_close_ones(typed: str, meant: str) -> None:
    with pytest.raises(SourceError, match=rf"no alias \(did you mean .*{meant}"):
        locate(typed)


@pytest.mark.usefixtures("hub_cache")
def test_a_name_like_no_alias_gets_no_suggestion() -> None:
    with pytest.raises(SourceError, match="no existing path and no alias; as a Hub id"):
        locate("bert-base-uncased")


@pytest.mark.usefixtures("no_hub")
def test_a_file_in_a_package_is_labelled_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "carrier_package_xyz" / "data").mkdir(parents=True)
    (tmp_path / "carrier_package_xyz" / "data" / "tekken_1.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "pkg:carrier_package_xyz/data/tekken_1.json"
    located = locate(source)
    assert (located.name, located.label, located.preset) == ("tekken_1", source, None)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    root = tmp_path / "heavy_package_xyz"
    (root / "data").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    (root / "data" / "tokenizer.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "heavy_package_xyz"


def test_a_file_is_found_without_importing_its_package(package: str) -> None:
    assert package_file(f"pkg:{package}/data/tokenizer.json").read_text() == "{}"
    assert package not in sys.modules


def test_a_package_without_init_in_several_places_is_searched_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("one", "two"):
        (tmp_path / place / "spread_package_xyz").mkdir(parents=True)
        monkeypatch.syspath_prepend(str(tmp_path / place))
    (tmp_path / "one" / "spread_package_xyz" / "ranks.tiktoken").write_text("")
    assert package_file("pkg:spread_package_xyz/ranks.tiktoken").parent.parent.name == "one"


def test_a_missing_package_is_named() -> None:
    with pytest.raises(SourceError, match="names the package no_such_package, which is not installed"):
        package_file("pkg:no_such_package/tokenizer.json")


def test_a_missing_file_is_named(package: str) -> None:
    with pytest.raises(SourceError, match=r"has no file 'data/tekken\.json'"):
        package_file(f"pkg:{package}/data/tekken.json")


def test_a_plain_module_is_no_package() -> None:
    with pytest.raises(SourceError, match="not installed"):
        package_file("pkg:this/tokenizer.json")


@pytest.mark.parametrize(
    "source",
    [
        "pkg:",
        "pkg:json",
        "pkg:json/",
        "pkg:json/../x",
        "pkg:json//etc/passwd",
        "pkg:/etc/passwd",
        "pkg:a.b/c",
        "pkg:json/a\0",
    ],
)
def test_a_malformed_or_escaping_source_is_refused(source: str) -> None:
    with pytest.raises(SourceError, match="expected pkg:package/path/in/package"):
        package_file(source)


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
