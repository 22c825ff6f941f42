"""How a batch is ordered, split, cut into blocks or accumulated changes nothing but the last digits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from loss_calls import BY, KINDS, assert_same, called, case_of, fast, name_of, options_of
from random_batches import Case, top_k_of

from xtoken_align import Spans
from xtoken_align.losses import Hidden, Teacher, TopK, XTokenLoss, uld
from xtoken_align.losses import plan as planning
from xtoken_align.losses.plan import BlockSizes

SEEDS = (10, 38)
"""Batches of several rows: with one-to-many, many-to-one and many-to-many chunks, misfits and levels."""

OPTIONS = [one for kind in KINDS for one in options_of(kind)[:1] + options_of(kind)[-1:]] + BY[1:4]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=name_of)


def taken(spans: Spans, rows: Any) -> Spans:
    arrays = {name: value[rows] for name, value in vars(spans).items() if not name.startswith("_")}
    return replace(spans, **arrays)


def part(case: Case, rows: Any) -> Case:
    return replace(
        case,
        student_logits=case.student_logits[rows],
        teacher_logits=case.teacher_logits[rows],
        labels=case.labels[rows],
        spans=taken(case.spans, rows),
    )


def several_rows(seed: int) -> Case:
    case = case_of(seed)
    assert len(case.spans) > 1
    return case


@every_option
def test_the_order_of_rows_changes_nothing(options: dict[str, Any]) -> None:
    for seed in SEEDS:
        case = several_rows(seed)
        order = np.arange(len(case.spans))[::-1].copy()
        turned = part(case, order)
        here = fast(case, case.student_logits, case.teacher_logits, labels=case.labels, **options)
        there = fast(turned, turned.student_logits, turned.teacher_logits, labels=turned.labels, **options)
        back = replace(there, gradients=(there.gradient.flip(0),))
        assert_same(back, here, rtol=1e-10, atol=1e-12)


@every_option
def test_the_size_of_blocks_changes_nothing(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, rows in zip(SEEDS, (1, 5), strict=True):
        case = case_of(seed)
        source = torch.Generator().manual_seed(0)
        states = torch.randn(*case.student_logits.shape[:2], 4, generator=source, dtype=torch.float64)
        weight = torch.randn(case.student_logits.shape[2], 4, generator=source, dtype=torch.float64)
        found = []
        for size in (None, rows):
            with monkeypatch.context() as patch:
                if size is not None:
                    patch.setattr(planning, "WIDTH", 1)
                    patch.setattr(planning, "CPU", BlockSizes(size, size, size, size, size))
                logits = fast(case, case.student_logits, case.teacher_logits, labels=case.labels, **options)
                inputs = [states.requires_grad_(), weight.requires_grad_()]
                loss = XTokenLoss(case.mapping, **options)
                fused = loss(Hidden(*inputs), case.teacher_logits, case.spans, labels=case.labels)
                found.append((logits, called(fused, inputs), loss, fused.metrics))
        for one, other in zip(found[1][:2], found[0][:2], strict=True):
            assert_same(one, other, rtol=1e-10, atol=1e-12)
        for name, pair in found[0][3].items():
            torch.testing.assert_close(found[1][3][name], pair)


def test_a_batch_is_cut_into_blocks_of_whole_chunks_that_hold_each_row_once() -> None:
    case = case_of(4)
    predictions, labels = case.spans.predictions(), case.labels.numpy().ravel()
    for rows in (1000, 2):
        sizes = BlockSizes(rows, rows, rows, rows, rows)
        plan = planning.plan_batch(predictions, labels, sizes, rows=rows, merge="mean")
        assert (len(plan.blocks) > 4) == (rows == 2)
        chunks = [
            number for block in plan.blocks for part in block.parts for number in range(len(predictions))[part.chunks]
        ]
        assert chunks == list(range(len(predictions)))
        read = np.concatenate([block.student_rows[: block.level_one] for block in plan.blocks])
        assert np.array_equal(read, predictions.student)
        labelled = np.concatenate([block.student_rows[block.labels != -100] for block in plan.blocks])
        assert np.array_equal(np.sort(labelled), np.flatnonzero(labels != -100))


def test_the_size_of_blocks_of_rows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    z, t = torch.randn(2, 11, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = uld(z, t, reduction="none")
    monkeypatch.setattr(planning, "WIDTH", 1)
    monkeypatch.setattr(planning, "CPU", replace(planning.CPU, rows=3))
    torch.testing.assert_close(uld(z, t, reduction="none"), whole, rtol=1e-12, atol=0)


@every_option
def test_accumulating_steps_are_one_step(options: dict[str, Any]) -> None:
    for seed, counted in zip(SEEDS, (int, torch.tensor), strict=True):
        case = several_rows(seed)
        whole = fast(case, case.student_logits, case.teacher_logits, labels=case.labels, **options)
        chunks = counted(len(case.spans.predictions()))
        items = counted(int((case.labels[:, 1:] != -100).sum()))
        loss = XTokenLoss(case.mapping, **options)
        leaf = case.student_logits.clone().requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        sums: dict[str, torch.Tensor] = {}
        for row in range(len(case.spans)):
            one = part(case, slice(row, row + 1))
            out = loss(
                leaf[row : row + 1],
                one.teacher_logits,
                one.spans,
                labels=one.labels,
                num_chunks_in_batch=chunks,
                num_items_in_batch=items,
            )
            out.loss.backward()
            total += out.loss.detach()
            for name, pair in out.metrics.items():
                sums[name] = sums.get(name, torch.zeros(2, dtype=torch.float64)) + torch.stack(pair)
        torch.testing.assert_close(total, whole.loss, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(leaf.grad, whole.gradient, rtol=1e-9, atol=1e-12)
        together = loss(case.student_logits, case.teacher_logits, case.spans, labels=case.labels).metrics
        for name, pair in together.items():
            if name != "scale":
                torch.testing.assert_close(sums[name], torch.stack(pair), rtol=1e-9, atol=1e-12)


@every_option
def test_more_padding_changes_nothing(options: dict[str, Any]) -> None:
    case = case_of(4)
    # A label at position 0 has no logits before it, until there is padding.
    labels = case.labels.clone()
    labels[:, 0] = -100
    case = replace(case, labels=labels)
    fill = {"student": -1, "teacher": -1, "student_segments": -1, "teacher_segments": -1}
    arrays = {
        name: np.pad(value, ((0, 0), (2, 3)), constant_values=fill.get(name, 0))
        for name, value in vars(case.spans).items()
        if name not in {"weight", "count"} and not name.startswith("_")
    }
    wider = replace(
        case,
        spans=replace(case.spans, **arrays),
        student_logits=torch.nn.functional.pad(case.student_logits, (0, 0, 2, 3), value=7.0),
        teacher_logits=torch.nn.functional.pad(case.teacher_logits, (0, 0, 2, 3), value=7.0),
        labels=torch.nn.functional.pad(case.labels, (2, 3), value=-100),
    )
    here = fast(case, case.student_logits, case.teacher_logits, labels=case.labels, **options)
    there = fast(wider, wider.student_logits, wider.teacher_logits, labels=wider.labels, **options)
    assert_same(replace(there, gradients=(there.gradient[:, 2:-3],)), here, rtol=1e-10, atol=1e-12)
    assert (there.gradient[:, :2] == 0).all()
    assert (there.gradient[:, -3:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_spans_as_tensors_and_views_of_logits_are_the_same(kind: str) -> None:
    case = case_of(4)
    here = fast(case, case.student_logits, case.teacher_logits, labels=case.labels, kind=kind)
    views = [
        torch.cat([side, side], dim=-1)[..., : side.shape[-1]] for side in (case.student_logits, case.teacher_logits)
    ]
    assert not views[0].is_contiguous()
    leaf = views[0].requires_grad_()
    out = XTokenLoss(case.mapping, kind)(leaf, views[1], case.spans.torch(), labels=case.labels)
    assert_same(called(out, [leaf]), here, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", options_of(*KINDS), ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_logits_whose_last_dimension_is_strided_are_the_same(options: dict[str, Any], dtype: torch.dtype) -> None:
    # A row alone, since flattening several rows copies them; this one has levels of C-KL.
    case = part(several_rows(25), slice(1))
    given = case.student_logits.to(dtype), case.teacher_logits.to(dtype)
    found = []
    for sides in (given, list(map(turn, given))):
        leaf = sides[0].detach().requires_grad_()
        out = XTokenLoss(case.mapping, **options)(leaf, sides[1], case.spans, labels=case.labels)
        found.append(called(out, [leaf]))
    assert sides[0].stride(2) != 1
    assert_same(found[1], found[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["c-kl", "partition-kl", "h-kl"])
def test_strided_hidden_states_heads_and_cached_teachers_are_the_same(kind: str) -> None:
    case = part(several_rows(25), slice(1))
    source = torch.Generator().manual_seed(1)
    states = torch.randn(*case.student_logits.shape[:2], 5, generator=source, dtype=torch.float64)
    weight = torch.randn(case.student_logits.shape[2], 5, generator=source, dtype=torch.float64)
    teacher: Teacher = case.teacher_logits if kind == "h-kl" else top_k_of(case, 3)
    found = []
    for turned in (False, True):
        leaves = [turn(one) if turned else one.clone() for one in (states, weight)]
        for leaf in leaves:
            leaf.requires_grad_()
        if turned and isinstance(teacher, TopK):
            teacher = TopK(turn(teacher.ids), turn(teacher.log_probs), turn(teacher.rest), teacher.width)
        out = XTokenLoss(case.mapping, kind)(Hidden(*leaves), teacher, case.spans, labels=case.labels)
        found.append(called(out, leaves))
    assert_same(found[1], found[0], rtol=1e-12, atol=1e-14)


def turn(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, the last dimension strided."""
    return tensor.detach().transpose(-1, -2).contiguous().transpose(-1, -2)
