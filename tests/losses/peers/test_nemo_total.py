"""The sum of distillation and cross-entropy."""

from __future__ import annotations

import pytest
import slow_peers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_batches import Batch, batches
from peer_cases import agrees

from xtoken_align.errors import OptionError
from xtoken_align.losses.peers.nemo_rl import total


@settings(max_examples=40)
@given(batches(), st.sampled_from([0.0, 0.4, 2.0]), st.sampled_from([0.0, 0.3, 1.0]))
def test_the_fixed_sum_is_its_formula(batch: Batch, kl_weight: float, ce_scale: float) -> None:
    kd = batch.student.square().sum()
    masks = {"token_mask": batch.token_mask, "sample_mask": batch.sample_mask}
    out = total(kd, batch.student, batch.student_ids, **masks, kl_loss_weight=kl_weight, ce_loss_scale=ce_scale)
    counted = (batch.token_mask & batch.sample_mask.unsqueeze(1)).tolist()
    ce = slow_peers.cross_entropy(batch.student, batch.student_ids.tolist(), counted, 1e-8)
    loss = kl_weight * kd + ce_scale * ce
    assert agrees(out.loss.detach(), loss.detach(), torch.float64)
    slopes = [torch.autograd.grad(one, batch.student, retain_graph=True)[0] for one in (out.loss, loss)]
    assert agrees(*slopes, torch.float64)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_dynamic_scale_is_a_constant_of_the_batch(sign: float) -> None:
    logits = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    kd = sign * logits.square().sum()
    out = total(kd, logits, torch.tensor([[0, 1, 2]]), dynamic_loss_scaling=True, kl_loss_weight=9.0)
    assert float(out.loss.detach()) == pytest.approx(float(out.ce) * (1 + sign))
    ce = total(kd, logits, torch.tensor([[0, 1, 2]]), kl_loss_weight=0.0).loss
    slopes = [torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (out.loss, out.kl_scale * kd + ce)]
    assert agrees(*slopes, torch.float64)


def test_the_dynamic_scale_of_a_distillation_of_0_is_1() -> None:
    logits = torch.randn(1, 3, 4, requires_grad=True)
    out = total(logits.sum() * 0, logits, torch.tensor([[0, 1, 2]]), dynamic_loss_scaling=True)
    assert float(out.kl_scale) == 1
    assert bool(torch.autograd.grad(out.loss, logits)[0].isfinite().all())


def test_without_a_label_the_cross_entropy_is_0() -> None:
    logits = torch.randn(1, 3, 4, requires_grad=True)
    out = total(logits.sum(), logits, torch.tensor([[0, 1, 2]]), token_mask=torch.tensor([[1, 0, 0]]))
    assert float(out.ce) == 0


def test_weights_and_shapes_are_checked() -> None:
    logits, ids = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])
    with pytest.raises(OptionError, match="kl_loss_weight must be a finite number of at least 0"):
        total(torch.tensor(1.0), logits, ids, kl_loss_weight=-1.0)
    with pytest.raises(OptionError, match="kd must be a scalar"):
        total(torch.ones(2), logits, ids)
    with pytest.raises(OptionError, match="token_mask must have shape"):
        total(torch.tensor(1.0), logits, ids, token_mask=torch.ones(1, 2))
