"""The design's table of facts, from the fast losses: the paper's numbers, its proposition, and what zero means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loss_calls import KINDS, name_of, options_of
from small_vocabs import make_vocab

from xtoken_align import align_ids, build
from xtoken_align.losses import XTokenLoss, gold, h_kl
from xtoken_align.vocab.kinds import Kind

P = torch.tensor([[0.3, 0.2, 0.0, 0.5]], dtype=torch.float64)
"""The teacher's probabilities of two common tokens, of one that it never says, and of one that the student has not."""
Q = torch.tensor([[0.5, 0.4, 0.1]], dtype=torch.float64)
"""The student's, of the two common tokens and of one that the teacher has not."""
PAIRS = torch.tensor([[0, 0], [1, 1]])


def random_rows(*widths: int, rows: int = 6, scale: float = 2.0) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(sum(widths))
    return [scale * torch.randn(rows, width, generator=source, dtype=torch.float64) for width in widths]


def slope_of(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logits)[0]


def test_p_kl_reads_the_decay_weights_of_a_row_of_three_pieces() -> None:
    student = make_vocab(["1", "123", (b"<s>", Kind.SPECIAL)], roles={"bos": [2]})
    teacher = make_vocab(["1", "2", "3", (b"<s>", Kind.SPECIAL)], name="teacher", roles={"bos": [3]})
    mapping = build(student=student, teacher=teacher)
    spans = align_ids([[2, 0]], [[3, 0]], student=student, teacher=teacher)
    never = torch.zeros(1, 2, 3, dtype=torch.float64).index_fill(2, torch.tensor([0, 2]), -torch.inf)
    for column, weight in enumerate((0.9009, 0.0901, 0.0090)):
        # A student that is certain of `123` and a teacher that is certain of one of its pieces.
        certain = torch.full((1, 2, 4), -torch.inf, dtype=torch.float64)
        certain[..., column] = 0.0
        kd = XTokenLoss(mapping, "p-kl", merge="mean")(never, certain, spans).kd
        assert (-kd).exp().item() == pytest.approx(weight, abs=5e-5)


def test_an_unnormalised_common_kl_is_negative_and_a_normalised_one_is_not() -> None:
    options: dict[str, Any] = {"pairs": PAIRS, "uncommon_top_k": 0}
    assert gold(Q.log(), P.log(), normalize="none", **options).item() == pytest.approx(-0.2919, abs=5e-5)
    assert gold(Q.log(), P.log(), normalize="rest", **options).item() > 0


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_papers_common_part_pushes_uncommon_logits_down_by_the_teachers_common_mass(temperature: float) -> None:
    student, teacher = random_rows(7, 5)
    student.requires_grad_()
    pairs = torch.tensor([[0, 1], [3, 0], [6, 4]])
    loss = h_kl(
        student,
        teacher,
        pairs,
        normalize="none",
        uncommon_top_k=0,
        temperature=temperature,
        reduction="sum",
    )
    slope = slope_of(loss, student)
    mass = (teacher / temperature).softmax(1)[:, pairs[:, 1]].sum(1, keepdim=True)
    probability = (student / temperature).softmax(1).detach()
    uncommon = [1, 2, 4, 5]
    # T^2 of the loss and 1 / T of the inner derivative.
    torch.testing.assert_close(slope[:, uncommon], temperature * (probability * mass)[:, uncommon], rtol=1e-12, atol=0)
    assert (slope[:, uncommon] > 0).all()


def test_a_rest_bucket_does_not_cure_suppression_where_the_teachers_rest_is_near_zero() -> None:
    student, teacher = random_rows(7, 5)
    teacher[:, [2, 3]] -= 40.0
    pairs = torch.tensor([[0, 1], [3, 0], [6, 4]])
    slopes = []
    for normalize in ("none", "rest"):
        leaf = student.clone().requires_grad_()
        slopes.append(slope_of(h_kl(leaf, teacher, pairs, normalize=normalize, uncommon_top_k=0), leaf))
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-9, atol=1e-12)
    # Where the teacher's rest is large, it does.
    teacher[:, [2, 3]] += 60.0
    leaf = student.clone().requires_grad_()
    rest = slope_of(h_kl(leaf, teacher, pairs, normalize="rest", uncommon_top_k=0), leaf)
    assert (rest[:, [1, 2, 4, 5]] < 0).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("options", [one for one in options_of(*KINDS) if one.get("normalize") != "none"], ids=name_of)
def test_equal_logits_under_the_identity_mapping_have_loss_and_gradient_zero(
    options: dict[str, Any], temperature: float
) -> None:
    vocab = make_vocab(
        ["a", "b", "ab", (b"", Kind.HOLE), "ba", (b"<s>", Kind.SPECIAL), (b"<unused1>", Kind.RESERVED)],
        roles={"bos": [5]},
    )
    ids = [[5, 0, 2, 4]]
    spans = align_ids(ids, ids, student=vocab, teacher=vocab)
    loss = XTokenLoss(build(student=vocab, teacher=vocab), temperature=temperature, **options)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        logits = random_rows(7, rows=4)[0][None].to(dtype)
        student = logits.clone().requires_grad_()
        out = loss(student, logits, spans)
        assert slope_of(out.loss, student).abs().max() < bound
        # ALM is a cross-entropy: it has no slope there, but is not 0.
        assert (out.kd > 0.01) if options["kind"] == "alm" else (0 <= out.kd < bound)
    assert len(spans.predictions()) == 3


@pytest.mark.parametrize("kind", ["partition-kl", "p-kl", "gold", "h-kl"])
def test_under_the_identity_mapping_the_loss_is_an_ordinary_kl(kind: str) -> None:
    vocab = make_vocab(["a", "b", "ab", "ba", (b"<s>", Kind.SPECIAL)], roles={"bos": [4]})
    ids = [[4, 0, 2, 3]]
    spans = align_ids(ids, ids, student=vocab, teacher=vocab)
    student, teacher = (side[None] for side in random_rows(5, 5, rows=4))
    out = XTokenLoss(build(student=vocab, teacher=vocab), kind)(student, teacher, spans)
    truth = torch.nn.functional.kl_div(
        student[0, :3].log_softmax(1), teacher[0, :3].log_softmax(1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(out.kd, truth, rtol=1e-9, atol=1e-12)
