"""Listing the store and clearing it out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_vocabs import make_vocab

from xtoken_align import Mapping, Store, build
from xtoken_align.errors import OptionError
from xtoken_align.store.store import collect, entries


def mapping(decay: float = 0.1) -> Mapping:
    student, teacher = (make_vocab(["a", "b", "ab"][: 3 - i], name=name) for i, name in enumerate(("s", "t")))
    return build(student=student, teacher=teacher, decay=decay)


def filled(root: Path, count: int) -> tuple[Store, list[Path]]:
    store = Store(root)
    paths = [store.save(mapping(0.1 + i / 10)) for i in range(count)]
    for age, path in enumerate(reversed(paths)):
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return store, paths


def own(store: Store) -> list[Path]:
    return [entry.path for entry in entries(store) if not entry.shipped]


def test_every_version_is_listed_oldest_first_with_its_facts(tmp_path: Path) -> None:
    store, paths = filled(tmp_path, 3)
    assert own(store) == paths
    entry = next(entry for entry in entries(store) if entry.path == paths[0])
    assert (entry.name, entry.version, entry.provenance) == ("s--t", paths[0].stem, "built")
    assert entry.bytes == paths[0].stat().st_size
    assert (entry.student, entry.teacher) == ("s.json", "t.json")


def test_a_damaged_file_is_listed_as_such_and_does_not_stop_the_list(tmp_path: Path) -> None:
    store, paths = filled(tmp_path, 2)
    paths[0].write_bytes(paths[0].read_bytes()[:100])
    problems = {entry.path: entry.problem for entry in entries(store)}
    assert problems[paths[0]] is not None
    assert problems[paths[1]] is None


def test_the_newest_versions_stay(tmp_path: Path) -> None:
    store, paths = filled(tmp_path, 4)
    assert collect(store, keep=2) == paths[:2]
    assert own(store) == paths[2:]


def test_a_dry_run_removes_nothing(tmp_path: Path) -> None:
    store, paths = filled(tmp_path, 2)
    assert collect(store, keep=0, dry_run=True) == paths
    assert own(store) == paths


def test_nothing_outside_the_folders_of_mappings_is_touched(tmp_path: Path) -> None:
    store, paths = filled(tmp_path, 1)
    other = tmp_path / "notes" / "0123456789ab.npz"
    other.parent.mkdir()
    other.write_bytes(b"mine")
    beside = paths[0].parent / "README.txt"
    beside.write_text("mine")
    collect(store, keep=0)
    assert other.exists()
    assert beside.exists()
    assert not paths[0].exists()


def test_a_negative_number_of_versions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="from 0, got -1"):
        collect(Store(tmp_path), keep=-1)


def test_an_absent_store_is_empty(tmp_path: Path) -> None:
    assert own(Store(tmp_path / "absent")) == []
    assert collect(Store(tmp_path / "absent"), keep=0) == []
