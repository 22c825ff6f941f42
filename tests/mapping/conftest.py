"""One small valid mapping, made afresh for each test, and the means to tamper with its file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xtoken_align.mapping.file import content_hash, write_archive
from xtoken_align.rules.links import RULE_NUMBER, RULES
from xtoken_align.vocab.kinds import Kind

Arrays = dict[str, NDArray[Any]]
Metadata = dict[str, Any]


def int32(*values: int) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def uint8(*values: int) -> NDArray[np.uint8]:
    return np.array(values, dtype=np.uint8)


def side(name: str, logits: int) -> Metadata:
    return {
        "name": name,
        "source": f"{name}/tokenizer.json",
        "revision": None,
        "sizes": {"base": logits - 2, "with_added": logits - 1, "ids": logits - 1, "logits": logits},
        "roles": {"eos": [logits - 2]},
        "fingerprint": f"{logits:064x}",
    }


@pytest.fixture
def arrays() -> Arrays:
    """Student a, b, 12, é, eos, padding; teacher b, a, 1, 2, eos, tab, padding. Student id 3 stays empty."""
    exact, special, digits = RULE_NUMBER["exact"], RULE_NUMBER["special"], RULE_NUMBER["digits"]
    text, end, padding = Kind.TEXT, Kind.SPECIAL, Kind.PADDING
    return {
        "format": np.array(b"csr"),
        "shape": np.array([6, 7], dtype=np.int64),
        "data": np.array([1, 1, 10 / 11, 1 / 11, 1], dtype=np.float32),
        "indices": int32(1, 0, 2, 3, 4),
        "indptr": int32(0, 1, 2, 4, 4, 5, 5),
        "position": uint8(0, 0, 0, 1, 0),
        "rule": uint8(exact, exact, digits, digits, special),
        "student_kind": uint8(text, text, text, text, end, padding),
        "student_surface_bytes": np.frombuffer("ab12é".encode(), dtype=np.uint8),
        "student_surface_lengths": int32(1, 1, 2, 2, 0, 0),
        "student_piece_lengths": int32(0, 0, 2, 0, 0, 0),
        "student_piece_ids": int32(2, 3),
        "student_lossy": int32(3),
        "teacher_kind": uint8(text, text, text, text, end, text, padding),
        "teacher_surface_bytes": np.frombuffer(b"ba12\t", dtype=np.uint8),
        "teacher_surface_lengths": int32(1, 1, 1, 1, 0, 1, 0),
        "teacher_piece_lengths": int32(0, 0, 0, 0, 0, 0, 0),
        "teacher_piece_ids": int32(),
        "teacher_lossy": int32(),
    }


@pytest.fixture
def seal(arrays: Arrays) -> Callable[[Metadata], Metadata]:
    """Sets the content hash of metadata to that of the (by then perhaps changed) arrays."""

    def set_hash(metadata: Metadata) -> Metadata:
        metadata["content_hash"] = content_hash(arrays, metadata)
        return metadata

    return set_hash


@pytest.fixture
def metadata(seal: Callable[[Metadata], Metadata]) -> Metadata:
    return seal(
        {
            "schema": 1,
            "package_version": "0.1.0",
            "student": side("piccolo", 6),
            "teacher": side("größer", 7),
            "options": {"lead": 0.9, "decay": 0.1, "top_k": 4},
            "rules": list(RULES),
            "coverage": {"digits_2": {"total": 1, "split": 1}},
            "bins": {"count": 3},
            "provenance": "built",
        }
    )


@pytest.fixture
def saved(tmp_path: Path, arrays: Arrays, metadata: Metadata) -> Path:
    """The path of the mapping's file."""
    path = tmp_path / "mapping.npz"
    write_archive(path, arrays, metadata)
    return path


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(array: NDArray[Any], *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


@pytest.fixture
def retouch(saved: Path) -> Callable[[Mapping[str, bytes | NDArray[Any] | None]], Path]:
    """Rewrites the file as a sound zip file with some members replaced, added or (None) left out."""

    def rewrite(changes: Mapping[str, bytes | NDArray[Any] | None]) -> Path:
        members = contents(saved)
        for name, change in changes.items():
            if change is None:
                del members[f"{name}.npy"]
            else:
                members[f"{name}.npy"] = change if isinstance(change, bytes) else npy(change)
        saved.write_bytes(zipped(members))
        return saved

    return rewrite
