"""The comparison in place is the formula with autograd, for wide rows too, and says where it cannot do it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from loss_calls import Outcome, by_autograd

from xtoken_align.losses import cpu
from xtoken_align.losses.cpu import Buffers
from xtoken_align.losses.divergence import DIVERGENCES, Measure, places_of_best
from xtoken_align.losses.tables import Outcomes, log_masses, make_grouping


def outcomes_of(students: int, teachers: int, groups: int, *, seed: int, weigh: bool) -> Outcomes:
    """Random groups, some of many tokens; every group has a token on either side, some tokens are in none."""
    source = torch.Generator().manual_seed(seed)
    sides = []
    for width in (students, teachers):
        group = torch.randint(-width // 8, groups, (width,), generator=source).clamp_min(-1)
        group[torch.randperm(width, generator=source)[:groups]] = torch.arange(groups)
        outside = torch.rand(width, generator=source) < 0.5
        sides.append(make_grouping(group, groups, outside))
    return Outcomes(sides[0], sides[1], None, weigh_by_kept=weigh)


def in_place(students: int, teachers: int, *, seed: int) -> Outcomes:
    """Columns are the student's tokens themselves, as the recipes number them."""
    source = torch.Generator().manual_seed(seed)
    group = torch.arange(students)
    shared = torch.randint(0, students // 2, (students // 2,), generator=source)
    group[students // 2 :] = torch.where(torch.rand(students // 2, generator=source) < 0.5, shared, -1)
    columns = group.unique()[1:]
    teacher = columns[torch.randint(0, len(columns), (teachers,), generator=source)]
    teacher[: len(columns)] = columns
    made = make_grouping(group, students, torch.ones(students, dtype=torch.bool))
    assert made.index.head is None
    return Outcomes(made, make_grouping(teacher, students), None, weigh_by_kept=False)


CASES = {
    "narrow": (outcomes_of(40, 30, 12, seed=0, weigh=False), 1),
    "weighed by what is kept": (outcomes_of(40, 30, 12, seed=1, weigh=True), 3),
    "wide": (outcomes_of(20_000, 30_000, 15_000, seed=2, weigh=True), 900),
    "in place": (in_place(3000, 4000, seed=3), 100),
    "one group": (outcomes_of(5, 4, 1, seed=4, weigh=False), 1),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("best", [None, "top_k", "student_top_k"])
@pytest.mark.parametrize(
    "measure",
    [
        Measure(),
        Measure(temperature=2.5),
        Measure("reverse"),
        Measure("reverse", temperature=2.5),
        Measure("jsd", 0.3),
        Measure("jsd", 0.9, temperature=2.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_formula(name: str, measure: Measure, best: str | None, dtype: torch.dtype) -> None:
    outcomes, count = CASES[name]
    source = torch.Generator().manual_seed(7)
    widths = len(outcomes.student.group), len(outcomes.teacher.group)
    student, teacher = (3 * torch.randn(3, width, generator=source).to(dtype) for width in widths)
    coefficient = torch.tensor([1.0, 0.0, 2.5], dtype=dtype)
    options = {"measure": measure if best is None else replace(measure, **{best: count})}
    truth = by_autograd(student, teacher, outcomes, coefficient=coefficient, **options)
    options["buffers"] = Buffers()
    before = student.clone(), teacher.clone()
    # Twice, since buffers hold what was there before.
    for _ in range(2):
        place = torch.full_like(student, 9.0)
        made = cpu.compare_outcomes(student, teacher, outcomes, coefficient=coefficient, out=place, **options)
        assert made is not None
        rtol = 1e-10 if dtype == torch.float64 else 1e-4
        for field in ("value", "gradient", "dropped", "empty"):
            right = getattr(truth, field)
            # One outcome alone is 0 but for its rounding.
            atol = rtol * float(right.abs().max()) + torch.finfo(dtype).eps
            torch.testing.assert_close(getattr(Outcome(made, place), field), right, rtol=rtol, atol=atol)
        assert torch.equal(made.agrees, truth.agrees)
        assert torch.equal(made.compared, truth.compared)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])
    silent = cpu.compare_outcomes(student, teacher, outcomes, coefficient=None, out=None, **options)
    torch.testing.assert_close(silent.value, truth.value, rtol=rtol, atol=rtol)


def left_in(outcomes: Outcomes) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of three rows what is left out: an outcome on both sides, one of the teacher's alone, some of an outcome."""
    sides = []
    for number, grouping in enumerate((outcomes.student, outcomes.teacher)):
        largest = int(torch.bincount(grouping.group[grouping.group < grouping.count]).argmax())
        columns = grouping.group[grouping.group < grouping.count].unique()
        cells = [(0, grouping.group == columns[0]), (2, (grouping.group == largest) & (grouping.group != columns[1]))]
        cells += [(1, grouping.group == columns[1])] if number else []
        rows = [torch.full((int(mask.sum()),), row) for row, mask in cells]
        # All of the largest outcome but one token.
        tokens = [mask.nonzero().squeeze(1) for _, mask in cells]
        rows[1], tokens[1] = rows[1][1:], tokens[1][1:]
        sides.append((torch.cat(rows), torch.cat(tokens)))
    return sides


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("best", [None, 4])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", ["narrow", "in place", "wide"])
def test_what_rows_leave_out_is_impossible(name: str, divergence: str, best: int | None, dtype: torch.dtype) -> None:
    outcomes, _ = CASES[name]
    source = torch.Generator().manual_seed(5)
    widths = len(outcomes.student.group), len(outcomes.teacher.group)
    sides = [3 * torch.randn(3, width, generator=source).to(dtype) for width in widths]
    left = left_in(outcomes)
    without = [
        side.index_put(cells, torch.tensor(-torch.inf, dtype=dtype)) for side, cells in zip(sides, left, strict=True)
    ]
    coefficient = torch.tensor([1.0, 0.5, 2.5], dtype=dtype)
    measure = Measure(divergence, temperature=1.5, student_top_k=best)
    truth = by_autograd(*without, outcomes, measure=measure, coefficient=coefficient)
    place = torch.full_like(sides[0], 9.0)
    text = outcomes.teacher.group[outcomes.teacher.group < outcomes.teacher.count][[3, 5, 7]]
    made = cpu.compare_outcomes(
        *sides,
        outcomes,
        measure=measure,
        buffers=Buffers(),
        coefficient=coefficient,
        out=place,
        left=(left[0], left[1]),
        text=text,
    )
    assert made is not None
    rtol = 1e-10 if dtype == torch.float64 else 1e-4
    for one, other in ((made.value, truth.value), (place, truth.gradient)):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * float(other.abs().max()))
    assert (place[left[0]] == 0).all()
    masses = log_masses(without[1], outcomes.teacher)
    expected = (masses.gather(1, text[:, None]).squeeze(1) - masses.amax(1)).exp()
    torch.testing.assert_close(made.plausible, expected, rtol=rtol, atol=0)


@pytest.mark.parametrize("few", [0, 1000])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_masked_logit_is_no_probability(divergence: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Models write the lowest number of a dtype into logits that must not be. By torch's exponentials and by numpy's.
    monkeypatch.setattr(cpu, "_FEW_THREADS", few)
    outcomes, _ = CASES["narrow"]
    source = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(2, width, generator=source) for width in (40, 30))
    masked = [
        side.masked_fill(grouping.group == 3, torch.finfo(torch.float32).min)
        for side, grouping in ((student, outcomes.student), (teacher, outcomes.teacher))
    ]
    measure, ones = Measure(divergence), torch.ones(2)
    for sides in ((student, masked[1]), masked):
        if divergence == "reverse" and sides[0] is student:
            continue
        truth = by_autograd(*(side.double() for side in sides), outcomes, measure=measure, coefficient=ones.double())
        place = torch.full_like(student, 9.0)
        made = cpu.compare_outcomes(*sides, outcomes, buffers=Buffers(), measure=measure, coefficient=ones, out=place)
        assert made is not None
        torch.testing.assert_close(made.value.double(), truth.value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(place.double(), truth.gradient, rtol=1e-4, atol=1e-6)


def test_an_impossible_outcome_or_an_empty_row_is_left_to_the_formula() -> None:
    outcomes, _ = CASES["narrow"]
    options = {"measure": Measure(), "coefficient": None, "out": None}
    student, teacher = torch.randn(2, 40), torch.randn(2, 30)
    whole = [row.index_fill(1, torch.arange(row.shape[1]), -torch.inf) for row in (student, teacher)]
    assert cpu.compare_outcomes(whole[0], teacher, outcomes, buffers=Buffers(), **options) is None
    assert cpu.compare_outcomes(student, whole[1], outcomes, buffers=Buffers(), **options) is None
    one = student.masked_fill(outcomes.student.group == 3, -torch.inf)
    assert cpu.compare_outcomes(one, teacher, outcomes, buffers=Buffers(), **options) is None


@pytest.mark.parametrize("width", [1, 40, 5000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_best_are_those_of_a_stable_sort(width: int, dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(width)
    values = torch.randn(6, width, generator=source).to(dtype)
    # Ties, ascending and descending rows, and a row that is one number: samples of these tell little.
    values[1] = values[1].round()
    values[2] = values[2].sort().values
    values[3] = values[3].sort(descending=True).values
    values[4] = 0.5
    values[5, ::16] = -50.0
    for count in sorted({1, max(1, width // 7), max(1, width - 1), width}):
        found = places_of_best(values, count).sort(dim=1).values
        best = values.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
        assert torch.equal(found, best), count
