"""Advantages per chunk, against sums written out and a toy world's divergence."""

from __future__ import annotations

from math import log

import pytest
from slow_advantages import slow_chunk_advantages
from tiny import Tiny
from toy_world import WORLDS

PAIR = Tiny(["1", "2", "12", "a"], ["1", "2", "a", "aa"])
STUDENT = [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.1, 0.2], [0.25, 0.25, 0.1, 0.4], [0.25] * 4]
TEACHER = [[0.5, 0.2, 0.1, 0.2], [0.1, 0.6, 0.2, 0.1], [0.2, 0.2, 0.1, 0.5], [0.25] * 4]
OTHER = [[0.2, 0.3, 0.4, 0.1]] * 4


def advantages(**options):
    """The text 12aa: the student writes 12 a a, the teacher 1 2 aa."""
    student, teacher = PAIR.logits("student", STUDENT), PAIR.logits("teacher", TEACHER)
    return slow_chunk_advantages(student, teacher, PAIR.spans([2, 3, 3], [0, 1, 3]), mapping=PAIR.mapping, **options)


def test_a_chunks_ratio_is_shared_by_the_students_tokens() -> None:
    found, used = advantages()
    first, second = log(0.5 * 0.6) - log(0.3), log(0.5) - log(0.2 * 0.4)
    assert found.tolist() == [[0.0, pytest.approx(first), pytest.approx(second / 2), pytest.approx(second / 2)]]
    assert used.tolist() == [[False, True, True, True]]
    whole, _ = advantages(spread="whole")
    assert whole.tolist() == [[0.0, pytest.approx(first), pytest.approx(second), pytest.approx(second)]]


def test_references_shift_both_sides() -> None:
    references = {
        "student_reference": PAIR.logits("student", OTHER).detach(),
        "teacher_reference": PAIR.logits("teacher", OTHER).detach(),
    }
    found, _ = advantages(**references)
    first = log(0.5 * 0.6 / (0.2 * 0.3)) - log(0.3 / 0.4)
    second = log(0.5 / 0.1) - log(0.2 * 0.4 / (0.1 * 0.1))
    assert found.tolist() == [[0.0, pytest.approx(first), pytest.approx(second / 2), pytest.approx(second / 2)]]
    # Models that are their references have learnt nothing.
    student, teacher = PAIR.logits("student", STUDENT).detach(), PAIR.logits("teacher", TEACHER).detach()
    none, _ = advantages(student_reference=student, teacher_reference=teacher)
    assert none.abs().max() == 0


@pytest.mark.parametrize("spread", ["share", "whole"])
def test_advantages_have_no_graph_and_those_of_one_tokens_chunks_are_the_tokens_own(spread: str) -> None:
    found, _ = advantages(spread=spread)
    assert not found.requires_grad
    student, teacher = PAIR.logits("student", STUDENT[:2]), PAIR.logits("teacher", TEACHER[:2])
    one, _ = slow_chunk_advantages(student, teacher, PAIR.spans([1], [1]), mapping=PAIR.mapping, spread=spread)
    assert one.tolist() == [[0.0, pytest.approx(log(0.2 / 0.2))]]


@pytest.mark.parametrize("name", WORLDS)
def test_two_perfect_sides_have_no_advantage_on_a_whole_text(name: str) -> None:
    # By chunk a side may know more than the other; over a text both gave it the same probability.
    world = WORLDS[name](1)
    student, teacher = (world.logits(side, world.by_tokens(side)) for side in ("student", "teacher"))
    found, _ = slow_chunk_advantages(student, teacher, world.spans, mapping=world.mapping)
    assert found.sum(1).abs().max() < 1e-9
    assert found.abs().max() > 0.1
