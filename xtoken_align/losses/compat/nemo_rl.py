"""NeMo-RL's cross-tokenizer losses (X-Token, 2026): P-KL, gold and H-KL.

The options carry NeMo-RL's own names. As there, the chunks of one call are the divisor, so results depend on how a
batch is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import OptionError
from ..options import positive, same_shape, size
from .chunks import Side, compute_dtype, rows_at, sum_in_chunks, valid_chunks
from .nemo_pairs import Pairs, check_links

# The peer adds these so that nothing divides by 0 or takes log 0; they show from the tenth decimal on.
_EPSILON = 1e-10


@dataclass(frozen=True, eq=False)
class PKLLoss:
    """P-KL and its parts.

    Attributes:
        loss: scalar with the student's graph, T^2 times the mean of `chunk_kl`.
        num_valid_chunks: N.
        chunks: int64 (N, 2), sample and chunk id.
        chunk_kl: (N,), each chunk's divergence, detached.
        topk_teacher_ids: int64 (K,), the columns compared, ascending.
    """

    loss: torch.Tensor
    num_valid_chunks: int
    chunks: torch.Tensor
    chunk_kl: torch.Tensor
    topk_teacher_ids: torch.Tensor


@dataclass(frozen=True, eq=False)
class GoldLoss:
    """Gold or H-KL and its parts.

    Attributes:
        loss: scalar with the student's graph, T^2 * (kl_common + l1_uncommon).
        kl_common: scalar, mean of `chunk_kl`, without T^2; with the graph, like `l1_uncommon`.
        l1_uncommon: scalar, mean of `chunk_l1`.
        num_valid_chunks: N.
        chunks: int64 (N, 2), sample and chunk id.
        chunk_kl: (N,), the common part, not normalised and therefore possibly negative; detached.
        chunk_l1: (N,), the uncommon part; detached.
        teacher_common_mass: (N,), exp of the teacher's mean log-probabilities, summed over the common ids.
    """

    loss: torch.Tensor
    kl_common: torch.Tensor
    l1_uncommon: torch.Tensor
    num_valid_chunks: int
    chunks: torch.Tensor
    chunk_kl: torch.Tensor
    chunk_l1: torch.Tensor
    teacher_common_mass: torch.Tensor


def p_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    student_chunks: torch.Tensor,
    teacher_chunks: torch.Tensor,
    *,
    rows: torch.Tensor,
    columns: torch.Tensor,
    weights: torch.Tensor,
    pair_valid: torch.Tensor | None = None,
    pair_is_correct: torch.Tensor | None = None,
    sample_mask: torch.Tensor | None = None,
    temperature: float = 1.0,
    reverse_kl: bool = False,
    vocab_topk: int = 8192,
    exact_token_match_only: bool = False,
) -> PKLLoss:
    """NeMo-RL's P-KL.

    u = mean over the chunk's positions of softmax(z_S / T) W on the columns K, divided by its sum; s = log u.
    t = mean over the chunk's positions of log softmax over K of z_T / T.
    loss = T^2 / N * sum over chunks of sum over K of exp(t) (t - s); reversed, of exp(s) (s - t).

    K are the `vocab_topk` teacher ids with the highest logit anywhere in the call. Every mean divides by the count +
    1e-10, every log takes its argument + 1e-10.

    What differs from our P-KL: t is a mean of log-probabilities and not renormalised, so where a chunk has several
    teacher positions the sum is no divergence and can be negative; K depends on the whole call, padding and masked
    samples included; teacher mass on columns that no row reaches is charged to the student; the temperature acts before
    the projection, so a perfect student does not score 0 at T > 1; N is counted in this call.

    Args:
        student_logits: floats (B, T_s, V_s). float64 is computed in float64, all else in float32.
        teacher_logits: floats (B, T_t, V_t). Cut the width's padding off first, as the peer does.
        student_chunks: integers (B, T_s), the chunk of each token (before any shift), -1 for none.
        teacher_chunks: integers (B, T_t).
        rows: integers (links,), the student ids of the mapping's links.
        columns: integers (links,), the teacher ids.
        weights: floats (links,).
        pair_valid: (B, C), non-zero where a chunk may count; by default everywhere.
        pair_is_correct: (B, C), non-zero where both sides' chunk is one equal token.
        sample_mask: (B,), non-zero where a sample may count.
        temperature: T.
        reverse_kl: compare in the other direction.
        vocab_topk: the size of K; a number above V_t takes all columns, 0 none.
        exact_token_match_only: count only the chunks of `pair_is_correct`.

    Returns:
        The loss and its parts; 0 with a graph where no chunk is valid.

    Raises:
        OptionError: for an option out of range or shapes that do not belong together.

    Example:
        >>> import torch
        >>> z, chunks, same = torch.zeros(1, 3, 2), torch.tensor([[-1, 0, 1]]), torch.arange(2)
        >>> out = p_kl(z, z, chunks, chunks, rows=same, columns=same, weights=torch.ones(2))
        >>> out.num_valid_chunks, round(float(out.loss), 6)
        (2, 0.0)

    Source: NeMo-RL, `CrossTokenizerDistillationLossFn`, 2026; X-Token, 2026.
    """
    positive("temperature", temperature)
    kept = min(size("vocab_topk", vocab_topk), teacher_logits.shape[-1])
    check_links(rows, columns, weights, (student_logits.shape[-1], teacher_logits.shape[-1]))
    pair_valid = _exact_pairs(pair_valid, pair_is_correct) if exact_token_match_only else pair_valid
    chunks = valid_chunks(
        student_logits, teacher_logits, student_chunks, teacher_chunks, pair_valid=pair_valid, sample_mask=sample_mask
    )
    dtype = compute_dtype(student_logits)
    top = _highest_anywhere(teacher_logits.detach(), kept)
    student = (rows_at(student_logits, chunks.student.rows, dtype) / temperature).softmax(dim=-1)
    projected = _project(
        _mean(student, chunks.student), rows, columns, weights.to(dtype), top, teacher_logits.shape[-1]
    )
    projected = projected / (projected.sum(dim=-1, keepdim=True) + _EPSILON)
    log_student = (projected + _EPSILON).log()
    teacher = rows_at(teacher_logits.detach(), chunks.teacher.rows, dtype).index_select(1, top)
    log_teacher = _mean((teacher / temperature).log_softmax(dim=-1), chunks.teacher)
    chunk_kl = _divergence(log_teacher, log_student, reverse=reverse_kl)
    return PKLLoss(
        loss=temperature**2 * chunk_kl.sum() / max(len(chunks), 1),
        num_valid_chunks=len(chunks),
        chunks=chunks.index,
        chunk_kl=chunk_kl.detach(),
        topk_teacher_ids=top,
    )


def gold(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    student_chunks: torch.Tensor,
    teacher_chunks: torch.Tensor,
    *,
    pairs: Pairs,
    pair_valid: torch.Tensor | None = None,
    sample_mask: torch.Tensor | None = None,
    temperature: float = 1.0,
    reverse_kl: bool = False,
    uncommon_topk: int = 8192,
) -> GoldLoss:
    """NeMo-RL's gold (strict pairs) and H-KL (relaxed pairs).

    s, t = means over the chunk's positions of log softmax(z / T) over the whole vocabularies.
    kl_common = 1 / N * sum over chunks and common pairs of exp(t) (t - s); reversed, of exp(s) (s - t).
    l1_uncommon = 1 / N * sum over chunks of sum over r <= m of |r-th largest exp(s) - r-th largest exp(t)| of the
    uncommon ids, m = min(|U_S|, |U_T|, uncommon_topk).
    loss = T^2 (kl_common + l1_uncommon).

    What differs from our H-KL and GOLD: without a rest bucket the common part is no divergence: it can be negative, and
    its gradient pushes every uncommon student logit j down by p_S[j] times the teacher's common mass. Means of
    log-probabilities are not distributions. What stands beyond m is dropped, not compared with zeros. N is counted in
    this call. `exact_token_match_only` does not exist here: the peer reads it for P-KL alone.

    Args:
        student_logits: floats (B, T_s, V_s). float64 is computed in float64, all else in float32.
        teacher_logits: floats (B, T_t, V_t). Cut the width's padding off first, as the peer does.
        student_chunks: integers (B, T_s), the chunk of each token (before any shift), -1 for none.
        teacher_chunks: integers (B, T_t).
        pairs: from `find_pairs`, strict for gold, relaxed for H-KL.
        pair_valid: (B, C), non-zero where a chunk may count; by default everywhere.
        sample_mask: (B,), non-zero where a sample may count.
        temperature: T.
        reverse_kl: compare the common part in the other direction.
        uncommon_topk: how many of the uncommon probabilities are compared at most.

    Returns:
        The loss and its parts; 0 with a graph where no chunk is valid.

    Raises:
        OptionError: for an option out of range or shapes that do not belong together.

    Example:
        >>> import torch
        >>> from xtoken_align.losses.compat.nemo_pairs import Pairs
        >>> teacher = torch.tensor([0.3, 0.2, 0.5]).log().expand(1, 2, 3)
        >>> student = torch.tensor([0.5, 0.4, 0.1]).log().expand(1, 2, 3)
        >>> pairs = Pairs(torch.tensor([[0, 0], [1, 1]]), torch.tensor([2]), torch.tensor([2]))
        >>> out = gold(student, teacher, torch.tensor([[-1, 0]]), torch.tensor([[-1, 0]]), pairs=pairs)
        >>> round(float(out.kl_common), 4), round(float(out.l1_uncommon), 4)
        (-0.2919, 0.4)

    Source: NeMo-RL, `CrossTokenizerDistillationLossFn`, 2026; X-Token, 2026.
    """
    positive("temperature", temperature)
    _check_widths(pairs, student_logits, teacher_logits)
    chunks = valid_chunks(
        student_logits, teacher_logits, student_chunks, teacher_chunks, pair_valid=pair_valid, sample_mask=sample_mask
    )
    dtype = compute_dtype(student_logits)
    student = (rows_at(student_logits, chunks.student.rows, dtype) / temperature).log_softmax(dim=-1)
    teacher = (rows_at(teacher_logits.detach(), chunks.teacher.rows, dtype) / temperature).log_softmax(dim=-1)
    log_student, log_teacher = _mean(student, chunks.student), _mean(teacher, chunks.teacher)
    common_student = log_student.index_select(1, pairs.common[:, 0])
    common_teacher = log_teacher.index_select(1, pairs.common[:, 1])
    chunk_kl = _divergence(common_teacher, common_student, reverse=reverse_kl)
    chunk_l1 = _sorted_distance(
        log_student.index_select(1, pairs.uncommon_student).exp(),
        log_teacher.index_select(1, pairs.uncommon_teacher).exp(),
        size("uncommon_topk", uncommon_topk),
    )
    kl_common, l1_uncommon = chunk_kl.sum() / max(len(chunks), 1), chunk_l1.sum() / max(len(chunks), 1)
    return GoldLoss(
        loss=temperature**2 * (kl_common + l1_uncommon),
        kl_common=kl_common,
        l1_uncommon=l1_uncommon,
        num_valid_chunks=len(chunks),
        chunks=chunks.index,
        chunk_kl=chunk_kl.detach(),
        chunk_l1=chunk_l1.detach(),
        teacher_common_mass=common_teacher.exp().sum(dim=-1),
    )


def _check_widths(pairs: Pairs, student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> None:
    """Pairs of other vocabularies would leave ids out, or compare the wrong ones, without a word."""
    split = tuple(len(pairs.common) + len(rest) for rest in (pairs.uncommon_student, pairs.uncommon_teacher))
    widths = (student_logits.shape[-1], teacher_logits.shape[-1])
    if split != widths:
        raise OptionError(f"pairs must split vocabularies of the logits' widths {widths}, but they split {split}")


def _exact_pairs(pair_valid: torch.Tensor | None, pair_is_correct: torch.Tensor | None) -> torch.Tensor:
    if pair_is_correct is None:
        raise OptionError("exact_token_match_only needs pair_is_correct (B, C), but it is None")
    if pair_valid is None:
        return pair_is_correct
    same_shape("pair_is_correct", pair_is_correct, pair_valid.shape, "(B, C)")
    return pair_valid.bool() & pair_is_correct.bool()


def _highest_anywhere(logits: torch.Tensor, kept: int) -> torch.Tensor:
    """The ids of the `kept` largest maxima over all positions, ascending. A batch without a position has none."""
    flat = logits.reshape(-1, logits.shape[-1])
    highest = flat.amax(dim=0) if len(flat) else flat.new_zeros(flat.shape[1])
    return highest.topk(kept).indices.sort().values


def _mean(values: torch.Tensor, side: Side) -> torch.Tensor:
    return sum_in_chunks(values, side) / (side.size.to(values.dtype) + _EPSILON).unsqueeze(1)


def _project(
    probabilities: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    weights: torch.Tensor,
    top: torch.Tensor,
    width: int,
) -> torch.Tensor:
    """(N, V_s) times W on the columns `top`: (N, K). Only the links into them are touched."""
    place = torch.full((width,), -1, dtype=torch.int64, device=top.device)
    place[top] = torch.arange(len(top), device=top.device)
    target = place[columns.long()]
    kept = target >= 0
    mass = probabilities.index_select(1, rows[kept].long()) * weights[kept]
    return mass.new_zeros(len(mass), len(top)).index_add(1, target[kept], mass)


def _divergence(log_teacher: torch.Tensor, log_student: torch.Tensor, *, reverse: bool) -> torch.Tensor:
    """Row sums of p (log p - log q), p the teacher's, or the student's where reversed; 0 where p is 0."""
    log_p, log_q = (log_student, log_teacher) if reverse else (log_teacher, log_student)
    p = log_p.exp()
    return (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(dim=-1)


def _sorted_distance(student: torch.Tensor, teacher: torch.Tensor, most: int) -> torch.Tensor:
    """Row sums of |difference| of the largest values in order, as many as both sides have, at most `most`."""
    length = min(student.shape[1], teacher.shape[1], most)
    return (student.topk(length, dim=1).values - teacher.topk(length, dim=1).values).abs().sum(dim=1)
