"""`push`, `pull` and `user/repo` wherever a mapping is named, against a Hub on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_results import Result, refused
from hub_server import TOKEN, Hub, running_hub

import xtoken_align
from xtoken_align.mapping.mapping import Mapping

Invoke = Callable[..., Result]
REPOSITORY = "user/pupil-from-master"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub, an empty cache, and a user who is logged in."""
    with running_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("XTOKEN_ALIGN_STORE", str(tmp_path / "store"))
        # Between two tries huggingface_hub waits for seconds.
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        yield server


@pytest.fixture
def mapping(built: Path) -> Mapping:
    return xtoken_align.load(built)


def test_what_is_pushed_is_pulled_at_any_revision(
    hub: Hub, invoke: Invoke, built: Path, mapping: Mapping, tmp_path: Path, tokenizers: tuple[str, str]
) -> None:
    done = invoke("push", built, REPOSITORY)
    assert (done.code, done.err) == (0, "")
    (commit,) = hub.commits[REPOSITORY]
    assert done.out.splitlines() == [
        f"Student pupil learns from teacher master, version {mapping.version}.",
        f"Written to {REPOSITORY}, commit {commit}",
        f"Anyone who may read it loads it as {REPOSITORY}@{commit}",
    ]
    files = hub.commits[REPOSITORY][commit]
    assert files.keys() == {"mapping.npz", "README.md"}
    assert files["mapping.npz"] == built.read_bytes()

    # Another mapping comes after it; the first stays under its tag and its commit.
    hub.tags[REPOSITORY] = {"v1": commit}
    assert invoke("build", *tokenizers, "--decay", "0", "-o", tmp_path / "other.npz", "-q").code == 0
    other = xtoken_align.load(tmp_path / "other.npz")
    report = json.loads(invoke("push", tmp_path / "other.npz", REPOSITORY, "--json").out)
    assert (report["version"], len(hub.commits[REPOSITORY])) == (other.version, 2)
    assert xtoken_align.load(REPOSITORY).version == other.version
    for revision in ("v1", commit):
        assert xtoken_align.load(f"{REPOSITORY}@{revision}").version == mapping.version

    pulled = invoke("pull", f"{REPOSITORY}@v1")
    assert (pulled.code, pulled.out.splitlines()[0]) == (0, done.out.splitlines()[0])
    assert xtoken_align.load("pupil--master").version == mapping.version
    out = tmp_path / "pulled.npz"
    assert invoke("pull", REPOSITORY, "-o", out, "-q").out == f"{out}\n"
    assert json.loads(invoke("pull", REPOSITORY, "-o", out, "--force", "--json").out)["version"] == other.version
    assert "give --force to replace it" in refused(invoke("pull", f"{REPOSITORY}@v1", "-o", out))
    assert invoke("pull", REPOSITORY, "-o", out, "-q").out == f"{out}\n"  # the file is that mapping already

    # Every command that takes a mapping takes the repository.
    for arguments in (("inspect", REPOSITORY), ("show", f"{REPOSITORY}@v1", "12"), ("verify", REPOSITORY),
                      ("diff", f"{REPOSITORY}@v1", REPOSITORY),
                      ("export", REPOSITORY, "--format", "json", "-o", tmp_path / "w.json")):  # fmt: skip
        done = invoke(*arguments)
        assert (done.code, done.err) == (0, ""), arguments


def test_the_card_says_what_the_mapping_covers(hub: Hub, invoke: Invoke, built: Path, mapping: Mapping) -> None:
    done = invoke("push", built, REPOSITORY, "--dry-run")
    assert (done.code, hub.asked) == (0, [])
    card = done.out
    assert f"version | `{mapping.version}`" in card
    assert f'xtoken_align.load("{REPOSITORY}")' in card
    assert f"Train with **{mapping.coverage().recommendation.loss}**" in card
    row = mapping.coverage().classes["digits_2"]
    assert f"| digits_2 | {row.total} | {row.exact} | {row.near} | {row.split} | {row.empty} |" in card
    assert "licences of both tokenizers apply" in card.replace("\n", " ").replace("  ", " ")
    report = json.loads(invoke("push", built, REPOSITORY, "--dry-run", "--json").out)
    assert (report["card"], report["commit"]) == (card, None)
    invoke("push", built, REPOSITORY)
    assert next(iter(hub.commits[REPOSITORY].values()))["README.md"].decode() == card


def test_a_private_repository_is_read_with_a_token_alone(
    hub: Hub, invoke: Invoke, built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert invoke("push", built, REPOSITORY, "--private").code == 0
    assert hub.private == {REPOSITORY}
    assert invoke("show", REPOSITORY, "12").code == 0
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "another"))
    assert "user/pupil-from-master is not on the Hub, or is private" in refused(invoke("pull", REPOSITORY))


def test_without_the_hub_the_cache_serves(
    hub: Hub, invoke: Invoke, built: Path, mapping: Mapping, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    invoke("push", built, REPOSITORY)
    assert xtoken_align.load(REPOSITORY).version == mapping.version
    asked = len(hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert xtoken_align.load(REPOSITORY).version == mapping.version
    assert invoke("pull", REPOSITORY, "-o", tmp_path / "pulled.npz").code == 0
    assert "user/other is not in the local Hub cache" in refused(invoke("pull", "user/other"))
    assert "HF_HUB_OFFLINE is set: unset it" in refused(invoke("push", built, REPOSITORY))
    assert len(hub.asked) == asked
    # No network at all: nobody listens at this port.
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert xtoken_align.load(REPOSITORY).version == mapping.version
    assert "the Hub cannot be reached" in refused(invoke("pull", "user/other"))
    assert "user/pupil-from-master could not be written to the Hub (ConnectError)" in refused(
        invoke("push", built, REPOSITORY)
    )


def test_refusals_are_one_sentence(
    hub: Hub, invoke: Invoke, built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    invoke("push", built, REPOSITORY)
    says = {
        "user/none": "user/none is not on the Hub, or is private",
        f"{REPOSITORY}@v9": "has no revision 'v9'",
        "user": "expected user/repo or user/repo@revision",
        "user/a--b": "without -- or ..",
        "a/b/c": "expected user/repo or user/repo@revision",
    }
    for address, sentence in says.items():
        assert sentence in refused(invoke("pull", address))
    assert "user/none is no file here, and as a repository of the Hub: user/none is not on the Hub" in refused(
        invoke("inspect", "user/none")
    )
    for commit in hub.commits[REPOSITORY].values():
        del commit["mapping.npz"]
    assert "user/pupil-from-master has no such file" in refused(invoke("inspect", REPOSITORY))
    for commit in hub.commits[REPOSITORY].values():
        commit["mapping.npz"] = b"PK\x03\x04 this is none"
    assert "zip directory: expected" in refused(invoke("pull", REPOSITORY))
    assert "'nobody' is not a Hub id: expected user/repo" in refused(invoke("push", built, "nobody"))

    monkeypatch.setenv("HF_TOKEN", "hf_stolen")
    for command in (("push", built, REPOSITORY), ("pull", "user/elsewhere")):
        assert "the Hub does not accept your token for user/" in refused(invoke(*command))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    before = len(hub.asked)
    assert "is not written without a token: run `hf auth login`, or set HF_TOKEN" in refused(
        invoke("push", built, REPOSITORY)
    )
    assert len(hub.asked) == before

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.mood = "portal"
    assert "user/pupil-from-master could not be written to the Hub" in refused(invoke("push", built, REPOSITORY))
    hub.mood = "broken"
    assert "user/pupil-from-master could not be written to the Hub (it answered 500)" in refused(
        invoke("push", built, REPOSITORY)
    )
