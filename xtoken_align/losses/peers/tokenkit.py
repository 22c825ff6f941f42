"""tokenkit's approximate likelihood matching (ALM, 2025) with its `binary_ce` difference."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import OptionError
from ...mapping.mapping import Mapping
from ...spans.spans import Spans
from ..functional import binary_ce
from ..inputs import compute_dtype
from ..options import check_one_of, check_shape
from .chunks import Side, rows_at, sum_in_chunks, valid_chunks

ALM_MODES = ("none", "append_space")


@dataclass(frozen=True, eq=False)
class ALMLoss:
    """ALM and its parts.

    Attributes:
        loss: scalar with the student's graph, the mean of `chunk_ce`.
        num_chunks: N.
        chunks: int64 (N, 2), sample and chunk id.
        teacher_log_likelihood: (N,), natural logarithms.
        student_log_likelihood: (N,), detached.
        chunk_ce: (N,), detached.
    """

    loss: torch.Tensor
    num_chunks: int
    chunks: torch.Tensor
    teacher_log_likelihood: torch.Tensor
    student_log_likelihood: torch.Tensor
    chunk_ce: torch.Tensor


def alm(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    student_chunks: torch.Tensor,
    teacher_chunks: torch.Tensor,
    *,
    student_ids: torch.Tensor,
    teacher_ids: torch.Tensor,
    pair_valid: torch.Tensor | None = None,
    sample_mask: torch.Tensor | None = None,
    tau: float = 100.0,
    alm_mode: str = "none",
    student_space_ids: torch.Tensor | None = None,
    teacher_space_ids: torch.Tensor | None = None,
) -> ALMLoss:
    """The ALM loss of tokenkit: both models' likelihoods of each chunk, compared by `binary_ce`.

    l = sum over the chunk's tokens x_t, t >= 1, of log softmax(z[t - 1])[x_t], at most 0. `alm_mode` "append_space"
    adds log of the mass on the space ids after the chunk's last token, at most 0.
    loss = mean over chunks of binary_ce(l_T, l_S).

    What differs from our losses: one number per chunk is compared and not distributions, so it needs no mapping; there
    is no T^2; the least value is an entropy and not 0; N is counted in this call. The peer counts every chunk that the
    teacher predicts, also where the student predicts nothing; here both must.

    Args:
        student_logits: floats (B, T_s, V_s). float64 is computed in float64, all else in float32.
        teacher_logits: floats (B, T_t, V_t).
        student_chunks: integers (B, T_s), the chunk of each token (before any shift), -1 for none.
        teacher_chunks: integers (B, T_t).
        student_ids: integers (B, T_s).
        teacher_ids: integers (B, T_t).
        pair_valid: (B, C), non-zero where a chunk may count; by default everywhere.
        sample_mask: (B,), non-zero where a sample may count.
        tau: the temperature of `binary_ce`; the models' own softmax has none.
        alm_mode: "none" or "append_space".
        student_space_ids: integers (k,), the student ids that begin with a space; for "append_space".
        teacher_space_ids: integers (k,), the teacher's.

    Returns:
        The loss and its parts; 0 with a graph where no chunk is valid.

    Raises:
        OptionError: for an option out of range, missing space ids, or shapes that do not belong together.

    Example:
        >>> import torch
        >>> logits, ids, chunks = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]), torch.tensor([[-1, 0, 0]])
        >>> out = alm(logits, logits, chunks, chunks, student_ids=ids, teacher_ids=ids)
        >>> round(float(out.student_log_likelihood[0]), 4), round(float(out.loss), 4)
        (-2.7726, 0.1254)

    Source: tokenkit, `compute_alm_loss`, 2025; Minixhofer et al. 2025.
    """
    check_one_of("alm_mode", alm_mode, ALM_MODES)
    check_shape("student_ids", student_ids, student_chunks.shape, "(B, T_s)")
    check_shape("teacher_ids", teacher_ids, teacher_chunks.shape, "(B, T_t)")
    chunks = valid_chunks(
        student_logits, teacher_logits, student_chunks, teacher_chunks, pair_valid=pair_valid, sample_mask=sample_mask
    )
    dtype = compute_dtype(student_logits)
    student = _log_likelihood(student_logits, student_ids, chunks.student, dtype)
    teacher = _log_likelihood(teacher_logits.detach(), teacher_ids, chunks.teacher, dtype)
    if alm_mode == "append_space":
        student = student + _log_space(student_logits, chunks.student, student_space_ids, dtype)
        teacher = teacher + _log_space(teacher_logits.detach(), chunks.teacher, teacher_space_ids, dtype)
    chunk_ce = binary_ce(teacher, student, tau=tau)
    return ALMLoss(
        loss=chunk_ce.sum() / max(len(chunks), 1),
        num_chunks=len(chunks),
        chunks=chunks.index,
        teacher_log_likelihood=teacher,
        student_log_likelihood=student.detach(),
        chunk_ce=chunk_ce.detach(),
    )


def _log_likelihood(logits: torch.Tensor, ids: torch.Tensor, side: Side, dtype: torch.dtype) -> torch.Tensor:
    """(N,) log-likelihoods of the chunks' own tokens, which stand one after the predicting positions."""
    log_probabilities = rows_at(logits, side.rows, dtype).log_softmax(dim=-1)
    own = ids.reshape(-1)[side.rows + 1].long()
    return sum_in_chunks(log_probabilities.gather(1, own.unsqueeze(1)).squeeze(1), side).clamp_max(0)


def _log_space(logits: torch.Tensor, side: Side, space_ids: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """(N,) log-masses on the space ids, read at each chunk's last token and so about the token after the chunk."""
    if space_ids is None or not space_ids.numel():
        raise OptionError("alm_mode='append_space' needs student_space_ids and teacher_space_ids, but one has no ids")
    last = torch.zeros_like(side.size).scatter_reduce(0, side.chunk, side.rows + 1, "amax", include_self=False)
    log_probabilities = rows_at(logits, last, dtype).log_softmax(dim=-1)
    return log_probabilities.index_select(1, space_ids.long()).logsumexp(dim=1).clamp_max(0)


def on_spans(mapping: Mapping, student: torch.Tensor, teacher: torch.Tensor, spans: Spans, **_: object) -> torch.Tensor:
    """The loss of one batch of this library, scalar: what `XTokenLoss(compat="tokenkit")` calls.

    Args:
        mapping: not read: likelihoods need none.
        student: floats (B, T_s, V_s).
        teacher: floats (B, T_t, V_t).
        spans: on the logits' device.
    """
    del mapping
    return alm(
        student,
        teacher,
        spans.student,
        spans.teacher,
        student_ids=spans.student_ids,
        teacher_ids=spans.teacher_ids,
        pair_valid=spans.weight > 0,
    ).loss
