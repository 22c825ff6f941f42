"""TRL's ULD and GOLD against loops, and at their edges."""

from __future__ import annotations

from itertools import pairwise

import pytest
import slow_peers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_batches import Answers, answers
from peer_cases import agrees

from xtoken_align.errors import OptionError
from xtoken_align.losses.peers.trl import (
    Groups,
    Runs,
    ULDLoss,
    align_ends,
    answer_groups,
    merge_groups,
    uld,
    uld_on_groups,
)

options = st.fixed_dictionaries(
    {
        "extended": st.booleans(),
        "merge": st.sampled_from(["observed", "bayesian"]),
        "beta": st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        "weights": st.sampled_from([None, (0.8, 0.3), (0.0, 2.0)]),
        "student_temperature": st.sampled_from([1.0, 1.5]),
        "teacher_temperature": st.sampled_from([1.0, 2.0]),
        "skip_student_eos": st.booleans(),
        "skip_teacher_eos": st.booleans(),
    }
)


def fast(found: Answers, **chosen) -> ULDLoss:
    return uld(
        found.student,
        found.teacher,
        student_ids=found.student_ids,
        teacher_ids=found.teacher_ids,
        student_labels=found.student_labels,
        teacher_labels=found.teacher_labels,
        student_byte_offsets=found.student_byte_offsets,
        teacher_byte_offsets=found.teacher_byte_offsets,
        matched=found.matched,
        **chosen,
    )


@given(answers(), options)
def test_uld_is_its_formula(found: Answers, chosen: dict) -> None:
    loss, slow = fast(found, **chosen).loss, slow_peers.uld(found, chosen)
    assert agrees(loss.detach(), slow.detach(), torch.float64)
    assert agrees(*(torch.autograd.grad(one, found.student)[0] for one in (loss, slow)), torch.float64)


@settings(max_examples=30)
@given(answers(), st.sampled_from([0.0, 0.7]), st.sampled_from([0.3, 1.0]))
def test_the_sum_with_cross_entropy_is_its_formula(found: Answers, distilled: float, labelled: float) -> None:
    out = fast(found, distillation_weight=distilled, crossentropy_weight=labelled)
    counted = (found.student_labels != -100).tolist()
    ce = slow_peers.cross_entropy(found.student, found.student_labels.tolist(), counted, 0.0).detach()
    assert agrees(out.cross_entropy, ce, torch.float64)
    assert agrees(out.loss.detach(), distilled * out.distillation + labelled * ce, torch.float64)


ends = st.lists(st.integers(0, 3), max_size=8).map(lambda steps: [sum(steps[: k + 1]) for k in range(len(steps))])


@given(ends, ends)
def test_groups_are_common_byte_runs(ours: list[int], theirs: list[int]) -> None:
    found = align_ends(ours, theirs)
    assert [(list(one), list(other)) for one, other in found] == slow_peers.groups(ours, theirs)
    for side in zip(*found, strict=True):
        assert all(before.stop == after.start for before, after in pairwise(side))


@pytest.mark.parametrize(("merge", "expected"), [("observed", [0.30, 0.15, 0.05]), ("bayesian", [0.12, 0.30, 0.18])])
def test_the_merge_of_two_positions(merge: str, expected: list[float]) -> None:
    log_q = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], dtype=torch.float64).log()
    merged = merge_groups(log_q, torch.tensor([0, 1]), torch.tensor([0, 2]), merge=merge)
    assert merged[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("merge", "other"), [("observed", 1), ("bayesian", 0)])
def test_the_other_tokens_of_a_merge_have_a_least_probability(merge: str, other: int) -> None:
    log_q = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64).log()
    log_q[other] = torch.tensor([0.0, -40.0])
    merged = merge_groups(log_q, torch.tensor([1, 1]), torch.tensor([0, 2]), merge=merge)
    assert merged[0].tolist() == pytest.approx([0.5e-8, 0.5e-8], rel=1e-9)


@pytest.mark.parametrize(("merge", "expected"), [("observed", 0.5), ("bayesian", 0.0)])
def test_two_perfect_predictors_of_one_text(merge: str, expected: float) -> None:
    """The student writes one token for the teacher's two. After the text both are undecided between two ids."""
    sure = 60.0
    student = torch.tensor([[[-sure, -sure, sure], [0.0, 0.0, -sure]]], dtype=torch.float64)
    teacher = torch.tensor([[[sure, -sure, -sure], [-sure, sure, -sure], [0.0, 0.0, -sure]]], dtype=torch.float64)
    runs = (Runs(torch.tensor([1]), torch.tensor([0, 1])), Runs(torch.tensor([1, 2]), torch.tensor([0, 2])))
    out = uld_on_groups(
        student,
        teacher,
        Groups(torch.tensor([0]), *runs),
        student_ids=torch.tensor([[0, 2]]),
        teacher_ids=torch.tensor([[0, 0, 1]]),
        merge=merge,
    )
    assert float(out.loss) == pytest.approx(expected, abs=1e-6)


def test_a_sample_without_an_answer_counts_as_0() -> None:
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher, ids = torch.randn(2, 3, 4, dtype=torch.float64), torch.tensor([[0, 1, 2]] * 2)
    labels = torch.tensor([[-100, 1, 2], [-100, -100, -100]])
    out = uld(
        logits,
        teacher,
        student_ids=ids,
        teacher_ids=ids,
        student_labels=labels,
        teacher_labels=labels,
        extended=False,
        skip_student_eos=False,
        skip_teacher_eos=False,
    )
    assert float(out.sample_loss[1]) == 0
    assert float(out.loss.detach()) == pytest.approx(float(out.sample_loss[0]) / 2)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_without_an_answer_the_loss_is_0_and_so_is_its_slope(weight: float) -> None:
    logits, ids = torch.randn(2, 3, 4, requires_grad=True), torch.tensor([[0, 1, 2]] * 2)
    labels = torch.full((2, 3), -100)
    out = uld(
        logits,
        logits.detach(),
        student_ids=ids,
        teacher_ids=ids,
        student_labels=labels,
        teacher_labels=labels,
        matched=torch.tensor([[0, 0]]),
        extended=False,
        crossentropy_weight=weight,
    )
    assert float(out.loss.detach()) == 0
    assert torch.equal(torch.autograd.grad(out.loss, logits)[0], torch.zeros_like(logits))


def small(**changed) -> ULDLoss:
    logits, ids, labels = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]), torch.tensor([[-100, 1, 2]])
    given_options = {
        "student_ids": ids,
        "teacher_ids": ids,
        "student_labels": labels,
        "teacher_labels": labels,
        "extended": False,
    }
    return uld(logits, logits, **{**given_options, **changed})


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"merge": "mean"}, "merge must be one of observed, bayesian"),
        ({"beta": 1.5, "matched": torch.tensor([[0, 0]])}, "beta must lie between 0 and 1"),
        ({"weights": (-1.0, 1.0), "matched": torch.tensor([[0, 0]])}, "the matched weight must be a finite number"),
        ({"matched": torch.tensor([0, 0])}, "matched must have shape"),
        ({"student_temperature": 0.0}, "student_temperature must be a finite number above 0"),
        ({"teacher_temperature": -1.0}, "teacher_temperature must be a finite number above 0"),
        ({"crossentropy_weight": float("inf")}, "crossentropy_weight must be a finite number"),
        ({"extended": True}, "extended groups need student_byte_offsets"),
        ({"student_labels": torch.tensor([[1, 2]])}, "student_labels must have shape"),
        ({"teacher_ids": torch.tensor([[1, 2]])}, "teacher_ids must have shape"),
    ],
)
def test_an_option_out_of_range_is_refused(changed: dict, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        small(**changed)


def test_a_group_that_nothing_predicts_is_refused() -> None:
    logits, ids = torch.zeros(2, 2, 3), torch.zeros(2, 2, dtype=torch.int64)
    runs = Runs(torch.tensor([2]), torch.tensor([0, 1]))
    groups = Groups(torch.tensor([1]), runs, runs)
    with pytest.raises(OptionError, match="holds a row's first token"):
        uld_on_groups(logits, logits, groups, student_ids=ids, teacher_ids=ids, merge="bayesian")


def test_labels_of_two_batch_sizes_are_refused() -> None:
    with pytest.raises(OptionError, match="one number of samples"):
        answer_groups(torch.zeros(1, 2), torch.zeros(2, 2), extended=False)


def test_ids_that_are_masked_with_minus_infinity_make_no_nan() -> None:
    logits = torch.randn(1, 3, 4).index_fill(2, torch.tensor([3]), -torch.inf).requires_grad_()
    ids, labels = torch.tensor([[0, 3, 3]]), torch.tensor([[-100, 3, 3]])
    offsets = torch.tensor([[[0, 0], [0, 1], [1, 3]]])
    whole = torch.tensor([[[0, 0], [0, 3], [3, 3]]])
    for merge in ("observed", "bayesian"):
        out = uld(
            logits,
            logits.detach(),
            student_ids=ids,
            teacher_ids=ids,
            student_labels=labels,
            teacher_labels=labels,
            student_byte_offsets=offsets,
            teacher_byte_offsets=whole,
            matched=torch.tensor([[0, 0], [3, 3]]),
            merge=merge,
            skip_student_eos=False,
        )
        assert bool(out.loss.isfinite())
        assert bool(torch.autograd.grad(out.loss, logits)[0].isfinite().all())
