"""The container of a mapping file: an `.npz` written and read member by member, with bounds, checks and a seal."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError, StoreError
from ..files import write_atomically
from .hashing import SCHEMA, SIDES, canonical_json

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


_LABEL = b"xtoken-align sha256 "
_DIGITS = 64
SEAL_BYTES = len(_LABEL) + _DIGITS
BLANK = _LABEL + b"0" * _DIGITS
"""The comment as the archive is first written with it, to be replaced by `sealed`."""

UNFOLDS_FREELY = 1 << 27
MAX_EXPANSION = 100
"""A file may unfold into 128 MiB, or into 100 times its own size where that is more; real mappings unfold into 3.4
times theirs. Deflate reaches 1,030, by which a file of one megabyte would fill the whole of `MAX_TOTAL_BYTES`."""

COMPRESSION_LEVEL = 2
"""Measured on Llama-3 x Qwen3 (7.0 MB of arrays): level 1 gives 2.21 MB in 0.10 s, 2 gives 2.16 MB in 0.11 s, 4 gives
2.07 MB in 0.19 s, 6 gives 2.01 MB in 0.43 s, 9 gives 1.98 MB in 2.3 s. Writing is part of every build."""

_MEMBERS = {member.file_name: member for member in (*ARRAYS, METADATA)}
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_PERMISSIONS = 0o644 << 16
_CHUNK_BYTES = 1 << 20
_MAX_DIRECTORY_BYTES = 1 << 16
_FIRST_RECORD = b"PK\x03\x04"
_END_RECORD = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
_LOCATOR_SIGNATURE = b"PK\x06\x07"
_LOCATOR_BYTES = 20
_ENCRYPTED_OR_PATCHED = 0x1 | 0x20 | 0x40
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_NPY_1_0 = b"\x93NUMPY\x01\x00"
_NPY_PREFIX = struct.Struct(f"<{len(_NPY_1_0)}sH")
# numpy's own reader evaluates this text as a Python literal; the one form that numpy writes needs no evaluation.
_HEADER = re.compile(
    rb"\{'descr': ([^\n]{1,200}), 'fortran_order': (True|False), 'shape': \(([0-9, ]{0,200})\), \} *\n"
)
_SHAPES = {0: re.compile(rb""), 1: re.compile(rb"([0-9]{1,12}),")}
_ZIP_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
"""What zipfile raises on damaged input: a NotImplementedError is an odd method, a ValueError an undecodable name."""


def write_archive(
    path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, object], *, overwrite: bool = True
) -> None:
    """Writes a mapping file, complete under its name or not at all.

    Equal arguments give equal bytes. `scipy.sparse.load_npz` reads the file as W.

    Args:
        path: the file to write; its folder must exist.
        arrays: every array of `ARRAYS` by name, of that dtype and rank.
        metadata: what JSON can hold.
        overwrite: whether an existing file may be replaced.

    Raises:
        ArtifactError: an array or the metadata is nothing that a mapping file can hold.
        StoreError: the file cannot be written there, or exists and may not be replaced.
    """
    write_atomically(path, _pack(arrays, metadata), overwrite=overwrite)


def read_archive(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, object]]:
    """Reads a mapping file's arrays and metadata, refusing whatever is no mapping file before inflating it.

    Args:
        path: the file.

    Returns:
        The arrays of `ARRAYS` by name, in native byte order, and the metadata.

    Raises:
        ArtifactError: the file is damaged, foreign or from a newer schema; the message names the member that is wrong.
        StoreError: there is no readable file at `path`.
    """
    with _opened(path) as file:
        try:
            return _unpack(file)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error


def read_metadata(path: Path) -> dict[str, object]:
    """Reads a mapping file's metadata alone: enough for a list, and no proof that the rest is whole.

    Args:
        path: the file.

    Returns:
        The metadata.

    Raises:
        ArtifactError: there is no intact metadata in it, or it is from a newer schema.
        StoreError: there is no readable file at `path`.
    """
    with _opened(path) as file:
        try:
            with _zip(file) as (archive, infos, size):
                return _metadata(archive, infos, size)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error


def _pack(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, object]) -> bytes:
    """Lays a mapping out as the bytes of its file."""
    text = canonical_json(metadata)
    if len(text) > METADATA.limit:
        raise damaged(METADATA.name, f"at most {METADATA.limit:,} bytes of JSON", f"{len(text):,}")
    check_arrays(arrays)
    stored: dict[str, NDArray[Any]] = {**arrays, METADATA.name: np.frombuffer(text, dtype=np.uint8)}
    buffer = io.BytesIO()
    total = 0
    with zipfile.ZipFile(buffer, "w") as archive:
        for file_name, member in sorted(_MEMBERS.items()):
            content = _npy(stored[member.name], member)
            total += len(content)
            if total > MAX_TOTAL_BYTES:
                raise damaged("arrays", f"at most {MAX_TOTAL_BYTES:,} bytes together", "more")
            # Everything that zipfile would take from the clock or from the machine is fixed here.
            info = zipfile.ZipInfo(file_name, _TIMESTAMP)
            info.create_system = _UNIX
            info.external_attr = _PERMISSIONS
            archive.writestr(info, content, zipfile.ZIP_DEFLATED, COMPRESSION_LEVEL)
        archive.comment = BLANK
    return sealed(buffer.getvalue())


def _npy(array: NDArray[Any], member: Member) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(array, dtype=member.dtype, order="C"), allow_pickle=False)
    return stream.getvalue()


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        # Opening a named pipe would wait for a writer.
        if path.exists() and not path.is_file():
            raise StoreError(f"expected a mapping file at {path}, found something else: name the .npz file itself")
        file = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL or outside the file system's encoding
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"cannot read the mapping file {path} ({reason}): check the path") from error
    with file:
        yield file


def _unpack(file: IO[bytes]) -> tuple[dict[str, NDArray[Any]], dict[str, object]]:
    with _zip(file) as (archive, infos, size):
        # The metadata comes first: a newer schema may have other members, and its users need to hear "upgrade".
        metadata = _metadata(archive, infos, size)
        _check_infos(infos, size)
        arrays = {member.name: _read_member(archive, infos[member.file_name], member) for member in ARRAYS}
        # Last, so that whoever finds damage hears of the member that has it.
        if has_seal(file, size) and not seal_fits(file, size):
            raise damaged("seal", "the digest of this file's bytes", "another: a byte that no array needs has changed")
    return arrays, metadata


@contextmanager
def _zip(file: IO[bytes]) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo], int]]:
    """Yields the archive, its members by name and the file's size."""
    try:
        size = file.seek(0, io.SEEK_END)
        _check_end(file, size)
        archive = zipfile.ZipFile(file)
    except _ZIP_DAMAGE as error:
        raise damaged("zip directory", "the directory of a zip file", f"damage ({error})") from error
    with archive:
        yield archive, _index(archive), size


def _metadata(archive: zipfile.ZipFile, infos: Mapping[str, zipfile.ZipInfo], size: int) -> dict[str, object]:
    if METADATA.file_name not in infos:
        raise damaged(METADATA.file_name, "this member", "none: the file is no mapping of xtoken-align")
    _check_info(infos[METADATA.file_name], METADATA, size)
    metadata = _parse(_read_member(archive, infos[METADATA.file_name], METADATA))
    check_schema(metadata)
    return metadata


def _check_end(file: IO[bytes], size: int) -> None:
    """Checks the last record, so that zipfile never reads a directory larger than 21 members need."""
    if size < _LOCATOR_BYTES + _END_RECORD.size:
        raise damaged("zip directory", "a zip file", f"{size} bytes")
    file.seek(0)
    if file.read(len(_FIRST_RECORD)) != _FIRST_RECORD:
        raise damaged("zip directory", "a zip file", "something else")
    # What numpy has written again has no seal, and its content hash still speaks for it.
    expected_comment = SEAL_BYTES if has_seal(file, size) else 0
    if size < _LOCATOR_BYTES + _END_RECORD.size + expected_comment:
        raise damaged("zip directory", "a zip file", f"{size} bytes")
    file.seek(size - _LOCATOR_BYTES - _END_RECORD.size - expected_comment)
    locator, record = file.read(_LOCATOR_BYTES), file.read(_END_RECORD.size)
    signature, *_, directory_size, _, comment_size = _END_RECORD.unpack(record)
    if signature != _END_SIGNATURE or comment_size != expected_comment:
        raise damaged("zip directory", "the file's last bytes to end a zip file", "others: it is cut off or has grown")
    if directory_size > _MAX_DIRECTORY_BYTES or locator.startswith(_LOCATOR_SIGNATURE):
        raise damaged("zip directory", f"one of at most {_MAX_DIRECTORY_BYTES:,} bytes", "a larger one")


def _index(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        # The name as it stands in the file: zipfile cuts `filename` at a NUL.
        name = info.orig_filename
        if name in infos:
            raise damaged(f"{name!r:.60}", "one member of this name", "two")
        infos[name] = info
    return infos


def _check_infos(infos: Mapping[str, zipfile.ZipInfo], size: int) -> None:
    for missing in sorted(_MEMBERS.keys() - infos.keys()):
        raise damaged(missing, "this member", "none")
    for unknown in sorted(infos.keys() - _MEMBERS.keys()):
        raise damaged(f"{unknown!r:.60}", "no member of this name", "one")
    for name, member in _MEMBERS.items():
        _check_info(infos[name], member, size)
    total = sum(info.file_size for info in infos.values())
    allowed = min(MAX_TOTAL_BYTES, max(UNFOLDS_FREELY, MAX_EXPANSION * size))
    if total > allowed:
        raise damaged("zip directory", f"a file of {size:,} bytes to unfold into {allowed:,} at most", f"{total:,}")


def _check_info(info: zipfile.ZipInfo, member: Member, size: int) -> None:
    """Checks what the directory says of a member against the table and the file's size."""
    name = member.file_name
    if info.flag_bits & _ENCRYPTED_OR_PATCHED:
        raise damaged(name, "a plain member", "an encrypted or patched one")
    if info.compress_type not in _METHODS:
        raise damaged(name, "a stored or deflated member", f"compression method {info.compress_type}")
    if not 0 <= info.header_offset <= info.header_offset + info.compress_size <= size:
        raise damaged(name, "a member inside the file", "one that reaches beyond its end")
    if info.file_size > member.limit_bytes:
        raise damaged(name, f"at most {member.limit_bytes:,} bytes", f"{info.file_size:,}")
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        raise damaged(name, "a stored member to have one size", "two sizes")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, member: Member) -> NDArray[Any]:
    try:
        with archive.open(info) as stream:
            header_bytes, count = _read_header(stream, member)
            data_bytes = count * member.item_size
            if header_bytes + data_bytes != info.file_size:
                raise damaged(member.file_name, f"{header_bytes + data_bytes:,} bytes for its shape", info.file_size)
            data = np.empty(data_bytes, dtype=np.uint8)
            _fill(stream, data, member)
    except _ZIP_DAMAGE as error:
        raise damaged(member.file_name, "an intact member", f"damage ({error})") from error
    array = data.view(member.dtype)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return native if member.rank else native.reshape(())


def _read_header(stream: IO[bytes], member: Member) -> tuple[int, int]:
    """Returns the header's size in bytes and the number of elements, having checked dtype, order and rank."""
    name = member.file_name
    magic, text_bytes = _NPY_PREFIX.unpack(stream.read(_NPY_PREFIX.size))
    header_bytes = _NPY_PREFIX.size + text_bytes
    if magic != _NPY_1_0 or header_bytes > MAX_HEADER_BYTES:
        raise damaged(name, "an array in .npy format 1.0 with a short header", "something else")
    header = _HEADER.fullmatch(stream.read(text_bytes))
    if header is None:
        raise damaged(name, "a .npy header as numpy writes it", "another text")
    descr, fortran_order, shape_text = header.groups()
    if descr != f"'{member.dtype}'".encode():
        raise damaged(name, f"dtype {member.dtype}", f"{descr.decode('latin-1'):.60}, and nothing is ever unpickled")
    if fortran_order == b"True":
        raise damaged(name, "C order", "Fortran order")
    shape = _SHAPES[member.rank].fullmatch(shape_text)
    if shape is None:
        raise damaged(name, f"rank {member.rank}", f"shape ({shape_text.decode():.60})")
    count = int(shape[1]) if member.rank else 1
    if count > member.limit:
        raise damaged(name, f"at most {member.limit:,} elements", f"{count:,}")
    return header_bytes, count


def _fill(stream: IO[bytes], data: NDArray[np.uint8], member: Member) -> None:
    """Inflates a member into its array, chunk by chunk; its last byte makes zipfile compare the checksum."""
    done = 0
    while done < data.size:
        chunk = stream.read(min(_CHUNK_BYTES, data.size - done))
        if not chunk:
            raise damaged(member.file_name, f"{data.size:,} bytes of elements", f"{done:,}")
        data[done : done + len(chunk)] = np.frombuffer(chunk, dtype=np.uint8)
        done += len(chunk)


def _parse(text: NDArray[np.uint8]) -> dict[str, object]:
    try:
        metadata = json.loads(text.tobytes().decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise damaged(METADATA.name, "JSON in UTF-8", f"other bytes ({error})") from error
    if not isinstance(metadata, dict):
        raise damaged(METADATA.name, "a JSON object", f"a value of type {type(metadata).__name__}")
    canonical_json(metadata)  # for what it refuses: infinities, lone surrogates, deep nesting
    return metadata


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuses a key that stands twice: readers that keep the first and the last would see different mappings."""
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("an object has one key twice")
    return unique


def sealed(content: bytes) -> bytes:
    """The bytes of a file that ends in `BLANK`, with the digest of all before the digest in its place."""
    body = content[:-_DIGITS]
    return body + hashlib.sha256(body).hexdigest().encode()


def has_seal(file: IO[bytes], size: int) -> bool:
    """Whether a file ends in a seal, right or wrong."""
    if size < SEAL_BYTES:
        return False
    file.seek(size - SEAL_BYTES)
    return file.read(len(_LABEL)) == _LABEL


def seal_fits(file: IO[bytes], size: int) -> bool:
    """Whether the seal that a file ends in is that of its bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    left = size - _DIGITS
    while left > 0:
        chunk = file.read(min(_CHUNK_BYTES, left))
        if not chunk:
            return False
        digest.update(chunk)
        left -= len(chunk)
    file.seek(size - _DIGITS, io.SEEK_SET)
    return file.read(_DIGITS) == digest.hexdigest().encode()
