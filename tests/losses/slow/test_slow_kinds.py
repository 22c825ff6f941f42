"""Strict, BPM, ESCD and SimCT: the papers' worked numbers, sums written out, and what each says of two equal sides."""

from __future__ import annotations

from math import log

import pytest
import torch
from loss_calls import case_of
from random_batches import FEATURES, top_k_of
from slow_kinds import slow_kind
from small_vocabs import make_vocab
from tiny import Tiny, kl

from xtoken_align import align_ids, build
from xtoken_align.errors import OptionError
from xtoken_align.vocab.kinds import Kind

KINDS = ("strict", "bpm", "escd", "simct")
COMPARING = ("partition-kl", "c-kl", "p-kl", "h-kl", "gold", *KINDS)


def value(pair: Tiny, student_ids, teacher_ids, student_rows, teacher_rows, **options):
    student, teacher = pair.logits("student", student_rows), pair.logits("teacher", teacher_rows)
    return slow_kind(pair.mapping, student, teacher, pair.spans(student_ids, teacher_ids), **options)


BREAD = Tiny(["Br", "Cat", "ead", "eads", "eak", "x"], ["Bread", "Breads", "Break", "Cat", "Dog"])
"""The pair of arXiv:2609.34738 (B.5). The teacher's Dog and the student's x make a rest on both sides."""
BREAD_ROWS = (
    [[0.5, 0.2, 0, 0, 0, 0.3], [0, 0, 0.2, 0.3, 0.1, 0.4], [0.1, 0.1, 0.1, 0.1, 0.1, 0.5]],
    [[0.4, 0.2, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]],
)
ROOT, INSIDE, CHILD = 0.4597, 0.6895, 1.1067


def bread(**options):
    """The text `Bread`: Br ead for the student, one token for the teacher."""
    return value(BREAD, [0, 2], [0], *BREAD_ROWS, **options).kd.item()


def test_the_worked_numbers_of_escds_paper() -> None:
    assert bread(kind="partition-kl") == pytest.approx(ROOT, abs=1e-4)
    assert bread(kind="bpm", divergence="forward") == pytest.approx(ROOT + INSIDE, abs=1e-4)
    assert bread(kind="escd") == pytest.approx(ROOT + CHILD, abs=1e-4)
    assert bread(kind="simct", units="path") == pytest.approx(0.1062, abs=1e-4)


def test_c_kl_where_the_teacher_packs_is_bpm_and_one_more_level() -> None:
    # The level after `Bread`: the teacher's Breads may follow, which the student writes as Br eads; there is no level.
    for weight in ("text", "plausible"):
        found = bread(kind="c-kl", level_weight=weight)
        assert found == pytest.approx(bread(kind="bpm", divergence="forward"), abs=1e-12)


def test_bpm_compares_inside_of_a_teachers_token_what_is_left_of_it() -> None:
    pair = Tiny(["a", "b", "c", "bc"], ["a", "b", "abc", "ab", "ac"])
    student = [[0.4, 0.3, 0.2, 0.1], [0.2, 0.3, 0.1, 0.4], [0.25] * 4]
    teacher = [[0.1, 0.2, 0.3, 0.25, 0.15], [0.2] * 5]
    out = value(pair, [0, 3], [2], student, teacher, kind="bpm", divergence="forward")
    # After a: abc goes on as bc, ab as b, ac as c, and a itself is the rest; so is the student's a.
    inside = kl([0.3, 0.25, 0.15, 0.1], [0.4, 0.3, 0.1, 0.2])
    assert out.kd.item() == pytest.approx(kl([0.8, 0.2, 0.0], [0.4, 0.3, 0.3]) + inside)


def test_bpm_gives_a_packed_token_the_bound_of_the_texts_way() -> None:
    pair = Tiny(["1", "2", "12", "a"], ["1", "2", "a", "22"])
    student = [[0.1, 0.2, 0.3, 0.4]] * 2
    teacher = [[0.5, 0.2, 0.2, 0.1], [0.1, 0.3, 0.4, 0.2], [0.25] * 4]
    out = value(pair, [2], [0, 1], student, teacher, kind="bpm", divergence="forward")
    # 12 is 1, then 2 or 22: 0.5 * (0.3 + 0.2); 22 as the first token begins with the student's 2.
    bound = 0.5 * (0.3 + 0.2)
    assert out.kd.item() == pytest.approx(kl([0.5 - bound, 0.3, 0.2, bound], [0.1, 0.2, 0.4, 0.3]))


def test_bpm_reads_the_teachers_row_where_its_own_token_began() -> None:
    # The student's bc ends where the teacher's c does, but begins inside of ab.
    pair = Tiny(["a", "b", "c", "bc"], ["a", "b", "c", "ab"])
    student = [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25] * 4]
    teacher = [[0.1, 0.2, 0.3, 0.4], [0.3, 0.1, 0.5, 0.1], [0.25] * 4]
    out = value(pair, [0, 3], [3, 2], student, teacher, kind="bpm", divergence="forward")
    # Inside: of ab is left b (0.4), of a nothing (0.1); b c, known with 0.4 * 0.5, is the student's bc.
    inside = kl([0.2, 0.2, 0.1], [0.2, 0.4, 0.4])
    assert out.kd.item() == pytest.approx(kl([0.5, 0.2, 0.3, 0.0], [0.4, 0.3, 0.2, 0.1]) + inside)


def test_escd_asks_for_the_completion_after_any_token_with_which_a_group_begins() -> None:
    pair = Tiny(["a", "b", "c"], ["a", "b", "ab", "abc"])
    student = [[0.5, 0.2, 0.3], [0.1, 0.7, 0.2], [0.3, 0.3, 0.4]]
    teacher = [[0.4, 0.3, 0.2, 0.1]] * 3
    # The text has a b on both sides: no token of the group {ab, abc}, but it begins with a.
    out = value(pair, [0, 1], [0, 1], student, teacher, kind="escd")
    root = kl([0.7, 0.3, 0.0], student[0]), kl([0.7, 0.3, 0.0], student[1])
    assert out.chunk_kd.tolist() == pytest.approx([root[0] - 0.3 * log(0.7), root[1]])


def test_strict_looks_at_exact_pairs_alone() -> None:
    pair = Tiny(["a", "b", "12"], ["a", "b", "1", "2"])
    student = [[0.5, 0.2, 0.3], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6]]
    teacher = [[0.4, 0.4, 0.1, 0.1], [0.3, 0.3, 0.2, 0.2], [0.1, 0.2, 0.3, 0.4], [0.25] * 4]
    out = value(pair, [0, 2], [0, 2, 3], student, teacher, kind="strict")
    # `<s>` is a pair, too; nobody says it. Reverse: the student's share of the pairs against the teacher's.
    assert out.chunk_kd.tolist() == pytest.approx([kl([5 / 7, 2 / 7], [0.5, 0.5]), 0.0])
    assert out.misfits.tolist() == [False, True]


def test_strict_may_compare_the_students_best_pairs_alone() -> None:
    pair = Tiny(["a", "b", "c"], ["c", "a", "b"])
    student, teacher = [[0.5, 0.2, 0.3], [1, 0, 0]], [[0.1, 0.3, 0.6], [1, 0, 0]]
    out = value(pair, [0], [1], student, teacher, kind="strict", student_top_k=2)
    assert out.kd.item() == pytest.approx(kl([0.5, 0.3], [0.3, 0.1]))
    whole = value(pair, [0], [1], student, teacher, kind="strict", student_top_k=16)
    assert whole.kd.item() == pytest.approx(kl([0.5, 0.2, 0.3], [0.3, 0.6, 0.1]))


def test_simct_has_the_texts_unit_beside_the_shared_tokens() -> None:
    pair = Tiny(["a", "12"], ["a", "1", "2"])
    student = [[0.4, 0.6], [0.5, 0.5]]
    teacher = [[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [1, 0, 0]]
    out = value(pair, [1], [1, 2], student, teacher, kind="simct")
    assert out.kd.item() == pytest.approx(kl([0.4, 0.6], [0.2, (0.5 * 0.8) ** 0.5]))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("kind", COMPARING)
def test_equal_logits_under_the_identity_mapping_have_loss_and_gradient_zero(
    kind: str, divergence: str, temperature: float
) -> None:
    vocab = make_vocab(
        ["a", "b", "ab", (b"", Kind.HOLE), "ba", (b"<s>", Kind.SPECIAL), (b"<unused1>", Kind.RESERVED)],
        roles={"bos": [5]},
    )
    spans = align_ids([[5, 0, 2, 4]], [[5, 0, 2, 4]], student=vocab, teacher=vocab)
    logits = torch.randn(1, 4, len(vocab), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    student = logits.clone().requires_grad_()
    mapping = build(student=vocab, teacher=vocab)
    out = slow_kind(mapping, student, logits, spans, kind=kind, divergence=divergence, temperature=temperature)
    out.loss.backward()
    assert out.chunk_kd.shape == (3,)
    assert out.chunk_kd.abs().max() < 1e-12
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("kind", COMPARING)
def test_no_kind_is_negative_whatever_the_divergence(kind: str) -> None:
    somewhere = False
    for seed, feature in enumerate(FEATURES):
        case = case_of(seed, infinities=0.3 if seed % 5 == 4 else 0.0)
        known = case.teacher_logits if seed % 3 else top_k_of(case_of(seed), 3)
        if kind in {"h-kl", "gold"}:
            known = case.teacher_logits
        student = case.student_logits.clone().requires_grad_()
        options = {
            "divergence": ("forward", "reverse", "jsd")[seed % 3],
            "beta": 0.3,
            "student_top_k": (None, 3)[seed % 2],
        }
        out = slow_kind(case.mapping, student, known, case.spans, kind=kind, stop_bridge=seed % 4 == 1, **options)
        out.loss.backward()
        assert (out.chunk_kd >= -1e-12).all(), feature
        assert student.grad.isfinite().all(), feature
        somewhere |= bool(out.kd > 0.01)
    assert somewhere


def test_kinds_that_compare_no_distributions_are_refused() -> None:
    case = case_of(0)
    for kind in ("uld", "alm"):
        with pytest.raises(OptionError, match="compares no distributions"):
            slow_kind(case.mapping, case.student_logits, case.teacher_logits, case.spans, kind=kind)
