"""Writing: a file is complete under its name, or not there at all."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from xtoken_align.errors import StoreError
from xtoken_align.files import whole_folder, write_atomically

NEW = b"new" * 1000


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A file to be replaced."""
    path = tmp_path / "mapping.npz"
    path.write_bytes(b"old")
    return path


def interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def full(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(("failure", "error"), [(full, StoreError), (interrupted, KeyboardInterrupt)])
def test_a_failure_leaves_the_old_file_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
    saved: Path,
    step: str,
    failure: Callable[..., NoReturn],
    error: type[BaseException],
) -> None:
    before = saved.read_bytes()
    monkeypatch.setattr(os, step, failure)
    with pytest.raises(error):
        write_atomically(saved, NEW)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_disk_that_fills_up_during_the_write_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StoreError, match="cannot write"):
            write_atomically(tmp_path / "a.npz", NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_the_file_reaches_the_disk_before_its_name_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    names: list[bool] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        names.append(path.exists())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    write_atomically(path, NEW)
    assert names[0] is False


def test_an_existing_file_is_kept_where_overwriting_is_off(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(StoreError, match="expected no file"):
        write_atomically(saved, NEW, overwrite=False)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_new_file_is_written_where_overwriting_is_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", full)
    write_atomically(tmp_path / "a.npz", NEW, overwrite=False)
    assert (tmp_path / "a.npz").read_bytes() == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_file_that_appears_during_the_write_is_kept_where_overwriting_is_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fsync = os.fsync
    path = tmp_path / "a.npz"
    monkeypatch.setattr(os, "fsync", lambda descriptor: (path.write_bytes(b"first"), fsync(descriptor))[1])
    with pytest.raises(StoreError, match="expected no file"):
        write_atomically(path, NEW, overwrite=False)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    places = (tmp_path, tmp_path / "missing" / "a.npz", tmp_path / "file" / "a.npz", tmp_path / ("a" * 300))
    for place in (*places, tmp_path / "nul\0.npz"):
        with pytest.raises(StoreError, match=r"cannot write .*: choose another place"):
            write_atomically(place, NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="no device to protect")
def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(StoreError, match="not a regular file"):
        write_atomically(Path("/dev/null"), NEW)


def test_a_symbolic_link_stays_a_link(tmp_path: Path, saved: Path) -> None:
    link = tmp_path / "link.npz"
    link.symlink_to(saved)
    write_atomically(link, NEW)
    assert link.is_symlink()
    assert saved.read_bytes() == NEW


@pytest.mark.skipif(sys.platform == "win32", reason="permission bits are a POSIX thing")
def test_a_new_file_has_the_permissions_that_the_user_asks_for(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.npz", NEW)
    finally:
        os.umask(old)
    assert (tmp_path / "a.npz").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"one")
    file.chmod(0o600)
    write_atomically(file, b"two")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_bytes() == b"two"


# Folders


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder to be replaced."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    return folder


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoreError])
def test_a_folder_that_could_not_be_filled_leaves_the_old_one_and_no_other(model: Path, error: type) -> None:
    with pytest.raises(error), whole_folder(model, overwrite=True):
        raise error
    assert [path.name for path in model.parent.iterdir()] == ["model"]
    assert (model / "config.json").read_text() == "old"


@pytest.mark.parametrize("library", ["safetensors.torch", "torch"])
def test_a_disk_without_room_is_one_sentence_whichever_library_meets_it(tmp_path: Path, library: str) -> None:
    torch, writer = pytest.importorskip("torch"), pytest.importorskip(library)
    resource = pytest.importorskip("resource")
    save = writer.save if library == "torch" else writer.save_file
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with (
            pytest.raises(StoreError, match=r"cannot write .*model \(\w.*\): choose"),
            whole_folder(tmp_path / "model") as beside,
        ):
            save({"w": torch.zeros(9999)}, str(beside / "w"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("failure", "error"), [(full, StoreError), (interrupted, KeyboardInterrupt)])
def test_a_folder_that_cannot_take_its_name_gives_the_old_one_back(
    model: Path, monkeypatch: pytest.MonkeyPatch, failure: Callable[..., NoReturn], error: type
) -> None:
    rename, calls = Path.rename, []

    def second_fails(path: Path, target: Path) -> Path:
        calls.append(path)
        return failure() if len(calls) == 2 else rename(path, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(error), whole_folder(model, overwrite=True):
        pass
    assert [path.name for path in model.parent.iterdir()] == ["model"]
    assert (model / "config.json").read_text() == "old"


def test_a_folder_is_made_with_its_parents_and_replaced_when_it_may_be(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    with whole_folder(folder) as beside:
        (beside / "config.json").write_text("first")
        (beside / "stale").write_text("")
    with pytest.raises(StoreError, match="is not empty"), whole_folder(folder):
        pass
    with whole_folder(folder, overwrite=True) as beside:
        (beside / "config.json").write_text("second")
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize("entry", ["notes.txt", "config.json/"])
def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path, entry: str) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / entry).mkdir() if entry.endswith("/") else (folder / entry).write_text("mine")
    with pytest.raises(StoreError, match="nothing but a model's files"), whole_folder(folder, overwrite=True):
        pass
    assert [path.name for path in folder.iterdir()] == [entry.rstrip("/")]


def test_a_file_is_no_folder(saved: Path) -> None:
    with pytest.raises(StoreError, match="found a file"), whole_folder(saved, overwrite=True):
        pass
