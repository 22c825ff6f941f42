"""The losses: each one formula over rows of log-probabilities, and the functions on logits (N, V) that call it.

A formula takes the student's rows, the teacher's rows and a table, and gives a value per chunk in ordinary torch
operations; autograd makes its gradient, block by block (`blocks`). The functions work in the manner of
`torch.nn.functional`: a row of logits is a chunk.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ..errors import OptionError
from .blocks import Objective, Term, attach, run
from .divergence import Measure, compare, normalised
from .inputs import Compared, Rows, Source, Weights, compute_dtype
from .options import (
    IMPLEMENTATIONS,
    check_links,
    check_one_of,
    check_pairs,
    check_positive,
    check_rows,
    check_shape,
    check_size,
    check_width,
)
from .plan import block_sizes, blocks_of_rows
from .sorting import masked_sorted_distance, sorted_distance
from .tables import (
    LEFT,
    VOID,
    Grouping,
    Outcomes,
    Ranks,
    Tokens,
    log_masses,
    log_outside,
    log_sum,
    outcomes_of_bins,
    outcomes_of_links,
    outcomes_of_pairs,
    ranks_of_all,
    ranks_of_pairs,
    share_of,
)

REDUCTIONS = ("mean", "sum", "none")
NORMALIZE = ("rest", "none")
# Keeps 1 - exp(l) above 0 for a chunk that is certain.
_EPSILON = 1e-6
_LOG_HALF = -math.log(2)


def outcomes_kl(student: Rows, teacher: Rows, outcomes: Outcomes, *, measure: Measure, looks: bool) -> Compared:
    """T^2 KL(P' || Q'), or another divergence, over common outcomes: Partition-KL, P-KL, H-KL's and GOLD's common part.

    P[o], Q[o] = sums of the teacher's and the student's probabilities of outcome o's tokens, averaged over the chunk's
    rows; P', Q' = P, Q to the power 1 / T, normalised. With links a student token v adds w[v, o] q[v] to each outcome.

    Args:
        student: the student's rows.
        teacher: the teacher's.
        outcomes: which tokens are in which outcome.
        measure: how the outcomes are compared.
        looks: whether values may be looked at, see `divergence.compare`.

    Source: X-Token (arXiv:2605.21699, 2026) for P-KL; bins are this library's, 2026.
    """
    scores = student.scores
    if outcomes.links is not None:
        token = outcomes.links.token.expand(len(scores), -1)
        scores = scores.gather(1, token) + outcomes.links.log_weight.to(scores.dtype)
    masses = log_masses(scores, outcomes.student, left=student.left)
    log_rows = normalised(masses, looks=looks)
    log_student = student.mean(log_rows)
    log_teacher, kept, log_rest = _teacher_outcomes(teacher, outcomes, looks=looks)
    found = compare(log_teacher, log_student, measure=measure, log_rest=log_rest, looks=looks)
    # The teacher's mass that has an outcome: a chunk of which little can be compared counts little.
    factor = kept if outcomes.weigh_by_kept else torch.ones_like(kept)
    empty = student.average(_share_outside(student.scores, masses, log_rows, outcomes.student))
    dropped = 1 - kept * (1 - found.dropped)
    plausible = None if teacher.text is None else _plausible(log_teacher, log_rest, teacher.text)
    return Compared(found.value * factor, found.agrees, dropped, empty, found.compared, plausible)


def _plausible(log_teacher: torch.Tensor, log_rest: torch.Tensor | None, text: torch.Tensor) -> torch.Tensor:
    """(c,), the mass of the text's outcome over that of the likeliest one, which may be all that is not listed."""
    if not log_teacher.shape[1]:
        return log_teacher.new_zeros(len(log_teacher))
    best = log_teacher.amax(dim=1)
    best = best if log_rest is None else torch.maximum(best, log_rest)
    return share_of(log_teacher.gather(1, text.unsqueeze(1)).squeeze(1), best)


def strict(student: Rows, teacher: Rows, pairs: Outcomes, *, measure: Measure, looks: bool) -> Compared:
    """T^2 KL(Q' || P'), or another divergence, of the tokens in exact pairs, both sides normalised on them: Strict.

    Of a cached teacher the pairs that it lists are compared alone, since nothing is known of the others.

    Args:
        student: the student's rows, each a chunk that is one pair.
        teacher: the teacher's.
        pairs: a column per pair.
        measure: how the pairs are compared.
        looks: whether values may be looked at, see `divergence.compare`.

    Source: arXiv:2610.08448 (2026).
    """
    return _of_pairs(student, teacher, pairs, measure, looks=looks, both=teacher.log_rest is not None)


def simct(student: Rows, teacher: Rows, pairs: Outcomes, *, measure: Measure, looks: bool) -> Compared:
    """The same for SimCT, whose candidates are those that both sides can give, where a chunk is itself a candidate.

    Source: arXiv:2605.07711 (2026).
    """
    return _of_pairs(student, teacher, pairs, measure, looks=looks, both=True)


def _of_pairs(student: Rows, teacher: Rows, pairs: Outcomes, measure: Measure, *, looks: bool, both: bool) -> Compared:
    """The columns of pairs; with `both`, those that the teacher gives nothing are compared on neither side."""
    ours, theirs = log_masses(student.scores, pairs.student), log_masses(teacher.scores, pairs.teacher)
    if both:
        ours = ours.masked_fill(theirs == -math.inf, -math.inf)
    log_student, log_teacher = normalised(ours, looks=looks), normalised(theirs, looks=looks)
    found = compare(log_teacher, log_student, measure=measure, looks=looks)
    kept = 1 - _share_outside(teacher.scores, theirs, log_teacher, pairs.teacher)
    if teacher.log_rest is not None:
        kept = theirs.exp().sum(dim=1)
    empty = _share_outside(student.scores, ours, log_student, pairs.student)
    return Compared(found.value, found.agrees, 1 - kept * (1 - found.dropped), empty, found.compared)


def _teacher_outcomes(
    teacher: Rows, outcomes: Outcomes, *, looks: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The chunks' log-probabilities (c, K), their mass (c,) before it was normalised, and a cached teacher's rest."""
    masses, log_rest = outcomes.teacher_masses(teacher.scores, teacher.log_rest, left=teacher.left)
    if log_rest is None and teacher.left is not None:
        masses.masked_fill_((masses < LEFT / 2) & (masses > VOID / 2), -math.inf)
    if log_rest is not None:
        masses = torch.cat([masses, log_rest.to(masses.dtype).unsqueeze(1)], dim=1)
    rows = normalised(masses, looks=looks)
    outside = log_outside(teacher.scores, outcomes.teacher)
    kept = rows.new_ones(len(rows))
    if outside is not None:
        log_kept = -torch.nn.functional.softplus(outside - _log_whole(masses, rows)).nan_to_num(nan=math.inf)
        kept = log_kept.exp()
        if teacher.chunk is not None and outcomes.weigh_by_kept:
            # A position counts by what of it can be compared.
            rows = rows + log_kept.unsqueeze(1)
    elif teacher.chunk is not None:
        # A position without a distribution has nothing that could be compared.
        kept = (rows > -math.inf).any(dim=1).to(rows.dtype)
    chunks = teacher.mean(rows)
    if teacher.chunk is not None:
        chunks = normalised(chunks, looks=looks)
    kept = teacher.average(kept)
    if teacher.log_rest is None:
        return chunks, kept, None
    return chunks[:, :-1].contiguous(), kept, chunks[:, -1].contiguous()


def _log_whole(masses: torch.Tensor, log_rows: torch.Tensor) -> torch.Tensor:
    """(n,), log of the sum of the masses, from what normalising took away from the largest."""
    if not masses.shape[1]:
        return masses.new_full((len(masses),), -math.inf)
    top = log_rows.detach().amax(dim=1)
    return masses.detach().amax(dim=1) - top.clamp_min(torch.finfo(top.dtype).min)


def _share_outside(
    scores: torch.Tensor, masses: torch.Tensor, log_rows: torch.Tensor, grouping: Grouping
) -> torch.Tensor:
    """(n,), the share of a row's mass on tokens outside of every column."""
    outside = log_outside(scores, grouping)
    if outside is None:
        return scores.new_zeros(len(scores))
    return torch.sigmoid(outside - _log_whole(masses, log_rows)).nan_to_num(nan=0.0)


def sorted_l1(student: Rows, teacher: Rows, ranks: Ranks, *, measure: Measure, looks: bool) -> Compared:
    """T^2 sum over ranks r of |r-th largest of q' - r-th largest of p'|: ULD, and the remainders of H-KL and GOLD.

    q', p' = softmax(z)^(1 / T), normalised, of which the tokens of `ranks` are sorted. With `ranks.common` the paper's
    common part is added, sum over pairs (s, t) of p'[t] (log p'[t] - log q'[s]), which is no divergence and can be
    negative.

    Args:
        student: the student's rows.
        teacher: the teacher's.
        ranks: the tokens that are sorted.
        measure: of which the temperature is read.
        looks: whether values may be looked at, see `divergence.compare`.

    Source: ULD, Boizard et al. 2024; X-Token (arXiv:2605.21699, 2026) and GOLD, Patiño et al. 2025, for the remainders.
    """
    temperature = measure.temperature
    log_student = _tempered_rows(student, ranks.student_silent, ranks.student_stops, temperature, looks=looks)
    log_teacher = _tempered_rows(teacher, ranks.teacher_silent, ranks.teacher_stops, temperature, looks=looks)
    # Without a teacher's distribution, or one of the student, there is no comparison.
    compared = (log_teacher.amax(dim=1) != -math.inf) & (log_student.detach().amax(dim=1) != -math.inf)
    ours, theirs = ranks.student_rest, ranks.teacher_rest
    if ours.ids is None or theirs.ids is None:
        value = masked_sorted_distance(log_student.exp(), log_teacher.exp(), (ours.mask, theirs.mask), ranks.limit)
    else:
        # Where all ranks are compared, silent tokens, which have 0, change nothing.
        beside = (ranks.student_silent, ranks.teacher_silent) if ranks.limit is None else (None, None)
        rests = _chosen(log_student, ours.ids, beside[0]), _chosen(log_teacher, theirs.ids, beside[1])
        value = sorted_distance(rests[0].exp(), rests[1].exp(), ranks.limit)
    agrees = torch.zeros_like(compared)
    if ranks.common is not None:
        common_student = log_student.index_select(1, ranks.common[:, 0])
        common_teacher = log_teacher.index_select(1, ranks.common[:, 1])
        mass = common_teacher.exp()
        possible = (mass > 0) & (common_student.detach() > -math.inf)
        value = value + (mass * torch.where(possible, common_teacher - common_student, 0.0)).sum(dim=1)
        if common_student.shape[1]:
            agrees = (common_student.detach().argmax(dim=1) == common_teacher.argmax(dim=1)) & compared
    value = (value * temperature**2).masked_fill(~compared, 0)
    nothing = torch.zeros_like(value.detach())
    return Compared(value, agrees, nothing, nothing, compared)


def _chosen(rows: torch.Tensor, ids: torch.Tensor, beside: Tokens | None) -> torch.Tensor:
    """The columns of some tokens; all of them, without a copy, where only those are left out that may be there, too."""
    if beside is not None and beside.ids is not None and len(ids) + len(beside.ids) == rows.shape[1]:
        return rows
    return rows.index_select(1, ids)


def _tempered_rows(
    rows: Rows, silent: Tokens, stops: torch.Tensor | None, temperature: float, *, looks: bool
) -> torch.Tensor:
    """The chunks' log-probabilities (c, V) to the power 1 / T; silent tokens have none, the first stop all."""
    scores = rows.scores if silent.ids is not None and not len(silent.ids) else silent.removed_from(rows.scores)
    if stops is not None:
        total = log_sum(scores.index_select(1, stops)).unsqueeze(1)
        scores = scores.index_fill(1, stops, -math.inf).index_copy(1, stops[:1], total)
    log_mean = rows.mean(normalised(scores, looks=looks))
    return log_mean if temperature == 1 else normalised(log_mean / temperature, looks=looks)


def _of_rows(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    terms: Callable[..., tuple[Term, ...]],
    *,
    measure: Measure,
    weight: torch.Tensor | None,
    reduction: str,
    implementation: str,
) -> torch.Tensor:
    """Compares row with row.

    Args:
        student_logits: floats (N, V_s).
        teacher_logits: floats (N, V_t).
        terms: makes the loss's terms, with tables that are indexed or plain.
        measure: how distributions are compared.
        weight: floats (N,), what each row's value is multiplied by; 1 by default.
        reduction: "none", "sum", or "mean": the sum divided by that of the weights.
        implementation: which way is taken.

    Returns:
        Scalar, or floats (N,) for "none", with the student's graph.
    """
    check_one_of("reduction", reduction, REDUCTIONS)
    check_one_of("implementation", implementation, IMPLEMENTATIONS)
    check_rows(student_logits, teacher_logits)
    dtype, rows = compute_dtype(student_logits), len(student_logits)
    # What divides the sum goes into the pass: a gradient that is right as it is need not be read once more.
    factors = row_factors(student_logits, weight, reduction)
    if torch.compiler.is_compiling():
        # All rows at once: the compiler cuts them as it likes, and makes the gradient.
        sides = Rows(student_logits.to(dtype)), Rows(teacher_logits.detach().to(dtype))
        values = factors * sum(
            term.formula(*sides, term.table, measure=measure, looks=False).value for term in terms(indexed=False)
        )
        return values if reduction == "none" else values.sum()
    objective = Objective(terms(indexed=implementation != "reference"), measure, implementation)
    sizes = block_sizes(student_logits.device, student_logits.shape[1], teacher_logits.shape[1])
    arguments = (
        Source(states=student_logits.detach(), width=student_logits.shape[1]),
        Source(states=teacher_logits.detach(), width=teacher_logits.shape[1]),
        objective,
        blocks_of_rows(rows, sizes),
        Weights(factors, _ones(student_logits.device, dtype)),
        (student_logits.requires_grad and torch.is_grad_enabled(), False, False, False),
    )
    result = run(*arguments)
    if reduction == "none":
        value = result.value * factors
    else:
        value = (result.value * factors).sum() if result.totals is None else result.totals.loss
    return attach(
        value,
        [student_logits],
        result.gradients[:1],
        lambda: run(*arguments).gradients[:1],
        torch.arange(rows, device=student_logits.device) if reduction == "none" else None,
    )


_REMEMBERS = ("cuda",)
"""The devices whose tables are kept. An array of the processor's can be changed where no tensor is told of it."""
_AT_MOST = 4
_tables: OrderedDict[tuple[Any, ...], tuple[tuple[torch.Tensor, ...], tuple[Term, ...]]] = OrderedDict()


def _kept(
    make: Callable[[bool], tuple[Term, ...]], *tensors: torch.Tensor | None, device: torch.device, key: tuple[Any, ...]
) -> Callable[..., tuple[Term, ...]]:
    """The same terms without making them anew, where one of the last calls made them of these tensors, unchanged.

    To make and to check them is to wait for the device, since their shapes depend on numbers there.

    Args:
        make: makes them, from whether they are indexed.
        tensors: all that it reads; None where nothing was given.
        device: where the terms are.
        key: what else they depend on.
    """
    given = tuple(one for one in tensors if one is not None)

    def terms(*, indexed: bool) -> tuple[Term, ...]:
        there = {device.type, *(one.device.type for one in given)}
        if not indexed or not there <= set(_REMEMBERS) or any(one.is_inference() for one in given):
            return make(indexed)
        # Tensors that are kept have numbers of their own; a changed one has another version.
        places = tuple(None if one is None else (id(one), one._version) for one in tensors)  # noqa: SLF001
        name = (*key, device, *places)
        found = _tables.pop(name, None) or (given, make(indexed))
        _tables[name] = found
        while len(_tables) > _AT_MOST:
            _tables.popitem(last=False)
        return found[1]

    return terms


@cache
def _ones(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The factors of a sum that is not multiplied by anything."""
    with torch.inference_mode(mode=False):
        return torch.ones(4, device=device, dtype=dtype)


def row_factors(logits: torch.Tensor, weight: torch.Tensor | None, reduction: str) -> torch.Tensor:
    """Floats (N,), what each row's value is multiplied by in the result, in the dtype of the values."""
    share = share_of_row(len(logits), weight, reduction)
    if weight is None:
        assert isinstance(share, float)
        return logits.new_full((len(logits),), share, dtype=compute_dtype(logits))
    return row_weights(logits, weight) * share


def share_of_row(rows: int, weight: torch.Tensor | None, reduction: str) -> float | torch.Tensor:
    """1 over what the sum of weighted rows is divided by: 1 for "none" and "sum"."""
    if reduction != "mean":
        return 1.0
    if weight is None:
        return 1 / max(rows, 1)
    total = weight.detach().double().sum()
    return (1 / torch.where(total > 0, total, 1.0)).to(compute_dtype(weight))


def row_weights(logits: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Floats (N,) in the dtype of the values."""
    dtype = compute_dtype(logits)
    if weight is None:
        return logits.new_ones(len(logits), dtype=dtype)
    if tuple(weight.shape) != (len(logits),):
        raise OptionError(f"weight must have shape (N,) = ({len(logits)},), but it has shape {tuple(weight.shape)}")
    return weight.detach().to(dtype)


def partition_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    student_bin: torch.Tensor,
    teacher_bin: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    temperature: float = 1.0,
    divergence: str = "forward",
    beta: float = 0.5,
    student_top_k: int | None = None,
    reduction: str = "mean",
    implementation: str = "auto",
) -> torch.Tensor:
    """T^2 KL(P' || Q') of the bins' probabilities, or another divergence.

    P[b], Q[b] = sum of softmax(z)[v] over the teacher's and the student's tokens v in bin b, P', Q' = P, Q to the power
    1 / T, normalised. At T = 1 it equals `F.kl_div(Q.log(), P, reduction="none").sum(1)`.

    Args:
        student_logits: floats (N, V_s). float64 is computed in float64, all else in float32.
        teacher_logits: floats (N, V_t); gets no gradient.
        student_bin: integers (V_s,), the bin of each token, as from `Mapping.bins()`. Tokens in no bin, or in a bin
            that the other side has not, are -1: they are one rest bin where both sides have some, else they are left
            out and both sides renormalised. Tokens without a probability (padding) are -2.
        teacher_bin: integers (V_t,).
        weight: floats (N,), a factor per row.
        temperature: T; bins are summed at T = 1.
        divergence: "forward", "reverse": KL(Q' || P'), or "jsd", see `XTokenLoss`.
        beta: the teacher's share in "jsd".
        student_top_k: compare the student's k likeliest bins of each row alone, both sides normalised on them.
        reduction: "none", "sum", or "mean", the sum divided by that of the weights.
        implementation: "auto", "reference", "cpu" or "triton", see `XTokenLoss`.

    Returns:
        Scalar, or floats (N,) for "none". Never negative, 0 where both sides agree in every bin or no bin is shared.

    Raises:
        OptionError: for shapes that do not belong together, or an option out of range.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.5]]).log()
        >>> bins = torch.tensor([0, 0, 1]), torch.tensor([0, 1])
        >>> round(float(partition_kl(student, teacher, *bins)), 4)  # KL of (1/2, 1/2) and (2/3, 1/3)
        0.0589

    Source: this library, 2026; first pieces as in X-Token (arXiv:2605.21699, 2026).
    """
    check_width("student_bin", student_bin, student_logits, "(V_s,)")
    check_width("teacher_bin", teacher_bin, teacher_logits, "(V_t,)")
    return _of_rows(
        student_logits,
        teacher_logits,
        _kept(
            lambda indexed: (Term(outcomes_kl, outcomes_of_bins(student_bin, teacher_bin, indexed=indexed)),),
            student_bin,
            teacher_bin,
            device=student_logits.device,
            key=("partition-kl",),
        ),
        measure=Measure(divergence, beta, temperature, student_top_k=student_top_k),
        weight=weight,
        reduction=reduction,
        implementation=implementation,
    )


def p_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    weights: torch.Tensor,
    *,
    target: torch.Tensor | None = None,
    top_k: int | None = None,
    weight: torch.Tensor | None = None,
    temperature: float = 1.0,
    divergence: str = "forward",
    beta: float = 0.5,
    student_top_k: int | None = None,
    reduction: str = "mean",
    implementation: str = "auto",
) -> torch.Tensor:
    """T^2 KL(P' || Q') on the teacher's columns that W reaches, or another divergence.

    q = W^T softmax(z_S), p = softmax(z_T) with the mass of unreached columns moved or dropped; P', Q' = p, q to the
    power 1 / T, normalised. A row is multiplied by the teacher's mass that was not dropped. At T = 1, with all columns
    reached, it equals `F.kl_div((softmax(z_S) @ W).log(), softmax(z_T), reduction="none").sum(1)`.

    Args:
        student_logits: floats (N, V_s). float64 is computed in float64, all else in float32. Tokens without a link
            are left out of the softmax.
        teacher_logits: floats (N, V_t); gets no gradient.
        rows: integers (links,), the student ids of W's links.
        columns: integers (links,), the teacher ids.
        weights: floats (links,), above 0; each row's sum to 1.
        target: integers (V_t,), the column to which the mass of an unreached column moves, -1 where it is dropped, -2
            for tokens without a probability. By default all unreached mass is dropped.
        top_k: keep the teacher's k likeliest columns of each row, all others become one.
        weight: floats (N,), a factor per row.
        temperature: T; the projection is made at T = 1.
        divergence: "forward", "reverse": KL(Q' || P'), or "jsd", see `XTokenLoss`.
        beta: the teacher's share in "jsd".
        student_top_k: compare the student's k likeliest columns of each row alone, both sides normalised on them; with
            `top_k` the others that it leaves count as one column.
        reduction: "none", "sum", or "mean", the sum divided by that of the weights.
        implementation: "auto", "reference", "cpu" or "triton", see `XTokenLoss`.

    Returns:
        Scalar, or floats (N,) for "none". Never negative.

    Raises:
        OptionError: for shapes that do not belong together, ids outside of the logits, or an option out of range.

    Example:
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[0.5, 0.25, 0.25]]).log()
        >>> links = torch.tensor([0, 1]), torch.tensor([0, 1]), torch.ones(2)
        >>> round(float(p_kl(student, teacher, *links, target=torch.tensor([-1, -1, 1]))), 4)
        0.0

    Source: X-Token (arXiv:2605.21699, 2026). What becomes of unreached columns is this library's.
    """
    widths = student_logits.shape[-1], teacher_logits.shape[-1]
    if target is not None:
        check_width("target", target, teacher_logits, "(V_t,)")

    def terms(indexed: bool) -> tuple[Term, ...]:
        check_links(rows, columns, weights, widths)
        live = torch.ones(widths[0], dtype=torch.bool, device=rows.device)
        unreached = rows.new_full(widths[1:], -1) if target is None else target
        return (Term(outcomes_kl, outcomes_of_links(rows, columns, weights, unreached, live, indexed=indexed)),)

    return _of_rows(
        student_logits,
        teacher_logits,
        _kept(terms, rows, columns, weights, target, device=student_logits.device, key=("p-kl", *widths)),
        measure=Measure(divergence, beta, temperature, top_k, student_top_k),
        weight=weight,
        reduction=reduction,
        implementation=implementation,
    )


def h_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    pairs: torch.Tensor,
    *,
    normalize: str = "rest",
    uncommon_top_k: int = 8192,
    student_live: torch.Tensor | None = None,
    teacher_live: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    temperature: float = 1.0,
    divergence: str = "forward",
    beta: float = 0.5,
    student_top_k: int | None = None,
    reduction: str = "mean",
    implementation: str = "auto",
) -> torch.Tensor:
    """T^2 (KL on the common pairs + sorted L1 on what is in no pair); the KL may be another divergence.

    normalize "rest": the pairs and one rest, the mass of all other tokens, are two distributions P, Q at T = 1, and P',
    Q' these to the power 1 / T, normalised: KL(P' || Q'). "none", the paper's form: sum over pairs of exp(t)(t - s), s,
    t = log softmax(z / T), which is no divergence and can be negative.
    L1: sum over ranks r <= m of |r-th largest softmax(z_S / T) - r-th largest softmax(z_T / T)| of the tokens in no
    pair, m the least of the two remainders and `uncommon_top_k`.

    GOLD is the same with the pairs of equal tokens; H-KL takes relaxed ones.

    Args:
        student_logits: floats (N, V_s). float64 is computed in float64, all else in float32.
        teacher_logits: floats (N, V_t); gets no gradient.
        pairs: integers (M, 2), student and teacher ids, no id twice on one side.
        normalize: "rest" or "none".
        uncommon_top_k: how many ranks of the remainders are compared at most.
        student_live: bool (V_s,), False for tokens without a probability; all have one by default.
        teacher_live: bool (V_t,).
        weight: floats (N,), a factor per row.
        temperature: T.
        divergence: of the common part with "rest": "forward", "reverse": KL(Q' || P'), or "jsd", see `XTokenLoss`.
        beta: the teacher's share in "jsd".
        student_top_k: of the common part compare the student's k likeliest outcomes of each row alone, both sides
            normalised on them.
        reduction: "none", "sum", or "mean", the sum divided by that of the weights.
        implementation: "auto", "reference", "cpu" or "triton", see `XTokenLoss`.

    Returns:
        Scalar, or floats (N,) for "none". Never negative with "rest".

    Raises:
        OptionError: for shapes that do not belong together, an id twice, or an option out of range or without use.

    Example:
        >>> teacher, student = torch.tensor([[0.3, 0.2, 0.5]]).log(), torch.tensor([[0.5, 0.4, 0.1]]).log()
        >>> pairs = torch.tensor([[0, 0], [1, 1]])
        >>> round(float(h_kl(student, teacher, pairs, normalize="none")), 4)  # -0.2919 + 0.4
        0.1081

    Source: X-Token (arXiv:2605.21699, 2026); GOLD, Patiño et al. 2025. The rest is this library's.
    """
    check_one_of("normalize", normalize, NORMALIZE)
    check_size("uncommon_top_k", uncommon_top_k)
    paper = normalize == "none"
    measure = Measure(divergence, beta, temperature, student_top_k=student_top_k)
    if paper and measure != Measure(temperature=temperature):
        raise OptionError(
            "normalize='none' is the paper's sum over pairs, which has no divergence, beta or student_top_k; leave "
            "these out or take normalize='rest'"
        )

    def terms(indexed: bool) -> tuple[Term, ...]:
        students = live_tokens(student_live, student_logits)
        teachers = live_tokens(teacher_live, teacher_logits)
        check_pairs(pairs, students, teachers)
        ranks = ranks_of_pairs(pairs, students, teachers, limit=uncommon_top_k, with_common=paper, indexed=indexed)
        if paper:
            return (Term(sorted_l1, ranks),)
        common = outcomes_of_pairs(pairs, students, teachers, indexed=indexed)
        return Term(outcomes_kl, common), Term(sorted_l1, ranks)

    key = ("h-kl", student_logits.shape[-1], teacher_logits.shape[-1], paper, uncommon_top_k)
    return _of_rows(
        student_logits,
        teacher_logits,
        _kept(terms, pairs, student_live, teacher_live, device=student_logits.device, key=key),
        measure=measure,
        weight=weight,
        reduction=reduction,
        implementation=implementation,
    )


gold = h_kl
"""The same formula under the name of its strict pairs."""


def live_tokens(live: torch.Tensor | None, logits: torch.Tensor) -> torch.Tensor:
    """The mask of the tokens that have a probability; all by default."""
    if live is None:
        return torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    if tuple(live.shape) != (logits.shape[-1],):
        raise OptionError(
            f"the mask of live tokens must have the width of the logits ({logits.shape[-1]},), but it has shape "
            f"{tuple(live.shape)}"
        )
    return live.bool()


def uld(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    student_live: torch.Tensor | None = None,
    teacher_live: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    implementation: str = "auto",
) -> torch.Tensor:
    """T^2 times the sum over ranks of |sorted softmax(z_S / T) - sorted softmax(z_T / T)|.

    Both are sorted in descending order, the shorter is filled up with zeros. It equals
    `(q.sort(-1, True)[0] - F.pad(p, (0, V_s - V_t)).sort(-1, True)[0]).abs().sum(-1)` for V_s >= V_t and T = 1.

    Args:
        student_logits: floats (N, V_s). float64 is computed in float64, all else in float32.
        teacher_logits: floats (N, V_t); gets no gradient.
        student_live: bool (V_s,), False for tokens without a probability; all have one by default.
        teacher_live: bool (V_t,).
        weight: floats (N,), a factor per row.
        temperature: T.
        reduction: "none", "sum", or "mean", the sum divided by that of the weights.
        implementation: "auto", "reference", "cpu" or "triton", see `XTokenLoss`.

    Returns:
        Scalar, or floats (N,) for "none", from 0 to 2 T^2 a row.

    Raises:
        OptionError: for shapes that do not belong together, or an option out of range.

    Example:
        >>> student, teacher = torch.tensor([[0.1, 0.9]]).log(), torch.tensor([[0.6, 0.2, 0.2]]).log()
        >>> round(float(uld(student, teacher)), 4)
        0.6

    Source: Boizard et al. 2024.
    """

    def terms(indexed: bool) -> tuple[Term, ...]:
        students, teachers = live_tokens(student_live, student_logits), live_tokens(teacher_live, teacher_logits)
        return (Term(sorted_l1, ranks_of_all(students, teachers, indexed=indexed)),)

    key = ("uld", student_logits.shape[-1], teacher_logits.shape[-1])
    return _of_rows(
        student_logits,
        teacher_logits,
        _kept(terms, student_live, teacher_live, device=student_logits.device, key=key),
        measure=Measure(temperature=temperature),
        weight=weight,
        reduction=reduction,
        implementation=implementation,
    )


def binary_ce(teacher: torch.Tensor, student: torch.Tensor, *, tau: float = 100.0) -> torch.Tensor:
    """The cross-entropy of "this chunk" against "another" at temperature tau.

    a = l_T / tau - 1e-6, b = l_S / tau - 1e-6: -(exp(a) b + (1 - exp(a)) log(1 - exp(b))).

    Args:
        teacher: floats, any shape, natural-log likelihoods of at most 0.
        student: floats of the same shape.
        tau: the temperature of the likelihoods.

    Returns:
        Floats of that shape, the entropy of exp(a) where student and teacher agree, never less; so not 0 at the best.

    Raises:
        OptionError: for a `tau` that is not above 0, or two shapes.

    Example:
        >>> import torch
        >>> binary_ce(torch.tensor([-0.5]), torch.tensor([-0.7])).item()  # doctest: +ELLIPSIS
        0.0317350...

    Source: tokenkit, `compute_alm_loss`, 2025; Minixhofer et al. 2025.
    """
    check_positive("tau", tau)
    check_shape("student", student, teacher.shape, "that of teacher")
    log_teacher, log_student = teacher / tau - _EPSILON, student / tau - _EPSILON
    return -(log_teacher.exp() * log_student - log_teacher.expm1() * _log_complement(log_student))


def alm(
    student_log_likelihood: torch.Tensor,
    teacher_log_likelihood: torch.Tensor,
    *,
    tau: float = 100.0,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """The binary cross-entropy of "this chunk" against "another", a = l_T / tau - 1e-6, b = l_S / tau - 1e-6.

    -(exp(a) b + (1 - exp(a)) log(1 - exp(b))); least where the likelihoods are equal, but not 0 there. Its gradient is
    about 1 / tau of a KL's, as in tokenkit: beside a cross-entropy multiply it by tau (`XTokenLoss`: kd_weight=100).

    Args:
        student_log_likelihood: floats (N,), natural logarithms of at most 0.
        teacher_log_likelihood: floats (N,); gets no gradient.
        tau: the temperature of the likelihoods; there is no T^2.
        weight: floats (N,), a factor per chunk.
        reduction: "none", "sum", or "mean", the sum divided by that of the weights.

    Returns:
        Scalar, or floats (N,) for "none".

    Raises:
        OptionError: for two shapes or an option out of range.

    Example:
        >>> round(float(alm(torch.tensor([-0.7]), torch.tensor([-0.5]))), 4)
        0.0317

    Source: tokenkit, `compute_alm_loss`, 2025; Minixhofer et al. 2025.
    """
    check_one_of("reduction", reduction, REDUCTIONS)
    values = binary_ce(teacher_log_likelihood.detach(), student_log_likelihood, tau=tau)
    values = values * row_factors(values, weight, reduction)
    return values if reduction == "none" else values.sum()


def _log_complement(value: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(value)) for value < 0: near 0 through expm1, far from it through log1p, where each keeps its digits.

    Each branch sees values of its own side only, since `where` would turn the other's infinite slope into NaN.
    """
    far = value < _LOG_HALF
    through_log1p = torch.log1p(-torch.where(far, value, _LOG_HALF).exp())
    through_expm1 = torch.log(-torch.where(far, _LOG_HALF, value).expm1())
    return torch.where(far, through_log1p, through_expm1)
