"""C-KL's second form: what level one leaves out is what the slow twin says, on random batches and on real numerals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from loss_calls import assert_same, case_of, fast, slow
from random_batches import FEATURES, Case
from slow_chain import ChainKL, chunks_before
from slow_divergence import Measure
from slow_parts import chunks_of
from small_vocabs import make_vocab

from xtoken_align import Vocab, align_ids, align_texts, build
from xtoken_align.losses import XTokenLoss
from xtoken_align.losses.chain import Left
from xtoken_align.losses.sharded import Shares
from xtoken_align.vocab.kinds import Kind

TEXT = "12345 12 and 2024 or 98, 7 8 3.14 in 1987"


def left_of(case: Case) -> Left:
    finder = XTokenLoss(case.mapping, "c-kl")._level_one
    assert finder is not None
    return finder.left(case.spans, case.spans.predictions())


def test_what_is_left_out_is_what_the_slow_twin_leaves_out() -> None:
    counted = np.zeros(3, dtype=int)
    for seed in range(4 * len(FEATURES)):
        case = case_of(seed)
        left, twin = left_of(case), ChainKL(case.mapping, Measure())
        for number, pair in enumerate(zip(chunks_of(case.spans), chunks_before(case.spans), strict=True)):
            student, teacher = twin.leaving(*pair)
            own = left.between(number, number + 1)
            assert sorted(own.student.token.tolist()) == sorted(student)
            assert sorted(own.teacher.token.tolist()) == sorted(teacher)
            outcomes = twin.level_one.outcomes
            lost = [
                theirs for ours, theirs in zip(outcomes.student, outcomes.teacher, strict=True) if student >= {*ours}
            ]
            assert sorted(own.unmatched.token.tolist()) == sorted(token for tokens in lost for token in tokens)
            counted += len(own.student.token), len(own.teacher.token), len(own.unmatched.token)
    assert (counted > 20).all()


def test_a_chunk_knows_of_the_one_before_on_another_rank() -> None:
    seen = 0
    for seed in range(2 * len(FEATURES)):
        case = case_of(seed)
        left, count = left_of(case), len(case.spans.predictions())
        shares = [Shares(None, rank, 3).bounds(count, rank) for rank in range(3)]
        assert [shares[0][0], shares[-1][1]] == [0, count]
        parts = [left.between(first, last, moved=first) for first, last in shares]
        seen += sum(bool(part) and 0 in part.teacher.chunk for part in parts[1:])
        together = np.concatenate([part.teacher.chunk + first for part, (first, _) in zip(parts, shares, strict=True)])
        assert np.array_equal(together, left.teacher.chunk)
    assert seen > 2


def test_ids_that_no_label_marks_condition_the_first_chunk_of_an_answer() -> None:
    student, teacher = make_vocab(["1", "2", "12", "a"]), make_vocab(["1", "2", "a"], name="teacher")
    mask = np.array([[False, False, True]])
    spans = align_ids([[3, 0, 3]], [[2, 0, 2]], student=student, teacher=teacher, student_loss_mask=mask)
    finder = XTokenLoss(build(student=student, teacher=teacher), "c-kl")._level_one
    assert finder is not None
    left = finder.left(spans, spans.predictions())
    assert left.teacher.chunk.tolist() == [0]
    assert left.teacher.token.tolist() == [1]
    # In a document of its own the chunk follows nothing.
    apart = replace(spans, student_segments=np.array([[0, 0, 1]]), teacher_segments=np.array([[0, 0, 1]]))
    assert not finder.left(apart, apart.predictions())


def part_of(vocab: Vocab, ids: np.ndarray) -> tuple[Vocab, np.ndarray]:
    """The vocabulary's numerals, its ASCII characters and the tokens of a text; and the text in these."""
    kept = [token for surface, token in vocab.lowest_text_id.items() if surface.isdigit() or len(surface) == 1]
    tokens = np.union1d([token for token in kept if vocab.surfaces[token].isascii()], ids)
    surfaces = [(bytes(vocab.surfaces[token]), Kind.TEXT) for token in tokens]
    return make_vocab(surfaces, name=vocab.name), np.searchsorted(tokens, ids)


@pytest.mark.parametrize(
    ("student", "teacher", "options"),
    [("llama-3", "qwen3", {}), ("qwen3", "llama-3", {"divergence": "reverse", "level_weight": "teacher"})],
)
def test_numerals_of_real_vocabularies_are_the_slow_ones(
    real: Callable[[str], Vocab], student: str, teacher: str, options: dict[str, str]
) -> None:
    whole = align_texts([TEXT], student=real(student), teacher=real(teacher))
    ours, own = part_of(real(student), whole.student_ids[0])
    theirs, other = part_of(real(teacher), whole.teacher_ids[0])
    spans = align_ids([own], [other], student=ours, teacher=theirs)
    source = torch.Generator().manual_seed(0)
    case = Case(
        feature="real numerals",
        student=ours,
        teacher=theirs,
        mapping=build(student=ours, teacher=theirs),
        student_logits=3 * torch.randn(1, len(own), len(ours), generator=source, dtype=torch.float64),
        teacher_logits=3 * torch.randn(1, len(other), len(theirs), generator=source, dtype=torch.float64),
        spans=spans,
        labels=torch.full((1, len(own)), -100),
    )
    assert len(left_of(case).teacher.chunk) + len(left_of(case).student.chunk) > 8
    made = [call(case, case.student_logits, case.teacher_logits, kind="c-kl", **options) for call in (fast, slow)]
    assert_same(made[0], made[1], rtol=1e-9, atol=1e-10)
    form = fast(case, case.student_logits, case.teacher_logits, kind="c-kl", level_weight="text", end=False)
    assert abs(form.kd - made[0].kd) > 0.1
