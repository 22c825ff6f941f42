"""The kind `exact` is its slow twin, in every toy world and with real BPE's pairs, gradients included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from random_batches import random_case, top_k_of
from slow_divergence import Measure
from slow_exact import slow_exact
from small_vocabs import make_vocab
from toy_world import CROSSING, UNCLOSED, WORLDS, ToyWorld, bpe, make_world

from xtoken_align import Spans, align_ids, build
from xtoken_align.errors import MismatchError, OptionError
from xtoken_align.losses import Hidden, XTokenLoss
from xtoken_align.vocab.kinds import Kind

EVERY = {**WORLDS, **CROSSING, **UNCLOSED}

MERGES = (
    (("a b", "ab c", "c a"), ("b c", "a b", "bc a")),
    (("b c", "a bc", "a a"), ("a b", "c ab", "b b")),
    (("b a", "c ba", "b c"), ("a c", "b a", "ba c")),
)
"""The student's merges and the teacher's: tokens cross, and ranks decide between overlapping merges."""


def some_texts(world: ToyWorld, count: int) -> Spans:
    """The world's spans with a weight for some texts alone, since the twin takes long."""
    asked = np.random.default_rng(0).permutation(len(world.texts))[:count]
    weight = np.zeros_like(world.spans.weight)
    weight[asked] = world.spans.weight[asked]
    return replace(world.spans, weight=weight)


def exact(world: ToyWorld, **options: Any) -> XTokenLoss:
    return XTokenLoss(world.mapping, "exact", vocabs=(world.student, world.teacher), **options)


def assert_same_as_slow(world: ToyWorld, teacher: torch.Tensor, spans: Spans, **options: Any) -> torch.Tensor:
    """Value and gradient are the twin's; returns the value."""
    student = world.logits("student", world.random("student", 1)).detach().requires_grad_()
    measure = Measure(**options)
    slow, _ = slow_exact(world.student, world.teacher, world.mapping, student, teacher, spans, measure=measure)
    (slope,) = torch.autograd.grad(slow.mean(), student)
    leaf = student.detach().clone().requires_grad_()
    out = exact(world, **options)(leaf, teacher, spans)
    torch.testing.assert_close(out.loss, slow.mean(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(out.loss, leaf)[0], slope, rtol=1e-9, atol=1e-12)
    return out.loss


@pytest.mark.parametrize("name", EVERY)
def test_it_is_the_slow_one_in_every_world(name: str) -> None:
    world = EVERY[name](1)
    # Where a beginning of a token is none, strings are followed far.
    spans = some_texts(world, 2 if name in UNCLOSED else 10)
    loss = assert_same_as_slow(world, world.logits("teacher", world.by_tokens("teacher")), spans)
    assert loss > 0.1


@pytest.mark.parametrize("name", [*WORLDS, *CROSSING])
def test_a_student_that_is_perfect_by_tokens_pays_nothing(name: str) -> None:
    world = EVERY[name](1)
    student = world.logits("student", world.by_tokens("student")).clamp_min(-40).requires_grad_()
    out = exact(world)(student, world.logits("teacher", world.by_tokens("teacher")), some_texts(world, 10))
    assert out.loss.abs() < 1e-12
    assert torch.autograd.grad(out.loss, student)[0].abs().max() < 1e-12


@pytest.mark.parametrize(
    "options",
    [{}, {"divergence": "reverse"}, {"divergence": "jsd", "beta": 0.3}, {"temperature": 2.0}, {"student_top_k": 2}],
    ids=str,
)
def test_a_teacher_that_contradicts_itself_and_any_measure_are_the_slow_ones(options: dict[str, Any]) -> None:
    world = EVERY["tokens cross"](2)
    teacher = world.logits("teacher", world.random("teacher", 3))
    assert_same_as_slow(world, teacher, some_texts(world, 6), **options)


@pytest.mark.parametrize("number", range(len(MERGES)))
def test_it_is_the_slow_one_with_real_bpe(number: int) -> None:
    student, teacher = (bpe(merges) for merges in MERGES[number])
    text_model = make_world("abc", "abc", alphabet="abc", longest=4, seed=number).next_character
    world = ToyWorld(student, teacher, build(student=student, teacher=teacher), text_model)
    assert_same_as_slow(world, world.logits("teacher", world.by_tokens("teacher")), some_texts(world, 5))


WORLD = EVERY["tokens cross"](1)
SPANS = some_texts(WORLD, 4)
TEACHER = WORLD.logits("teacher", WORLD.by_tokens("teacher"))
STUDENT = WORLD.logits("student", WORLD.random("student", 1)).detach()


def test_it_is_a_part_of_the_loss_as_every_kind() -> None:
    labels = torch.from_numpy(np.where(SPANS.student_mask, SPANS.student_ids, -100))
    leaf = STUDENT.clone().requires_grad_()
    out = exact(WORLD, kd_weight=0.5, ce_weight=2.0)(leaf, TEACHER, SPANS, labels=labels, num_chunks_in_batch=7)
    plain = exact(WORLD)(STUDENT, TEACHER, SPANS)
    own = torch.nn.functional.cross_entropy(leaf[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.kd, plain.kd * len(SPANS.predictions()) / 7)
    torch.testing.assert_close(out.loss, 0.5 * out.kd + 2 * own)
    assert out.value("kd") == pytest.approx(float(plain.kd))
    out.loss.backward(retain_graph=True)
    first = leaf.grad.clone()
    out.loss.backward()
    torch.testing.assert_close(leaf.grad, 2 * first)


def test_hidden_states_give_what_their_logits_give() -> None:
    source = torch.Generator().manual_seed(0)
    states = torch.randn(*STUDENT.shape[:2], 6, generator=source, dtype=torch.float64).requires_grad_()
    head = torch.randn(STUDENT.shape[2], 6, generator=source, dtype=torch.float64).requires_grad_()
    fused = exact(WORLD)(Hidden(states, head, softcap=5.0), TEACHER, SPANS).loss
    whole = exact(WORLD)(5 * (states @ head.T / 5).tanh(), TEACHER, SPANS).loss
    torch.testing.assert_close(fused, whole, rtol=1e-9, atol=1e-12)
    for made, right in zip(
        torch.autograd.grad(fused, (states, head)), torch.autograd.grad(whole, (states, head)), strict=True
    ):
        torch.testing.assert_close(made, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [*WORLDS, *CROSSING])
def test_with_a_tolerance_a_student_that_is_perfect_by_tokens_pays_nothing_either(name: str) -> None:
    world = EVERY[name](1)
    student = world.logits("student", world.by_tokens("student")).clamp_min(-40)
    teacher, spans = world.logits("teacher", world.by_tokens("teacher")), some_texts(world, 10)
    assert exact(world, tolerance=1e-9)(student, teacher, spans).loss.abs() < 1e-7
    guess = world.logits("student", world.random("student", 1))
    assert exact(world, tolerance=1e-9)(guess, teacher, spans).loss > 0.1


def test_where_all_is_known_a_small_tolerance_changes_little() -> None:
    world = EVERY["the student packs"](1)
    student, teacher = (
        world.logits("student", world.random("student", 1)),
        world.logits("teacher", world.by_tokens("teacher")),
    )
    spans = some_texts(world, 10)
    strict = exact(world)(student, teacher, spans).loss
    torch.testing.assert_close(exact(world, tolerance=1e-9)(student, teacher, spans).loss, strict, rtol=1e-6, atol=0)


def test_padding_on_the_left_changes_nothing() -> None:
    arrays, logits = {}, {}
    for side, own in (("student", STUDENT), ("teacher", TEACHER)):
        for name in (side, f"{side}_ids", f"{side}_segments", f"{side}_loss_mask"):
            array = getattr(SPANS, name)
            fill = {side: -1, f"{side}_segments": -1}.get(name, 0)
            arrays[name] = np.concatenate([np.full((len(array), 2), fill, dtype=array.dtype), array], axis=1)
        logits[side] = torch.cat([torch.zeros_like(own[:, :2]), own], dim=1)
    moved = replace(SPANS, **arrays)
    out = exact(WORLD)(logits["student"], logits["teacher"], moved)
    torch.testing.assert_close(out.loss, exact(WORLD)(STUDENT, TEACHER, SPANS).loss)


def test_what_it_cannot_read_is_refused() -> None:
    with pytest.raises(OptionError, match="needs both vocabularies with their encoders"):
        XTokenLoss(WORLD.mapping, "exact")
    with pytest.raises(MismatchError, match="vocabs must be the mapping's, but the student is"):
        XTokenLoss(WORLD.mapping, "exact", vocabs=(WORLD.teacher, WORLD.student))
    with pytest.raises(OptionError, match="no other kind does, but the kind is 'uld'"):
        XTokenLoss(WORLD.mapping, "uld", vocabs=(WORLD.student, WORLD.teacher))
    with pytest.raises(OptionError, match="merge must be 'first'"):
        exact(WORLD, merge="mean")
    with pytest.raises(OptionError, match="tolerance belongs to exact"):
        XTokenLoss(WORLD.mapping, "c-kl", tolerance=0.1)
    for option in ("stop_bridge", "skip_white_space"):
        with pytest.raises(OptionError, match="neither stop_bridge nor skip_white_space"):
            exact(WORLD, **{option: True})
    case = random_case(4)
    loss = XTokenLoss(case.mapping, "exact", vocabs=(case.student, case.teacher))
    with pytest.raises(OptionError, match="exact needs the teacher's whole distribution"):
        loss(case.student_logits, top_k_of(case, 3), case.spans)


def test_rows_that_differ_in_bytes_are_refused() -> None:
    vocab = make_vocab(["a", "b", (b"<x>", Kind.SPECIAL)])
    spans = align_ids([[2, 0, 1]], [[0, 1]], student=vocab, teacher=vocab)
    loss = XTokenLoss(build(student=vocab, teacher=vocab), "exact", vocabs=(vocab, vocab))
    with pytest.raises(OptionError, match="both sides write the same bytes and special tokens, but row 0"):
        loss(torch.zeros(1, 3, 3), torch.zeros(1, 2, 3), spans)
