"""From hidden states the loss is that of the logits which the head would make, without their ever being whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_calls import BY, KINDS, assert_same, called, case_of, name_of, options_of
from random_batches import Case

from xtoken_align.losses import Hidden, Logits, XTokenLoss, plan

WIDTH = 6


def hidden(case: Case, side: str, dtype: torch.dtype = torch.float64, **options: Any) -> Hidden:
    """Random hidden states and a head for one side of a case."""
    rows, columns, vocabulary = getattr(case, f"{side}_logits").shape
    source = torch.Generator().manual_seed(len(side))
    parts = [torch.randn(shape, generator=source) for shape in ((rows, columns, WIDTH), (vocabulary, WIDTH))]
    states, weight = (part.to(dtype).requires_grad_() for part in parts)
    bias = torch.randn(vocabulary, generator=source).to(dtype).requires_grad_()
    return Hidden(states, weight, bias, **options)


def logits_of(side: Hidden) -> torch.Tensor:
    """z = cap * tanh(scale * (h W^T + b) / cap)."""
    made = side.states @ side.weight.T
    made = (made if side.bias is None else made + side.bias) * side.scale
    return made if side.softcap is None else side.softcap * torch.tanh(made / side.softcap)


def inputs_of(side: Hidden) -> list[torch.Tensor]:
    return [one for one in (side.states, side.weight, side.bias) if one is not None and one.requires_grad]


@pytest.mark.parametrize("options", [*BY, *(one for kind in KINDS for one in options_of(kind)[:2])], ids=name_of)
def test_the_fused_loss_is_that_of_the_logits(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "WIDTH", 1)
    monkeypatch.setattr(plan, "CPU", replace(plan.CPU, hidden=5))
    heads = ({"scale": 0.7, "softcap": 3.0}, {"scale": 0.3}, {"softcap": 1.5}, {})
    for number, head in enumerate(heads):
        case = case_of(number + 4)
        student, teacher = hidden(case, "student", **head), hidden(case, "teacher", **heads[number - 1])
        loss = XTokenLoss(case.mapping, temperature=2.0, **options)
        fused = loss(student, teacher, case.spans, labels=case.labels)
        whole = loss(Logits(logits_of(student)), Logits(logits_of(teacher)), case.spans, labels=case.labels)
        assert_same(called(fused, inputs_of(student)), called(whole, inputs_of(student)), rtol=1e-9, atol=1e-11)
        assert fused.metrics.keys() == whole.metrics.keys()
        for name, (numerator, denominator) in whole.metrics.items():
            torch.testing.assert_close(fused.metrics[name], (numerator, denominator))


@pytest.mark.parametrize(
    "trained", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
def test_only_what_is_trained_gets_a_gradient(trained: tuple[bool, bool, bool]) -> None:
    case = case_of(4)
    student = hidden(case, "student")
    parts = [student.states, student.weight, student.bias]
    for part, wanted in zip(parts, trained, strict=True):
        part.requires_grad_(wanted)
    loss = XTokenLoss(case.mapping, "partition-kl")
    out = loss(student, case.teacher_logits, case.spans, labels=case.labels)
    out.loss.backward()
    assert tuple(part.grad is not None for part in parts) == trained
    whole = loss(logits_of(student), case.teacher_logits, case.spans, labels=case.labels)
    for part, gradient in zip(inputs_of(student), torch.autograd.grad(whole.loss, inputs_of(student)), strict=True):
        torch.testing.assert_close(part.grad, gradient)


def test_without_a_graph_there_is_none() -> None:
    case = case_of(4)
    with torch.no_grad():
        assert not XTokenLoss(case.mapping, "c-kl")(
            hidden(case, "student"), case.teacher_logits, case.spans
        ).loss.requires_grad


def test_a_head_without_a_bias_and_tied_weights_add_up() -> None:
    case = case_of(4)
    student = hidden(case, "student")
    tied = student.weight
    embedded = torch.nn.functional.embedding(torch.from_numpy(case.spans.student_ids), tied)
    loss = XTokenLoss(case.mapping, "p-kl")
    gradients = []
    for form in (Hidden(embedded, tied), embedded @ tied.T):
        out = loss(form, case.teacher_logits, case.spans, labels=case.labels)
        gradients.append(torch.autograd.grad(out.loss, tied, retain_graph=True)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["partition-kl", "p-kl", "c-kl", "alm"])
def test_in_half_precision_the_error_is_that_of_the_plain_form(kind: str, dtype: torch.dtype) -> None:
    # One batch's rounding is a matter of luck, that of several is not.
    errors = torch.zeros(2, dtype=torch.float64)
    for seed in (2, 4, 6, 7):
        case = case_of(seed)
        student, teacher = hidden(case, "student", dtype), hidden(case, "teacher", dtype)
        loss = XTokenLoss(case.mapping, kind)
        exact = Hidden(*(part.detach().double().requires_grad_() for part in inputs_of(student)))
        teachers = logits_of(teacher).detach()
        truth = called(loss(logits_of(exact), teachers.double(), case.spans, labels=case.labels), inputs_of(exact))
        fused = called(loss(student, teacher, case.spans, labels=case.labels), inputs_of(student))
        plain = called(loss(logits_of(student), teachers, case.spans, labels=case.labels), inputs_of(student))
        assert [one.dtype for one in fused.gradients] == [dtype] * 3
        for number, one in enumerate((fused, plain)):
            for made, right in zip((one.loss, *one.gradients), (truth.loss, *truth.gradients), strict=True):
                errors[number] += ((made.double() - right).norm() / right.norm()) ** 2
    assert errors[0].sqrt() <= 1.25 * errors[1].sqrt() + 1e-6, errors
    assert errors[0].sqrt() < 20 * torch.finfo(dtype).eps


def test_under_autocast_inputs_keep_their_dtype_and_the_loss_is_float32() -> None:
    case = case_of(4)
    student = hidden(case, "student", torch.float32)
    loss = XTokenLoss(case.mapping, "c-kl")
    forms = {
        "logits": logits_of(student).detach().requires_grad_(),
        "half logits": logits_of(student).detach().bfloat16().requires_grad_(),
        "states": student,
        "half states": Hidden(student.states.detach().bfloat16().requires_grad_(), student.weight, student.bias),
    }
    truth = loss(forms["logits"], case.teacher_logits.float(), case.spans, labels=case.labels)
    for form in forms.values():
        inputs = inputs_of(form) if isinstance(form, Hidden) else [form]
        with torch.autocast("cpu", torch.bfloat16):
            out = loss(form, case.teacher_logits.float(), case.spans, labels=case.labels)
        assert out.loss.dtype == out.kd.dtype == torch.float32
        torch.testing.assert_close(out.loss, truth.loss, rtol=2e-2, atol=0)
        gradients = torch.autograd.grad(out.loss, inputs)
        assert [one.dtype for one in gradients] == [one.dtype for one in inputs]
        assert all(one.abs().max() > 0 for one in gradients)


def test_logits_under_autocast_are_computed_in_float32() -> None:
    case = case_of(4, dtype=torch.float32)
    for kind in KINDS:
        loss = XTokenLoss(case.mapping, kind)
        outside = loss(case.student_logits, case.teacher_logits, case.spans, labels=case.labels)
        with torch.autocast("cpu", torch.bfloat16):
            inside = loss(case.student_logits, case.teacher_logits, case.spans, labels=case.labels)
        assert torch.equal(inside.loss, outside.loss)


def test_tiny_gradients_of_half_precision_states_outlive_the_loss_scale() -> None:
    # Below 3e-8 all is 0 in float16; scaled by 65536 it must be there.
    case = case_of(4)
    student = hidden(case, "student", torch.float16)
    loss = XTokenLoss(case.mapping, "partition-kl")
    chunks = 10**9
    exact = Hidden(*(part.detach().double().requires_grad_() for part in inputs_of(student)))
    truth = called(loss(exact, case.teacher_logits, case.spans, num_chunks_in_batch=chunks), inputs_of(exact))
    out = loss(student, case.teacher_logits.half(), case.spans, num_chunks_in_batch=chunks)
    (out.loss * 65536).backward()
    for part, right in zip(inputs_of(student), truth.gradients, strict=True):
        assert right.abs().max() < 1e-8
        assert (part.grad.double() / 65536 - right).abs().max() < 0.02 * right.abs().max()


def test_gradients_of_float16_logits_outlive_the_loss_scale() -> None:
    case = case_of(4)
    student = case.student_logits.half().requires_grad_()
    loss = XTokenLoss(case.mapping, "partition-kl")
    (loss(student, case.teacher_logits.half(), case.spans, num_chunks_in_batch=10**9).loss * 65536).backward()
    exact = student.detach().double().requires_grad_()
    loss(exact, case.teacher_logits.half().double(), case.spans, num_chunks_in_batch=10**9).loss.backward()
    assert (student.grad.double() / 65536 - exact.grad).abs().max() < 1e-3 * exact.grad.abs().max()


def test_gradients_accumulate_over_calls_and_scale_with_what_follows() -> None:
    case = case_of(4)
    student = hidden(case, "student")
    loss = XTokenLoss(case.mapping, "gold")
    once = called(loss(student, case.teacher_logits, case.spans), inputs_of(student))
    for factor in (0.5, 2.5):
        (factor * loss(student, case.teacher_logits, case.spans).loss).backward()
    for part, gradient in zip(inputs_of(student), once.gradients, strict=True):
        torch.testing.assert_close(part.grad, 3 * gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_that_was_kept_gives_the_same_gradients_again(kind: str) -> None:
    case = case_of(4)
    forms: list[Any] = [case.student_logits.clone().requires_grad_(), hidden(case, "student")]
    forms.append(case.student_logits.bfloat16().requires_grad_())
    for student in forms:
        inputs = inputs_of(student) if isinstance(student, Hidden) else [student]
        loss = XTokenLoss(case.mapping, kind)
        once = called(loss(student, case.teacher_logits, case.spans, labels=case.labels), inputs)
        out = loss(student, case.teacher_logits, case.spans, labels=case.labels)
        for factor in (1.0, 1.0, -2.0):
            again = torch.autograd.grad(out.loss * factor, inputs, retain_graph=True)
            for gradient, first in zip(again, once.gradients, strict=True):
                torch.testing.assert_close(gradient, factor * first)
            for gradient in again:
                # What was handed out is the caller's own.
                gradient.zero_()
        (3.0 * out.loss).backward()
        for one, first in zip(inputs, once.gradients, strict=True):
            torch.testing.assert_close(one.grad, 3 * first)
