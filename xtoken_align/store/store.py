"""The store: a folder of mappings by pair and version; what it holds, and clearing out what is old."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import MappingError, OptionError, StoreError
from ..files import TEMPORARY_PATTERN
from ..mapping.file import read_metadata
from ..mapping.mapping import VERSIONED_NAME, Mapping, check_version, load_mapping

ENVIRONMENT = "XTOKEN_ALIGN_STORE"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?|.*\.")
"""Names that Windows keeps for devices, whatever ending they have, and names whose last dot it drops."""
_LOCK_SECONDS = 300


def store_root(chosen: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the store: the one chosen, else `$XTOKEN_ALIGN_STORE`, else the user's data folder."""
    if chosen is not None:
        return Path(chosen)
    configured = os.environ.get(ENVIRONMENT)
    if configured:
        return Path(configured)
    from platformdirs import user_data_path

    return user_data_path("xtoken-align", appauthor=False)


def shipped_root() -> Path | None:
    """The folder of the mappings that ship with the package."""
    # Found, not imported: a folder of data needs no code to run.
    spec = find_spec("xtoken_align.mappings")
    locations = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(locations))) if locations else None


class Store:
    """A folder of mappings, with the shipped ones behind it for reading.

    Args:
        root: the folder; see `store_root` for the default. It is made when first written to.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = store_root(root)

    def save(self, mapping: Mapping, *, name: str | None = None, force: bool = False) -> Path:
        """Keeps a mapping under its version. A file of that version that is whole already is left as it is.

        Args:
            mapping: what to keep.
            name: its name; by default `<student>--<teacher>`.
            force: write the file anew even so.

        Returns:
            The file.

        Raises:
            StoreError: the folder cannot be written, or the name is none.
        """
        folder = self.root / checked_name(name or pair_name(mapping))
        path = folder / f"{mapping.version}.npz"
        # Locked, so that of two processes that build the same pair the second finds the file of the first.
        with locked(folder):
            if force or not holds(path, mapping):
                mapping.save(path)
        return path

    def versions(self, name: str) -> list[Path]:
        """The files of a name, oldest first; those of the user's store come after the shipped ones."""
        paths: list[Path] = []
        # The last is `@latest`, so a pair that the user built anew wins over the shipped one.
        for root in (shipped_root(), self.root):
            folder = root / name if root is not None else None
            if folder is not None and folder.is_dir():
                # What else lies there is skipped: the lock, and unfinished files of a process that was killed.
                files = [path for path in _listed(folder) if VERSIONED_NAME.fullmatch(path.name)]
                dated = [(status.st_mtime_ns, path.name, path) for path in files if (status := _status(path))]
                paths += [path for _, _, path in sorted(dated)]
        return paths

    def names(self) -> Iterator[str]:
        """The names that have at least one version."""
        seen: set[str] = set()
        for root in (self.root, shipped_root()):
            if root is not None and root.is_dir():
                for folder in _listed(root):
                    if folder.is_dir() and _NAME.fullmatch(folder.name) and folder.name not in seen:
                        seen.add(folder.name)
                        if self.versions(folder.name):
                            yield folder.name

    def find(self, name: str) -> Path:
        """The file that a name means: `name`, `name@latest` or `name@version` (or the version's first digits).

        Raises:
            StoreError: there is none, or several begin with the digits given.
        """
        # `llama-3--qwen3@3f9c` is the pair `llama-3--qwen3` in the version whose hash begins with 3f9c.
        pair, _, wanted = name.partition("@")
        files = self.versions(pair) if _NAME.fullmatch(pair) else []
        if not files:
            student, _, teacher = pair.partition("--")
            if _NAME.fullmatch(pair) and teacher and self.versions(f"{teacher}--{student}"):
                raise StoreError(
                    f"no mapping is called {pair!r}, but {teacher}--{student} is one, in which student {teacher} "
                    f"learns from teacher {student}: name it, or build the other way: xtoken-align build {teacher} "
                    f"{student}"
                )
            known = list(self.names())
            nearest = "".join(f" (did you mean {near}?)" for near in get_close_matches(pair, known, n=1))
            raise StoreError(
                f"no mapping is called {pair!r}{nearest}: it is no file, and the store {self.root} has "
                f"{', '.join(known) or 'none'}; name one of these or the path of a file, or build it"
            )
        if wanted in ("", "latest"):
            return files[-1]
        # By version, not by file: a version may be both shipped and built, and that is one version, not two.
        matching = {path.stem: path for path in files if path.stem.startswith(wanted)}
        if len(matching) == 1:
            return next(iter(matching.values()))
        versions = ", ".join(sorted({path.stem for path in files}))
        problem = "several versions that begin with" if matching else "no version"
        raise StoreError(f"{pair} has {problem} {wanted!r}: name one of {versions}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a name's folder, which is made if need be. The lock of a killed process frees itself.

    Raises:
        StoreError: the folder cannot be made or written, or another process holds the lock for too long.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=_LOCK_SECONDS)
        lock.acquire()
    except Timeout as error:
        raise StoreError(f"{folder} stayed locked by another process for {_LOCK_SECONDS} seconds: try again") from error
    except OSError as error:
        raise StoreError(
            f"cannot write to the store's folder {folder} ({error.strerror or error}): choose a folder that can be "
            f"written with --store or ${ENVIRONMENT}"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:  # removed since it was listed
        return []
    except OSError as error:
        raise StoreError(
            f"cannot read the store's folder {folder} ({error.strerror or error}): make it readable or choose another"
        ) from error


def _status(path: Path) -> os.stat_result | None:
    """What the system says of a file; None for a link that leads nowhere and a file that `gc` has just removed."""
    try:
        return path.stat()
    except OSError:
        return None


def pair_name(mapping: Mapping) -> str:
    """`<student>--<teacher>`."""
    return f"{mapping.student.name}--{mapping.teacher.name}"


def checked_name(name: str) -> str:
    """The name, if it can be a folder's on every system.

    Raises:
        StoreError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise StoreError(f"{name!r} cannot name a mapping: use up to 200 letters, digits, '.', '_' and '-'")
    if _RESERVED.fullmatch(name):
        raise StoreError(f"{name!r} cannot name a mapping: Windows has no folder of this name, choose another")
    return name


def holds(path: Path, mapping: Mapping) -> bool:
    """Whether a file is this very mapping, whole."""
    if not path.is_file():
        return False
    try:
        return load_mapping(path).content_hash == mapping.content_hash
    except MappingError:
        return False


@dataclass(frozen=True, slots=True)
class Entry:
    """One mapping file of the store.

    Attributes:
        name: the mapping's name.
        version: its version.
        path: the file.
        bytes: its size.
        modified: when it was written, seconds since 1970.
        shipped: whether it came with the package, and so cannot be removed.
        provenance: `built`, `learned` or `imported`; None where the file cannot be read.
        student: the student's source.
        teacher: the teacher's source.
        problem: why the file cannot be read, None where it can.
    """

    name: str
    version: str
    path: Path
    bytes: int
    modified: float
    shipped: bool
    provenance: str | None = None
    student: str | None = None
    teacher: str | None = None
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `list`."""
        return {
            "name": self.name,
            "version": self.version,
            "path": str(self.path),
            "bytes": self.bytes,
            "modified": datetime.fromtimestamp(self.modified, UTC).isoformat(timespec="seconds"),
            "shipped": self.shipped,
            "provenance": self.provenance,
            "student": self.student,
            "teacher": self.teacher,
            "problem": self.problem,
        }


def entries(store: Store) -> list[Entry]:
    """Every mapping file that the store offers, by name, oldest first; the shipped ones included."""
    listed = (_entry(name, path) for name in sorted(store.names()) for path in store.versions(name))
    return [entry for entry in listed if entry is not None]


def _entry(name: str, path: Path) -> Entry | None:
    """What is listed of a file, None if it is gone meanwhile."""
    status = _status(path)
    if status is None:
        return None
    shipped = shipped_root()
    entry = Entry(
        name=name,
        version=path.stem,
        path=path,
        bytes=status.st_size,
        modified=status.st_mtime,
        shipped=shipped is not None and path.is_relative_to(shipped),
    )
    # A damaged file is listed with its problem, so that a list of many is not lost to one.
    try:
        metadata: Any = read_metadata(path)
        check_version(path, metadata["content_hash"])
        return replace(
            entry,
            provenance=str(metadata["provenance"]),
            student=str(metadata["student"]["source"]),
            teacher=str(metadata["teacher"]["source"]),
        )
    except MappingError as error:
        return replace(entry, problem=str(error)) if path.exists() else None
    except (KeyError, TypeError) as error:
        return replace(entry, problem=f"{path}: its metadata lacks {error}; build or download the mapping again")


def collect(store: Store, *, keep: int, dry_run: bool = False) -> list[Path]:
    """Removes all but the newest versions of every name, and what killed processes left half-written.

    The shipped mappings stay, and so does whatever a link in the store leads to. In a folder that is not named after a
    pair, `student--teacher`, only files that are mappings are removed: it may be no folder of the store's.

    Args:
        store: the store.
        keep: how many versions of each name stay.
        dry_run: only say what would be removed.

    Returns:
        The files that are gone, or would be.

    Raises:
        OptionError: `keep` is negative.
        StoreError: a file cannot be removed.
    """
    if keep < 0:
        raise OptionError(f"keep is a number of versions from 0, got {keep}")
    gone: list[Path] = []
    for folder in _listed(store.root) if store.root.is_dir() else ():
        if folder.is_symlink() or not folder.is_dir() or not _stale(store, folder, keep):
            continue
        if dry_run:
            gone += _stale(store, folder, keep)
            continue
        # Looked for again under the lock: another process may have removed the same files.
        with locked(folder):
            for path in _stale(store, folder, keep):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise StoreError(f"cannot remove {path}: {error.strerror or error}") from error
                gone.append(path)
    return gone


def _stale(store: Store, folder: Path, keep: int) -> list[Path]:
    """The files of a folder that `collect` removes."""
    own = [path for path in store.versions(folder.name) if path.parent == folder]
    # Oldest first: of the versions v1 v2 v3 v4, keeping 1 makes v1 v2 v3 stale.
    stale = own[: max(len(own) - keep, 0)]
    if "--" not in folder.name:
        stale = [path for path in stale if _is_mapping(path)]
    return stale + sorted(folder.glob(TEMPORARY_PATTERN))


def _is_mapping(path: Path) -> bool:
    try:
        return bool(read_metadata(path))
    except MappingError:
        return False
