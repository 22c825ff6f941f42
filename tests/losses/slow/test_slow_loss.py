"""The slow loss as a whole: weights, divisors, cross-entropy, teachers of which the best tokens are known, refusals."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import pytest
import slow_loss as loops
import slow_parts
import torch
from slow_loss import slow_loss
from tiny import Tiny, kl

from xtoken_align.errors import OptionError
from xtoken_align.losses import TopK
from xtoken_align.vocab.kinds import Kind

PAIR = Tiny(["a", "b", ("", Kind.PADDING)], ["a", "b"])
STUDENT, TEACHER = [[0.5, 0.4, 0.1], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]], [[0.3, 0.7], [0.9, 0.1], [0.5, 0.5]]
FIRST, SECOND = kl([0.3, 0.7], [5, 4]), kl([0.9, 0.1], [1, 1])


def test_chunks_are_weighed_and_divided_by_their_number() -> None:
    spans = PAIR.spans([0, 1], [0, 1])
    assert spans.weight.tolist() == [[0.0, 1.0, 1.0]]
    weighed = replace(spans, weight=spans.weight * 0.5)
    student, teacher = PAIR.logits("student", STUDENT), PAIR.logits("teacher", TEACHER)
    out = slow_loss(PAIR.mapping, student, teacher, weighed, kind="partition-kl")
    assert out.chunk_kd.tolist() == pytest.approx([FIRST, SECOND])
    assert out.kd.item() == pytest.approx((FIRST + SECOND) / 4)
    assert slow_loss(PAIR.mapping, student, teacher, spans.torch(), kind="partition-kl").kd.item() == pytest.approx(
        (FIRST + SECOND) / 2
    )


def test_the_cross_entropy_is_over_the_whole_width_and_the_labels_that_are_there() -> None:
    labels = torch.tensor([[3, -100, 1]])
    out = PAIR.loss([0, 1], [0, 1], STUDENT, TEACHER, kind="partition-kl", labels=labels, kd_weight=2.0, ce_weight=3.0)
    assert out.ce.item() == pytest.approx(-torch.tensor(0.2).log().item())
    assert out.loss.item() == pytest.approx(2 * (FIRST + SECOND) / 2 + 3 * out.ce.item())


def test_divisors_of_a_larger_batch_may_be_given() -> None:
    labels = torch.tensor([[3, 0, 1]])
    divisors = {"num_chunks_in_batch": 8, "num_items_in_batch": 16}
    out, own = (
        PAIR.loss([0, 1], [0, 1], STUDENT, TEACHER, kind="partition-kl", labels=labels, **given)
        for given in (divisors, {})
    )
    assert out.kd.item() == pytest.approx(own.kd.item() / 4)
    assert out.ce.item() == pytest.approx(own.ce.item() / 8)


def test_a_batch_without_chunks_has_loss_zero_and_a_gradient() -> None:
    student = PAIR.logits("student", STUDENT[:1])
    out = slow_loss(PAIR.mapping, student, PAIR.logits("teacher", TEACHER[:1]), PAIR.spans([], []), kind="c-kl")
    out.loss.backward()
    assert (out.loss.item(), len(out.chunk_kd), student.grad.abs().max().item()) == (0.0, 0, 0.0)


def best(rows: list[list[float]], kept: list[list[int]], width: int) -> TopK:
    """A teacher of which some tokens are known, one text."""
    size = max(map(len, kept))
    ids = torch.tensor([[*listed, *[-1] * (size - len(listed))] for listed in kept])
    known = torch.tensor(
        [[row[token] if token >= 0 else 0.0 for token in at] for row, at in zip(rows, ids, strict=True)]
    )
    return TopK(ids[None], known.double().log()[None], 1 - known.double().sum(-1)[None], width)


def top_k_loss(pair: Tiny, ids: tuple[list[int], list[int]], student: Any, teacher: TopK, **options: Any) -> float:
    return slow_loss(pair.mapping, pair.logits("student", student), teacher, pair.spans(*ids), **options).kd.item()


def test_outcomes_that_no_listed_token_touches_are_one() -> None:
    pair = Tiny(["a", "b", "c", "12"], ["a", "b", "c", "1"])
    teacher = best([[0.1, 0.2, 0.3, 0.4]] * 2, [[3, 0]] * 2, 5)
    for kind in ("partition-kl", "p-kl"):
        value = top_k_loss(pair, ([0], [0]), [[0.3, 0.3, 0.2, 0.2]] * 2, teacher, kind=kind, temperature=2.0)
        assert value == pytest.approx(kl([0.1, 0.4, 0.5], [0.3, 0.2, 0.5], 2.0))


def test_a_rest_that_the_student_has_no_outcome_for_is_dropped() -> None:
    pair = Tiny(["a", "b"], ["a", "b", "y"])
    teacher = best([[0.1, 0.2, 0.7]] * 2, [[0, 1]] * 2, 4)
    value = top_k_loss(pair, ([0], [0]), [[0.6, 0.4]] * 2, teacher, kind="partition-kl")
    assert value == pytest.approx(kl([0.1, 0.2], [0.6, 0.4]))


def test_the_best_columns_of_a_teachers_best_tokens_close_with_one_rest() -> None:
    pair = Tiny(["a", "b", "c"], ["a", "b", "c"])
    teacher = best([[0.1, 0.2, 0.7]] * 2, [[2, 1]] * 2, 4)
    value = top_k_loss(pair, ([0], [0]), [[0.6, 0.3, 0.1]] * 2, teacher, kind="p-kl", top_k=1)
    assert value == pytest.approx(kl([0.7, 0.3], [0.1, 0.9]))


def test_of_a_listed_teacher_end_and_the_unlisted_children_are_one() -> None:
    pair = Tiny(["1", "2", "12", "13", "3"], ["1", "2", "3"])
    row = [0.1, 0.3, 0.2, 0.3, 0.1]
    teacher = best([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]], [[0, 1, 2], [1]], 4)
    value = top_k_loss(pair, ([0], [0]), [row] * 2, teacher, kind="c-kl")
    assert value == pytest.approx(kl([0.5, 0.3, 0.2], [0.6, 0.3, 0.1]) + kl([0.5, 0.5], [0.2, 0.4]))


def test_the_mirrored_levels_take_the_listed_tokens_or_none() -> None:
    pair = Tiny(["1", "2", "3"], ["1", "2", "12", "13", "3"])
    rows = [[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]]
    one = kl([0.6, 0.4], [0.5, 0.5])
    listed = best([[0.1, 0.1, 0.2, 0.3, 0.3]] * 2, [[3, 2, 0]] * 2, 6)
    assert top_k_loss(pair, ([0], [0]), rows, listed, kind="c-kl") == pytest.approx(
        one + kl([0.2, 0.3, 0.1], [0.5, 0.3, 0.2])
    )
    without_end = best([[0.1, 0.1, 0.2, 0.3, 0.3]] * 2, [[3]] * 2, 6)
    assert top_k_loss(pair, ([0], [0]), rows, without_end, kind="c-kl") == pytest.approx(
        kl([0.3, 0.7], [0.5, 0.5]) + kl([0.0, 1.0, 0.0], [0.5, 0.3, 0.2])
    )
    nothing = best([[0.1, 0.1, 0.2, 0.3, 0.3]] * 2, [[4]] * 2, 6)
    assert top_k_loss(pair, ([0], [0]), rows, nothing, kind="c-kl") == pytest.approx(kl([0.3, 0.7], [0.2, 0.8]))


def test_sorted_probabilities_are_compared_as_far_as_they_are_listed() -> None:
    pair = Tiny(["a", "x", "z"], ["a", "y", "w"])
    teacher = best([[0.1, 0.2, 0.7]] * 2, [[2, 0]] * 2, 4)
    rows = [[0.5, 0.3, 0.2]] * 2
    assert top_k_loss(pair, ([0], [0]), rows, teacher, kind="uld") == pytest.approx(0.2 + 0.2)
    # One uncommon token is listed; the rest outcome of the common part is touched by it.
    assert top_k_loss(pair, ([0], [0]), rows, teacher, kind="gold") == pytest.approx(kl([0.1, 0.7], [0.5, 0.5]) + 0.4)


def test_what_a_teachers_best_tokens_do_not_tell_is_refused() -> None:
    teacher = best(TEACHER, [[0, 1]] * 3, 3)
    for kind in ("uld", "h-kl", "gold"):
        with pytest.raises(OptionError, match="temperature=1"):
            top_k_loss(PAIR, ([0, 1], [0, 1]), STUDENT, teacher, kind=kind, temperature=2.0)
    with pytest.raises(OptionError, match="every token in the text"):
        top_k_loss(PAIR, ([0, 1], [0, 1]), STUDENT, teacher, kind="alm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "auto"}, "kind must be one of"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"merge": "last"}, "merge must be one of"),
        ({"unreached": "pay"}, "unreached must be one of"),
        ({"normalize": "all"}, "normalize must be one of"),
        ({"top_k": -1}, "top_k must be"),
        ({"threshold": 2.0}, "threshold must lie"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PAIR.loss([0], [0], STUDENT[:2], TEACHER[:2], **{"kind": "p-kl", **options})


def test_logits_of_another_width_are_refused() -> None:
    with pytest.raises(OptionError, match="student_logits must have shape"):
        slow_loss(
            PAIR.mapping,
            torch.zeros(1, 2, 7),
            PAIR.logits("teacher", TEACHER[:2]),
            PAIR.spans([0], [0]),
            kind="uld",
        )


@pytest.mark.parametrize("module", [loops, slow_parts], ids=lambda module: module.__name__)
def test_the_examples_of_the_slow_losses_run(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
