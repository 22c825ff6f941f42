"""The collator: rows of a data set to batches, padded or packed, aligned before or now."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from span_checks import CHATML
from torch.utils.data import DataLoader

from xtoken_align.errors import OptionError
from xtoken_align.spans.aligner import Aligner, align_texts
from xtoken_align.spans.batch import SpanCollator, block_mask, packed, positions
from xtoken_align.vocab.vocab import Vocab

Real = Callable[[str], Vocab]
TEXTS = ["Hello 123, world", "", "naïve 😊", "x = 4567\n"]


def collator(real: Real, **options: object) -> SpanCollator:
    return SpanCollator(student=real("llama-3"), teacher=real("qwen3"), **options)


def test_texts_become_ids_masks_positions_labels_and_spans(real: Real) -> None:
    batch = collator(real)([{"text": text} for text in TEXTS])
    expected = align_texts(TEXTS, student=real("llama-3"), teacher=real("qwen3"), bos=True, eos=True)
    spans = batch["spans"].numpy()
    assert np.array_equal(spans.student, expected.student)
    assert np.array_equal(spans.weight, expected.weight)
    for side in ("student", "teacher"):
        mask = batch[f"{side}_attention_mask"].numpy().astype(bool)
        assert np.array_equal(mask, getattr(expected, f"{side}_mask"))
        assert np.array_equal(batch[f"{side}_input_ids"].numpy()[mask], getattr(expected, f"{side}_ids")[mask])
    labels = batch["labels"].numpy()
    assert (labels[:, 0] == -100).all()
    assert np.array_equal(labels[:, 1:], np.where(expected.student_mask, expected.student_ids, -100)[:, 1:])


def test_padding_is_the_pad_or_the_end_token_and_rows_are_a_multiple(real: Real) -> None:
    batch = collator(real, pad_to_multiple_of=8, padding_side="left")([{"text": text} for text in TEXTS])
    for side, vocab in (("student", real("llama-3")), ("teacher", real("qwen3"))):
        ids, mask = batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"].bool()
        assert ids.shape[1] % 8 == 0
        assert mask[:, -1].all()
        filler = set(ids[~mask].tolist())
        assert filler == {vocab.roles["pad" if "pad" in vocab.roles else "eos"][0]}


def test_chats_count_the_assistants_words_alone(real: Real) -> None:
    chat = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    batch = collator(real, student_template=CHATML, teacher_template=CHATML)([{"messages": chat}])
    labels = batch["labels"][0]
    assert real("llama-3").surfaces[int(labels[labels >= 0][0])] == b"4"
    assert int(batch["spans"].weight.sum()) == 1 + int("<|im_end|>" in real("llama-3").raw)


def test_ids_aligned_before_and_ids_aligned_now_give_one_batch(real: Real) -> None:
    spans = align_texts(TEXTS, student=real("llama-3"), teacher=real("qwen3"), bos=True)
    now = [
        {
            f"{side}_{name}": getattr(spans, attribute)[row][getattr(spans, f"{side}_mask")[row]].tolist()
            for side in ("student", "teacher")
            for name, attribute in (("ids", f"{side}_ids"), ("chunks", side))
        }
        for row in range(len(TEXTS))
    ]
    without = [{name: value for name, value in row.items() if "chunks" not in name} for row in now]
    for limits in ({}, {"max_student_tokens": 4, "max_teacher_tokens": 5}):
        one, other = collator(real, **limits)(now), collator(real, **limits)(without)
        for name, array in one.items():
            if name != "spans":
                assert np.array_equal(array, other[name]), name
        for name in ("student", "teacher", "count", "weight"):
            assert np.array_equal(getattr(one["spans"], name), getattr(other["spans"], name)), name


def test_a_cut_through_a_chunk_found_before_drops_the_chunk(real: Real) -> None:
    row = {"student_ids": [9906, 4513], "teacher_ids": [9707, 16, 17, 18]}
    chunks = {"student_chunks": [0, 1], "teacher_chunks": [0, 1, 1, 1]}
    for side, kept in (("right", [0, -1]), ("left", [0])):
        limits = {"max_teacher_tokens": 3} if side == "right" else {"max_student_tokens": 1}
        spans = collator(real, truncation_side=side, **limits)([{**row, **chunks}])["spans"]
        assert spans.student[0].tolist() == kept


def test_loss_masks_of_columns_reach_labels_and_weights(real: Real) -> None:
    row = {
        "student_ids": [9906, 220, 4513],
        "teacher_ids": [9707, 220, 16, 17, 18],
        "student_loss_mask": [0, 1, 1],
        "teacher_loss_mask": [1, 1, 1, 0, 1],
    }
    batch = collator(real)([row])
    assert batch["labels"].tolist() == [[-100, 220, 4513]]
    assert batch["spans"].weight.tolist() == [[0, 1, 0]]


@settings(max_examples=40)
@given(st.lists(st.text(st.sampled_from("ab 12é😊\n"), max_size=12), max_size=9), st.sampled_from(["left", "right"]))
def test_packed_documents_are_the_documents_alone(real: Real, texts: list[str], side: str) -> None:
    if not texts:
        return
    made = collator(real, pack=True, max_student_tokens=20, max_teacher_tokens=24, padding_side=side)
    batch = made([{"text": text} for text in texts])
    spans = batch["spans"].numpy()
    assert spans.student.shape[1] <= 20
    assert spans.teacher.shape[1] <= 24
    alone = {
        tuple(row["student_input_ids"][0].tolist()): row["spans"].numpy()
        for row in (collator(real)([{"text": text}]) for text in texts)
    }
    seen = 0
    for row in range(len(spans)):
        documents = sorted(set(spans.student_segments[row].tolist()) - {-1})
        assert documents == list(range(len(documents)))
        base = 0
        for document in documents:
            ours, theirs = (getattr(spans, f"{name}_segments")[row] == document for name in ("student", "teacher"))
            expected = alone[tuple(spans.student_ids[row][ours].tolist())]
            assert batch["student_position_ids"][row][ours].tolist() == list(range(int(ours.sum())))
            assert batch["teacher_position_ids"][row][theirs].tolist() == list(range(int(theirs.sum())))
            for name, mask in (("student", ours), ("teacher", theirs)):
                chunk = getattr(spans, name)[row][mask]
                assert np.where(chunk >= 0, chunk - base, -1).tolist() == getattr(expected, name)[0].tolist()
            count = int(expected.count[0])
            assert spans.weight[row][base : base + count].tolist() == expected.weight[0].tolist()
            base += count
            seen += 1
        assert base == spans.count[row]
    assert seen == len(texts)


def test_packing_fills_the_first_row_with_room_on_both_sides(real: Real) -> None:
    texts = ["a b c d", "a b c d e f", "a", "a b"]
    spans = collator(real, pack=True, max_student_tokens=10, max_teacher_tokens=10)([{"text": t} for t in texts])[
        "spans"
    ]
    sizes = [[int((row == document).sum()) for document in range(int(row.max()) + 1)] for row in spans.student_segments]
    assert sizes == [[6, 3], [8], [4]]


def test_a_block_mask_lets_a_token_see_its_own_document_up_to_itself() -> None:
    segments = np.array([[0, 0, 1, -1]])
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert block_mask(segments)[0, 0].astype(int).tolist() == expected
    import torch

    assert block_mask(torch.from_numpy(segments))[0, 0].int().tolist() == expected


def test_positions_begin_anew_with_every_document() -> None:
    assert positions(np.array([[-1, 0, 0, 1], [0, 1, 1, -1]])).tolist() == [[0, 0, 1, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pack": True}, "packed rows need max_student_tokens and max_teacher_tokens"),
        ({"padding_side": "top"}, "padding_side is left or right, got 'top'"),
        ({"truncation_side": "top"}, "truncation_side is left or right, got 'top'"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is a positive number, got 0"),
    ],
)
def test_options_without_sense_are_refused_when_the_collator_is_made(
    real: Real, options: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        collator(real, **options)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "got no rows"),
        ([{"label": 1}], r"rows need a `text`.*got \['label'\]"),
        ([{"text": "a"}, {"messages": []}], "all rows of a batch the same"),
        ([{"student_ids": [1]}], "rows with ids need `teacher_ids`"),
        (
            [{"student_ids": [1], "teacher_ids": [1], "student_chunks": []}],
            "`student_chunks` needs a value",
        ),
        (
            [{"student_ids": [1], "teacher_ids": [1], "student_chunks": [0]}, {"student_ids": [1], "teacher_ids": [1]}],
            "some rows have `student_chunks`",
        ),
        ([{"student_ids": [999999], "teacher_ids": [1]}], "a student id is 999999"),
    ],
)
def test_rows_of_no_known_form_are_refused(real: Real, rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        collator(real)(rows)


def test_a_document_longer_than_a_packed_row_is_cut_to_it(real: Real) -> None:
    row = {"student_ids": [1] * 9, "teacher_ids": [1] * 9}
    made = collator(real, pack=True, max_student_tokens=8, max_teacher_tokens=8)
    assert made([row])["student_input_ids"].shape == (1, 8)


def test_packing_refuses_a_document_longer_than_a_row(real: Real) -> None:
    documents = Aligner(student=real("llama-3"), teacher=real("qwen3")).text_units(["a b c"])
    with pytest.raises(OptionError, match="3 student and 3 teacher tokens, a packed row at most 2 and 9"):
        packed(documents, (2, 9), "right")


def test_a_data_loader_takes_the_collator_also_as_a_copy_for_another_process(real: Real) -> None:
    copy = pickle.loads(pickle.dumps(SpanCollator(student="llama-3", teacher="qwen3")))
    loader = DataLoader([{"text": text} for text in TEXTS], batch_size=2, collate_fn=copy)
    expected = collator(real)([{"text": text} for text in TEXTS[2:]])
    batches = list(loader)
    assert np.array_equal(batches[1]["student_input_ids"], expected["student_input_ids"])
    assert np.array_equal(batches[1]["spans"].student, expected["spans"].student)
