"""No NaN and no infinity comes out of logits that are huge, impossible, or not there, in values or gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_calls import KINDS, case_of, name_of, options_of, possible_labels
from random_batches import FEATURES, Case, random_case, top_k_of

from xtoken_align.losses import Hidden, LossOutput, TopK, XTokenLoss
from xtoken_align.vocab.kinds import Kind

Logits = tuple[torch.Tensor, torch.Tensor]

every_option = pytest.mark.parametrize("options", options_of(*KINDS), ids=name_of)


def signs(logits: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(logits.numel()).view(logits.shape) * 7919 % 13 < 6, 1e4, -1e4).to(logits)


def sprinkled(logits: torch.Tensor, share: int = 3) -> torch.Tensor:
    return logits.masked_fill(torch.arange(logits.numel()).view(logits.shape) * 7919 % share == 0, -torch.inf)


def rowless(logits: torch.Tensor) -> torch.Tensor:
    """Every second row is -inf throughout."""
    return logits.masked_fill(torch.arange(logits.shape[1])[None, :, None] % 2 == 0, -torch.inf)


HOW: dict[str, Callable[[torch.Tensor, torch.Tensor], Logits]] = {
    "huge": lambda z, t: (signs(z), signs(t.flip(-1))),
    "a huge student": lambda z, t: (1e4 * z, t),
    "a huge teacher": lambda z, t: (z, 1e4 * t),
    "an impossible student": lambda z, t: (sprinkled(z), t),
    "an impossible teacher": lambda z, t: (z, sprinkled(t)),
    "both impossible": lambda z, t: (sprinkled(1e3 * z), sprinkled(1e3 * t, 2)),
    "a student without rows": lambda z, t: (rowless(z), t),
    "a teacher without rows": lambda z, t: (z, rowless(t)),
    "neither has rows": lambda z, t: (rowless(z), rowless(t.flip(1))),
    "all is impossible": lambda z, t: (torch.full_like(z, -torch.inf), torch.full_like(t, -torch.inf)),
    "everything together": lambda z, t: (rowless(sprinkled(signs(z))), rowless(sprinkled(signs(t), 2))),
    "one token alone": lambda z, t: (only(z), only(t.flip(-1)).flip(-1)),
}


def only(logits: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(logits.shape[-1]) == 0, logits, -torch.inf)


def assert_finite(out: LossOutput, *gradients: torch.Tensor, may_be_negative: bool = False) -> None:
    for value in (out.loss, out.kd, out.ce, *gradients, *(part for pair in out.metrics.values() for part in pair)):
        assert value.isfinite().all()
    assert may_be_negative or out.kd >= 0


@pytest.mark.parametrize("how", HOW)
@every_option
def test_values_and_gradients_are_finite(options: dict[str, Any], how: str) -> None:
    # The paper's form charges what the student cannot say without a bound: it is no divergence.
    paper = options.get("normalize") == "none"
    for dtype, temperature, seed in ((torch.float32, 1.0, 2 * len(how)), (torch.bfloat16, 2.0, 2 * len(how) + 5)):
        case = case_of(seed % 26)
        student, teacher = (side.to(dtype) for side in HOW[how](case.student_logits, case.teacher_logits))
        student.requires_grad_()
        loss = XTokenLoss(case.mapping, temperature=temperature, **options)
        out = loss(student, teacher, case.spans, labels=finite_labels(case, student))
        (gradient,) = torch.autograd.grad(out.loss, student)
        assert_finite(out, gradient, may_be_negative=paper)
        # What cannot be chosen is not pushed.
        assert (gradient[student == -torch.inf] == 0).all()


def finite_labels(case: Case, student: torch.Tensor) -> torch.Tensor:
    labels = case.labels.clone()
    own = student[:, :-1].gather(2, labels[:, 1:].clamp_min(0).unsqueeze(2)).squeeze(2)
    labels[:, 1:][own == -torch.inf] = -100
    return labels


@pytest.mark.parametrize("kind", ["partition-kl", "c-kl", "p-kl"])
def test_a_teacher_of_which_little_or_nothing_is_known_is_no_trouble(kind: str) -> None:
    for seed, temperature in ((2, 1.0), (5, 2.0), (7, 1.0)):
        case = case_of(seed)
        known = top_k_of(case, 3)
        nothing = TopK(
            torch.full_like(known.ids, -1),
            torch.full_like(known.log_probs, -torch.inf),
            torch.ones_like(known.rest),
            known.width,
        )
        certain = TopK(known.ids[..., :1], torch.zeros_like(known.log_probs[..., :1]), 0 * known.rest, known.width)
        broken = TopK(nothing.ids, nothing.log_probs, 0 * known.rest, known.width)
        for teacher in (known, nothing, certain, broken):
            for student in (case.student_logits, sprinkled(1e3 * case.student_logits), rowless(case.student_logits)):
                leaf = student.float().requires_grad_()
                out = XTokenLoss(case.mapping, kind, temperature=temperature)(leaf, teacher, case.spans)
                assert_finite(out, *torch.autograd.grad(out.loss, leaf))


@every_option
def test_odd_vocabularies_are_no_trouble(options: dict[str, Any]) -> None:
    # One-sided rests, empty rows, unreached columns, no common token, an empty W.
    for seed in range(0, 2 * len(FEATURES), 3):
        case = case_of(seed)
        leaf = case.student_logits.float().requires_grad_()
        loss = XTokenLoss(case.mapping, **options)
        out = loss(leaf, case.teacher_logits.float(), case.spans, labels=case.labels)
        assert_finite(out, *torch.autograd.grad(out.loss, leaf), may_be_negative=options.get("normalize") == "none")


@every_option
def test_without_chunks_and_labels_the_loss_is_zero_with_gradients_of_zero(options: dict[str, Any]) -> None:
    case = case_of(FEATURES.index("no chunk"))
    rows, columns, vocabulary = case.student_logits.shape
    hidden = Hidden(torch.ones(rows, columns, 3), torch.ones(vocabulary, 3), torch.ones(vocabulary))
    for student in (case.student_logits.clone(), case.student_logits.bfloat16(), hidden):
        leaves = [student.states, student.weight, student.bias] if isinstance(student, Hidden) else [student]
        for leaf in leaves:
            leaf.grad = None
            leaf.requires_grad_()
        loss = XTokenLoss(case.mapping, **options)
        for labels in (None, torch.full((rows, columns), -100)):
            out = loss(student, case.teacher_logits, case.spans, labels=labels)
            out.loss.backward()
            assert out.loss.item() == out.kd.item() == out.ce.item() == 0
            assert_finite(out)
            for leaf in leaves:
                assert torch.equal(leaf.grad, torch.zeros_like(leaf))
                assert leaf.grad.dtype == leaf.dtype


@pytest.mark.parametrize("kind", KINDS)
def test_labels_without_chunks_and_chunks_without_labels_stand_alone(kind: str) -> None:
    case = case_of(FEATURES.index("no chunk"))
    labels = torch.from_numpy(case.spans.student_ids)
    student = case.student_logits.clone().requires_grad_()
    out = XTokenLoss(case.mapping, kind, ce_weight=2.0)(student, case.teacher_logits, case.spans, labels=labels)
    plain = torch.nn.functional.cross_entropy(student[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, 2 * plain)
    torch.testing.assert_close(
        torch.autograd.grad(out.loss, student)[0], 2 * torch.autograd.grad(plain, student)[0], rtol=1e-9, atol=1e-12
    )
    case = case_of(4)
    for labels in (None, torch.full_like(case.labels, -100)):
        out = XTokenLoss(case.mapping, kind)(case.student_logits, case.teacher_logits, case.spans, labels=labels)
        assert out.loss.item() == pytest.approx(out.kd.item(), rel=1e-12)
        assert out.kd > 0
        assert out.ce == 0


def test_an_impossible_label_costs_what_it_costs_in_torch() -> None:
    case = random_case(4, infinities=0.3)
    labels = case.labels
    assert (possible_labels(case) != case.labels).any()
    student = case.student_logits.clone().requires_grad_()
    out = XTokenLoss(case.mapping, "partition-kl", kd_weight=0.0)(
        student, case.teacher_logits, case.spans, labels=labels
    )
    plain = torch.nn.functional.cross_entropy(student[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert out.ce.item() == pytest.approx(plain.item(), nan_ok=True)
    assert not out.ce.isfinite()


@every_option
def test_of_padding_ids_neither_values_nor_gradients_are_read(options: dict[str, Any]) -> None:
    for seed in (5, 18):
        case = case_of(seed)
        padding = [torch.from_numpy(side.kinds >= Kind.PADDING) for side in (case.student, case.teacher)]
        assert all(one.any() for one in padding)
        losses = []
        for fill in (0.0, 1e4, -torch.inf):
            student, teacher = (
                torch.where(mask, fill, side).requires_grad_()
                for mask, side in zip(padding, (case.student_logits, case.teacher_logits), strict=True)
            )
            out = XTokenLoss(case.mapping, **options)(student, teacher, case.spans)
            (gradient,) = torch.autograd.grad(out.loss, student)
            assert (gradient[..., padding[0]] == 0).all()
            losses.append(torch.cat([out.loss.detach()[None], gradient.flatten()]))
        torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
        torch.testing.assert_close(losses[0], losses[2], rtol=0, atol=0)
