from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import errors

from xtoken_align.errors import SourceError
from xtoken_align.sources import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"

HubCache = Callable[..., Path]


def refusal(kind: type[errors.HfHubHTTPError]) -> Exception:
    response = httpx2.Response(404, request=httpx2.Request("GET", "http://localhost"))
    return kind("refused", response=response)


def fail_with(error: Exception) -> Callable[..., str]:
    def download(*_: object) -> str:
        raise error

    return download


def test_a_cached_default_branch_is_found_offline(hub_cache: HubCache) -> None:
    directory = hub_cache("user/repo", "tokenizer.json")
    assert hub.snapshot("user/repo", None) == (directory, COMMIT)


def test_a_cached_branch_or_commit_is_found_offline(hub_cache: HubCache) -> None:
    directory = hub_cache("user/repo", "tokenizer.json", branch="next")
    assert hub.snapshot("user/repo", "next") == (directory, COMMIT)
    assert hub.snapshot("user/repo", COMMIT) == (directory, COMMIT)


def test_a_cached_commit_needs_no_network(hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = hub_cache("user/repo", "tokenizer.json")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    real, asked = hub._download, []

    def download(repo_id: str, revision: str | None, local_files_only: bool) -> str:
        asked.append(local_files_only)
        return real(repo_id, revision, local_files_only=True)

    monkeypatch.setattr(hub, "_download", download)
    assert hub.snapshot("user/repo", COMMIT) == (directory, COMMIT)
    assert asked == [True]


def test_a_commit_cached_without_its_tokenizer_is_fetched(
    hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub_cache("user/repo", "config.json")
    fetched = tmp_path / COMMIT
    fetched.mkdir()
    (fetched / "tekken.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    real = hub._download
    monkeypatch.setattr(
        hub,
        "_download",
        lambda repo, revision, local: real(repo, revision, local_files_only=True) if local else str(fetched),
    )
    assert hub.snapshot("user/repo", COMMIT) == (fetched, COMMIT)


def test_hf_home_names_the_cache_too(hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    directory = hub_cache("user/repo", "tokenizer.json")
    (tmp_path / "hub").symlink_to(tmp_path / "hub-cache", target_is_directory=True)
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert hub.snapshot("user/repo", None)[0].samefile(directory)


def test_nothing_cached_and_offline_says_to_connect_once(hub_cache: HubCache) -> None:
    with pytest.raises(SourceError, match=r"user/repo is not in the local Hub cache.*offline.*connect once"):
        hub.snapshot("user/repo", None)


def test_a_hub_that_does_not_answer_is_given_up_in_seconds(
    hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    # Nobody listens there any more.
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub, "getproxies", dict)
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(SourceError, match="not in the local Hub cache, and the Hub cannot be reached"):
        hub.snapshot("usr/repo", None)
    with pytest.raises(SourceError, match="not in the local Hub cache, and the Hub cannot be reached"):
        hub.download("usr/repo", "mapping.npz")
    assert sum(pauses) <= 2
    directory = hub_cache("user/repo", "tokenizer.json")
    assert hub.snapshot("user/repo", None) == (directory, COMMIT)


def test_an_uncached_revision_is_named(hub_cache: HubCache) -> None:
    hub_cache("user/repo", "tokenizer.json")
    with pytest.raises(SourceError, match="at revision 'other'"):
        hub.snapshot("user/repo", "other")


def test_a_repository_without_tokenizer_files_is_refused(hub_cache: HubCache) -> None:
    hub_cache("user/adapter", "config.json")
    with pytest.raises(SourceError, match="user/adapter at 0123456789ab has no tokenizer file"):
        hub.snapshot("user/adapter", None)


def test_an_invalid_id_is_refused_before_any_request(hub_cache: HubCache) -> None:
    with pytest.raises(SourceError, match="is not a Hub id"):
        hub.snapshot("user/re--po", None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refusal(errors.GatedRepoError), r"is gated on the Hub: accept its licence .* `hf auth login`"),
        (refusal(errors.RepositoryNotFoundError), "is not on the Hub, or is private"),
        (refusal(errors.RevisionNotFoundError), "has no revision 'v9'"),
        (refusal(errors.HfHubHTTPError), r"could not be fetched from the Hub \(HfHubHTTPError\)"),
        (httpx2.ConnectTimeout("slow"), r"could not be fetched from the Hub \(ConnectTimeout\)"),
        (
            json.JSONDecodeError("Expecting value", "<html>", 0),
            r"what answered was not the Hub \(Expecting value: line 1",
        ),
        (PermissionError("cache"), r"could not be fetched from the Hub \(PermissionError\)"),
        (errors.LocalEntryNotFoundError("nothing here"), "the Hub cannot be reached"),
    ],
)
def test_each_refusal_of_the_hub_becomes_one_sentence(
    error: Exception, message: str, hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_download", fail_with(error))
    with pytest.raises(SourceError, match=message) as caught:
        hub.snapshot("user/repo", "v9")
    assert "\n" not in str(caught.value)


def test_a_partly_cached_repository_serves_when_its_tokenizer_is_there(
    hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = hub_cache("user/repo", "tokenizer.json")
    partial = errors.IncompleteSnapshotError("files are missing", snapshot_path=str(directory))
    monkeypatch.setattr(hub, "_download", fail_with(partial))
    assert hub.snapshot("user/repo", None) == (directory, COMMIT)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("tokenizer.json", True),
        ("tokenizer_config.json", True),
        ("tokenizer.model.v3", True),
        ("qwen.tiktoken", True),
        ("merges.txt", True),
        ("model.safetensors", False),
        ("pytorch_model.bin", False),
        ("model.gguf", False),
        ("modeling_custom.py", False),
    ],
)
def test_weights_and_code_are_never_asked_for(name: str, wanted: bool) -> None:
    patterns = (*hub.VOCABULARY_FILES, *hub.CONFIGURATION_FILES)
    assert any(fnmatch(name, pattern) for pattern in patterns) is wanted
