"""What a teacher cache is: its settings and manifest, its rows and their keys, its files, and what it leaves out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import pairwise
from math import exp, log, log1p
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, MismatchError, MissingExtraError, OptionError, StoreError
from ...files import write_atomically
from ...spans.aligner import Aligner
from ...spans.units import End, check_side, encode_texts, offsets_of, units_of
from ...vocab.kinds import Kind
from ...vocab.vocab import Vocab

Keep = Literal["top_k", "hidden"]
"""What a cache keeps of a position: the best tokens, or the last hidden states."""

SCHEMAS: dict[Keep, int] = {"top_k": 1, "hidden": 2}
"""The layouts that this package writes and reads; version 0.2 reads the first alone."""

MANIFEST = "cache.json"

METADATA_KEY = b"xtoken_align.teacher_cache"
"""The entry of a shard's Parquet metadata that says what the shard is."""

Precision = Literal["float16", "bfloat16", "float32"]

PRECISIONS: dict[Keep, tuple[Precision, ...]] = {"top_k": ("float16", "float32"), "hidden": ("bfloat16", "float32")}
"""How log-probabilities and hidden states can be kept, the usual one first."""

COLUMNS: dict[Keep, tuple[str, ...]] = {"top_k": ("ids", "top_ids", "log_probs", "rest"), "hidden": ("ids", "states")}
"""The columns of a shard that have a value for each position."""

USUAL_TOP_K = 64

_ROWS_PER_SHARD: dict[Keep, int] = {"top_k": 256, "hidden": 32}
"""Rows of a file unless it is said otherwise: a file is in memory while it is written, and 256 rows of 512 states of
4,096 numbers are 1 GB."""

PROBE_TOLERANCE = 0.1
"""Nats that one model's log-probabilities may differ by between machines, on average over a probe. Two runs of a model
in bfloat16 differ by some hundredths, two models by about one."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """What decides a cache.

    Attributes:
        name: the teacher's short name.
        fingerprint: of the teacher's vocabulary.
        logits: the teacher's logit width.
        live: how many of the logits belong to tokens; padding and holes get no probability.
        top_k: tokens kept per position; 0 where hidden states are kept.
        dtype: how log-probabilities or hidden states are kept.
        rows: how many rows the corpus has.
        rows_per_shard: rows in a file, the last one aside.
        bos: texts get the token that begins a text.
        eos: texts get the token that ends a text.
        max_teacher_tokens: rows are cut to so many tokens.
        truncation_side: where they are cut.
        probe: log-probabilities that the model gave to its best tokens in a fixed row.
        corpus: a hash over the corpus's rows; empty where nobody took it.
        keep: what is kept of a position.
        hidden_size: numbers of a hidden state; 0 where none was seen.
        head: a hash of the output head that makes logits of hidden states; empty where none was seen.
    """

    name: str
    fingerprint: str
    logits: int
    live: int
    top_k: int
    dtype: Precision
    rows: int
    rows_per_shard: int
    bos: bool
    eos: bool
    max_teacher_tokens: int | None
    truncation_side: End
    probe: tuple[float, ...] = ()
    corpus: str = ""
    keep: Keep = "top_k"
    hidden_size: int = 0
    head: str = ""

    @property
    def shards(self) -> int:
        """How many files the cache has."""
        return -(-self.rows // self.rows_per_shard)

    def span(self, shard: int) -> range:
        """The rows of a shard.

        >>> settings = CacheSettings(name="t", fingerprint="f", logits=9, live=9, top_k=4, dtype="float16", rows=10,
        ...     rows_per_shard=4, bos=True, eos=True, max_teacher_tokens=None, truncation_side="right")
        >>> settings.shards, settings.span(2)
        (3, range(8, 10))
        """
        begin = shard * self.rows_per_shard
        return range(begin, min(begin + self.rows_per_shard, self.rows))

    @property
    def stored(self) -> np.dtype[Any]:
        """The dtype of what is kept, little-endian on every machine; numpy has no bfloat16 and gets its bits."""
        return np.dtype({"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}[self.dtype])

    @property
    def position_bytes(self) -> int:
        """What a position takes before it is compressed.

        >>> settings = CacheSettings(name="t", fingerprint="f", logits=9, live=9, top_k=0, dtype="bfloat16", rows=10,
        ...     rows_per_shard=4, bos=True, eos=True, max_teacher_tokens=None, truncation_side="right", keep="hidden",
        ...     hidden_size=576)
        >>> settings.position_bytes
        1156
        """
        if self.keep == "hidden":
            return 4 + self.stored.itemsize * self.hidden_size
        # The position's own id and its rest, and of every token the id and its log-probability.
        return 4 + 4 + (4 + self.stored.itemsize) * self.top_k


_LATER = ("probe", "corpus", "head", "hidden_size")
"""Settings that are compared in a way of their own."""

_WINDOW = 1024
"""How many rows of a corpus are hashed at a time."""


def shard_name(shard: int) -> str:
    """The name of a shard's file.

    >>> shard_name(3)
    'shard-00003.parquet'
    """
    return f"shard-{shard:05d}.parquet"


def live_ids(teacher: Vocab) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which tokens are live, bool (V,): False at padding and holes, whose logits mean nothing."""
    return teacher.kinds < Kind.PADDING


def make_settings(
    teacher: Vocab,
    rows: int,
    *,
    keep: Keep = "top_k",
    top_k: int | None = None,
    dtype: Precision | None = None,
    rows_per_shard: int | None = None,
    bos: bool,
    eos: bool,
    max_teacher_tokens: int | None,
    truncation_side: End,
) -> CacheSettings:
    """Settings from options; a teacher with fewer than `top_k` live tokens keeps them all.

    Raises:
        OptionError: an option has a value that makes no sense.
    """
    if keep not in get_args(Keep):
        raise OptionError(f"keep is {' or '.join(get_args(Keep))}, got {keep!r}")
    if keep == "hidden" and top_k is not None:
        raise OptionError("top_k says how many of the best tokens are kept: leave it out where keep is hidden")
    dtype = PRECISIONS[keep][0] if dtype is None else dtype
    rows_per_shard = _ROWS_PER_SHARD[keep] if rows_per_shard is None else rows_per_shard
    top_k = USUAL_TOP_K if top_k is None else top_k
    numbers = {"top_k": top_k, "rows_per_shard": rows_per_shard}
    numbers |= {} if max_teacher_tokens is None else {"max_teacher_tokens": max_teacher_tokens}
    for name, value in numbers.items():
        check_positive(name, value)
    if dtype not in PRECISIONS[keep]:
        raise OptionError(f"dtype is {' or '.join(PRECISIONS[keep])} where keep is {keep}, got {dtype!r}")
    check_side("truncation_side", truncation_side)
    live = int(live_ids(teacher).sum())
    return CacheSettings(
        name=teacher.name,
        fingerprint=teacher.fingerprint,
        logits=len(teacher),
        live=live,
        top_k=0 if keep == "hidden" else min(top_k, live),
        dtype=dtype,
        keep=keep,
        rows=rows,
        rows_per_shard=rows_per_shard,
        bos=bos,
        eos=eos,
        max_teacher_tokens=max_teacher_tokens,
        truncation_side=truncation_side,
    )


def text_options(
    teacher: Any, bos: bool, eos: bool, max_teacher_tokens: int | None, truncation_side: End
) -> tuple[Any, dict[str, Any]]:
    """The teacher's vocabulary or its source, and how its texts are encoded and cut: as given, or as an `Aligner` does.

    Raises:
        OptionError: an aligner is given, and an option that is the aligner's.
    """
    given = {"bos": bos, "eos": eos, "max_teacher_tokens": max_teacher_tokens, "truncation_side": truncation_side}
    if not isinstance(teacher, Aligner):
        return teacher, given
    usual = {"bos": True, "eos": True, "max_teacher_tokens": None, "truncation_side": "right"}
    for name, value in given.items():
        if value != usual[name]:
            raise OptionError(f"{name} is given twice: the aligner has it too, leave it out here")
    return teacher.teacher, {name: getattr(teacher, name) for name in given}


def check_positive(name: str, value: Any) -> None:
    """Refuses what is no whole number above 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name} is a whole number above 0, got {value!r}")


def claim_folder(folder: Path, settings: CacheSettings) -> CacheSettings:
    """Writes the manifest, or checks that the one that is there says the same.

    Args:
        folder: the cache's folder, made if need be.
        settings: what this run is about to write, probe included.

    Returns:
        The settings as the manifest has them.

    Raises:
        MismatchError: the folder holds a cache of other settings.
        StoreError: the folder cannot be written.
        ArtifactError: the manifest is damaged.
    """
    path = folder / MANIFEST
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder} ({error.strerror}): choose another place") from error
    if not path.exists():
        content = json.dumps({"schema": SCHEMAS[settings.keep], **asdict(settings)}, indent=1).encode() + b"\n"
        try:
            # Not replaced: of two processes that begin at once, the second checks itself against the first.
            write_atomically(path, content, overwrite=False)
        except StoreError:
            if not path.exists():
                raise
    present = read_manifest(folder)
    different = differences(present, settings)
    if different:
        raise MismatchError(
            f"{folder} holds a cache of other settings ({'; '.join(different)}): give those, or another folder"
        )
    return present


def read_manifest(folder: Path) -> CacheSettings:
    """The settings of a cache.

    Raises:
        StoreError: there is no cache.
        ArtifactError: the manifest is damaged or from the future.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{folder} is no teacher cache: {MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): write the cache anew") from error
    if not isinstance(values, dict) or not is_known(values.get("schema"), values):
        raise ArtifactError(
            f"{path} is not a manifest of schema {' or '.join(map(str, SCHEMAS.values()))}: write the cache anew, or "
            "use the release that wrote it"
        )
    return settings_of(values, path)


def is_known(schema: Any, settings: Any) -> bool:
    """Whether a manifest or a shard with these settings, as JSON, is of a layout that this version reads."""
    # Compared one by one: what a file says may be of a type that no dict looks up.
    return isinstance(settings, dict) and any(
        (settings.get("keep", "top_k"), schema) == each for each in SCHEMAS.items()
    )


def settings_of(values: dict[str, Any], path: Path) -> CacheSettings:
    """Settings from JSON.

    Raises:
        ArtifactError: a value is missing or makes no sense.
    """
    try:
        settings = CacheSettings(
            **{field.name: values[field.name] for field in fields(CacheSettings) if field.default is MISSING},
            # What has a default is missing in caches of earlier versions.
            probe=tuple(float(value) for value in values["probe"]),
            corpus=str(values.get("corpus", "")),
            keep=values.get("keep", "top_k"),
            hidden_size=values.get("hidden_size", 0),
            head=str(values.get("head", "")),
        )
        hidden = settings.keep == "hidden"
        for name in ("logits", "live", "rows_per_shard", *([] if hidden else ["top_k"])):
            check_positive(name, getattr(settings, name))
        if hidden and settings.rows:
            check_positive("hidden_size", settings.hidden_size)
        sound = type(settings.rows) is int and settings.rows >= 0 and settings.dtype in PRECISIONS[settings.keep]
    except (KeyError, TypeError, ValueError, OptionError) as error:
        raise ArtifactError(f"{path} is damaged ({type(error).__name__}: {error}): write the cache anew") from error
    if not sound:
        raise ArtifactError(f"{path} is damaged (rows {settings.rows}, dtype {settings.dtype!r}): write the cache anew")
    return settings


def differences(present: CacheSettings, given: CacheSettings) -> list[str]:
    """What differs between two caches' settings, names of teachers aside.

    >>> from dataclasses import replace
    >>> one = CacheSettings(name="t", fingerprint="f", logits=9, live=9, top_k=4, dtype="float16", rows=10,
    ...     rows_per_shard=4, bos=True, eos=True, max_teacher_tokens=None, truncation_side="right")
    >>> differences(one, replace(one, name="u", top_k=2))
    ['top_k is 4 there, 2 here']
    """
    different = [
        f"{field.name} is {getattr(present, field.name)} there, {getattr(given, field.name)} here"
        for field in fields(CacheSettings)
        if field.name not in {"name", *_LATER} and getattr(present, field.name) != getattr(given, field.name)
    ]
    if not different and present.corpus and given.corpus and present.corpus != given.corpus:
        different.append("its corpus has other rows")
    if not different and present.probe and given.probe:
        same = len(present.probe) == len(given.probe)
        away = float(np.mean(np.abs(np.subtract(present.probe, given.probe)))) if same else float("inf")
        if not away <= PROBE_TOLERANCE:
            different.append(f"the model is another: its log-probabilities are {away:.2f} away from those there")
    if not different and present.head and given.head and present.head != given.head:
        different.append("the model's output head has other weights, or is in another precision")
    return different


Ids = NDArray[np.int32]

KEY_BYTES = 16

_PACKED = ("teacher_segments", "teacher_position_ids", "seq_lengths")
"""Columns of rows that hold several documents: those of packed spans and batches, and TRL's."""


def key_of(ids: NDArray[Any]) -> bytes:
    """The key of a row: the start of SHA-256 over its ids as little-endian int32.

    >>> key_of(np.array([1, 2, 3])).hex()
    '4636993d3e1da4e9d6b8f87b79e8f7c6'
    """
    return hashlib.sha256(np.ascontiguousarray(ids, dtype="<i4").tobytes()).digest()[:KEY_BYTES]


def check_rows(rows: Any) -> None:
    """Refuses what has no length or no places, such as a stream.

    Raises:
        OptionError: `rows` is no sequence.
    """
    if isinstance(rows, (str, bytes, Mapping)) or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise OptionError(
            f"rows are a list or a `datasets.Dataset`, something with a length and places, got {type(rows).__name__}: "
            "a run that is cut off finds its place by them"
        )


def teacher_ids(rows: Sequence[Any], teacher: Vocab, settings: CacheSettings) -> list[Ids]:
    """What the teacher reads of some rows, as `SpanCollator` would give it to a live teacher.

    Args:
        rows: rows with `teacher_ids`, rows with a `text`, or bare sequences of ids; all of one form.
        teacher: the teacher's vocabulary.
        settings: how texts are encoded, and where rows are cut.

    Returns:
        int32 (T,) per row.

    Raises:
        OptionError: a row has none of the forms, holds several documents, or has an id that is no token's.
    """
    if not len(rows):
        return []
    form = _form(rows[0])
    try:
        entries = [row[form] for row in rows] if form else list(rows)
    except (KeyError, TypeError, IndexError) as error:
        raise OptionError(f"some rows have `{form}` and some have not") from error
    if form == "text":
        encoded = encode_texts(
            entries,
            teacher,
            bos=settings.bos,
            eos=settings.eos,
            max_tokens=settings.max_teacher_tokens,
            truncation_side=settings.truncation_side,
        )
        return _split(encoded.ids, encoded.counts)
    units = units_of(entries, width=len(teacher), side="teacher")
    whole = _split(units.ids, units.counts)
    limit = settings.max_teacher_tokens
    if limit is None:
        return whole
    if settings.truncation_side == "right":
        return [ids[:limit] for ids in whole]
    return [ids[max(len(ids) - limit, 0) :] for ids in whole]


@dataclass(frozen=True, slots=True)
class CorpusFacts:
    """What a teacher is to read.

    Attributes:
        hash: tells corpora apart by all of their rows, so that shards of two corpora do not mix in one folder.
        positions: how many tokens it has.
    """

    hash: str
    positions: int


def corpus_facts(rows: Sequence[Any], teacher: Vocab, settings: CacheSettings) -> CorpusFacts:
    """A corpus by its rows, as the teacher reads them."""
    total = positions = 0
    for begin in range(0, len(rows), _WINDOW):
        span = range(begin, min(begin + _WINDOW, len(rows)))
        ids = teacher_ids([rows[row] for row in span], teacher, settings)
        total += sum_of_rows(span, ids)
        positions += sum(map(len, ids))
    return CorpusFacts(hash_of_sum(total, len(rows)), positions)


def sum_of_rows(numbers: Iterable[int], ids: Iterable[Ids]) -> int:
    """The sum of the rows' hashes, each of a row's number and its ids: machines may add theirs in any order."""
    total = 0
    for number, row in zip(numbers, ids, strict=True):
        data = number.to_bytes(8, "little", signed=True) + np.ascontiguousarray(row, dtype="<i4").tobytes()
        total += int.from_bytes(hashlib.sha256(data).digest(), "little")
    return total


def hash_of_sum(total: int, rows: int) -> str:
    """The hash of a corpus from the sum of its rows'; empty for no rows."""
    return f"{total % (1 << 256):064x}" if rows else ""


def _form(row: Any) -> str | None:
    if isinstance(row, str):
        raise OptionError("a row is a dict with a `text`, or with `teacher_ids`, got a bare text")
    if not isinstance(row, Mapping):
        return None
    packed = [name for name in _PACKED if name in row]
    if packed:
        raise OptionError(
            f"a row with `{packed[0]}` holds several documents: cache the documents one by one, and let `TeacherCache` "
            "put them into packed rows"
        )
    for name in ("teacher_ids", "text"):
        if name in row:
            return name
    raise OptionError(
        f"a row has `teacher_ids` (as `AlignColumns` makes them, for chats too) or a `text`, got {sorted(row)}"
    )


def _split(ids: NDArray[np.int64], counts: NDArray[np.int64]) -> list[Ids]:
    bounds = offsets_of(counts)
    return [ids[begin:end].astype(np.int32) for begin, end in pairwise(bounds)]


@dataclass(frozen=True, slots=True)
class Truncation:
    """How much of a teacher's distributions a cache leaves out.

    Attributes:
        positions: how many positions were counted.
        mean_rest: mean probability, over positions, of the tokens that were not kept.
        max_rest: the largest.
    """

    positions: int
    mean_rest: float
    max_rest: float


def loss_bound(rest: float, *, bins: int, least_log_prob: float) -> float:
    """By how much a KL divergence over bins can differ between a live teacher and a cached one.

        |KL(P || Q) - KL(P' || Q)| <= t (log(B - 1) - log q) + h(t),  t = min(rest, (B - 1) / (B - 1 + q))

    P is the live teacher over B bins, P' the same with the rest's mass put anywhere else, or left out and the kept part
    normalised: the two are at most `rest` apart in total variation. The losses compare the bins without a kept token as
    one, which is the same as giving them the rest in the student's own proportions. Q is the student, q its least
    probability of a bin, h(t) = -t log t - (1 - t) log(1 - t). The term with q bounds the cross-entropies' difference,
    the others that of the entropies. All is concave in `rest`: at the mean rest of some positions the bound holds for
    the mean of their losses. The gradient for the student's logits is at most 2 * `rest` away, in the sum over tokens.

    It is a bound at temperature 1. Logarithms kept as float16 add at most 1/2048 of the teacher's entropy to `rest`.

    Args:
        rest: probability that is not kept, 0 to 1.
        bins: how many bins the loss compares, 2 or more; for losses over tokens the vocabulary's size.
        least_log_prob: the log-probability of the student's least probable bin, in nats.

    Returns:
        Nats per position.

    >>> round(loss_bound(0.01, bins=100_000, least_log_prob=-20.0), 3)
    0.371
    >>> loss_bound(0.0, bins=100_000, least_log_prob=-20.0)
    0.0

    Source: Zhang, Estimating mutual information via Kolmogorov distance, 2007; Audenaert, A sharp continuity estimate
    for the von Neumann entropy, 2007 (for entropies).
    """
    slope = log(max(bins - 1, 1)) - least_log_prob
    # Beyond its maximum the right side falls, while a smaller distance than `rest` is always possible.
    distance = min(max(rest, 0.0), 1.0 / (1.0 + exp(-slope)))
    if distance <= 0.0:
        return 0.0
    entropy = -distance * log(distance) - (1.0 - distance) * log1p(-distance) if distance < 1.0 else 0.0
    return distance * slope + entropy


@dataclass(frozen=True, eq=False)
class CachedRow:
    """What a teacher said of a row: at each position, of the token that comes next.

    Attributes:
        ids: int32 (T,), the row.
        top_ids: int32 (T, K), the best tokens, the best first; -1 where a token has no probability.
        log_probs: float32 (T, K), their log-probabilities; -inf there.
        rest: float32 (T,), the probability of all other tokens together.
    """

    ids: Ids
    top_ids: Ids
    log_probs: NDArray[np.float32]
    rest: NDArray[np.float32]

    def columns(self, settings: CacheSettings) -> tuple[NDArray[Any], ...]:
        """What is kept of it, in the order of `COLUMNS`."""
        return self.ids.astype("<i4"), self.top_ids.astype("<i4"), self.log_probs.astype(settings.stored), self.rest


@dataclass(frozen=True, eq=False)
class HiddenRow:
    """The hidden states that a teacher hands to its output head for a row.

    Attributes:
        ids: int32 (T,), the row.
        states: float32 (T, D), or uint16 (T, D), the bits of bfloat16.
    """

    ids: Ids
    states: NDArray[Any]

    @property
    def rest(self) -> NDArray[np.float32]:
        """float32 (T,): nothing is left out."""
        return np.zeros(len(self.ids), dtype=np.float32)

    def columns(self, settings: CacheSettings) -> tuple[NDArray[Any], ...]:
        """What is kept of it, in the order of `COLUMNS`."""
        return self.ids.astype("<i4"), self.states.astype(settings.stored)


Row = CachedRow | HiddenRow
"""What is kept of a row."""


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
