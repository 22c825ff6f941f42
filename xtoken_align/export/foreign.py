"""Files in which other programs keep a mapping: NeMo-RL's two, sparse tensors, and safetensors; nothing in them is run.

Whatever the form, the links come out as three arrays, with what the file says beside them. All that is wrong with a
file is said at once.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError, MissingExtraError, StoreError, refused
from ..limits import MAX_IDS, MAX_PICKLE_BYTES, MAX_PLACES, MAX_PROJECTION_BYTES, MAX_TENSOR_PICKLE_BYTES

_FORMS = (
    "a file of torch.save with `indices` and `likelihoods`, with a dict of (student id, teacher id) pairs, or with one "
    "sparse tensor, or a safetensors file with `indices` and `likelihoods`, or with `indptr`, `indices` and `data`"
)


@dataclass(frozen=True, eq=False, kw_only=True)
class ForeignLinks:
    """The links of another program's file, as they stand there.

    Attributes:
        name: the file's name.
        sha256: of its bytes.
        form: what it is, in words.
        rows: int64 (links,), student ids. Links of weight 0 and places that -1 fills are left out.
        columns: int64 (links,), teacher ids.
        weights: float64 (links,).
        last: bool (links,), those that stand in the last column of a table.
        shape: rows and columns of W as the file states them; None where it does not.
        filled: how many places -1 fills.
        filled_with_weight: how many of these have a weight all the same, which NeMo-RL drops.
        zeros: how many places name a teacher token and have weight 0.
        scale_trick: whether the file says that it was made with the scale trick; None where it says nothing.
        sides: the names of the student and the teacher, where the file has them.
    """

    name: str = ""
    sha256: str = ""
    form: str
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    weights: NDArray[np.float64]
    last: NDArray[np.bool_]
    shape: tuple[int | None, int | None]
    filled: int = 0
    filled_with_weight: int = 0
    zeros: int = 0
    scale_trick: bool | None = None
    sides: tuple[str | None, str | None] = (None, None)


def read_foreign(path: Path) -> ForeignLinks:
    """Reads a file that another program keeps a mapping in. Nothing that stands in it is run.

    Raises:
        StoreError: it cannot be read.
        ArtifactError: it is no such file, too large, or its arrays are no mapping; all reasons are named.
        MissingExtraError: torch or safetensors is not installed.
    """
    data = _read(path)
    try:
        links = _of_torch(data) if data.startswith(b"PK\x03\x04") else _of_safetensors(data)
        return replace(links, name=path.name, sha256=hashlib.sha256(data).hexdigest())
    except ArtifactError as error:
        raise ArtifactError(f"{path.name}: {error}") from error


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise StoreError(f"expected a file at {path}, found something else: name the file itself")
        with path.open("rb") as stream:
            data = stream.read(MAX_PROJECTION_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"cannot read {path} ({reason}): check the path") from error
    if len(data) > MAX_PROJECTION_BYTES:
        raise ArtifactError(f"{path.name} has more than {MAX_PROJECTION_BYTES:,} bytes: no mapping is that large")
    return data


# Files of torch.save: a zip file whose member `data.pkl` is a pickle, with the elements of tensors in other members.

_END_RECORD = struct.Struct("<4s4H2LH")
_MAX_DIRECTORY_BYTES = 1 << 16


def _of_torch(data: bytes) -> ForeignLinks:
    if b".npy" in data[:256]:
        raise ArtifactError("expected another program's file, found an .npz: a mapping file needs no import")
    pickled = _data_pkl(data)
    pairs = _pairs_in(pickled)
    if pairs is not None:
        rows, columns, weights = pairs
        last = np.zeros(len(rows), dtype=np.bool_)
        _raise_all(_wrong_links(rows, columns, weights))
        form = f"NeMo-RL's dict of {len(rows):,} pairs"
        return ForeignLinks(form=form, rows=rows, columns=columns, weights=weights, last=last, shape=(None, None))
    _check_pickle(pickled)
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("A file of PyTorch", "torch") from error
    with (
        refused("expected tensors, numbers and names alone, and nothing else is loaded", ArtifactError),
        warnings.catch_warnings(),
    ):
        # PyTorch calls its CSR tensors a beta, once in every process.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        # Whatever stands in the pickle beside tensors and plain values is refused, not run.
        contents = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if isinstance(contents, torch.Tensor) and contents.layout in (torch.sparse_coo, torch.sparse_csr):
        return _of_sparse(contents)
    if not isinstance(contents, dict) or not {"indices", "likelihoods"} <= contents.keys():
        what = f"the keys {', '.join(map(repr, contents))}" if isinstance(contents, dict) else type(contents).__name__
        raise ArtifactError(f"expected {_FORMS}; found {what:.200}")
    arrays = {name: _as_array(contents[name], name) for name in ("indices", "likelihoods")}
    trick = contents.get("enable_scale_trick")
    # `model_A_id` and `model_B_id` are what files of the first version of its scripts have.
    sides = (
        _name(contents.get("student_model_id", contents.get("model_A_id"))),
        _name(contents.get("teacher_model_id", contents.get("model_B_id"))),
    )
    dtype = str(contents["likelihoods"].dtype).removeprefix("torch.")
    return _of_table(arrays, dtype, trick if isinstance(trick, bool) else None, sides)


def _name(value: object) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _data_pkl(data: bytes) -> bytes:
    """The pickle of a file of torch.save, which stores every member as it is."""
    signature, *_, directory_bytes, _at, comment_bytes = _END_RECORD.unpack(data[-_END_RECORD.size :].rjust(22, b"\0"))
    if signature != b"PK\x05\x06" or comment_bytes or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise ArtifactError("expected the file's last bytes to end a small zip file: it is cut off or no such file")
    with refused("expected a file of torch.save", ArtifactError):
        archive = zipfile.ZipFile(io.BytesIO(data))
        members = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
        packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        if len(members) != 1 or packed or sum(info.file_size for info in archive.infolist()) > len(data):
            raise ValueError("a zip file with one data.pkl and every member stored as it is")
        if members[0].file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"its data.pkl has more than {MAX_PICKLE_BYTES:,} bytes")
        return archive.read(members[0])


# A dict of pairs is not unpickled: the pickle of one is a regular language, in which this finds the numbers. One byte
# K, two M and four J hold a whole number; \x86 makes a pair of two; q and r name it; G is a float of eight bytes.
# {(7, 2): 1.0, (300, 5): 0.5} is    } q0 (  K7 K2 \x86 q1 G 1.0   M300 K5 \x86 q2 G 0.5  u .
# Pairs come in batches ( ... u of a thousand; after a whole number of batches comes an empty one.
_WHOLE = rb"(?:K.|M..|J.{4})"
_VALUE = rb"(?:G.{8}|K.|M..|J.{4})"
_NAME = rb"\x86(?:q.|r.{4})"
_PAIR = _WHOLE + _WHOLE + _NAME + _VALUE
_DICT_OF_PAIRS = re.compile(rb"\x80\x02\}q\x00(?:\((?:" + _PAIR + rb")*+u|" + _PAIR + rb"s)*+\.", re.DOTALL)
_PARTS = re.compile(rb"(" + _WHOLE + rb")(" + _WHOLE + rb")" + _NAME + rb"(" + _VALUE + rb")", re.DOTALL)


def _pairs_in(pickled: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]] | None:
    """The pairs of a pickled dict and their weights; None where the pickle is anything else."""
    if not _DICT_OF_PAIRS.fullmatch(pickled):
        return None
    found = _PARTS.findall(pickled)
    rows = np.fromiter((_number(part) for part, _, _ in found), dtype=np.int64, count=len(found))
    columns = np.fromiter((_number(part) for _, part, _ in found), dtype=np.int64, count=len(found))
    weights = np.fromiter((_number(part) for _, _, part in found), dtype=np.float64, count=len(found))
    return rows, columns, weights


_FLOAT = struct.Struct(">d")


def _number(part: bytes) -> float:
    if part[:1] == b"G":
        value: float = _FLOAT.unpack(part[1:])[0]
        return value
    return int.from_bytes(part[1:], "little", signed=part[:1] == b"J")


def _check_pickle(pickled: bytes) -> None:
    """Refuses pickles that are too large for a table's, or that use one tuple twice.

    A tuple of two equal tuples, each of two equal ones, and so on forty times, takes years to be a dict's key.
    """
    if len(pickled) > MAX_TENSOR_PICKLE_BYTES:
        raise ArtifactError(f"expected {_FORMS}; found a pickle of {len(pickled):,} bytes that is neither")
    with refused("expected a pickle that torch.save writes", ArtifactError):
        tuples: set[object] = set()
        before = ""
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in ("BINPUT", "LONG_BINPUT") and before in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
                tuples.add(argument)
            if opcode.name in ("DUP", "MEMOIZE", "PUT", "GET") or (opcode.name.endswith("GET") and argument in tuples):
                raise ValueError("one that names a value twice")
            before = opcode.name


def _of_sparse(tensor: Any) -> ForeignLinks:
    """The links of one sparse tensor, CSR or COO, as `export --format torch` writes it."""
    import torch

    is_csr = tensor.layout == torch.sparse_csr
    # Not added up, and not trusted: torch.load takes what stands in the file.
    values = tensor.values() if is_csr else tensor._values()  # noqa: SLF001 - the public one adds up what stands twice
    ids = tensor.col_indices()[None] if is_csr else tensor._indices()  # noqa: SLF001
    if tensor.dim() != 2 or values.dim() != 1 or not values.is_floating_point():
        raise ArtifactError(
            f"expected a sparse tensor of two dimensions with a float for each link, found {values.dtype} of the shape "
            f"{tuple(tensor.shape)!r:.60}"
        )
    height, width = tensor.shape
    if max(height, width) > MAX_IDS or values.numel() > MAX_PLACES or ids.shape[1:] != values.shape:
        raise ArtifactError(
            f"expected at most {MAX_IDS:,} ids of a side and {MAX_PLACES:,} links, each with its ids, found "
            f"{height:,} x {width:,} with {values.numel():,} weights and ids of {ids.shape[-1]:,}"
        )
    parts = (tensor.crow_indices(), ids[0]) if is_csr else ids.unbind()
    first, columns = (part.numpy() for part in parts)
    if is_csr:
        arrays = {"indptr": first, "indices": columns, "data": values.detach().double().numpy()}
        links = _of_csr({**arrays, "shape": np.array([height, width])}, {})
        return replace(links, form=f"PyTorch's sparse tensor of {height:,} x {width:,}, CSR")
    form = f"PyTorch's sparse tensor of {height:,} x {width:,}, COO"
    return _links_of(form, first, columns, values.detach().double().numpy(), shape=(height, width))


def _as_array(tensor: Any, name: str) -> NDArray[Any]:
    """A dense tensor as an array; its size is looked at before it is copied, since strides of 0 repeat one element."""
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
        raise ArtifactError(f"{name}: expected a dense tensor, found {type(tensor).__name__}")
    _check_table_size(name, tuple(tensor.shape))
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    array: NDArray[Any] = tensor.detach().resolve_conj().numpy()
    return array


def _check_table_size(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 2 and (shape[0] > MAX_IDS or shape[0] * shape[1] > MAX_PLACES):
        raise ArtifactError(
            f"{name}: expected at most {MAX_IDS:,} rows and {MAX_PLACES:,} places, found {shape[0]:,} x {shape[1]:,}"
        )
    if len(shape) != 2:
        raise ArtifactError(f"{name}: expected a table of rank 2, found the shape {shape!r:.60}")


def _of_table(
    arrays: Mapping[str, NDArray[Any]],
    dtype: str,
    scale_trick: bool | None,
    sides: tuple[str | None, str | None],
) -> ForeignLinks:
    """The links of a table: row i holds the teacher ids of student token i and their weights, -1 fills the rest."""
    indices, likelihoods = arrays["indices"], arrays["likelihoods"]
    wrong = []
    if indices.dtype.kind not in "iu":
        wrong.append(f"indices: expected whole numbers, found {indices.dtype}")
    if likelihoods.dtype.kind != "f":
        wrong.append(f"likelihoods: expected floats, found {likelihoods.dtype}")
    if indices.shape != likelihoods.shape:
        wrong.append(f"expected indices and likelihoods of one shape, found {indices.shape} and {likelihoods.shape}")
    _raise_all(wrong)
    indices, likelihoods = indices.reshape(-1), likelihoods.reshape(-1)
    height, width = arrays["indices"].shape
    named, weighted = indices != -1, likelihoods != 0
    # In a table of three columns, place 5 is in row 1 and in the last column.
    places = np.flatnonzero(named & weighted)
    rows, columns, weights = (
        places // max(width, 1),
        indices[places].astype(np.int64),
        likelihoods[places].astype(float),
    )
    _raise_all(_wrong_links(rows, columns, weights))
    return ForeignLinks(
        form=f"NeMo-RL's table of {height:,} x {width:,}, {dtype}",
        rows=rows,
        columns=columns,
        weights=weights,
        last=(places % max(width, 1) == width - 1) & (width > 1),
        shape=(height, None),
        filled=int((~named).sum()),
        filled_with_weight=int((~named & weighted).sum()),
        zeros=int((named & ~weighted).sum()),
        scale_trick=scale_trick,
        sides=sides,
    )


# Safetensors: eight bytes with the length of a JSON header, the header, and the elements of all arrays.

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "|u1"}
_MAX_HEADER_BYTES = 1 << 24


def _of_safetensors(data: bytes) -> ForeignLinks:
    header_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 10 or data[8:9] != b"{" or header_bytes > min(len(data) - 8, _MAX_HEADER_BYTES):
        raise ArtifactError(f"expected {_FORMS}; found something else")
    try:
        from safetensors import deserialize
    except ImportError as error:
        raise MissingExtraError("A safetensors file", "export") from error
    with refused("expected a safetensors file", ArtifactError):
        stored: dict[str, Any] = dict(deserialize(data))  # type: ignore[no-untyped-call]
        metadata = json.loads(data[8 : 8 + header_bytes]).get("__metadata__") or {}
    if {"indices", "likelihoods"} <= stored.keys():
        for name in ("indices", "likelihoods"):
            _check_table_size(name, tuple(stored[name]["shape"]))
        arrays = {name: _stored_array(stored, name) for name in ("indices", "likelihoods")}
        trick = {"true": True, "false": False}.get(str(metadata.get("enable_scale_trick")).lower())
        sides = _name(metadata.get("student_model_id")), _name(metadata.get("teacher_model_id"))
        return _of_table(arrays, str(stored["likelihoods"]["dtype"]), trick, sides)
    if {"indptr", "indices", "data"} <= stored.keys():
        return _of_csr({name: _stored_array(stored, name) for name in stored}, metadata)
    raise ArtifactError(f"expected {_FORMS}; found the arrays {', '.join(stored) or 'of no name':.200}")


def _stored_array(stored: Mapping[str, Any], name: str) -> NDArray[Any]:
    dtype, shape, data = (stored[name][key] for key in ("dtype", "shape", "data"))
    if dtype == "BF16":
        # The upper half of a float32.
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if dtype not in _DTYPES:
        raise ArtifactError(f"{name}: expected one of {', '.join(_DTYPES)}, BF16, found {dtype}")
    return np.frombuffer(data, dtype=_DTYPES[dtype]).reshape(shape)


def _of_csr(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> ForeignLinks:
    indptr, indices, weights = (arrays[name] for name in ("indptr", "indices", "data"))
    wrong = [
        f"{name}: expected {words} of rank 1, found {arrays[name].dtype} of rank {arrays[name].ndim}"
        for name, kinds, words in (("indptr", "iu", "whole numbers"), ("indices", "iu", "whole numbers"),
                                   ("data", "f", "floats"))
        if arrays[name].dtype.kind not in kinds or arrays[name].ndim != 1
    ]  # fmt: skip
    if indices.size != weights.size or indices.size > MAX_PLACES or indptr.size > MAX_IDS + 1:
        wrong.append(
            f"expected an id for each weight, {MAX_PLACES:,} of them at most, and at most {MAX_IDS:,} rows, found "
            f"{indices.size:,}, {weights.size:,} and {indptr.size - 1:,}"
        )
    _raise_all(wrong)
    if not indptr.size or indptr[0] != 0 or indptr[-1] != indices.size or np.any(indptr[1:] < indptr[:-1]):
        raise ArtifactError(f"indptr: expected row boundaries that rise from 0 to {indices.size:,}, found others")
    rows = np.repeat(np.arange(indptr.size - 1, dtype=np.int64), np.diff(indptr.astype(np.int64)))
    height, width = indptr.size - 1, None
    if "shape" in arrays and arrays["shape"].shape == (2,):
        height, width = (int(size) for size in arrays["shape"].tolist())
    links = _links_of(f"CSR arrays of {indptr.size - 1:,} rows", rows, indices, weights, shape=(height, width))
    return replace(links, sides=(_name(metadata.get("student")), _name(metadata.get("teacher"))))


def _links_of(
    form: str,
    rows: NDArray[np.integer[Any]],
    columns: NDArray[np.integer[Any]],
    weights: NDArray[np.floating[Any]],
    *,
    shape: tuple[int, int | None],
) -> ForeignLinks:
    """Links of which each names its row, column and weight; those of weight 0 are none, and are counted."""
    used = weights != 0
    ours, theirs, linked = rows[used].astype(np.int64), columns[used].astype(np.int64), weights[used].astype(np.float64)
    _raise_all(_wrong_links(ours, theirs, linked))
    return ForeignLinks(
        form=form,
        rows=ours,
        columns=theirs,
        weights=linked,
        last=np.zeros(len(ours), dtype=np.bool_),
        shape=shape,
        zeros=int((~used).sum()),
    )


def _wrong_links(rows: NDArray[np.int64], columns: NDArray[np.int64], weights: NDArray[np.float64]) -> list[str]:
    """What no reading of links could mend."""
    wrong = []
    if not len(rows):
        wrong.append("expected links, found none")
    for what, ids in (("student", rows), ("teacher", columns)):
        if count := int((ids < 0).sum()):
            lowest = int(ids.min())
            wrong.append(
                f"{count:,} of {len(ids):,} {what} ids are negative, such as {lowest}; only -1 may fill a table"
            )
    if count := int((~np.isfinite(weights)).sum()):
        wrong.append(f"{count:,} of {len(weights):,} weights are NaN or infinite")
    if count := int((weights < 0).sum()):
        wrong.append(f"{count:,} of {len(weights):,} weights are negative")
    return wrong


def _raise_all(wrong: list[str]) -> None:
    if wrong:
        raise ArtifactError("; ".join(wrong))
