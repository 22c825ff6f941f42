"""The dynamic scale: running averages of sums, one update per optimiser step, bounds, and what is saved of it."""

from __future__ import annotations

import copy

import pytest
import torch
from loss_calls import case_of

from xtoken_align.losses import DynamicScale, MultiTeacherLoss, XTokenLoss
from xtoken_align.losses.scale import HIGHEST, LOWEST, MOMENTUM

CASE = case_of(4)


def stepped(*calls: tuple[tuple[float, float], tuple[float, float]], scale: DynamicScale | None = None) -> DynamicScale:
    """A scale that has seen (KD, chunks), (CE, labels) of some calls, and one step."""
    scale = DynamicScale() if scale is None else scale
    for kd, ce in calls:
        scale.add(*(tuple(torch.tensor(part) for part in pair) for pair in (kd, ce)))  # type: ignore[misc]
    scale.step()
    return scale


def call(loss: XTokenLoss, factor: float = 1.0) -> tuple[float, float, float, float]:
    out = loss(CASE.student_logits * factor, CASE.teacher_logits, CASE.spans, labels=CASE.labels)
    return out.loss.item(), out.kd.item(), out.ce.item(), out.metrics["scale"][0].item()


def test_the_first_step_takes_ce_by_kd_of_the_sums() -> None:
    # Two calls of unequal size: the sums are divided, not the calls' means averaged.
    scale = stepped(((3.0, 1.0), (8.0, 4.0)), ((1.0, 3.0), (4.0, 4.0)))
    assert scale.factor.item() == pytest.approx((12 / 8) / (4 / 4))
    assert scale.sums.tolist() == [0, 0, 0, 0]


def test_averages_decay_and_begin_without_a_bias() -> None:
    scale, averages = DynamicScale(), [0.0, 0.0]
    for kd, ce in ((1.0, 2.0), (2.0, 1.0), (0.5, 4.0)):
        averages = [MOMENTUM * old + (1 - MOMENTUM) * new for old, new in zip(averages, (kd, ce), strict=True)]
        stepped(((kd, 1.0), (ce, 1.0)), scale=scale)
        assert scale.factor.item() == pytest.approx(averages[1] / averages[0])
    assert scale.averages[2].item() == pytest.approx(1 - MOMENTUM**3)
    assert MOMENTUM == 0.9


@pytest.mark.parametrize(("kd", "ce", "expected"), [(1e-6, 1.0, HIGHEST), (1.0, 1e-6, LOWEST), (100.0, 1.0, LOWEST)])
def test_the_factor_is_clipped(kd: float, ce: float, expected: float) -> None:
    assert stepped(((kd, 1.0), (ce, 1.0))).factor.item() == expected
    assert (LOWEST, HIGHEST) == (0.1, 10.0)


def test_steps_without_chunks_or_labels_change_nothing() -> None:
    scale = stepped(((2.0, 1.0), (3.0, 1.0)))
    before = scale.factor.clone(), scale.averages.clone()
    for calls in ([], [((0.0, 0.0), (5.0, 2.0))], [((5.0, 2.0), (0.0, 0.0))]):
        stepped(*calls, scale=scale)
        assert torch.equal(scale.factor, before[0])
        assert torch.equal(scale.averages, before[1])
    # A divergence of 0 has nothing to be scaled to.
    assert stepped(((0.0, 3.0), (5.0, 2.0))).factor.item() == 1


def test_the_factor_multiplies_kd_alone_and_only_after_a_step() -> None:
    loss = XTokenLoss(CASE.mapping, "gold", scale="dynamic", kd_weight=0.5, ce_weight=2.0)
    value, kd, ce, factor = call(loss)
    assert factor == 1
    assert value == pytest.approx(0.5 * kd + 2 * ce)
    assert call(loss)[3] == 1
    loss.step_scale()
    value, again, _, factor = call(loss)
    assert again == pytest.approx(kd)
    assert factor == pytest.approx(ce / kd)
    assert LOWEST < factor < HIGHEST
    assert value == pytest.approx(0.5 * factor * kd + 2 * ce)
    student = CASE.student_logits.clone().requires_grad_()
    parts = [
        torch.autograd.grad(
            XTokenLoss(CASE.mapping, "gold", kd_weight=a, ce_weight=b)(
                student, CASE.teacher_logits, CASE.spans, labels=CASE.labels
            ).loss,
            student,
        )[0]
        for a, b in ((1.0, 0.0), (0.0, 1.0))
    ]
    out = loss(student, CASE.teacher_logits, CASE.spans, labels=CASE.labels)
    (slope,) = torch.autograd.grad(out.loss, student)
    torch.testing.assert_close(slope, 0.5 * factor * parts[0] + 2 * parts[1])


def test_the_accumulated_calls_of_a_step_are_one() -> None:
    loss = XTokenLoss(CASE.mapping, "gold", scale="dynamic")
    calls = [call(loss, factor)[1:3] for factor in (1.0, 0.2, 2.0)]
    loss.step_scale()
    kd, ce = (sum(part) / 3 for part in zip(*calls, strict=True))
    assert call(loss)[3] == pytest.approx(ce / kd)


def test_divisors_of_a_larger_batch_do_not_change_the_averages() -> None:
    plain, given = (XTokenLoss(CASE.mapping, "gold", scale="dynamic") for _ in range(2))
    call(plain)
    given(
        CASE.student_logits,
        CASE.teacher_logits,
        CASE.spans,
        labels=CASE.labels,
        num_chunks_in_batch=1000,
        num_items_in_batch=3,
    )
    for loss in (plain, given):
        loss.step_scale()
    assert plain.scale.factor.item() == pytest.approx(given.scale.factor.item())


def test_following_an_optimiser_steps_once_per_step() -> None:
    loss = XTokenLoss(CASE.mapping, "gold", scale="dynamic")
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    loss.follow(optimizer)
    seen = []
    for _ in range(3):
        for _ in range(2):
            out = loss(CASE.student_logits * weight, CASE.teacher_logits, CASE.spans, labels=CASE.labels)
            out.loss.backward()
            seen.append(out.metrics["scale"][0].item())
        optimizer.step()
    assert seen[0] == seen[1] == 1
    assert seen[2] == pytest.approx(seen[4])
    assert seen[2] == seen[3] != 1
    assert loss.scale.averages[2].item() == pytest.approx(1 - MOMENTUM**3)


def test_evaluation_leaves_no_trace() -> None:
    loss = XTokenLoss(CASE.mapping, "gold", scale="dynamic").eval()
    call(loss)
    assert loss.scale.sums.tolist() == [0, 0, 0, 0]
    call(loss.train())
    assert loss.scale.sums[1] > 0


def test_the_state_is_saved_between_steps_and_restored() -> None:
    loss = XTokenLoss(CASE.mapping, "gold", scale="dynamic")
    call(loss)
    loss.step_scale()
    call(loss, 0.5)
    other = XTokenLoss(CASE.mapping, "gold", scale="dynamic")
    other.load_state_dict(copy.deepcopy(loss.state_dict()))
    for one in (loss, other):
        one.step_scale()
    assert torch.equal(loss.scale.factor, other.scale.factor)
    assert call(other) == call(loss)


def test_a_fixed_scale_is_one_for_ever() -> None:
    loss = XTokenLoss(CASE.mapping, "gold")
    for _ in range(2):
        assert call(loss)[3] == 1
        loss.step_scale()
    assert loss.scale is None


def test_several_teachers_have_their_own_scales() -> None:
    losses = [XTokenLoss(CASE.mapping, kind, scale="dynamic") for kind in ("gold", "partition-kl")]
    many = MultiTeacherLoss(losses, [0.3, 0.7])
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    many.follow(optimizer)
    given = (CASE.student_logits, [CASE.teacher_logits] * 2, [CASE.spans] * 2)
    out = many(given[0] * weight, *given[1:], labels=CASE.labels)
    out.loss.backward()
    optimizer.step()
    first, second = (one.scale.factor.item() for one in losses)
    kds = [XTokenLoss(CASE.mapping, kind)(given[0], given[1][0], CASE.spans).kd for kind in ("gold", "partition-kl")]
    # The one cross-entropy is what both are scaled to.
    assert first == pytest.approx(out.ce.item() / kds[0].item())
    assert second == pytest.approx(out.ce.item() / kds[1].item())
