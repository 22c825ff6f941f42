"""Between a `Mapping` and the arrays and metadata of its file.

Decompositions are kept beyond what W holds only: a row whose links are its whole decomposition needs no second copy.
"""

from __future__ import annotations

from collections.abc import Mapping as Table
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..coverage.coverage import Coverage
from ..errors import ArtifactError
from ..matrix import Matrix
from ..rules.links import RULE_NUMBER, RULES
from ..rules.pieces import Pieces
from ..vocab.byte_strings import ByteStrings
from ..vocab.kinds import Kind
from .archive import write_archive
from .bins import BinSizes
from .hashing import SCHEMA, content_hash
from .mapping import Mapping, SideName
from .side import Side
from .validate import load_checked

Arrays = dict[str, NDArray[Any]]

_TELLING_RULES = ("override", "identity", "exact", "digits", "decompose", "bytes")
"""Rules whose links are a row's decomposition, where nothing was cut or summed."""


def write_mapping(mapping: Mapping, path: Path, *, overwrite: bool = True) -> Path:
    """Writes a mapping; see `Mapping.save`."""
    write_archive(path, arrays_of(mapping), metadata_of(mapping), overwrite=overwrite)
    return path


def load_mapping(path: Path) -> Mapping:
    """Reads and checks a mapping file.

    Args:
        path: the file.

    Raises:
        ArtifactError: it is damaged, foreign or from a newer schema.
        StoreError: there is no readable file at `path`.
    """
    arrays, metadata = load_checked(path)
    try:
        return _assemble(arrays, metadata)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def arrays_of(mapping: Mapping) -> Arrays:
    """The arrays of a mapping's file."""
    matrix = mapping.matrix
    return {
        "format": np.array(b"csr"),
        "shape": np.array(matrix.shape, dtype=np.int64),
        "data": matrix.data,
        "indices": matrix.indices,
        "indptr": matrix.indptr,
        "position": matrix.position,
        "rule": matrix.rule,
        **_side_arrays("student", mapping.student, mapping.student_pieces, told_to_student(matrix, mapping.student)),
        **_side_arrays("teacher", mapping.teacher, mapping.teacher_pieces, told_to_teacher(matrix, mapping.student)),
    }


def _side_arrays(name: str, side: Side, pieces: Pieces, told: Pieces) -> Arrays:
    kept = _beyond(pieces, told)
    return {
        f"{name}_kind": side.kinds,
        f"{name}_surface_bytes": side.surfaces.blob,
        f"{name}_surface_lengths": side.surfaces.lengths,
        f"{name}_piece_lengths": kept.lengths,
        f"{name}_piece_ids": kept.ids,
        f"{name}_lossy": pieces.lossy,
    }


def metadata_of(mapping: Mapping) -> dict[str, Any]:
    """The metadata of a mapping's file, content hash included."""
    metadata: dict[str, Any] = {
        "schema": SCHEMA,
        "package_version": __version__,
        "student": mapping.student.metadata(),
        "teacher": mapping.teacher.metadata(),
        "options": dict(mapping.options),
        "rules": list(RULES),
        "coverage": mapping.measured.to_dict(),
        "bins": mapping.bin_sizes.to_dict(),
        "provenance": mapping.provenance,
        "content_hash": mapping.content_hash,
    }
    if mapping.created is not None:
        metadata["created"] = mapping.created
    if mapping.notes:
        metadata["notes"] = dict(mapping.notes)
    return metadata


def hash_of(mapping: Mapping) -> str:
    """The content hash that a mapping's file has."""
    return content_hash(arrays_of(mapping), metadata_of(mapping))


def told_to_student(matrix: Matrix, student: Side) -> Pieces:
    """The student's decompositions as W tells them: the links of a row in the order of their positions."""
    telling = np.isin(matrix.rule, [RULE_NUMBER[rule] for rule in _TELLING_RULES])
    telling &= (student.kinds[matrix.rows] <= Kind.BYTE) | (matrix.rule == RULE_NUMBER["override"])
    chosen = np.flatnonzero(telling)
    rows = matrix.rows[chosen]
    order = chosen[np.lexsort((matrix.position[chosen], rows))]
    lengths = np.bincount(rows, minlength=matrix.shape[0]).astype(np.int32)
    return Pieces(lengths, matrix.indices[order], np.zeros(0, dtype=np.int32))


def told_to_teacher(matrix: Matrix, student: Side) -> Pieces:
    """The teacher's decompositions as W tells them: the lowest student token that is exactly the teacher's."""
    exact = np.isin(matrix.rule, [RULE_NUMBER[rule] for rule in ("identity", "exact")])
    exact &= student.kinds[matrix.rows] <= Kind.BYTE
    rows, columns = matrix.rows[exact], matrix.indices[exact]
    told, first = np.unique(columns, return_index=True)
    lengths = np.zeros(matrix.shape[1], dtype=np.int32)
    lengths[told] = 1
    return Pieces(lengths, rows[first], np.zeros(0, dtype=np.int32))


def _beyond(pieces: Pieces, told: Pieces) -> Pieces:
    """What is not told already. A token without pieces of whom W tells some is no case that a build makes."""
    different = pieces.lengths != told.lengths
    same_length = np.flatnonzero(~different & (pieces.lengths > 0))
    counts = pieces.lengths[same_length]
    ours, theirs = _take(pieces, same_length), _take(told, same_length)
    unequal = np.repeat(same_length, counts)[ours != theirs]
    different[unequal] = True
    kept = np.flatnonzero(different)
    lengths = np.where(different, pieces.lengths, 0).astype(np.int32)
    return Pieces(lengths, _take(pieces, kept), pieces.lossy)


def _take(pieces: Pieces, tokens: NDArray[np.int64]) -> NDArray[np.int32]:
    """The pieces of some tokens, one after another."""
    counts = pieces.lengths[tokens].astype(np.int64)
    starts = np.cumsum(counts) - counts
    taken: NDArray[np.int32] = pieces.ids[
        np.arange(counts.sum()) + np.repeat(pieces.offsets[:-1][tokens] - starts, counts)
    ]
    return taken


def _together(kept: Pieces, told: Pieces) -> Pieces:
    """The inverse of `_beyond`."""
    from_file = kept.lengths > 0
    lengths = np.where(from_file, kept.lengths, told.lengths).astype(np.int32)
    owners = np.repeat(from_file, lengths)
    ids = np.empty(len(owners), dtype=np.int32)
    ids[owners] = kept.ids
    ids[~owners] = _take(told, np.flatnonzero(~from_file))
    return Pieces(lengths, ids, kept.lossy)


def _assemble(arrays: Arrays, metadata: Table[str, Any]) -> Mapping:
    shape = (int(arrays["shape"][0]), int(arrays["shape"][1]))
    matrix = Matrix(shape, *(arrays[name] for name in ("indptr", "indices", "data", "position", "rule")))
    student, teacher = (_side(arrays, metadata, name) for name in ("student", "teacher"))
    return Mapping(
        student=student,
        teacher=teacher,
        matrix=matrix,
        options=metadata["options"],
        make_pieces=partial(_pieces, arrays, matrix, student),
        measured=Coverage.from_dict(metadata["coverage"]),
        bin_sizes=_bin_sizes(metadata["bins"]),
        content_hash=metadata["content_hash"],
        provenance=metadata["provenance"],
        created=metadata.get("created"),
        notes=metadata.get("notes") or {},
    )


def _pieces(arrays: Arrays, matrix: Matrix, student: Side, side: SideName) -> Pieces:
    told = told_to_student(matrix, student) if side == "student" else told_to_teacher(matrix, student)
    return _together(_kept(arrays, side), told)


def _kept(arrays: Arrays, name: str) -> Pieces:
    return Pieces(arrays[f"{name}_piece_lengths"], arrays[f"{name}_piece_ids"], arrays[f"{name}_lossy"])


def _side(arrays: Arrays, metadata: Table[str, Any], name: str) -> Side:
    surfaces = ByteStrings(arrays[f"{name}_surface_bytes"], arrays[f"{name}_surface_lengths"])
    return Side.from_file(metadata[name], arrays[f"{name}_kind"], surfaces)


def _bin_sizes(stored: Table[str, Any]) -> BinSizes:
    try:
        counts = [stored[key] for key in ("count", "largest_student", "largest_teacher")]
    except KeyError as error:
        raise ArtifactError(f"metadata.bins lacks {error.args[0]!r}; build or download the mapping again") from error
    if any(type(count) is not int or count < 0 for count in counts):
        raise ArtifactError(f"metadata.bins: expected three counts, found {counts!r:.60}; build the mapping again")
    return BinSizes(*counts)
