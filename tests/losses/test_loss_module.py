"""The loss as a module: what it saves, where its index arrays go, copies, and how it is imported."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from loss_calls import KINDS, case_of, name_of, options_of
from torch.utils._pytree import tree_leaves

from xtoken_align.errors import OptionError
from xtoken_align.losses import Hidden, MultiTeacherLoss, XTokenLoss

CASE = case_of(4)


def value(loss: XTokenLoss) -> torch.Tensor:
    return loss(CASE.student_logits, CASE.teacher_logits, CASE.spans, labels=CASE.labels).loss


@pytest.mark.parametrize("options", options_of(*KINDS), ids=name_of)
def test_nothing_is_saved_and_nothing_is_trained(options: dict[str, object]) -> None:
    loss = XTokenLoss(CASE.mapping, **options)  # type: ignore[arg-type]
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []
    assert all(not buffer.is_floating_point() or buffer.dtype == torch.float64 for buffer in loss.buffers())
    loss.load_state_dict({})


def test_what_is_learnt_and_what_runs_along_is_saved() -> None:
    learnt = XTokenLoss(CASE.mapping, "p-kl", merge="mean", learn_w=True)
    assert set(learnt.state_dict()) == {"links.scores"}
    dynamic = XTokenLoss(CASE.mapping, "gold", scale="dynamic")
    assert set(dynamic.state_dict()) == {"scale.sums", "scale.averages", "scale.factor"}
    many = MultiTeacherLoss([learnt, dynamic, XTokenLoss(CASE.mapping, "c-kl")])
    assert len(many.state_dict()) == 4
    assert list(many.parameters()) == list(learnt.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_another_dtype_leaves_the_index_arrays_and_the_value_alone(kind: str, dtype: torch.dtype) -> None:
    loss = XTokenLoss(CASE.mapping, kind, scale="dynamic")
    before = value(loss)
    integers = [buffer.dtype for buffer in loss.buffers() if not buffer.is_floating_point()]
    assert integers
    loss.to(dtype)
    assert [buffer.dtype for buffer in loss.buffers() if not buffer.is_floating_point()] == integers
    torch.testing.assert_close(value(loss), before)


def test_weights_of_links_outlive_half_precision() -> None:
    # `model.bfloat16()` over everything must not round W's weights.
    exact = XTokenLoss(CASE.mapping, "p-kl", merge="mean")
    before = value(exact)
    torch.testing.assert_close(value(exact.bfloat16()), before, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_index_arrays_move_with_the_module(kind: str) -> None:
    loss = XTokenLoss(CASE.mapping, kind).to("meta")
    assert all(buffer.device.type == "meta" for buffer in loss.buffers())
    objective = loss.objective()
    assert objective.student_silent.device.type == "meta"
    assert all(
        leaf.device.type == "meta"
        for leaf in tree_leaves([term.table for term in objective.terms])
        if hasattr(leaf, "device")
    )


@pytest.mark.parametrize("options", options_of(*KINDS), ids=name_of)
def test_copies_and_pickles_give_the_same_loss(options: dict[str, object]) -> None:
    loss = XTokenLoss(CASE.mapping, temperature=2.0, **options)  # type: ignore[arg-type]
    before = value(loss)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(other) == repr(loss)
        assert torch.equal(value(other), before)


def test_copies_of_a_learnt_w_learn_by_themselves() -> None:
    loss = XTokenLoss(CASE.mapping, "p-kl", merge="mean", learn_w=True, scale="dynamic")
    before = value(loss).detach()
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(value(other), before)
        with torch.no_grad():
            next(other.parameters()).add_(torch.arange(len(loss.mapping.matrix.data)))
        assert not torch.equal(value(other), before)
        assert torch.equal(value(loss), before)


def test_a_loss_inside_of_a_model_is_not_in_its_checkpoint() -> None:
    model = torch.nn.Linear(2, 2)
    model.loss = XTokenLoss(CASE.mapping, "c-kl")
    assert set(model.state_dict()) == {"weight", "bias"}
    model.load_state_dict(torch.nn.Linear(2, 2).state_dict())


def test_training_and_evaluation_are_the_same_and_leave_no_trace() -> None:
    for kind in KINDS:
        loss = XTokenLoss(CASE.mapping, kind)
        before = value(loss)
        assert torch.equal(value(loss.eval()), before)
        assert torch.equal(value(loss.train()), before)
    with torch.inference_mode():
        assert torch.equal(value(loss), before)


def test_a_call_changes_none_of_its_inputs() -> None:
    states, weight = torch.randn(*CASE.student_logits.shape[:2], 3), torch.randn(CASE.student_logits.shape[2], 3)
    inputs = [CASE.student_logits, CASE.teacher_logits, CASE.labels, states, weight]
    before = [one.clone() for one in inputs]
    for options in options_of(*KINDS):
        loss = XTokenLoss(CASE.mapping, temperature=2.0, **options)
        value(loss)
        leaf = CASE.student_logits.detach().requires_grad_()
        loss(leaf, CASE.teacher_logits, CASE.spans, labels=CASE.labels).loss.backward()
        loss(Hidden(states, weight, softcap=2.0), CASE.teacher_logits, CASE.spans, labels=CASE.labels)
    assert all(torch.equal(one, kept) for one, kept in zip(inputs, before, strict=True))


def test_importing_the_package_of_the_losses_costs_nothing() -> None:
    code = "import sys, xtoken_align.losses; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not set(done.stdout.split()) & {"torch", "numpy", "scipy", "transformers"}


def test_a_loss_on_another_device_than_the_logits_says_so() -> None:
    case = case_of(0)
    with pytest.raises(OptionError, match="move it there once"):
        XTokenLoss(case.mapping, "partition-kl")(
            case.student_logits.to("meta"), case.teacher_logits.to("meta"), case.spans
        )


def test_a_loss_prints_one_line() -> None:
    names = f"{CASE.mapping.student.name} <- {CASE.mapping.teacher.name}"
    assert repr(XTokenLoss(CASE.mapping, "c-kl")) == f"XTokenLoss(c-kl, {names})"
    other = XTokenLoss(CASE.mapping, "p-kl", top_k=8, implementation="reference")
    assert repr(other) == f"XTokenLoss(p-kl, {names}, top_k=8, implementation='reference')"


def test_an_implementation_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(OptionError, match="implementation must be one of auto, reference, cpu, triton"):
        XTokenLoss(CASE.mapping, "c-kl", implementation="gpu")
    logits = CASE.student_logits.to("meta"), CASE.teacher_logits.to("meta")
    with pytest.raises(OptionError, match="implementation='cpu' needs logits on the CPU, but they are on meta"):
        XTokenLoss(CASE.mapping, "partition-kl", implementation="cpu").to("meta")(*logits, CASE.spans)


def test_a_plan_that_is_made_ahead_is_taken_once_and_by_its_batch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, threads = XTokenLoss(CASE.mapping, "c-kl"), []
    plans = loss._plan_of

    def noted(*args: Any, **options: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return plans(*args, **options)

    monkeypatch.setattr(loss, "_plan_of", noted)
    truth = value(loss)
    assert threads == [True]
    loss.plan_ahead(CASE.spans, CASE.labels)
    assert torch.equal(value(loss), truth)
    assert threads == [True, False]
    # It was taken, so that the next call plans anew; and so it does with other labels than those that were planned.
    assert torch.equal(value(loss), truth)
    loss.plan_ahead(CASE.spans)
    assert torch.equal(value(loss), truth)
    # One plan may still be at work on the other thread.
    assert threads.count(True) == 3
    # What is wrong is told by the call.
    loss.plan_ahead(CASE.spans, CASE.labels[:, 1:])
    with pytest.raises(OptionError, match="labels must have shape"):
        loss(CASE.student_logits, CASE.teacher_logits, CASE.spans, labels=CASE.labels[:, 1:])


def test_a_plan_of_labels_that_were_changed_since_or_count_no_changes_is_not_taken() -> None:
    loss, labels = XTokenLoss(CASE.mapping, "c-kl"), CASE.labels.clone()
    loss.plan_ahead(CASE.spans, labels)
    labels[:] = -100
    unlabelled = loss(CASE.student_logits, CASE.teacher_logits, CASE.spans, labels=labels)
    assert unlabelled.ce == 0
    with torch.inference_mode():
        counted = CASE.labels.clone()
        loss.plan_ahead(CASE.spans, counted)
        counted[:] = -100
        again = loss(CASE.student_logits, CASE.teacher_logits, CASE.spans, labels=counted)
    assert torch.equal(again.loss, unlabelled.loss.detach())
