from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xtoken_align.coverage import relaxed_common, strict_common
from xtoken_align.rules.links import RULE_NUMBER, RULES


def slow_strict(owner: list[str], teacher: list[int]) -> list[bool]:
    taken: set[int] = set()
    marked = []
    for rule, target in zip(owner, teacher, strict=True):
        fits = rule in ("identity", "exact", "special") and target >= 0 and target not in taken
        marked.append(fits)
        if fits:
            taken.add(target)
    return marked


def slow_relaxed(teacher: list[int], weight: list[float], threshold: float) -> list[bool]:
    best: dict[int, int] = {}
    for row, (target, mass) in enumerate(zip(teacher, weight, strict=True)):
        if target >= 0 and mass >= threshold and (target not in best or mass > weight[best[target]]):
            best[target] = row
    return [row in best.values() for row in range(len(teacher))]


@given(st.lists(st.tuples(st.sampled_from(RULES), st.integers(-1, 4)), max_size=20))
def test_the_strict_set_takes_the_lowest_student_id_per_teacher_token(rows: list[tuple[str, int]]) -> None:
    owner = [rule for rule, _ in rows]
    teacher = [target for _, target in rows]

    marked = strict_common(np.array([RULE_NUMBER[rule] for rule in owner], np.uint8), np.array(teacher, np.int32))

    assert marked.tolist() == slow_strict(owner, teacher)


@given(st.lists(st.tuples(st.integers(-1, 4), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])), max_size=20))
def test_the_relaxed_set_takes_the_heaviest_row_then_the_lowest_id(rows: list[tuple[int, float]]) -> None:
    teacher = [target for target, _ in rows]
    weight = [mass for _, mass in rows]

    marked = relaxed_common(np.array(teacher, np.int32), np.array(weight, np.float32), threshold=0.5)

    assert marked.tolist() == slow_relaxed(teacher, weight, 0.5)


def test_a_weight_stored_as_the_threshold_reaches_it() -> None:
    assert relaxed_common(np.array([0], np.int32), np.array([0.6], np.float32)).tolist() == [True]


def test_the_common_sets_of_an_empty_vocabulary_are_empty() -> None:
    nothing = np.zeros(0, np.int32)

    assert strict_common(nothing.astype(np.uint8), nothing).shape == (0,)
    assert relaxed_common(nothing, nothing.astype(np.float32)).shape == (0,)
