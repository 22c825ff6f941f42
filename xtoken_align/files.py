"""Writing a file or a folder so that its name never stands for a half-written one."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from .errors import StoreError

TEMPORARY_PATTERN = ".xtoken-align-*.tmp"
"""Names of the unfinished files that a killed process may leave beside its target, for the store to clear away."""


def write_atomically(path: Path, content: bytes, *, overwrite: bool = True) -> None:
    """Writes a file that appears complete under its name, or not at all.

    The content reaches the disk under a temporary name in the same folder, then takes the target's name in one step.
    Through a symbolic link, the file that it points to is replaced and the link stays.

    Args:
        path: the file to write; its folder must exist.
        content: the whole file.
        overwrite: whether an existing file may be replaced.

    Raises:
        StoreError: the file cannot be written there, or exists and may not be replaced.
    """
    try:
        # A rename would put a file in the place of a link: the link is followed first.
        target = Path(os.path.realpath(path))
        _check_target(target, overwrite=overwrite)
        # Named apart from the target, whose own name may already be as long as the file system allows.
        temporary = target.with_name(TEMPORARY_PATTERN.replace("*", secrets.token_hex(8)))
        try:
            with temporary.open("xb") as file:
                # A file that only its owner may read stays one when it is replaced.
                with suppress(OSError):
                    temporary.chmod(stat.S_IMODE(target.stat().st_mode))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                temporary.replace(target)
            else:
                _publish_new(temporary, target)
        finally:
            # Runs on KeyboardInterrupt too; after a rename there is nothing left to remove.
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
    except FileExistsError as error:
        raise StoreError(f"expected no file at {path}, found one: remove it or allow it to be replaced") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL or outside the file system's encoding
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"cannot write {path} ({reason}): choose another place or make this one writable") from error


def kind_of(path: Path) -> Literal["file", "folder", "other"] | None:
    """What stands under a name; None for nothing, or what cannot be looked at: a name too long, in a closed folder."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def check_folder(folder: Path, *, overwrite: bool, holds: str = "config.json") -> None:
    """Refuses a folder that `whole_folder` would not write; `holds` is a file that every such folder has.

    Raises:
        StoreError: it holds something and `overwrite` is not set, or it holds what no model's folder holds.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise StoreError(f"expected a folder at {folder}, found a file or a link: choose another place")
    entries = list(folder.iterdir())
    if entries and not overwrite:
        raise StoreError(f"the folder {folder} is not empty: choose another one, or allow it to be replaced (--force)")
    # Replacing removes all that is there: a home folder or a repository given by mistake must survive it.
    if entries and ((folder / holds) not in entries or any(entry.is_dir() for entry in entries)):
        raise StoreError(
            f"the folder {folder} is not replaced: expected nothing but a model's files in it, {holds} among them, and "
            "no subfolders; choose another place"
        )


@contextmanager
def whole_folder(folder: Path, *, overwrite: bool = False, holds: str = "config.json") -> Iterator[Path]:
    """Lets a model's folder be written under a temporary name, and gives it its own name when all is written.

    After an error, or Ctrl-C, what was there before is there still, and nothing else.

    Args:
        folder: the folder; its parent is made if it is missing.
        overwrite: whether the files of a model that is there are replaced.
        holds: a file by which such a model is known.

    Yields:
        An empty folder beside it.

    Raises:
        StoreError: it may not be replaced, or cannot be written.
    """
    check_folder(folder, overwrite=overwrite, holds=holds)
    beside = folder.with_name(TEMPORARY_PATTERN.replace("*", secrets.token_hex(8)))
    before = folder.with_name(TEMPORARY_PATTERN.replace("*", secrets.token_hex(8)))
    try:
        with disk_refusals(folder):
            beside.mkdir(parents=True)
            yield beside
            if folder.exists():
                folder.rename(before)
            beside.rename(folder)
    finally:
        # Between the two renames, an error or Ctrl-C leaves the name to nobody.
        if before.exists() and not folder.exists():
            before.replace(folder)
        for leftover in (beside, before):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def disk_refusals(place: Path) -> Iterator[None]:
    """Makes one sentence of what the disk refuses, in whichever library's words.

    Raises:
        StoreError: the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        reason: object = error.strerror or error
        raise StoreError(f"cannot write {place} ({reason}): choose another place or make room there") from error
    except Exception as error:
        # What the system says to safetensors and torch reaches us as errors of their own, which name no type in common.
        said = str(error)
        if "I/O error: " not in said and "inline_container.cc" not in said:
            raise
        reason = said.partition("I/O error: ")[2].partition(" (os error")[0] or "not all of a file could be written"
        raise StoreError(f"cannot write {place} ({reason}): choose another place or make room there") from error


def _check_target(target: Path, *, overwrite: bool) -> None:
    """Refuses what a rename would replace although it is no regular file, such as a device."""
    if not target.exists():
        return
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not target.is_file():
        raise OSError(errno.EINVAL, "not a regular file")
    if not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _publish_new(temporary: Path, target: Path) -> None:
    """Gives a finished file its name, if no other process has taken the name since."""
    try:
        # Unlike a rename, a link fails if the name exists.
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links (exFAT): a second look is the best that it offers.
        _check_target(target, overwrite=False)
        temporary.replace(target)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the platform can synchronise folders (Windows cannot open them)."""
    with suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)
