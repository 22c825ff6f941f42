"""The losses as functions of rows of logits (N, V), in the manner of `torch.nn.functional`."""

from __future__ import annotations

import math

import torch

from ..errors import OptionError
from ..spans.spans import Predictions
from .bins import Bins
from .inputs import Hidden, Logits
from .options import columns_kept, one_of, positive, same_shape, size
from .pairs import Pairs, everything
from .passes import Recipe
from .peers.nemo_rl import check_links
from .projection import Projection
from .rows import compute_dtype
from .rowwise import REDUCTIONS, check_width, compare_rows, row_weights, share_of_row, temperature_of
from .whole import Whole


def partition_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    student_bin: torch.Tensor,
    teacher_bin: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 KL(P' || Q') of the bins' probabilities.

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
        reduction: "none", "sum", or "mean", the sum divided by that of the weights.

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
    return compare_rows(
        student_logits,
        teacher_logits,
        recipe_of_bins(student_bin, teacher_bin, temperature_of(temperature)),
        weight=weight,
        reduction=reduction,
    )


def recipe_of_bins(student_bin: torch.Tensor, teacher_bin: torch.Tensor, temperature: float) -> Recipe:
    """Bins, compared."""
    none = student_bin.new_zeros(0, dtype=torch.int64)
    return Recipe(Bins(student_bin, teacher_bin), None, none, none, temperature, None)


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
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 KL(P' || Q') on the teacher's columns that W reaches.

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
        reduction: "none", "sum", or "mean", the sum divided by that of the weights.

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
    check_links(rows, columns, weights, (student_logits.shape[-1], teacher_logits.shape[-1]))
    if target is None:
        target = rows.new_full((teacher_logits.shape[-1],), -1)
    check_width("target", target, teacher_logits, "(V_t,)")
    projection = Projection(
        rows,
        columns,
        weights,
        target,
        torch.ones(student_logits.shape[-1], dtype=torch.bool, device=rows.device),
        weighted=True,
    )
    return compare_rows(
        student_logits,
        teacher_logits,
        recipe_of_projection(projection, temperature_of(temperature), columns_kept(top_k)),
        weight=weight,
        reduction=reduction,
    )


def recipe_of_projection(projection: Projection, temperature: float, top_k: int | None) -> Recipe:
    """A projection, compared."""
    none = projection.rows.new_zeros(0, dtype=torch.int64)
    return Recipe(projection, None, none, none, temperature, top_k)


# Keeps 1 - exp(l) above 0 for a chunk that is certain.
_EPSILON = 1e-6
_LOG_HALF = -math.log(2)
NORMALIZE = ("rest", "none")


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
    reduction: str = "mean",
) -> torch.Tensor:
    """T^2 (KL on the common pairs + sorted L1 on what is in no pair).

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
        reduction: "none", "sum", or "mean", the sum divided by that of the weights.

    Returns:
        Scalar, or floats (N,) for "none". Never negative with "rest".

    Raises:
        OptionError: for shapes that do not belong together, an id twice, or an option out of range.

    Example:
        >>> teacher, student = torch.tensor([[0.3, 0.2, 0.5]]).log(), torch.tensor([[0.5, 0.4, 0.1]]).log()
        >>> pairs = torch.tensor([[0, 0], [1, 1]])
        >>> round(float(h_kl(student, teacher, pairs, normalize="none")), 4)  # -0.2919 + 0.4
        0.1081

    Source: X-Token (arXiv:2605.21699, 2026); GOLD, Patiño et al. 2025. The rest is this library's.
    """
    one_of("normalize", normalize, NORMALIZE)
    students = live_tokens(student_live, student_logits)
    teachers = live_tokens(teacher_live, teacher_logits)
    _check_pairs(pairs, students, teachers)
    return compare_rows(
        student_logits,
        teacher_logits,
        recipe_of_pairs(
            Pairs(pairs, students, teachers),
            temperature_of(temperature),
            normalize=normalize,
            limit=size("uncommon_top_k", uncommon_top_k),
        ),
        weight=weight,
        reduction=reduction,
    )


gold = h_kl
"""The same formula under the name of its strict pairs."""


def recipe_of_pairs(pairs: Pairs, temperature: float, *, normalize: str, limit: int) -> Recipe:
    """Pairs and remainders, compared."""
    none = pairs.pairs.new_zeros(0, dtype=torch.int64)
    paper = normalize == "none"
    whole = pairs.remainders(limit, with_common=paper)
    return Recipe(None if paper else pairs, whole, none, none, temperature, None)


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


def _check_pairs(pairs: torch.Tensor, *live: torch.Tensor) -> None:
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        raise OptionError(f"pairs must have shape (M, 2), but they have shape {tuple(pairs.shape)}")
    if torch.compiler.is_compiling():
        # While a graph is made there are no ids to look at.
        return
    for column, (name, mask) in enumerate(zip(("student", "teacher"), live, strict=True)):
        ids = pairs[:, column].long()
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(mask):
            raise OptionError(
                f"the {name} ids of pairs must lie between 0 and {len(mask) - 1}, but they run from {int(ids.min())} "
                f"to {int(ids.max())}"
            )
        if len(torch.unique(ids)) != len(ids):
            raise OptionError(f"a {name} id stands in several pairs; pairs must be one to one")
        if not bool(mask[ids].all()):
            raise OptionError(f"a {name} id of the pairs has no probability according to the mask of live tokens")


def uld(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    student_live: torch.Tensor | None = None,
    teacher_live: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
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
    students, teachers = live_tokens(student_live, student_logits), live_tokens(teacher_live, teacher_logits)
    return compare_rows(
        student_logits,
        teacher_logits,
        recipe_of_everything(everything(students, teachers), temperature_of(temperature)),
        weight=weight,
        reduction=reduction,
    )


def recipe_of_everything(whole: Whole, temperature: float) -> Recipe:
    """Whole vocabularies, compared."""
    none = whole.student_live.new_zeros(0)
    return Recipe(None, whole, none, none, temperature, None)


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
    positive("tau", tau)
    same_shape("student", student, teacher.shape, "that of teacher")
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

    -(exp(a) b + (1 - exp(a)) log(1 - exp(b))); least where the likelihoods are equal, but not 0 there.

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
    one_of("reduction", reduction, REDUCTIONS)
    values = binary_ce(teacher_log_likelihood.detach(), student_log_likelihood, tau=tau)
    values = values * (row_weights(values, weight) * share_of_row(len(values), weight, reduction))
    return values if reduction == "none" else values.sum()


def chunk_log_likelihoods(
    side: torch.Tensor | Logits | Hidden, predictions: Predictions, which: str, silent: torch.Tensor
) -> torch.Tensor:
    """Floats (N,): the log-likelihood of each chunk's tokens, at most 0; NaN where a position has no distribution.

    From hidden states the logits of all predicting positions are made at once: this baseline is not fused.

    Args:
        side: logits (B, T, V), or hidden states with their head.
        predictions: tensors on the side's device.
        which: "student" or "teacher".
        silent: int64, tokens without a probability.
    """
    rows = getattr(predictions, which)
    logits = _logits_of(side, rows)
    scores = logits.to(compute_dtype(logits)).index_fill(1, silent, -torch.inf)
    own = getattr(predictions, f"{which}_tokens").long()
    # A row without any mass would make NaN of its gradient too.
    undefined = (scores == -torch.inf).all(dim=1)
    scores = scores.masked_fill(undefined.unsqueeze(1), 0.0)
    log_probabilities = scores.log_softmax(dim=1).gather(1, own.unsqueeze(1)).squeeze(1)
    log_probabilities = log_probabilities.masked_fill(undefined, torch.nan)
    offsets = getattr(predictions, f"{which}_offsets")
    chunk = torch.arange(len(offsets) - 1, device=rows.device).repeat_interleave(offsets.diff())
    return log_probabilities.new_zeros(len(offsets) - 1).index_add(0, chunk, log_probabilities).clamp_max(0)


def _logits_of(side: torch.Tensor | Logits | Hidden, rows: torch.Tensor) -> torch.Tensor:
    if isinstance(side, Hidden):
        states = side.states.flatten(0, 1).index_select(0, rows)
        logits = torch.nn.functional.linear(states, side.weight, side.bias) * side.scale
        return logits if side.softcap is None else side.softcap * torch.tanh(logits / side.softcap)
    return (side.logits if isinstance(side, Logits) else side).flatten(0, 1).index_select(0, rows)


def _log_complement(value: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(value)) for value < 0: near 0 through expm1, far from it through log1p, where each keeps its digits.

    Each branch sees values of its own side only, since `where` would turn the other's infinite slope into NaN.
    """
    far = value < _LOG_HALF
    through_log1p = torch.log1p(-torch.where(far, value, _LOG_HALF).exp())
    through_expm1 = torch.log(-torch.where(far, _LOG_HALF, value).expm1())
    return torch.where(far, through_log1p, through_expm1)
