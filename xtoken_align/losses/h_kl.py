"""H-KL and GOLD: KL on common pairs of tokens, sorted distance on the two remainders."""

from __future__ import annotations

import torch

from ..errors import OptionError
from .options import one_of, size
from .pairs import Pairs
from .passes import Recipe
from .rowwise import compare_rows, temperature_of

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
