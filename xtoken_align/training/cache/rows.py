"""The rows of a corpus as the ids that the teacher reads, and the key by which a row is known again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError
from ...spans.units import encode_texts, offsets_of, units_of
from ...vocab.vocab import Vocab
from .settings import CacheSettings

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
    made = _split(units.ids, units.counts)
    limit = settings.max_teacher_tokens
    if limit is None:
        return made
    return [ids[:limit] if settings.truncation_side == "right" else ids[max(len(ids) - limit, 0) :] for ids in made]


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
