"""The comparison by Triton's kernels is the general one; without a GPU the kernels run in Triton's interpreter."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from gpu import on_device
from test_direct import CASES, comparison_of, in_place

from xtoken_align.errors import XTokenWarning
from xtoken_align.losses import direct_gpu
from xtoken_align.losses.comparison import Comparison, compare
from xtoken_align.losses.direct_gpu import compare_on_gpu
from xtoken_align.losses.grouping import SMALL, make_grouping

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


def crowded() -> Comparison:
    """Columns with more members than are read at a time, beside small ones."""
    group = torch.cat([torch.full((1300,), 2), torch.arange(40), torch.full((SMALL + 1,), 5), torch.tensor([7, 7, -1])])
    teacher = torch.cat([torch.arange(40), torch.full((700,), 7), torch.tensor([-1, -1])])
    sides = [make_grouping(side, 40, torch.ones(len(side), dtype=torch.bool)) for side in (group, teacher)]
    assert all(len(side.large) for side in sides)
    return Comparison(*sides, None, weigh_by_kept=True)


COMPARISONS = {
    "narrow": CASES["narrow"][0],
    "weighed by what is kept": CASES["weighed by what is kept"][0],
    "one group": CASES["one group"][0],
    "in place": in_place(300, 400, seed=3),
    "wide": comparison_of(5000, 6000, 4500, seed=2, weigh=True),
    "crowded": crowded(),
}


def moved(comparison: Comparison) -> Comparison:
    return on_device(comparison, DEVICE)


def logits(comparison: Comparison, rows: int, scale: float = 3.0) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(7)
    widths = len(comparison.student.group), len(comparison.teacher.group)
    return [(scale * torch.randn(rows, width, generator=source)).to(DEVICE) for width in widths]


def assert_same(made: Any, truth: Any) -> None:
    for field in ("value", "gradient", "dropped", "empty"):
        right = getattr(truth, field)
        size = float(right.abs().max())
        torch.testing.assert_close(getattr(made, field), right, rtol=1e-4, atol=1e-5 * size + 1e-7, msg=str(field))
    assert torch.equal(made.agrees, truth.agrees)
    assert torch.equal(made.compared, truth.compared)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", COMPARISONS)
def test_it_is_the_general_comparison(name: str, temperature: float) -> None:
    comparison = moved(COMPARISONS[name])
    student, teacher = logits(comparison, 3)
    coefficient = torch.tensor([1.0, 0.0, 2.5], device=DEVICE)
    truth = compare(student, teacher, comparison, temperature=temperature, coefficient=coefficient)
    # A part of a wider matrix, since blocks are parts of a batch.
    place = torch.full((3, student.shape[1] + 5), 9.0, device=DEVICE)
    made = compare_on_gpu(
        student, teacher, comparison, temperature=temperature, coefficient=coefficient, out=place[:, :-5]
    )
    assert_same(made, truth)
    assert bool((place[:, -5:] == 9).all())
    silent = compare_on_gpu(student, teacher, comparison, temperature=temperature, coefficient=None, out=None)
    assert silent.gradient is None
    assert torch.equal(silent.value, made.value)


def test_equal_inputs_give_equal_bits() -> None:
    comparison = moved(COMPARISONS["crowded"])
    student, teacher = logits(comparison, 2)
    options = {"temperature": 1.0, "coefficient": torch.ones(2, device=DEVICE), "out": None}
    one, other = (compare_on_gpu(student, teacher, comparison, **options) for _ in range(2))
    assert torch.equal(one.value, other.value)
    assert torch.equal(one.gradient, other.gradient)


def test_distant_logits_keep_their_digits() -> None:
    comparison = moved(COMPARISONS["crowded"])
    student, teacher = logits(comparison, 3, scale=1e4)
    options = {"temperature": 1.0, "coefficient": torch.ones(3, device=DEVICE)}
    made = compare_on_gpu(student, teacher, comparison, out=None, **options)
    assert_same(made, compare(student, teacher, comparison, **options))


def test_an_outcome_that_the_teacher_cannot_have_costs_nothing() -> None:
    comparison = moved(COMPARISONS["narrow"])
    student, teacher = logits(comparison, 2)
    teacher[1, 5] = -torch.inf
    coefficient = torch.ones(2, device=DEVICE)
    made = compare_on_gpu(student, teacher, comparison, temperature=1.0, coefficient=coefficient, out=None)
    assert_same(made, compare(student, teacher, comparison, temperature=1.0, coefficient=coefficient))


def test_what_only_the_general_comparison_can_do_gives_no_finite_number() -> None:
    comparison = moved(COMPARISONS["narrow"])
    token = int(comparison.student.source[comparison.student.source < len(comparison.student.group)].max())
    for side, places in ((0, [token]), (0, slice(None)), (1, slice(None))):
        both = logits(comparison, 2)
        both[side][1, places] = -torch.inf
        made = compare_on_gpu(*both, comparison, temperature=1.0, coefficient=None, out=None)
        assert made.value.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("lowest", [torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min, -1e30])
def test_a_row_of_the_lowest_numbers_has_no_value(lowest: float) -> None:
    comparison = moved(COMPARISONS["in place"])
    for side in (0, 1):
        both = logits(comparison, 2)
        both[side][1] = lowest
        made = compare_on_gpu(*both, comparison, temperature=1.0, coefficient=None, out=None)
        assert made.value.isfinite().tolist() == [True, False]


def test_what_is_no_number_is_seen() -> None:
    comparison = moved(COMPARISONS["crowded"])
    for side, grouping in enumerate((comparison.student, comparison.teacher)):
        for token in (grouping.shared_head[0], grouping.member[0], grouping.member[-1]):
            both = logits(comparison, 2)
            both[side][1, token] = torch.nan
            made = compare_on_gpu(*both, comparison, temperature=1.0, coefficient=None, out=None)
            assert made.value.isfinite().tolist() == [True, False]
            assert compare(*both, comparison, temperature=1.0).value.isfinite().tolist() == [True, False]


def test_it_is_known_whether_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert direct_gpu.kernels_work(DEVICE)
    direct_gpu.kernels_work.cache_clear()

    def broken(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(direct_gpu, "_shared_masses", broken)
    with pytest.warns(XTokenWarning, match="plain path"):
        assert not direct_gpu.kernels_work(DEVICE)
    direct_gpu.kernels_work.cache_clear()
