"""The fast losses are their slow twins: values and gradients, for all kinds and options, on odd batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_calls import (
    KINDS,
    MEASURES,
    PARTIAL,
    SORTED,
    Called,
    assert_same,
    case_of,
    fast,
    name_of,
    options_of,
    possible_labels,
    slow,
)
from random_batches import FEATURES, Case, top_k_of
from small_vocabs import make_vocab

from xtoken_align import align_ids, build
from xtoken_align.losses import XTokenLoss
from xtoken_align.vocab.kinds import Kind

BATCHES = range(0, 2 * len(FEATURES), 2)
"""Every second seed: the number of features is odd, so that each comes once."""
BEST = (1, 3, 1000)
"""Of how many tokens a teacher is known; the last is more than there are."""


def batch(seed: int) -> Case:
    # Numbers that float32 has, so that all precisions read the same ones.
    return case_of(seed, dtype=torch.float32, infinities=0.3 if seed % 5 == 4 else 0.0)


def assert_twins(case: Case, truth: Called, teacher: Any, **options: Any) -> None:
    """Both precisions against the truth."""
    exact = fast(case, case.student_logits.double(), teacher, labels=possible_labels(case), **options)
    # W's weights are float32, so a row of several sums to 1 up to 1e-7; the two divide by that sum at different places.
    weighted = options["kind"] == "p-kl" and options["merge"] == "mean"
    assert_same(exact, truth, rtol=1e-7 if weighted else 1e-9, atol=1e-10)
    if isinstance(teacher, torch.Tensor):
        single = fast(case, case.student_logits, teacher.float(), labels=possible_labels(case), **options)
        assert_same(single, truth, rtol=1e-5, atol=2e-6)
        assert single.gradient.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_the_slow_ones(kind: str) -> None:
    every = options_of(kind)
    found = 0
    for seed in BATCHES:
        case = batch(seed)
        options = every[(seed + seed // len(FEATURES)) % len(every)] | {"temperature": 1.0 + (seed % 3) / 2}
        truth = slow(case, case.student_logits, case.teacher_logits, labels=possible_labels(case), **options)
        assert_twins(case, truth, case.teacher_logits.double(), **options)
        found += bool(truth.kd)
    assert found > len(BATCHES) // 2


@pytest.mark.parametrize("options", [one for one in options_of(*KINDS) if len(one) > 2], ids=name_of)
def test_every_option_is_the_slow_ones(options: dict[str, Any]) -> None:
    plain = {"kind": options["kind"], "merge": options["merge"]}
    differs = 0
    for seed in (7, 38):
        case = batch(seed)
        truth = slow(
            case, case.student_logits, case.teacher_logits, labels=possible_labels(case), temperature=2.0, **options
        )
        assert_twins(case, truth, case.teacher_logits.double(), temperature=2.0, **options)
        other = fast(case, case.student_logits.double(), case.teacher_logits.double(), temperature=2.0, **plain)
        differs += not torch.isclose(truth.kd, other.kd)
    # An option changes something, unless it keeps more than there is.
    assert differs or options.get("top_k") == 1000


@pytest.mark.parametrize("measure", MEASURES, ids=name_of)
@pytest.mark.parametrize("kind", ["partition-kl", "c-kl", "p-kl", "h-kl", "gold"])
def test_every_divergence_is_the_slow_one(kind: str, measure: dict[str, Any]) -> None:
    every = [one for one in options_of(kind) if one.get("normalize") != "none"]
    differs = 0
    shift = 2 * MEASURES.index(measure)
    for seed in range(shift, shift + 3):
        # In turn: logits, the reference's tables, and where the kind reads it a teacher whose best tokens are known.
        partial = seed % 3 == 2 and kind not in SORTED
        case = case_of(seed) if partial else batch(seed)
        teacher = top_k_of(case, BEST[seed % len(BEST)]) if partial else case.teacher_logits.double()
        options = every[seed % len(every)] | {"temperature": 1.0 + (seed % 2)}
        truth = slow(case, case.student_logits, teacher, labels=possible_labels(case), **options, **measure)
        how = "reference" if seed % 3 == 1 else "auto"
        assert_twins(case, truth, teacher, **options, **measure, implementation=how)
        assert truth.kd >= 0
        differs += not torch.isclose(truth.kd, fast(case, case.student_logits, teacher, **options).kd.double())
    assert differs


FORMS_OF_C_KL = [
    (options, measure)
    for options in options_of("c-kl")
    for measure in ({}, {"divergence": "reverse"}, {"divergence": "jsd", "beta": 0.3, "student_top_k": 3})
]


@pytest.mark.parametrize("known", ["logits", "best tokens"])
@pytest.mark.parametrize("number", range(len(FORMS_OF_C_KL)))
def test_every_form_of_c_kl_is_the_slow_one(number: int, known: str) -> None:
    # Cases in which level one leaves out something on either side, and outcomes of which the student has nothing left.
    options, measure = FORMS_OF_C_KL[number]
    seeds = [2, 6, 10, 31, 38, 3, 16, 17, 28]
    for seed in (seeds[number % 5], seeds[5 + number % 4]):
        case = batch(seed) if known == "logits" else case_of(seed)
        teacher = case.teacher_logits.double() if known == "logits" else top_k_of(case, BEST[(number + seed) % 3])
        every = {**options, **measure, "temperature": 1.0 + number % 2}
        truth = slow(case, case.student_logits, teacher, labels=possible_labels(case), **every)
        assert_twins(case, truth, teacher, **every)
        plain = fast(case, case.student_logits.double(), teacher, implementation="reference", **every)
        torch.testing.assert_close(plain.kd, truth.kd, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("seed", "values"),
    [
        (2, (9.699880817158483, 16.629026058468405)),
        (10, (8.281699040674907, 13.730613039443595)),
        (20, (7.0381492381589394, 11.616333474795926)),
    ],
)
def test_the_first_form_of_c_kl_has_the_values_that_it_had(seed: int, values: tuple[float, float]) -> None:
    case = case_of(seed)
    for temperature, value in zip((1.0, 2.0), values, strict=True):
        loss = XTokenLoss(case.mapping, "c-kl", temperature=temperature, level_weight="text", end=False)
        assert loss(case.student_logits, case.teacher_logits, case.spans).kd.item() == pytest.approx(value, rel=1e-12)
        second = XTokenLoss(case.mapping, "c-kl", temperature=temperature)
        assert second(case.student_logits, case.teacher_logits, case.spans).kd < value


@pytest.mark.parametrize("kind", PARTIAL)
def test_teachers_of_which_the_best_tokens_are_known_are_the_slow_ones(kind: str) -> None:
    every = [one for one in options_of(kind) if one.get("top_k") != 1000]
    for seed in BATCHES:
        case = case_of(seed)
        teacher = top_k_of(case, BEST[seed % len(BEST)])
        options = every[(seed + seed // len(FEATURES)) % len(every)] | {"temperature": 1.0 + (seed % 2)}
        truth = slow(case, case.student_logits, teacher, labels=possible_labels(case), **options)
        assert_twins(case, truth, teacher, **options)


@pytest.mark.parametrize("kind", PARTIAL)
def test_a_teacher_that_lists_every_token_is_its_logits(kind: str) -> None:
    for seed in range(len(FEATURES)):
        case = case_of(seed)
        one = fast(case, case.student_logits, top_k_of(case, 1000), kind=kind, temperature=2.0)
        other = fast(case, case.student_logits, case.teacher_logits, kind=kind, temperature=2.0)
        assert_same(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_and_divisors_are_the_slow_ones(kind: str) -> None:
    case = batch(2)
    options = {"kind": kind, "kd_weight": 0.3, "ce_weight": 1.7}
    given = {"num_chunks_in_batch": 31, "num_items_in_batch": 7.0}
    truth = slow(case, case.student_logits, case.teacher_logits, labels=possible_labels(case), **options, **given)
    leaf = case.student_logits.double().requires_grad_()
    out = XTokenLoss(case.mapping, **options)(
        leaf, case.teacher_logits.double(), case.spans, labels=possible_labels(case), **given
    )
    made = Called(out.loss.detach(), out.kd, out.ce, torch.autograd.grad(out.loss, leaf))
    assert_same(made, truth, rtol=1e-9, atol=1e-10)
    assert truth.ce > 0
    as_tensors = {name: torch.tensor(value) for name, value in given.items()}
    again = XTokenLoss(case.mapping, **options)(
        leaf, case.teacher_logits.double(), case.spans, labels=possible_labels(case), **as_tensors
    )
    torch.testing.assert_close(again.loss, out.loss)


@pytest.mark.parametrize("options", options_of(*KINDS), ids=name_of)
def test_the_reference_is_the_slow_ones_too(options: dict[str, Any]) -> None:
    # Plain autograd over tables of fixed shapes, which looks at no value: what torch.compile traces.
    for seed in (7, 14):
        case = batch(seed)
        truth = slow(case, case.student_logits, case.teacher_logits, labels=possible_labels(case), **options)
        assert_twins(case, truth, case.teacher_logits.double(), implementation="reference", **options)


@pytest.mark.parametrize("kind", PARTIAL)
def test_the_reference_reads_teachers_of_which_the_best_tokens_are_known(kind: str) -> None:
    for seed in BATCHES[::2]:
        case = case_of(seed)
        teacher = top_k_of(case, BEST[seed % len(BEST)])
        options = {"kind": kind, "temperature": 1.0 + (seed % 2)}
        one, other = (
            fast(case, case.student_logits, teacher, implementation=how, **options) for how in ("auto", "reference")
        )
        assert_same(one, other, rtol=1e-9, atol=1e-10)


def test_a_token_that_the_other_side_wrote_otherwise_has_its_first_level_alone() -> None:
    # The teacher writes `aab` as `aa` `b`; here it wrote `a` `ab`, of which `a` begins the decomposition of `ac`.
    surfaces = ["a", "b", "c", "aab", "ac", "aac", (b"<s>", Kind.SPECIAL)]
    student = make_vocab(surfaces, roles={"bos": [6]})
    tokens = ["a", "b", "c", "aa", "ab", (b"<s>", Kind.SPECIAL)]
    teacher = make_vocab(tokens, name="teacher", roles={"bos": [5]})
    source = torch.Generator().manual_seed(0)
    case = Case(
        feature="written otherwise",
        student=student,
        teacher=teacher,
        mapping=build(student=student, teacher=teacher),
        student_logits=torch.randn(1, 3, 7, generator=source, dtype=torch.float64),
        teacher_logits=torch.randn(1, 4, 6, generator=source, dtype=torch.float64),
        spans=align_ids([[6, 3, 4]], [[5, 0, 4, 0]], student=student, teacher=teacher),
        labels=torch.full((1, 3), -100),
    )
    assert len(case.spans.predictions()) == 1
    levels = fast(case, case.student_logits, case.teacher_logits, kind="c-kl")
    assert_same(levels, slow(case, case.student_logits, case.teacher_logits, kind="c-kl"), rtol=1e-9, atol=1e-10)
    first = fast(case, case.student_logits, case.teacher_logits, kind="partition-kl")
    assert_same(levels, first, rtol=1e-12, atol=1e-12)
    # Written as it is stored, it has more.
    stored = replace(case, spans=align_ids([[6, 3, 4]], [[5, 3, 1, 0]], student=student, teacher=teacher))
    assert fast(stored, case.student_logits, case.teacher_logits, kind="c-kl").kd > first.kd + 1e-3


@pytest.mark.parametrize("kind", ["partition-kl", "p-kl", "h-kl", "gold", "uld"])
def test_positions_without_a_distribution_are_no_part_of_an_average(kind: str) -> None:
    for seed, temperature in ((2, 1.0), (10, 2.0), (28, 1.0)):
        case = case_of(seed)
        sides = [
            side.masked_fill(torch.arange(side.shape[1])[None, :, None] % 3 == 1, -torch.inf)
            for side in (case.student_logits, case.teacher_logits)
        ]
        options = {"kind": kind, "merge": "mean", "temperature": temperature}
        assert_same(fast(case, *sides, **options), slow(case, *sides, **options), rtol=1e-7, atol=1e-10)


def on_a_grid(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that bfloat16 has, no two of one row alike: what is sorted has one order in every precision."""
    source = torch.Generator().manual_seed(1)
    return tuple(  # type: ignore[return-value]
        (torch.rand(*side.shape[:2], 128, generator=source).argsort(-1)[..., : side.shape[2]] - 64) / 16
        for side in (case.student_logits, case.teacher_logits)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_rounded_once(kind: str, dtype: torch.dtype) -> None:
    for seed, options in enumerate(options_of(kind)):
        case = batch(seed + 2)
        student, teacher = on_a_grid(case)
        truth = fast(case, student.double(), teacher.double(), labels=possible_labels(case), **options)
        made = fast(case, student.to(dtype), teacher.to(dtype), labels=possible_labels(case), **options)
        assert made.kd.dtype == torch.float32
        torch.testing.assert_close(made.loss.double(), truth.loss, rtol=1e-5, atol=2e-6)
        # The gradient alone is rounded, once by each of the at most three parts that read a position.
        assert made.gradient.dtype == dtype
        epsilon = torch.finfo(dtype).eps
        torch.testing.assert_close(made.gradient.double(), truth.gradient, rtol=2 * epsilon, atol=epsilon / 50)


def test_sorting_kinds_are_those_that_jump() -> None:
    # With equal logits the order is anyone's, but not what it costs.
    case = batch(6)
    for kind in SORTED:
        flat = [torch.zeros_like(side) for side in (case.student_logits, case.teacher_logits)]
        truth = slow(case, flat[0], flat[1], kind=kind)
        made = fast(case, flat[0], flat[1], kind=kind)
        torch.testing.assert_close(made.kd.double(), truth.kd, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(made.gradient.sum().double(), truth.gradient.sum(), rtol=0, atol=1e-6)
