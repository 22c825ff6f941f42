"""Writing a teacher cache: a teacher runs once over a corpus, in as many processes as there are."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from ...errors import ArtifactError, MismatchError, OptionError
from ...files import TEMPORARY_PATTERN, write_atomically
from ...read import as_vocab
from ...spans.aligner import Aligner
from ...spans.units import End
from ...vocab.vocab import Vocab
from .format import (
    KEY_BYTES,
    METADATA_KEY,
    SCHEMA,
    CachedRow,
    CacheSettings,
    Ids,
    Precision,
    ShardFacts,
    check_positive,
    check_rows,
    claim_folder,
    corpus_hash,
    digest_of,
    hash_of,
    key_of,
    live_ids,
    make_settings,
    pyarrow,
    shard_name,
    teacher_ids,
    text_options,
)
from .read import Shard

_STALE_SECONDS = 3600
"""A file that is being written takes its name within seconds; what is older belonged to a process that was killed."""

_WINDOW = 8
"""Batches whose rows are sorted by length together."""

_PROBE_TOKENS = 16

_TOGETHER = {"cpu": 1 << 21, "cuda": 1 << 27}
"""Logits that are looked at together: 8 MB as float32 where a cache of the processor has to hold them."""

_LEAST = -65504.0
"""The least finite number of float16 (IEEE 754 binary16)."""

ROWS_PER_GROUP = 8
"""Rows that are decoded together when one of them is read."""

_SPLIT = ("ids", "top_ids", "log_probs", "rest")
"""Columns whose first, second, ... bytes are kept together: the upper bytes of ids and logarithms hardly vary. At
K = 64 and 152k tokens that takes 172 bytes per position where zstd alone takes 222 and bare numbers 392."""


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """What a run did.

    Attributes:
        folder: the cache's folder.
        written: shards that it wrote.
        kept: shards that were there already.
        replaced: of those written, the ones that were there but damaged.
        rows: rows in all of these.
        positions: positions in all of these.
        bytes: size of their files.
        mean_rest: mean probability of the tokens that were not kept.
        max_rest: the largest.
        seconds: how long it took.
    """

    folder: Path
    written: int
    kept: int
    replaced: int
    rows: int
    positions: int
    bytes: int
    mean_rest: float
    max_rest: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Done:
    """A shard that is there now.

    Attributes:
        facts: what it says of itself.
        state: `written`, `kept` or `replaced`.
        bytes: the size of its file.
    """

    facts: ShardFacts
    state: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class CacheWriter:
    """Writes any shards of one cache.

    Attributes:
        folder: the cache's folder.
        settings: the cache's settings.
        teacher: the model, ready to run.
    """

    folder: Path
    settings: CacheSettings
    teacher: TeacherModel

    def write(self, shard: int, rows: Sequence[Any]) -> Done:
        """Writes a shard unless it is there and sound.

        Args:
            shard: its number.
            rows: the shard's rows, in order.

        Raises:
            MismatchError: the shard is there with other rows or of another cache.
        """
        ids = teacher_ids(rows, self.teacher.vocab, self.settings)
        state, path = "written", self.folder / shard_name(shard)
        if path.exists():
            try:
                present = Shard(self.folder, shard, self.settings)
                present.verify()
            except ArtifactError:
                state = "replaced"
            else:
                if present.facts.keys != hash_of(map(key_of, ids)):
                    raise MismatchError(
                        f"{path} holds other rows than {self.settings.span(shard)} of those given: give the rows that "
                        "the cache was begun with, or another folder"
                    )
                return Done(facts=present.facts, state="kept", bytes=path.stat().st_size)
        facts = write_shard(self.folder, shard, self.settings, self.teacher.rows(ids))
        return Done(facts=facts, state=state, bytes=path.stat().st_size)


def open_writer(
    model: Callable[..., Any] | AnswersRows,
    vocab: Vocab,
    folder: Path,
    settings: CacheSettings,
    *,
    batch_size: int,
    device: Any,
) -> CacheWriter:
    """A writer in a folder that is, from now on, this cache's.

    Raises:
        MismatchError: the folder holds a cache of other settings, or of another model.
    """
    if isinstance(model, AnswersRows):
        model.check(vocab)
    teacher = TeacherModel(model=model, vocab=vocab, top_k=settings.top_k, batch_size=batch_size, device=device)
    if settings.rows:
        settings = replace(settings, probe=teacher.probe())
    settings = claim_folder(folder, settings)
    _clear_stale(folder)
    return CacheWriter(folder=folder, settings=settings, teacher=teacher)


def write_teacher_cache(
    model: Callable[..., Any] | AnswersRows,
    rows: Sequence[Any],
    folder: str | os.PathLike[str],
    *,
    teacher: Aligner | Vocab | str | os.PathLike[str],
    top_k: int = 64,
    dtype: Precision = "float16",
    batch_size: int = 8,
    rows_per_shard: int = 256,
    process: tuple[int, int] = (0, 1),
    device: Any = None,
    bos: bool = True,
    eos: bool = True,
    max_teacher_tokens: int | None = None,
    truncation_side: End = "right",
    progress: Callable[[int, int], object] | None = None,
) -> CacheReport:
    """Runs a teacher over a corpus and keeps its `top_k` best tokens, their log-probabilities and the rest's mass.

    A run that was cut off at any moment goes on when the same call is made again: shards that are there and sound are
    kept. Several processes, each with its own part or all with the same, may write at once.

    Args:
        model: called with `input_ids` and `attention_mask` (B, T), gives logits (B, T, V) or something with `logits`: a
            causal language model of `transformers` as it is. Or a `ServedTeacher`.
        rows: a list or a `datasets.Dataset` of rows with `teacher_ids` (`AlignColumns` makes them) or a `text`, or of
            bare sequences of ids. A row is one document.
        folder: the cache's folder; it is made if need be.
        teacher: the teacher's vocabulary, with the model's logit width, or what `read_vocab` takes. An `Aligner`, such
            as the `SpanCollator` of the training, gives its teacher and the four options of texts below.
        top_k: tokens kept per position; all live ones where there are fewer.
        dtype: how log-probabilities are kept, `float16` (off by 1/2048 of themselves) or `float32`.
        batch_size: rows per call of the model.
        rows_per_shard: rows per file. Memory and what a kill loses grow with it.
        process: (p, n): of n processes this is number p, and takes the shards whose number modulo n is p.
        device: where the ids go; by default where the model's parameters are. The model stays where it is.
        bos: for texts, put the token that begins a text before each; as in `SpanCollator`.
        eos: for texts, put the token that ends a text after each.
        max_teacher_tokens: cut rows to so many tokens.
        truncation_side: where to cut, `left` or `right`.
        progress: called with the rows done and the rows in this process's part after every shard.

    Returns:
        What was done.

    Raises:
        OptionError: an option or a row makes no sense, or the model's logits do not fit the vocabulary.
        MismatchError: the folder holds a cache of other settings, another model or other rows.
        StoreError: the folder cannot be written.
        MissingExtraError: pyarrow is not installed.

    >>> import tempfile, torch, xtoken_align
    >>> from xtoken_align.training import TeacherCache
    >>> teacher = xtoken_align.read_vocab("llama-3")
    >>> model = lambda input_ids, attention_mask: torch.nn.functional.one_hot(input_ids + 1, 128256) * 9.0
    >>> folder = tempfile.TemporaryDirectory()
    >>> rows = [{"teacher_ids": [9, 4]}, {"teacher_ids": [3, 2, 1]}]
    >>> report = write_teacher_cache(model, rows, folder.name, teacher=teacher, top_k=2)
    >>> report.rows, report.positions
    (2, 5)
    >>> cache = TeacherCache(folder.name, teacher=teacher)
    >>> cache[0].top_ids[:, 0].tolist(), cache.top_k([0, 1]).ids.shape
    ([10, 5], torch.Size([2, 3, 2]))
    >>> folder.cleanup()
    """
    started = time.monotonic()
    pyarrow()
    source, of_texts = text_options(teacher, bos, eos, max_teacher_tokens, truncation_side)
    vocab = as_vocab(source)
    check_rows(rows)
    check_positive("batch_size", batch_size)
    settings = make_settings(vocab, len(rows), top_k=top_k, dtype=dtype, rows_per_shard=rows_per_shard, **of_texts)
    settings = replace(settings, corpus=corpus_hash(rows, vocab, settings))
    own = range(settings.shards)[_part(process)]
    path = Path(folder)
    writer = open_writer(model, vocab, path, settings, batch_size=batch_size, device=device)
    done: list[Done] = []
    share, so_far = sum(len(settings.span(shard)) for shard in own), 0
    for shard in own:
        span = settings.span(shard)
        done.append(writer.write(shard, [rows[row] for row in span]))
        so_far += len(span)
        if progress is not None:
            progress(so_far, share)
    return report_of(path, done, time.monotonic() - started)


def report_of(folder: Path, done: Iterable[Done], seconds: float) -> CacheReport:
    """What some shards make together."""
    every = list(done)
    positions = sum(each.facts.positions for each in every)
    return CacheReport(
        folder=folder,
        written=sum(each.state != "kept" for each in every),
        kept=sum(each.state == "kept" for each in every),
        replaced=sum(each.state == "replaced" for each in every),
        rows=sum(each.facts.rows[1] - each.facts.rows[0] for each in every),
        positions=positions,
        bytes=sum(each.bytes for each in every),
        mean_rest=sum(each.facts.rest_sum for each in every) / max(positions, 1),
        max_rest=max((each.facts.rest_max for each in every), default=0.0),
        seconds=seconds,
    )


def _part(process: tuple[int, int]) -> slice:
    try:
        number, count = process
        sound = 0 <= number < count
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise OptionError(f"process is (p, n) with 0 <= p < n, this process's number and how many there are: {process}")
    return slice(number, None, count)


def _clear_stale(folder: Path) -> None:
    """Removes unfinished files of processes that were killed."""
    for path in folder.glob(TEMPORARY_PATTERN):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


@runtime_checkable
class AnswersRows(Protocol):
    """A teacher that says itself which its best tokens are, as one behind a server does."""

    def check(self, teacher: Vocab) -> None:
        """Refuses another vocabulary than its own."""

    def answer_rows(self, rows: Sequence[Ids], top_k: int) -> list[CachedRow]:
        """What it says of rows, in their order."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TeacherModel:
    """A teacher's model with what running it needs.

    Attributes:
        model: called with `input_ids` and `attention_mask`, gives logits (B, T, V) or something that has them; or one
            that answers rows itself.
        vocab: its vocabulary.
        top_k: tokens to keep per position.
        batch_size: rows per call.
        device: where the ids go; None for where the model's parameters are.
    """

    model: Any
    vocab: Vocab
    top_k: int
    batch_size: int
    device: Any = None

    def rows(self, rows: Sequence[Ids]) -> Iterator[CachedRow]:
        """Runs over rows, in their order; rows of like lengths share a batch, which saves padding.

        Raises:
            OptionError: the model's logits have another width than the vocabulary, or are no numbers.
        """
        # Rows of 9 2 8 3 tokens in batches of 2: the batches are (9 8) and (3 2), the order of what is given stays.
        window = self.batch_size * _WINDOW
        with at_rest(self.model):
            for begin in range(0, len(rows), window):
                part = rows[begin : begin + window]
                if isinstance(self.model, AnswersRows):
                    yield from self.model.answer_rows(part, self.top_k)
                    continue
                cached: dict[int, CachedRow] = {}
                longest_first = sorted(range(len(part)), key=lambda row: -len(part[row]))
                for first in range(0, len(part), self.batch_size):
                    batch = longest_first[first : first + self.batch_size]
                    cached |= zip(batch, self._batch([part[row] for row in batch]), strict=True)
                yield from (cached[row] for row in range(len(part)))

    def probe(self) -> tuple[float, ...]:
        """The log-probabilities of the best tokens in a fixed row: what tells two models of one vocabulary apart."""
        (row,) = self.rows([self.vocab.speakable_ids[:_PROBE_TOKENS].astype(np.int32)])
        return tuple(round(float(value), 4) for value in row.log_probs[:, 0])

    def _batch(self, rows: Sequence[Ids]) -> list[CachedRow]:
        counts = [len(row) for row in rows]
        if not max(counts):
            nothing = np.zeros((0, self.top_k), dtype=np.float32)
            return [CachedRow(row, nothing.astype(np.int32), nothing, nothing[:, 0]) for row in rows]
        # Anything may stand at padding: the mask hides it, and no earlier position looks at it.
        ids = np.zeros((len(rows), max(counts)), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, given in enumerate(rows):
            ids[row, : len(given)] = given
            mask[row, : len(given)] = 1
        logits = self._logits(torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device))
        dead = torch.from_numpy(np.flatnonzero(~live_ids(self.vocab))).to(logits.device)
        # Row by row, since taking the rows out of their padding at once would copy all logits.
        best = [best_tokens(row[:count], self.top_k, dead=dead) for row, count in zip(logits, counts, strict=True)]
        top_ids, log_probs, rest = (torch.cat(parts).cpu().numpy() for parts in zip(*best, strict=True))
        if not np.isfinite(rest).all():
            raise OptionError(
                f"{self.vocab.name} gives logits that are no numbers: run it in another precision, or check its weights"
            )
        bounds = np.cumsum(counts)[:-1]
        split = (np.split(array, bounds) for array in (top_ids, log_probs, rest))
        return [CachedRow(*parts) for parts in zip(rows, *split, strict=True)]

    def _logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # Keys and values of past positions are of no use here, and take as much memory as the states.
        forward = inspect.signature(getattr(self.model, "forward", self.model)).parameters
        options = {"use_cache": False} if "use_cache" in forward else {}
        logits = self.model(input_ids=ids, attention_mask=mask, **options)
        if not isinstance(logits, torch.Tensor):
            logits = logits["logits"] if isinstance(logits, Mapping) else getattr(logits, "logits", None)
        if not isinstance(logits, torch.Tensor) or logits.shape[:2] != ids.shape:
            came = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise OptionError(
                "a teacher gives logits (B, T, V), or something that has them as `logits`, for ids of shape "
                f"{tuple(ids.shape)}, got {came}"
            )
        if logits.shape[-1] != len(self.vocab):
            raise OptionError(
                f"the model has {logits.shape[-1]} logits, but {self.vocab.name} has {len(self.vocab)}: read the "
                f"vocabulary with logits={logits.shape[-1]}, or give the tokenizer of this model"
            )
        return logits

    @property
    def _device(self) -> Any:
        if self.device is not None:
            return self.device
        parameters = getattr(self.model, "parameters", None)
        first = next(iter(parameters()), None) if callable(parameters) else None
        return torch.device("cpu") if first is None else first.device


@contextmanager
def at_rest(model: Any) -> Iterator[None]:
    """Without gradients, dropout or checkpointing of activations; every module is left in the mode that it was in.

    Args:
        model: a module; of another callable nothing but gradients can be switched off.
    """
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def best_tokens(
    logits: torch.Tensor, top_k: int, *, dead: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `top_k` most probable tokens at every position, and the probability of all others together.

        log p = z - m - log(S + R), z = -inf at dead tokens, m = max z;  rest = R / (S + R)

    S sums exp(z - m) over the best tokens, R over the others: 1 - sum would keep nothing of a rest below 6e-8. All is
    computed in float32.

    Equals `logits.float().log_softmax(-1).topk(top_k)`, block by block.

    Args:
        logits: floats (N, V).
        top_k: how many, at most V.
        dead: int64 (D,), tokens without probability: padding and holes of the vocabulary.

    Returns:
        int32 (N, K), the tokens, the best first, -1 where a token has no probability; float32 (N, K), their
        log-probabilities, -inf there; float32 (N,), the rest, 0 to 1.

    >>> ids, log_probs, rest = best_tokens(torch.tensor([[0.0, 2.0, 1.0, 9.0]]), 2, dead=torch.tensor([3]))
    >>> ids.tolist(), [round(float(value), 4) for value in (*log_probs[0].exp(), rest[0])]
    ([[1, 2]], [0.6652, 0.2447, 0.09])
    """
    width = logits.shape[-1]
    step = max(_TOGETHER.get(logits.device.type, _TOGETHER["cuda"]) // max(width, 1), 1)
    space = logits.new_empty((min(step, len(logits)), width), dtype=torch.float32)
    parts = torch.split(logits, step) if len(logits) else (logits,)
    blocks = [_block(space[: len(part)].copy_(part), top_k, dead) for part in parts]
    ids, log_probs, rest = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return ids, log_probs, rest


def _block(z: torch.Tensor, top_k: int, dead: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """The same of a few rows; their logits are overwritten."""
    if dead is not None:
        z.index_fill_(-1, dead, -torch.inf)
    # Logits [0 2 1 -inf], top 2: m = 2; own = [0 -1], S = 1 + 0.368; R = exp(-2) = 0.135; rest = 0.135 / 1.503 = 0.09.
    best = z.topk(top_k)
    highest = best.values[:, :1]
    others = z.sub_(highest).exp_().scatter_(-1, best.indices, 0.0).sum(-1)
    own = best.values - highest
    total = own.exp().sum(-1) + others
    impossible = best.values == -torch.inf
    ids = best.indices.int().masked_fill_(impossible, -1)
    # Half precision would make a token impossible that is not.
    log_probs = (own - total.log()[:, None]).clamp_(min=_LEAST).masked_fill_(impossible, -torch.inf)
    return ids, log_probs, others / total


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
    sink, span, schema = pa.BufferOutputStream(), settings.span(shard), _schema(pa, settings)
    keys: list[bytes] = []
    digests: list[bytes] = []
    positions, rest_sum, rest_max = 0, 0.0, 0.0
    with pa.parquet.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in _SPLIT},
        write_statistics=False,
        store_schema=False,
    ) as writer:
        numbered = zip(span, rows, strict=True)
        while group := list(islice(numbered, ROWS_PER_GROUP)):
            table, group_keys, group_digests = _table(pa, schema, settings, group)
            writer.write_table(table)
            keys += group_keys
            digests += group_digests
            for _, row in group:
                positions += len(row.rest)
                rest_sum += float(row.rest.sum(dtype=np.float64))
                rest_max = max(rest_max, float(row.rest.max(initial=0.0)))
        facts = ShardFacts(
            shard=shard,
            rows=(span.start, span.stop),
            keys=hash_of(keys),
            sha256=hash_of(digests),
            positions=positions,
            rest_sum=rest_sum,
            rest_max=rest_max,
        )
        content = {"schema": SCHEMA, "settings": asdict(settings), **asdict(facts)}
        writer.add_key_value_metadata({METADATA_KEY.decode(): json.dumps(content)})
    write_atomically(folder / shard_name(shard), sink.getvalue())
    return facts


def _schema(pa: Any, settings: CacheSettings) -> Any:
    values = pa.float16() if settings.dtype == "float16" else pa.float32()
    lists = {"ids": pa.int32(), "top_ids": pa.int32(), "log_probs": values, "rest": pa.float32()}
    fields = [pa.field("row", pa.int64()), pa.field("key", pa.binary(KEY_BYTES))]
    fields += [pa.field(name, pa.large_list(pa.field("element", kind))) for name, kind in lists.items()]
    return pa.schema([*fields, pa.field("digest", pa.binary(hashlib.sha256().digest_size))])


def _table(
    pa: Any, schema: Any, settings: CacheSettings, group: Sequence[tuple[int, CachedRow]]
) -> tuple[Any, list[bytes], list[bytes]]:
    """Some rows as a table, with their keys and digests.

    A list column is one flat array with offsets: rows with ids [7 8 9] and [4 5] are [7 8 9 4 5] with [0 3 5].
    """
    rows = [
        (row.ids.astype("<i4"), row.top_ids.astype("<i4"), row.log_probs.astype(settings.stored), row.rest)
        for _, row in group
    ]
    keys, digests = [key_of(row.ids) for _, row in group], [digest_of(columns) for columns in rows]
    arrays = [pa.array([number for number, _ in group], pa.int64()), pa.array(keys, pa.binary(KEY_BYTES))]
    for place, name in enumerate(_SPLIT):
        flat = [columns[place].reshape(-1) for columns in rows]
        offsets = np.cumsum([0, *map(len, flat)], dtype=np.int64)
        arrays.append(pa.LargeListArray.from_arrays(offsets, np.concatenate(flat), type=schema.field(name).type))
    arrays.append(pa.array(digests, schema.field("digest").type))
    return pa.table(arrays, schema=schema), keys, digests
