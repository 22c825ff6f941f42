from __future__ import annotations

import os
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from xtoken_align.errors import OptionError, SourceError
from xtoken_align.sources import hub
from xtoken_align.sources.locate import locate
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
