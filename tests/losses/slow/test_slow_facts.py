"""The design's table of facts, from the slow losses."""

from __future__ import annotations

import pytest
import torch
from slow_loss import slow_loss
from small_vocabs import make_vocab
from tiny import Tiny

from xtoken_align import align_ids, build
from xtoken_align.vocab.kinds import Kind

P, Q = [0.3, 0.2, 0.0, 0.5], [0.5, 0.4, 0.1]
"""The teacher's and the student's probabilities of a, b, and of what the other does not have."""


def common(**options: object) -> tuple[float, torch.Tensor]:
    pair = Tiny(["a", "b", "x"], ["a", "b", "c", "y"])
    student, teacher = pair.logits("student", [Q, Q]), pair.logits("teacher", [P, P])
    out = slow_loss(pair.mapping, student, teacher, pair.spans([0], [0]), kind="gold", normalize="none", **options)
    out.loss.backward()
    return out.kd.item(), student.grad[0, 0]


def test_a_row_of_three_pieces_has_the_papers_weights() -> None:
    mapping = build(student=make_vocab(["123"]), teacher=make_vocab(["1", "2", "3"], name="teacher"))
    assert mapping.W.toarray()[0].tolist() == pytest.approx([0.9009, 0.0901, 0.0090], abs=5e-5)


def test_an_unnormalised_common_kl_is_negative() -> None:
    value, _ = common(uncommon_top_k=0)
    assert value == pytest.approx(-0.2919, abs=5e-5)


def test_an_unnormalised_common_kl_pushes_uncommon_logits_down_by_the_teachers_common_mass() -> None:
    _, slope = common(uncommon_top_k=0)
    assert slope[2].item() == pytest.approx(0.1 * 0.5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("kind", "merge"),
    [
        *((kind, "first") for kind in ("partition-kl", "c-kl", "p-kl", "h-kl", "gold", "uld", "alm")),
        *((kind, "mean") for kind in ("partition-kl", "p-kl", "h-kl", "gold", "uld")),
    ],
)
def test_equal_logits_under_the_identity_mapping_have_loss_and_gradient_zero(
    kind: str, temperature: float, merge: str
) -> None:
    vocab = make_vocab(
        ["a", "b", "ab", (b"", Kind.HOLE), "ba", (b"<s>", Kind.SPECIAL), (b"<unused1>", Kind.RESERVED)],
        roles={"bos": [5]},
    )
    mapping = build(student=vocab, teacher=vocab)
    spans = align_ids([[5, 0, 2, 4]], [[5, 0, 2, 4]], student=vocab, teacher=vocab)
    logits = torch.randn(1, 4, len(vocab), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    student = logits.clone().requires_grad_()
    out = slow_loss(mapping, student, logits, spans, kind=kind, temperature=temperature, merge=merge)
    out.loss.backward()
    assert len(out.chunk_kd) == 3
    # ALM is a cross-entropy: it has no slope there, but is not 0.
    assert (out.kd.item() > 0.01) if kind == "alm" else (abs(out.kd.item()) < 1e-12)
    assert student.grad.abs().max() < 1e-12
