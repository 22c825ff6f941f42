"""The file of a shard: its columns, its metadata, and writing it whole.

A shard is a Parquet file that other tools read too. A row has `row` (its place in the corpus), `key`, `ids` (T,),
`top_ids` (T * K,) and `log_probs` (T * K,), position after position, `rest` (T,), and `digest`, SHA-256 over the four.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingExtraError
from ...files import write_atomically
from .rows import KEY_BYTES, key_of
from .run import CachedRow
from .settings import SCHEMA, CacheSettings, shard_name

METADATA_KEY = b"xtoken_align.teacher_cache"

ROWS_PER_GROUP = 8
"""Rows that are decoded together when one of them is read."""

_SPLIT = ("ids", "top_ids", "log_probs", "rest")
"""Columns whose first, second, ... bytes are kept together: the upper bytes of ids and logarithms hardly vary. At
K = 64 and 152k tokens that takes 172 bytes per position where zstd alone takes 222 and bare numbers 392."""


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What a shard says of itself.

    Attributes:
        shard: its number.
        rows: its first row, and the first row after it.
        keys: SHA-256 over the keys of its rows.
        sha256: SHA-256 over the digests of its rows.
        positions: how many positions it has.
        rest_sum: the sum of their rest masses.
        rest_max: the largest.
    """

    shard: int
    rows: tuple[int, int]
    keys: str
    sha256: str
    positions: int
    rest_sum: float
    rest_max: float


def pyarrow() -> Any:
    """The module `pyarrow`, with `pyarrow.parquet` in it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("A teacher cache", "train") from error
    return pa


def digest_of(columns: Iterable[NDArray[Any]]) -> bytes:
    """SHA-256 over the bytes of a row's columns."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(np.ascontiguousarray(column).data)
    return digest.digest()


def hash_of(parts: Iterable[bytes]) -> str:
    """SHA-256 over some bytes one after another, as 64 hexadecimal digits."""
    return hashlib.sha256(b"".join(parts)).hexdigest()


def write_shard(folder: Path, shard: int, settings: CacheSettings, rows: Iterable[CachedRow]) -> ShardFacts:
    """Writes a shard, which appears complete or not at all. Equal rows give equal bytes under one pyarrow.

    Args:
        folder: the cache's folder.
        shard: its number.
        settings: the cache's settings.
        rows: what the teacher said of its rows, in order; some are held at a time.

    Raises:
        StoreError: the file cannot be written.
        MissingExtraError: pyarrow is not installed.
    """
    pa = pyarrow()
    sink, span, made = pa.BufferOutputStream(), settings.span(shard), _Running()
    schema = _schema(pa, settings)
    with pa.parquet.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        column_encoding={_leaf(name): "BYTE_STREAM_SPLIT" for name in _SPLIT},
        write_statistics=False,
        store_schema=False,
    ) as writer:
        numbered = zip(span, rows, strict=True)
        while group := list(islice(numbered, ROWS_PER_GROUP)):
            writer.write_table(_table(pa, schema, settings, group, made))
        facts = made.facts(shard, span)
        content = {"schema": SCHEMA, "settings": asdict(settings), **asdict(facts)}
        writer.add_key_value_metadata({METADATA_KEY.decode(): json.dumps(content)})
    write_atomically(folder / shard_name(shard), sink.getvalue())
    return facts


def _leaf(name: str) -> str:
    return f"{name}.list.element"


def _schema(pa: Any, settings: CacheSettings) -> Any:
    values = pa.float16() if settings.dtype == "float16" else pa.float32()
    lists = {"ids": pa.int32(), "top_ids": pa.int32(), "log_probs": values, "rest": pa.float32()}
    fields = [pa.field("row", pa.int64()), pa.field("key", pa.binary(KEY_BYTES))]
    fields += [pa.field(name, pa.large_list(pa.field("element", kind))) for name, kind in lists.items()]
    return pa.schema([*fields, pa.field("digest", pa.binary(hashlib.sha256().digest_size))])


def _table(
    pa: Any, schema: Any, settings: CacheSettings, group: Sequence[tuple[int, CachedRow]], made: _Running
) -> Any:
    kept = [
        (row.ids.astype("<i4"), row.top_ids.astype("<i4"), row.log_probs.astype(settings.stored), row.rest)
        for _, row in group
    ]
    keys, digests = [key_of(row.ids) for _, row in group], [digest_of(columns) for columns in kept]
    made.add(keys, digests, [row.rest for _, row in group])
    arrays = [pa.array([number for number, _ in group], pa.int64()), pa.array(keys, pa.binary(KEY_BYTES))]
    for place, name in enumerate(_SPLIT):
        flat = [columns[place].reshape(-1) for columns in kept]
        offsets = np.cumsum([0, *map(len, flat)], dtype=np.int64)
        arrays.append(pa.LargeListArray.from_arrays(offsets, np.concatenate(flat), type=schema.field(name).type))
    return pa.table([*arrays, pa.array(digests, schema.field("digest").type)], schema=schema)


class _Running:
    """What a shard's metadata says of rows that are written already."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._digests: list[bytes] = []
        self._positions, self._sum, self._max = 0, 0.0, 0.0

    def add(self, keys: Sequence[bytes], digests: Sequence[bytes], rests: Sequence[NDArray[np.float32]]) -> None:
        self._keys += keys
        self._digests += digests
        for rest in rests:
            self._positions += len(rest)
            self._sum += float(rest.sum(dtype=np.float64))
            self._max = max(self._max, float(rest.max(initial=0.0)))

    def facts(self, shard: int, span: range) -> ShardFacts:
        return ShardFacts(
            shard=shard,
            rows=(span.start, span.stop),
            keys=hash_of(self._keys),
            sha256=hash_of(self._digests),
            positions=self._positions,
            rest_sum=self._sum,
            rest_max=self._max,
        )
