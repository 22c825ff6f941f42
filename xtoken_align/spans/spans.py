"""The spans of a batch: which tokens of the two sides form a chunk, and which logits predict them."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, OptionError
from ..vocab.vocab import Vocab
from .chunks import Chunks
from .drawing import Side, as_html, plot_tokens
from .units import End, Flags, Numbers, Units, offsets_of, one_per_row

IGNORED = -100
"""The label that PyTorch's cross-entropy ignores (`torch.nn.CrossEntropyLoss`, `ignore_index`)."""

Array = Any
"""A numpy array or a torch tensor; all arrays of one `Spans` are of one sort."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Predictions:
    """The logits that predict the tokens of the chunks in use, chunk by chunk.

    A token at position i is predicted by the logits at position i - 1. Positions count through the flattened batch, so
    `logits.flatten(0, 1)[student]` are a chunk's rows, one chunk after another.

    Attributes:
        student: int64 (student rows,), flattened positions of the logits.
        student_offsets: int64 (N + 1,), where each chunk's rows begin.
        teacher: int64 (teacher rows,).
        teacher_offsets: int64 (N + 1,).
        weight: float32 (N,), each chunk's weight; none is 0.
        student_tokens: int64 (student rows,), the ids that those logits predict.
        teacher_tokens: int64 (teacher rows,).
    """

    student: Array
    student_offsets: Array
    teacher: Array
    teacher_offsets: Array
    weight: Array
    student_tokens: Array
    teacher_tokens: Array

    def __len__(self) -> int:
        return len(self.weight)


T = TypeVar("T", "Spans", Predictions)

_ROWS_IN_HTML = 3
"""Rows that a notebook's card draws."""


@dataclass(frozen=True, slots=True)
class SpanStatistics:
    """What a batch's chunks look like; shares are of all chunks.

    Attributes:
        chunks: how many.
        one_to_one: share with one token on each side.
        one_to_many: share with one student token for several teacher tokens.
        many_to_one: share with several student tokens for one teacher token.
        many_to_many: share with several on both sides.
        student_tokens: the student's tokens without padding.
        teacher_tokens: the teacher's.
        student_gaps: the student's tokens in no chunk.
        teacher_gaps: the teacher's.
        longest: most tokens that one chunk has on one side.
    """

    chunks: int
    one_to_one: float
    one_to_many: float
    many_to_one: float
    many_to_many: float
    student_tokens: int
    teacher_tokens: int
    student_gaps: int
    teacher_gaps: int
    longest: int

    def to_dict(self) -> dict[str, int | float]:
        """The JSON of `align`."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Spans:
    """The chunks of a batch of B rows; arrays are numpy's, or torch's after `torch()`.

    Attributes:
        student: int32 (B, T_s), the chunk of each student token, counted from 0 in every row, -1 outside every chunk.
        teacher: int32 (B, T_t).
        count: int32 (B,), chunks per row.
        weight: float32 (B, C), 1 for a chunk in use, 0 for one with an unlabelled token on either side, for one that
            begins a document (nothing predicts it), and past a row's count; C is the largest count.
        student_ids: int64 (B, T_s), the ids that were aligned, 0 at padding.
        teacher_ids: int64 (B, T_t).
        student_segments: int32 (B, T_s), the number of each token's document in its row, -1 at padding.
        teacher_segments: int32 (B, T_t).
        student_loss_mask: bool (B, T_s), True for tokens that count in the loss; labels for a cross-entropy are the ids
            there and -100 elsewhere.
        teacher_loss_mask: bool (B, T_t).
    """

    student: Array
    teacher: Array
    count: Array
    weight: Array
    student_ids: Array
    teacher_ids: Array
    student_segments: Array
    teacher_segments: Array
    student_loss_mask: Array
    teacher_loss_mask: Array
    # What `with_predictions` keeps; `dataclasses.replace` drops it, since it belongs to these arrays and not to others.
    _predictions: Predictions | None = field(default=None, init=False)
    _vocabs: tuple[Vocab, Vocab] | None = None
    _tokenizers: tuple[str, str] | None = None
    _unplaced: int = 0

    def __len__(self) -> int:
        return len(self.count)

    def __repr__(self) -> str:
        totals = self.statistics()
        sides = [
            f"{tokens:,} {side} tokens ({1 - gaps / max(tokens, 1):.1%} in chunks)"
            for side, tokens, gaps in (
                ("student", totals.student_tokens, totals.student_gaps),
                ("teacher", totals.teacher_tokens, totals.teacher_gaps),
            )
        ]
        return f"Spans({len(self):,} rows, {', '.join(sides)}, {totals.chunks:,} chunks)"

    def _repr_html_(self) -> str:
        head = f"<code>{html.escape(repr(self))}</code>"
        if self._vocabs is None:
            return head
        return head + "".join(as_html(*self.sides(row)) for row in range(min(len(self), _ROWS_IN_HTML)))

    def __getstate__(self) -> dict[str, Any]:
        # Vocabularies cannot be pickled; they only serve to draw.
        return {**vars(self), "_vocabs": None}

    @property
    def tokenizers(self) -> tuple[str, str] | None:
        """Whose ids these are, the student's and the teacher's: `Vocab.identity`, a name and a fingerprint.

        Losses compare them with their mapping's. None where rows were aligned by a version that did not note them.
        """
        return self._tokenizers

    @property
    def unplaced(self) -> int:
        """How many chats are left out of the loss, since a template changes them beyond recognition."""
        return self._unplaced

    @property
    def student_mask(self) -> Array:
        """Tokens, bool (B, T_s), False at padding."""
        return self.student_segments >= 0

    @property
    def teacher_mask(self) -> Array:
        """Tokens, bool (B, T_t), False at padding."""
        return self.teacher_segments >= 0

    def sides(self, row: int = 0) -> tuple[Side, Side]:
        """The student's and the teacher's tokens of a row without padding, for drawing.

        Raises:
            OptionError: the spans know no vocabularies, as those made from columns or sent by another process.
        """
        if self._vocabs is None:
            raise OptionError(
                "these spans know no vocabularies (they came from columns or from another process): draw those that "
                "`align_texts`, `align_ids` or `align_chats` gives"
            )
        spans = self.numpy()
        student_mask, teacher_mask = spans.student_mask[row], spans.teacher_mask[row]
        count = int(spans.count[row])
        student, teacher = self._vocabs
        return (
            Side(student, spans.student_ids[row][student_mask], spans.student[row][student_mask], count),
            Side(teacher, spans.teacher_ids[row][teacher_mask], spans.teacher[row][teacher_mask], count),
        )

    def plot(self, row: int = 0, *, ax: Any = None) -> Any:
        """Draws a row with matplotlib: the student's tokens over the teacher's, a column per chunk.

        Args:
            row: which row.
            ax: matplotlib axes to draw on, by default new ones.

        Returns:
            The axes.

        Raises:
            OptionError: the spans know no vocabularies.
            MissingExtraError: matplotlib is not installed.
        """
        return plot_tokens(*self.sides(row), ax=ax)

    def torch(self) -> Spans:
        """The same with torch tensors, on the CPU; what `predictions` gives is made now.

        Raises:
            MissingExtraError: torch is not installed.
        """
        try:
            from torch import from_numpy
        except ImportError as error:
            raise MissingExtraError("Spans as tensors", "torch") from error
        if not isinstance(self.count, np.ndarray):
            return self
        return _changed(self, lambda array: from_numpy(np.ascontiguousarray(array)))

    def numpy(self) -> Spans:
        """The same with numpy arrays."""
        if isinstance(self.count, np.ndarray):
            return self
        return _changed(self, _as_numpy)

    def to(self, device: Any, *, non_blocking: bool = False) -> Spans:
        """The same with tensors on a device."""
        return _changed(self.torch(), lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Spans:
        """The same in page-locked memory; PyTorch's data loaders call it."""
        return _changed(self.torch(), lambda tensor: tensor.pin_memory())

    def predictions(self) -> Predictions:
        """The logits that predict the chunks with a weight, chunk by chunk through the batch."""
        if self._predictions is not None:
            return self._predictions
        spans = self if isinstance(self.count, np.ndarray) else _mapped(self, _as_numpy)
        chunks_before = offsets_of(spans.count.astype(np.int64))[:-1]
        weight = spans.weight[np.arange(spans.weight.shape[1]) < spans.count[:, None]]
        is_used = weight > 0
        number = np.where(is_used, is_used.cumsum() - 1, -1)
        student, student_offsets, student_tokens = _predicting(spans.student, spans.student_ids, chunks_before, number)
        teacher, teacher_offsets, teacher_tokens = _predicting(spans.teacher, spans.teacher_ids, chunks_before, number)
        predictions = Predictions(
            student=student,
            student_offsets=student_offsets,
            teacher=teacher,
            teacher_offsets=teacher_offsets,
            weight=weight[is_used],
            student_tokens=student_tokens,
            teacher_tokens=teacher_tokens,
        )
        return predictions if spans is self else _mapped(predictions, _as_torch_on(self.count.device))

    def with_predictions(self) -> Spans:
        """The same, of which `predictions` are made now, once for all that read them."""
        return _keeping(self, self.predictions())

    def statistics(self) -> SpanStatistics:
        """Shares of the kinds of chunks, gaps, and the longest chunk."""
        spans = self.numpy()
        bases = offsets_of(spans.count.astype(np.int64))[:-1, None]
        total = int(spans.count.sum())
        sizes = [np.bincount((side + bases)[side >= 0], minlength=total) for side in (spans.student, spans.teacher)]
        one = sizes[0] == 1, sizes[1] == 1
        share = 1 / total if total else 0.0
        tokens = [int(mask.sum()) for mask in (spans.student_mask, spans.teacher_mask)]
        return SpanStatistics(
            chunks=total,
            one_to_one=int((one[0] & one[1]).sum()) * share,
            one_to_many=int((one[0] & ~one[1]).sum()) * share,
            many_to_one=int((~one[0] & one[1]).sum()) * share,
            many_to_many=int((~one[0] & ~one[1]).sum()) * share,
            student_tokens=tokens[0],
            teacher_tokens=tokens[1],
            student_gaps=tokens[0] - int(sizes[0].sum()),
            teacher_gaps=tokens[1] - int(sizes[1].sum()),
            longest=max(int(side.max(initial=0)) for side in sizes),
        )


def _predicting(
    chunk: NDArray[np.int32], ids: Numbers, chunks_before: Numbers, number: Numbers
) -> tuple[Numbers, Numbers, Numbers]:
    """A side's rows of logits, their offsets by chunk in use, and the tokens that they predict.

    One row with the chunks 0 0 1 -1 2, of which 1 and 2 are in use and get the numbers 0 and 1:

        tokens of chunks in use   at 2 and 4
        rows of logits            1 and 3      a token is predicted one position before its own
        offsets                   0 1 2

    Args:
        chunk: int32 (B, T), as in `Spans`.
        ids: int64 (B, T).
        chunks_before: int64 (B,), the chunks of the rows before each.
        number: int64 (all chunks,), each chunk's number among those in use, -1 for the others.
    """
    places = (chunk >= 0).ravel().nonzero()[0]
    used_as = number[(chunk + chunks_before[:, None]).ravel()[places]]
    places, used_as = places[used_as >= 0], used_as[used_as >= 0]
    counts = np.bincount(used_as, minlength=int(number.max(initial=-1)) + 1)
    return places - 1, offsets_of(counts), ids.ravel()[places]


def _as_torch_on(device: Any) -> Callable[[Array], Array]:
    from torch import from_numpy

    return lambda array: from_numpy(array).to(device)


def _as_numpy(tensor: Array) -> Array:
    return tensor.numpy(force=True)


def _mapped(value: T, change: Callable[[Array], Array]) -> T:
    """The value with every array changed."""
    changed: dict[str, Any] = {}
    for entry in fields(value):
        array = getattr(value, entry.name)
        if array is not None and entry.name not in {"_predictions", "_vocabs", "_tokenizers", "_unplaced"}:
            changed[entry.name] = change(array)
    return replace(value, **changed)


def _changed(spans: Spans, change: Callable[[Array], Array]) -> Spans:
    """The spans with every array changed, the predictions' too, which are kept."""
    return _keeping(_mapped(spans, change), _mapped(spans.predictions(), change))


def _keeping(spans: Spans, predictions: Predictions) -> Spans:
    """A copy of spans that keeps its predictions."""
    copied = replace(spans)
    object.__setattr__(copied, "_predictions", predictions)
    return copied


@dataclass(frozen=True, eq=False)
class AlignedUnits:
    """Units of both sides with their chunks, before they are put into rows and columns.

    Attributes:
        student: the student's units.
        teacher: the teacher's.
        chunks: their chunks.
        student_labelled: bool (student tokens,), which tokens count in the loss; None for all.
        teacher_labelled: bool (teacher tokens,).
        vocabs: both vocabularies, for drawing.
        tokenizers: their identities, where the vocabularies themselves are not at hand.
        unplaced: how many chats are left out of the loss, since nobody can tell where their contents stand.
    """

    student: Units
    teacher: Units
    chunks: Chunks
    student_labelled: Flags | None = None
    teacher_labelled: Flags | None = None
    vocabs: tuple[Vocab, Vocab] | None = None
    tokenizers: tuple[str, str] | None = None
    unplaced: int = 0

    def one_per_row(self, padding_side: End, multiple: int = 1) -> AlignedUnits:
        """The same with every unit in a row of its own, see `units.one_per_row`."""
        student, teacher = (
            one_per_row(side.ids, side.counts, padding_side, multiple) for side in (self.student, self.teacher)
        )
        return replace(self, student=student, teacher=teacher)


def make_spans(aligned: AlignedUnits) -> Spans:
    """Puts chunks into rows and columns and weighs them.

    Two units with chunks 0 0 1 and 2, each in a row of its own: the rows count from 0 again, 0 0 1 and 0 -1.
    """
    student, teacher, chunks = aligned.student, aligned.teacher, aligned.chunks
    rows = student.shape[0]
    count = np.bincount(student.rows, chunks.count, minlength=rows).astype(np.int64)
    first_chunk = offsets_of(count)
    flat_weight = np.ones(int(first_chunk[-1]), dtype=np.float32)
    arrays: dict[str, Any] = {}
    for name, side, chunk, labelled in (
        ("student", student, chunks.student, aligned.student_labelled),
        ("teacher", teacher, chunks.teacher, aligned.teacher_labelled),
    ):
        # Nothing in its own document predicts a document's first token.
        first = chunk[(side.counts.cumsum() - side.counts)[side.counts > 0]]
        flat_weight[first[first >= 0]] = 0
        if labelled is not None:
            unlabelled = chunk[~labelled]
            flat_weight[unlabelled[unlabelled >= 0]] = 0
        in_rows = side.spread(chunk) if side.keep is not None else side.spread(chunk).copy()
        in_rows -= first_chunk[:-1, None].astype(np.int32)
        arrays[name] = np.maximum(in_rows, np.int32(-1), out=in_rows)
        arrays[f"{name}_ids"] = side.spread(side.ids, 0)
        mask = side.mask
        arrays[f"{name}_loss_mask"] = mask if labelled is None else side.spread(labelled, fill=0)
        if side.segments.any():
            arrays[f"{name}_segments"] = side.spread(side.segments.astype(np.int32).repeat(side.counts))
        else:
            arrays[f"{name}_segments"] = np.subtract(mask, 1, dtype=np.int32)
    columns = np.arange(int(count.max(initial=0)))
    weight = np.zeros((rows, len(columns)), dtype=np.float32)
    weight[columns < count[:, None]] = flat_weight
    vocabs, tokenizers = aligned.vocabs, aligned.tokenizers
    if vocabs is not None:
        tokenizers = vocabs[0].identity, vocabs[1].identity
    arrays |= {"_vocabs": vocabs, "_tokenizers": tokenizers, "_unplaced": aligned.unplaced}
    return Spans(count=count.astype(np.int32), weight=weight, **arrays)
