"""C-KL averaged over the teacher's next text is the whole divergence between the two sides' next tokens."""

from __future__ import annotations

import pytest
import torch
from slow_loss import slow_loss
from toy_world import WORLDS


@pytest.mark.parametrize("seed", range(3))
def test_the_expected_c_kl_is_the_kl_over_the_students_tokens(seed: int) -> None:
    world = WORLDS["the student packs"](seed)
    guess = world.random("student", seed)
    out = slow_loss(
        world.mapping,
        world.logits("student", guess),
        world.logits("teacher", world.by_text("teacher")),
        world.spans,
        kind="c-kl",
    )
    truth = world.by_text("student")(())
    possible = truth > -torch.inf
    whole = (truth[possible].exp() * (truth - guess(()))[possible]).sum()
    assert whole > 0.3
    assert world.expectation(out.chunk_kd, first_only=True).item() == pytest.approx(whole.item(), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_expected_c_kl_is_the_kl_over_the_teachers_tokens_as_the_student_writes_them(seed: int) -> None:
    world = WORLDS["the teacher packs"](seed)
    guess = world.random("student", seed)
    out = slow_loss(
        world.mapping,
        world.logits("student", guess),
        world.logits("teacher", world.by_text("teacher")),
        world.spans,
        kind="c-kl",
    )
    teacher = world.by_text("teacher")(())
    pieces = world.mapping.decompositions("teacher")
    digits = [0, 1]
    whole = torch.zeros((), dtype=torch.float64)
    for token, log_probability in enumerate(teacher):
        if log_probability > -torch.inf:
            written = pieces[token] or [int(world.mapping.first_pieces("teacher")[token])]
            student = sum(guess(tuple(written[:count]))[piece] for count, piece in enumerate(written))
            if token < 14 and len(written) < 3:
                # A shorter token is also the word that no digit follows.
                student = student + torch.log1p(-guess(tuple(written))[digits].exp().sum())
            whole = whole + log_probability.exp() * (log_probability - student)
    assert whole > 0.3
    assert world.expectation(out.chunk_kd, first_only=True).item() == pytest.approx(whole.item(), abs=1e-9)
