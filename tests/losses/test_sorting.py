"""Sorted distances in both precisions are what two plain sorts give, ties and zeros included; so are those by counting,
whose kernels run in Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

import os

import pytest
import torch

from xtoken_align.losses import h_kl, sorting, uld
from xtoken_align.losses.sorting import masked_sorted_distance, sorted_distance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("limit", [None, 0, 1, 7, 8192])
@pytest.mark.parametrize(("ours", "theirs"), [(40, 30), (30, 40), (1, 1), (0, 5), (5, 0), (2000, 3000)])
def test_the_distance_is_that_of_two_sorts(ours: int, theirs: int, limit: int | None, dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(ours)
    sides = [torch.rand(3, width, generator=source).to(dtype) for width in (ours, theirs)]
    for side in sides:
        side[1] = (side[1] * 4).round() / 4
        side[2, ::2] = 0.0
    before = [side.clone() for side in sides]
    sides[0].requires_grad_()
    distance = sorted_distance(*sides, limit)
    (slope,) = torch.autograd.grad(distance.sum(), sides[0], materialize_grads=True, allow_unused=True)
    sides[0] = sides[0].detach()
    masks = torch.ones(ours, dtype=torch.bool), torch.ones(theirs, dtype=torch.bool)
    torch.testing.assert_close(masked_sorted_distance(*sides, masks, limit), distance.detach())
    width = max(ours, theirs)
    shared = width if limit is None else min(ours, theirs, limit)
    padded = [
        torch.nn.functional.pad(side.sort(dim=1, descending=True).values, (0, width - side.shape[1])) for side in sides
    ]
    difference = (padded[0] - padded[1])[:, :shared]
    torch.testing.assert_close(distance.detach(), difference.abs().sum(dim=1))
    # Tokens of equal probability have a slope between them, whichever of them stands first.
    assert slope.shape == sides[0].shape
    for row in range(3 if ours < 100 else 0):
        ranked = sides[0][row].sort(descending=True).values
        for value in ranked.unique().tolist():
            at_ranks = [rank for rank, one in enumerate(ranked.tolist()) if one == value and rank < shared]
            signs = difference[row, at_ranks].sign().sum() if at_ranks else torch.zeros(())
            assert slope[row][sides[0][row] == value].sum() == signs
    assert all(torch.equal(side, kept) for side, kept in zip(sides, before, strict=True))


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WORLDS = int(os.environ.get("XTOKEN_ALIGN_TEST_WORLDS", "200"))


@pytest.fixture
def _by_counting(monkeypatch: pytest.MonkeyPatch, quick_interpreter: None) -> None:
    """Values are counted on a processor, too."""
    pytest.importorskip("triton", minversion="3.3")
    monkeypatch.setattr(sorting, "_counts", lambda values: values.numel() > 0)


def world(seed: int) -> tuple[list[torch.Tensor], int | None]:
    """Two sides' probabilities, and how many ranks are compared."""
    source = torch.Generator().manual_seed(seed)

    def pick(*choices: float | None) -> float | None:
        return choices[int(torch.randint(len(choices), (), generator=source))]

    rows, dtype = int(torch.randint(1, 5, (), generator=source)), torch.bfloat16 if seed % 3 == 0 else torch.float32
    sides = []
    for _ in range(2):
        width = int(torch.randint(1, 2500, (), generator=source))
        logits = torch.randn(rows, width, generator=source) * (pick(0, 1e-3, 0.3, 3, 30) or 0)
        logits[:, torch.rand(width, generator=source) < (pick(0, 0.1, 0.9) or 0)] = -torch.inf
        logits[:, 0] = 0.0
        sides.append(logits.to(dtype).float().softmax(dim=1))
    if seed % 7 == 0:
        # The same numbers on both sides, in another order.
        sides[1] = sides[0][:, torch.randperm(sides[0].shape[1], generator=source)]
    limit = pick(None, None, 1, 5, 300, 8192)
    return [side.to(DEVICE) for side in sides], None if limit is None else int(limit)


def by_two_sorts(sides: list[torch.Tensor], limit: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The distances, and the sum of the slopes of all values that equal each one."""
    width = max(side.shape[1] for side in sides)
    shared = width if limit is None else min(*(side.shape[1] for side in sides), limit)
    ordered = [side.double().sort(dim=1, descending=True).values for side in sides]
    ours, theirs = (torch.nn.functional.pad(side, (0, width - side.shape[1])) for side in ordered)
    difference = (ours - theirs)[:, :shared]
    counted = torch.nn.functional.pad(difference.sign(), (0, width - shared))
    return difference.abs().sum(dim=1), sums_of_equal(ours, counted, sides[0].double())


def sums_of_equal(values: torch.Tensor, numbers: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """For each value that is asked for the sum of the numbers that stand at values equal to it, row by row."""
    made = []
    for own, number, row in zip(values, numbers, asked, strict=True):
        known, place = own.unique(return_inverse=True)
        total = torch.zeros(len(known), dtype=torch.float64, device=own.device).index_add_(0, place, number.double())
        made.append(total[torch.searchsorted(known, row)])
    return torch.stack(made)


@pytest.mark.usefixtures("_by_counting")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("first", range(0, WORLDS, 10))
def test_random_worlds_by_counting_are_those_of_two_sorts(first: int) -> None:
    for seed in range(first, first + 10):
        sides, limit = world(seed)
        student = sides[0].clone().requires_grad_()
        distance = sorted_distance(student, sides[1], limit)
        (slope,) = torch.autograd.grad(distance.sum(), student)
        expected, sums = by_two_sorts(sides, limit)
        torch.testing.assert_close(distance.double(), expected, rtol=1e-6, atol=1e-11)
        # What is below 2^-56 does not count.
        seen = sides[0] >= 2.0**-56
        found = sums_of_equal(sides[0].double(), slope, sides[0].double())
        assert torch.equal(found[seen], sums[seen]), f"world {seed}"


@pytest.mark.usefixtures("_by_counting")
def test_by_counting_equal_inputs_give_equal_bits_and_nan_shows() -> None:
    (student, teacher), _ = world(21)
    found = [sorting.signs_and_sums(student, teacher, 5000) for _ in range(2)]
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    for side in (student, teacher):
        own = side.clone()
        own[0, 3] = torch.nan
        sides = (own, teacher) if side is student else (student, own)
        assert sorting.signs_and_sums(*sides, 5000)[1].sum(dim=0).isnan().tolist() == [True] + [False] * (
            len(student) - 1
        )


@pytest.mark.usefixtures("_by_counting")
def test_kernels_that_count_are_trusted_after_a_trial() -> None:
    assert sorting._error(DEVICE) < 1e-6


@pytest.mark.usefixtures("_by_counting")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_from_logits_kernels_give_what_autograd_does(
    dtype: torch.dtype, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, compare = [], sorting.compare_ranks
    monkeypatch.setattr(
        sorting, "compare_ranks", lambda *sides, **options: calls.append(1) or compare(*sides, **options)
    )
    source = torch.Generator().manual_seed(5)
    widths = 2300, 1700
    # Rows that lie apart in memory; one without a distribution on a side, and tokens without a probability.
    student, teacher = (torch.randn(5, width + 7, generator=source).mul(3).to(dtype)[:, 3:-4] for width in widths)
    student[1], teacher[2], student[3] = -torch.inf, -torch.inf, -1e30
    live = [torch.rand(width, generator=source) < 0.9 for width in widths]
    pairs = torch.stack([torch.arange(0, 1700, 3), torch.randperm(1700, generator=source)[:567]], dim=1)
    pairs = pairs[live[0][pairs[:, 0]] & live[1][pairs[:, 1]]]
    weight = torch.rand(5, generator=source)
    common = {"student_live": live[0].to(DEVICE), "teacher_live": live[1].to(DEVICE), "weight": weight.to(DEVICE)}
    for function, given in (
        (uld, {}),
        (h_kl, {"pairs": pairs.to(DEVICE)}),
        (h_kl, {"pairs": pairs.to(DEVICE), "uncommon_top_k": 300}),
    ):
        found = []
        for how, precision in (("triton", dtype), ("reference", torch.float64)):
            leaf = student.to(DEVICE, precision).detach().requires_grad_()
            value = function(
                leaf, teacher.to(DEVICE, precision), **given, **common, temperature=temperature, implementation=how
            )
            value.backward()
            found.append((value.detach().double(), leaf.grad.double()))
        torch.testing.assert_close(found[0][0], found[1][0], rtol=2e-5, atol=0)
        rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
        size = float(found[1][1].abs().max())
        # In half precision many are equal, and any of these can have the slope of another.
        alike = found[0][1].isclose(found[1][1], rtol=2e-5 + rounding, atol=2e-5 * size)
        assert alike.double().mean() > (0.9999 if dtype == torch.float32 else 0.9)
        torch.testing.assert_close(
            found[0][1].sum(dim=1), found[1][1].sum(dim=1), rtol=0, atol=size * (1e-4 + rounding)
        )
