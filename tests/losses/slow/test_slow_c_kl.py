"""C-KL's levels, against sums written out."""

from __future__ import annotations

import pytest
from tiny import Tiny, kl

from xtoken_align.errors import OptionError

PACKED = ["1", "2", "12", "121", "a"]
PACKED_ROW = [0.1, 0.2, 0.3, 0.15, 0.25]
SPLIT = ["1", "2", "a"]
SPLIT_ROWS = [[0.5, 0.2, 0.3], [0.3, 0.6, 0.1], [0.2, 0.1, 0.7]]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_student_token_of_two_pieces_has_levels_one_to_three(temperature: float) -> None:
    pair = Tiny(PACKED, SPLIT)
    out = pair.loss([2], [0, 1], [PACKED_ROW] * 2, SPLIT_ROWS, kind="c-kl", temperature=temperature)
    one = kl([0.5, 0.2, 0.3], [0.55, 0.2, 0.25], temperature)
    # After 1: 2 is 12 or 121, END is 1.
    two = kl([0.6, 0.4], [0.45, 0.1], temperature)
    # After 1 2, at the position that follows the text: 1 is 121, END is 12.
    three = kl([0.2, 0.8], [0.15, 0.3], temperature)
    assert out.kd.item() == pytest.approx(one + two + three)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_teacher_token_of_two_pieces_has_the_mirrored_levels(temperature: float) -> None:
    pair = Tiny(SPLIT, PACKED)
    out = pair.loss([0, 1], [2], SPLIT_ROWS, [PACKED_ROW] * 2, kind="c-kl", temperature=temperature)
    one = kl([0.55, 0.2, 0.25], [0.5, 0.2, 0.3], temperature)
    two = kl([0.45, 0.1], [0.6, 0.4], temperature)
    three = kl([0.15, 0.3], [0.2, 0.8], temperature)
    assert out.kd.item() == pytest.approx(one + two + three)


def test_a_one_to_one_chunk_has_both_sides_levels_at_the_position_after_it() -> None:
    # 1 goes on as 12 for the student, as 1a for the teacher.
    pair = Tiny(["1", "2", "a", "12"], ["1", "2", "a", "1a"])
    student = [[0.4, 0.1, 0.2, 0.3], [0.1, 0.2, 0.6, 0.1]]
    teacher = [[0.3, 0.1, 0.4, 0.2], [0.2, 0.5, 0.2, 0.1]]
    out = pair.loss([0], [0], student, teacher, kind="c-kl")
    one = kl([0.5, 0.1, 0.4], [0.7, 0.1, 0.2])
    assert out.kd.item() == pytest.approx(one + kl([0.5, 0.5], [0.3, 0.4]) + kl([0.2, 0.3], [0.6, 0.4]))


def test_an_end_that_no_student_token_is_is_dropped_on_both_sides() -> None:
    pair = Tiny(["2", "12", "121", "122", "a"], SPLIT)
    row = [0.3, 0.3, 0.1, 0.1, 0.2]
    out = pair.loss([1], [0, 1], [row] * 2, SPLIT_ROWS, kind="c-kl")
    # No student token is 1 alone, so after 1 there is nothing to choose; after 1 2 there is.
    one = kl([0.5, 0.2, 0.3], [0.5, 0.3, 0.2])
    assert out.kd.item() == pytest.approx(one + kl([0.2, 0.1, 0.7], [0.1, 0.1, 0.3]))


def test_an_end_that_no_teacher_token_is_is_never_the_teachers() -> None:
    pair = Tiny(SPLIT, ["2", "12", "a"])
    out = pair.loss([0, 1], [1], SPLIT_ROWS, [[0.2, 0.5, 0.3]] * 2, kind="c-kl")
    assert out.kd.item() == pytest.approx(kl([0.5, 0.2, 0.3], [0.5, 0.2, 0.3]) + kl([1.0, 0.0], [0.6, 0.4]))


def test_a_child_that_the_student_cannot_give_is_dropped_on_both_sides() -> None:
    pair = Tiny(["1", "2", "12", "1a", "a"], SPLIT)
    out = pair.loss([0], [0], [[0.3, 0.2, 0.0, 0.3, 0.2]] * 2, SPLIT_ROWS[:2], kind="c-kl")
    # After 1 the teacher says 2 with 0.6, a with 0.1, END with 0.3.
    assert out.kd.item() == pytest.approx(kl([0.5, 0.2, 0.3], [0.6, 0.2, 0.2]) + kl([0.1, 0.3], [0.3, 0.3]))


def test_chunks_of_several_tokens_on_both_sides_have_level_one_alone() -> None:
    pair = Tiny(["a", "b", "c", "bc"], ["a", "b", "c", "ab"])
    student, teacher = [[0.4, 0.3, 0.2, 0.1]] * 3, [[0.25, 0.25, 0.25, 0.25]] * 3
    out = pair.loss([0, 3], [3, 2], student, teacher, kind="c-kl")
    assert out.chunk_kd.tolist() == pytest.approx([kl([0.5, 0.25, 0.25], [0.4, 0.4, 0.2])])


def test_a_chunk_that_the_other_side_wrote_otherwise_has_level_one_alone() -> None:
    pair = Tiny(["1", "2", "12", "122"], ["1", "2", "22"])
    student, teacher = [[0.4, 0.3, 0.2, 0.1]] * 2, [[0.2, 0.5, 0.3]] * 4
    # 122 is 1 22 by longest match; here the teacher wrote 1 2 2.
    assert pair.mapping.decompositions("student")[3] == [0, 2]
    other = pair.loss([3], [0, 1, 1], student, teacher, kind="c-kl")
    assert other.kd.item() == pytest.approx(kl([0.2, 0.8], [0.7, 0.3]))
    usual = pair.loss([3], [0, 2], student, teacher[:3], kind="c-kl")
    # After 1: 2 is 12, 22 is 122, END is 1; nothing goes on after 1 22.
    assert usual.kd.item() == pytest.approx(kl([0.2, 0.8], [0.7, 0.3]) + kl([0.5, 0.3, 0.2], [0.2, 0.1, 0.4]))


def test_a_misfit_has_no_levels() -> None:
    pair = Tiny(["1", "2", "12", "121"], ["1", "2", "12"])
    out = pair.loss([2], [0, 1], [[0.25] * 4] * 2, [[0.5, 0.3, 0.2]] * 3, kind="c-kl")
    assert (out.misfits.tolist(), out.chunk_kd.tolist()) == ([True], [0.0])


def test_the_mean_of_positions_is_refused() -> None:
    with pytest.raises(OptionError, match="single positions"):
        Tiny(["a"], ["a"]).loss([0], [0], [[1.0]] * 2, [[1.0]] * 2, kind="c-kl", merge="mean")
