"""The common sets: student rows that stand for one teacher token each, no teacher token twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..rules.links import EXACT_RULES, RULE_NUMBER


def strict_common(owner: NDArray[np.uint8], first_link_teacher: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Marks the rows of rule identity, exact or special, the lowest student id per teacher token.

    Args:
        owner: uint8 (student ids,), number of the rule that owns each row, 0 for an empty one.
        first_link_teacher: int32 (student ids,), teacher id of each row's first link, -1 for an empty row.

    Returns:
        bool (student ids,).
    """
    exact = np.isin(owner, [RULE_NUMBER[rule] for rule in EXACT_RULES]) & (first_link_teacher >= 0)
    candidates = np.flatnonzero(exact)
    return _mark(candidates, first_link_teacher[candidates], len(owner))


def relaxed_common(
    top_teacher: NDArray[np.int32], top_weight: NDArray[np.float32], threshold: float = 0.6
) -> NDArray[np.bool_]:
    """Marks the rows whose top link weighs enough; of several rows with one teacher token, the heaviest.

    Args:
        top_teacher: int32 (student ids,), teacher id of each row's heaviest link, -1 for an empty row.
        top_weight: float32 (student ids,), the weight of that link.
        threshold: the least weight that counts, compared in float32 as the weights are stored.

    Returns:
        bool (student ids,); between equal weights the lowest student id is marked.

    Example:
        >>> relaxed_common(np.array([7, 7, 3, -1]), np.array([0.7, 0.9, 0.5, 0], np.float32)).tolist()
        [False, True, False, False]
    """
    candidates = np.flatnonzero((top_teacher >= 0) & (top_weight >= np.float32(threshold)))
    heaviest_first = candidates[np.argsort(-top_weight[candidates], kind="stable")]
    return _mark(heaviest_first, top_teacher[heaviest_first], len(top_teacher))


def _mark(rows: NDArray[np.intp], teacher: NDArray[np.int32], size: int) -> NDArray[np.bool_]:
    """Marks, for each teacher token, the first of the rows that name it."""
    _, first = np.unique(teacher, return_index=True)
    marked = np.zeros(size, np.bool_)
    marked[rows[first]] = True
    return marked
