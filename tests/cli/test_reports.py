"""`inspect`, `show` and `verify` on a small mapping."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_results import refused

from xtoken_align import load
from xtoken_align.mapping.file import SCHEMA

Invoke = Callable[..., Any]


def test_inspect_prints_classes_rules_bins_and_the_recommendation(invoke: Invoke, built: Path) -> None:
    result = invoke("inspect", built)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Student pupil learns from teacher master: version ")
    for words in ("digits_2", "partial_utf8", "exact", "Bins: ", "Train with c-kl: the teacher writes"):
        assert words in result.out


def test_inspect_json_is_that_of_build_with_bins(invoke: Invoke, built: Path) -> None:
    report = json.loads(invoke("inspect", built, "--json").out)
    assert {
        "schema",
        "version",
        "student",
        "teacher",
        "nnz",
        "rules",
        "empty",
        "lossy",
        "classes",
        "bins",
    } <= report.keys()
    assert not {"path", "seconds", "unmatched"} & report.keys()
    assert report["bins"].keys() == {"count", "largest_student", "largest_teacher"}
    mapping = load(built)
    assert report["version"] == mapping.version
    assert report["bins"] == asdict(mapping.bin_sizes)


def test_inspect_lists_what_is_neither_exact_nor_near_numerals_first(invoke: Invoke, built: Path) -> None:
    listed = json.loads(invoke("inspect", built, "--unmatched", "--json").out)["unmatched"]
    assert [entry["id"] for entry in listed] == [entry.id for entry in load(built).unmatched()]
    assert {"id", "surface", "reason"} <= listed[0].keys()
    assert listed[0]["reason"] == "split by digits"
    limited = invoke("inspect", built, "--unmatched", "--limit", "1").out.splitlines()
    assert len(limited) == 1
    assert limited[0].endswith("split by digits")
    assert invoke("inspect", built, "--unmatched", "--limit", "0").out == ""


def test_show_gives_rule_pieces_and_weights(invoke: Invoke, built: Path) -> None:
    result = invoke("show", built, "12")
    lines = result.out.splitlines()
    assert lines[0].endswith("'12'  text  digits")
    assert [line.split()[0] for line in lines[1:]] == ["0.9091", "0.0909"]


def test_show_json_has_exactly_the_keys_that_programs_rely_on(invoke: Invoke, built: Path) -> None:
    rows = json.loads(invoke("show", built, "12", "--json").out)
    assert list(rows[0]) == ["id", "surface", "kind", "rule", "row"]
    assert list(rows[0]["row"][0]) == ["teacher_id", "surface", "weight", "position"]
    assert (rows[0]["surface"], rows[0]["rule"]) == ("12", "digits")
    partial = load(built).row(b"\xc3").id
    assert json.loads(invoke("show", built, "--id", str(partial), "--json").out)[0]["surface"] == {"hex": "c3"}


def test_show_takes_several_tokens_and_ids_in_order(invoke: Invoke, built: Path) -> None:
    rows = json.loads(invoke("show", built, "a", "Ġthe", "--id", "1", "--id", "0", "--json").out)
    assert [row["surface"] for row in rows] == ["a", " the", "</s>", "<s>"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["zebra"], "pupil has no token 'zebra', neither as a surface nor as a raw string; `xtoken-align align` shows"),
        ([""], "pupil has no token ''"),
        (["--id", "300"], "pupil has no id 300: its ids run from 0 to 299"),
        (["--id", "-1"], "pupil has no id -1"),
        (["a", "zebra"], "zebra"),
    ],
)
def test_show_refuses_tokens_that_are_not_there(invoke: Invoke, built: Path, arguments: list[str], says: str) -> None:
    assert says in refused(invoke("show", built, *arguments))


def test_verify_says_that_a_file_is_whole(invoke: Invoke, built: Path) -> None:
    version = load(built).version
    assert invoke("verify", built).out == f"{built}: whole, version {version}\n"
    assert json.loads(invoke("verify", built, "--json").out) == [
        {"mapping": str(built), "ok": True, "version": version}
    ]


def rewrite(path: Path, **members: bytes | np.ndarray[Any, Any]) -> None:
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    for name, value in members.items():
        stream = io.BytesIO()
        np.save(stream, value) if isinstance(value, np.ndarray) else stream.write(value)
        contents[f"{name}.npy"] = stream.getvalue()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def metadata_with(path: Path, **changes: Any) -> np.ndarray[Any, Any]:
    with np.load(path) as file:
        metadata = json.loads(file["metadata"].tobytes())
    return np.frombuffer(json.dumps({**metadata, **changes}).encode(), dtype=np.uint8)


def damage(path: Path, how: str) -> None:
    matrix = load(path).matrix
    content = path.read_bytes()
    object_array = (
        b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(79) + b"\n"
    )
    members: dict[str, bytes | np.ndarray[Any, Any]] = {
        "pickled": object_array + pickle.dumps(print),
        "wrong dtype": matrix.data.astype(np.float64),
        "negative": -matrix.data,
        "nan": np.full_like(matrix.data, np.nan),
        "out of bounds": matrix.indices + np.int32(10_000),
    }
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("indices.npy")
        # In the middle of the member's own bytes; what a zip file says twice beside them is nobody's business.
        at = member.header_offset + 30 + len(member.filename) + member.compress_size // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "future":
        rewrite(path, metadata=metadata_with(path, schema=SCHEMA + 1))
    else:
        rewrite(path, **{"indices" if how == "out of bounds" else "data": members[how]})


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "zip directory"),
        ("flipped", "indices"),
        ("empty", "zip directory"),
        ("future", "upgrade xtoken-align"),
        ("pickled", "nothing is ever unpickled"),
        ("wrong dtype", "data"),
        ("negative", "finite weights above 0"),
        ("nan", "finite weights above 0"),
        ("out of bounds", "indices: expected ids from 0 to 289"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "inspect", "show"])
def test_a_damaged_mapping_is_refused_in_one_sentence_by_every_command(
    invoke: Invoke, built: Path, command: str, how: str, says: str
) -> None:
    damage(built, how)
    sentence = refused(invoke(command, built, *(["a"] if command == "show" else [])))
    assert says in sentence
    assert sentence.count(str(built)) == 1


def test_verify_checks_every_file_and_exits_1_if_one_is_damaged(invoke: Invoke, built: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"no mapping at all")
    result = invoke("verify", bad, built)
    assert result.code == 1
    assert result.out.startswith(f"{built}: whole")
    assert result.err.startswith(f"{bad}: zip directory")
    report = invoke("verify", bad, built, "--json")
    assert report.code == 1
    assert [entry["ok"] for entry in json.loads(report.out)] == [False, True]


@pytest.mark.parametrize("arguments", [["inspect"], ["show"], ["verify"]])
@pytest.mark.parametrize(
    ("name", "says"),
    [("absent.npz", "is no file"), ("nobody--none", "no mapping is called 'nobody--none'"), (".", "is a folder")],
)
def test_a_mapping_that_is_not_there_is_refused(
    invoke: Invoke, arguments: list[str], name: str, says: str, tmp_path: Path
) -> None:
    more = ["a"] if arguments == ["show"] else []
    assert says in refused(invoke(*arguments, name, *more, "--store", tmp_path))


def test_a_name_the_wrong_way_round_is_suggested(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("inspect", "mistral-tekken--llama-3", "--store", tmp_path)
    assert result.code == 1
    assert "llama-3--mistral-tekken is one, in which student llama-3 learns from teacher mistral-tekken" in result.err
