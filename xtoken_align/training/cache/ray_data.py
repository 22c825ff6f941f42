"""The same on Ray Data, for more than one machine: actors that load the teacher once and then write shards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import MissingExtraError, OptionError, StoreError
from ...read import read_vocab
from ...spans.units import End
from ...vocab.vocab import Vocab
from .format import (
    CacheSettings,
    Keep,
    Precision,
    ShardFacts,
    check_positive,
    claim_folder,
    hash_of_sum,
    make_settings,
    sum_of_rows,
    teacher_ids,
    text_options,
)
from .write import CacheReport, Done, open_writer, report_of

_SHARD = "shard_of_cache"


class CacheShards:
    """What an actor runs: made once per worker, called with a pyarrow table that holds the rows of one shard.

    Args:
        make_model: makes the teacher, with its weights on the actor's device.
        source: what the teacher's vocabulary is read from.
        folder: the cache's folder, which all machines share.
        settings: the cache's settings.
        number: the column of rows' places in the corpus.
        batch_size: rows per call of the model.
    """

    def __init__(
        self,
        make_model: Callable[[], Any],
        source: Any,
        folder: str,
        settings: CacheSettings,
        number: str,
        batch_size: int,
    ) -> None:
        vocab = read_vocab(source, logits=settings.logits)
        if vocab.fingerprint != settings.fingerprint:
            raise OptionError(
                f"{vocab.name} is not what it was where the run began: all machines need the same tokenizer files and "
                "the same version of the library"
            )
        self._number = number
        self._writer = open_writer(make_model(), vocab, Path(folder), settings, batch_size=batch_size, device=None)

    def __call__(self, table: Any) -> dict[str, list[Any]]:
        """Writes a shard.

        Args:
            table: pyarrow table, the shard's rows in any order.

        Returns:
            What was done, as columns of one value.

        Raises:
            OptionError: a row's number is missing or stands there twice.
        """
        shard = int(table.column(_SHARD)[0].as_py())
        table = table.sort_by(self._number)
        numbers, span = table.column(self._number).to_pylist(), self._writer.settings.span(shard)
        if numbers != list(span) or span.start < 0:
            raise OptionError(
                f"the column `{self._number}` counts rows from 0 without gaps, but where rows {span.start} to "
                f"{span.stop - 1} were expected, there are {len(numbers)}, {len(set(numbers))} of them different"
            )
        done = self._writer.write(shard, table.drop_columns([_SHARD, self._number]).to_pylist())
        facts = vars(done.facts)
        return {name: [facts[name]] for name in facts} | {"state": [done.state], "bytes": [done.bytes]}


class CorpusRows:
    """What tasks run before: they say how many rows there are and hash them, so that corpora do not mix.

    Args:
        source: what the teacher's vocabulary is read from.
        settings: the cache's settings, without the rows.
        number: the column of rows' places in the corpus.
    """

    def __init__(self, source: Any, settings: CacheSettings, number: str) -> None:
        self._source, self._settings, self._number = source, settings, number

    def __call__(self, table: Any) -> dict[str, list[Any]]:
        """Hashes some rows.

        Args:
            table: pyarrow table of rows.

        Returns:
            Columns of one value: how many rows, and the sum of their hashes in hexadecimal digits.
        """
        table = table.select([self._number, _column_of(table, self._number)])
        numbers = table.column(self._number).to_pylist()
        vocab = _vocab_of(self._source, self._settings.logits)
        ids = teacher_ids(table.drop_columns([self._number]).to_pylist(), vocab, self._settings)
        return {"rows": [len(numbers)], "sum": [f"{sum_of_rows(numbers, ids):x}"]}


@lru_cache(maxsize=1)
def _vocab_of(source: Any, logits: int) -> Vocab:
    """The teacher's vocabulary, read once by each process that runs tasks."""
    return read_vocab(source, logits=logits)


def _column_of(table: Any, number: str) -> str:
    """The column that the teacher reads."""
    names = table.column_names
    column = next((name for name in ("teacher_ids", "text") if name in names), None)
    if column is None or number not in names:
        raise OptionError(
            f"rows have `teacher_ids` or a `text`, and their place in the corpus as `{number}`, got {names}"
        )
    return column


class _Number:
    """Puts beside each row its shard, and leaves out what the teacher does not read."""

    def __init__(self, number: str, rows_per_shard: int) -> None:
        self._number, self._rows_per_shard = number, rows_per_shard

    def __call__(self, table: Any) -> Any:
        import pyarrow.compute

        column = _column_of(table, self._number)
        shard = pyarrow.compute.divide(table.column(self._number), self._rows_per_shard)
        return table.select([self._number, column]).append_column(_SHARD, shard)


def cache_teacher_ray(
    dataset: Any,
    make_model: Callable[[], Any],
    folder: str | os.PathLike[str],
    *,
    teacher: Any,
    logits: int | None = None,
    workers: int,
    number: str = "row",
    keep: Keep = "top_k",
    top_k: int | None = None,
    dtype: Precision | None = None,
    batch_size: int = 8,
    rows_per_shard: int | None = None,
    bos: bool = True,
    eos: bool = True,
    max_teacher_tokens: int | None = None,
    truncation_side: End = "right",
    gpus: float = 0,
    cores: float = 0.5,
) -> CacheReport:
    """Runs a teacher over a Ray data set; the files are those of `write_teacher_cache`, byte for byte.

    The data set is read twice: to count and hash its rows, and to run the teacher.

    Rows are brought together shard by shard, which moves their ids between machines but nothing of the teacher's. A run
    that was cut off goes on when the same call is made again.

    Args:
        dataset: `ray.data.Dataset` of rows with `teacher_ids` or a `text`.
        make_model: makes the teacher; called once by each worker. See `write_teacher_cache` for what it gives.
        folder: the cache's folder, which all machines share.
        teacher: a source of the teacher's vocabulary as `read_vocab` takes it, not a `Vocab`, which cannot travel. An
            `Aligner` with such a source gives the four options of texts below too.
        logits: the model's logit width, where the source does not know it.
        workers: how many actors; each holds a teacher.
        number: the column of rows' places in the corpus, from 0 on: Ray does not keep their order.
        keep: `top_k` or `hidden`; see `write_teacher_cache` for it and the next two.
        top_k: tokens kept per position.
        dtype: how log-probabilities or hidden states are kept.
        batch_size: rows per call of the model.
        rows_per_shard: rows per file.
        bos: for texts, put the token that begins a text before each.
        eos: for texts, put the token that ends a text after each.
        max_teacher_tokens: cut rows to so many tokens.
        truncation_side: where to cut, `left` or `right`.
        gpus: what Ray sets aside for an actor.
        cores: the same of cores; see `align_ray`.

    Returns:
        What was done.

    Raises:
        OptionError: an option makes no sense. What a worker refuses arrives inside Ray's own error.
        MissingExtraError: ray is not installed.

    >>> cache_teacher_ray([{"row": 0, "text": "Hello"}], print, "cache", teacher="llama-3", workers=0)
    Traceback (most recent call last):
    xtoken_align.errors.OptionError: workers is a whole number above 0, got 0
    """
    check_positive("workers", workers)
    check_positive("batch_size", batch_size)
    source, of_texts = text_options(teacher, bos, eos, max_teacher_tokens, truncation_side)
    if isinstance(source, Vocab):
        raise OptionError("a `Vocab` cannot travel to other processes: give the source that the teacher was read from")
    try:
        from ray.data import ActorPoolStrategy
    except ImportError as error:
        raise MissingExtraError("Caching a teacher on Ray Data", "ray") from error
    started = time.monotonic()
    if isinstance(source, (str, os.PathLike)):
        # Processes may run in other folders.
        source = str(Path(source).absolute()) if Path(source).exists() else os.fspath(source)
    place = Path(folder).absolute()
    settings = make_settings(
        read_vocab(source, logits=logits),
        0,
        keep=keep,
        top_k=top_k,
        dtype=dtype,
        rows_per_shard=rows_per_shard,
        **of_texts,
    )
    counted = dataset.map_batches(CorpusRows(source, settings, number), batch_format="pyarrow").take_all()
    rows = sum(each["rows"] for each in counted)
    settings = replace(settings, rows=rows, corpus=hash_of_sum(sum(int(each["sum"], 16) for each in counted), rows))
    if not settings.rows:
        claim_folder(place, settings)
        return report_of(place, [], time.monotonic() - started)
    written = (
        dataset.map_batches(_Number(number, settings.rows_per_shard), batch_format="pyarrow")
        .groupby(_SHARD)
        .map_groups(
            CacheShards,
            fn_constructor_args=(make_model, source, str(place), settings, number, batch_size),
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=workers),
            num_cpus=cores,
            num_gpus=gpus,
        )
        .take_all()
    )
    if len(written) != settings.shards:
        raise StoreError(f"{len(written)} of {settings.shards} shards were written: make the same call again")
    return report_of(place, list(map(_done, written)), time.monotonic() - started)


def _done(row: dict[str, Any]) -> Done:
    """What a worker did, from the row that it gave back."""
    facts = ShardFacts(**{name: row[name] for name in ShardFacts.__dataclass_fields__})
    return Done(facts=facts, state=row["state"], bytes=int(row["bytes"]))
