"""The bound on what a cache's missing mass can do to a loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from xtoken_align.training.cache.format import loss_bound

Numbers = NDArray[np.float64]


def divergence(p: Numbers, q: Numbers) -> float:
    some = p > 0
    return float((p[some] * (np.log(p[some]) - np.log(q[some]))).sum())


def simplex(random: np.random.Generator, bins: int, sharpness: float) -> Numbers:
    drawn = np.exp(random.normal(size=bins) * sharpness)
    return drawn / drawn.sum()


@settings(deadline=None)
@given(st.integers(2, 50), st.floats(0.1, 6.0), st.integers(0, 10_000), st.data())
def test_no_way_of_treating_the_rest_moves_the_loss_beyond_the_bound(
    bins: int, sharpness: float, seed: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(seed)
    live, student = simplex(random, bins, sharpness), simplex(random, bins, sharpness)
    keep = data.draw(st.integers(1, bins))
    kept = np.where(np.argsort(np.argsort(-live)) < keep, live, 0.0)
    rest = max(1.0 - float(kept.sum()), 0.0)
    somewhere = np.zeros(bins)
    somewhere[data.draw(st.integers(0, bins - 1))] = rest
    bound = loss_bound(rest, bins=bins, least_log_prob=float(np.log(student.min())))
    for cached in (kept + somewhere, kept / kept.sum(), kept + rest * student):
        assert abs(divergence(live, student) - divergence(cached, student)) <= bound + 1e-9
        assert np.abs(live - cached).sum() <= 2 * rest + 1e-9


def test_the_bound_grows_with_the_rest_and_is_concave() -> None:
    rests = np.linspace(0.0, 1.0, 101)
    bounds = np.array([loss_bound(float(rest), bins=3, least_log_prob=-0.5) for rest in rests])
    assert (np.diff(bounds) >= 0).all()
    assert (np.diff(bounds, 2) <= 1e-12).all()
    assert bounds[-1] == pytest.approx(math.log(1 + 2 * math.exp(0.5)))
