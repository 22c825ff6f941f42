"""W as arrays: canonical, normalised, and equal to the slow twin's on any small pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_build import DEFAULT, ORDER, slow_build
from small_vocabs import make_vocab, vocabs

from xtoken_align import Vocab, build
from xtoken_align.matrix import Matrix, assemble_matrix, relaxed_common, strict_common
from xtoken_align.rules.links import RULE_NUMBER, RULES, Links
from xtoken_align.vocab.kinds import Kind


def links(rule: str, *entries: tuple[int, int, int, float]) -> Links:
    rows, columns, positions, weights = zip(*entries, strict=True) if entries else ((), (), (), ())
    return Links(
        RULE_NUMBER[rule],
        np.array(rows, dtype=np.int32),
        np.array(columns, dtype=np.int32),
        np.array(positions, dtype=np.uint8),
        np.array(weights, dtype=np.float64),
    )


def cells(matrix: Matrix) -> dict[tuple[int, int], tuple[float, str, int]]:
    return {
        (int(row), int(column)): (float(weight), RULES[rule], int(position))
        for row, column, weight, rule, position in zip(
            matrix.rows, matrix.indices, matrix.data, matrix.rule, matrix.position, strict=True
        )
    }


def assert_equal_cells(found: dict[tuple[int, int], tuple[float, str, int]], expected: dict) -> None:
    assert found.keys() == expected.keys()
    for cell, (weight, rule, position) in expected.items():
        assert found[cell][1:] == (rule, position), cell
        assert found[cell][0] == pytest.approx(weight, rel=1e-5), cell


def test_a_column_that_occurs_twice_becomes_one_link_at_its_first_position() -> None:
    matrix = assemble_matrix([links("digits", (0, 7, 0, 0.9), (0, 5, 1, 0.09), (0, 5, 2, 0.009))], (1, 9))
    assert cells(matrix) == {
        (0, 5): (pytest.approx(0.099 / 0.999, rel=1e-6), "digits", 1),
        (0, 7): (pytest.approx(0.9 / 0.999, rel=1e-6), "digits", 0),
    }


def test_rows_are_sorted_whatever_the_order_of_the_links() -> None:
    matrix = assemble_matrix([links("exact", (3, 1, 0, 1.0)), links("space", (1, 4, 0, 1.0), (0, 2, 0, 1.0))], (5, 6))
    assert matrix.indptr.tolist() == [0, 1, 2, 2, 3, 3]
    assert matrix.indices.tolist() == [2, 4, 1]


def test_no_links_give_a_matrix_of_empty_rows() -> None:
    matrix = assemble_matrix([links("exact")], (3, 4))
    assert matrix.shape == (3, 4)
    assert matrix.indptr.tolist() == [0, 0, 0, 0]
    assert matrix.owner.tolist() == [0, 0, 0]
    assert matrix.top[0].tolist() == [-1, -1, -1]


def test_reverse_links_own_a_row_only_where_there_is_nothing_else() -> None:
    parts = [links("exact", (0, 0, 0, 1.0)), links("reverse", (0, 1, 0, 1.0), (1, 1, 1, 0.5))]
    owner = assemble_matrix(parts, (3, 2)).owner
    assert [RULES[number] for number in owner] == ["exact", "reverse", "none"]


def test_the_top_link_is_the_heaviest_and_on_a_tie_the_earliest_piece() -> None:
    matrix = assemble_matrix(
        [links("override", (0, 4, 0, 0.5), (0, 2, 1, 0.5), (1, 1, 0, 0.2), (1, 3, 1, 0.8))], (2, 5)
    )
    column, weight = matrix.top
    assert column.tolist() == [4, 3]
    np.testing.assert_allclose(weight, [0.5, 0.8])


@given(vocabs("student"), vocabs("teacher"), st.booleans(), st.sets(st.sampled_from(ORDER)))
def test_w_is_the_slow_twins(student: Vocab, teacher: Vocab, reverse_pass: bool, more: set[str]) -> None:
    rules = tuple(rule for rule in ORDER if rule in more) or DEFAULT
    mapping = build(student=student, teacher=teacher, rules=rules, reverse_pass=reverse_pass)
    assert_equal_cells(cells(mapping.matrix), slow_build(student, teacher, rules=rules, reverse_pass=reverse_pass))


@given(
    vocabs("student"),
    vocabs("teacher"),
    st.fixed_dictionaries(
        {
            "reverse_pass": st.booleans(),
            "lead": st.floats(0.01, 1),
            "decay": st.sampled_from([0, 0.1, 0.5, 1]),
            "top_k": st.integers(1, 5),
        }
    ),
)
def test_w_is_the_slow_twins_for_any_decay(student: Vocab, teacher: Vocab, options: dict[str, Any]) -> None:
    assert_equal_cells(
        cells(build(student=student, teacher=teacher, **options).matrix), slow_build(student, teacher, **options)
    )


@given(vocabs("same"), st.booleans())
@settings(max_examples=40)
def test_w_of_a_vocabulary_with_itself_is_the_slow_twins(vocab: Vocab, reverse_pass: bool) -> None:
    mapping = build(student=vocab, teacher=vocab, reverse_pass=reverse_pass)
    assert_equal_cells(cells(mapping.matrix), slow_build(vocab, vocab, reverse_pass=reverse_pass))


@given(vocabs("student"), vocabs("teacher"), st.booleans())
def test_w_is_canonical_and_its_rows_sum_to_one_or_are_empty(
    student: Vocab, teacher: Vocab, reverse_pass: bool
) -> None:
    matrix = build(student=student, teacher=teacher, reverse_pass=reverse_pass, case=True, nfkc=True).matrix
    assert matrix.shape == (len(student), len(teacher))
    assert (matrix.indices.dtype, matrix.indptr.dtype, matrix.data.dtype) == (np.int32, np.int32, np.float32)
    for row in range(len(student)):
        span = slice(matrix.indptr[row], matrix.indptr[row + 1])
        assert np.all(np.diff(matrix.indices[span]) > 0)
        assert np.all(matrix.data[span] > 0)
        if matrix.data[span].size:
            assert matrix.data[span].sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    bare = (student.kinds == Kind.PADDING) | (student.kinds == Kind.HOLE)
    assert not matrix.owner[bare].any()
    assert not np.isin(matrix.indices, np.flatnonzero(teacher.kinds >= Kind.PADDING)).any()


def test_a_long_row_keeps_only_weights_that_float32_can_hold() -> None:
    student, teacher = make_vocab(["1" * 200]), make_vocab(["1"], name="teacher")
    many = make_vocab([bytes([value]) for value in range(33, 127)], name="many")
    long = make_vocab([bytes(range(33, 127))])
    assert build(student=student, teacher=teacher, top_k=255).matrix.data.tolist() == [1.0]
    matrix = build(student=long, teacher=many, top_k=255).matrix
    assert np.all(matrix.data > np.finfo(np.float32).tiny / 2)
    assert matrix.data.sum() == pytest.approx(1)


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
