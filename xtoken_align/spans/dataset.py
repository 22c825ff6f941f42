"""Aligning data sets that are larger than memory, batch by batch, and spans from the columns that this leaves.

A data set is aligned once, in as many processes as there are cores; training then reads columns of numbers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..errors import OptionError, SourceError
from ..read import read_vocab
from ..vocab.vocab import Vocab
from .aligner import Aligner
from .chunks import Chunks
from .spans import AlignedUnits, Spans, make_spans
from .tables import PairTables, pair_tables
from .units import End, Flags, Numbers, Units, check_side, offsets_of, units_of, values_of

Ragged = tuple[NDArray[Any], Numbers]
"""Values, row after row, and where each row begins; one more offset than rows."""

vocabularies_read: dict[str, Vocab] = {}
"""The vocabularies that this process has read, by what is in them; a forked worker finds them read."""


@dataclass(frozen=True, kw_only=True)
class AlignColumns(Aligner):
    """Aligns the texts or chats of a data set: what `datasets.Dataset.map(..., batched=True)` calls.

    It makes the columns `student_ids`, `teacher_ids`, `student_chunks` and `teacher_chunks` (each token's chunk,
    counted from 0 in every row, -1 outside every chunk), for chats `student_loss_mask` and `teacher_loss_mask` too, and
    `student_tokenizer` and `teacher_tokenizer`, by which a loss knows whose ids they are. `SpanCollator` takes rows of
    them, `spans_from_columns` makes `Spans` of them.

    It travels to other processes, where each vocabulary is read once. What `datasets` keeps under the settings' hash is
    found again while settings, vocabularies and the library's version are the same.

    Args:
        student: a source of the student as `read_vocab` takes it; not a `Vocab`, which cannot travel. All that is not
            named here is as in `Aligner`.
        bos: true here by default, as `eos`.
        column: the column of texts, or of chats: lists of messages with a `role` and a `content`. Beside chats there
            may be a column `tools`: lists of JSON schemas, or JSON of such lists.
        student_options: further options of `read_vocab`: `logits`, `pattern`, `revision`.
        teacher_options: the same of the teacher.

    Raises:
        OptionError: an option has a value that makes no sense.
        SourceError: a source cannot be found or fetched, or another process finds another tokenizer there.

    >>> align = AlignColumns(student="llama-3", teacher="qwen3")
    >>> batch = align({"text": ["x = 123", "of 2026"]})  # dataset.map(align, batched=True, num_proc=2, ...)
    >>> batch["student_chunks"][0].tolist(), batch["teacher_chunks"][0].tolist()  # begin and end of text included
    ([-1, 0, 1, 2, 3, 4], [0, 1, 2, 3, 3, 3, 4])
    """

    bos: bool = True
    eos: bool = True
    column: str = "text"
    student_options: Mapping[str, Any] = field(default_factory=dict)
    teacher_options: Mapping[str, Any] = field(default_factory=dict)
    vocabulary_hashes: tuple[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        hashes = []
        for side in ("student", "teacher"):
            source = _portable(getattr(self, side), side)
            object.__setattr__(self, side, source)
            vocab = read_vocab(source, **getattr(self, f"{side}_options"))
            hashes.append(_hash_of(vocab))
            vocabularies_read.setdefault(hashes[-1], vocab)
        object.__setattr__(self, "vocabulary_hashes", tuple(hashes))
        super().__post_init__()

    @cached_property
    def tables(self) -> PairTables:
        """What aligning needs to know of both vocabularies; they are read unless this process has read them."""
        return pair_tables(
            self._vocab("student", self.vocabulary_hashes[0]), self._vocab("teacher", self.vocabulary_hashes[1])
        )

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Aligns a batch.

        Args:
            batch: columns; other ones than `column` and, beside chats, `tools` are not looked at.

        Returns:
            Columns of int32 arrays, of bool arrays the loss masks, one per row, and of strings the tokenizers.

        Raises:
            OptionError: the column is missing, or a row has neither a text nor a chat.
        """
        if self.column not in batch:
            raise OptionError(f"there is no column `{self.column}` among {sorted(batch)}: name it with `column`")
        columns: dict[str, list[Any]] = {
            name: _rows(own) for name, own in self.columns(batch[self.column], batch.get("tools")).items()
        }
        rows = len(columns["student_ids"])
        return columns | {name: [identity] * rows for name, identity in self.identities.items()}

    @property
    def identities(self) -> dict[str, str]:
        """The columns that have one value in every row: whose ids the rows hold, by `Vocab.identity`."""
        return {f"{side}_tokenizer": getattr(self.tables, side).identity for side in ("student", "teacher")}

    def columns(self, entries: Sequence[Any], tools: Sequence[Any] | None = None) -> dict[str, Ragged]:
        """The columns of some texts or chats, each as one array with offsets."""
        are_texts = {isinstance(entry, str) for entry in entries}
        if len(are_texts) > 1 or any(entry is None for entry in entries):
            raise OptionError(f"a row of `{self.column}` is no text: leave out the rows that have none")
        aligned = self.text_units(entries) if are_texts <= {True} else self.chat_units(entries, tools=tools)
        chunks = aligned.chunks
        chunks_before = offsets_of(chunks.count)[:-1]
        columns: dict[str, Ragged] = {}
        for side, units, chunk, labelled in (
            ("student", aligned.student, chunks.student, aligned.student_labelled),
            ("teacher", aligned.teacher, chunks.teacher, aligned.teacher_labelled),
        ):
            in_row = np.where(chunk >= 0, chunk - chunks_before.repeat(units.counts), -1)
            columns[f"{side}_ids"] = units.ids.astype(np.int32), units.offsets
            columns[f"{side}_chunks"] = in_row.astype(np.int32), units.offsets
            if labelled is not None:
                columns[f"{side}_loss_mask"] = labelled, units.offsets
        return columns

    def _vocab(self, side: str, wanted_hash: str) -> Vocab:
        """A side's vocabulary, read unless this process has read it; the file must not have changed since."""
        if wanted_hash not in vocabularies_read:
            source = getattr(self, side)
            vocab = read_vocab(source, **getattr(self, f"{side}_options"))
            if _hash_of(vocab) != wanted_hash:
                raise SourceError(
                    f"{vocab.name} is not what it was where the {side} was named: all processes need the same "
                    "tokenizer files and the same version of the library"
                )
            vocabularies_read[wanted_hash] = vocab
        return vocabularies_read[wanted_hash]


def spans_from_columns(batch: Mapping[str, Any], *, padding_side: End = "right") -> Spans:
    """The spans of rows that `AlignColumns` has aligned; no vocabulary is needed.

    Args:
        batch: the columns that `AlignColumns` makes, a sequence of whole numbers per row.
        padding_side: where shorter rows are padded, `left` or `right`.

    Returns:
        The spans, a row per row.

    Raises:
        OptionError: a column is missing, or columns do not fit each other.

    >>> columns = {"student_ids": [[9, 4, 7]], "student_chunks": [[-1, 0, 1]]}
    >>> columns |= {"teacher_ids": [[5, 6, 8]], "teacher_chunks": [[0, 0, 1]]}
    >>> spans_from_columns(columns).weight.tolist()  # nothing predicts the teacher's first token
    [[0.0, 1.0]]
    """
    check_side("padding_side", padding_side)
    student, student_chunks, student_labelled = _side(batch, "student")
    teacher, teacher_chunks, teacher_labelled = _side(batch, "teacher")
    rows = len(student.counts)
    if rows != len(teacher.counts):
        raise OptionError(f"student columns have {rows} rows, teacher columns {len(teacher.counts)}")
    count = np.zeros(rows, dtype=np.int64)
    sides = ((student, student_chunks), (teacher, teacher_chunks))
    for units, chunks in sides:
        np.maximum.at(count, np.arange(rows).repeat(units.counts), chunks + 1)
    chunks_before = offsets_of(count)
    student_chunk, teacher_chunk = (
        np.where(chunks >= 0, chunks + chunks_before[:-1].repeat(units.counts), -1).astype(np.int32)
        for units, chunks in sides
    )
    has_tokens = [
        np.bincount(chunk[chunk >= 0], minlength=int(chunks_before[-1])) > 0 for chunk in (student_chunk, teacher_chunk)
    ]
    if not (has_tokens[0] & has_tokens[1]).all():
        raise OptionError("a chunk stands on one side alone: cut rows with the limits of AlignColumns or SpanCollator")
    together = Chunks(student_chunk, teacher_chunk, count, np.zeros(rows, dtype=np.bool_))
    tokenizers = _tokenizer_of(batch, "student"), _tokenizer_of(batch, "teacher")
    known = None if tokenizers[0] is None or tokenizers[1] is None else (tokenizers[0], tokenizers[1])
    aligned = AlignedUnits(student, teacher, together, student_labelled, teacher_labelled, tokenizers=known)
    return make_spans(aligned.one_per_row(padding_side))


def _side(batch: Mapping[str, Any], side: str) -> tuple[Units, Numbers, Flags | None]:
    """A side's ids, chunks and loss mask, a value per token."""
    missing = [f"{side}_{name}" for name in ("ids", "chunks") if f"{side}_{name}" not in batch]
    if missing:
        raise OptionError(f"there is no column `{missing[0]}` among {sorted(batch)}")
    units = units_of(list(batch[f"{side}_ids"]), width=1 << 31, side=side)
    chunks = values_of(list(batch[f"{side}_chunks"]), units, f"{side}_chunks").astype(np.int64)
    mask = batch.get(f"{side}_loss_mask")
    return units, chunks, None if mask is None else values_of(list(mask), units, f"{side}_loss_mask").astype(np.bool_)


def _tokenizer_of(batch: Mapping[str, Any], side: str) -> str | None:
    """Whose ids a side's rows hold; None for rows of a version that did not note it."""
    noted = sorted({str(identity) for identity in batch.get(f"{side}_tokenizer", ()) if identity is not None})
    if len(noted) > 1:
        raise OptionError(f"all rows need the same {side} tokenizer, but they are of {' and '.join(noted)}")
    return noted[0] if noted else None


def _portable(source: Any, side: str) -> Any:
    """A source that other processes can read, in whatever folder they run."""
    if isinstance(source, Vocab):
        raise OptionError(f"a `Vocab` cannot travel to other processes: give the source that the {side} was read from")
    if not isinstance(source, (str, os.PathLike)):
        return source
    path = Path(source)
    return str(path.absolute()) if path.exists() else os.fspath(source)


def _hash_of(vocab: Vocab) -> str:
    """SHA-256 over all of a vocabulary that decides columns, and the library's version."""
    roles = repr(sorted((role, tuple(ids)) for role, ids in vocab.roles.items()))
    facts = (__version__, vocab.fingerprint, roles, str(vocab.chat_template))
    return hashlib.sha256("\0".join(facts).encode() + vocab.kinds.tobytes()).hexdigest()


def _rows(ragged: Ragged) -> list[NDArray[Any]]:
    values, offsets = ragged
    bounds = offsets.tolist()
    return [values[begin:end] for begin, end in pairwise(bounds)]
