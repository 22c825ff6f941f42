"""The file of a mapping: which arrays it holds, its content hash, and writing and reading it without trusting it.

A mapping file is an `.npz`: a zip file with one `.npy` member per array, which scipy reads as W. It is read member by
member, each one checked against the table `ARRAYS` before a byte of it is inflated. Its last bytes, the zip comment,
are the seal: the SHA-256 of all bytes before them.
"""

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
from ..limits import MAX_IDS

SCHEMA = 2
"""The layout that this package writes, and the newest that it reads. Files of schema 1 lack the sides' `parts`."""

SIDES = ("student", "teacher")

MAX_LINKS = 1 << 26
MAX_SURFACE_BYTES = 1 << 28
MAX_METADATA_BYTES = 1 << 22
MAX_TOTAL_BYTES = 1 << 30
"""Sixteen times the largest vocabularies of 2026: a size beyond these is damage or malice."""

MAX_HEADER_BYTES = 1 << 12
"""More than any header of a `.npy` member: numpy writes 128 bytes."""


@dataclass(frozen=True, slots=True)
class Member:
    """One array of the file: its name, little-endian dtype, rank, and the most elements it may have."""

    name: str
    dtype: str
    rank: int
    limit: int


ARRAYS = (
    Member("format", "|S3", 0, 1),
    Member("shape", "<i8", 1, 2),
    Member("data", "<f4", 1, MAX_LINKS),
    Member("indices", "<i4", 1, MAX_LINKS),
    Member("indptr", "<i4", 1, MAX_IDS + 1),
    Member("position", "|u1", 1, MAX_LINKS),
    Member("rule", "|u1", 1, MAX_LINKS),
    *(
        Member(f"{side}_{name}", dtype, 1, limit)
        for side in SIDES
        for name, dtype, limit in (
            ("kind", "|u1", MAX_IDS),
            ("surface_bytes", "|u1", MAX_SURFACE_BYTES),
            ("surface_lengths", "<i4", MAX_IDS),
            ("piece_lengths", "<i4", MAX_IDS),
            ("piece_ids", "<i4", MAX_LINKS),
            ("lossy", "<i4", MAX_IDS),
        )
    ),
)
"""Every array, under scipy's names where `scipy.sparse.load_npz` reads them."""

METADATA = Member("metadata", "|u1", 1, MAX_METADATA_BYTES)
_MEMBERS = {f"{member.name}.npy": member for member in (*ARRAYS, METADATA)}
"""Every member of the zip file by its name there."""


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
        array = arrays[member.name]
        if not isinstance(array, np.ndarray):
            raise damaged(member.name, "an array", f"a value of type {type(array).__name__}")
        # Byte order aside: a machine with big-endian numbers has the same arrays, and writes them little-endian.
        if array.dtype.newbyteorder("<") != np.dtype(member.dtype) or array.ndim != member.rank:
            expected = f"{np.dtype(member.dtype)} of rank {member.rank}"
            raise damaged(member.name, expected, f"{array.dtype} of rank {array.ndim}")
        if array.size > member.limit:
            raise damaged(member.name, f"at most {member.limit:,} elements", f"{array.size:,}")


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


# The content hash.

UNHASHED_KEYS = frozenset({"content_hash", "created", "notes", "package_version", "provenance"})
"""Metadata that says where, when and by what a mapping was made; all other keys decide what it is, and are hashed."""

UNHASHED_SIDE_KEYS = frozenset({"name", "parts", "revision", "source"})
"""The same within `student` and `teacher`: two copies of one tokenizer under two names, or in two formats, make one
mapping. What of the parts decides it is in the fingerprint."""

MAX_NESTING = 16
"""Levels of lists and objects in metadata, of which a mapping has six: thousands would exhaust a reader's stack."""


def canonical_json(value: object) -> bytes:
    """Writes a JSON value as the one text it has: keys sorted, no spaces, UTF-8.

    >>> canonical_json({"b": (1, 2.5), "a": "x"})
    b'{"a":"x","b":[1,2.5]}'

    Args:
        value: strings, finite numbers, booleans, None, and lists and dicts of them.

    Returns:
        The UTF-8 bytes.

    Raises:
        ArtifactError: the value has no such text (NaN, an infinity, a lone surrogate, an object of another type), or
            is nested more than `MAX_NESTING` levels deep.
    """
    try:
        # Read back once: as numbers the keys 2 and 10 sort one way, as the strings that a file holds the other way.
        plain = json.loads(json.dumps(value, allow_nan=False))
        _check_nesting(plain)
        text = json.dumps(plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"metadata: expected what JSON in UTF-8 can hold, found {error}; replace the value"
        ) from error


def _check_nesting(value: object) -> None:
    # Level by level, not by recursion, which deep nesting would break: [[1], {"a": [2]}] has one list on the first
    # level, a list and an object on the second, a list on the third.
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_NESTING):
        children = [parent.values() if isinstance(parent, dict) else parent for parent in level]
        level = [child for group in children for child in group if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(f"more than {MAX_NESTING} levels of lists and objects")


def content_hash(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, object]) -> str:
    """Computes the SHA-256 of a mapping's arrays and of the metadata that decides them.

    For each array, in the order of their names, the digest takes the name, the dtype, the shape and the elements as
    little-endian bytes in C order; then the canonical JSON of the metadata without `UNHASHED_KEYS`, its two sides
    without `UNHASHED_SIDE_KEYS`. Equal inputs have equal hashes on every machine.

    Args:
        arrays: the file's arrays by member name, of plain (not object) dtypes.
        metadata: the file's metadata.

    Returns:
        64 hexadecimal digits.

    Raises:
        ArtifactError: the metadata is nothing that JSON can hold.
    """
    # One array of three uint8 1 2 3 named `rule` gives: ["rule","|u1",[3]], a newline, and the bytes 01 02 03.
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        # The dtype and the shape fix the number of bytes that follow, so no two sets of arrays share one stream.
        digest.update(canonical_json([name, little.dtype.str, list(array.shape)]) + b"\n")
        digest.update(little.reshape(-1).view(np.uint8).data)
    hashed = {key: value for key, value in metadata.items() if key not in UNHASHED_KEYS}
    for side in SIDES:
        facts = hashed.get(side)
        if isinstance(facts, Mapping):
            hashed[side] = {key: value for key, value in facts.items() if key not in UNHASHED_SIDE_KEYS}
    digest.update(canonical_json(hashed))
    return digest.hexdigest()


# Writing. Everything that zipfile would take from the clock or from the machine is fixed.

_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_PERMISSIONS = 0o644 << 16

COMPRESSION_LEVEL = 2
"""Measured on Llama-3 x Qwen3 (7.0 MB of arrays): level 1 gives 2.21 MB in 0.10 s, 2 gives 2.16 MB in 0.11 s, 4 gives
2.07 MB in 0.19 s, 6 gives 2.01 MB in 0.43 s, 9 gives 1.98 MB in 2.3 s. Writing is part of every build."""

_SEAL_LABEL = b"xtoken-align sha256 "
_SEAL_DIGITS = 64
SEAL_BYTES = len(_SEAL_LABEL) + _SEAL_DIGITS


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
    text = canonical_json(metadata)
    if len(text) > METADATA.limit:
        raise damaged(METADATA.name, f"at most {METADATA.limit:,} bytes of JSON", f"{len(text):,}")
    check_arrays(arrays)
    stored: dict[str, NDArray[Any]] = {**arrays, METADATA.name: np.frombuffer(text, dtype=np.uint8)}
    buffer = io.BytesIO()
    total = 0
    with zipfile.ZipFile(buffer, "w") as archive:
        for file_name, member in sorted(_MEMBERS.items()):
            stream = io.BytesIO()
            np.save(stream, np.asarray(stored[member.name], dtype=member.dtype, order="C"), allow_pickle=False)
            total += stream.tell()
            if total > MAX_TOTAL_BYTES:
                raise damaged("arrays", f"at most {MAX_TOTAL_BYTES:,} bytes together", "more")
            # A fixed time, system and permission, so that equal mappings are equal files on every machine.
            info = zipfile.ZipInfo(file_name, _TIMESTAMP)
            info.create_system = _UNIX
            info.external_attr = _PERMISSIONS
            archive.writestr(info, stream.getvalue(), zipfile.ZIP_DEFLATED, COMPRESSION_LEVEL)
        archive.comment = _SEAL_LABEL + b"0" * _SEAL_DIGITS
    unsealed = buffer.getvalue()[:-_SEAL_DIGITS]
    write_atomically(path, unsealed + hashlib.sha256(unsealed).hexdigest().encode(), overwrite=overwrite)


# Reading.

UNFOLDS_FREELY = 1 << 26
MAX_EXPANSION = 10
"""A file may unfold into 64 MiB, or into ten times its own size where that is more; real mappings unfold into 3.4 times
theirs, 27 MB at most. Deflate reaches 1,030, by which a file of one megabyte would fill the whole of `MAX_TOTAL_BYTES`;
and comparing two mappings needs some seven times what both unfold into."""

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


@dataclass(frozen=True, slots=True)
class _Opened:
    """An open mapping file: its zip archive, the directory's entries by member name, its size and whether it is sealed.

    What numpy has written again has no seal, and its content hash still speaks for it.
    """

    file: IO[bytes]
    archive: zipfile.ZipFile
    infos: Mapping[str, zipfile.ZipInfo]
    size: int
    sealed: bool


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
    with _opened(path) as opened:
        # The metadata comes first: a newer schema may have other members, and its users need to hear "upgrade".
        metadata = _metadata(opened)
        for missing in sorted(_MEMBERS.keys() - opened.infos.keys()):
            raise damaged(missing, "this member", "none")
        for unknown in sorted(opened.infos.keys() - _MEMBERS.keys()):
            raise damaged(f"{unknown!r:.60}", "no member of this name", "one")
        for file_name in _MEMBERS:
            _check_info(opened, file_name)
        # Sizes as the directory states them; a member that inflates into more than its stated size is refused as
        # damaged.
        total = sum(info.file_size for info in opened.infos.values())
        allowed = min(MAX_TOTAL_BYTES, max(UNFOLDS_FREELY, MAX_EXPANSION * opened.size))
        if total > allowed:
            expected = f"a file of {opened.size:,} bytes to unfold into {allowed:,} at most"
            raise damaged("zip directory", expected, f"{total:,}")
        arrays = {member.name: _read_member(opened, f"{member.name}.npy") for member in ARRAYS}
        # The seal comes last: whoever has a damaged file should hear first which member is damaged.
        if opened.sealed and not _seal_fits(opened):
            raise damaged("seal", "the digest of this file's bytes", "another: a byte that no array needs has changed")
    return arrays, metadata


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
    with _opened(path) as opened:
        return _metadata(opened)


@contextmanager
def _opened(path: Path) -> Iterator[_Opened]:
    """Opens a mapping file; errors about its contents, here and in the block, name the file."""
    try:
        # Opening a named pipe would wait for a writer.
        if path.exists() and not path.is_file():
            raise StoreError(f"expected a mapping file at {path}, found something else: name the .npz file itself")
        file = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL or outside the file system's encoding
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"cannot read the mapping file {path} ({reason}): check the path") from error
    with file:
        try:
            try:
                size, sealed = _check_end(file)
                archive = zipfile.ZipFile(file)
            except _ZIP_DAMAGE as error:
                raise damaged("zip directory", "the directory of a zip file", f"damage ({error})") from error
            with archive:
                infos: dict[str, zipfile.ZipInfo] = {}
                for info in archive.infolist():
                    # The name as it stands in the file: zipfile cuts `filename` at a NUL.
                    if info.orig_filename in infos:
                        raise damaged(f"{info.orig_filename!r:.60}", "one member of this name", "two")
                    infos[info.orig_filename] = info
                yield _Opened(file, archive, infos, size, sealed)
        except ArtifactError as error:
            foreign = _foreign(file)
            sentence = str(error) if foreign is None else f"expected a mapping file, found {foreign}"
            raise ArtifactError(f"{path}: {sentence}") from error


def _foreign(file: IO[bytes]) -> str | None:
    """What a file is in which another program may keep a mapping, by its first bytes; None for anything else."""
    file.seek(0)
    head = file.read(1 << 12)
    # A file of torch.save is a zip file, too, and begins with the member that says what is in it.
    if head.startswith(_FIRST_RECORD) and b"/data.pkl" in head[:256]:
        table = b"likelihoods" in head and b"indices" in head
        if table:
            return "NeMo-RL's projection matrix: `xtoken-align import` reads it"
        return "a file of torch.save: if it is NeMo-RL's projection matrix, `xtoken-align import` reads it"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 24:
        return "a safetensors file: if it holds a mapping, `xtoken-align import` reads it"
    return None


def _check_end(file: IO[bytes]) -> tuple[int, bool]:
    """Checks the last record, so that zipfile never reads a directory larger than 21 members need.

    Returns:
        The file's size, and whether it ends in a seal, right or wrong.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - SEAL_BYTES, 0))
    sealed = size >= SEAL_BYTES and file.read(len(_SEAL_LABEL)) == _SEAL_LABEL
    comment_size = SEAL_BYTES if sealed else 0
    if size < _LOCATOR_BYTES + _END_RECORD.size + comment_size:
        raise damaged("zip directory", "a zip file", f"{size} bytes")
    # zipfile also takes archives with other bytes before them, such as programs that unpack themselves.
    file.seek(0)
    if file.read(len(_FIRST_RECORD)) != _FIRST_RECORD:
        raise damaged("zip directory", "a mapping's file (.npz)", "a file of another kind")
    file.seek(size - _LOCATOR_BYTES - _END_RECORD.size - comment_size)
    locator, record = file.read(_LOCATOR_BYTES), file.read(_END_RECORD.size)
    signature, *_, directory_size, _, stated_comment_size = _END_RECORD.unpack(record)
    if signature != _END_SIGNATURE or stated_comment_size != comment_size:
        raise damaged("zip directory", "the file's last bytes to end a zip file", "others: it is cut off or has grown")
    # A locator stands there in ZIP64 files alone, whose directory may be larger than these fields can say.
    if directory_size > _MAX_DIRECTORY_BYTES or locator.startswith(_LOCATOR_SIGNATURE):
        raise damaged("zip directory", f"one of at most {_MAX_DIRECTORY_BYTES:,} bytes", "a larger one")
    return size, sealed


def _seal_fits(opened: _Opened) -> bool:
    """Whether the seal is the digest of all bytes before its digits."""
    digest = hashlib.sha256()
    opened.file.seek(0)
    left = opened.size - _SEAL_DIGITS
    while left > 0:
        chunk = opened.file.read(min(_CHUNK_BYTES, left))
        if not chunk:
            return False
        digest.update(chunk)
        left -= len(chunk)
    return opened.file.read(_SEAL_DIGITS) == digest.hexdigest().encode()


def _metadata(opened: _Opened) -> dict[str, object]:
    file_name = f"{METADATA.name}.npy"
    if file_name not in opened.infos:
        raise damaged(file_name, "this member", "none: the file is no mapping of xtoken-align")
    _check_info(opened, file_name)
    text = _read_member(opened, file_name)
    try:
        metadata = json.loads(text.tobytes().decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise damaged(METADATA.name, "JSON in UTF-8", f"other bytes ({error})") from error
    if not isinstance(metadata, dict):
        raise damaged(METADATA.name, "a JSON object", f"a value of type {type(metadata).__name__}")
    canonical_json(metadata)  # for what it refuses: infinities, lone surrogates, deep nesting
    check_schema(metadata)
    return metadata


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuses a key that stands twice: a reader that keeps the first value would see another mapping than this one."""
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("an object has one key twice")
    return unique


def _check_info(opened: _Opened, name: str) -> None:
    """Checks what the directory says of a member against the table and the file's size."""
    member, info = _MEMBERS[name], opened.infos[name]
    limit = MAX_HEADER_BYTES + member.limit * np.dtype(member.dtype).itemsize
    if info.flag_bits & _ENCRYPTED_OR_PATCHED:
        raise damaged(name, "a plain member", "an encrypted or patched one")
    if info.compress_type not in _METHODS:
        raise damaged(name, "a stored or deflated member", f"compression method {info.compress_type}")
    if not 0 <= info.header_offset <= info.header_offset + info.compress_size <= opened.size:
        raise damaged(name, "a member inside the file", "one that reaches beyond its end")
    if info.file_size > limit:
        raise damaged(name, f"at most {limit:,} bytes", f"{info.file_size:,}")
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        raise damaged(name, "a stored member to have one size", "two sizes")


def _read_member(opened: _Opened, name: str) -> NDArray[Any]:
    """Inflates a member into its array, chunk by chunk; its last byte makes zipfile compare the checksum."""
    member, info = _MEMBERS[name], opened.infos[name]
    try:
        with opened.archive.open(info) as stream:
            header_bytes, count = _read_header(stream, name)
            data_bytes = count * np.dtype(member.dtype).itemsize
            if header_bytes + data_bytes != info.file_size:
                raise damaged(name, f"{header_bytes + data_bytes:,} bytes for its shape", info.file_size)
            data = np.empty(data_bytes, dtype=np.uint8)
            done = 0
            while done < data_bytes:
                chunk = stream.read(min(_CHUNK_BYTES, data_bytes - done))
                if not chunk:
                    raise damaged(name, f"{data_bytes:,} bytes of elements", f"{done:,}")
                data[done : done + len(chunk)] = np.frombuffer(chunk, dtype=np.uint8)
                done += len(chunk)
    except _ZIP_DAMAGE as error:
        raise damaged(name, "an intact member", f"damage ({error})") from error
    array = data.view(member.dtype)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return native if member.rank else native.reshape(())


def _read_header(stream: IO[bytes], name: str) -> tuple[int, int]:
    """Returns the header's size in bytes and the number of elements, having checked dtype, order and rank."""
    member = _MEMBERS[name]
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
