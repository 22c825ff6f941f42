"""What a batch's spans say: weights, the logits that predict, statistics, and the same as tensors."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from span_checks import vocab

from xtoken_align.spans.aligner import align_ids
from xtoken_align.spans.spans import Predictions, Spans

STUDENT = vocab(["a", "b", "ab", "<s>", "<x>"], roles={"bos": [3]})
TEACHER = vocab(["a", "b", "ba", "<s>", "<y>"], roles={"bos": [3]})


@st.composite
def batches(draw: st.DrawFn) -> Spans:
    """Rows of packed documents, padded on either side, with labels."""
    count = draw(st.integers(1, 3))
    sides: tuple[list[list[tuple[int, int]]], list[list[tuple[int, int]]]] = ([], [])
    for _ in range(count):
        rows: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        for number in range(draw(st.integers(0, 3))):
            text = "".join(draw(st.lists(st.sampled_from(["a", "b", "ab", "ba"]), max_size=5)))
            for row, side in zip(rows, (STUDENT, TEACHER), strict=True):
                ids = [3] * draw(st.integers(0, 1)) + side.encode_batch([text])[0] + [4] * draw(st.integers(0, 1))
                row.extend((number, token) for token in ids)
        for side, row in zip(sides, rows, strict=True):
            side.append(row)
    options: dict[str, object] = {}
    arrays = []
    left = draw(st.booleans())
    for name, side in zip(("student", "teacher"), sides, strict=True):
        longest = max(map(len, side))
        ids, segments = np.zeros((count, longest), dtype=np.int64), np.full((count, longest), -1)
        for row, own in enumerate(side):
            at = longest - len(own) if left else 0
            for place, (number, token) in enumerate(own, start=at):
                ids[row, place], segments[row, place] = token, number
        arrays.append(ids)
        options[f"{name}_segments"] = segments
        if draw(st.booleans()):
            flags = draw(st.lists(st.booleans(), min_size=ids.size, max_size=ids.size))
            options[f"{name}_loss_mask"] = np.array(flags, dtype=bool).reshape(ids.shape)
    return align_ids(*arrays, student=STUDENT, teacher=TEACHER, **options)


def members(spans: Spans, side: str, row: int, number: int) -> list[int]:
    return [at for at, chunk in enumerate(getattr(spans, side)[row].tolist()) if chunk == number]


def counts(spans: Spans, row: int, number: int) -> bool:
    """Whether a chunk has weight: every token labelled, none the first of its document."""
    for side in ("student", "teacher"):
        segments = getattr(spans, f"{side}_segments")[row].tolist()
        labelled = getattr(spans, f"{side}_loss_mask")[row].tolist()
        for at in members(spans, side, row, number):
            if not labelled[at] or at == 0 or segments[at - 1] != segments[at]:
                return False
    return True


@given(spans=batches())
def test_a_chunk_has_weight_if_all_its_tokens_count_and_something_predicts_them(spans: Spans) -> None:
    for row, count in enumerate(spans.count.tolist()):
        expected = [float(counts(spans, row, number)) for number in range(count)]
        assert spans.weight[row].tolist() == expected + [0.0] * (spans.weight.shape[1] - count)
    assert spans.weight.shape == (len(spans), max(spans.count.tolist()))
    assert spans.weight.dtype == np.float32


@given(spans=batches())
def test_logits_one_position_before_its_tokens_predict_a_chunk(spans: Spans) -> None:
    made = spans.predictions()
    used = [
        (row, number)
        for row, count in enumerate(spans.count.tolist())
        for number in range(count)
        if counts(spans, row, number)
    ]
    assert len(made) == len(used)
    for side in ("student", "teacher"):
        ids = getattr(spans, f"{side}_ids")
        width = ids.shape[1]
        places = [[row * width + at - 1 for at in members(spans, side, row, number)] for row, number in used]
        offsets = getattr(made, f"{side}_offsets").tolist()
        assert [getattr(made, side)[a:b].tolist() for a, b in pairwise(offsets)] == places
        tokens = [ids[row, at] for row, number in used for at in members(spans, side, row, number)]
        assert getattr(made, f"{side}_tokens").tolist() == tokens
        # What predicts a token is the token before it in its own document.
        segments = getattr(spans, f"{side}_segments").ravel()
        rows = getattr(made, side)
        assert np.array_equal(segments[rows], segments[rows + 1])
        assert (segments[rows] >= 0).all()
    assert made.weight.tolist() == [1.0] * len(used)


@given(spans=batches())
def test_statistics_are_plain_counts(spans: Spans) -> None:
    sizes = [
        (len(members(spans, "student", row, number)), len(members(spans, "teacher", row, number)))
        for row, count in enumerate(spans.count.tolist())
        for number in range(count)
    ]
    got = spans.statistics()
    share = 1 / max(1, len(sizes))
    assert got.chunks == len(sizes)
    assert got.one_to_one == pytest.approx(share * sum(one == other == 1 for one, other in sizes))
    assert got.one_to_many == pytest.approx(share * sum(one == 1 < other for one, other in sizes))
    assert got.many_to_one == pytest.approx(share * sum(one > 1 == other for one, other in sizes))
    assert got.many_to_many == pytest.approx(share * sum(one > 1 < other for one, other in sizes))
    assert got.student_tokens == int((spans.student_segments >= 0).sum())
    assert got.teacher_tokens == int((spans.teacher_segments >= 0).sum())
    assert got.student_gaps == got.student_tokens - sum(one for one, _ in sizes)
    assert got.teacher_gaps == got.teacher_tokens - sum(other for _, other in sizes)
    assert got.longest == max((max(pair) for pair in sizes), default=0)
    assert got.to_dict() == {entry.name: getattr(got, entry.name) for entry in fields(got)}


def same(one: Spans | Predictions, other: Spans | Predictions) -> None:
    for entry in fields(one):
        if not entry.name.startswith("_"):
            left, right = getattr(one, entry.name), getattr(other, entry.name)
            assert isinstance(right, torch.Tensor)
            assert right.numpy().dtype == left.dtype, entry.name
            assert np.array_equal(left, right.numpy()), entry.name


@given(spans=batches())
def test_tensors_hold_what_arrays_hold(spans: Spans) -> None:
    for view in (spans.torch(), spans.to("cpu"), spans.torch().to("cpu", non_blocking=True), spans.torch().torch()):
        same(spans, view)
        same(spans.predictions(), view.predictions())
        assert np.array_equal(spans.student_mask, view.student_mask.numpy())
        assert np.array_equal(spans.teacher_mask, view.teacher_mask.numpy())
        assert view.statistics() == spans.statistics()
        assert len(view) == len(spans)
        back = view.numpy()
        assert all(isinstance(getattr(back, entry.name), np.ndarray) for entry in fields(back) if entry.name[0] != "_")
    assert spans.numpy() is spans


def test_predicted_ids_are_those_that_the_logits_at_a_row_are_about() -> None:
    # s a b | s ab a, and s a b | s a ba: what follows s is predicted at s.
    spans = align_ids([[3, 0, 1], [3, 2, 0]], [[3, 0, 1], [3, 0, 2]], student=STUDENT, teacher=TEACHER)
    made = spans.predictions()
    assert spans.weight.tolist() == [[0, 1, 1], [0, 1, 0]]
    assert made.student.tolist() == [0, 1, 3, 4]
    assert made.student_offsets.tolist() == [0, 1, 2, 4]
    assert made.student_tokens.tolist() == [0, 1, 2, 0]
    assert made.teacher.tolist() == [0, 1, 3, 4]
    assert made.teacher_offsets.tolist() == [0, 1, 2, 4]


def test_spans_with_other_weights_predict_by_those() -> None:
    # s a b | s a b: the chunks of a and b have a weight, then b's alone, then twice as much.
    spans = align_ids([[3, 0, 1]], [[3, 0, 1]], student=STUDENT, teacher=TEACHER)
    for view in (spans, spans.with_predictions(), spans.torch(), spans.torch().numpy()):
        assert view.weight.tolist() == [[0, 1, 1]]
        other = replace(view, weight=2 * view.weight * (view.weight.cumsum(1) == 2))
        assert other.predictions().weight.tolist() == [2]
        assert other.predictions().student_tokens.tolist() == [1]
        assert view.predictions().weight.tolist() == [1, 1]
        assert pickle.loads(pickle.dumps(view)).predictions().weight.tolist() == [1, 1]


def test_what_spans_keep_is_what_they_give() -> None:
    spans = align_ids([[3, 0, 1]], [[3, 0, 1]], student=STUDENT, teacher=TEACHER)
    for view in (spans.with_predictions(), spans.torch(), spans.torch().to("cpu"), spans.torch().numpy()):
        assert view.predictions() is view.predictions()
    assert spans.predictions() is not spans.predictions()


def test_spans_say_whose_ids_they_are_wherever_they_go() -> None:
    spans = align_ids([[3, 0, 1]], [[3, 0, 1]], student=STUDENT, teacher=TEACHER)
    identities = STUDENT.identity, TEACHER.identity
    assert identities[0] != identities[1]
    for view in (spans, spans.torch(), spans.to("cpu"), spans.torch().numpy(), pickle.loads(pickle.dumps(spans))):
        assert view.tokenizers == identities


def test_a_batch_without_chunks_predicts_nothing() -> None:
    for spans in (
        align_ids([], [], student=STUDENT, teacher=TEACHER),
        align_ids([[]], [[0]], student=STUDENT, teacher=TEACHER),
        align_ids([[0]], [[0]], student=STUDENT, teacher=TEACHER),
    ):
        made = spans.predictions()
        assert len(made) == 0
        assert made.student_offsets.tolist() == made.teacher_offsets.tolist() == [0]
        assert spans.torch().predictions().student.tolist() == []
        assert spans.statistics().chunks == int(spans.count.sum())
