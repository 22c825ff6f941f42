"""Writing a teacher cache: a teacher runs once over a corpus, in as many processes as there are."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import ArtifactError, MismatchError, OptionError
from ...files import TEMPORARY_PATTERN
from ...read import read_vocab
from ...spans.units import End
from ...vocab.vocab import Vocab
from .rows import check_rows, key_of, teacher_ids
from .run import Teacher
from .settings import CacheSettings, Precision, check_positive, claim_folder, make_settings, shard_name
from .shard import Shard
from .shard_file import ShardFacts, hash_of, pyarrow, write_shard

_STALE_SECONDS = 3600
"""A file that is being written takes its name within seconds; what is older belonged to a process that was killed."""


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
    teacher: Teacher

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
                kept = Shard(self.folder, shard, self.settings)
                kept.verify()
            except ArtifactError:
                state = "replaced"
            else:
                if kept.facts.keys != hash_of(map(key_of, ids)):
                    raise MismatchError(
                        f"{path} holds other rows than {self.settings.span(shard)} of those given: give the rows that "
                        "the cache was begun with, or another folder"
                    )
                return Done(facts=kept.facts, state="kept", bytes=path.stat().st_size)
        facts = write_shard(self.folder, shard, self.settings, self.teacher.rows(ids))
        return Done(facts=facts, state=state, bytes=path.stat().st_size)


def open_writer(
    model: Callable[..., Any], vocab: Vocab, folder: Path, settings: CacheSettings, *, batch_size: int, device: Any
) -> CacheWriter:
    """A writer in a folder that is, from now on, this cache's.

    Raises:
        MismatchError: the folder holds a cache of other settings, or of another model.
    """
    teacher = Teacher(model=model, vocab=vocab, top_k=settings.top_k, batch_size=batch_size, device=device)
    if settings.rows:
        settings = replace(settings, probe=teacher.probe())
    settings = claim_folder(folder, settings)
    _clear_stale(folder)
    return CacheWriter(folder=folder, settings=settings, teacher=teacher)


def write_teacher_cache(
    model: Callable[..., Any],
    rows: Sequence[Any],
    folder: str | os.PathLike[str],
    *,
    teacher: Vocab | str | os.PathLike[str],
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
            causal language model of `transformers` as it is.
        rows: a list or a `datasets.Dataset` of rows with `teacher_ids` (`AlignColumns` makes them) or a `text`, or of
            bare sequences of ids. A row is one document.
        folder: the cache's folder; it is made if need be.
        teacher: the teacher's vocabulary, with the model's logit width, or what `read_vocab` takes.
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
    >>> from xtoken_align.training.cache.read import TeacherCache
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
    vocab = teacher if isinstance(teacher, Vocab) else read_vocab(teacher)
    check_rows(rows)
    check_positive("batch_size", batch_size)
    settings = make_settings(
        vocab,
        len(rows),
        top_k=top_k,
        dtype=dtype,
        rows_per_shard=rows_per_shard,
        bos=bos,
        eos=eos,
        max_teacher_tokens=max_teacher_tokens,
        truncation_side=truncation_side,
    )
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
