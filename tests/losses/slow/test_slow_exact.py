"""Path-exact KL: zero for a student that is perfect by tokens in every toy world, and with real BPE's pair test."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from slow_divergence import Measure
from slow_exact import Spelling, slow_exact
from slow_kinds import slow_kind
from tiny import Tiny, kl
from toy_world import CROSSING, UNCLOSED, WORLDS, ToyWorld, bpe, make_world

from xtoken_align import align_ids, build
from xtoken_align.errors import OptionError

EVERY = {**WORLDS, **CROSSING, **UNCLOSED}


def exact(world: ToyWorld, student: torch.Tensor, *, test: str, **options):
    teacher = world.logits("teacher", world.by_tokens("teacher"))
    return slow_exact(world.student, world.teacher, world.mapping, student, teacher, world.spans, test=test, **options)


def perfect(world: ToyWorld) -> torch.Tensor:
    """Perfect by tokens; what is impossible has a finite logit, so it is compared, too."""
    return world.logits("student", world.by_tokens("student")).clamp_min(-40).requires_grad_()


@pytest.mark.parametrize("name", EVERY)
def test_a_student_that_is_perfect_by_tokens_pays_nothing_though_tokens_cross(name: str) -> None:
    world = EVERY[name](1)
    student = perfect(world)
    values, known = exact(world, student, test="whole")
    (slope,) = torch.autograd.grad(values.sum(), student)
    assert values.abs().max() < 1e-12
    assert slope.abs().max() < 1e-12
    assert known > 0.75
    guess, _ = exact(world, world.logits("student", world.random("student", 1)), test="whole")
    assert guess.mean() > 0.5


@pytest.mark.parametrize("name", [*WORLDS, *CROSSING])
def test_pairs_say_the_same_where_every_beginning_of_a_token_is_a_token(name: str) -> None:
    world = EVERY[name](2)
    student = world.logits("student", world.random("student", 1))
    (one, share), (other, also) = (exact(world, student, test=test) for test in ("whole", "pairs"))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert share == also


@pytest.mark.parametrize("seed", [1, 2])
def test_where_decompositions_nest_it_is_c_kl_with_end(seed: int) -> None:
    world = WORLDS["the student packs"](seed)
    student = world.logits("student", world.random("student", seed))
    found, known = exact(world, student, test="pairs")
    teacher = world.logits("teacher", world.by_tokens("teacher"))
    chain = slow_kind(world.mapping, student, teacher, world.spans, kind="c-kl", level_weight="text")
    assert known == 1
    torch.testing.assert_close(found, chain.chunk_kd, rtol=1e-9, atol=1e-12)


def test_a_level_written_out() -> None:
    # The student has bc, the teacher ab: of the text a b c they write a bc and ab c.
    pair = Tiny(["a", "b", "c", "bc"], ["a", "b", "c", "ab"])
    student, teacher = [[0.4, 0.3, 0.2, 0.1]] * 3, [[0.1, 0.2, 0.3, 0.4], [0.3, 0.1, 0.5, 0.1], [0.25] * 4]
    spans = pair.spans([0, 3], [3, 2])
    logits = pair.logits("student", student), pair.logits("teacher", teacher)
    found, _ = slow_exact(pair.student, pair.teacher, pair.mapping, *logits, spans, test="pairs")
    # First token: a is a or ab, then b and c. Nothing begins with a and goes on, so there is one level.
    first = kl([0.1 + 0.4, 0.2, 0.3], [0.4, 0.3 + 0.1, 0.2])
    # Second token, after a: b and bc begin with b, and a b is the teacher's ab, with 0.4 of the 0.5 that a begins
    # with. What follows the teacher's own a stands in no row of this text, but together it is the other 0.1.
    second = kl([0.4, 0.1], [0.3 + 0.1, 0.4 + 0.2])
    # After b: ab goes on with c (0.5), which makes bc; with b of the teacher's a, ab there is no other way.
    third = kl([0.4 * 0.5, 0.4 * (0.3 + 0.1 + 0.1)], [0.1, 0.3])
    assert found.item() == pytest.approx(first + second + third)


@pytest.mark.parametrize("divergence", ["reverse", "jsd"])
def test_it_is_zero_by_any_divergence(divergence: str) -> None:
    world = CROSSING["tokens cross"](1)
    values, _ = exact(world, perfect(world), test="whole", measure=Measure(divergence=divergence))
    assert values.abs().max() < 1e-12


MERGES = {
    "student": (("a b", "ab c", "c a"), ("b c", "a bc", "a a"), ("b a", "c ba", "b c")),
    "teacher": (("b c", "a b", "bc a"), ("a b", "c ab", "b b"), ("a c", "b a", "ba c")),
}
"""Three pairs of BPEs whose tokens cross, and whose rank decides between overlapping merges."""


@pytest.mark.parametrize("side", MERGES)
@pytest.mark.parametrize("number", range(3))
def test_a_bpes_tokens_are_its_own_exactly_if_all_pairs_are(side: str, number: int) -> None:
    vocab = bpe(MERGES[side][number])
    pairs, whole = (Spelling(vocab, {}, test) for test in ("pairs", "whole"))
    ids = [token for token in range(len(vocab)) if token in pairs.symbols]
    seen = {True: 0, False: 0}
    for size in (2, 3, 4):
        for tokens in product(ids, repeat=size):
            by_pairs = all(pairs.writes(tokens[: count + 1]) for count in range(1, size))
            assert by_pairs == whole.writes(tokens), tokens
            seen[by_pairs] += 1
    assert min(seen.values()) > 50


@pytest.mark.parametrize("number", range(3))
def test_with_real_bpe_a_student_that_is_perfect_by_tokens_pays_nothing(number: int) -> None:
    student, teacher = bpe(MERGES["student"][number]), bpe(MERGES["teacher"][number])
    text_model = make_world("abc", "abc", alphabet="abc", longest=4, seed=number).next_character
    world = ToyWorld(student, teacher, build(student=student, teacher=teacher), text_model)
    some = np.random.default_rng(0).permutation(len(world.texts))[:8]
    asked = np.isin(np.arange(len(world.texts)), some)
    spans = replace(world.spans, weight=np.where(asked[:, None], world.spans.weight, 0))
    teacher_logits = world.logits("teacher", world.by_tokens("teacher"))
    values, known = slow_exact(student, teacher, world.mapping, perfect(world), teacher_logits, spans, test="pairs")
    assert values.abs().max() < 1e-12
    assert known > 0.6
    chain = slow_kind(world.mapping, perfect(world), teacher_logits, spans, kind="c-kl").chunk_kd
    assert chain.max() > 0.01


def test_rows_that_differ_in_bytes_are_refused() -> None:
    pair = Tiny(["a", "b"], ["a", "b"])
    spans = align_ids([[0, 1]], [[0, 0]], student=pair.student, teacher=pair.teacher)
    student, teacher = (torch.zeros(1, 2, 3, dtype=torch.float64) for _ in range(2))
    with pytest.raises(OptionError, match="same bytes"):
        slow_exact(pair.student, pair.teacher, pair.mapping, student, teacher, spans)
