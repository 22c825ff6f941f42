"""The header of a GGUF file: its metadata and its tensors' shapes, without the tensors.

Source of the layout: ggml, docs/gguf.md, versions 2 and 3. The `gguf` package's own reader makes several numpy arrays
per array element: on 262 thousand tokens with their merges it took 52 s and 1.5 GB where this takes half a second.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import SourceError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)

# Value types by their number in the file; 8 is a string, 9 an array.
_SCALARS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8", 12: "f8"}
_STRING = 8
_ARRAY = 9
_MOST_NESTED = 4
_MOST_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Attributes:
    metadata: key -> value; arrays of numbers are numpy arrays, arrays of strings lists, bytes that are no UTF-8 stay
        bytes.
    shapes: tensor name -> sizes in the file's order, the fastest-moving dimension first.
    """

    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def read_header(path: Path) -> GgufHeader:
    """Reads the header.

    Args:
        path: the file.

    Raises:
        SourceError: the file cannot be read, is no GGUF file, has a version that is not known, or is cut short.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise SourceError(f"{path.name} is no GGUF file: it does not begin with {MAGIC.decode()}")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(data, path.name).header()
    except OSError as error:
        raise SourceError(f"cannot read {path.name}: {error.strerror or error}") from error


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self._data = data
        self._name = name
        self._position = len(MAGIC)
        self._order = self._byte_order()
        self._length_at: Callable[[mmap.mmap, int], tuple[int]] = struct.Struct(f"{self._order}Q").unpack_from

    def _byte_order(self) -> Literal["<", ">"]:
        (version,) = struct.unpack("<I", self._take(4))
        # Versions are small: one with empty low bytes was written the other way round.
        order: Literal["<", ">"] = "<" if version & 0xFFFF else ">"
        version = version if order == "<" else version >> 24
        if version not in _VERSIONS:
            raise SourceError(f"{self._name} is GGUF version {version}: expected 2 or 3; convert the model again")
        return order

    def header(self) -> GgufHeader:
        tensors, pairs = self._number("u8"), self._number("u8")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._text()
            if key in metadata:
                raise SourceError(f"{self._name} has the key {key!r} twice: expected one value for it")
            metadata[key] = self._value(self._number("u4"), depth=0)
        return GgufHeader(metadata, dict(self._shape() for _ in range(tensors)))

    def _shape(self) -> tuple[str, tuple[int, ...]]:
        name = self._text()
        dimensions = self._number("u4")
        if dimensions > _MOST_DIMENSIONS:
            raise SourceError(f"tensor {name!r} of {self._name} has {dimensions} dimensions: the file is damaged")
        shape = tuple(self._number("u8") for _ in range(dimensions))
        self._take(4 + 8)  # the tensor's number type and offset
        return name, shape

    def _take(self, count: int) -> bytes:
        start, end = self._position, self._position + count
        if end > len(self._data):
            raise self._cut_short()
        self._position = end
        return self._data[start:end]

    def _cut_short(self) -> SourceError:
        return SourceError(f"{self._name} is cut short or damaged: its header runs past its end; fetch it again")

    def _number(self, code: str) -> int:
        return int(self._numbers(code, 1)[0])

    def _numbers(self, code: str, count: int) -> np.ndarray[Any, Any]:
        dtype = np.dtype(code).newbyteorder(self._order)
        return np.frombuffer(self._take(count * dtype.itemsize), dtype=dtype)

    def _text(self) -> str:
        text = self._strings(1)[0]
        if isinstance(text, bytes):
            raise SourceError(f"{self._name} has a name that is not UTF-8 ({text[:40]!r}): the file is damaged")
        return text

    def _strings(self, count: int) -> list[str | bytes]:
        data, position, size, length_at = self._data, self._position, len(self._data), self._length_at
        strings: list[str | bytes] = []
        for _ in range(count):
            start = position + 8
            if start > size:
                raise self._cut_short()
            position = start + length_at(data, position)[0]
            if position > size:
                raise self._cut_short()
            content = data[start:position]
            try:
                strings.append(content.decode())
            except UnicodeDecodeError:
                strings.append(content)
        self._position = position
        return strings

    def _value(self, kind: int, *, depth: int) -> Any:
        if kind == _STRING:
            return self._strings(1)[0]
        if kind in _SCALARS:
            return self._numbers(_SCALARS[kind], 1)[0].item()
        if kind != _ARRAY or depth == _MOST_NESTED:
            raise SourceError(f"{self._name} has a value of the unknown type {kind}: the file is damaged or too new")
        element, count = self._number("u4"), self._number("u8")
        if element == _STRING:
            return self._strings(count)
        if element in _SCALARS:
            return self._numbers(_SCALARS[element], count)
        return [self._value(element, depth=depth + 1) for _ in range(count)]
