"""Sets of token ids as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import OptionError
from ..options import check_batches, check_shape


def other_ids(ids: torch.Tensor, width: int) -> torch.Tensor:
    """The ids below `width` that are not in `ids`, int64, ascending.

    Example:
        >>> import torch
        >>> other_ids(torch.tensor([3, 0]), 5).tolist()
        [1, 2, 4]
    """
    rest = torch.ones(width, dtype=torch.bool, device=ids.device)
    rest[ids.long()] = False
    return rest.nonzero().squeeze(1)


@dataclass(frozen=True, eq=False)
class Side:
    """One side's predicting positions of the N valid chunks.

    Attributes:
        rows: int64 (P,), positions in the flattened batch (b * T + t), ascending.
        chunk: int64 (P,), the valid chunk each predicts, 0 to N - 1.
        size: int64 (N,), how many positions predict each chunk.
    """

    rows: torch.Tensor
    chunk: torch.Tensor
    size: torch.Tensor


@dataclass(frozen=True, eq=False)
class Chunks:
    """The chunks that count.

    Attributes:
        index: int64 (N, 2), sample and chunk id of every valid chunk, in that order.
        student: the student's predicting positions.
        teacher: the teacher's.
    """

    index: torch.Tensor
    student: Side
    teacher: Side

    def __len__(self) -> int:
        return len(self.index)


def valid_chunks(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    student_chunks: torch.Tensor,
    teacher_chunks: torch.Tensor,
    *,
    pair_valid: torch.Tensor | None = None,
    sample_mask: torch.Tensor | None = None,
) -> Chunks:
    """Finds every chunk that both sides predict and that nothing masks.

    The logits at t predict token t + 1, so a chunk's positions are its tokens' minus one. A row's first token has no
    predictor: a chunk made of it alone is left out.

    Args:
        student_logits: (B, T_s, V_s); only the shape is read, as of `teacher_logits` (B, T_t, V_t).
        teacher_logits: the teacher's.
        student_chunks: integers (B, T_s), the chunk of each token, -1 for none.
        teacher_chunks: integers (B, T_t).
        pair_valid: (B, C), non-zero where a chunk may count; by default everywhere.
        sample_mask: (B,), non-zero where a sample may count; by default everywhere.

    Raises:
        OptionError: for shapes that do not belong together, and for chunk ids of C or more.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 4, 7), torch.zeros(1, 3, 9)
        >>> found = valid_chunks(student, teacher, torch.tensor([[-1, 0, 1, 1]]), torch.tensor([[-1, 0, 1]]))
        >>> found.student.rows.tolist(), found.student.chunk.tolist(), found.student.size.tolist()
        ([0, 1, 2], [0, 1, 1], [1, 2])
    """
    check_batches(student_logits, teacher_logits)
    check_shape("student_chunks", student_chunks, student_logits.shape[:2], "(B, T_s)")
    check_shape("teacher_chunks", teacher_chunks, teacher_logits.shape[:2], "(B, T_t)")
    samples, slots = len(student_logits), _slots(student_chunks, teacher_chunks, pair_valid)
    student_rows, student_cells = _predictions(student_chunks, slots)
    teacher_rows, teacher_cells = _predictions(teacher_chunks, slots)
    student_size = torch.bincount(student_cells, minlength=samples * slots)
    teacher_size = torch.bincount(teacher_cells, minlength=samples * slots)
    valid = (student_size > 0) & (teacher_size > 0)
    if pair_valid is not None:
        check_shape("pair_valid", pair_valid, (samples, slots), "(B, C)")
        valid = valid & pair_valid.bool().reshape(-1)
    if sample_mask is not None:
        check_shape("sample_mask", sample_mask, (samples,), "(B,)")
        valid = valid & sample_mask.bool().repeat_interleave(slots)
    cells = valid.nonzero().squeeze(1)
    rank = valid.cumsum(0) - 1
    width = max(slots, 1)
    return Chunks(
        index=torch.stack([cells // width, cells % width], dim=1),
        student=_side(student_rows, student_cells, valid, rank, student_size[cells]),
        teacher=_side(teacher_rows, teacher_cells, valid, rank, teacher_size[cells]),
    )


def rows_at(logits: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows (P, V) of logits (B, T, V) at flat positions (P,). An empty selection still carries the graph."""
    return logits.reshape(-1, logits.shape[-1]).index_select(0, rows).to(dtype)


def sum_in_chunks(values: torch.Tensor, side: Side) -> torch.Tensor:
    """Sums (P, ...) over each chunk's positions: (N, ...).

    Added by index and not by a product with zeros and ones, where 0 times -inf would be NaN.
    """
    return values.new_zeros(len(side.size), *values.shape[1:]).index_add(0, side.chunk, values)


def _slots(student: torch.Tensor, teacher: torch.Tensor, pair_valid: torch.Tensor | None) -> int:
    """C: the width of `pair_valid`, else one more than the largest id."""
    largest = max((int(ids.max()) for ids in (student, teacher) if ids.numel()), default=-1)
    if pair_valid is None:
        return largest + 1
    if largest >= pair_valid.shape[-1]:
        raise OptionError(
            f"chunk ids must be below the width of pair_valid, which is {pair_valid.shape[-1]}, but the largest is "
            f"{largest}"
        )
    return pair_valid.shape[-1]


def _predictions(ids: torch.Tensor, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat positions that predict a token of some chunk, and that chunk's cell b * C + c."""
    length = ids.shape[1]
    sample, position = (ids[:, 1:] >= 0).nonzero(as_tuple=True)
    return sample * length + position, sample * slots + ids[sample, position + 1].long()


def _side(rows: torch.Tensor, cells: torch.Tensor, valid: torch.Tensor, rank: torch.Tensor, size: torch.Tensor) -> Side:
    kept = valid[cells]
    return Side(rows=rows[kept], chunk=rank[cells[kept]], size=size)
