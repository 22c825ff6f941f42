"""Writing a teacher cache: a teacher runs once over a corpus, in as many processes as there are."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArtifactError, MismatchError, OptionError
from ...files import TEMPORARY_PATTERN, write_atomically
from ...read import as_vocab
from ...spans.aligner import Aligner
from ...spans.units import End
from ...vocab.vocab import Vocab
from .format import (
    COLUMNS,
    KEY_BYTES,
    METADATA_KEY,
    SCHEMAS,
    USUAL_TOP_K,
    CacheSettings,
    Keep,
    Precision,
    Row,
    ShardFacts,
    check_positive,
    check_rows,
    claim_folder,
    corpus_facts,
    digest_of,
    hash_of,
    key_of,
    make_settings,
    pyarrow,
    shard_name,
    teacher_ids,
    text_options,
)
from .head import HEAD, head_hash, keep_head
from .model import AnswersRows, TeacherModel
from .read import Shard

_STALE_SECONDS = 3600
"""A file that is being written takes its name within seconds; what is older belonged to a process that was killed."""

ROWS_PER_GROUP = 8
"""Rows that are decoded together when one of them is read, fewer where states are large."""

_GROUP_BYTES = 4096
"""A group has as many rows as states fit in here, one at least: one row of 512 states of 2,048 numbers is 2 MB."""

_SPLIT = "BYTE_STREAM_SPLIT"
"""First, second, ... bytes are kept together: the upper bytes of ids and logarithms hardly vary. At K = 64 and 152k
tokens a position takes 172 bytes where zstd alone takes 222 and bare numbers 392. Of 576 numbers in bfloat16
(SmolLM2-135M) a state takes 875 bytes where zstd alone takes 905 and bare numbers 1,152."""


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
        head_bytes: size of the output head beside them, where hidden states are kept.
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
    head_bytes: int
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
        if settings.keep == "hidden":
            raise OptionError(f"the teacher {model} says its best tokens, and no hidden states: keep a top_k of it")
        model.check(vocab)
    teacher = TeacherModel(
        model=model,
        vocab=vocab,
        keep=settings.keep,
        dtype=settings.dtype,
        top_k=settings.top_k,
        batch_size=batch_size,
        device=device,
    )
    head = None
    if settings.rows:
        probe, head = teacher.first_look()
        settings = replace(settings, probe=probe)
    if head is not None:
        settings = replace(settings, head=head_hash(head), hidden_size=head.weight.shape[1])
    settings = claim_folder(folder, settings)
    _clear_stale(folder)
    if head is not None:
        keep_head(folder, head, settings)
    return CacheWriter(folder=folder, settings=settings, teacher=teacher)


def write_teacher_cache(
    model: Callable[..., Any] | AnswersRows,
    rows: Sequence[Any],
    folder: str | os.PathLike[str],
    *,
    teacher: Aligner | Vocab | str | os.PathLike[str],
    keep: Keep = "top_k",
    top_k: int | None = None,
    dtype: Precision | None = None,
    batch_size: int = 8,
    rows_per_shard: int | None = None,
    process: tuple[int, int] = (0, 1),
    device: Any = None,
    bos: bool = True,
    eos: bool = True,
    max_teacher_tokens: int | None = None,
    truncation_side: End = "right",
    progress: Callable[[int, int], object] | None = None,
    space: Callable[[str], object] = lambda _: None,
) -> CacheReport:
    """Runs a teacher over a corpus and keeps its best tokens or its hidden states.

    Of the `top_k` best tokens the log-probabilities are kept, and the probability of all others together: enough for
    some losses. Hidden states are what the model hands to its output head, which is kept once: every loss can be
    computed from them, in more space.

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
        keep: `top_k` or `hidden`. For hidden states the model has an output head that `fuse_head` takes.
        top_k: tokens kept per position; all live ones where there are fewer. 64 by default; of a `ServedTeacher` as
            many as it asks for.
        dtype: how log-probabilities are kept, `float16` (off by 1/2048 of themselves) or `float32`; hidden states are
            kept as `bfloat16` (off by 1/256) or `float32`. The first is the default.
        batch_size: rows per call of the model.
        rows_per_shard: rows per file, 256 by default, 32 of hidden states. Memory and what a kill loses grow with it.
        process: (p, n): of n processes this is number p, and takes the shards whose number modulo n is p.
        device: where the ids go; by default where the model's parameters are. The model stays where it is.
        bos: for texts, put the token that begins a text before each; as in `SpanCollator`.
        eos: for texts, put the token that ends a text after each.
        max_teacher_tokens: cut rows to so many tokens.
        truncation_side: where to cut, `left` or `right`.
        progress: called with the rows done and the rows in this process's part after every shard.
        space: told in a sentence, before the teacher runs, how much space the cache takes.

    Returns:
        What was done.

    Raises:
        OptionError: an option or a row makes no sense, the model's logits do not fit the vocabulary, or it does more
            between hidden states and logits than is kept.
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
    if keep == "top_k" and top_k is None and isinstance(model, AnswersRows):
        top_k = model.usual_top_k
    settings = make_settings(
        vocab, len(rows), keep=keep, top_k=top_k, dtype=dtype, rows_per_shard=rows_per_shard, **of_texts
    )
    corpus = corpus_facts(rows, vocab, settings)
    settings = replace(settings, corpus=corpus.hash)
    own = range(settings.shards)[_part(process)]
    path = Path(folder)
    writer = open_writer(model, vocab, path, settings, batch_size=batch_size, device=device)
    space(_space(writer.settings, path, corpus.positions))
    done: list[Done] = []
    share, so_far = sum(len(settings.span(shard)) for shard in own), 0
    for shard in own:
        span = settings.span(shard)
        done.append(writer.write(shard, [rows[row] for row in span]))
        so_far += len(span)
        if progress is not None:
            progress(so_far, share)
    return report_of(path, done, time.monotonic() - started)


def _space(settings: CacheSettings, folder: Path, positions: int) -> str:
    """What a cache takes, before it is compressed."""
    whole = settings.position_bytes * positions / 1e6
    said = f"{positions:,} positions of {settings.position_bytes:,} bytes before compression, {whole:,.1f} MB"
    if settings.keep == "hidden":
        head = (folder / HEAD).stat().st_size / 1e6 if settings.head else 0.0
        said += f", and {head:,.1f} MB for the output head"
        best = replace(settings, keep="top_k", top_k=USUAL_TOP_K, dtype="float16")
        said += f" (the {USUAL_TOP_K} best tokens have {best.position_bytes} bytes)"
    return said


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
        head_bytes=(folder / HEAD).stat().st_size if (folder / HEAD).exists() else 0,
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


def write_shard(folder: Path, shard: int, settings: CacheSettings, rows: Iterable[Row]) -> ShardFacts:
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
        column_encoding={f"{name}.list.element": _SPLIT for name in COLUMNS[settings.keep]},
        write_statistics=False,
        store_schema=False,
    ) as writer:
        numbered = zip(span, rows, strict=True)
        while group := list(islice(numbered, _rows_per_group(settings))):
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
        content = {"schema": SCHEMAS[settings.keep], "settings": asdict(settings), **asdict(facts)}
        writer.add_key_value_metadata({METADATA_KEY.decode(): json.dumps(content)})
    write_atomically(folder / shard_name(shard), sink.getvalue())
    return facts


def _rows_per_group(settings: CacheSettings) -> int:
    """Of states of 64 numbers in bfloat16 8 rows, of 576 numbers 3, of 2,048 numbers 1."""
    fitting = _GROUP_BYTES // settings.position_bytes if settings.keep == "hidden" else ROWS_PER_GROUP
    return min(max(fitting, 1), ROWS_PER_GROUP)


def _schema(pa: Any, settings: CacheSettings) -> Any:
    values = {
        "ids": pa.int32(),
        "top_ids": pa.int32(),
        "log_probs": pa.float16() if settings.dtype == "float16" else pa.float32(),
        "rest": pa.float32(),
        "states": pa.binary(settings.stored.itemsize * settings.hidden_size),
    }
    fields = [pa.field("row", pa.int64()), pa.field("key", pa.binary(KEY_BYTES))]
    lists = COLUMNS[settings.keep]
    fields += [pa.field(name, pa.large_list(pa.field("element", values[name]))) for name in lists]
    return pa.schema([*fields, pa.field("digest", pa.binary(hashlib.sha256().digest_size))])


def _table(
    pa: Any, schema: Any, settings: CacheSettings, group: Sequence[tuple[int, Row]]
) -> tuple[Any, list[bytes], list[bytes]]:
    """Some rows as a table, with their keys and digests.

    A list column is one flat array with offsets: rows with ids [7 8 9] and [4 5] are [7 8 9 4 5] with [0 3 5]. A hidden
    state is one value of the array, its bytes.
    """
    rows = [row.columns(settings) for _, row in group]
    keys, digests = [key_of(row.ids) for _, row in group], [digest_of(columns) for columns in rows]
    arrays = [pa.array([number for number, _ in group], pa.int64()), pa.array(keys, pa.binary(KEY_BYTES))]
    for place, name in enumerate(COLUMNS[settings.keep]):
        kind = schema.field(name).type
        flat = [columns[place] if name == "states" else columns[place].reshape(-1) for columns in rows]
        offsets, values = np.cumsum([0, *map(len, flat)], dtype=np.int64), np.concatenate(flat)
        if name == "states":
            values = pa.Array.from_buffers(kind.value_type, len(values), [None, pa.py_buffer(values)])
        arrays.append(pa.LargeListArray.from_arrays(offsets, values, type=kind))
    arrays.append(pa.array(digests, schema.field("digest").type))
    return pa.table(arrays, schema=schema), keys, digests
