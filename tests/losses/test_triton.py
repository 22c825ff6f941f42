"""The comparison by Triton's kernels is the formula with autograd; without a GPU Triton's interpreter runs them."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from gpu import on_device
from loss_calls import Outcome, by_autograd, called, case_of, fast, name_of, possible_labels
from loss_calls import assert_same as assert_same_call
from test_cpu import CASES, in_place, left_in, outcomes_of
from test_fused_loss import hidden, inputs_of

from xtoken_align.errors import XTokenWarning
from xtoken_align.losses import XTokenLoss, kernels, plan, triton
from xtoken_align.losses.divergence import Measure
from xtoken_align.losses.functional import outcomes_kl, simct
from xtoken_align.losses.inputs import Rows
from xtoken_align.losses.lines import Lines, Places
from xtoken_align.losses.tables import Outcomes, log_masses, make_grouping

ON_GPU = torch.cuda.is_available()

# The interpreter makes numbers of arrays with one element, and works out what is masked away.
pytestmark = [
    pytest.mark.skipif(
        not ON_GPU and not os.environ.get("TRITON_INTERPRET"), reason="there is a GPU that PyTorch cannot use"
    ),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("quick_interpreter"),
]

DEVICE = torch.device("cuda" if ON_GPU else "cpu")


WORLDS = int(os.environ.get("XTOKEN_ALIGN_TEST_WORLDS", "200"))
"""So many random comparisons are held against the formula in float64; on a GPU fewer, since most compile kernels."""
TOGETHER = 5
"""Worlds of one test."""
MEASURES = [
    Measure(),
    Measure(temperature=2.5),
    Measure("reverse"),
    Measure("reverse", temperature=0.7),
    Measure("jsd", 0.3),
    Measure("jsd", 0.9, temperature=2.5),
]


def crowded() -> Outcomes:
    """Columns with more members than are read at a time, beside small ones."""
    group = torch.cat([torch.full((1300,), 2), torch.arange(40), torch.full((33,), 5), torch.tensor([7, 7, -1])])
    teacher = torch.cat([torch.arange(40), torch.full((700,), 7), torch.tensor([-1, -1])])
    sides = [make_grouping(side, 40, torch.ones(len(side), dtype=torch.bool)) for side in (group, teacher)]
    return Outcomes(*sides, None, weigh_by_kept=True)


COMPARISONS = {
    "narrow": CASES["narrow"][0],
    "in place": in_place(300, 400, seed=3),
    "crowded": crowded(),
}


def moved(outcomes: Outcomes) -> Outcomes:
    return on_device(outcomes, DEVICE)


def logits(outcomes: Outcomes, rows: int, scale: float = 3.0) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(7)
    widths = len(outcomes.student.group), len(outcomes.teacher.group)
    return [(scale * torch.randn(rows, width, generator=source)).to(DEVICE) for width in widths]


def by_kernels(
    student: torch.Tensor, teacher: torch.Tensor, outcomes: Outcomes, measure: Measure | None = None, **options: Any
) -> Outcome:
    """With weights of 1, and the gradient in a matrix that held something else."""
    place = torch.full_like(student, 9.0)
    ones = torch.ones(len(student), device=DEVICE)
    given = {"measure": measure or Measure(), "coefficient": ones, "out": place, **options}
    return Outcome(triton.compare_outcomes(student, teacher, outcomes, **given), place)


@dataclass(frozen=True, eq=False)
class World:
    """Some rows of two batches, as a loss would hand them in.

    Attributes:
        outcomes: the table.
        measure: how outcomes are compared.
        student: logits of a batch, whose rows may lie apart in memory.
        teacher: likewise.
        lines: which rows are compared, in any order, some with labels, some of these with nothing else.
        weight: floats (N,), of the chunks.
        both: whether what the teacher cannot have is compared on neither side.
    """

    outcomes: Outcomes
    measure: Measure
    student: torch.Tensor
    teacher: torch.Tensor
    lines: Lines
    weight: torch.Tensor
    both: bool


def batch(source: torch.Generator, rows: int, width: int, dtype: torch.dtype, *, impossible: float) -> torch.Tensor:
    """Logits with rows that lie apart, of which some are -inf, and now and then a whole row."""
    made = 3 * torch.randn(rows, width + 3, generator=source)
    made[torch.rand(made.shape, generator=source) < impossible] = -torch.inf
    made[torch.rand(rows, generator=source) < impossible / 4] = -torch.inf
    return made.to(dtype)[:, :width]


def world(seed: int) -> World:
    """One of many: tables, dtypes, divergences, temperatures, impossible tokens, labels and left out tokens vary."""
    source = torch.Generator().manual_seed(seed)
    numbers = np.random.default_rng(seed)
    students, teachers = (int(one) for one in numbers.integers(12, 90, 2))
    groups = int(numbers.integers(1, min(students, teachers) // 2))
    table = outcomes_of(students, teachers, groups, seed=seed, weigh=seed % 3 == 0)
    if seed % 4 == 0:
        table = in_place(students // 2 * 2, max(students, teachers), seed=seed)
    widths = len(table.student.group), len(table.teacher.group)
    dtypes = [triton.DTYPES[seed % 3], triton.DTYPES[seed // 3 % 3]]
    impossible = 0.1 if seed % 5 == 4 else 0.0
    chunks, labelled = int(numbers.integers(0, 6)), int(numbers.integers(0, 3))
    chooses = seed % 18 == 9 and not impossible
    if chooses:
        # A row takes the interpreter a third of a second.
        chunks, labelled = min(chunks, 2), min(labelled, 1)
    sides = [batch(source, 9, width, dtype, impossible=impossible) for width, dtype in zip(widths, dtypes, strict=True)]
    label = np.where(numbers.random(chunks + labelled) < 0.5, numbers.integers(0, widths[0], chunks + labelled), -100)
    label[chunks:] = numbers.integers(0, widths[0], labelled)
    rows = numbers.permutation(9)[: chunks + labelled]
    chunk = np.concatenate([numbers.permutation(chunks), np.full(labelled, -1)])
    columns = table.teacher.group[table.teacher.group < table.teacher.count].unique().numpy()
    text = np.where(chunk < 0, -1, numbers.choice(columns, chunks + labelled))
    left: list[Places | None] = [None, None]
    if seed % 7 == 1 and chunks:
        left = [
            (numbers.integers(0, chunks, 4), numbers.integers(0, width, 4)) if side == seed % 2 else None
            for side, width in enumerate(widths)
        ]
    own_lines = Lines(rows, numbers.integers(0, 9, len(rows)), chunk, label, text, (left[0], left[1]))
    weight = torch.rand(chunks, generator=source)
    measure = MEASURES[seed // 9 % len(MEASURES)]
    if chooses:
        # Few of the best are compared. In half precision some are equal, and each way chooses others of these.
        chosen = "top_k" if seed % 4 == 1 else "student_top_k"
        measure = replace(measure, **{chosen: int(numbers.integers(1, max(table.student.count, 2)))})
    return World(table, measure, *sides, own_lines, weight, both=seed % 6 == 2)


Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What is said of the chunks (6, N), the sum of the cross-entropies, and the gradient of the student's batch."""

LABEL_WEIGHT = 0.7


def world_by_kernels(made: World) -> Found:
    """The gradient is that of float16 in float32, as the losses keep it."""
    kept = torch.float32 if made.student.dtype == torch.float16 else made.student.dtype
    out = torch.zeros(made.student.shape, dtype=kept, device=DEVICE)
    numbers = torch.zeros(6, len(made.weight), device=DEVICE)
    factors = torch.tensor([1.0, LABEL_WEIGHT], device=DEVICE)
    entropy = triton.compare_rows(
        made.student.to(DEVICE),
        made.teacher.to(DEVICE),
        moved(made.outcomes),
        made.lines,
        triton.Wanted(made.weight.to(DEVICE), factors, labels=True, out=out),
        numbers,
        measure=made.measure,
        both=made.both,
    )
    return numbers.cpu(), entropy.sum().cpu(), out.cpu()


def world_by_formula(made: World) -> Found:
    """The formula in float64 and autograd, and torch's cross-entropy."""
    lines, count = made.lines, len(made.weight)
    leaf = made.student.double().requires_grad_()
    # Chunk by chunk, since lines come in any order.
    own = np.argsort(lines.chunk, kind="stable")[len(lines.chunk) - count :]
    student, teacher = Rows(leaf[lines.student[own]]), Rows(made.teacher.double()[lines.teacher[own]])
    places = {int(line): place for place, line in enumerate(own)}
    sides, lowest = [], torch.tensor(-torch.inf, dtype=torch.float64)
    groupings = made.outcomes.student, made.outcomes.teacher
    for side, cells, grouping in zip((student, teacher), lines.left, groupings, strict=True):
        scores = side.scores
        if cells is not None:
            row, token = torch.tensor([places[int(line)] for line in cells[0]]), torch.from_numpy(cells[1])
            inside = grouping.group[token] < grouping.count
            scores = scores.index_put((row[inside], token[inside]), lowest)
        sides.append(Rows(scores))
    sides[1] = replace(sides[1], text=torch.from_numpy(lines.text[own]))
    found = (simct if made.both else outcomes_kl)(*sides, made.outcomes, measure=made.measure, looks=False)
    labelled = np.flatnonzero(lines.label >= 0)
    entropy = torch.nn.functional.cross_entropy(
        leaf[lines.student[labelled]], torch.from_numpy(lines.label[labelled]), reduction="sum"
    )
    total = (found.value * made.weight.double()).sum() + LABEL_WEIGHT * entropy
    (gradient,) = torch.autograd.grad(total, leaf)
    plausible = torch.zeros(count) if found.plausible is None else found.plausible
    fields = (found.value.detach(), found.agrees, found.dropped, found.empty, found.compared, plausible)
    return torch.stack([one.double() for one in fields]), entropy.detach(), gradient


def fair(made: World) -> World:
    """The world without labels that the student cannot say, of which the cross-entropy is infinite, or of rows that
    leave something out, and without simct's form where that is not weighed.
    """
    lines = made.lines
    own = made.student[lines.student, np.maximum(lines.label, 0)] > -torch.inf
    label = np.where(own.numpy(), lines.label, -100)
    if lines.left[0] is not None:
        label[lines.left[0][0]] = -100
    return replace(made, lines=replace(lines, label=label), both=made.both and not made.outcomes.weigh_by_kept)


def assert_as_by_formula(made: World, found: Found) -> None:
    truth = world_by_formula(made)
    compared = truth[0][4] > 0
    for field, name in enumerate(("value", "agrees", "dropped", "empty", "compared", "plausible")):
        if name == "plausible" and made.both:
            continue
        # Of chunks that are not compared nobody reads more than that.
        own = compared if name != "compared" else torch.ones_like(compared)
        torch.testing.assert_close(found[0][field].double()[own], truth[0][field][own], rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(found[1].double(), truth[1], rtol=2e-5, atol=1e-6)
    rounding = float(torch.finfo(found[2].dtype).eps) if found[2].dtype != torch.float32 else 0.0
    size = float(truth[2].abs().max())
    torch.testing.assert_close(found[2].double(), truth[2], rtol=2e-5 + rounding, atol=2e-5 * size + 1e-7)


@pytest.mark.parametrize("first", range(0, WORLDS, TOGETHER))
def test_random_worlds_are_those_of_the_formula(first: int) -> None:
    for seed in range(first, first + TOGETHER):
        made = fair(world(seed))
        try:
            assert_as_by_formula(made, world_by_kernels(made))
        except AssertionError as error:
            raise AssertionError(f"world {seed}") from error


class Bounds:
    """Stands for what reads and writes memory for Triton's interpreter, and asserts that it lies within tensors."""

    def __init__(self, interpreter: Any) -> None:
        self.interpreter, self.seen = interpreter, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.interpreter, name)

    def load(self, pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self.check(pointers, mask, np.dtype(dtype).itemsize)
        return self.interpreter.load(pointers, mask, other, dtype)

    def store(self, pointers: Any, values: Any, mask: Any) -> Any:
        self.check(pointers, mask, values.dtype.itemsize)
        return self.interpreter.store(pointers, values, mask)

    def atomic_rmw(self, kind: Any, pointers: Any, values: Any, mask: Any, order: Any) -> Any:
        self.check(pointers, mask, values.dtype.itemsize)
        return self.interpreter.atomic_rmw(kind, pointers, values, mask, order)

    def between_launches(self) -> None:
        """Looks where the tensors lie."""
        alive = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors()}
        self.begins = np.array(sorted(alive), dtype=np.uint64)
        self.ends = self.begins + np.array([alive[int(begin)] for begin in self.begins], dtype=np.uint64)

    def check(self, pointers: Any, mask: Any, size: int) -> None:
        own = np.broadcast_to(pointers, mask.shape)[mask].astype(np.uint64)
        place = np.searchsorted(self.begins, own, side="right").astype(np.int64) - 1
        assert (place >= 0).all()
        assert (own + np.uint64(size) <= self.ends[place]).all()
        self.seen += len(own)


def tensors() -> list[torch.Tensor]:
    """All that are alive and have memory."""
    return [one for one in gc.get_objects() if type(one) in {torch.Tensor, torch.nn.Parameter} and one.numel()]


@pytest.mark.skipif(ON_GPU, reason="compute-sanitizer does it there")
@pytest.mark.parametrize("seed", [9, 27])
def test_kernels_read_and_write_within_tensors(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = importlib.import_module("triton.runtime.interpreter")
    bounds = Bounds(interpreter._interpreter)
    monkeypatch.setattr(interpreter, "_interpreter", bounds)
    begins = interpreter.GridExecutor.__call__

    def launch(self: Any, *args: Any, **options: Any) -> Any:
        bounds.between_launches()
        return begins(self, *args, **options)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
    world_by_kernels(world(seed))
    case = case_of(seed, infinities=0.2 * (seed % 2))
    sides = [side.bfloat16() for side in (case.student_logits, case.teacher_logits)]
    for kind in ("c-kl", "h-kl"):
        fast(case, *sides, labels=possible_labels(case), kind=kind, implementation="triton")
    assert bounds.seen > 1000


def test_equal_inputs_give_equal_bits() -> None:
    for seed in (19, 64):
        one, other = (world_by_kernels(fair(world(seed))) for _ in range(2))
        for left, right in zip(one, other, strict=True):
            assert torch.equal(left, right)


def test_columns_of_many_tokens_are_the_formula_with_autograd() -> None:
    measure = Measure("jsd", 0.3)
    outcomes = moved(COMPARISONS["crowded"])
    student, teacher = logits(outcomes, 3)
    coefficient = torch.tensor([1.0, 0.0, 2.5], device=DEVICE)
    truth = by_autograd(student, teacher, outcomes, measure=measure, coefficient=coefficient)
    # A part of a wider matrix, since blocks are parts of a batch.
    place = torch.full((3, student.shape[1] + 5), 9.0, device=DEVICE)
    options: dict[str, Any] = {"measure": measure}
    made = triton.compare_outcomes(student, teacher, outcomes, coefficient=coefficient, out=place[:, :-5], **options)
    assert_same(Outcome(made, place[:, :-5]), truth)
    assert bool((place[:, -5:] == 9).all())
    silent = triton.compare_outcomes(student, teacher, outcomes, coefficient=None, out=None, **options)
    assert torch.equal(silent.value, made.value)


def assert_same(made: Any, truth: Any) -> None:
    for field in ("value", "gradient", "dropped", "empty"):
        right = getattr(truth, field)
        size = float(right.abs().max())
        torch.testing.assert_close(getattr(made, field), right, rtol=1e-4, atol=1e-5 * size + 1e-7, msg=str(field))
    assert torch.equal(made.agrees, truth.agrees)
    assert torch.equal(made.compared, truth.compared)


def test_what_rows_leave_out_is_impossible() -> None:
    for name in ("narrow", "in place", "crowded"):
        outcomes = COMPARISONS[name]
        left = [tuple(cells.to(DEVICE) for cells in side) for side in left_in(outcomes)]
        outcomes = moved(outcomes)
        sides = logits(outcomes, 3)
        lowest = torch.tensor(-torch.inf, device=DEVICE)
        without = [side.index_put(cells, lowest) for side, cells in zip(sides, left, strict=True)]
        measure, before = Measure(temperature=1.5), [side.clone() for side in sides]
        truth = by_autograd(*without, outcomes, measure=measure, coefficient=torch.ones(3, device=DEVICE))
        text = outcomes.teacher.group[outcomes.teacher.group < outcomes.teacher.count][[3, 5, 7]]
        made = by_kernels(*sides, outcomes, measure, left=tuple(left), text=text)
        for one, other in ((made.value, truth.value), (made.gradient, truth.gradient)):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
        masses = log_masses(without[1], outcomes.teacher)
        expected = (masses.gather(1, text[:, None]).squeeze(1) - masses.amax(1)).exp()
        torch.testing.assert_close(made.plausible, expected, rtol=1e-4, atol=0)
        assert all(map(torch.equal, sides, before))


def test_distant_logits_keep_their_digits() -> None:
    outcomes = moved(COMPARISONS["crowded"])
    student, teacher = logits(outcomes, 3, scale=1e4)
    truth = by_autograd(student, teacher, outcomes, measure=Measure(), coefficient=torch.ones(3, device=DEVICE))
    assert_same(by_kernels(student, teacher, outcomes), truth)


@pytest.mark.parametrize(
    "measure",
    [
        Measure(top_k=5),
        Measure("reverse", top_k=40, temperature=0.5),
        Measure("jsd", 0.3, top_k=1, temperature=2.0),
        Measure(student_top_k=5),
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [3.0, 60.0])
def test_the_best_outcomes_are_the_formula_with_autograd(measure: Measure, scale: float) -> None:
    # At the scale of 60 a block's masses lie so far apart that they are summed with care.
    for name in ("in place", "crowded"):
        outcomes = moved(COMPARISONS[name])
        student, teacher = logits(outcomes, 3, scale)
        truth = by_autograd(student, teacher, outcomes, measure=measure, coefficient=torch.ones(3, device=DEVICE))
        assert_same(by_kernels(student, teacher, outcomes, measure), truth)


@pytest.mark.parametrize("dtype", triton.DTYPES, ids=str)
def test_rows_in_which_everything_is_possible_are_plain(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, sweep = [], triton._Launch._sweep

    def spy(launch: Any, wanted: Any, numbers: Any, entropy: Any, kept: torch.Tensor, cut: Any) -> None:
        sweep(launch, wanted, numbers, entropy, kept, cut)
        rows.append(kept[kernels.sweep.ROW_ODD.value])

    monkeypatch.setattr(triton._Launch, "_sweep", spy)
    outcomes = moved(COMPARISONS["in place"])
    for measure in (Measure(), Measure("reverse"), Measure("jsd", 0.3, temperature=2.0), Measure(top_k=5)):
        sides = [side.to(dtype) for side in logits(outcomes, 3)]
        by_kernels(*sides, outcomes, measure)
        sides[1][1] = -torch.inf
        by_kernels(*sides, outcomes, measure)
    assert [own.tolist() for own in rows] == [[0, 0, 0], [0, 1, 0]] * 4


def test_of_equal_outcomes_the_first_are_the_best() -> None:
    outcomes = moved(COMPARISONS["in place"])
    student, teacher = logits(outcomes, 2)
    partner = triton.codes_of(outcomes).code
    alone = partner[(partner >= 0) & (partner < teacher.shape[1])].long()
    equal = torch.full_like(teacher, -5.0).index_fill(1, alone, 0.0)
    falling = equal.index_copy(1, alone, -torch.arange(len(alone), device=DEVICE).expand(2, -1) * 1e-6)
    for many in (1, 7, len(alone) - 1):
        both = [by_kernels(student, side, outcomes, Measure(top_k=many)).value for side in (equal, falling)]
        torch.testing.assert_close(both[0], both[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize("lowest", [torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min, -1e30, -torch.inf])
def test_a_row_of_the_lowest_numbers_is_not_compared(lowest: float) -> None:
    outcomes = moved(COMPARISONS["in place"])
    for side in (0, 1):
        both = logits(outcomes, 2)
        both[side][1] = lowest
        made = by_kernels(*both, outcomes)
        assert made.compared.tolist() == [True, False]
        assert made.value[1] == 0
        assert not made.gradient[1].any()
        assert made.value[0] > 0


def test_what_is_no_number_is_seen() -> None:
    outcomes = moved(COMPARISONS["narrow"])
    for measure in (Measure(), Measure("reverse"), Measure("jsd", 0.3)):
        for side, grouping in enumerate((outcomes.student, outcomes.teacher)):
            for token in (int(grouping.index.shared_head[0]), int(grouping.index.member[-1])):
                both = logits(outcomes, 2)
                both[side][1, token] = torch.nan
                made = by_kernels(*both, outcomes, measure)
                assert made.value.isfinite().tolist() == [True, False]
                assert by_autograd(*both, outcomes, measure=measure).value.isfinite().tolist() == [True, False]


def test_no_rows_are_no_work_and_one_row_is_a_batch() -> None:
    outcomes = moved(COMPARISONS["narrow"])
    for rows in (0, 1):
        student, teacher = logits(outcomes, rows)
        made = by_kernels(student, teacher, outcomes)
        assert made.value.shape == (rows,)
        assert made.gradient.shape == student.shape
    truth = by_autograd(student, teacher, outcomes, measure=Measure(), coefficient=torch.ones(1, device=DEVICE))
    assert_same(made, truth)


@pytest.mark.parametrize(
    "options",
    [
        *({"kind": kind} for kind in ("partition-kl", "c-kl", "p-kl", "h-kl", "uld", "strict", "bpm", "escd", "simct")),
        {"kind": "p-kl", "top_k": 2},
        {"kind": "partition-kl", "merge": "mean"},
    ],
    ids=name_of,
)
def test_a_loss_by_kernels_is_the_processors(options: dict[str, Any]) -> None:
    options = {**options, "temperature": 1.5}
    dtypes = triton.DTYPES if options["kind"] in {"c-kl", "h-kl"} else (torch.float32, torch.bfloat16)
    dtypes = dtypes if len(options) > 2 or len(dtypes) > 2 else dtypes[:1]
    for seed, dtype in enumerate(dtypes, start=3):
        case = case_of(seed, dtype=torch.float32, infinities=0.2 if seed == 4 else 0.0)
        sides = [on_device(side.to(dtype), DEVICE) for side in (case.student_logits, case.teacher_logits)]
        labels = possible_labels(case)
        made = fast(case, *sides, labels=on_device(labels, DEVICE), implementation="triton", **options)
        truth = fast(case, *(side.cpu().double() for side in sides), labels=labels, **options)
        rtol = 2e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        assert_same_call(made, truth, rtol=rtol, atol=2e-6)


def test_levels_by_kernels_are_those_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    speakers: list[np.ndarray[Any, Any]] = []
    compares = triton.compare_levels

    def note(*args: Any, **options: Any) -> None:
        speakers.append(args[2].speaker)
        compares(*args, **options)

    monkeypatch.setattr(triton, "compare_levels", note)
    ways: list[dict[str, Any]] = [
        {},
        {"level_weight": "text", "temperature": 2.0},
        {"divergence": "reverse", "temperature": 0.7},
        {"divergence": "jsd", "beta": 0.3},
    ]
    for seed, way in product((5, 9, 14), ways):
        options = {"kind": "c-kl", **way}
        case = case_of(seed, dtype=torch.float32, infinities=0.3 if seed % 5 == 4 else 0.0)
        sides = case.student_logits, case.teacher_logits
        made = fast(case, *(on_device(side, DEVICE) for side in sides), implementation="triton", **options)
        truth = fast(case, *(side.double() for side in sides), **options)
        assert_same_call(made, truth, rtol=2e-5, atol=2e-6)
    # Levels of either side, and chunks with several.
    assert {int(one) for own in speakers for one in own} == {0, 1}
    assert max(map(len, speakers)) > 4


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "partition-kl", "divergence": "reverse"},
        {"kind": "c-kl", "level_weight": "teacher"},
        {"kind": "h-kl"},
        {"kind": "bpm"},
    ],
    ids=name_of,
)
def test_a_fused_loss_by_kernels_is_the_processors(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "WIDTH", 1)
    monkeypatch.setattr(plan, "CPU", replace(plan.CPU, hidden=7))
    case = case_of(6, dtype=torch.float32)
    for dtype, head in ((torch.float32, {"scale": 0.7, "softcap": 3.0}), (torch.bfloat16, {})):
        sides = [hidden(case, side, dtype, **head) for side in ("student", "teacher")]
        exact = [replace(one, **{name: whole(getattr(one, name)) for name in PARTS}) for one in sides]
        given = [on_device(one, DEVICE) for one in sides]
        labels = possible_labels(case)
        loss = XTokenLoss(case.mapping, implementation="triton", **options).to(DEVICE)
        made = called(loss(*given, case.spans, labels=on_device(labels, DEVICE)), inputs_of(given[0]))
        loss = XTokenLoss(case.mapping, **options)
        truth = called(loss(*exact, case.spans, labels=labels), inputs_of(exact[0]))
        # Logits of bfloat16 are rounded as a model's are, which a gradient shows.
        assert_same_call(made, truth, rtol=2e-5 if dtype == torch.float32 else 0.02, atol=2e-6)


PARTS = ("states", "weight", "bias")


def whole(part: torch.Tensor) -> torch.Tensor:
    """The same numbers in float64, as a leaf."""
    return part.detach().double().requires_grad_()


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's assembler comes with its wheels for Linux")
def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    # In a process of its own: here Triton has been told to interpret.
    script = Path(__file__).with_name("compile_kernels.py")
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    told = subprocess.run([sys.executable, script, "90"], env=variables, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    compiled = [line.split(maxsplit=1) for line in told.stdout.splitlines()]
    assert {name for name, *_ in compiled} == {name for name in kernels.__all__ if not name.isupper()}
    # A thread with more numbers than registers would keep some in memory, which is slow.
    assert all(told.endswith(", 0 bytes") for _, *needs in compiled for told in needs)


def test_it_is_known_whether_kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert triton.kernels_work(DEVICE)
    assert not triton.kernels_work(DEVICE, torch.float64)

    def broken(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    for name, instead, words in (
        ("_prepare", broken, "C compiler.*plain path"),
        ("_divergence", 0, "miss the plain form's numbers"),
    ):
        triton.kernels_work.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(triton._Launch, name, instead)
            with pytest.warns(XTokenWarning, match=words):
                works = triton.kernels_work(DEVICE)
        assert not works
    triton.kernels_work.cache_clear()


def test_a_factor_of_one_and_others_scale_in_place() -> None:
    for factor in (1.0, 0.5):
        values = torch.arange(5000.0, device=DEVICE).bfloat16()
        expected = values * factor
        triton.multiply(values, torch.tensor(factor, device=DEVICE))
        assert torch.equal(values, expected)
