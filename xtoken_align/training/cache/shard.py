"""Reading a shard: nothing of it is believed before it is checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, MismatchError, StoreError
from .rows import key_of
from .run import CachedRow
from .settings import SCHEMA, CacheSettings, differences, settings_of, shard_name
from .shard_file import METADATA_KEY, ShardFacts, digest_of, hash_of, pyarrow

_LISTS = ("ids", "top_ids", "log_probs", "rest")


class Shard:
    """A shard that is open: its metadata, keys and digests are checked now, each row when it is read.

    Args:
        folder: the cache's folder.
        shard: its number.
        settings: the cache's settings.

    Attributes:
        facts: what the shard says of itself.
        keys: the keys of its rows.

    Raises:
        StoreError: the shard is not there.
        ArtifactError: it is damaged.
        MismatchError: it belongs to another cache.
    """

    def __init__(self, folder: Path, shard: int, settings: CacheSettings) -> None:
        self.path = folder / shard_name(shard)
        self._settings = settings
        self._group: tuple[int, dict[str, list[NDArray[Any]]]] | None = None
        if not self.path.is_file():
            raise StoreError(f"{self.path} is missing: run the teacher again over the same rows, it will be added")
        with self._sound():
            # Not mapped into memory: a file that somebody cuts short would end the process.
            self._file = pyarrow().parquet.ParquetFile(self.path)
            self.facts = self._read_facts(shard)
            self.keys, self._digests = self._read_keys()
            rows = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
            self._begins = np.cumsum([0, *rows])

    def row(self, place: int) -> CachedRow:
        """The row at a place of the shard.

        Raises:
            ArtifactError: the row is damaged.
        """
        with self._sound():
            group = int(np.searchsorted(self._begins, place, side="right")) - 1
            if self._group is None or self._group[0] != group:
                self._group = group, self._read_group(group)
            columns = [self._group[1][name][place - int(self._begins[group])] for name in _LISTS]
            if digest_of(columns) != self._digests[place] or key_of(columns[0]) != self.keys[place]:
                raise self._damaged(f"row {self.facts.rows[0] + place} is not what was written")
            # Copies, since the file's own arrays cannot be written, and one row of them would keep its whole group.
            ids, top_ids, rest = (columns[place].copy() for place in (0, 1, 3))
            shape = (len(ids), self._settings.top_k)
            return CachedRow(ids, top_ids.reshape(shape), _restored(columns[2].reshape(shape), rest), rest)

    def verify(self) -> None:
        """Reads every row.

        Raises:
            ArtifactError: a row is damaged.
        """
        for place in range(len(self.keys)):
            self.row(place)

    def _read_facts(self, shard: int) -> ShardFacts:
        found = (self._file.schema_arrow.metadata or {}).get(METADATA_KEY)
        values = json.loads(found) if found else None
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise self._damaged(f"it says nothing of a teacher cache of schema {SCHEMA}")
        different = differences(settings_of(values["settings"], self.path), self._settings)
        if different:
            raise MismatchError(
                f"{self.path} belongs to another cache ({'; '.join(different)}): remove it, and run the teacher again"
            )
        span = self._settings.span(shard)
        facts = ShardFacts(**{field.name: values[field.name] for field in fields(ShardFacts)})
        facts = replace(facts, rows=(int(facts.rows[0]), int(facts.rows[1])))
        if facts.shard != shard or facts.rows != (span.start, span.stop):
            raise self._damaged(f"it is shard {facts.shard} with rows {facts.rows}")
        return facts

    def _read_keys(self) -> tuple[list[bytes], list[bytes]]:
        table = self._file.read(columns=["row", "key", "digest"], use_threads=False)
        rows, keys, digests = (table.column(name).to_pylist() for name in ("row", "key", "digest"))
        if rows != list(range(*self.facts.rows)):
            raise self._damaged("its rows are not those that it says")
        if hash_of(keys) != self.facts.keys or hash_of(digests) != self.facts.sha256:
            raise self._damaged("its keys or digests are not those that were written")
        return keys, digests

    def _read_group(self, group: int) -> dict[str, list[NDArray[Any]]]:
        table = self._file.read_row_group(group, columns=list(_LISTS), use_threads=False)
        made = {}
        for name in _LISTS:
            column = table.column(name).combine_chunks()
            chunks = column.chunks if hasattr(column, "chunks") else [column]
            made[name] = [part for chunk in chunks for part in _lists(chunk)]
        return made

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """What a file with other bytes than were written makes the decoder raise becomes one error."""
        try:
            yield
        except PermissionError as error:
            raise StoreError(f"{self.path} cannot be read ({error.strerror}): make it readable") from error
        except MemoryError as error:
            raise self._damaged("it asks for more memory than there is") from error
        # pyarrow's errors are ValueErrors, KeyErrors, OSErrors and NotImplementedErrors.
        except (ValueError, KeyError, IndexError, TypeError, OSError, NotImplementedError) as error:
            raise self._damaged(str(error).splitlines()[0] if str(error) else type(error).__name__) from error

    def _damaged(self, reason: str) -> ArtifactError:
        return ArtifactError(
            f"{self.path} is damaged ({reason}): run the teacher again over the same rows, it will be replaced"
        )


def _lists(column: Any) -> list[NDArray[Any]]:
    values = column.values.to_numpy(zero_copy_only=False)
    bounds = column.offsets.to_numpy()
    return [values[begin:end] for begin, end in pairwise(bounds)]


def _restored(log_probs: NDArray[Any], rest: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-probabilities as float32 whose sum with the rest is 1 again, where they were rounded to float16.

    Rounded logarithms are off by 1/2048 of themselves, so that probabilities add up to 1 but for some thousandths: a
    divergence from them could fall below 0.
    """
    if log_probs.dtype == np.float32 or not log_probs.size:
        return log_probs.astype(np.float32)
    exact = log_probs.astype(np.float64)
    known = np.exp(exact).sum(axis=1)
    wanted = 1.0 - rest.astype(np.float64)
    # Below, what float32 leaves of 1 - rest is further off than the logarithms are.
    doubtful = (wanted < 1e-3) | (known <= 0)
    shift = np.where(doubtful, 0.0, np.log(np.where(doubtful, 1.0, wanted) / np.where(doubtful, 1.0, known)))
    made: NDArray[np.float32] = np.minimum(exact + shift[:, None], 0.0).astype(np.float32)
    return made
