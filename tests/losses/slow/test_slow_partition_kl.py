"""Partition-KL and P-KL, chunk by chunk, against sums written out."""

from __future__ import annotations

import pytest
import torch
from slow_loss import PartitionKL, slow_loss
from slow_parts import Chunk, SlowOptions
from tiny import Tiny, kl

from xtoken_align.errors import OptionError
from xtoken_align.vocab.kinds import Kind

STUDENT = [0.1, 0.2, 0.3, 0.15, 0.25]
TEACHER = [0.2, 0.1, 0.4, 0.1, 0.2]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bins_are_summed_before_the_temperature_and_tokens_in_none_are_one_more(temperature: float) -> None:
    # Bins: a, b, {12, 1} with {1}; the student's z, the teacher's 2 and y are in none.
    pair = Tiny(["a", "b", "12", "1", "z"], ["a", "b", "1", "2", "y"])
    out = pair.loss([0], [0], [STUDENT] * 2, [TEACHER] * 2, kind="partition-kl", temperature=temperature)
    assert out.kd.item() == pytest.approx(kl([0.2, 0.1, 0.4, 0.3], [0.1, 0.2, 0.45, 0.25], temperature))
    assert out.kept.tolist() == pytest.approx([1.0])


def test_tokens_in_no_bin_that_one_side_alone_has_are_masked() -> None:
    pair = Tiny(["a", "b", "12", "1"], ["a", "b", "1", "2", "y"])
    out = pair.loss([0], [0], [[0.2, 0.2, 0.4, 0.2]] * 2, [TEACHER] * 2, kind="partition-kl")
    assert out.kd.item() == pytest.approx(kl([0.2, 0.1, 0.4], [0.2, 0.2, 0.6]))
    assert out.kept.tolist() == pytest.approx([0.7])


def test_padding_and_holes_take_no_part() -> None:
    pair = Tiny(["a", ("", Kind.HOLE), "b"], ["b", ("", Kind.PADDING), "a"])
    out = pair.loss([0], [2], [[0.2, 0.5, 0.3]] * 2, [[0.1, 0.7, 0.2]] * 2, kind="partition-kl")
    assert out.kd.item() == pytest.approx(kl([0.1, 0.2], [0.3, 0.2]))


def test_a_misfit_counts_in_the_divisor_alone() -> None:
    pair = Tiny(["a", "b", "ab"], ["a", "b", "ab"])
    rows = [[0.2, 0.3, 0.5]] * 4
    teacher = [[0.5, 0.3, 0.2]] * 4
    # ab | a against a b | a: the first chunk's first tokens lie in different bins.
    out = pair.loss([2, 0], [0, 1, 0], rows[:3], teacher, kind="partition-kl")
    assert out.misfits.tolist() == [True, False]
    assert out.chunk_kd.tolist() == pytest.approx([0.0, kl(teacher[0], rows[0])])
    assert out.kd.item() == pytest.approx(kl(teacher[0], rows[0]) / 2)


def test_chunks_that_begin_in_no_bin_fit_where_the_rest_is_compared() -> None:
    for student, fits in ((["a", "z"], True), (["a"], False)):
        pair = Tiny(student, ["a", "y"])
        family = PartitionKL(pair.mapping, SlowOptions(kind="partition-kl"))
        if fits:
            assert not family.is_misfit(Chunk([0], [0], [1], [1], 1.0))
        assert family.is_misfit(Chunk([0], [0], [0], [1], 1.0))


def test_mean_averages_both_sides_before_the_temperature() -> None:
    pair = Tiny(["a", "b", "c"], ["ab", "b", "c", "a"])
    student = [[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]]
    teacher = [[0.5, 0.1, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]]
    options = {"kind": "partition-kl", "temperature": 2.0}
    # Bins: a with {ab, a}, b, c.
    mean = pair.loss([0, 1], [0], student, teacher, merge="mean", **options)
    assert mean.kd.item() == pytest.approx(kl([0.6, 0.1, 0.3], [0.4, 0.25, 0.35], 2.0))
    first = pair.loss([0, 1], [0], student, teacher, **options)
    assert first.kd.item() == pytest.approx(kl([0.6, 0.1, 0.3], [0.6, 0.3, 0.1], 2.0))


def test_an_outcome_that_the_student_cannot_give_is_dropped_on_both_sides() -> None:
    pair = Tiny(["a", "b", "c"], ["a", "b", "c"])
    out = pair.loss([0], [0], [[0.5, 0.0, 0.5]] * 2, [[0.2, 0.5, 0.3]] * 2, kind="partition-kl")
    assert out.kd.item() == pytest.approx(kl([0.2, 0.3], [0.5, 0.5]))


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("kind", ["partition-kl", "c-kl", "p-kl", "h-kl", "gold", "uld", "alm"])
def test_a_side_that_can_give_nothing_has_value_0_and_gradient_0(kind: str, side: str) -> None:
    pair = Tiny(["a", "b", "x"], ["a", "b", "y"])
    rows = {name: [[0.0, 0.0, 0.0] if name == side else [0.2, 0.3, 0.5]] * 2 for name in ("student", "teacher")}
    student, teacher = pair.logits("student", rows["student"]), pair.logits("teacher", rows["teacher"])
    out = slow_loss(pair.mapping, student, teacher, pair.spans([0], [0]), kind=kind)
    out.loss.backward()
    assert out.chunk_kd.tolist() == [0.0]
    assert torch.equal(student.grad, torch.zeros_like(student.grad))


# The student's 12 and 1 reach the column 1, its a reaches a. Nothing reaches aa, which it writes a a, and 2, which it
# cannot write.
def projected(**options: object) -> object:
    pair = Tiny(["12", "1", "a", "z"], ["1", "2", "a", "aa"])
    return pair.loss([1], [0], [[0.24, 0.16, 0.4, 0.2]] * 2, [[0.2, 0.4, 0.1, 0.3]] * 2, kind="p-kl", **options)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_mass_on_unreached_columns_moves_to_the_first_piece_or_lowers_the_weight(temperature: float) -> None:
    # The row of z is empty: its mass is not the student's.
    moved, dropped = (projected(unreached=what, temperature=temperature) for what in ("reroute", "drop"))
    assert moved.kept.item() == pytest.approx(0.6)
    assert moved.kd.item() == pytest.approx(0.6 * kl([0.2, 0.4], [0.5, 0.5], temperature))
    assert dropped.kept.item() == pytest.approx(0.3)
    assert dropped.kd.item() == pytest.approx(0.3 * kl([0.2, 0.1], [0.5, 0.5], temperature))


def test_under_first_the_decay_weights_have_no_part() -> None:
    pair = Tiny(["12", "1"], ["1", "2"], decay=0.9)
    out = pair.loss([0], [0, 1], [[0.5, 0.5]] * 2, [[1.0, 0.0]] * 3, kind="p-kl")
    assert out.kd.item() == pytest.approx(0.0, abs=1e-12)


def test_mean_projects_by_the_mappings_weights() -> None:
    pair = Tiny(["12", "1", "a"], ["1", "2", "a", "y"])
    student = [[0.5, 0.1, 0.4], [0.3, 0.3, 0.4]]
    teacher = [[0.4, 0.2, 0.2, 0.2], [0.1, 0.6, 0.1, 0.2], [0.25, 0.25, 0.25, 0.25]]
    out = pair.loss([0], [0, 1], student, teacher, kind="p-kl", merge="mean", temperature=2.0)
    lead = float(pair.mapping.W[0, 0])
    assert lead == pytest.approx(10 / 11)
    q = [0.5 * lead + 0.1, 0.5 * float(pair.mapping.W[0, 1]), 0.4]
    assert out.kept.item() == pytest.approx(0.8)
    assert out.kd.item() == pytest.approx(0.8 * kl([0.25, 0.4, 0.15], q, 2.0))


def test_a_top_k_closes_with_a_rest_and_prefers_the_lower_of_equal_columns() -> None:
    pair = Tiny(["a", "b", "c", "d"], ["d", "c", "b", "a"])
    rows = [[[0.1, 0.2, 0.3, 0.4]] * 2, [[0.1, 0.3, 0.3, 0.3]] * 2]
    out = pair.loss([0], [3], *rows, kind="p-kl", top_k=2)
    # Of the columns c, b, a with 0.3 each, c and b stay.
    assert out.kd.item() == pytest.approx(kl([0.3, 0.3, 0.4], [0.3, 0.2, 0.5]))
    # All four, and the column of <s> that neither side can say.
    every = pair.loss([0], [3], *rows, kind="p-kl", top_k=5)
    assert every.kd.item() == pytest.approx(kl([0.1, 0.3, 0.3, 0.3], [0.4, 0.3, 0.2, 0.1]))


def test_given_link_weights_take_the_place_of_ws_and_get_a_gradient() -> None:
    pair = Tiny(["12", "1", "a"], ["1", "2", "a"])
    student, teacher = [[0.5, 0.1, 0.4]] * 2, [[0.4, 0.4, 0.2]] * 3
    stored = torch.from_numpy(pair.mapping.matrix.data).double()

    def value(weights: torch.Tensor) -> torch.Tensor:
        options = {"kind": "p-kl", "merge": "mean", "link_weights": weights}
        return pair.loss([0], [0, 1], student, teacher, **options).kd

    assert value(stored).item() == pair.loss([0], [0, 1], student, teacher, kind="p-kl", merge="mean").kd.item()
    assert torch.autograd.gradcheck(value, stored.clone().requires_grad_())


def test_link_weights_are_refused_where_w_is_not_read() -> None:
    pair = Tiny(["a"], ["a"])
    for options in ({"kind": "p-kl"}, {"kind": "uld"}):
        with pytest.raises(OptionError, match="link_weights"):
            pair.loss([0], [0], [[1.0]] * 2, [[1.0]] * 2, link_weights=torch.ones(2), **options)
