"""Which special tokens of the two sides stand at the same place and mean the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .units import runs

_LONGEST = 64
"""Runs of specials up to here are paired in the best way; longer ones in their order."""

Place = NDArray[np.int64]


def matched(
    student: NDArray[np.int32],
    student_at: Place,
    teacher: NDArray[np.int32],
    teacher_at: Place,
    same: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs specials that stand at one place, in order, where they have an equal role or string.

    Args:
        student: int32 (n,), rows of `same`: the student's specials in the order of the text.
        student_at: int64 (n,), ascending: where each stands.
        teacher: int32 (m,), columns of `same`.
        teacher_at: int64 (m,).
        same: bool (student specials, teacher specials).

    Returns:
        Positions in `student` and in `teacher`, pair by pair, both ascending.
    """
    places = np.intersect1d(student_at, teacher_at)
    bounds = [np.searchsorted(at, places, side) for at in (student_at, teacher_at) for side in ("left", "right")]
    ours, theirs = bounds[1] - bounds[0], bounds[3] - bounds[2]
    even = np.flatnonzero(ours == theirs)
    one, other = runs(bounds[0][even], ours[even]), runs(bounds[2][even], ours[even])
    fit = same[student[one], teacher[other]]
    # Places where some pair does not fit are looked at one by one, with those of unequal numbers.
    whole = np.ones(len(even), dtype=np.bool_)
    whole[np.repeat(np.arange(len(even)), ours[even])[~fit]] = False
    kept = np.repeat(whole, ours[even])
    pairs = [(one[kept], other[kept])]
    for at in np.setdiff1d(np.arange(len(places)), even[whole]).tolist():
        first, second = bounds[0][at], bounds[2][at]
        one_run, other_run = student[first : bounds[1][at]], teacher[second : bounds[3][at]]
        if max(len(one_run), len(other_run)) > _LONGEST:
            chosen = _at_equal_places(one_run, other_run, same)
        else:
            chosen = np.array(in_order(same[np.ix_(one_run, other_run)]), dtype=np.int64).reshape(-1, 2)
        pairs.append((chosen[:, 0] + first, chosen[:, 1] + second))
    left, right = (np.sort(np.concatenate(side)) for side in zip(*pairs, strict=True))
    return left, right


def _at_equal_places(
    student: NDArray[np.int32], teacher: NDArray[np.int32], same: NDArray[np.bool_]
) -> NDArray[np.int64]:
    # No grid of all by all: a picture may be thousands of specials.
    size = min(len(student), len(teacher))
    fit = same[student[:size], teacher[:size]].nonzero()[0]
    return np.stack((fit, fit), axis=1)


def in_order(grid: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The longest list of pairs (row, column) that are True, ascending on both sides; the earliest among equals.

    >>> in_order(np.array([[True, True], [False, True]]))
    [(0, 0), (1, 1)]
    >>> in_order(np.array([[False], [True]]))
    [(1, 0)]
    """
    rows, columns = grid.shape
    if not grid.any():
        return []
    if max(rows, columns) > _LONGEST:
        return [(at, at) for at in range(min(rows, columns)) if grid[at, at]]
    best = np.zeros((rows + 1, columns + 1), dtype=np.int32)
    for row in range(rows - 1, -1, -1):
        for column in range(columns - 1, -1, -1):
            skip = max(best[row + 1, column], best[row, column + 1])
            best[row, column] = max(skip, best[row + 1, column + 1] + 1) if grid[row, column] else skip
    chosen: list[tuple[int, int]] = []
    row = column = 0
    while row < rows and column < columns:
        if grid[row, column] and best[row, column] == best[row + 1, column + 1] + 1:
            chosen.append((row, column))
            row, column = row + 1, column + 1
        elif best[row + 1, column] >= best[row, column + 1]:
            row += 1
        else:
            column += 1
    return chosen
