"""What the losses say of a student that is right: 0 where both sides know the same, and how much where they do not."""

from __future__ import annotations

from collections.abc import Callable
from math import log

import pytest
import torch
from slow_loss import SlowOutput, slow_loss
from toy_world import CROSSING, END, UNCLOSED, WORLDS, ToyWorld

Make = Callable[[int], ToyWorld]

EVERY = {**WORLDS, **CROSSING}


def loss(world: ToyWorld, how: str, **options: object) -> tuple[SlowOutput, torch.Tensor]:
    student = world.logits("student", getattr(world, how)("student")).requires_grad_()
    teacher = world.logits("teacher", getattr(world, how)("teacher"))
    out = slow_loss(world.mapping, student, teacher, world.spans, **options)
    out.loss.backward()
    return out, student.grad


def cases(*kinds: tuple[str, dict[str, Make]]) -> list[object]:
    return [pytest.param(kind, make, id=f"{kind}, {name}") for kind, worlds in kinds for name, make in worlds.items()]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("kind", "make"), cases(("partition-kl", EVERY), ("p-kl", EVERY), ("c-kl", WORLDS)))
def test_a_student_that_is_perfect_by_text_has_loss_and_gradient_zero(
    kind: str, make: Make, temperature: float
) -> None:
    world = make(1)
    out, slope = loss(world, "by_text", kind=kind, temperature=temperature)
    assert len(out.chunk_kd) > len(world.texts)
    assert not out.misfits.any()
    assert out.chunk_kd.abs().max() < 1e-12
    assert slope.abs().max() < 1e-12


@pytest.mark.parametrize("name", CROSSING)
def test_tokens_that_cross_each_other_cost_a_perfect_student_under_c_kl_alone(name: str) -> None:
    # A teacher's token that begins inside a student's token and ends outside it is END for the teacher, but part of the
    # longer token for the student.
    world = CROSSING[name](1)
    assert world.spans.statistics().many_to_many > 0
    out, _ = loss(world, "by_text", kind="c-kl")
    assert world.expectation(out.chunk_kd) > 1e-3


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a student's token has no beginning", "c-kl"),
        ("a teacher's token has no beginning", "c-kl"),
        ("the teacher's token is no student's", "p-kl"),
    ],
)
def test_a_token_without_its_beginnings_costs_a_perfect_student(name: str, kind: str) -> None:
    out, _ = loss(UNCLOSED[name](1), "by_text", kind=kind)
    assert out.chunk_kd.max() > 1e-3


@pytest.mark.parametrize("name", UNCLOSED)
def test_partition_kl_needs_no_beginnings(name: str) -> None:
    out, _ = loss(UNCLOSED[name](1), "by_text", kind="partition-kl", temperature=2.0)
    assert out.chunk_kd.abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["partition-kl", "p-kl", "c-kl"])
def test_outcomes_that_the_students_own_tokens_exclude_are_dropped(kind: str) -> None:
    # After its token `1`, a student that packs knows that no digit follows that would make a longer token.
    world = WORLDS["the student packs"](1)
    out, _ = loss(world, "by_tokens", kind=kind)
    assert out.chunk_kd.abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["partition-kl", "p-kl"])
def test_a_teacher_that_knows_its_own_tokens_charges_what_they_exclude(kind: str) -> None:
    # The teacher has written `1` and not `12`: for it the next character is neither 1 nor 2. The student has only read
    # a 1, so even a perfect one pays the logarithm of what it leaves for the rest.
    world = WORLDS["the teacher packs"](1)
    out, _ = loss(world, "by_tokens", kind=kind)
    numbers: dict[int, int] = {}
    for value, row in zip(out.chunk_kd.tolist(), world.row_of_chunk, strict=True):
        text = list(world.texts)[row]
        tokens = world.tokens("teacher", text)[: numbers.get(row, 0)]
        numbers[row] = len(tokens) + 1
        read = world.text_of("teacher", tokens)
        longer = bool(tokens) and len(world.text_of("teacher", tokens[-1:])) < 3 and len(read) < 4
        assert value == pytest.approx(-log(world.next_character[read][END]) if longer else 0.0, abs=1e-12)
