"""Reading texts, and cutting long ones into pieces."""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xtoken_align import Vocab
from xtoken_align.corpus import texts
from xtoken_align.corpus.texts import LONGEST_PIECE, pieces, read_rows, read_texts
from xtoken_align.errors import CorpusError, MissingExtraError

SOME = ["one", "", "zwei\nlines", "三 and 😀"]


def write(path: Path, packed: str, data: bytes) -> Path:
    if packed == ".gz":
        data = gzip.compress(data, mtime=0)
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
def test_a_json_file_is_a_list_of_rows_as_for_training(tmp_path: Path, packed: str) -> None:
    path = write(tmp_path / "a.json", packed, json.dumps([{"text": text} for text in (*SOME, None)]).encode())
    assert list(read_texts([path])) == SOME == [row["text"] for row in read_rows([path])]
    with pytest.raises(CorpusError, match=r"row 1 of .*has no text under 'body' but text"):
        list(read_texts([path], field="body"))


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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        ("a.jsonl", b'{"id": 1, "text": 3}\n', r"has no text under 'text' but id, text \(3\): name it"),
        ("a.txt.gz", gzip.compress(b"x" * 1000, mtime=0)[:-9], "no whole .gz file"),
        ("a.txt.gz", b"plain", "no whole .gz file"),
        ("a.txt.zst", b"plain", "no whole .zst file"),
        ("a.parquet", b"plain", "cannot read .*a.parquet as Parquet"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match=said):
        list(read_texts([tmp_path / name]))


def test_a_line_that_is_not_utf8_is_named_wherever_its_chunk_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "CHUNK_BYTES", 16)
    (tmp_path / "a.txt").write_bytes(b"line\n" * 100 + b"bad \xff\n")
    with pytest.raises(CorpusError, match=r"byte 504 \(line 101\)"):
        list(read_texts([tmp_path / "a.txt"]))


def test_bytes_that_are_no_text_at_all_are_refused_early(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x80" * (9 << 20))
    read: list[int] = []
    with pytest.raises(CorpusError, match="not UTF-8 at byte 0"):
        list(read_texts([tmp_path / "a.txt"], progress=read.append))
    assert sum(read) < 6 << 20


@pytest.mark.parametrize("space", ["\u3000", "\u00a0", "\u2003", "\u2028", "\u1680", "\u205f", "\x85"])
def test_no_cut_parts_a_line_end_from_a_wide_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: str) -> None:
    monkeypatch.setattr(texts, "CHUNK_BYTES", 7)
    (tmp_path / "a.txt").write_text(f"三\n{space}三三\nab" * 20, encoding="utf-8", newline="")
    chunks = list(read_texts([tmp_path / "a.txt"]))
    assert len(chunks) > 10
    assert all(not chunk[0].isspace() for chunk in chunks)


@pytest.mark.parametrize(("rows", "refused"), [(20, True), (1, False)])
@pytest.mark.parametrize("dictionary", [True, False])
def test_a_parquet_column_that_repeats_a_long_text_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, refused: bool, dictionary: bool
) -> None:
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    monkeypatch.setattr(texts, "UNPACKS_FREELY", 1 << 20)
    path = tmp_path / "a.parquet"
    table = pa.table({"id": list(range(rows)), "text": ["x" * 900_000] * rows})
    pq.write_table(table, path, compression="zstd", use_dictionary=dictionary)
    if refused:
        with pytest.raises(CorpusError, match="no text is packed as tightly"):
            next(read_texts([path]))
    else:
        assert list(read_texts([path])) == ["x" * 900_000]


def test_a_json_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MAX_TEXT_BYTES", 1 << 21)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"x" * (4 << 20) + b'"}')
    with pytest.raises(CorpusError, match="a line of over 2,097,152 bytes"):
        list(read_texts([tmp_path / "a.jsonl"]))


@pytest.mark.parametrize("missing", [1, 2000])
def test_a_zst_file_that_breaks_off_is_refused(tmp_path: Path, missing: int) -> None:
    data = random.Random(1).randbytes(100_000).hex().encode()
    packed = pytest.importorskip("zstandard").compress(data)
    (tmp_path / "a.txt.zst").write_bytes(packed[:-missing])
    with pytest.raises(CorpusError, match=r"no whole \.zst file"):
        list(read_texts([tmp_path / "a.txt.zst"]))


@pytest.mark.parametrize("name", ["gzip", "zstandard"])
def test_files_packed_one_after_another_are_read_to_the_end(tmp_path: Path, name: str) -> None:
    packer = pytest.importorskip(name)
    path = tmp_path / ("a.txt.gz" if name == "gzip" else "a.txt.zst")
    path.write_bytes(b"".join(packer.compress(part) for part in (b"one\n", b"two\n" * 50_000, b"", b"three\n")))
    assert "".join(read_texts([path])) == "one\n" + "two\n" * 50_000 + "three\n"


@pytest.mark.parametrize("values", [[1, 2], [b"a"], [["a"]], [{"x": "a"}]])
def test_a_column_without_text_is_refused(tmp_path: Path, values: list[object]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="in its column 'text', not text"):
        list(read_texts([tmp_path / "a.parquet"]))


@pytest.mark.parametrize("form", ["large_string", "string_view", "dictionary"])
def test_every_form_of_text_column_is_read(tmp_path: Path, form: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = pyarrow.array(["a", "b", "a"])
    column = column.dictionary_encode() if form == "dictionary" else column.cast(getattr(pyarrow, form)())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert list(read_texts([tmp_path / "a.parquet"])) == ["a", "b", "a"]


def test_a_null_in_json_lines_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": "x"}\n')
    assert list(read_texts([tmp_path / "a.jsonl"])) == ["x"]


def test_of_many_fields_a_few_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({f"k{number}": "x" for number in range(5000)}))
    with pytest.raises(CorpusError, match="k8, k9 and 4990 more"):
        list(read_texts([tmp_path / "a.jsonl"]))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl"])
def test_memory_does_not_grow_with_the_size_of_a_file(tmp_path: Path, name: str) -> None:
    peaks = []
    for megabytes in (5, 40):
        data = (b'{"text": "' + b"some words " * 90 + b'"}\n') * (megabytes * 1000)
        path = write(tmp_path / f"{megabytes}{name.removesuffix('.gz').removesuffix('.zst')}", Path(name).suffix, data)
        del data
        tracemalloc.start()
        assert sum(map(len, read_texts([path]))) > megabytes * 500_000
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize(("module", "name"), [("zstandard", "a.txt.zst"), ("pyarrow", "a.parquet")])
def test_a_missing_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(MissingExtraError, match=r"xtoken-align\[corpus\]"):
        list(read_texts([tmp_path / name]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"cannot read .*absent\.txt"):
        list(read_texts([tmp_path / "absent.txt"]))


def test_progress_adds_up_to_the_size_of_the_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", ".gz", b"line\n" * 10_000)
    read: list[int] = []
    list(read_texts([path], progress=read.append))
    assert sum(read) == path.stat().st_size


@given(st.text(st.sampled_from("ab \n三😀\u3000"), max_size=200), st.integers(2, 40))
def test_pieces_join_to_the_text_and_none_is_too_long(text: str, longest: int) -> None:
    cut = list(pieces(text, longest))
    assert "".join(cut) == text
    assert all(0 < len(piece) <= longest for piece in cut)


@given(st.lists(st.text(st.sampled_from("ab "), min_size=1, max_size=9), max_size=20))
def test_where_lines_are_short_pieces_begin_where_lines_begin(lines: list[str]) -> None:
    text = "".join(f"x{line}\n" for line in lines)
    for before, after in pairwise(pieces(text, 40)):
        assert before.endswith("\n")
        assert after.startswith("x")


def test_tokens_are_those_of_the_whole_text(real: Callable[[str], Vocab]) -> None:
    vocab = real("llama-3")
    text = "A line of text, 1234 5678.\n\n    indented\n" * 40
    parts = vocab.encode_batch(list(pieces(text, 300)))
    assert len(parts) > 4
    assert [token for part in parts for token in part] == vocab.encode_batch([text])[0]


@pytest.mark.parametrize("name", ["llama-3", "qwen3", "o200k"])
def test_a_million_spaces_are_encoded(name: str, real: Callable[[str], Vocab]) -> None:
    vocab = real(name)
    text = "x" + " " * 1_000_000 + "x"
    ids = [token for part in vocab.encode_batch(list(pieces(text))) for token in part]
    assert b"".join(vocab.surfaces[token] for token in ids) == text.encode()
    assert len(text) > 3 * LONGEST_PIECE
