"""Random batches have what they promise, and the slow losses keep their own promises on them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from loss_calls import case_of
from random_batches import FEATURES, Case, random_case, top_k_of
from slow_loss import slow_loss

from xtoken_align.vocab.kinds import Kind

KINDS = ("partition-kl", "c-kl", "p-kl", "h-kl", "gold", "uld", "alm")


@cache
def cases() -> list[Case]:
    return [case_of(seed) for seed in range(8 * len(FEATURES))]


def of(feature: str) -> list[Case]:
    return [case for case in cases() if case.feature == feature]


def sizes(case: Case) -> tuple[np.ndarray, np.ndarray]:
    made = case.spans.predictions()
    return np.diff(made.student_offsets), np.diff(made.teacher_offsets)


def has(case: Case, side: str, kind: Kind) -> bool:
    return bool((getattr(case, side).kinds == kind).any())


def test_a_case_depends_on_its_seed_alone() -> None:
    one, other = random_case(5), random_case(5)
    assert torch.equal(one.student_logits, other.student_logits)
    assert np.array_equal(one.spans.teacher, other.spans.teacher)
    assert one.mapping.content_hash == other.mapping.content_hash


def test_one_chunk_is_one_and_no_chunk_is_none() -> None:
    assert {len(case.spans.predictions()) for case in of("one chunk")} == {1}
    assert {len(case.spans.predictions()) for case in of("no chunk")} == {0}


def test_chunks_have_one_to_seven_tokens_on_either_side() -> None:
    for side in (0, 1):
        found = set(np.concatenate([sizes(case)[side] for case in cases()]).tolist())
        assert {1, 2, 3, 5, 7} <= found
    assert any(((ours > 1) & (theirs > 1)).any() for ours, theirs in map(sizes, cases()))


def test_a_one_sided_begin_of_text_is_in_no_chunk() -> None:
    for case in of("one-sided begin of text"):
        begin = case.student.roles["bos"][0]
        assert (case.spans.student[case.spans.student_ids == begin] == -1).all()
        assert (case.spans.student_ids == begin).any()


def test_specials_are_matched_and_unmatched() -> None:
    chunks = {
        role: np.concatenate(
            [case.spans.student[case.spans.student_ids == case.student.roles[role][0]] for case in of("specials")]
        )
        for role in ("bos", "eot")
    }
    assert all((chunk >= 0).any() for chunk in chunks.values())
    own = [case.spans.student_ids == case.student.surfaces.list.index(b"<x>") for case in of("specials")]
    assert any(places.any() for places in own)
    assert all((case.spans.student[places] == -1).all() for case, places in zip(of("specials"), own, strict=True))


def test_padding_holes_bytes_and_empty_rows_are_there() -> None:
    for side in ("student", "teacher"):
        assert all(has(case, side, kind) for case in of("padding and holes") for kind in (Kind.PADDING, Kind.HOLE))
    assert all(has(case, "student", Kind.BYTE) for case in of("bytes"))
    for case in of("empty rows"):
        live = np.flatnonzero(case.student.kinds < Kind.SPECIAL)
        assert (np.diff(case.mapping.matrix.indptr)[live] == 0).any()


def test_nothing_in_common_has_chunks_all_the_same() -> None:
    found = of("nothing in common")
    assert any(case.mapping.W.nnz == 0 and len(case.spans.predictions()) for case in found)
    assert any(case.mapping.W.nnz > 0 and len(case.spans.predictions()) for case in found)
    assert all(case.mapping.coverage().rules["exact"] == 0 for case in found)


def test_widths_are_odd_and_even_and_rows_are_packed_and_padded() -> None:
    widths = {case.student_logits.shape[2] for case in cases()}
    assert min(widths) >= 4
    assert max(widths) <= 60
    assert len(widths) > 20
    assert all((case.spans.student_segments.max(axis=1) == 2).all() for case in of("packed rows"))
    assert any((case.spans.student_segments < 0)[:, 0].any() for case in cases())
    assert any((case.spans.student_segments < 0)[:, -1].any() for case in cases())


def test_some_chunks_are_misfits_and_some_have_levels() -> None:
    misfits = levels = 0
    for case in cases():
        made = [
            slow_loss(case.mapping, case.student_logits, case.teacher_logits, case.spans, kind=kind)
            for kind in ("partition-kl", "c-kl")
        ]
        misfits += int(made[0].misfits.sum())
        levels += int((made[1].chunk_kd > made[0].chunk_kd + 1e-9).sum())
        assert torch.equal(made[0].misfits, made[1].misfits)
    assert misfits >= 10
    assert levels >= 100


@pytest.mark.parametrize("infinities", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_slow_losses_are_finite_and_not_negative_with_finite_slopes(kind: str, infinities: float) -> None:
    for seed in range(2 * len(FEATURES)):
        case = case_of(seed, infinities=infinities)
        merge = "mean" if seed % 2 and kind not in {"c-kl", "alm"} else "first"
        student = case.student_logits.clone().requires_grad_()
        out = slow_loss(
            case.mapping, student, case.teacher_logits, case.spans, kind=kind, temperature=1 + seed % 3, merge=merge
        )
        out.loss.backward()
        assert out.chunk_kd.isfinite().all()
        assert (out.chunk_kd > -1e-12).all()
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "alm"])
def test_a_teacher_that_lists_every_token_is_its_logits(kind: str) -> None:
    for seed in range(2 * len(FEATURES)):
        case = case_of(seed)
        options = {"kind": kind, "merge": "mean" if seed % 2 and kind != "c-kl" else "first"}
        if kind in {"partition-kl", "p-kl", "c-kl"}:
            options["temperature"] = 2.0
        listed = slow_loss(case.mapping, case.student_logits, top_k_of(case, 64), case.spans, **options)
        whole = slow_loss(case.mapping, case.student_logits, case.teacher_logits, case.spans, **options)
        torch.testing.assert_close(listed.chunk_kd, whole.chunk_kd, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_padding_ids_changes_nothing(kind: str) -> None:
    for case in of("padding and holes")[:4]:
        student, teacher = case.student_logits.clone(), case.teacher_logits.clone()
        student[..., torch.from_numpy(case.student.kinds >= Kind.PADDING)] = 30.0
        teacher[..., torch.from_numpy(case.teacher.kinds >= Kind.PADDING)] = -30.0
        one = slow_loss(case.mapping, student, teacher, case.spans, kind=kind)
        other = slow_loss(case.mapping, case.student_logits, case.teacher_logits, case.spans, kind=kind)
        torch.testing.assert_close(one.chunk_kd, other.chunk_kd, rtol=0, atol=1e-12)


def test_the_gradient_of_p_kl_in_the_weights_of_w_is_that_of_finite_differences() -> None:
    case = next(case for case in of("long chunks") if len(case.spans.predictions()))
    weights = torch.from_numpy(case.mapping.matrix.data).double().requires_grad_()

    def value(given: torch.Tensor) -> torch.Tensor:
        options = {"kind": "p-kl", "merge": "mean", "link_weights": given, "temperature": 2.0}
        return slow_loss(case.mapping, case.student_logits, case.teacher_logits, case.spans, **options).kd

    assert torch.autograd.gradcheck(value, weights)
    assert torch.autograd.grad(value(weights), weights)[0].abs().max() > 1e-3


def test_the_order_of_a_batchs_rows_changes_nothing() -> None:
    case = next(case for case in of("long chunks") if len(case.spans) > 1 and len(case.spans.predictions()) > 2)
    turned = replace(
        case.spans,
        **{name: getattr(case.spans, name)[::-1] for name in vars(case.spans) if not name.startswith("_")},
    )
    for kind in KINDS:
        here = slow_loss(case.mapping, case.student_logits, case.teacher_logits, case.spans, kind=kind)
        there = slow_loss(case.mapping, case.student_logits.flip(0), case.teacher_logits.flip(0), turned, kind=kind)
        assert there.kd.item() == pytest.approx(here.kd.item(), rel=1e-12)
