"""Texts of every format come out whole, in order, and in pieces that begin where lines begin."""

from __future__ import annotations

import gzip
import io
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xtoken_align.corpus import texts
from xtoken_align.corpus.texts import read_texts
from xtoken_align.errors import CorpusError

SOME = ["one", "", "zwei\nlines", "三 and 😀"]


def write(path: Path, packed: str, data: bytes) -> Path:
    if packed == ".gz":
        data = gzip.compress(data)
    elif packed == ".zst":
        data = pytest.importorskip("zstandard").compress(data)
    path = path.with_name(path.name + packed)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_json_lines_are_texts(tmp_path: Path, packed: str) -> None:
    lines = "\n".join(json.dumps({"text": text, "id": 1}) for text in SOME) + "\n\n"
    assert list(read_texts([write(tmp_path / "a.jsonl", packed, lines.encode())])) == SOME


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_plain_text_is_one_text_where_it_is_short(tmp_path: Path, packed: str) -> None:
    data = "eins\n\nzwei 三\n".encode()
    assert "".join(read_texts([write(tmp_path / "a.txt", packed, data)])) == data.decode()


def test_parquet_rows_are_texts_and_nulls_are_none(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"body": [*SOME, None]}), tmp_path / "a.parquet")
    assert list(read_texts([tmp_path / "a.parquet"], field="body")) == SOME
    with pytest.raises(CorpusError, match="no column 'text' but body"):
        list(read_texts([tmp_path / "a.parquet"]))


def test_stdin_is_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from a pipe")))
    assert list(read_texts(["-"])) == ["from a pipe"]


def test_files_follow_each_other_and_an_empty_one_has_no_text(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", ""), ("c", "2")):
        (tmp_path / name).write_text(text)
    assert list(read_texts([tmp_path / "a", tmp_path / "b", tmp_path / "c"])) == ["1", "2"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab \n三😀"), max_size=200))
def test_chunks_join_to_the_text_and_begin_where_lines_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(texts, "CHUNK_BYTES", 16)
    monkeypatch.setattr(texts, "_LONGEST_CHUNK", 64)
    (tmp_path / "a.txt").write_bytes(text.encode())
    chunks = list(read_texts([tmp_path / "a.txt"]))
    assert "".join(chunks) == text
    for before, after in pairwise(chunks):
        # In a line longer than a chunk may be, the cut is between words, else between characters.
        assert (before.endswith("\n") and not after[0].isspace()) or len(before.encode()) > 30


def test_a_huge_line_is_cut_between_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(texts, "_LONGEST_CHUNK", 4000)
    (tmp_path / "a.txt").write_text("word " * 4000)
    chunks = list(read_texts([tmp_path / "a.txt"]))
    assert len(chunks) > 3
    assert all(chunk.endswith("word") for chunk in chunks[:-1])
    assert "".join(chunks) == "word " * 4000


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"good\nbad \xff\n", "a.txt is not UTF-8 at byte 9"),
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', "line 2 of .*a.jsonl is not JSON"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', "line 1 of .*a.jsonl has no text under 'text' but body, id"),
        ("a.jsonl", b"[1]\n", "has no text under 'text' but list"),
        ("a.txt.gz", gzip.compress(b"x" * 1000)[:-9], "no whole .gz file"),
        ("a.txt.gz", b"plain", "no whole .gz file"),
        ("a.txt.zst", b"plain", "no whole .zst file"),
        ("a.parquet", b"plain", "cannot read .*a.parquet as Parquet"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match=said):
        list(read_texts([tmp_path / name]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"cannot read .*absent\.txt"):
        list(read_texts([tmp_path / "absent.txt"]))


def test_progress_adds_up_to_the_size_of_the_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", ".gz", b"line\n" * 10_000)
    read: list[int] = []
    list(read_texts([path], progress=read.append))
    assert sum(read) == path.stat().st_size
