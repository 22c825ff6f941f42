"""The store: what is kept, found, listed and cleared out."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from small_vocabs import make_vocab

from xtoken_align import Mapping, Store, build, files, load
from xtoken_align.errors import OptionError, StoreError
from xtoken_align.store import store as store_module
from xtoken_align.store.store import ENVIRONMENT, checked_name, collect, entries, holds, store_root


def small(**options: Any) -> Mapping:
    student, teacher = make_vocab(["12", "a"], name="pupil"), make_vocab(["1", "2", "a"], name="master")
    return build(student=student, teacher=teacher, **options)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def aged(path: Path, seconds: int) -> Path:
    os.utime(path, (seconds, seconds))
    return path


def test_the_root_is_the_one_chosen_then_the_environments_then_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "env"))
    assert store_root(tmp_path / "chosen") == tmp_path / "chosen"
    assert store_root() == tmp_path / "env"
    monkeypatch.setenv(ENVIRONMENT, "")
    assert store_root() == platformdirs.user_data_path("xtoken-align", appauthor=False)


def test_a_mapping_is_kept_under_both_names_and_its_version(store: Store) -> None:
    mapping = small()
    path = store.save(mapping)
    assert path == store.root / "pupil--master" / f"{mapping.version}.npz"
    assert load("pupil--master", store=store.root).content_hash == mapping.content_hash


def test_a_mapping_may_have_a_name_of_its_own(store: Store) -> None:
    assert store.save(small(), name="mine").parent.name == "mine"
    assert store.find("mine").parent.name == "mine"


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a@b", "a b", "é", "x" * 300])
def test_a_name_that_no_folder_could_have_is_refused(store: Store, name: str) -> None:
    if name:
        with pytest.raises(StoreError, match="letters, digits"):
            store.save(small(), name=name)
    assert list(store.names()) == []


@pytest.mark.parametrize("name", ["con", "NUL.txt", "com1", "Lpt9.a.b", "ends-in-a-dot.", "aux--"])
def test_a_name_that_windows_does_not_allow_is_refused(store: Store, name: str) -> None:
    if name == "aux--":
        assert checked_name(name) == name
        return
    with pytest.raises(StoreError, match="Windows has no folder of this name"):
        store.save(small(), name=name)
    assert not store.root.exists()


def test_names_find_the_newest_the_version_or_its_first_digits(store: Store) -> None:
    old, new = small(), small(decay=0)
    paths = [aged(store.save(mapping), when) for mapping, when in ((old, 1000), (new, 2000))]
    assert store.versions("pupil--master") == paths
    assert store.find("pupil--master") == store.find("pupil--master@latest") == store.find("pupil--master@") == paths[1]
    assert store.find(f"pupil--master@{old.version}") == paths[0]
    assert store.find(f"pupil--master@{old.version[:6]}") == paths[0]


def test_an_unknown_version_is_refused_with_those_there_are(store: Store) -> None:
    mapping = small()
    store.save(mapping)
    with pytest.raises(StoreError, match=f"no version 'zzz': name one of {mapping.version}"):
        store.find("pupil--master@zzz")


def test_digits_that_several_versions_begin_with_are_refused(store: Store) -> None:
    folder = store.root / "pair"
    folder.mkdir(parents=True)
    for version in ("aaa000000000", "aaa111111111"):
        (folder / f"{version}.npz").touch()
    with pytest.raises(StoreError, match="several versions that begin with 'aaa'"):
        store.find("pair@aaa")


@pytest.mark.parametrize("name", ["pupil--mister", "x@latest", "../pupil--master", "@latest"])
def test_an_unknown_name_is_refused_with_those_there_are(store: Store, name: str) -> None:
    store.save(small())
    with pytest.raises(StoreError, match="pupil--master"):
        store.find(name)


def test_an_empty_store_says_that_it_has_none(store: Store) -> None:
    with pytest.raises(StoreError, match="has none"):
        store.find("pupil--master")


def test_the_shipped_mappings_stand_behind_the_users(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, own = small(), small(decay=0)
    Store(tmp_path / "shipped").save(shipped)
    monkeypatch.setattr(store_module, "shipped_root", lambda: tmp_path / "shipped")
    assert load("pupil--master", store=store.root).content_hash == shipped.content_hash
    # The user's own comes last even where the shipped file is younger.
    aged(store.save(own), 1000)
    assert load("pupil--master", store=store.root).content_hash == own.content_hash
    assert load(f"pupil--master@{shipped.version}", store=store.root).content_hash == shipped.content_hash
    assert list(store.names()) == ["pupil--master"]


def test_a_version_that_is_there_is_left_as_it_is(store: Store) -> None:
    path = aged(store.save(small()), 1000)
    assert store.save(small()) == path
    assert path.stat().st_mtime == 1000
    store.save(small(), force=True)
    assert path.stat().st_mtime > 1000


@pytest.mark.parametrize("damage", [b"", b"not a mapping", None])
def test_a_damaged_file_of_that_version_is_replaced(store: Store, damage: bytes | None) -> None:
    path = store.save(small())
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    store.save(small())
    assert load(path).content_hash == small().content_hash


def test_other_files_in_the_store_are_no_mappings(store: Store) -> None:
    path = store.save(small())
    for name in (".xtoken-align-1234.tmp", "notes.npz", "README", "abc.npz"):
        (path.parent / name).touch()
    (store.root / "file").touch()
    (store.root / "empty").mkdir()
    assert store.versions("pupil--master") == [path]
    assert list(store.names()) == ["pupil--master"]


@pytest.mark.parametrize("root", ["/dev/null/store", "/proc/store"])
def test_a_folder_that_cannot_be_written_is_refused_with_a_way_out(root: str) -> None:
    with pytest.raises(StoreError, match=r"cannot write .* --store or \$XTOKEN_ALIGN_STORE"):
        Store(root).save(small())


def test_a_folder_that_cannot_be_read_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(small())

    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(StoreError, match="cannot read the store's folder"):
        store.find("pupil--master")


def test_a_full_disk_is_refused_and_nothing_is_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.save(small())
    assert [path.name for path in (store.root / "pupil--master").iterdir() if path.name != ".lock"] == []


def test_holds_is_true_for_this_very_mapping_alone(store: Store, tmp_path: Path) -> None:
    path = store.save(small())
    assert holds(path, small())
    assert not holds(path, small(decay=0))
    assert not holds(tmp_path, small())
    assert not holds(tmp_path / "absent", small())


_SAVE = """
import sys
from xtoken_align import Store, load
mapping = load(sys.argv[1])
{patch}
for _ in range(3):
    Store(sys.argv[2]).save(mapping, force=True)
"""


def test_several_processes_may_save_one_mapping_at_once(store: Store, tmp_path: Path) -> None:
    source = small().save(tmp_path / "source.npz")
    command = [sys.executable, "-c", _SAVE.format(patch=""), str(source), str(store.root)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    assert load("pupil--master", store=store.root).content_hash == small().content_hash


def test_a_process_killed_while_it_writes_leaves_nothing_visible_and_no_lock(store: Store, tmp_path: Path) -> None:
    source = small().save(tmp_path / "source.npz")
    patch = "import os, signal; os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run(
        [sys.executable, "-c", _SAVE.format(patch=patch), str(source), str(store.root)], check=False
    )
    assert killed.returncode == -9
    assert store.versions("pupil--master") == []
    store.save(small())
    assert load("pupil--master", store=store.root).version == small().version


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


def test_a_link_that_leads_nowhere_is_no_version_and_stops_nothing(tmp_path: Path) -> None:
    store, paths = filled(tmp_path, 1)
    dangling = paths[0].with_name("0123456789ab.npz")
    dangling.symlink_to(tmp_path / "nowhere")
    assert store.versions("s--t") == own(store) == paths
    assert store.find("s--t") == paths[0]


def test_a_file_that_gc_removes_meanwhile_is_left_out_of_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, paths = filled(tmp_path, 3)
    listed = store_module._listed
    monkeypatch.setattr(
        store_module, "_listed", lambda folder: [*listed(folder), folder / "aaaaaaaaaaaa.npz", folder / "gone"]
    )
    monkeypatch.setattr(store_module, "read_metadata", lambda path, read=store_module.read_metadata: vanish(path, read))

    def vanish(path: Path, read: Any) -> Any:
        if path == paths[1]:
            path.unlink()
        return read(path)

    assert own(store) == [paths[0], paths[2]]


def test_a_file_under_another_version_than_its_own_is_listed_as_wrong(tmp_path: Path) -> None:
    store, paths = filled(tmp_path, 1)
    other = paths[0].rename(paths[0].with_name("0123456789ab.npz"))
    (entry,) = [entry for entry in entries(store) if entry.path == other]
    assert entry.problem is not None
    assert f"expected version 0123456789ab by its name, found {paths[0].stem}" in entry.problem


def test_metadata_without_its_parts_is_listed_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, paths = filled(tmp_path, 1)
    monkeypatch.setattr(store_module, "read_metadata", lambda _: {"content_hash": paths[0].stem, "provenance": "x"})
    (entry,) = entries(store)
    assert entry.problem is not None
    assert "lacks 'student'" in entry.problem


def test_mappings_under_a_name_of_their_own_are_collected_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    paths = [aged(store.save(mapping(decay), name="plain"), int(1000 * decay)) for decay in (0.1, 0.3)]
    assert collect(store, keep=1, dry_run=True) == paths[:1]
    assert collect(store, keep=1) == paths[:1]
    assert collect(store, keep=0) == paths[1:]


def test_what_a_link_in_the_store_leads_to_is_not_removed(tmp_path: Path) -> None:
    outside = Store(tmp_path / "outside").save(mapping())
    store = Store(tmp_path / "store")
    store.root.mkdir()
    (store.root / "s--t").symlink_to(outside.parent)
    assert collect(store, keep=0) == []
    assert outside.exists()
    assert list(store.names()) == ["s--t"]
