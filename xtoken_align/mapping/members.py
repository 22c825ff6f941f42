"""The members of a mapping file: their names, dtypes, ranks and the sizes beyond which a file is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError
from .hashing import SCHEMA, SIDES

MAX_IDS = 1 << 22
MAX_LINKS = 1 << 26
MAX_SURFACE_BYTES = 1 << 28
MAX_METADATA_BYTES = 1 << 22
MAX_TOTAL_BYTES = 1 << 30
"""Sixteen times the largest vocabularies of 2026, so that a size beyond these is damage or malice."""

MAX_HEADER_BYTES = 1 << 12
"""More than any header of a `.npy` member: numpy writes 128 bytes."""


@dataclass(frozen=True, slots=True)
class Member:
    """One array of the artifact: its name, little-endian dtype, rank, and the most elements it may have."""

    name: str
    dtype: str
    rank: int
    limit: int

    @property
    def file_name(self) -> str:
        """The member's name in the zip file."""
        return f"{self.name}.npy"

    @property
    def item_size(self) -> int:
        """Bytes of one element."""
        return np.dtype(self.dtype).itemsize

    @property
    def limit_bytes(self) -> int:
        """The most bytes the member may have, its header included."""
        return MAX_HEADER_BYTES + self.limit * self.item_size


def _side_members(side: str) -> tuple[Member, ...]:
    return (
        Member(f"{side}_kind", "|u1", 1, MAX_IDS),
        Member(f"{side}_surface_bytes", "|u1", 1, MAX_SURFACE_BYTES),
        Member(f"{side}_surface_lengths", "<i4", 1, MAX_IDS),
        Member(f"{side}_piece_lengths", "<i4", 1, MAX_IDS),
        Member(f"{side}_piece_ids", "<i4", 1, MAX_LINKS),
        Member(f"{side}_lossy", "<i4", 1, MAX_IDS),
    )


ARRAYS = (
    Member("format", "|S3", 0, 1),
    Member("shape", "<i8", 1, 2),
    Member("data", "<f4", 1, MAX_LINKS),
    Member("indices", "<i4", 1, MAX_LINKS),
    Member("indptr", "<i4", 1, MAX_IDS + 1),
    Member("position", "|u1", 1, MAX_LINKS),
    Member("rule", "|u1", 1, MAX_LINKS),
    *(member for side in SIDES for member in _side_members(side)),
)
"""Every array of schema 1, under scipy's names where `scipy.sparse.load_npz` reads them."""

METADATA = Member("metadata", "|u1", 1, MAX_METADATA_BYTES)


def damaged(field: str, expected: str, found: object) -> ArtifactError:
    """Makes the error for a field that is not what it must be.

    Args:
        field: the member or the metadata key that is wrong.
        expected: what it should have been.
        found: what it is.

    Returns:
        The error, to be raised.
    """
    return ArtifactError(f"{field}: expected {expected}, found {found}; build or download the mapping again")


def check_arrays(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Checks that arrays are those of a mapping file: names, dtypes, ranks and sizes.

    Args:
        arrays: the arrays by member name.

    Raises:
        ArtifactError: one is missing, unknown or of another form; the message names it.
    """
    names = {member.name for member in ARRAYS}
    for missing in sorted(names - arrays.keys()):
        raise damaged(missing, "an array", "none")
    for unknown in sorted(arrays.keys() - names):
        raise damaged(unknown, "no array of this name", "one")
    for member in ARRAYS:
        _check_array(member, arrays[member.name])


def check_schema(metadata: Mapping[str, object]) -> None:
    """Checks that this package can read a mapping's schema.

    Args:
        metadata: the mapping's metadata.

    Raises:
        ArtifactError: the schema is missing, malformed or newer than this package.
    """
    schema = metadata.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise damaged("metadata.schema", "a whole number from 1", f"{schema!r:.40}")
    if schema > SCHEMA:
        found = f"this file has schema {schema!r:.40}, this version reads up to {SCHEMA}"
        raise ArtifactError(f"metadata.schema: {found}: upgrade xtoken-align")


def _check_array(member: Member, array: object) -> None:
    if not isinstance(array, np.ndarray):
        raise damaged(member.name, "an array", f"a value of type {type(array).__name__}")
    if array.dtype.newbyteorder("<") != np.dtype(member.dtype) or array.ndim != member.rank:
        expected = f"{np.dtype(member.dtype)} of rank {member.rank}"
        raise damaged(member.name, expected, f"{array.dtype} of rank {array.ndim}")
    if array.size > member.limit:
        raise damaged(member.name, f"at most {member.limit:,} elements", f"{array.size:,}")
