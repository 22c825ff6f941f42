"""What the fast losses say of a student that is right: 0. And C-KL, averaged over the text, is the whole divergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from toy_world import CROSSING, WORLDS, ToyWorld

from xtoken_align.losses import XTokenLoss

Make = Callable[[int], ToyWorld]

FIRST_FORM: dict[str, Any] = {"level_weight": "text", "end": False}
"""C-KL's first form, which is right for a student that is perfect by text: it has tokens that continue others."""


@cache
def world_of(make: Make, seed: int = 1) -> ToyWorld:
    return make(seed)


def cases(*kinds: tuple[str, dict[str, Make]]) -> list[object]:
    return [pytest.param(kind, make, id=f"{kind}, {name}") for kind, worlds in kinds for name, make in worlds.items()]


@pytest.mark.parametrize(
    ("divergence", "temperature"), [("forward", 1.0), ("forward", 2.0), ("jsd", 1.0), ("reverse", 2.0)]
)
@pytest.mark.parametrize(
    ("kind", "make"),
    cases(("partition-kl", WORLDS | CROSSING), ("p-kl", WORLDS | CROSSING), ("c-kl", WORLDS)),
)
def test_a_student_that_is_perfect_by_text_has_loss_and_gradient_zero(
    kind: str, make: Make, divergence: str, temperature: float
) -> None:
    world = world_of(make)
    form = FIRST_FORM if kind == "c-kl" else {}
    loss = XTokenLoss(world.mapping, kind, temperature=temperature, divergence=divergence, **form)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        student, teacher = (
            world.logits(side, world.by_text(side)).to(dtype)  # type: ignore[arg-type]
            for side in ("student", "teacher")
        )
        student.requires_grad_()
        out = loss(student, teacher, world.spans)
        (slope,) = torch.autograd.grad(out.loss, student)
        assert 0 <= out.kd < bound
        assert slope.abs().max() < bound
        assert out.metrics["misfits"][0] == 0
        assert out.metrics["chunks_used"][0] == len(world.spans.predictions()) > len(world.texts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 2.0},
        {"level_weight": "teacher", "divergence": "reverse"},
        {"level_weight": "text", "divergence": "jsd", "temperature": 2.0},
        {"implementation": "reference"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", WORLDS)
def test_a_student_that_is_perfect_token_by_token_pays_c_kl_nothing(name: str, options: dict[str, Any]) -> None:
    # What is impossible for the student has a finite logit, so that the fast ways are taken; at T = 2 that is seen.
    world = world_of(WORLDS[name])
    bound = 1e-7 if options.get("temperature") else 1e-12
    student = world.logits("student", world.by_tokens("student")).clamp_min(-40.0).requires_grad_()
    teacher = world.logits("teacher", world.by_tokens("teacher"))
    out = XTokenLoss(world.mapping, "c-kl", **options)(student, teacher, world.spans)
    (slope,) = torch.autograd.grad(out.loss, student)
    assert 0 <= out.kd < bound
    assert slope.abs().max() < bound
    without_end = XTokenLoss(world.mapping, "c-kl", end=False, **options)(student, teacher, world.spans)
    assert without_end.kd > 0.01


def expectation(world: ToyWorld, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The expected C-KL of a text's first chunk: each text by itself, its later chunks without a weight."""
    loss = XTokenLoss(world.mapping, "c-kl", **FIRST_FORM)
    total = torch.zeros((), dtype=torch.float64)
    for row, probability in enumerate(world.texts.values()):
        one = slice(row, row + 1)
        arrays = {
            name: value[one]
            for name, value in vars(world.spans).items()
            if name != "weight" and not name.startswith("_")
        }
        weight = world.spans.weight[one].copy()
        weight[0, int(weight[0].argmax()) + 1 :] = 0
        spans = replace(world.spans, weight=weight, **arrays)
        assert len(spans.predictions()) == 1
        total = total + probability * loss(student[one], teacher[one], spans).kd
    return total


@pytest.mark.parametrize("seed", [0, 1])
def test_the_expected_c_kl_is_the_kl_over_the_students_tokens(seed: int) -> None:
    world = world_of(WORLDS["the student packs"], seed)
    guess, truth = world.random("student", seed), world.by_text("student")(())
    found = expectation(world, world.logits("student", guess), world.logits("teacher", world.by_text("teacher")))
    possible = truth > -torch.inf
    whole = (truth[possible].exp() * (truth - guess(()))[possible]).sum()
    assert whole > 0.3
    assert found.item() == pytest.approx(whole.item(), abs=1e-9)


def test_the_expected_c_kl_is_the_kl_over_the_teachers_tokens_as_the_student_writes_them() -> None:
    world = world_of(WORLDS["the teacher packs"])
    guess = world.random("student", 1)
    found = expectation(world, world.logits("student", guess), world.logits("teacher", world.by_text("teacher")))
    pieces = world.mapping.decompositions("teacher")
    whole = torch.zeros((), dtype=torch.float64)
    for token, log_probability in enumerate(world.by_text("teacher")(())):
        if log_probability == -torch.inf:
            continue
        written = pieces[token] or [int(world.mapping.first_pieces("teacher")[token])]
        student = sum(guess(tuple(written[:count]))[piece] for count, piece in enumerate(written))
        if token < 14 and len(written) < 3:
            # A shorter token is also the word that no digit follows.
            student = student + torch.log1p(-guess(tuple(written))[[0, 1]].exp().sum())
        whole = whole + log_probability.exp() * (log_probability - student)
    assert whole > 0.3
    assert found.item() == pytest.approx(whole.item(), abs=1e-9)
