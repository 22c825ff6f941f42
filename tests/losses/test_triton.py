"""The comparison by Triton's kernels is the formula with autograd; without a GPU Triton's interpreter runs them."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from gpu import on_device
from loss_calls import Outcome, by_autograd
from test_cpu import CASES, in_place, left_in, outcomes_of

from xtoken_align.errors import XTokenWarning
from xtoken_align.losses import triton
from xtoken_align.losses.divergence import Measure
from xtoken_align.losses.tables import SMALL, Outcomes, log_masses, make_grouping

ON_GPU = torch.cuda.is_available()

# The interpreter makes numbers of arrays with one element, and works out what is masked away.
pytestmark = [
    pytest.mark.skipif(
        not ON_GPU and not os.environ.get("TRITON_INTERPRET"), reason="there is a GPU that PyTorch cannot use"
    ),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

DEVICE = torch.device("cuda" if ON_GPU else "cpu")


def crowded() -> Outcomes:
    """Columns with more members than are read at a time, beside small ones."""
    group = torch.cat([torch.full((1300,), 2), torch.arange(40), torch.full((SMALL + 1,), 5), torch.tensor([7, 7, -1])])
    teacher = torch.cat([torch.arange(40), torch.full((700,), 7), torch.tensor([-1, -1])])
    sides = [make_grouping(side, 40, torch.ones(len(side), dtype=torch.bool)) for side in (group, teacher)]
    assert all(len(side.index.large) for side in sides)
    return Outcomes(*sides, None, weigh_by_kept=True)


COMPARISONS = {
    "narrow": CASES["narrow"][0],
    "weighed by what is kept": CASES["weighed by what is kept"][0],
    "one group": CASES["one group"][0],
    "in place": in_place(300, 400, seed=3),
    "wide": outcomes_of(5000, 6000, 4500, seed=2, weigh=True),
    "crowded": crowded(),
}


def moved(outcomes: Outcomes) -> Outcomes:
    return on_device(outcomes, DEVICE)


def logits(outcomes: Outcomes, rows: int, scale: float = 3.0) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(7)
    widths = len(outcomes.student.group), len(outcomes.teacher.group)
    return [(scale * torch.randn(rows, width, generator=source)).to(DEVICE) for width in widths]


def by_kernels(
    student: torch.Tensor, teacher: torch.Tensor, outcomes: Outcomes, *, temperature: float = 1.0
) -> Outcome:
    """With weights of 1, and the gradient in a matrix that held something else."""
    place = torch.full_like(student, 9.0)
    ones = torch.ones(len(student), device=DEVICE)
    return Outcome(
        triton.compare_outcomes(student, teacher, outcomes, temperature=temperature, coefficient=ones, out=place), place
    )


def assert_same(made: Any, truth: Any) -> None:
    for field in ("value", "gradient", "dropped", "empty"):
        right = getattr(truth, field)
        size = float(right.abs().max())
        torch.testing.assert_close(getattr(made, field), right, rtol=1e-4, atol=1e-5 * size + 1e-7, msg=str(field))
    assert torch.equal(made.agrees, truth.agrees)
    assert torch.equal(made.compared, truth.compared)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", COMPARISONS)
def test_it_is_the_formula_with_autograd(name: str, temperature: float) -> None:
    outcomes = moved(COMPARISONS[name])
    student, teacher = logits(outcomes, 3)
    coefficient = torch.tensor([1.0, 0.0, 2.5], device=DEVICE)
    truth = by_autograd(student, teacher, outcomes, measure=Measure(temperature=temperature), coefficient=coefficient)
    # A part of a wider matrix, since blocks are parts of a batch.
    place = torch.full((3, student.shape[1] + 5), 9.0, device=DEVICE)
    made = triton.compare_outcomes(
        student, teacher, outcomes, temperature=temperature, coefficient=coefficient, out=place[:, :-5]
    )
    assert_same(Outcome(made, place[:, :-5]), truth)
    assert bool((place[:, -5:] == 9).all())
    silent = triton.compare_outcomes(student, teacher, outcomes, temperature=temperature, coefficient=None, out=None)
    assert torch.equal(silent.value, made.value)


@pytest.mark.parametrize("name", ["narrow", "in place", "crowded"])
def test_what_rows_leave_out_is_impossible(name: str) -> None:
    outcomes = COMPARISONS[name]
    left = [tuple(cells.to(DEVICE) for cells in side) for side in left_in(outcomes)]
    outcomes = moved(outcomes)
    sides = logits(outcomes, 3)
    lowest = torch.tensor(-torch.inf, device=DEVICE)
    without = [side.index_put(cells, lowest) for side, cells in zip(sides, left, strict=True)]
    coefficient = torch.tensor([1.0, 0.5, 2.5], device=DEVICE)
    measure = Measure(temperature=1.5)
    truth = by_autograd(*without, outcomes, measure=measure, coefficient=coefficient)
    place = torch.full_like(sides[0], 9.0)
    text = outcomes.teacher.group[outcomes.teacher.group < outcomes.teacher.count][[3, 5, 7]]
    made = triton.compare_outcomes(
        *sides, outcomes, temperature=1.5, coefficient=coefficient, out=place, left=tuple(left), text=text
    )
    for one, other in ((made.value, truth.value), (place, truth.gradient)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    masses = log_masses(without[1], outcomes.teacher)
    expected = (masses.gather(1, text[:, None]).squeeze(1) - masses.amax(1)).exp()
    torch.testing.assert_close(made.plausible, expected, rtol=1e-4, atol=0)


def test_equal_inputs_give_equal_bits() -> None:
    outcomes = moved(COMPARISONS["crowded"])
    student, teacher = logits(outcomes, 2)
    one, other = (by_kernels(student, teacher, outcomes) for _ in range(2))
    assert torch.equal(one.value, other.value)
    assert torch.equal(one.gradient, other.gradient)


def test_distant_logits_keep_their_digits() -> None:
    outcomes = moved(COMPARISONS["crowded"])
    student, teacher = logits(outcomes, 3, scale=1e4)
    truth = by_autograd(student, teacher, outcomes, measure=Measure(), coefficient=torch.ones(3, device=DEVICE))
    assert_same(by_kernels(student, teacher, outcomes), truth)


def test_an_outcome_that_the_teacher_cannot_have_costs_nothing() -> None:
    outcomes = moved(COMPARISONS["narrow"])
    student, teacher = logits(outcomes, 2)
    teacher[1, 5] = -torch.inf
    coefficient = torch.ones(2, device=DEVICE)
    assert_same(
        by_kernels(student, teacher, outcomes),
        by_autograd(student, teacher, outcomes, measure=Measure(), coefficient=coefficient),
    )


def test_what_only_autograd_can_do_gives_no_finite_number() -> None:
    outcomes = moved(COMPARISONS["narrow"])
    token = int(outcomes.student.index.source[outcomes.student.index.source < len(outcomes.student.group)].max())
    for side, places in ((0, [token]), (0, slice(None)), (1, slice(None))):
        both = logits(outcomes, 2)
        both[side][1, places] = -torch.inf
        made = triton.compare_outcomes(*both, outcomes, temperature=1.0, coefficient=None, out=None)
        assert made.value.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("lowest", [torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min, -1e30])
def test_a_row_of_the_lowest_numbers_has_no_value(lowest: float) -> None:
    outcomes = moved(COMPARISONS["in place"])
    for side in (0, 1):
        both = logits(outcomes, 2)
        both[side][1] = lowest
        made = triton.compare_outcomes(*both, outcomes, temperature=1.0, coefficient=None, out=None)
        assert made.value.isfinite().tolist() == [True, False]


def test_what_is_no_number_is_seen() -> None:
    outcomes = moved(COMPARISONS["crowded"])
    for side, grouping in enumerate((outcomes.student, outcomes.teacher)):
        for token in (grouping.index.shared_head[0], grouping.index.member[0], grouping.index.member[-1]):
            both = logits(outcomes, 2)
            both[side][1, token] = torch.nan
            made = triton.compare_outcomes(*both, outcomes, temperature=1.0, coefficient=None, out=None)
            assert made.value.isfinite().tolist() == [True, False]
            assert by_autograd(*both, outcomes, measure=Measure()).value.isfinite().tolist() == [True, False]


def test_it_is_known_whether_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton.kernels_work(DEVICE)
    triton.kernels_work.cache_clear()

    def broken(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(triton, "_shared_masses", broken)
    with pytest.warns(XTokenWarning, match="plain path"):
        assert not triton.kernels_work(DEVICE)
    triton.kernels_work.cache_clear()
