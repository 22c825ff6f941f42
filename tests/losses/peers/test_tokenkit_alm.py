"""tokenkit's ALM against loops, and at its edges."""

from __future__ import annotations

import pytest
import slow_peers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_batches import Batch, batches
from peer_cases import agrees

from xtoken_align.errors import OptionError
from xtoken_align.losses.peers.tokenkit import ALMLoss, alm, binary_ce


def fast(batch: Batch, **options) -> ALMLoss:
    return alm(
        batch.student,
        batch.teacher,
        batch.student_chunks,
        batch.teacher_chunks,
        student_ids=batch.student_ids,
        teacher_ids=batch.teacher_ids,
        pair_valid=batch.pair_valid,
        sample_mask=batch.sample_mask,
        **options,
    )


@settings(max_examples=40)
@given(batches(), st.sampled_from([1.0, 7.5, 100.0]), st.booleans())
def test_alm_is_its_formula(batch: Batch, tau: float, space: bool) -> None:
    ids = tuple(list(range(0, logits.shape[2], 2)) for logits in (batch.student, batch.teacher))
    names = {"student_space_ids": torch.tensor(ids[0]), "teacher_space_ids": torch.tensor(ids[1])}
    out = fast(batch, tau=tau, alm_mode="append_space" if space else "none", **(names if space else {}))
    slow = slow_peers.alm(batch, tau=tau, space_ids=ids if space else None)
    assert agrees(out.loss.detach(), slow.detach(), torch.float64)
    assert agrees(*(torch.autograd.grad(one, batch.student)[0] for one in (out.loss, slow)), torch.float64)


@given(st.floats(-200, 0), st.floats(-200, 0), st.sampled_from([1.0, 100.0]))
def test_binary_ce_is_least_where_student_and_teacher_agree(teacher: float, student: float, tau: float) -> None:
    levels = torch.tensor([teacher, student], dtype=torch.float64)
    same, other = binary_ce(levels[:1], levels[:1], tau=tau), binary_ce(levels[:1], levels[1:], tau=tau)
    assert bool((other >= same - 1e-12).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, -1e-8, -0.69, -0.70, -40.0, -2000.0])
def test_the_slope_is_finite_from_certain_to_impossible(dtype: torch.dtype, level: float) -> None:
    student = torch.tensor(level, dtype=dtype, requires_grad=True)
    value = binary_ce(torch.tensor(-0.5, dtype=dtype), student, tau=1.0)
    assert bool(value.isfinite())
    assert bool(torch.autograd.grad(value, student)[0].isfinite())


def test_without_a_valid_chunk_the_loss_is_0_and_so_is_its_slope() -> None:
    logits, ids = torch.randn(1, 3, 4, requires_grad=True), torch.tensor([[0, 1, 2]])
    chunks, spaces = torch.tensor([[0, -1, -1]]), torch.tensor([1])
    out = alm(
        logits,
        logits.detach(),
        chunks,
        chunks,
        student_ids=ids,
        teacher_ids=ids,
        alm_mode="append_space",
        student_space_ids=spaces,
        teacher_space_ids=spaces,
    )
    assert out.num_chunks == 0
    assert float(out.loss.detach()) == 0
    assert torch.equal(torch.autograd.grad(out.loss, logits)[0], torch.zeros_like(logits))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"tau": 0.0}, "tau must be a finite number above 0"),
        ({"alm_mode": "merge"}, "alm_mode must be one of none, append_space"),
        ({"alm_mode": "append_space"}, "needs student_space_ids and teacher_space_ids"),
        ({"student_ids": torch.tensor([[0]])}, "student_ids must have shape"),
    ],
)
def test_an_option_out_of_range_is_refused(changed: dict, sentence: str) -> None:
    logits, ids, chunks = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]), torch.tensor([[-1, 0, 1]])
    with pytest.raises(OptionError, match=sentence):
        alm(logits, logits, chunks, chunks, **{"student_ids": ids, "teacher_ids": ids, **changed})
