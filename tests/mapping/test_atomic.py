"""Tests of writing: a mapping file is complete under its name, or not there at all."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from numpy.typing import NDArray

from xtoken_align.errors import StoreError
from xtoken_align.mapping.archive import read_archive, write_archive

Arrays = dict[str, NDArray[Any]]


def interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def full(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(("failure", "error"), [(full, StoreError), (interrupted, KeyboardInterrupt)])
def test_a_failure_leaves_the_old_file_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
    saved: Path,
    arrays: Arrays,
    step: str,
    failure: Callable[..., NoReturn],
    error: type[BaseException],
) -> None:
    before = saved.read_bytes()
    monkeypatch.setattr(os, step, failure)
    with pytest.raises(error):
        write_archive(saved, arrays, {"schema": 2})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_disk_that_fills_up_during_the_write_leaves_nothing(tmp_path: Path, arrays: Arrays) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StoreError, match="cannot write"):
            write_archive(tmp_path / "a.npz", arrays, {"schema": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_the_file_reaches_the_disk_before_its_name_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arrays: Arrays
) -> None:
    path = tmp_path / "a.npz"
    names: list[bool] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        names.append(path.exists())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_archive(path, arrays, {"schema": 1})
    assert names[0] is False


def test_an_existing_file_is_kept_where_overwriting_is_off(saved: Path, arrays: Arrays) -> None:
    before = saved.read_bytes()
    with pytest.raises(StoreError, match="expected no file"):
        write_archive(saved, arrays, {"schema": 2}, overwrite=False)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_new_file_is_written_where_overwriting_is_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arrays: Arrays, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", full)
    write_archive(tmp_path / "a.npz", arrays, {"schema": 1}, overwrite=False)
    assert read_archive(tmp_path / "a.npz")[1] == {"schema": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_file_that_appears_during_the_write_is_kept_where_overwriting_is_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arrays: Arrays
) -> None:
    fsync = os.fsync
    path = tmp_path / "a.npz"
    monkeypatch.setattr(os, "fsync", lambda descriptor: (path.write_bytes(b"first"), fsync(descriptor))[1])
    with pytest.raises(StoreError, match="expected no file"):
        write_archive(path, arrays, {"schema": 1}, overwrite=False)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, arrays: Arrays) -> None:
    (tmp_path / "file").write_bytes(b"")
    places = (tmp_path, tmp_path / "missing" / "a.npz", tmp_path / "file" / "a.npz", tmp_path / ("a" * 300))
    for place in (*places, tmp_path / "nul\0.npz"):
        with pytest.raises(StoreError, match=r"cannot write .*: choose another place"):
            write_archive(place, arrays, {"schema": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="no device to protect")
def test_a_device_is_not_replaced_by_a_file(arrays: Arrays) -> None:
    with pytest.raises(StoreError, match="not a regular file"):
        write_archive(Path("/dev/null"), arrays, {"schema": 1})


def test_a_symbolic_link_stays_a_link(tmp_path: Path, saved: Path, arrays: Arrays) -> None:
    link = tmp_path / "link.npz"
    link.symlink_to(saved)
    write_archive(link, arrays, {"schema": 1})
    assert link.is_symlink()
    assert read_archive(saved)[1] == {"schema": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="permission bits are a POSIX thing")
def test_a_new_file_has_the_permissions_that_the_user_asks_for(tmp_path: Path, arrays: Arrays) -> None:
    old = os.umask(0o027)
    try:
        write_archive(tmp_path / "a.npz", arrays, {"schema": 1})
    finally:
        os.umask(old)
    assert (tmp_path / "a.npz").stat().st_mode & 0o777 == 0o640
