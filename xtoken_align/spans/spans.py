"""The spans of a batch: which tokens of the two sides form a chunk, and which logits predict them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError
from .units import offsets_of

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


@dataclass(frozen=True, eq=False, kw_only=True)
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
    _predictions: Predictions | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.count)

    @property
    def student_mask(self) -> Array:
        """Tokens, bool (B, T_s), False at padding."""
        return self.student_segments >= 0

    @property
    def teacher_mask(self) -> Array:
        """Tokens, bool (B, T_t), False at padding."""
        return self.teacher_segments >= 0

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
        made = replace(self, _predictions=self.predictions())
        return _mapped(made, lambda array: from_numpy(np.ascontiguousarray(array)))

    def numpy(self) -> Spans:
        """The same with numpy arrays."""
        if isinstance(self.count, np.ndarray):
            return self
        return _mapped(self, lambda tensor: tensor.numpy(force=True))

    def to(self, device: Any, *, non_blocking: bool = False) -> Spans:
        """The same with tensors on a device."""
        return _mapped(self.torch(), lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Spans:
        """The same in page-locked memory; PyTorch's data loaders call it."""
        return _mapped(self.torch(), lambda tensor: tensor.pin_memory())

    def predictions(self) -> Predictions:
        """The logits that predict the chunks with a weight, chunk by chunk through the batch."""
        if self._predictions is not None:
            return self._predictions
        spans = self.numpy()
        bases = offsets_of(spans.count.astype(np.int64))[:-1]
        columns = np.arange(spans.weight.shape[1])
        weight = spans.weight[columns < spans.count[:, None]]
        used = weight > 0
        number = np.where(used, used.cumsum() - 1, -1)
        sides = {
            "student": _predicting(spans.student, spans.student_ids, bases, number),
            "teacher": _predicting(spans.teacher, spans.teacher_ids, bases, number),
        }
        made = Predictions(
            weight=weight[used],
            **{name: side[0] for name, side in sides.items()},
            **{f"{name}_offsets": side[1] for name, side in sides.items()},
            **{f"{name}_tokens": side[2] for name, side in sides.items()},
        )
        return made if spans is self else _mapped(made, _as_torch_on(self.count.device))

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
    chunk: NDArray[np.int32], ids: NDArray[np.int64], bases: NDArray[np.int64], number: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """A side's rows of logits, their offsets by chunk in use, and the tokens that they predict."""
    places = (chunk >= 0).ravel().nonzero()[0]
    owner = number[(chunk + bases[:, None]).ravel()[places]]
    places, owner = places[owner >= 0], owner[owner >= 0]
    counts = np.bincount(owner, minlength=int(number.max(initial=-1)) + 1)
    return places - 1, offsets_of(counts), ids.ravel()[places]


def _as_torch_on(device: Any) -> Callable[[Array], Array]:
    from torch import from_numpy

    return lambda array: from_numpy(array).to(device)


def _mapped(value: T, change: Callable[[Array], Array]) -> T:
    """The value with every array changed."""
    made: dict[str, Any] = {}
    for entry in fields(value):
        array = getattr(value, entry.name)
        if isinstance(array, Predictions):
            made[entry.name] = _mapped(array, change)
        elif array is not None:
            made[entry.name] = change(array)
    return replace(value, **made)
