"""Advantages per chunk: the fast function against its slow twin, and what it is handed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from random_batches import FEATURES, Case, random_case, top_k_of
from slow_advantages import slow_chunk_advantages

from xtoken_align.errors import OptionError
from xtoken_align.losses import Hidden, Logits, chunk_advantages


def assert_equal(fast: tuple[torch.Tensor, ...], slow: tuple[torch.Tensor, ...], atol: float = 1e-9) -> None:
    assert torch.equal(fast[1], slow[1])
    assert torch.allclose(fast[0].double(), slow[0], rtol=0, atol=atol)
    assert not fast[0].requires_grad


def references(case: Case) -> dict[str, torch.Tensor]:
    """Other models of the same batch: they say of a position what these say of another."""
    return {
        "student_reference": case.student_logits.flip(0, 1) * 0.7,
        "teacher_reference": case.teacher_logits.flip(1) * 0.6,
    }


def log_probs_of(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """What an engine hands on: the log-probability of the token at each position, 0 at the first."""
    values = []
    for side, vocab in (("student", case.student), ("teacher", case.teacher)):
        logits, ids = getattr(case, f"{side}_logits"), torch.from_numpy(getattr(case.spans, f"{side}_ids"))
        dead = torch.from_numpy((vocab.kinds >= 4).nonzero()[0])
        rows = logits.index_fill(2, dead, -torch.inf).log_softmax(2)
        own = rows[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
        values.append(torch.nn.functional.pad(own, (1, 0)))
    return values[0], values[1]


@pytest.mark.parametrize("spread", ["share", "whole"])
@pytest.mark.parametrize("seed", range(2 * len(FEATURES)))
def test_it_is_the_slow_sum(seed: int, spread: Any) -> None:
    case = random_case(seed, infinities=0.1 * (seed >= len(FEATURES)))
    both = case.student_logits, case.teacher_logits, case.spans
    for more in ({}, references(case)):
        options: dict[str, Any] = {"mapping": case.mapping, "spread": spread, **more}
        assert_equal(chunk_advantages(*both, **options), slow_chunk_advantages(*both, **options))


@pytest.mark.parametrize("seed", range(len(FEATURES)))
def test_log_probabilities_say_what_logits_say(seed: int) -> None:
    case = random_case(seed)
    given = log_probs_of(case)
    whole = chunk_advantages(case.student_logits, case.teacher_logits, case.spans, mapping=case.mapping)
    assert_equal(chunk_advantages(*given, case.spans), whole)
    assert_equal(chunk_advantages(*given, case.spans), slow_chunk_advantages(*given, case.spans))
    # One side may hand on log-probabilities, the other logits.
    mixed = chunk_advantages(given[0], case.teacher_logits, case.spans, mapping=case.mapping)
    assert_equal(mixed, whole)


def test_weights_multiply_and_what_has_none_is_not_used() -> None:
    case = random_case(0)
    weight = case.spans.weight * 0.5
    row, column = (weight > 0).nonzero()
    weight[row[0], column[0]] = 0
    spans = replace(case.spans, weight=weight)
    whole, all_used = chunk_advantages(case.student_logits, case.teacher_logits, case.spans, mapping=case.mapping)
    half, used = chunk_advantages(case.student_logits, case.teacher_logits, spans, mapping=case.mapping)
    left_out = all_used & ~used
    assert left_out.any()
    assert torch.equal(torch.from_numpy(case.spans.student)[left_out].unique(), torch.tensor([column[0]]).int())
    assert torch.allclose(half, torch.where(used, whole * 0.5, 0))


def test_hidden_states_and_logits_of_other_precisions_say_the_same() -> None:
    case = random_case(3)
    torch.manual_seed(0)
    heads = [torch.randn(len(vocab), 8, dtype=torch.float64) for vocab in (case.student, case.teacher)]
    states = [torch.randn(*side.shape, 8, dtype=torch.float64) for side in (case.spans.student, case.spans.teacher)]
    hidden = [Hidden(one, head, scale=0.5, softcap=4.0) for one, head in zip(states, heads, strict=True)]
    logits = [4 * torch.tanh(one @ head.T * 0.5 / 4) for one, head in zip(states, heads, strict=True)]
    expected = chunk_advantages(*logits, case.spans, mapping=case.mapping)
    assert_equal(chunk_advantages(*hidden, case.spans, mapping=case.mapping), expected)
    assert_equal(chunk_advantages(*map(Logits, logits), case.spans, mapping=case.mapping), expected)
    rounded = [one.bfloat16() for one in logits]
    half = chunk_advantages(*rounded, case.spans.torch(), mapping=case.mapping)
    assert half[0].dtype == torch.float32
    slow = slow_chunk_advantages(*(one.double() for one in rounded), case.spans, mapping=case.mapping)
    assert_equal(half, slow, atol=1e-4)


def test_it_does_not_matter_in_how_many_blocks_logits_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(2)
    both = case.student_logits, case.teacher_logits, case.spans
    expected = chunk_advantages(*both, mapping=case.mapping)
    monkeypatch.setattr("xtoken_align.losses.advantages._ELEMENTS", 2 * len(case.student))
    assert_equal(chunk_advantages(*both, mapping=case.mapping), expected, atol=0)


def test_what_a_side_cannot_say_is_not_used() -> None:
    case = random_case(0)
    student, teacher = log_probs_of(case)
    _, all_used = chunk_advantages(student, teacher, case.spans)
    row, column = all_used.nonzero()[0].tolist()
    student[row, column] = -torch.inf
    advantages, used = chunk_advantages(student, teacher, case.spans)
    assert not used[row, column]
    assert advantages.isfinite().all()
    assert used.sum() < all_used.sum()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"student": "responses"}, r"the student must have shape \(B, T\)"),
        ({"teacher": "top k"}, "the teacher is a TopK"),
        ({"mapping": None}, "the teacher hands in logits"),
        ({"teacher_reference": "narrow"}, "the teacher's reference must have the mapping's"),
        ({"student": "other rows"}, "must have the spans' positions"),
        ({"student": "probabilities"}, "the student must hand in log-probabilities, at most 0, but one is"),
        ({"teacher": "ids"}, "the teacher must"),
        ({"spread": "mean"}, "spread must be one of share, whole"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], said: str) -> None:
    case = random_case(0)
    values = {
        "responses": log_probs_of(case)[0][:, 1:],
        "probabilities": log_probs_of(case)[0].exp(),
        "ids": torch.from_numpy(case.spans.teacher_ids),
        "top k": top_k_of(case, 4),
        "narrow": case.teacher_logits[..., :-1],
        "other rows": case.student_logits[:, 1:],
    }
    options = {
        "student": case.student_logits,
        "teacher": case.teacher_logits,
        "spans": case.spans,
        "mapping": case.mapping,
        **{name: values.get(value, value) for name, value in change.items()},
    }
    with pytest.raises(OptionError, match=said):
        chunk_advantages(**options)
