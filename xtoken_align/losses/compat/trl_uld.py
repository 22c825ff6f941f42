"""TRL's ULD and GOLD losses (`ULDLoss`, 2026), plain and hybrid, from answers or from groups already made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import OptionError
from ..options import batch_of_logits, one_of, positive, same_shape, share, weight
from .chunks import compute_dtype, rows_at
from .trl_groups import IGNORED, MERGES, Groups, Runs, answer_groups
from .trl_merge import matched_part, merge_groups, sorted_distance, unmatched_part


@dataclass(frozen=True, eq=False)
class ULDLoss:
    """TRL's loss and its parts, all but `loss` detached.

    Attributes:
        loss: scalar with the student's graph.
        distillation: scalar, mean of `sample_loss`.
        cross_entropy: scalar; 0 where its weight is 0, since then it is not computed.
        sample_loss: (B,), before any weight of `loss`; 0 for a sample without groups.
        sample_matched: (B,), the divergence on matched ids; 0 for the plain form.
        sample_unmatched: (B,), the sorted distance; for the plain form over everything.
        groups: the groups compared.
    """

    loss: torch.Tensor
    distillation: torch.Tensor
    cross_entropy: torch.Tensor
    sample_loss: torch.Tensor
    sample_matched: torch.Tensor
    sample_unmatched: torch.Tensor
    groups: Groups


def uld(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    student_ids: torch.Tensor,
    teacher_ids: torch.Tensor,
    student_labels: torch.Tensor,
    teacher_labels: torch.Tensor,
    student_byte_offsets: torch.Tensor | None = None,
    teacher_byte_offsets: torch.Tensor | None = None,
    matched: torch.Tensor | None = None,
    extended: bool = True,
    merge: str = "observed",
    beta: float = 0.5,
    weights: tuple[float, float] | None = None,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    skip_student_eos: bool = True,
    skip_teacher_eos: bool = True,
    distillation_weight: float = 1.0,
    crossentropy_weight: float = 0.0,
) -> ULDLoss:
    """TRL's ULD loss over answers.

    loss = distillation_weight * mean over all B samples of the sample loss + crossentropy_weight * CE, the sample loss
    as in `uld_on_groups`, CE the mean over labels of -log softmax(z_S[t])[label[t + 1]]. There is no T^2.

    What differs from our ULD and GOLD: see `uld_on_groups`; besides, samples weigh the same whatever their length,
    those without an answer count as 0, and an answer's last token is dropped whether or not it is an end token.

    Args:
        student_logits: floats (B, T_s, V_s). float64 is computed in float64, all else in float32.
        teacher_logits: floats (B, T_t, V_t).
        student_ids: integers (B, T_s).
        teacher_ids: integers (B, T_t).
        student_labels: integers (B, T_s), -100 outside of the answer; also the labels of CE.
        teacher_labels: integers (B, T_t).
        student_byte_offsets: integers (B, T_s, 2), see `answer_groups`.
        teacher_byte_offsets: integers (B, T_t, 2).
        matched: integers (M, 2), student and teacher ids of equal tokens, for the hybrid form; None for the plain one.
        extended: group by common byte boundaries, else by position.
        merge: "observed" or "bayesian".
        beta: of the hybrid form.
        weights: of the hybrid form, (matched, unmatched); None for the adaptive ones.
        student_temperature: divides the student's logits.
        teacher_temperature: divides the teacher's.
        skip_student_eos: leave the student's last answer token out.
        skip_teacher_eos: leave the teacher's out.
        distillation_weight: of the distillation.
        crossentropy_weight: of the cross-entropy.

    Returns:
        The loss and its parts; 0 with a graph where there is nothing to compare.

    Raises:
        OptionError: for an option out of range or shapes that do not belong together.

    Example:
        >>> import torch
        >>> logits, ids = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])
        >>> labels = torch.tensor([[-100, 1, 2]])
        >>> out = uld(
        ...     logits, logits, student_ids=ids, teacher_ids=ids, student_labels=labels, teacher_labels=labels,
        ...     extended=False, crossentropy_weight=1.0,
        ... )
        >>> round(float(out.distillation), 4), round(float(out.loss), 4)
        (0.0, 1.3863)

    Source: TRL, `ULDLoss`, 2026; ULD, Boizard et al. 2024; GOLD, Patiño et al. 2025.
    """
    weight("distillation_weight", distillation_weight)
    weight("crossentropy_weight", crossentropy_weight)
    batch_of_logits(student_logits, teacher_logits)
    same_shape("student_labels", student_labels, student_logits.shape[:2], "(B, T_s)")
    same_shape("teacher_labels", teacher_labels, teacher_logits.shape[:2], "(B, T_t)")
    out = uld_on_groups(
        student_logits,
        teacher_logits,
        answer_groups(
            student_labels,
            teacher_labels,
            student_byte_offsets,
            teacher_byte_offsets,
            extended=extended,
            merge=merge,
            skip_student_eos=skip_student_eos,
            skip_teacher_eos=skip_teacher_eos,
        ),
        student_ids=student_ids,
        teacher_ids=teacher_ids,
        matched=matched,
        merge=merge,
        beta=beta,
        weights=weights,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
    )
    loss, cross_entropy = distillation_weight * out.loss, out.cross_entropy
    if crossentropy_weight:
        term = _cross_entropy(student_logits, student_labels)
        loss, cross_entropy = loss + crossentropy_weight * term, term.detach()
    return ULDLoss(
        loss, out.distillation, cross_entropy, out.sample_loss, out.sample_matched, out.sample_unmatched, out.groups
    )


def uld_on_groups(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    groups: Groups,
    *,
    student_ids: torch.Tensor,
    teacher_ids: torch.Tensor,
    matched: torch.Tensor | None = None,
    merge: str = "observed",
    beta: float = 0.5,
    weights: tuple[float, float] | None = None,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> ULDLoss:
    """TRL's ULD loss over groups already made.

    Q, P = the student's and teacher's merged vectors of a group, see `merge_groups`; means are over a sample's groups,
    then over the B samples.
    Plain: mean || sort(Q) - sort(P) ||_1, in descending order, the shorter padded with zeros.
    Hybrid: w_m * mean of sum over matched (s, t) of d(Q[s], P[t]) + w_u * mean of the plain distance on the other ids,
    0 where a side has no others. Q, P at least 1e-8. beta 0: d = P log(P / Q). beta 1: d = Q log(Q / P). Between:
    M = beta P + (1 - beta) Q, d = beta P log(P / M) + (1 - beta) Q log(Q / M).
    Adaptive weights: w_m = M / V_t, w_u = 1 - w_m.

    What differs from our ULD and GOLD: "observed" reads the logits at the tokens' own positions, which predict the
    next ones: two perfect predictors of one text score 0.5 where one token stands against two. "bayesian" reads one
    position earlier. Merged vectors do not sum to 1, and neither do matched parts, so d can be negative. Zeros stand
    for the ids that the narrower vocabulary lacks.

    Args:
        student_logits: floats (B, T_s, V_s). float64 is computed in float64, all else in float32.
        teacher_logits: floats (B, T_t, V_t).
        groups: from `answer_groups`, or any; under "bayesian" none may hold a row's first token.
        student_ids: integers (B, T_s).
        teacher_ids: integers (B, T_t).
        matched: integers (M, 2), student and teacher ids of equal tokens, for the hybrid form; None for the plain one.
        merge: "observed" or "bayesian".
        beta: of the hybrid form, 0 to 1.
        weights: of the hybrid form, (w_m, w_u); None for the adaptive ones.
        student_temperature: divides the student's logits.
        teacher_temperature: divides the teacher's.

    Returns:
        The loss, which is the mean of the sample losses, and its parts; 0 with a graph where there are no groups.

    Raises:
        OptionError: for an option out of range, shapes that do not belong together, or a group that nothing predicts.

    Example:
        >>> import torch
        >>> one = Runs(tokens=torch.tensor([1]), starts=torch.tensor([0, 1]))
        >>> two = Runs(tokens=torch.tensor([1, 2]), starts=torch.tensor([0, 2]))
        >>> groups = Groups(sample=torch.tensor([0]), student=one, teacher=two)
        >>> student = torch.tensor([[[9.0, -9.0, -9.0], [0.0, 0.0, 0.0]]])
        >>> teacher = torch.tensor([[[-9.0, 9.0], [9.0, -9.0], [0.0, 0.0]]])
        >>> ids = {"student_ids": torch.tensor([[1, 0]]), "teacher_ids": torch.tensor([[0, 1, 0]])}
        >>> round(float(uld_on_groups(student, teacher, groups, merge="bayesian", **ids).loss), 4)
        0.0

    Source: TRL, `ULDLoss`, 2026.
    """
    batch_of_logits(student_logits, teacher_logits)
    one_of("merge", merge, MERGES)
    same_shape("student_ids", student_ids, student_logits.shape[:2], "(B, T_s)")
    same_shape("teacher_ids", teacher_ids, teacher_logits.shape[:2], "(B, T_t)")
    positive("student_temperature", student_temperature)
    positive("teacher_temperature", teacher_temperature)
    dtype = compute_dtype(student_logits)
    student = _merged(student_logits, student_ids, groups.student, merge, student_temperature, dtype)
    teacher = _merged(teacher_logits.detach(), teacher_ids, groups.teacher, merge, teacher_temperature, dtype)
    samples = len(student_logits)
    divergence = student.new_zeros(samples)
    if matched is None:
        distance = _per_sample(sorted_distance(student, teacher), groups.sample, samples)
        sample_loss = distance
    else:
        w_matched, w_unmatched = _hybrid_weights(weights, matched, teacher.shape[1])
        divergence = _per_sample(matched_part(student, teacher, matched, share("beta", beta)), groups.sample, samples)
        distance = _per_sample(unmatched_part(student, teacher, matched), groups.sample, samples)
        sample_loss = w_matched * divergence + w_unmatched * distance
    loss = sample_loss.sum() / max(samples, 1)
    return ULDLoss(
        loss=loss,
        distillation=loss.detach(),
        cross_entropy=torch.zeros_like(loss.detach()),
        sample_loss=sample_loss.detach(),
        sample_matched=divergence.detach(),
        sample_unmatched=distance.detach(),
        groups=groups,
    )


def _merged(
    logits: torch.Tensor, ids: torch.Tensor, runs: Runs, merge: str, temperature: float, dtype: torch.dtype
) -> torch.Tensor:
    """Merged vectors (G, V), from the logits at the tokens' own positions or, under "bayesian", one earlier."""
    positions = runs.tokens
    if merge == "bayesian":
        if bool((positions % logits.shape[1] == 0).any()):
            raise OptionError(
                "merge='bayesian' reads the logits before a token, but a group holds a row's first token; leave it out"
            )
        positions = positions - 1
    log_probabilities = (rows_at(logits, positions, dtype) / temperature).log_softmax(dim=-1)
    return merge_groups(log_probabilities, ids.reshape(-1)[runs.tokens], runs.starts, merge=merge)


def _hybrid_weights(
    weights: tuple[float, float] | None, matched: torch.Tensor, teacher_width: int
) -> tuple[float, float]:
    if matched.dim() != 2 or matched.shape[1] != 2:
        raise OptionError(f"matched must have shape (M, 2), but it has shape {tuple(matched.shape)}")
    if weights is None:
        adaptive = len(matched) / max(teacher_width, 1)
        return adaptive, 1 - adaptive
    first, second = weights
    return weight("the matched weight", first), weight("the unmatched weight", second)


def _per_sample(values: torch.Tensor, sample: torch.Tensor, samples: int) -> torch.Tensor:
    """Means (B,) over each sample's groups, 0 where it has none."""
    count = torch.bincount(sample, minlength=samples).clamp(min=1)
    return values.new_zeros(samples).index_add(0, sample, values) / count


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over next-token labels, 0 where there are none (the peer has NaN)."""
    sample, position = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    rows = rows_at(logits, sample * labels.shape[1] + position, compute_dtype(logits))
    wanted = labels[sample, position + 1].long()
    return torch.nn.functional.cross_entropy(rows, wanted, reduction="sum") / max(len(wanted), 1)
