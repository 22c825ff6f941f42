"""Several teachers are a weighted sum with one cross-entropy; one with the student's tokenizer is an ordinary KL."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loss_calls import case_of
from small_vocabs import make_vocab

from xtoken_align import Mapping, Spans, align_ids, build
from xtoken_align.errors import OptionError
from xtoken_align.losses import Hidden, MultiTeacherLoss, XTokenLoss
from xtoken_align.vocab.kinds import Kind

CASE = case_of(4)


def own_tokenizer() -> tuple[Mapping, Spans, torch.Tensor]:
    """The case's student as its own teacher."""
    spans = CASE.spans
    own = align_ids(
        spans.student_ids,
        spans.student_ids,
        student=CASE.student,
        teacher=CASE.student,
        student_segments=spans.student_segments,
        teacher_segments=spans.student_segments,
    )
    logits = torch.randn(CASE.student_logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return build(student=CASE.student, teacher=CASE.student), own, logits


@pytest.mark.parametrize("weights", [None, [0.2, 0.8], [1.0, 0.0]])
@pytest.mark.parametrize("hidden", [False, True])
def test_the_loss_is_the_sum_by_hand(weights: list[float] | None, hidden: bool) -> None:
    mapping, spans, teacher = own_tokenizer()
    settings: list[tuple[Mapping, dict[str, Any], torch.Tensor, Spans]] = [
        (CASE.mapping, {"kind": "c-kl", "temperature": 2.0}, CASE.teacher_logits, CASE.spans),
        (mapping, {"kind": "partition-kl", "kd_weight": 0.5}, teacher, spans),
    ]
    losses = [XTokenLoss(one, ce_weight=3.0, **options) for one, options, _, _ in settings]
    alone = [XTokenLoss(one, **options) for one, options, _, _ in settings]
    many = MultiTeacherLoss(losses, weights)
    alphas = weights or [0.5, 0.5]
    if hidden:
        source = torch.Generator().manual_seed(0)
        states = torch.randn(*CASE.student_logits.shape[:2], 4, generator=source, dtype=torch.float64)
        head = torch.randn(CASE.student_logits.shape[2], 4, generator=source, dtype=torch.float64)
        leaves = [states.requires_grad_(), head.requires_grad_()]
        student: Any = Hidden(*leaves)
    else:
        leaves = [CASE.student_logits.clone().requires_grad_()]
        student = leaves[0]
    out = many(student, [CASE.teacher_logits, teacher], [CASE.spans, spans], labels=CASE.labels)
    parts = [loss(student, t, s) for loss, (_, _, t, s) in zip(alone, settings, strict=True)]
    ce = XTokenLoss(CASE.mapping, "uld", kd_weight=0.0)(student, CASE.teacher_logits, CASE.spans, labels=CASE.labels)
    by_hand = alphas[0] * parts[0].loss + alphas[1] * parts[1].loss + 3 * ce.loss
    torch.testing.assert_close(out.loss, by_hand)
    torch.testing.assert_close(out.kd, alphas[0] * parts[0].kd + alphas[1] * parts[1].kd)
    torch.testing.assert_close(out.ce, ce.ce)
    for made, right in zip(torch.autograd.grad(out.loss, leaves), torch.autograd.grad(by_hand, leaves), strict=True):
        torch.testing.assert_close(made, right, rtol=1e-9, atol=1e-12)
    assert set(out.metrics) >= {"kd", "ce", "kd/0", "kd/1", "agreement/0", "misfits/1", "scale/1"}
    assert "ce/1" not in out.metrics
    for number, part in enumerate(parts):
        torch.testing.assert_close(out.metrics[f"kd/{number}"], part.metrics["kd"])
    numerator, denominator = out.metrics["ce"]
    torch.testing.assert_close(numerator / denominator, out.ce)


def test_divisors_are_given_by_teacher() -> None:
    mapping, spans, teacher = own_tokenizer()
    many = MultiTeacherLoss([XTokenLoss(CASE.mapping, "p-kl"), XTokenLoss(mapping, "p-kl")], [1.0, 1.0])
    given = (CASE.student_logits, [CASE.teacher_logits, teacher], [CASE.spans, spans])
    kds = [
        loss(CASE.student_logits, t, s).metrics["kd"][0]
        for loss, t, s in zip(many.losses, given[1], given[2], strict=True)
    ]
    out = many(*given, labels=CASE.labels, num_chunks_in_batch=[100, 7], num_items_in_batch=50)
    torch.testing.assert_close(out.kd, kds[0] / 100 + kds[1] / 7)
    torch.testing.assert_close(out.ce, out.metrics["ce"][0] / 50)
    ids = [torch.from_numpy(CASE.spans.teacher_ids), None]
    again = many(*given, teacher_ids=ids, num_chunks_in_batch=[100, 7])
    torch.testing.assert_close(again.kd, out.kd)
    with pytest.raises(OptionError, match="teacher_ids must be the ids that were aligned"):
        many(*given, teacher_ids=[torch.zeros_like(ids[0]), None])


@pytest.mark.parametrize("merge", ["first", "mean"])
def test_a_teacher_with_the_students_tokenizer_is_an_ordinary_kl(merge: str) -> None:
    vocab = make_vocab(["a", "b", "ab", "ba", "12", "1", (b"<s>", Kind.SPECIAL)], roles={"bos": [6]})
    ids = [[6, 0, 2, 3, 4], [6, 5, 1, 0, 0]]
    spans = align_ids(ids, ids, student=vocab, teacher=vocab)
    loss = XTokenLoss(build(student=vocab, teacher=vocab), "p-kl", merge=merge)
    source = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 7, generator=source, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    labels = torch.tensor(ids)
    out = MultiTeacherLoss([loss])(student, [teacher], [spans], labels=labels)
    log_q, log_p = (side[:, :-1].flatten(0, 1).log_softmax(1) for side in (student, teacher))
    kl = torch.nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    plain = kl + torch.nn.functional.nll_loss(log_q, labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, plain, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(out.loss, student)[0], torch.autograd.grad(plain, student)[0], rtol=1e-9, atol=1e-12
    )


def test_peers_forms_are_weighted_too() -> None:
    losses = [XTokenLoss(CASE.mapping, "gold", compat="trl"), XTokenLoss(CASE.mapping, "alm", compat="tokenkit")]
    given = (CASE.student_logits, CASE.teacher_logits, CASE.spans)
    out = MultiTeacherLoss(losses, [0.2, 0.8])(given[0], [given[1]] * 2, [given[2]] * 2)
    kds = [loss(*given).kd for loss in losses]
    torch.testing.assert_close(out.loss, 0.2 * kds[0] + 0.8 * kds[1])
    torch.testing.assert_close(out.kd, out.loss)
