"""Pairs of specials: the longest list in order, place by place."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xtoken_align.spans.tables import best_pairs_in_order, paired_specials

grids = st.integers(0, 5).flatmap(
    lambda columns: st.lists(st.lists(st.booleans(), min_size=columns, max_size=columns), max_size=5).map(
        lambda rows: np.array(rows, dtype=bool).reshape(len(rows), columns)
    )
)


def longest(grid: np.ndarray, row: int = 0, column: int = 0) -> int:
    """By trying everything."""
    best = 0
    for one in range(row, grid.shape[0]):
        for other in range(column, grid.shape[1]):
            if grid[one, other]:
                best = max(best, 1 + longest(grid, one + 1, other + 1))
    return best


@given(grid=grids)
def test_pairs_are_the_longest_list_that_ascends_on_both_sides(grid: np.ndarray) -> None:
    pairs = best_pairs_in_order(grid)
    assert all(grid[pair] for pair in pairs)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(pairs))
    assert len(pairs) == longest(grid)


@given(
    grid=grids.filter(lambda grid: grid.size > 0),
    ours=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=6),
    theirs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=6),
)
def test_specials_are_paired_place_by_place(
    grid: np.ndarray, ours: list[tuple[int, int]], theirs: list[tuple[int, int]]
) -> None:
    ours, theirs = sorted(ours, key=lambda one: one[0]), sorted(theirs, key=lambda one: one[0])
    kinds = [
        np.array([kind % size for _, kind in side], dtype=np.int32)
        for side, size in zip((ours, theirs), grid.shape, strict=True)
    ]
    places = [np.array([place for place, _ in side], dtype=np.int64) for side in (ours, theirs)]
    left, right = paired_specials(kinds[0], places[0], kinds[1], places[1], grid)
    assert (np.diff(left) > 0).all()
    assert (np.diff(right) > 0).all()
    assert np.array_equal(places[0][left], places[1][right])
    assert grid[kinds[0][left], kinds[1][right]].all()
    wanted = 0
    for place in range(4):
        one, other = (kind[at == place] for kind, at in zip(kinds, places, strict=True))
        wanted += longest(grid[np.ix_(one, other)])
    assert len(left) == wanted


def test_long_runs_are_paired_by_their_place() -> None:
    same = np.array([[True, False], [False, True]])
    kinds = np.array([0] * 100 + [1], dtype=np.int32)
    others = np.array([0] * 90 + [1] * 3, dtype=np.int32)
    nowhere = np.zeros(101, dtype=np.int64)
    left, right = paired_specials(kinds, nowhere, others, nowhere[:93], same)
    assert left.tolist() == right.tolist() == list(range(90))
