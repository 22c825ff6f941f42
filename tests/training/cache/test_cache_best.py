"""The best tokens of logits: what they are, what the rest weighs, in every precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xtoken_align.training.cache import model as running
from xtoken_align.training.cache.model import best_tokens


def slow(logits: torch.Tensor, top_k: int, dead: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z = logits.double()
    z[:, dead] = -torch.inf
    log_probs = z.log_softmax(-1)
    found = log_probs.sort(dim=-1, descending=True).values
    return log_probs, found[:, :top_k], found[:, top_k:].exp().sum(-1)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.floats(0.1, 30.0), st.integers(0, 1000), st.data())
def test_the_best_tokens_are_those_of_a_table_of_all_probabilities(
    width: int, rows: int, scale: float, seed: int, data: st.DataObject
) -> None:
    logits = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale
    dead = data.draw(st.lists(st.integers(0, width - 1), max_size=width - 1, unique=True))
    top_k = data.draw(st.integers(1, width - len(dead)))
    ids, log_probs, rest = best_tokens(logits, top_k, dead=torch.tensor(dead, dtype=torch.int64))
    expected = slow(logits, top_k, dead)
    # Equal logits may come in any order.
    torch.testing.assert_close(expected[0].gather(1, ids.long()), expected[1], rtol=0, atol=0)
    assert all(len(set(row)) == top_k for row in ids.tolist())
    torch.testing.assert_close(log_probs.double(), expected[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rest.double(), expected[2], rtol=1e-4, atol=1e-37)


def test_a_rest_far_below_the_precision_of_one_is_kept() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0, 20.0]])
    rest = best_tokens(logits, 1)[2]
    assert rest.item() == pytest.approx(4.248e-18, rel=1e-3)


def test_without_a_rest_it_is_exactly_nothing() -> None:
    assert best_tokens(torch.randn(5, 7), 7)[2].tolist() == [0.0] * 5
    assert best_tokens(torch.randn(5, 7), 6, dead=torch.tensor([2]))[2].tolist() == [0.0] * 5


def test_dead_tokens_get_no_probability_however_large_their_logits() -> None:
    logits = torch.randn(4, 9)
    dead = torch.tensor([1, 8])
    plain = best_tokens(logits, 3, dead=dead)
    logits[:, dead] = 1000.0
    assert all(map(torch.equal, best_tokens(logits, 3, dead=dead), plain))
    assert not torch.isin(plain[0], dead).any()


def test_tokens_that_the_model_rules_out_are_unused_places() -> None:
    ids, log_probs, rest = best_tokens(torch.tensor([[0.0, -torch.inf, -torch.inf]]), 2)
    assert ids.tolist() == [[0, -1]]
    assert log_probs.tolist() == [[0.0, -torch.inf]]
    assert rest.tolist() == [0.0]


def test_hardly_possible_tokens_stay_possible_in_half_precision() -> None:
    ids, log_probs, _ = best_tokens(torch.tensor([[0.0, -1e6]]), 2)
    assert ids.tolist() == [[0, 1]]
    assert torch.isfinite(log_probs.half()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_counted_in_float32(dtype: torch.dtype) -> None:
    logits = (torch.randn(6, 500, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    found, expected = best_tokens(logits, 20), best_tokens(logits.float(), 20)
    assert all(map(torch.equal, found[1:], expected[1:]))
    assert found[1].dtype == found[2].dtype == torch.float32
    torch.testing.assert_close(found[1].exp().sum(-1) + found[2], torch.ones(6), rtol=0, atol=1e-6)


def test_blocks_of_rows_give_what_all_rows_give_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(11, 30)
    whole = best_tokens(logits, 5)
    monkeypatch.setitem(running._TOGETHER, "cpu", 70)
    assert all(map(torch.equal, best_tokens(logits, 5), whole))


def test_the_logits_are_left_as_they_were() -> None:
    logits = torch.randn(3, 8)
    before = logits.clone()
    best_tokens(logits, 2, dead=torch.tensor([0]))
    assert torch.equal(logits, before)


def test_no_rows_give_no_tokens() -> None:
    ids, log_probs, rest = best_tokens(torch.zeros(0, 8), 3)
    assert ids.shape == log_probs.shape == (0, 3)
    assert rest.shape == (0,)
