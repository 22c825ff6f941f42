"""Rows of a student's own answers: its ids stay as they are, and the teacher reads what its tokenizer makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from span_checks import CHATML, INST, LLAMA, any_text, chunk_rows, id_rows, surfaces_of, vocab

from xtoken_align import Vocab
from xtoken_align.errors import OptionError
from xtoken_align.spans.aligner import Aligner
from xtoken_align.spans.answers import Answer, Prompt, prompts_of, rows_of_answers
from xtoken_align.spans.batch import SpanCollator
from xtoken_align.spans.spans import Spans
from xtoken_align.vocab.kinds import Kind

Real = Callable[[str], Vocab]

PAIRS = [
    *(("llama-3", "qwen3"), ("qwen3", "llama-3"), ("mistral-v1", "llama-3"), ("llama-3", "mistral-v1")),
    *(("deepseek", "mistral-v3"), ("mistral-v3", "o200k"), ("gpt-oss", "deepseek"), ("llama-3", "j2")),
]

ASKING_LLAMA = LLAMA + "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
ASKING_CHATML = CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
THINKING = CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
BLIND = "{% for m in messages %}<|im_start|>{{ m.role }}:\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHAT = [
    {"role": "user", "content": "2 + 2 = 😊?"},
    {"role": "assistant", "content": "It is 1234."},
    {"role": "user", "content": "Say <|im_end|> twice"},
    {"role": "assistant", "content": "No, I would rather not say 20 things like that."},
]


def spans_of(collate: SpanCollator, prompts: list[Prompt], answers: list[Answer]) -> Spans:
    spans: Spans = collate(rows_of_answers(collate, prompts, answers))["spans"].numpy()
    return spans


def weights_of(spans: Spans, row: int = 0) -> list[int]:
    """The chunks with a weight."""
    weights: list[int] = np.flatnonzero(spans.weight[row]).tolist()
    return weights


# Texts


@pytest.mark.parametrize(("student", "teacher"), PAIRS, ids=str)
def test_a_text_that_was_written_is_the_row_that_it_would_be_in_a_data_set(
    real: Real, student: str, teacher: str
) -> None:
    ours, theirs = real(student), real(teacher)
    collate = SpanCollator(student=ours, teacher=theirs)
    tried = []

    @settings(max_examples=12, suppress_health_check=list(HealthCheck))
    @given(any_text(surrogates=False), st.integers(1, 40))
    @example("  ", 1)
    def holds(text: str, prompt_tokens: int) -> None:
        data = collate([{"text": text}])["spans"].numpy()
        ids, its_ids = id_rows(data)
        said = b"".join(surfaces_of(ours, ids)).decode(errors="replace")
        # What a normaliser changed is not what the student says.
        assume(said.removeprefix(" " if ours.encoder.dummy_prefix else "") == text)
        (prompt,) = prompts_of(collate, [{"text": text}], prompt_tokens=prompt_tokens)
        begun = len(prompt.ids)
        assert prompt.ids.tolist() == ids[:begun]
        ended = ids[-1] in ours.roles["eos"]
        spans = spans_of(collate, [prompt], [Answer(np.array(ids[begun:]), ended)])
        assert id_rows(spans) == (ids, its_ids)
        # BOS, which no answer has, is in no chunk here.
        first = int(data.student[0][0] >= 0 and prompt.frame > 0)
        for side in (0, 1):
            before = [max(chunk - first, -1) for chunk in chunk_rows(data)[side]]
            assert chunk_rows(spans)[side] == before
        written = set(chunk_rows(spans)[0]) - set(chunk_rows(spans)[0][:begun])
        assert weights_of(spans) == [chunk - first for chunk in weights_of(data) if chunk - first in written]
        tried.append(text)

    holds()
    assert tried


def test_what_a_teachers_token_joins_to_the_prompt_has_no_weight() -> None:
    student = vocab(["<s>", "the", " sum", " of", " 1", "2", "</s>"], roles={"bos": [0], "eos": [6]})
    teacher = vocab(["<s>", "the", " sum of", " 12", "</s>"], roles={"bos": [0], "eos": [4]})
    collate = SpanCollator(student=student, teacher=teacher)
    prompts = prompts_of(collate, [{"prompt": "the sum"}], prompt_tokens=99)
    assert prompts[0].ids.tolist() == [0, 1, 2]
    spans = spans_of(collate, prompts, [Answer(np.array([3, 4, 5, 6]), ended=True)])
    assert id_rows(spans) == ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4])
    assert chunk_rows(spans) == ([-1, 0, 1, 1, 2, 2, 3], [-1, 0, 1, 2, 3])
    assert weights_of(spans) == [2, 3]
    assert spans.student_loss_mask[0].tolist() == [False] * 3 + [True] * 4


def test_a_teacher_with_the_same_tokenizer_reads_the_very_ids(real: Real) -> None:
    tokens = ["<s>", "a", "b", "ab", b"\xc3", "</s>"]
    side = vocab(tokens, roles={"bos": [0], "eos": [5]})
    collate = SpanCollator(student=side, teacher=side)
    prompts = prompts_of(collate, [{"prompt": "ab"}], prompt_tokens=1)
    spans = spans_of(collate, prompts, [Answer(np.array([1, 2, 4, 5]), ended=True)])
    assert id_rows(spans) == ([0, 3, 1, 2, 4, 5], [0, 3, 1, 2, 4, 5])
    assert chunk_rows(spans) == ([-1, 0, 1, 2, 3, 4], [-1, 0, 1, 2, 3, 4])
    assert weights_of(spans) == [1, 2, 3, 4]
    # Models of one tokenizer differ in how many logits they have.
    wider = vocab([*tokens, (b"", Kind.PADDING)], roles={"bos": [0], "eos": [5]})
    collate = SpanCollator(student=side, teacher=wider)
    spans = spans_of(collate, prompts, [Answer(np.array([1, 2, 4, 5]), ended=True)])
    assert id_rows(spans)[1] == [0, 3, 1, 2, 4, 5]
    # In a chat behind its own template's words.
    side = real("qwen3")
    collate = SpanCollator(student=side, teacher=side, student_template=ASKING_CHATML, teacher_template=THINKING)
    prompts = prompts_of(collate, [{"messages": CHAT}], prompt_tokens=1)
    answer = [16, 17, side.controls["<|im_end|>"]]
    own, its = id_rows(spans_of(collate, prompts, [Answer(np.array(answer), ended=True)]))
    assert own[-3:] == its[-3:] == answer
    assert its[-5:-3] == side.row_encoder.encode_batch(["x</think>\n\n"])[0][-2:]


def test_ids_that_the_tokenizer_would_not_write_stay_as_they_are() -> None:
    student = vocab(["<s>", "a", "b", "ab", "</s>"], roles={"bos": [0], "eos": [4]})
    teacher = vocab(["<s>", "ab", "a", "b", "</s>"], roles={"bos": [0], "eos": [4]})
    collate = SpanCollator(student=student, teacher=teacher)
    prompts = prompts_of(collate, [{"prompt": "ab"}], prompt_tokens=1)
    spans = spans_of(collate, prompts, [Answer(np.array([1, 2, 3]), ended=False)])
    assert id_rows(spans) == ([0, 3, 1, 2, 3], [0, 1, 1, 1])
    assert chunk_rows(spans) == ([-1, 0, 1, 1, 2], [-1, 0, 1, 2])


def test_an_answer_that_was_cut_off_has_no_end() -> None:
    student = vocab(["<s>", "a", "</s>"], roles={"bos": [0], "eos": [2]})
    teacher = vocab(["<s>", "a", "</s>", "aa"], roles={"bos": [0], "eos": [2]})
    collate = SpanCollator(student=student, teacher=teacher)
    prompts = prompts_of(collate, [{"prompt": "a"}] * 2, prompt_tokens=1)
    spans = spans_of(collate, prompts, [Answer(np.array([1, 2]), ended=True), Answer(np.array([1, 1]), ended=False)])
    assert [id_rows(spans, row)[1] for row in (0, 1)] == [[0, 3, 2], [0, 3, 1]]
    assert [weights_of(spans, row) for row in (0, 1)] == [[1], [1]]


def test_a_text_token_that_ended_an_answer_is_text() -> None:
    student = vocab(["<s>", "a", "\n", "</s>"], roles={"bos": [0], "eos": [3]})
    teacher = vocab(["<s>", "a", "\n", "</s>", "b"], roles={"bos": [0], "eos": [3]})
    collate = SpanCollator(student=student, teacher=teacher)
    prompts = prompts_of(collate, [{"prompt": "a"}] * 2, prompt_tokens=1)
    spans = spans_of(collate, prompts, [Answer(np.array([1, 2]), ended=True), Answer(np.array([], int), ended=True)])
    assert [id_rows(spans, row)[1] for row in (0, 1)] == [[0, 1, 1, 2], [0, 1]]
    with pytest.raises(OptionError, match="answer 1 has ids from 4 to 4"):
        spans_of(collate, prompts, [Answer(np.array([1]), ended=False), Answer(np.array([4]), ended=False)])


def test_half_a_character_at_a_cut_is_not_read_and_what_is_none_is_shown_as_decoders_show_it() -> None:
    student = vocab(["<s>", "a", "b", b"\xc3", b"\xa9", b"\xe4", "</s>"], roles={"bos": [0], "eos": [6]})
    teacher = vocab(["<s>", "a", "b", "é", "\ufffd", "</s>"], roles={"bos": [0], "eos": [5]})
    collate = SpanCollator(student=student, teacher=teacher)
    prompts = prompts_of(collate, [{"prompt": "a"}] * 3, prompt_tokens=1)
    answers = [
        Answer(np.array([3, 4, 5]), ended=False),  # é and a beginning
        Answer(np.array([5, 6]), ended=True),  # a beginning of nothing
        Answer(np.array([3, 2, 4, 1]), ended=False),  # é with a letter inside
    ]
    spans = spans_of(collate, prompts, answers)
    assert [id_rows(spans, row)[1] for row in range(3)] == [[0, 1, 3], [0, 1, 4, 5], [0, 1, 4, 2, 4, 1]]
    assert [chunk_rows(spans, row) for row in range(3)] == [
        ([-1, 0, 1, 1, -1], [-1, 0, 1]),
        ([-1, 0, -1, 1], [-1, 0, -1, 1]),
        ([-1, 0, -1, 1, -1, 2], [-1, 0, -1, 1, -1, 2]),
    ]


def test_a_special_with_a_counterpart_is_passed_on_and_others_say_nothing() -> None:
    tokens = ["<s>", "a", "b", "<think>", "<mine>", "</s>"]
    student = vocab(tokens, roles={"bos": [0], "eos": [5], "think_start": [3]})
    teacher = vocab(["<s>", "a", "b", "ab", "<thought>", "</s>"], roles={"bos": [0], "eos": [5], "think_start": [4]})
    collate = SpanCollator(student=student, teacher=teacher)
    prompts = prompts_of(collate, [{"prompt": "a"}], prompt_tokens=1)
    spans = spans_of(collate, prompts, [Answer(np.array([1, 3, 1, 4, 2, 5]), ended=True)])
    assert id_rows(spans)[1] == [0, 1, 1, 4, 3, 5]
    assert chunk_rows(spans) == ([-1, 0, 1, 2, 3, -1, 3, 4], [-1, 0, 1, 2, 3, 4])


# Chats


def written_answer(vocab_: Vocab, row: list[int], prompt: Prompt, end: str) -> np.ndarray:
    """The answer of a row of a data set."""
    begun = len(prompt.ids)
    assert row[:begun] == prompt.ids.tolist()
    stop = row.index(vocab_.controls[end], begun)
    return np.array(row[begun : stop + 1])


@pytest.mark.parametrize("templates", [(ASKING_LLAMA, ASKING_CHATML), (ASKING_LLAMA, BLIND), (ASKING_LLAMA, THINKING)])
def test_an_answer_stands_in_each_sides_own_frame(real: Real, templates: tuple[str, str]) -> None:
    ours, theirs = real("llama-3"), real("qwen3")
    collate = SpanCollator(student=ours, teacher=theirs, student_template=templates[0], teacher_template=templates[1])
    data = collate([{"messages": CHAT}])["spans"].numpy()
    ids, its_ids = id_rows(data)
    (prompt,) = prompts_of(collate, [{"messages": CHAT}], prompt_tokens=5)
    answer = written_answer(ours, ids, prompt, "<|eot_id|>")
    spans = spans_of(collate, [prompt], [Answer(answer, ended=True)])
    own, its = id_rows(spans)
    assert own == ids[: len(own)]
    if templates[1] == THINKING:
        said = b"".join(theirs.surfaces[token] for token in its).decode()
        assert said.endswith(f"<|im_start|>assistant\n<think>\n\n</think>\n\n{CHAT[-1]['content']}<|im_end|>")
    else:
        # All but the line feed behind the last turn.
        assert its == its_ids[:-1]

    def said_by(side: Vocab, row: list[int], chunks: list[int], number: int) -> bytes:
        return b"".join(side.surfaces[token] for token, chunk in zip(row, chunks, strict=True) if chunk == number)

    own_chunks, its_chunks = chunk_rows(spans)
    pairs = [
        (said_by(ours, own, own_chunks, number), said_by(theirs, its, its_chunks, number))
        for number in weights_of(spans)
    ]
    assert b"".join(one for one, _ in pairs) == CHAT[-1]["content"].encode() + b"<|eot_id|>"
    assert [pair for pair in pairs if pair[0] != pair[1]] == [(b"<|eot_id|>", b"<|im_end|>")]


def test_what_a_user_says_is_no_control_token(real: Real) -> None:
    ours, theirs = real("qwen3"), real("llama-3")
    collate = SpanCollator(student=ours, teacher=theirs, student_template=ASKING_CHATML, teacher_template=ASKING_LLAMA)
    (prompt,) = prompts_of(collate, [{"messages": CHAT}], prompt_tokens=5)
    assert prompt.ids.tolist().count(ours.controls["<|im_end|>"]) == 3


def test_a_template_without_a_generation_prompt_leaves_its_space_to_the_student(real: Real) -> None:
    # The template writes a space before an answer, and the student's tokens of words begin with one.
    ours, theirs = real("mistral-v1"), real("qwen3")
    collate = SpanCollator(student=ours, teacher=theirs, student_template=INST, teacher_template=ASKING_CHATML)
    (prompt,) = prompts_of(collate, [{"messages": CHAT}], prompt_tokens=5)
    row = id_rows(collate([{"messages": CHAT}])["spans"].numpy())[0]
    spans = spans_of(collate, [prompt], [Answer(np.array(row[len(prompt.ids) :]), ended=True)])
    assert id_rows(spans)[0] == row
    its = b"".join(theirs.surfaces[token] for token in id_rows(spans)[1])
    assert its.endswith(b"assistant\nNo, I would rather not say 20 things like that.<|im_end|>")
    assert len(weights_of(spans)) == len(set(chunk_rows(spans)[0]) - {-1})
    assert min(chunk_rows(spans)[0][len(prompt.ids) :]) == 0


def test_the_last_answer_of_a_chat_is_not_looked_at(real: Real) -> None:
    collate = SpanCollator(
        student=real("llama-3"), teacher=real("qwen3"), student_template=ASKING_LLAMA, teacher_template=ASKING_CHATML
    )
    rows: list[dict[str, Any]] = [
        {"messages": CHAT},
        {"messages": CHAT[:-1]},
        {"messages": [*CHAT[:-1], {"role": "assistant", "content": "else"}]},
        {"prompt": CHAT[:-1]},
    ]
    first, *others = prompts_of(collate, rows, prompt_tokens=5)
    for other in others:
        assert vars(first).keys() == vars(other).keys()
        assert first.ids.tolist() == other.ids.tolist()
        assert first.teacher_parts == other.teacher_parts
        assert first.teacher_end == other.teacher_end


# Ids


@pytest.mark.parametrize("with_mask", [False, True])
def test_rows_of_ids_are_continued_where_they_begin_to_count(real: Real, with_mask: bool) -> None:
    ours, theirs = real("llama-3"), real("qwen3")
    collate = SpanCollator(student=ours, teacher=theirs, bos=True)
    row: dict[str, Any] = {
        "student_ids": [128000, *ours.encode_batch(["one two three four"])[0]],
        "teacher_ids": theirs.encode_batch(["one two three four"])[0],
    }
    if with_mask:
        row |= {"student_loss_mask": [0, 0, 0, 1, 1], "teacher_loss_mask": [0, 0, 1, 1]}
    (prompt,) = prompts_of(collate, [row], prompt_tokens=1)
    assert prompt.ids.tolist() == row["student_ids"][: 3 if with_mask else 2]
    assert list(prompt.teacher_ids) == (row["teacher_ids"][:2] if with_mask else [])
    three = np.array(ours.encode_batch([" three" if with_mask else " two three"])[0])
    spans = spans_of(collate, [prompt], [Answer(three, ended=False)])
    assert id_rows(spans)[1] == row["teacher_ids"][:3]
    assert len(weights_of(spans)) == len(three)


# Mistakes


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"content": "a"}, "row 1: it needs a `prompt`"),
        ({"prompt": [{"content": "a"}]}, "row 1: .*no role"),
        ({"prompt": ["a"]}, "row 1: message 0 of a chat is no table"),
    ],
)
def test_rows_that_nobody_can_continue_are_named(row: dict[str, Any], said: str) -> None:
    side = vocab(["<s>", "a"], roles={"bos": [0]})
    aligner = Aligner(student=side, teacher=side, student_template=ASKING_CHATML, teacher_template=ASKING_CHATML)
    with pytest.raises(OptionError, match=said):
        prompts_of(aligner, [{"text": "a"}, row], prompt_tokens=1)
