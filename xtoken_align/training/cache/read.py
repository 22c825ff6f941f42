"""Reading a teacher cache: best tokens or hidden states for the rows of a batch, with no teacher in memory."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, MismatchError, OptionError, StoreError
from ...spans.units import Units, token_mask, units_of
from ...vocab.vocab import Vocab
from .format import (
    COLUMNS,
    KEY_BYTES,
    METADATA_KEY,
    CachedRow,
    CacheSettings,
    HiddenRow,
    Keep,
    Row,
    ShardFacts,
    Truncation,
    differences,
    digest_of,
    hash_of,
    is_known,
    key_of,
    live_ids,
    pyarrow,
    read_manifest,
    settings_of,
    shard_name,
)

if TYPE_CHECKING:
    import torch

    from ...losses import Hidden, TopK
    from ...losses.heads import Head


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
        self._lists = COLUMNS[settings.keep]
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

    def row(self, place: int) -> Row:
        """The row at a place of the shard.

        Raises:
            ArtifactError: the row is damaged.
        """
        with self._sound():
            group = int(np.searchsorted(self._begins, place, side="right")) - 1
            if self._group is None or self._group[0] != group:
                self._group = group, self._read_group(group)
            columns = [self._group[1][name][place - int(self._begins[group])] for name in self._lists]
            if digest_of(columns) != self._digests[place] or key_of(columns[0]) != self.keys[place]:
                raise self._damaged(f"row {self.facts.rows[0] + place} is not what was written")
            # Copies, since the file's own arrays cannot be written, and one row of them would keep its whole group.
            if self._settings.keep == "hidden":
                ids, states = (column.copy() for column in columns)
                return HiddenRow(ids, states)
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
        content = (self._file.schema_arrow.metadata or {}).get(METADATA_KEY)
        values = json.loads(content) if content else None
        if not isinstance(values, dict) or not is_known(values.get("schema"), values.get("settings")):
            raise self._damaged("it says nothing of a teacher cache that this version knows")
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
        table = self._file.read_row_group(group, columns=list(self._lists), use_threads=False)
        lists = {}
        for name in self._lists:
            column = table.column(name).combine_chunks()
            chunks = column.chunks if hasattr(column, "chunks") else [column]
            lists[name] = [part for chunk in chunks for part in self._parts(name, chunk)]
        return lists

    def _parts(self, name: str, column: Any) -> list[NDArray[Any]]:
        """The rows' parts of a column: of [7 8 9 4 5] with offsets [0 3 5] these are [7 8 9] and [4 5]."""
        values, size = column.values, self._settings.hidden_size
        if name != "states":
            whole = values.to_numpy(zero_copy_only=False)
        elif not len(values):
            whole = np.zeros((0, size), dtype=self._settings.stored)
        else:
            # A state is one value, its bytes.
            whole = np.frombuffer(values.buffers()[1], dtype=self._settings.stored).reshape(-1, size)
            whole = whole[values.offset :]
        return [whole[begin:end] for begin, end in pairwise(column.offsets.to_numpy())]

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
    restored: NDArray[np.float32] = np.minimum(exact + shift[:, None], 0.0).astype(np.float32)
    return restored


class TeacherCache:
    """What `write_teacher_cache` has kept, row by row in the order of its corpus.

    Everything is checked against what was written when it is read. It can travel to the workers of a data loader; a
    process holds some open shards and, of each, the few rows that were decoded last.

    Args:
        folder: the cache's folder.
        teacher: the vocabulary of the ids that rows will be asked for by; another one than the cache's is refused.
        open_shards: how many shards stay open.

    Attributes:
        folder: the cache's folder.
        settings: what the cache was made with.
        teacher: the vocabulary that it was opened with, or None.

    Raises:
        StoreError: there is no cache in the folder.
        ArtifactError: its manifest is damaged.
        MismatchError: it was made with another vocabulary.
    """

    def __init__(self, folder: str | os.PathLike[str], *, teacher: Vocab | None = None, open_shards: int = 8) -> None:
        self.folder = Path(folder)
        self.settings = read_manifest(self.folder)
        self._most = max(open_shards, 1)
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._lock = Lock()
        self._index: tuple[NDArray[Any], NDArray[np.int64]] | None = None
        self._head: Head | None = None
        self.teacher = teacher
        if teacher is not None:
            self.check(teacher)

    def __getstate__(self) -> dict[str, Any]:
        # Open files, locks and the head, which may be gigabytes, stay where they are.
        return {**vars(self), "_shards": OrderedDict(), "_lock": None, "_head": None, "teacher": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())

    def __len__(self) -> int:
        return self.settings.rows

    def __str__(self) -> str:
        return f"the cache {self.folder}"

    def __getitem__(self, row: int) -> Row:
        """What the teacher said of a row.

        Raises:
            IndexError: there is no such row.
            StoreError: its shard is missing.
            ArtifactError: its shard or the row is damaged.
        """
        place = row + len(self) if row < 0 else row
        if not 0 <= place < len(self):
            raise IndexError(f"row {row} of a cache of {len(self)} rows")
        shard, within = divmod(int(place), self.settings.rows_per_shard)
        with self._lock:
            return self._shard(shard).row(within)

    @property
    def missing(self) -> list[int]:
        """The numbers of shards that are not there."""
        return [shard for shard in range(self.settings.shards) if not (self.folder / shard_name(shard)).is_file()]

    def verify(self) -> Truncation:
        """Reads everything.

        Returns:
            How much of the teacher's distributions the cache leaves out.

        Raises:
            StoreError: a shard is missing.
            ArtifactError: a shard is damaged.
        """
        for shard in range(self.settings.shards):
            Shard(self.folder, shard, self.settings).verify()
        if self.settings.head:
            self.head()
        return self.truncation()

    def truncation(self) -> Truncation:
        """How much of the teacher's distributions the cache leaves out, from what its shards say of themselves.

        Raises:
            StoreError: a shard is missing.
            ArtifactError: a shard is damaged.
        """
        facts = [Shard(self.folder, shard, self.settings).facts for shard in range(self.settings.shards)]
        positions = sum(each.positions for each in facts)
        return Truncation(
            positions=positions,
            mean_rest=sum(each.rest_sum for each in facts) / max(positions, 1),
            max_rest=max((each.rest_max for each in facts), default=0.0),
        )

    def find(self, ids: Sequence[int] | NDArray[Any]) -> int:
        """The first row that has these ids. The first call reads the keys of all shards: 24 bytes per row.

        Raises:
            OptionError: no row has.
        """
        with self._lock:
            if self._index is None:
                self._index = self._read_index()
        keys, rows = self._index
        wanted = np.frombuffer(key_of(np.asarray(ids)), dtype=keys.dtype)[0]
        at = int(np.searchsorted(keys, wanted))
        if at == len(keys) or keys[at] != wanted:
            raise OptionError(
                f"no cached row has these {len(ids)} ids: give rows that are tokenised and cut as the cached ones were "
                f"(max_teacher_tokens {self.settings.max_teacher_tokens}), or cache this corpus"
            )
        return int(rows[at])

    def top_k(
        self,
        rows: Sequence[int] | None = None,
        *,
        ids: Any = None,
        mask: Any = None,
        segments: Any = None,
        length: int | None = None,
        device: Any = None,
    ) -> TopK:
        """The teacher's side of a batch, as the losses take it.

        Rows are named by their numbers, by their ids, or by both, and then checked: ids have to be those of the cached
        row or, where they were cut on the right, its beginning. Of a batch of `SpanCollator`,

            cache.top_k(ids=batch["teacher_input_ids"], mask=batch["teacher_attention_mask"])

        puts everything where the batch has it. In packed rows, `segments=batch["spans"].teacher_segments` too: each
        document is looked up by itself.

        Args:
            rows: the rows' numbers, for packed rows the documents'.
            ids: integers (B, T), or a list of ids per row.
            mask: (B, T), false at padding.
            segments: integers (B, T), the number of each token's document in its row.
            length: pad or cut to so many positions, where ids do not say it; by default the longest row's.
            device: where the tensors go.

        Returns:
            `TopK` with ids int64 (B, T, K), log_probs float32 (B, T, K) and rest float32 (B, T). At padding the ids are
            -1, the log-probabilities -inf and the rest 1.

        Raises:
            OptionError: a row was not cached, or is not the one that was; or hidden states are kept.
            StoreError: a shard is missing.
            ArtifactError: a shard is damaged.
        """
        self._check_keep("top_k")
        cached, units = self._rows(rows, ids, mask, segments, length)
        return placed(cached, units, top_k=self.settings.top_k, width=self.settings.logits, device=device)

    def hidden(
        self,
        rows: Sequence[int] | None = None,
        *,
        ids: Any = None,
        mask: Any = None,
        segments: Any = None,
        length: int | None = None,
        device: Any = None,
    ) -> Hidden:
        """The teacher's side of a batch as the losses take it, of a cache of hidden states.

        Args:
            rows: as of `top_k`, and so are the others.
            ids: integers (B, T), or a list of ids per row.
            mask: (B, T), false at padding.
            segments: integers (B, T), the number of each token's document in its row.
            length: pad or cut to so many positions.
            device: where the tensors go; the head stays there for the next batch.

        Returns:
            `Hidden` with states (B, T, D), 0 at padding, and the head; no teacher is in memory beside it.

        Raises:
            OptionError: a row was not cached, or is not the one that was; or best tokens are kept.
            StoreError: a shard or the head is missing.
            ArtifactError: a shard or the head is damaged.
        """
        states = self.states(rows, ids=ids, mask=mask, segments=segments, length=length).to(device)
        if self._head is None:
            self._head = self.head()
        self._head = self._head.to(states.device)
        return self._head.hidden(states)

    def head(self) -> Head:
        """The output head that makes logits of the hidden states, on the processor.

        Raises:
            OptionError: best tokens are kept.
            StoreError: it is missing.
            ArtifactError: it is damaged.
        """
        from .head import read_head

        self._check_keep("hidden")
        return read_head(self.folder, self.settings)

    def states(
        self,
        rows: Sequence[int] | None = None,
        *,
        ids: Any = None,
        mask: Any = None,
        segments: Any = None,
        length: int | None = None,
    ) -> torch.Tensor:
        """The hidden states of a batch alone, for `head().hidden(states)`; arguments and errors are those of `hidden`.

        Returns:
            bfloat16 or float32 (B, T, D), as they were kept; 0 at padding.
        """
        import torch

        self._check_keep("hidden")
        cached, units = self._rows(rows, ids, mask, segments, length)
        array = np.zeros((*units.shape, self.settings.hidden_size), dtype=self.settings.stored)
        if len(units.ids):
            parts = [row.states[:count] for row, count in zip(cached, units.counts, strict=True)]
            array[units.mask] = np.concatenate(parts)
        if self.settings.dtype == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    def _check_keep(self, asked: Keep) -> None:
        if self.settings.keep != asked:
            held, other = ("hidden states", "hidden") if asked == "top_k" else ("best tokens", "top_k")
            raise OptionError(f"{self.folder} holds {held}, got a call for something else: call `{other}`")

    def _rows(
        self, rows: Sequence[int] | None, ids: Any, mask: Any, segments: Any, length: int | None
    ) -> tuple[list[Any], Units]:
        """The cached rows of a batch, one for each document, with the places that they have there."""
        if ids is None:
            if rows is None:
                raise OptionError("rows are named by `rows`, their numbers, or by `ids`: got neither")
            cached = [self[int(row)] for row in rows]
            counts = np.array([len(row.ids) for row in cached], dtype=np.int64)
            counts = counts if length is None else np.minimum(counts, length)
            return cached, _right_padded(counts, int(counts.max(initial=0)) if length is None else length)
        units = units_of(ids, width=self.settings.logits, mask=mask, segments=segments, side="teacher")
        return self._rows_of(units, rows), units

    def _rows_of(self, units: Units, rows: Sequence[int] | None) -> list[Row]:
        """The cached row of every unit, by its number or by its ids."""
        if rows is not None and len(rows) != len(units.counts):
            raise OptionError(f"{len(rows)} row numbers for ids of {len(units.counts)} rows: give one for each")
        cached = []
        for unit, (begin, count) in enumerate(zip(units.offsets[:-1], units.counts, strict=True)):
            given = units.ids[begin : begin + count]
            number = self.find(given) if rows is None else int(rows[unit])
            row = self[number]
            if not np.array_equal(row.ids[:count], given):
                raise OptionError(
                    f"row {number} was cached with other ids than those given: give the rows in the order in which "
                    "they were cached, or leave out the numbers to find rows by their ids"
                )
            cached.append(row)
        return cached

    def _shard(self, shard: int) -> Shard:
        if shard not in self._shards:
            self._shards[shard] = Shard(self.folder, shard, self.settings)
            while len(self._shards) > self._most:
                self._shards.popitem(last=False)
        self._shards.move_to_end(shard)
        return self._shards[shard]

    def _read_index(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        keys = b"".join(
            key for shard in range(self.settings.shards) for key in Shard(self.folder, shard, self.settings).keys
        )
        # Pairs of numbers, which numpy searches faster than bytes; equal keys stay in the order of their rows.
        pairs = np.frombuffer(keys, dtype=[("high", ">u8"), ("low", ">u8")])
        assert pairs.dtype.itemsize == KEY_BYTES
        order = np.lexsort((pairs["low"], pairs["high"]))
        return pairs[order], order

    def check(self, teacher: Vocab) -> None:
        """Refuses another vocabulary than the one that the cache was made with.

        Raises:
            MismatchError: the vocabulary is another; says what differs.
        """
        own = self.settings
        # A cache of version 0.2 has its vocabulary's fingerprint in the form of that time.
        fingerprint = own.fingerprint if teacher.has_fingerprint(own.fingerprint) else teacher.fingerprint
        given = {"fingerprint": fingerprint, "logits": len(teacher), "live": int(live_ids(teacher).sum())}
        different = [
            f"{name} {getattr(own, name)} there, {value} here"
            for name, value in given.items()
            if getattr(own, name) != value
        ]
        if different:
            raise MismatchError(
                f"{self.folder} was cached from {own.name}, which is not {teacher.name} ({'; '.join(different)}): give "
                "the vocabulary that the cache was made with, or cache this teacher"
            )


def placed(cached: Sequence[CachedRow], units: Units, *, top_k: int, width: int, device: Any = None) -> TopK:
    """Rows that a teacher has answered, at the places of a batch.

    Rows of 2 and 1 tokens, padded on the right, top 1: ids [[[7] [9]] [[4] [-1]]], rest 1 at the padding.

    Args:
        cached: one per unit.
        units: the batch.
        top_k: tokens per position.
        width: the teacher's logit width.
        device: where the tensors go.
    """
    import torch

    from ...losses import TopK

    arrays: tuple[NDArray[Any], ...] = (
        np.full((*units.shape, top_k), -1, dtype=np.int64),
        np.full((*units.shape, top_k), -np.inf, dtype=np.float32),
        np.ones(units.shape, dtype=np.float32),
    )
    if len(units.ids):
        for array, name in zip(arrays, ("top_ids", "log_probs", "rest"), strict=True):
            parts = [getattr(row, name)[:count] for row, count in zip(cached, units.counts, strict=True)]
            array[units.mask] = np.concatenate(parts)
    ids, log_probs, rest = (torch.from_numpy(array).to(device) for array in arrays)
    return TopK(ids=ids, log_probs=log_probs, rest=rest, width=width)


def _right_padded(counts: NDArray[np.int64], columns: int) -> Units:
    """Places for rows of some lengths; which ids stand there is not looked at."""
    rows = np.arange(len(counts))
    ids = np.zeros(int(counts.sum()), dtype=np.int64)
    return Units(ids, counts, rows, np.zeros_like(rows), token_mask(counts, columns, "right"), (len(rows), columns))
