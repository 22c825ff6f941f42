"""Which student token is which teacher token, by NeMo-RL's two rules: what its gold and H-KL losses call common."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import OptionError
from ..options import same_shape
from .ids import other_ids

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


def check_links(rows: torch.Tensor, columns: torch.Tensor, weights: torch.Tensor, shape: tuple[int, int]) -> None:
    """Refuses links that do not fit each other or the vocabularies."""
    same_shape("columns", columns, rows.shape, "that of rows")
    same_shape("weights", weights, rows.shape, "that of rows")
    if torch.compiler.is_compiling():
        # While a graph is made there are no ids to look at.
        return
    for name, ids, width in (("rows", rows, shape[0]), ("columns", columns, shape[1])):
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < width:
            raise OptionError(
                f"{name} must lie between 0 and {width - 1}, one less than the width of the logits, but they run from "
                f"{int(ids.min())} to {int(ids.max())}"
            )


def _first_of_each(keys: torch.Tensor) -> torch.Tensor:
    """Where each key occurs first, ascending by key."""
    order = keys.argsort(stable=True)
    ordered = keys[order]
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    return order[begins]
