"""TRL's ULD and GOLD losses (`ULDLoss`, 2026), plain and hybrid: groups of answer tokens, and their merge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...errors import OptionError
from ...mapping.mapping import Mapping
from ...spans.spans import IGNORED, Spans
from ..inputs import compute_dtype
from ..options import check_batches, check_one_of, check_positive, check_shape, check_share, check_weight
from .chunks import other_ids, rows_at
from .nemo_rl import find_pairs

MERGES = ("observed", "bayesian")


@dataclass(frozen=True, eq=False)
class Runs:
    """One side's tokens of G groups, none empty.

    Attributes:
        tokens: int64 (P,), positions in the flattened batch (b * T + t), one group after the other.
        starts: int64 (G + 1,), where each group begins in `tokens`, and P.
    """

    tokens: torch.Tensor
    starts: torch.Tensor


@dataclass(frozen=True, eq=False)
class Groups:
    """G pairs of token runs of a batch.

    Attributes:
        sample: int64 (G,), the sample of each group, ascending.
        student: the student's runs.
        teacher: the teacher's.
    """

    sample: torch.Tensor
    student: Runs
    teacher: Runs

    def __len__(self) -> int:
        return len(self.sample)


def align_ends(student_ends: Sequence[int], teacher_ends: Sequence[int]) -> list[tuple[range, range]]:
    """Pairs the runs of tokens between common byte boundaries of one answer.

    Whichever side's current token ends earlier moves on; equal ends close a group on both sides. What remains when one
    side is used up is one last pair, dropped where a side of it is empty.

    Args:
        student_ends: the byte at which each student token ends, counted from the answer's beginning.
        teacher_ends: the teacher's.

    Returns:
        Runs of token numbers, counted from 0 on each side.

    Example:
        >>> align_ends([2, 4, 5, 9], [4, 5, 7, 12])
        [(range(0, 2), range(0, 1)), (range(2, 3), range(1, 2)), (range(3, 4), range(2, 4))]

    Source: TRL, `ULDLoss`, 2026. Ours differ: `align_ids` leaves what the sides do not share out of every chunk.
    """
    found = []
    here = there = begin = begin_there = 0
    while here < len(student_ends) and there < len(teacher_ends):
        difference = student_ends[here] - teacher_ends[there]
        here += difference <= 0
        there += difference >= 0
        if difference == 0:
            found.append((range(begin, here), range(begin_there, there)))
            begin, begin_there = here, there
    last = (range(begin, len(student_ends)), range(begin_there, len(teacher_ends)))
    return [*found, last] if all(last) else found


def answer_groups(
    student_labels: torch.Tensor,
    teacher_labels: torch.Tensor,
    student_byte_offsets: torch.Tensor | None = None,
    teacher_byte_offsets: torch.Tensor | None = None,
    *,
    extended: bool = True,
    merge: str = "observed",
    skip_student_eos: bool = True,
    skip_teacher_eos: bool = True,
) -> Groups:
    """Groups of the answers of a batch.

    An answer begins at the first label that is not -100 and is as long as there are such labels, whether or not they
    stand together; `skip_*_eos` takes its last token off, whatever it is. Under `merge` "bayesian", where either answer
    begins at index 0 and so has no predictor, both lose their first group.

    Args:
        student_labels: integers (B, T_s), -100 outside of the answer.
        teacher_labels: integers (B, T_t).
        student_byte_offsets: integers (B, T_s, 2), each token's [start, end) in bytes of the answer. For `extended`.
        teacher_byte_offsets: integers (B, T_t, 2).
        extended: group by common byte boundaries; else pair token with token up to the shorter answer.
        merge: "observed" or "bayesian".
        skip_student_eos: leave the student's last answer token out.
        skip_teacher_eos: leave the teacher's out.

    Returns:
        The groups, none for a sample without an answer on both sides.

    Raises:
        OptionError: for an unknown `merge`, missing offsets, or shapes that do not belong together.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[-100, 5, 6]])
        >>> ends = torch.tensor([[[0, 0], [0, 2], [2, 3]]])
        >>> groups = answer_groups(labels, labels, ends, ends, skip_student_eos=False, skip_teacher_eos=False)
        >>> groups.student.tokens.tolist(), groups.student.starts.tolist()
        ([1, 2], [0, 1, 2])

    Source: TRL, `ULDLoss`, 2026.
    """
    check_one_of("merge", merge, MERGES)
    if len(student_labels) != len(teacher_labels):
        raise OptionError(
            "student_labels and teacher_labels must have one number of samples, but they have "
            f"{len(student_labels)} and {len(teacher_labels)}"
        )
    students, teachers = _spans(student_labels, skip_student_eos), _spans(teacher_labels, skip_teacher_eos)
    student_ends = _ends("student_byte_offsets", student_byte_offsets, student_labels) if extended else None
    teacher_ends = _ends("teacher_byte_offsets", teacher_byte_offsets, teacher_labels) if extended else None
    samples: list[int] = []
    student_runs: list[range] = []
    teacher_runs: list[range] = []
    for sample, (student, teacher) in enumerate(zip(students, teachers, strict=True)):
        if student_ends is None or teacher_ends is None:
            pairs = _by_position(len(student), len(teacher))
        else:
            here, there = student_ends[sample], teacher_ends[sample]
            pairs = align_ends(here[student.start : student.stop], there[teacher.start : teacher.stop])
        if merge == "bayesian" and 0 in {student.start, teacher.start}:
            pairs = pairs[1:]
        samples += [sample] * len(pairs)
        student_runs += [_moved(run, sample * student_labels.shape[1] + student.start) for run, _ in pairs]
        teacher_runs += [_moved(run, sample * teacher_labels.shape[1] + teacher.start) for _, run in pairs]
    device = student_labels.device
    return Groups(
        sample=torch.tensor(samples, dtype=torch.int64, device=device),
        student=_runs(student_runs, device),
        teacher=_runs(teacher_runs, device),
    )


def _spans(labels: torch.Tensor, skip_last: bool) -> list[range]:
    """Each sample's answer as a range of positions."""
    answer = labels != IGNORED
    sizes = answer.sum(dim=1) - int(skip_last)
    # The number of labels before the first that counts; of a row without one, all: an empty span anyway.
    begins = (answer.cumsum(dim=1) == 0).sum(dim=1)
    return [range(begin, begin + max(size, 0)) for begin, size in zip(begins.tolist(), sizes.tolist(), strict=True)]


def _ends(name: str, offsets: torch.Tensor | None, labels: torch.Tensor) -> list[list[int]]:
    if offsets is None:
        raise OptionError(f"extended groups need {name} (B, T, 2), but it is None; give it or set extended=False")
    check_shape(name, offsets, (*labels.shape, 2), "(B, T, 2)")
    ends: list[list[int]] = offsets[..., 1].tolist()
    return ends


def _by_position(student: int, teacher: int) -> list[tuple[range, range]]:
    return [(range(k, k + 1), range(k, k + 1)) for k in range(min(student, teacher))]


def _moved(run: range, offset: int) -> range:
    return range(run.start + offset, run.stop + offset)


def _runs(runs: list[range], device: torch.device) -> Runs:
    return Runs(
        tokens=torch.tensor([token for run in runs for token in run], dtype=torch.int64, device=device),
        starts=torch.tensor([0, *map(len, runs)], dtype=torch.int64, device=device).cumsum(0),
    )


# The peer's floor, both of the scalar factors of a merge and of the matched probabilities.
_FLOOR = 1e-8


def merge_groups(
    log_probabilities: torch.Tensor, token_ids: torch.Tensor, starts: torch.Tensor, *, merge: str = "observed"
) -> torch.Tensor:
    """One vector per group: a whole distribution times the probabilities of the group's other tokens.

    observed: Q(v) = q_first(v) * product over the later tokens x_i of max(q_i(x_i), 1e-8).
    bayesian: Q(v) = q_last(v) * product over the earlier ones. Neither is renormalised.

    Args:
        log_probabilities: floats (P, V), one row per token, group after group.
        token_ids: integers (P,), the tokens' ids.
        starts: integers (G + 1,), where each group begins, and P.
        merge: "observed" or "bayesian".

    Returns:
        Floats (G, V).

    Example:
        >>> import torch
        >>> log_q = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], dtype=torch.float64).log()
        >>> ids, starts = torch.tensor([0, 1]), torch.tensor([0, 2])
        >>> [round(mass, 4) for mass in merge_groups(log_q, ids, starts)[0].tolist()]
        [0.3, 0.15, 0.05]
        >>> [round(mass, 4) for mass in merge_groups(log_q, ids, starts, merge="bayesian")[0].tolist()]
        [0.12, 0.3, 0.18]

    Source: TRL, `ULDLoss`, 2026. Ours differ: `first` and `mean` merge distributions into distributions.
    """
    whole = starts[1:] - 1 if check_one_of("merge", merge, MERGES) == "bayesian" else starts[:-1]
    group = torch.arange(len(whole), device=starts.device).repeat_interleave(starts.diff())
    log_factor = log_probabilities.gather(1, token_ids.long().unsqueeze(1)).squeeze(1).clamp_min(math.log(_FLOOR))
    other = torch.ones_like(group, dtype=torch.bool)
    other[whole] = False
    log_product = log_factor.new_zeros(len(whole)).index_add(0, group[other], log_factor[other])
    return log_probabilities.index_select(0, whole).exp() * log_product.exp().unsqueeze(1)


def matched_part(student: torch.Tensor, teacher: torch.Tensor, matched: torch.Tensor, beta: float) -> torch.Tensor:
    """(G,) sums of the generalised divergence over the matched pairs."""
    q = student.index_select(1, matched[:, 0].long()).clamp_min(_FLOOR)
    p = teacher.index_select(1, matched[:, 1].long()).clamp_min(_FLOOR)
    if beta == 0:
        terms = p * (p.log() - q.log())
    elif beta == 1:
        terms = q * (q.log() - p.log())
    else:
        log_mixture = (beta * p + (1 - beta) * q).log()
        terms = beta * p * (p.log() - log_mixture) + (1 - beta) * q * (q.log() - log_mixture)
    return terms.sum(dim=1)


def unmatched_part(student: torch.Tensor, teacher: torch.Tensor, matched: torch.Tensor) -> torch.Tensor:
    """(G,) sorted distances over the ids that no pair holds; 0 where a side has none of them, as in the peer."""
    student = student.index_select(1, other_ids(matched[:, 0], student.shape[1]))
    teacher = teacher.index_select(1, other_ids(matched[:, 1], teacher.shape[1]))
    if not (student.shape[1] and teacher.shape[1]):
        return student.new_zeros(len(student))
    return sorted_distance(student, teacher)


def sorted_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """(G,) L1 distances of the rows in descending order; what one side has beyond the other is compared with 0."""
    ours, theirs = (side.sort(dim=1, descending=True).values for side in (student, teacher))
    length = min(ours.shape[1], theirs.shape[1])
    shared = (ours[:, :length] - theirs[:, :length]).abs().sum(dim=1)
    return shared + ours[:, length:].sum(dim=1) + theirs[:, length:].sum(dim=1)


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
    check_weight("distillation_weight", distillation_weight)
    check_weight("crossentropy_weight", crossentropy_weight)
    check_batches(student_logits, teacher_logits)
    check_shape("student_labels", student_labels, student_logits.shape[:2], "(B, T_s)")
    check_shape("teacher_labels", teacher_labels, teacher_logits.shape[:2], "(B, T_t)")
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
    check_batches(student_logits, teacher_logits)
    check_one_of("merge", merge, MERGES)
    check_shape("student_ids", student_ids, student_logits.shape[:2], "(B, T_s)")
    check_shape("teacher_ids", teacher_ids, teacher_logits.shape[:2], "(B, T_t)")
    check_positive("student_temperature", student_temperature)
    check_positive("teacher_temperature", teacher_temperature)
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
        check_share("beta", beta)
        divergence = _per_sample(matched_part(student, teacher, matched, beta), groups.sample, samples)
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
    return check_weight("the matched weight", first), check_weight("the unmatched weight", second)


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


def on_spans(
    mapping: Mapping,
    student: torch.Tensor,
    teacher: torch.Tensor,
    spans: Spans,
    *,
    kind: str,
    temperature: float,
    merge: str,
    **_: object,
) -> torch.Tensor:
    """The loss of one batch of this library, scalar: what `XTokenLoss(compat="trl")` calls.

    Groups are the chunks. Under kind "gold" matched tokens are those whose only link has weight 1.

    Args:
        mapping: of the two tokenizers.
        student: floats (B, T_s, V_s).
        teacher: floats (B, T_t, V_t).
        spans: on the logits' device.
        kind: "uld" or "gold".
        temperature: T.
        merge: "first" is TRL's "observed", "mean" its "bayesian".
    """
    chunks = spans.predictions()
    matched = None
    if kind == "gold":
        matrix = mapping.matrix
        rows, columns, weights = (torch.from_numpy(array) for array in (matrix.rows, matrix.indices, matrix.data))
        matched = find_pairs(rows, columns, weights, matrix.shape).common.to(student.device)
    return uld_on_groups(
        student,
        teacher,
        Groups(
            sample=chunks.student[chunks.student_offsets[:-1]] // student.shape[1],
            student=Runs(tokens=chunks.student + 1, starts=chunks.student_offsets),
            teacher=Runs(tokens=chunks.teacher + 1, starts=chunks.teacher_offsets),
        ),
        student_ids=spans.student_ids,
        teacher_ids=spans.teacher_ids,
        matched=matched,
        merge="bayesian" if merge == "mean" else "observed",
        student_temperature=temperature,
        teacher_temperature=temperature,
    ).loss
