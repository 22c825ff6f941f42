"""What the store holds, and clearing out what is old."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import MappingError, OptionError, StoreError
from ..mapping.archive import read_metadata
from ..mapping.atomic import TEMPORARY_PATTERN
from .store import Store, locked, shipped_root


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
    return [_entry(name, path) for name in sorted(store.names()) for path in store.versions(name)]


def _entry(name: str, path: Path) -> Entry:
    status = path.stat()
    shipped = shipped_root()
    found = Entry(
        name=name,
        version=path.stem,
        path=path,
        bytes=status.st_size,
        modified=status.st_mtime,
        shipped=shipped is not None and path.is_relative_to(shipped),
    )
    try:
        metadata: Any = read_metadata(path)
        return replace(
            found,
            provenance=str(metadata["provenance"]),
            student=str(metadata["student"]["source"]),
            teacher=str(metadata["teacher"]["source"]),
        )
    except (MappingError, KeyError, TypeError) as error:
        return replace(found, problem=str(error))


def collect(store: Store, *, keep: int, dry_run: bool = False) -> list[Path]:
    """Removes all but the newest versions of every name, and what killed processes left half-written.

    The shipped mappings stay.

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
    for folder in _folders(store):
        with locked(folder):
            own = [path for path in store.versions(folder.name) if path.parent == folder]
            stale = own[: max(len(own) - keep, 0)] + sorted(folder.glob(TEMPORARY_PATTERN))
            for path in stale:
                if not dry_run:
                    _remove(path)
                gone.append(path)
    return gone


def _folders(store: Store) -> Iterator[Path]:
    if store.root.is_dir():
        yield from (folder for folder in sorted(store.root.iterdir()) if folder.is_dir() and "--" in folder.name)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot remove {path}: {error.strerror or error}") from error
