"""Shards: readable by anyone, and refused when anything of them is not what was written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cache_models import Causal, corpus, files_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xtoken_align.errors import ArtifactError, MismatchError, StoreError, XTokenError
from xtoken_align.training import TeacherCache, write_teacher_cache
from xtoken_align.training.cache.format import METADATA_KEY
from xtoken_align.vocab.vocab import Vocab

Change = Callable[[dict[str, Any]], None]
SECOND = "shard-00001.parquet"


def test_a_shard_is_a_parquet_file_that_says_what_it_is(written: Path) -> None:
    table = pq.read_table(written / SECOND)
    assert table.column_names == ["row", "key", "ids", "top_ids", "log_probs", "rest", "digest"]
    assert table.column("row").to_pylist() == [4, 5, 6, 7]
    assert table.column("ids").to_pylist() == [row["teacher_ids"] for row in corpus()[4:8]]
    said = json.loads(table.schema.metadata[METADATA_KEY])
    assert said["schema"] == 1
    assert said["rows"] == [4, 8]
    assert said["settings"]["top_k"] == 8
    assert said["positions"] == sum(len(row["teacher_ids"]) for row in corpus()[4:8])


@pytest.mark.parametrize("cut", [0, 3, 100, -200, -8, -1])
def test_a_shard_cut_short_is_refused(written: Path, cut: int) -> None:
    path = written / SECOND
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ArtifactError, match=f"{SECOND} is damaged"):
        TeacherCache(written)[5]
    assert len(TeacherCache(written)[3].rest) == 0


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_shard_with_any_byte_changed_is_refused_or_reads_as_it_was_written(
    written: Path, data: st.DataObject
) -> None:
    path = written / SECOND
    before = path.read_bytes()
    expected = [TeacherCache(written)[row] for row in range(4, 8)]
    at = data.draw(st.integers(0, len(before) - 1))
    changed = bytearray(before)
    changed[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    found, refused = [], ""
    try:
        cache = TeacherCache(written)
        found = [cache[row] for row in range(4, 8)]
    except XTokenError as error:
        refused = str(error)
    finally:
        path.write_bytes(before)
    assert not refused or SECOND in refused
    for one, other in zip(found, [] if refused else expected, strict=True):
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table], said: Change = lambda _: None) -> None:
    table = pq.read_table(path)
    facts = json.loads(table.schema.metadata[METADATA_KEY])
    said(facts)
    pq.write_table(change(table).replace_schema_metadata({METADATA_KEY: json.dumps(facts)}), path)


@pytest.mark.parametrize("column", ["ids", "top_ids", "log_probs", "rest", "key", "digest", "row"])
def test_a_shard_with_a_column_of_other_values_is_refused(written: Path, column: str) -> None:
    def swapped(table: pa.Table) -> pa.Table:
        order = [0, 2, 1, 3]
        return table.set_column(table.column_names.index(column), column, table.column(column).take(order))

    rewritten(written / SECOND, swapped)
    with pytest.raises(ArtifactError, match="damaged"):
        TeacherCache(written)[5]


def test_a_rewritten_shard_with_the_same_contents_is_sound(written: Path) -> None:
    expected = TeacherCache(written)[5].top_ids
    rewritten(written / SECOND, lambda table: table)
    assert np.array_equal(TeacherCache(written)[5].top_ids, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.update(schema=2),
        lambda facts: facts.pop("sha256"),
        lambda facts: facts.update(sha256="0" * 64),
        lambda facts: facts.update(keys="0" * 64),
        lambda facts: facts.update(shard=0),
        lambda facts: facts.update(rows=[0, 4]),
        lambda facts: facts.update(rows=None),
        lambda facts: facts.update(settings=None),
    ],
)
def test_a_shard_that_says_something_else_of_itself_is_refused(written: Path, change: Change) -> None:
    rewritten(written / SECOND, lambda table: table, change)
    with pytest.raises(ArtifactError, match="damaged"):
        TeacherCache(written)[5]


def test_a_parquet_file_of_somebody_else_is_refused(written: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), written / SECOND)
    with pytest.raises(ArtifactError, match="says nothing of a teacher cache"):
        TeacherCache(written)[5]


def test_a_shard_of_another_place_or_cache_is_refused(
    written: Path, tmp_path: Path, vocab: Vocab, model: Causal
) -> None:
    shutil.copy(written / "shard-00000.parquet", written / SECOND)
    with pytest.raises(ArtifactError, match="it is shard 0"):
        TeacherCache(written)[5]
    write_teacher_cache(model, corpus(), tmp_path / "other", teacher=vocab, top_k=4, rows_per_shard=4)
    shutil.copy(tmp_path / "other" / SECOND, written / SECOND)
    with pytest.raises(MismatchError, match="top_k is 4 there, 8 here"):
        TeacherCache(written)[5]
    with pytest.raises(MismatchError, match="top_k is 4 there, 8 here"):
        write_teacher_cache(model, corpus(), written, teacher=vocab, top_k=8, batch_size=3, rows_per_shard=4)


def test_a_shard_of_another_corpus_is_refused(written: Path, tmp_path: Path, vocab: Vocab, model: Causal) -> None:
    options: dict[str, Any] = {"teacher": vocab, "top_k": 8, "batch_size": 3, "rows_per_shard": 4}
    write_teacher_cache(model, corpus()[::-1], tmp_path / "other", **options)
    shutil.copy(tmp_path / "other" / SECOND, written / SECOND)
    with pytest.raises(MismatchError, match="its corpus has other rows"):
        TeacherCache(written).verify()
    with pytest.raises(MismatchError, match="its corpus has other rows"):
        write_teacher_cache(model, corpus(), written, **options)


def test_a_damaged_shard_is_replaced_by_running_again(written: Path, vocab: Vocab, model: Causal) -> None:
    before = files_of(written)
    path = written / SECOND
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 255
    path.write_bytes(content)
    (written / "shard-00004.parquet").unlink()
    report = write_teacher_cache(model, corpus(), written, teacher=vocab, top_k=8, batch_size=3, rows_per_shard=4)
    assert (report.written, report.replaced, report.kept) == (2, 1, 4)
    assert files_of(written) == before


def test_a_shard_that_may_not_be_read_is_not_called_damaged(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        TeacherCache(written)[5]


def test_a_full_disk_leaves_no_half_shard(
    tmp_path: Path, vocab: Vocab, model: Causal, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    write_teacher_cache(model, corpus(), tmp_path, teacher=vocab, rows_per_shard=4, process=(0, 6))
    before = files_of(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            write_teacher_cache(model, corpus(), tmp_path, teacher=vocab, rows_per_shard=4)
    assert files_of(tmp_path) == before
