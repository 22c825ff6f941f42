"""NeMo-RL's cross-tokenizer losses (X-Token, 2026): P-KL, gold, H-KL, common pairs, and the sum with a cross-entropy.

The options carry NeMo-RL's own names. As there, the chunks of one call are the divisor, so results depend on how a
batch is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import OptionError
from ...mapping.mapping import Mapping
from ...spans.spans import Spans
from ..inputs import compute_dtype
from ..options import check_links, check_positive, check_shape, check_size, check_weight
from .chunks import Side, other_ids, rows_at, sum_in_chunks, valid_chunks

RELAXED_WEIGHT = 0.6
"""The least top weight of a row whose token has a counterpart under the relaxed rule (NeMo-RL 2026, `xtoken_loss`)."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Two vocabularies split into a common part and two remainders.

    Attributes:
        common: int64 (M, 2), student and teacher ids, ascending by student; one to one.
        uncommon_student: int64 (V_s - M,), the other student ids, ascending.
        uncommon_teacher: int64 (V_t - M,), the other teacher ids, ascending.
    """

    common: torch.Tensor
    uncommon_student: torch.Tensor
    uncommon_teacher: torch.Tensor


def find_pairs(
    rows: torch.Tensor,
    columns: torch.Tensor,
    weights: torch.Tensor,
    shape: tuple[int, int],
    *,
    xtoken_loss: bool = False,
) -> Pairs:
    """Picks the common pairs from the mapping's links.

    Strict (`xtoken_loss` False, NeMo-RL's gold): the rows of one link of weight exactly 1. Relaxed (True, its H-KL):
    the rows whose heaviest link weighs 0.6 or more. Where several rows claim one column, the heaviest link wins, then
    the lowest student id.

    Args:
        rows: integers (links,), student ids.
        columns: integers (links,), teacher ids.
        weights: floats (links,).
        shape: (V_s, V_t).
        xtoken_loss: the peer's name for the relaxed rule.

    Returns:
        The pairs, on the device of `rows`. They depend on the mapping alone: find them once, not at every step.

    Raises:
        OptionError: where the three arrays differ in length or an id lies outside of `shape`.

    Example:
        >>> import torch
        >>> rows, columns = torch.tensor([0, 1, 1, 2]), torch.tensor([3, 1, 0, 3])
        >>> weights = torch.tensor([1.0, 0.9, 0.1, 1.0])
        >>> find_pairs(rows, columns, weights, (3, 4)).common.tolist()
        [[0, 3]]
        >>> find_pairs(rows, columns, weights, (3, 4), xtoken_loss=True).common.tolist()
        [[0, 3], [1, 1]]

    Source: NeMo-RL, `x_token` losses, 2026. Ours differ: `XTokenLoss` matches by surfaces, not by weights.
    """
    check_links(rows, columns, weights, shape)
    rows, columns = rows.long(), columns.long()
    if xtoken_loss:
        # Stable, so that of equal weights the link stored first is the row's top.
        order = weights.argsort(descending=True, stable=True)
        order = order[_first_of_each(rows[order])]
        order = order[weights[order] >= RELAXED_WEIGHT]
    else:
        order = ((torch.bincount(rows, minlength=shape[0])[rows] == 1) & (weights == 1)).nonzero().squeeze(1)
    order = order[rows[order].argsort(stable=True)]
    order = order[weights[order].argsort(descending=True, stable=True)]
    order = order[_first_of_each(columns[order])]
    order = order[rows[order].argsort(stable=True)]
    return Pairs(
        common=torch.stack([rows[order], columns[order]], dim=1),
        uncommon_student=other_ids(rows[order], shape[0]),
        uncommon_teacher=other_ids(columns[order], shape[1]),
    )


def _first_of_each(keys: torch.Tensor) -> torch.Tensor:
    """Where each key occurs first, ascending by key."""
    order = keys.argsort(stable=True)
    ordered = keys[order]
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    return order[begins]


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
    check_positive("temperature", temperature)
    kept = min(check_size("vocab_topk", vocab_topk), teacher_logits.shape[-1])
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
        >>> from xtoken_align.losses.peers.nemo_rl import Pairs
        >>> teacher = torch.tensor([0.3, 0.2, 0.5]).log().expand(1, 2, 3)
        >>> student = torch.tensor([0.5, 0.4, 0.1]).log().expand(1, 2, 3)
        >>> pairs = Pairs(torch.tensor([[0, 0], [1, 1]]), torch.tensor([2]), torch.tensor([2]))
        >>> out = gold(student, teacher, torch.tensor([[-1, 0]]), torch.tensor([[-1, 0]]), pairs=pairs)
        >>> round(float(out.kl_common), 4), round(float(out.l1_uncommon), 4)
        (-0.2919, 0.4)

    Source: NeMo-RL, `CrossTokenizerDistillationLossFn`, 2026; X-Token, 2026.
    """
    check_positive("temperature", temperature)
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
        check_size("uncommon_topk", uncommon_topk),
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
    check_shape("pair_is_correct", pair_is_correct, pair_valid.shape, "(B, C)")
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


_LABEL_EPSILON = 1e-8


@dataclass(frozen=True, eq=False)
class TotalLoss:
    """Distillation with cross-entropy.

    Attributes:
        loss: scalar with the student's graph.
        kd: scalar, the distillation loss as given, detached.
        ce: scalar, the cross-entropy, detached.
        kl_scale: scalar, what `dynamic_loss_scaling` multiplied `kd` by, else 1.
    """

    loss: torch.Tensor
    kd: torch.Tensor
    ce: torch.Tensor
    kl_scale: torch.Tensor


def total(
    kd: torch.Tensor,
    student_logits: torch.Tensor,
    student_ids: torch.Tensor,
    *,
    token_mask: torch.Tensor | None = None,
    sample_mask: torch.Tensor | None = None,
    kl_loss_weight: float = 1.0,
    ce_loss_scale: float = 1.0,
    dynamic_loss_scaling: bool = False,
) -> TotalLoss:
    """NeMo-RL's sum of a distillation loss and the student's cross-entropy.

    ce = sum over masked next-token labels of -log softmax(z_S[t])[x[t + 1]], divided by (their number + 1e-8).
    Fixed: loss = kl_loss_weight * kd + ce_loss_scale * ce. Dynamic: loss = |ce| / |kd| * kd + ce, the factor a
    constant and both weights ignored; where kd is 0 the factor is 1.

    What differs from ours: the dynamic factor is this batch's, where ours runs over averages that are clipped and kept;
    it makes the value 2 ce whatever the teacher says, cancels ce where kd is negative, and blows kd's noise up as kd
    falls. Labels are counted in this call.

    Args:
        kd: scalar, the `loss` of `p_kl` or `gold`.
        student_logits: floats (B, T_s, V_s).
        student_ids: integers (B, T_s).
        token_mask: (B, T_s), non-zero where a token may be a label; by default everywhere.
        sample_mask: (B,), non-zero where a sample may count.
        kl_loss_weight: the fixed weight of `kd`.
        ce_loss_scale: the fixed weight of the cross-entropy.
        dynamic_loss_scaling: scale `kd` to the cross-entropy instead.

    Returns:
        The sum and its parts.

    Raises:
        OptionError: for a weight out of range or shapes that do not belong together.

    Example:
        >>> import torch
        >>> logits, ids = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])
        >>> out = total(torch.tensor(0.5), logits, ids, dynamic_loss_scaling=True)
        >>> round(float(out.ce), 4), round(float(out.kl_scale), 4), round(float(out.loss), 4)
        (1.3863, 2.7726, 2.7726)

    Source: NeMo-RL, `CrossTokenizerDistillationLossFn`, 2026.
    """
    check_weight("kl_loss_weight", kl_loss_weight)
    check_weight("ce_loss_scale", ce_loss_scale)
    if kd.dim():
        raise OptionError(f"kd must be a scalar, the loss of p_kl or gold, but it has shape {tuple(kd.shape)}")
    ce = _next_token_loss(student_logits, student_ids, token_mask, sample_mask)
    scale = torch.ones_like(ce.detach())
    if dynamic_loss_scaling:
        size_of_kd = kd.detach().abs()
        scale = torch.where(size_of_kd > 0, ce.detach().abs() / size_of_kd, scale)
        loss = scale * kd + ce
    else:
        loss = kl_loss_weight * kd + ce_loss_scale * ce
    return TotalLoss(loss=loss, kd=kd.detach(), ce=ce.detach(), kl_scale=scale)


def _next_token_loss(
    logits: torch.Tensor, ids: torch.Tensor, token_mask: torch.Tensor | None, sample_mask: torch.Tensor | None
) -> torch.Tensor:
    """The masked cross-entropy of the next token, divided by the number of labels + 1e-8."""
    check_shape("student_ids", ids, logits.shape[:2], "(B, T_s)")
    labelled = torch.ones_like(ids, dtype=torch.bool)
    if token_mask is not None:
        check_shape("token_mask", token_mask, ids.shape, "(B, T_s)")
        labelled = token_mask.bool()
    if sample_mask is not None:
        check_shape("sample_mask", sample_mask, ids.shape[:1], "(B,)")
        labelled = labelled & sample_mask.bool().unsqueeze(1)
    sample, position = labelled[:, 1:].nonzero(as_tuple=True)
    rows = rows_at(logits, sample * ids.shape[1] + position, compute_dtype(logits))
    labels = ids[sample, position + 1].long()
    return torch.nn.functional.cross_entropy(rows, labels, reduction="sum") / (len(labels) + _LABEL_EPSILON)


def on_spans(
    mapping: Mapping,
    student: torch.Tensor,
    teacher: torch.Tensor,
    spans: Spans,
    *,
    kind: str,
    temperature: float,
    top_k: int | None,
    uncommon_top_k: int,
    **_: object,
) -> torch.Tensor:
    """The loss of one batch of this library, scalar: what `XTokenLoss(compat="nemo-rl")` calls.

    Args:
        mapping: whose W is the projection.
        student: floats (B, T_s, V_s).
        teacher: floats (B, T_t, V_t).
        spans: on the logits' device; their chunks are NeMo-RL's.
        kind: "p-kl", "h-kl" or "gold".
        temperature: T.
        top_k: `vocab_topk`; None for NeMo-RL's 8192.
        uncommon_top_k: `uncommon_topk`.
    """
    matrix = mapping.matrix
    rows, columns, weights = (
        torch.from_numpy(array).to(student.device) for array in (matrix.rows, matrix.indices, matrix.data)
    )
    valid = spans.weight > 0
    if kind == "p-kl":
        return p_kl(
            student,
            teacher,
            spans.student,
            spans.teacher,
            rows=rows,
            columns=columns,
            weights=weights,
            pair_valid=valid,
            temperature=temperature,
            vocab_topk=8192 if top_k is None else top_k,
        ).loss
    pairs = find_pairs(rows, columns, weights, matrix.shape, xtoken_loss=kind == "h-kl")
    return gold(
        student,
        teacher,
        spans.student,
        spans.teacher,
        pairs=pairs,
        pair_valid=valid,
        temperature=temperature,
        uncommon_topk=uncommon_top_k,
    ).loss
