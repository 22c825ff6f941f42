"""What losses converge to, in a world small enough for a test: `benchmarks/converges.py` has the table."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

CONVERGES = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "converges.py"))
TOKENS = {"the student packs": ("a b c ab", "a b c"), "the teacher packs": ("a b c", "a b c ab")}


@pytest.fixture(scope="module", params=TOKENS)
def world(request: pytest.FixtureRequest):
    return CONVERGES["World"](*(side.split() for side in TOKENS[request.param]), length=10_000)


def distance(world, loss: str | None, *, with_text: bool) -> float:
    values = None if loss is None else CONVERGES["LOSSES"][loss]
    return CONVERGES["minimise"](world, values, with_text=with_text)["distance"]


def test_c_kl_ends_at_the_teachers_strings_though_a_quarter_of_the_text_is_noise(world) -> None:
    assert distance(world, "C-KL", with_text=False) < 1e-4


@pytest.mark.parametrize("world", ["the teacher packs"], indirect=True)
def test_a_cross_entropy_alone_learns_the_noise_and_c_kl_takes_most_of_it_away(world) -> None:
    alone = distance(world, None, with_text=True)
    assert alone > 0.005
    assert distance(world, "C-KL", with_text=True) < alone / 2


def test_the_distance_is_zero_for_the_teachers_strings_alone(world) -> None:
    perfect = world.truth.log().clamp_min(-50)
    assert abs(world.distance(perfect)) < 1e-12
    assert world.distance(torch.zeros_like(perfect)) > 0.05
    assert CONVERGES["chunks"](["ab", "c", "a"], ["a", "b", "c", "ab"]) == [(("ab",), ("a", "b")), (("c",), ("c",))]
