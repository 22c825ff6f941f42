"""What decides a cache, and the file `cache.json` that keeps it: shards of other settings never get mixed in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ...errors import ArtifactError, MismatchError, OptionError, StoreError
from ...files import write_atomically
from ...spans.units import End, check_side
from ...vocab.kinds import Kind
from ...vocab.vocab import Vocab

SCHEMA = 1
"""The layout that this package writes, and the newest that it reads."""

MANIFEST = "cache.json"

Precision = Literal["float16", "float32"]

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
        top_k: tokens kept per position.
        dtype: how log-probabilities are kept.
        rows: how many rows the corpus has.
        rows_per_shard: rows in a file, the last one aside.
        bos: texts get the token that begins a text.
        eos: texts get the token that ends a text.
        max_teacher_tokens: rows are cut to so many tokens.
        truncation_side: where they are cut.
        probe: log-probabilities that the model gave to its best tokens in a fixed row.
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
        """The dtype of kept log-probabilities, little-endian on every machine."""
        return np.dtype({"float16": "<f2", "float32": "<f4"}[self.dtype])


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
    top_k: int,
    dtype: Precision,
    rows_per_shard: int,
    bos: bool,
    eos: bool,
    max_teacher_tokens: int | None,
    truncation_side: End,
) -> CacheSettings:
    """Settings from options; a teacher with fewer than `top_k` live tokens keeps them all.

    Raises:
        OptionError: an option has a value that makes no sense.
    """
    numbers = {"top_k": top_k, "rows_per_shard": rows_per_shard}
    numbers |= {} if max_teacher_tokens is None else {"max_teacher_tokens": max_teacher_tokens}
    for name, value in numbers.items():
        check_positive(name, value)
    if dtype not in get_args(Precision):
        raise OptionError(f"dtype is {' or '.join(get_args(Precision))}, got {dtype!r}")
    check_side("truncation_side", truncation_side)
    live = int(live_ids(teacher).sum())
    return CacheSettings(
        name=teacher.name,
        fingerprint=teacher.fingerprint,
        logits=len(teacher),
        live=live,
        top_k=min(top_k, live),
        dtype=dtype,
        rows=rows,
        rows_per_shard=rows_per_shard,
        bos=bos,
        eos=eos,
        max_teacher_tokens=max_teacher_tokens,
        truncation_side=truncation_side,
    )


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
        content = json.dumps({"schema": SCHEMA, **asdict(settings)}, indent=1).encode() + b"\n"
        try:
            # Not replaced: of two processes that begin at once, the second checks itself against the first.
            write_atomically(path, content, overwrite=False)
        except StoreError:
            if not path.exists():
                raise
    kept = read_manifest(folder)
    different = differences(kept, settings)
    if different:
        raise MismatchError(
            f"{folder} holds a cache of other settings ({'; '.join(different)}): give those, or another folder"
        )
    return kept


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
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}): write the cache anew") from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{path} is not a manifest of schema {SCHEMA}: write the cache anew, or use the release that wrote it"
        )
    return settings_of(values, path)


def settings_of(values: dict[str, Any], path: Path) -> CacheSettings:
    """Settings from JSON.

    Raises:
        ArtifactError: a value is missing or makes no sense.
    """
    try:
        made = CacheSettings(
            **{field.name: values[field.name] for field in fields(CacheSettings) if field.name != "probe"},
            probe=tuple(float(value) for value in values["probe"]),
        )
        for name in ("logits", "live", "top_k", "rows_per_shard"):
            check_positive(name, getattr(made, name))
        sound = made.rows >= 0 and made.dtype in get_args(Precision)
    except (KeyError, TypeError, ValueError, OptionError) as error:
        raise ArtifactError(f"{path} is damaged ({type(error).__name__}: {error}): write the cache anew") from error
    if not sound:
        raise ArtifactError(f"{path} is damaged (rows {made.rows}, dtype {made.dtype!r}): write the cache anew")
    return made


def differences(kept: CacheSettings, given: CacheSettings) -> list[str]:
    """What differs between two caches' settings, names of teachers aside.

    >>> from dataclasses import replace
    >>> one = CacheSettings(name="t", fingerprint="f", logits=9, live=9, top_k=4, dtype="float16", rows=10,
    ...     rows_per_shard=4, bos=True, eos=True, max_teacher_tokens=None, truncation_side="right")
    >>> differences(one, replace(one, name="u", top_k=2))
    ['top_k is 4 there, 2 here']
    """
    found = [
        f"{field.name} is {getattr(kept, field.name)} there, {getattr(given, field.name)} here"
        for field in fields(CacheSettings)
        if field.name not in {"name", "probe"} and getattr(kept, field.name) != getattr(given, field.name)
    ]
    if not found and kept.probe and given.probe:
        same = len(kept.probe) == len(given.probe)
        away = float(np.mean(np.abs(np.subtract(kept.probe, given.probe)))) if same else float("inf")
        if not away <= PROBE_TOLERANCE:
            found.append(f"the model is another: its log-probabilities are {away:.2f} away from those there")
    return found
