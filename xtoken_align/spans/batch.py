"""Batches for distillation: a collator that makes them from rows of a data set, padded or packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MismatchError, MissingExtraError, OptionError
from ..vocab.vocab import Vocab
from .aligner import Aligner
from .careful import chunks_of_units
from .chunks import Chunks
from .spans import IGNORED, AlignedUnits, Spans, make_spans
from .units import End, Numbers, Units, check_side, offsets_of, one_per_row, runs, token_mask, units_of

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class SpanCollator(Aligner):
    """Makes batches for distillation from rows of a data set.

    A row has one of

    - `text`: a text, encoded by both sides;
    - `messages`: a chat, rendered by each side's template and encoded, with the row's `tools` if it has some: a list of
      JSON schemas, or JSON of such a list;
    - `student_ids` and `teacher_ids`: ids, aligned here; with `student_chunks` and `teacher_chunks` (what
      `AlignColumns` adds to a data set) they are aligned already. `student_loss_mask` and `teacher_loss_mask` say which
      tokens count; ids of another tokenizer than `student_tokenizer` and `teacher_tokenizer` name are refused.

    A batch has, as torch tensors, `student_input_ids`, `student_attention_mask`, `student_position_ids` and the
    same of the teacher, all (B, T); `labels` (B, T_s), the student's ids where they count and -100 elsewhere and
    where a document begins; and `spans`. In packed rows positions begin anew with every document: an attention that
    does not look at them needs `block_mask(spans.student_segments)`.

    Args:
        student: as all that is not named here, see `Aligner`. Workers that are spawned, not forked, need a source.
        bos: true here by default, as `eos`.
        max_student_tokens: cut ids too; with `pack` the most in a row.
        padding_side: where rows are padded, `left` or `right`.
        pad_to_multiple_of: row lengths become a multiple of this.
        pack: put several documents into a row, in lockstep on both sides.

    Raises:
        OptionError: an option has a value that makes no sense.
    """

    bos: bool = True
    eos: bool = True
    padding_side: End = "right"
    pad_to_multiple_of: int = 1
    pack: bool = False

    def __post_init__(self) -> None:
        check_side("padding_side", self.padding_side)
        if self.pad_to_multiple_of < 1:
            raise OptionError(f"pad_to_multiple_of is a positive number, got {self.pad_to_multiple_of}")
        if self.pack and (self.max_student_tokens is None or self.max_teacher_tokens is None):
            raise OptionError("packed rows need max_student_tokens and max_teacher_tokens")
        super().__post_init__()

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Makes a batch.

        Args:
            rows: rows of a data set.

        Raises:
            OptionError: a row has none of the forms above, or not that of the first row.
            MismatchError: rows of ids say that they are another tokenizer's.
            MissingExtraError: torch is not installed.
        """
        spans = self.spans(rows)
        arrays: dict[str, NDArray[Any]] = {}
        for side, vocab in (("student", self.tables.student), ("teacher", self.tables.teacher)):
            mask = getattr(spans, f"{side}_mask")
            # Masks exclude padding, whatever stands there.
            fill = [*vocab.roles.get("pad", ()), *vocab.roles.get("eos", ()), *vocab.roles.get("eot", ()), 0][0]
            arrays[f"{side}_input_ids"] = np.where(mask, getattr(spans, f"{side}_ids"), fill)
            arrays[f"{side}_attention_mask"] = mask.astype(np.int64)
            arrays[f"{side}_position_ids"] = positions(getattr(spans, f"{side}_segments"))
        # Nothing in its document predicts a document's first token.
        is_label = spans.student_loss_mask & (arrays["student_position_ids"] > 0)
        arrays["labels"] = np.where(is_label, spans.student_ids, IGNORED)
        try:
            from torch import from_numpy
        except ImportError as error:
            raise MissingExtraError("A batch of tensors", "torch") from error
        return {**{name: from_numpy(array) for name, array in arrays.items()}, "spans": spans.torch()}

    def spans(self, rows: Rows) -> Spans:
        """The spans of a batch, as numpy arrays."""
        form = next((name for name in ("student_ids", "messages", "text") if rows and name in rows[0]), None)
        if form is None or any(form not in row for row in rows):
            raise OptionError(
                "rows need a `text`, `messages`, or `student_ids` and `teacher_ids`, all rows of a batch the same; "
                f"got {sorted(rows[0]) if rows else 'no rows'}"
            )
        layout = self.padding_side, self.pad_to_multiple_of
        if form == "text":
            aligned = self.text_units([row["text"] for row in rows], *layout)
        elif form == "messages":
            tools = [row.get("tools") for row in rows]
            aligned = self.chat_units([row["messages"] for row in rows], *layout, tools=tools)
        else:
            aligned = self.column_units(rows).one_per_row(*layout)
        if self.pack:
            assert self.max_student_tokens is not None
            assert self.max_teacher_tokens is not None
            aligned = packed(aligned, (self.max_student_tokens, self.max_teacher_tokens), *layout)
        return make_spans(aligned)

    def column_units(self, rows: Rows) -> AlignedUnits:
        """Rows of ids as units, aligned now unless they have chunks already.

        Raises:
            OptionError: a column is missing in some rows, or its lengths do not fit.
        """
        vocabs = self.tables.student, self.tables.teacher
        limits = self.max_student_tokens, self.max_teacher_tokens
        units: list[Units] = []
        chunks: list[Numbers | None] = []
        labelled: list[NDArray[np.bool_] | None] = []
        for side, limit, vocab in zip(("student", "teacher"), limits, vocabs, strict=True):
            ids = _column(rows, f"{side}_ids")
            if ids is None:
                raise OptionError(f"rows with ids need `{side}_ids`, got {sorted(rows[0])}")
            _check_tokenizer(rows, side, vocab)
            flat = units_of(_cut(ids, limit, self.truncation_side), width=len(vocab), side=side)
            units.append(one_per_row(flat.ids, flat.counts))
            own_chunks, loss_mask = _column(rows, f"{side}_chunks"), _column(rows, f"{side}_loss_mask")
            if own_chunks is not None:
                own_chunks = _cut_chunks(own_chunks, limit, self.truncation_side)
            chunks.append(_flat(own_chunks, flat.counts, f"{side}_chunks"))
            if loss_mask is not None:
                loss_mask = _cut(loss_mask, limit, self.truncation_side)
            mask = _flat(loss_mask, flat.counts, f"{side}_loss_mask")
            labelled.append(None if mask is None else mask != 0)
        if chunks[0] is None or chunks[1] is None:
            together = chunks_of_units(units[0], units[1], self.tables)
        else:
            together = _numbered_through(chunks[0], units[0].counts, chunks[1], units[1].counts)
        return AlignedUnits(units[0], units[1], together, labelled[0], labelled[1], vocabs)


def positions(segments: NDArray[np.int32]) -> NDArray[np.int64]:
    """int64 (B, T), each token's position in its document; 0 at padding.

    >>> positions(np.array([[0, 0, 0, 1, 1, -1]])).tolist()
    [[0, 1, 2, 0, 1, 0]]
    """
    columns = np.arange(segments.shape[1])
    begins = np.ones(segments.shape, dtype=np.bool_)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    first = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
    in_document: NDArray[np.int64] = np.where(segments >= 0, columns - first, 0)
    return in_document


def block_mask(segments: Any) -> Any:
    """Which tokens a token may look at in a packed row: those of its own document up to itself.

    Args:
        segments: int (B, T) array or tensor, as in `Spans`; negative at padding.

    Returns:
        bool (B, 1, T, T), True where the token of the third axis may look at that of the fourth; padding looks at
        itself alone, since a row of nothing but False gives NaN in a softmax.
    """
    rows, columns = segments[:, :, None], segments[:, None, :]
    steps = range(segments.shape[1])
    order = segments.new_tensor(list(steps)) if hasattr(segments, "new_tensor") else np.asarray(steps)
    causal = order[:, None] >= order[None, :]
    itself = order[:, None] == order[None, :]
    return (((rows == columns) & (rows >= 0) & causal) | itself)[:, None]


# Several documents in a row


def packed(aligned: AlignedUnits, limits: tuple[int, int], padding_side: End, multiple: int = 1) -> AlignedUnits:
    """Several documents a row: each goes into the first row that has room for it on both sides.

    With at most 8 student and 8 teacher tokens, documents of (5, 4), (4, 6) and (3, 3) tokens: the first two open a row
    each, the third goes to the first row, which then has 8 and 7.

    Args:
        aligned: the documents.
        limits: most tokens in a row, the student's and the teacher's.
        padding_side: where shorter rows are padded.
        multiple: row lengths are padded to a multiple of this.

    Raises:
        OptionError: a document alone is longer than a row.
    """
    sizes = np.stack([aligned.student.counts, aligned.teacher.counts], axis=1)
    if (sizes > limits).any():
        at = int((sizes > limits).any(axis=1).argmax())
        raise OptionError(
            f"a document has {sizes[at, 0]} student and {sizes[at, 1]} teacher tokens, a packed row at most "
            f"{limits[0]} and {limits[1]}: cut documents to the row"
        )
    room = np.tile(limits, (len(sizes), 1))  # as many rows as documents at most
    rows = np.zeros(len(sizes), dtype=np.int64)
    for document, size in enumerate(sizes):
        rows[document] = (room >= size).all(axis=1).argmax()
        room[rows[document]] -= size
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    first = np.searchsorted(rows, rows)
    segments = np.arange(len(rows)) - first
    row_count = int(rows[-1]) + 1 if len(rows) else 0
    aligned = _reordered(aligned, order)
    sides: list[Units] = []
    for side in (aligned.student, aligned.teacher):
        lengths = np.bincount(rows, side.counts, minlength=row_count).astype(np.int64)
        columns = -(-int(lengths.max(initial=0)) // multiple) * multiple
        keep = token_mask(lengths, columns, padding_side)
        sides.append(Units(side.ids, side.counts, rows, segments, keep, (row_count, columns)))
    return replace(aligned, student=sides[0], teacher=sides[1])


def _reordered(aligned: AlignedUnits, order: Numbers) -> AlignedUnits:
    """The documents in another order; chunks count up through it."""
    chunks = aligned.chunks
    shift = offsets_of(chunks.count[order])[:-1] - offsets_of(chunks.count)[:-1][order]

    def reordered(
        side: Units, chunk: NDArray[np.int32], labelled: NDArray[np.bool_] | None
    ) -> tuple[Units, NDArray[np.int32], NDArray[np.bool_] | None]:
        tokens, counts = runs(side.offsets[:-1][order], side.counts[order]), side.counts[order]
        moved = np.where(chunk[tokens] >= 0, chunk[tokens] + shift.repeat(counts), -1).astype(np.int32)
        units = replace(side, ids=side.ids[tokens], counts=counts, rows=side.rows[order], segments=side.segments[order])
        return units, moved, None if labelled is None else labelled[tokens]

    student, student_chunk, student_labelled = reordered(aligned.student, chunks.student, aligned.student_labelled)
    teacher, teacher_chunk, teacher_labelled = reordered(aligned.teacher, chunks.teacher, aligned.teacher_labelled)
    together = Chunks(student_chunk, teacher_chunk, chunks.count[order], chunks.differs[order])
    return replace(
        aligned,
        student=student,
        teacher=teacher,
        chunks=together,
        student_labelled=student_labelled,
        teacher_labelled=teacher_labelled,
    )


# Columns of ids and chunks


def _numbered_through(student: Numbers, student_counts: Numbers, teacher: Numbers, teacher_counts: Numbers) -> Chunks:
    """Chunks counted from 0 in every row as chunks that count up, without those that a cut left on one side only.

    Rows of the student 0 1 2 and 0 0, of the teacher 0 0 2 and 0: chunk 1 of the first row stands on one side alone, so
    the student has 0 -1 1 and 2 2, the teacher 0 0 1 and 2.
    """
    width = int(max(student.max(initial=-1), teacher.max(initial=-1))) + 1
    keys = [
        np.where(chunk >= 0, np.arange(len(counts)).repeat(counts) * width + chunk, -1)
        for chunk, counts in ((student, student_counts), (teacher, teacher_counts))
    ]
    on_both = np.intersect1d(keys[0][keys[0] >= 0], keys[1][keys[1] >= 0])
    numbered = []
    for key in keys:
        number = np.searchsorted(on_both, key)
        is_chunk = (number < len(on_both)) & (key >= 0)
        is_chunk[is_chunk] = on_both[number[is_chunk]] == key[is_chunk]
        numbered.append(np.where(is_chunk, number, -1).astype(np.int32))
    count = np.bincount(on_both // max(width, 1), minlength=len(teacher_counts)).astype(np.int64)
    return Chunks(numbered[0], numbered[1], count, np.zeros(len(teacher_counts), dtype=np.bool_))


def _check_tokenizer(rows: Rows, side: str, vocab: Vocab) -> None:
    """Refuses rows that say of themselves that their ids are of another tokenizer."""
    for identity in {row.get(f"{side}_tokenizer") for row in rows} - {None}:
        if str(identity).rpartition("@")[2] != vocab.fingerprint:
            raise MismatchError(
                f"the rows' {side} ids are of the tokenizer {identity}, but the collator's {side} is "
                f"{vocab.identity}: align the data set anew, or give the tokenizer that it was aligned with"
            )


def _column(rows: Rows, name: str) -> list[Any] | None:
    has = [name in row for row in rows]
    if any(has) and not all(has):
        raise OptionError(f"some rows have `{name}` and some have not")
    return [row[name] for row in rows] if all(has) else None


def _cut(rows: list[Any], limit: int | None, truncation_side: End) -> list[Any]:
    if limit is None:
        return rows
    return [row[:limit] if truncation_side == "right" else row[max(len(row) - limit, 0) :] for row in rows]


def _cut_chunks(rows: list[Any], limit: int | None, truncation_side: End) -> list[Numbers]:
    """Chunks of rows that are cut; a chunk that the cut goes through says another text than before, and is dropped."""
    whole = [np.asarray(row, dtype=np.int64) for row in rows]
    cut: list[Numbers] = []
    for row, left in zip(whole, _cut(whole, limit, truncation_side), strict=True):
        sizes = np.bincount(row[row >= 0])
        is_whole = np.bincount(left[left >= 0], minlength=len(sizes)) == sizes
        in_whole_chunk = left >= 0
        in_whole_chunk[in_whole_chunk] = is_whole[left[in_whole_chunk]]
        cut.append(np.where(in_whole_chunk, left, -1))
    return cut


def _flat(column: list[Any] | None, counts: Numbers, name: str) -> Numbers | None:
    if column is None:
        return None
    if [len(entry) for entry in column] != counts.tolist():
        raise OptionError(f"`{name}` needs a value for every id of its row")
    flat: Numbers = np.concatenate([np.zeros(0, dtype=np.int64), *column], dtype=np.int64, casting="unsafe")
    return flat
