"""What losses converge to, in a world small enough for a test: `benchmarks/converges.py` has the table."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xtoken_align.losses import XTokenLoss

ROOT = Path(__file__).parents[3]
CONVERGES = runpy.run_path(str(ROOT / "benchmarks" / "converges.py"))
TOKENS = {"the student packs": ("a b c ab", "a b c"), "the teacher packs": ("a b c", "a b c ab")}


@pytest.fixture(scope="module", params=TOKENS)
def world(request: pytest.FixtureRequest):
    return CONVERGES["World"](*(side.split() for side in TOKENS[request.param]), length=10_000)


def distance(world, loss: str | None, *, with_text: bool) -> float:
    values = None if loss is None else CONVERGES["LOSSES"][loss]
    return CONVERGES["minimise"](world, values, with_text=with_text)["distance"]


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_c_kl_ends_at_the_teachers_strings_though_a_quarter_of_the_text_is_noise(name: str) -> None:
    # By the fast loss: whose every pair of neighbouring chunks weighs as much as it is frequent.
    world = CONVERGES["World"](*CONVERGES["WORLDS"][name], length=20_000)
    weight = (world.spans.weight * world.weight.numpy()[:, None]).astype("float32")
    spans = replace(world.spans, weight=weight)
    distances = {}
    for end in (True, False):
        loss = XTokenLoss(world.mapping, "c-kl", ce_weight=0, end=end)
        table = torch.zeros_like(world.truth, requires_grad=True)
        search = torch.optim.LBFGS([table], max_iter=60, line_search_fn="strong_wolfe", tolerance_grad=1e-8)

        def total(loss: XTokenLoss = loss, table: torch.Tensor = table) -> torch.Tensor:
            table.grad = None
            value = loss(table[world.ids[0]], world.rows[world.ids[1]], spans, num_chunks_in_batch=1).loss
            value.backward()
            return value

        search.step(total)
        distances[end] = world.distance(table.detach())
    assert distances[True] < 1e-4
    assert distances[False] > 0.02


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


def test_the_documentation_has_the_committed_figures() -> None:
    losses = json.loads((ROOT / "benchmarks" / "converges.json").read_text(encoding="utf-8"))["losses"]
    assert "\n".join(CONVERGES["markdown"](losses)) in (ROOT / "docs" / "which-loss.md").read_text(encoding="utf-8")
    for world in "abc":
        for name in ("C-KL", "C-KL, reverse", "C-KL, jsd", "exact"):
            assert losses[name][f"alone, {world}"]["distance"] <= 1e-3
