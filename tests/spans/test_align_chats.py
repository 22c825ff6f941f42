"""Chats: what the messages say aligns, whatever the two templates write around it."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from span_checks import CHATML, INST, LLAMA

from xtoken_align.errors import OptionError
from xtoken_align.spans.aligner import align_chats
from xtoken_align.spans.spans import Spans
from xtoken_align.vocab.vocab import Vocab

Real = Callable[[str], Vocab]

CHAT = [
    {"role": "user", "content": "user: 2 + 2 = 😊?"},
    {"role": "assistant", "content": "It is 1234."},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "ok"},
]


def said(spans: Spans, student: Vocab, teacher: Vocab, row: int = 0) -> list[tuple[bytes, bytes]]:
    def side(ids: np.ndarray, chunk: np.ndarray, vocab: Vocab, number: int) -> bytes:
        return b"".join(vocab.surfaces[token] for token in ids[row][chunk[row] == number].tolist())

    return [
        (
            side(spans.student_ids, spans.student, student, number),
            side(spans.teacher_ids, spans.teacher, teacher, number),
        )
        for number in range(int(spans.count[row]))
    ]


def gaps(spans: Spans, vocab: Vocab, side: str) -> bytes:
    ids, chunk, mask = (getattr(spans, name)[0] for name in (f"{side}_ids", side, f"{side}_mask"))
    return b"|".join(vocab.surfaces[token] for token in ids[mask & (chunk < 0)].tolist())


def llama_from_qwen(real: Real, chat: list[dict[str, str]], **options: object) -> Spans:
    return align_chats(
        [chat],
        student=real("llama-3"),
        teacher=real("qwen3"),
        student_template=LLAMA,
        teacher_template=CHATML,
        **options,
    )


def test_contents_align_with_contents_and_role_markers_with_role_markers(real: Real) -> None:
    spans = llama_from_qwen(real, CHAT)
    pairs = said(spans, real("llama-3"), real("qwen3"))
    assert pairs[0] == (b"<|start_header_id|>", b"<|im_start|>")
    texts = b"".join(ours for ours, _ in pairs)
    for message in CHAT:
        assert b"<|start_header_id|>" + message["content"].encode() + b"<|eot_id|>" in texts
    assert [ours for ours, theirs in pairs if ours != theirs] == [b"<|start_header_id|>", b"<|eot_id|>"] * 4


def test_text_that_only_a_template_writes_is_left_out(real: Real) -> None:
    spans = llama_from_qwen(real, CHAT)
    assert gaps(spans, real("qwen3"), "teacher") == b"|".join(
        [b"user|\n", b"\n|assistant|\n", b"\n|user|\n", b"\n|assistant|\n", b"\n"]
    )
    ours = b"user|<|end_header_id|>|\n\n|assistant|<|end_header_id|>|\n\n"
    assert gaps(spans, real("llama-3"), "student") == b"<|begin_of_text|>|" + ours + b"|" + ours


def test_the_loss_counts_answers_and_the_ends_of_their_turns(real: Real) -> None:
    spans = llama_from_qwen(real, CHAT)
    vocab = real("llama-3")
    counted = [vocab.surfaces[token] for token in spans.student_ids[0][spans.student_loss_mask[0]].tolist()]
    assert b"".join(counted) == b"It is 1234.<|eot_id|>ok<|eot_id|>"
    weighted = [
        pair[0] for pair, weight in zip(said(spans, vocab, real("qwen3")), spans.weight[0], strict=True) if weight
    ]
    assert b"".join(weighted) == b"It is 1234.<|eot_id|>ok<|eot_id|>"


def test_loss_roles_choose_whose_messages_count(real: Real) -> None:
    spans = llama_from_qwen(real, CHAT, loss_roles=("user",))
    counted = spans.teacher_ids[0][spans.teacher_loss_mask[0]].tolist()
    assert b"".join(real("qwen3").surfaces[token] for token in counted) == (
        "user: 2 + 2 = 😊?<|im_end|>user<|im_end|>".encode()
    )


def test_a_message_that_spells_special_tokens_is_text(real: Real) -> None:
    chat = [{"role": "user", "content": "a <|im_end|><|eot_id|> b"}]
    spans = llama_from_qwen(real, chat)
    pairs = said(spans, real("llama-3"), real("qwen3"))
    assert b"".join(ours for ours, _ in pairs[1:-1]) == b"a <|im_end|><|eot_id|> b"
    assert int((spans.student_ids[0] == real("llama-3").roles["eot"][0]).sum()) == 1


def test_what_a_template_trims_is_in_no_chunk(real: Real) -> None:
    spans = llama_from_qwen(real, [{"role": "user", "content": "  hello \n"}])
    assert said(spans, real("llama-3"), real("qwen3"))[1:-1] == []
    spans = llama_from_qwen(real, [{"role": "user", "content": "\nhello!\n"}])
    assert said(spans, real("llama-3"), real("qwen3"))[1:-1] == [(b"hello", b"hello")]


def test_a_template_may_put_a_space_before_a_message_that_a_dummy_prefix_joins(real: Real) -> None:
    mistral, qwen = real("mistral-v1"), real("qwen3")
    spans = align_chats(
        [CHAT], student=mistral, teacher=qwen, student_template=INST, teacher_template=CHATML, padding_side="left"
    )
    pairs = said(spans, mistral, qwen)
    assert [pair for pair in pairs if b"</s>" in pair] == [(b"</s>", b"<|im_end|>")] * 2
    texts = [ours.removeprefix(b" ") == theirs.removeprefix(b" ") for ours, theirs in pairs if ours != b"</s>"]
    assert all(texts)
    joined = b"".join(theirs for _, theirs in pairs)
    assert b"It is 1234.<|im_end|>" in joined
    assert joined.endswith(b"ok<|im_end|>")


def test_a_message_that_one_template_leaves_out_costs_that_message_alone(real: Real) -> None:
    chat = [{"role": "system", "content": "Be brief."}, *CHAT]
    mistral, qwen = real("mistral-v1"), real("qwen3")
    spans = align_chats([chat], student=mistral, teacher=qwen, student_template=INST, teacher_template=CHATML)
    joined = b"".join(theirs for _, theirs in said(spans, mistral, qwen))
    assert b"brief" not in joined
    assert "2 + 2 = 😊?".encode() in joined


def test_special_tokens_between_other_messages_are_no_pair(real: Real) -> None:
    first = "{% for m in messages[1:] %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    spans = align_chats(
        [[{"role": "system", "content": "S!"}, *CHAT]],
        student=real("qwen3"),
        teacher=real("qwen3"),
        student_template=first,
        teacher_template=CHATML,
    )
    pairs = said(spans, real("qwen3"), real("qwen3"))
    # The header before the first message that both have stands after another message on the teacher's side.
    assert pairs[0][0] == b"user"
    assert [ours for ours, _ in pairs].count(b"<|im_end|>") == 4


def test_a_template_that_keeps_a_part_of_a_message_aligns_that_part(real: Real) -> None:
    after = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    )
    chat = [{"role": "assistant", "content": "<think>hm</think> The answer is 4."}]
    qwen = real("qwen3")
    spans = align_chats([chat], student=qwen, teacher=qwen, student_template=after, teacher_template=CHATML)
    pairs = said(spans, qwen, qwen)
    assert b"".join(ours for ours, _ in pairs) == b"<|im_start|> The answer is 4.<|im_end|>"


def test_contents_in_parts_align_part_by_part(real: Real) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{% for p in m.content %}"
        "{{ p.text if p.type == 'text' else '<|image_pad|>' }}\n{% endfor %}<|im_end|>{% endfor %}"
    )
    chat = [
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "See"}, {"type": "image"}, {"type": "text", "text": "12"}],
        }
    ]
    qwen, llama = real("qwen3"), real("llama-3")
    spans = align_chats([chat], student=llama, teacher=qwen, student_template=template, teacher_template=template)
    assert [pair for pair in said(spans, llama, qwen) if not pair[0].startswith(b"<")] == [
        (b"See", b"See"),
        (b"12", b"12"),
    ]


def test_truncation_cuts_the_sides_and_keeps_whole_chunks_only(real: Real) -> None:
    whole = llama_from_qwen(real, CHAT)
    for side in ("left", "right"):
        cut = llama_from_qwen(real, CHAT, max_student_tokens=20, max_teacher_tokens=30, truncation_side=side)
        assert cut.student.shape[1] == 20
        assert cut.teacher.shape[1] == 30
        kept = said(cut, real("llama-3"), real("qwen3"))
        assert kept
        assert "".join(map(repr, kept))[:-1] in "".join(map(repr, said(whole, real("llama-3"), real("qwen3"))))


def test_padding_on_the_left_moves_nothing_but_the_places(real: Real) -> None:
    chats = [CHAT, CHAT[:2]]
    options = {
        "student": real("llama-3"),
        "teacher": real("qwen3"),
        "student_template": LLAMA,
        "teacher_template": CHATML,
    }
    right, left = (align_chats(chats, padding_side=side, **options) for side in ("right", "left"))
    for name in ("student", "teacher", "student_ids", "student_loss_mask"):
        for row in range(2):
            side = name.split("_")[0]
            one, other = (getattr(spans, name)[row][getattr(spans, f"{side}_mask")[row]] for spans in (right, left))
            assert np.array_equal(one, other)
    assert np.array_equal(right.weight, left.weight)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["user", "assistant"]), st.text(st.sampled_from("ab 12\n😊é<|im_end|>"), max_size=12)
        ),
        max_size=4,
    )
)
def test_both_sides_of_every_text_chunk_say_the_same(real: Real, turns: list[tuple[str, str]]) -> None:
    spans = llama_from_qwen(real, [{"role": role, "content": content} for role, content in turns])
    assert (np.diff(spans.student[0][spans.student[0] >= 0]) >= 0).all()
    for ours, theirs in said(spans, real("llama-3"), real("qwen3")):
        assert ours == theirs or (ours, theirs) in {
            (b"<|start_header_id|>", b"<|im_start|>"),
            (b"<|eot_id|>", b"<|im_end|>"),
        }


def test_no_chats_are_no_rows(real: Real) -> None:
    spans = align_chats(
        [], student=real("llama-3"), teacher=real("qwen3"), student_template=LLAMA, teacher_template=CHATML
    )
    assert len(spans) == 0


def test_a_function_may_take_a_templates_place(real: Real) -> None:
    def write(messages: list[dict[str, str]]) -> str:
        return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)

    qwen = real("qwen3")
    one = align_chats([CHAT], student=qwen, teacher=qwen, student_template=write, teacher_template=CHATML)
    assert np.array_equal(one.student_ids, one.teacher_ids)
    assert np.array_equal(one.student, one.teacher)


@pytest.mark.parametrize(
    ("chats", "template", "message"),
    [
        ([CHAT], None, "the student llama-3 has no chat template: give `student_template`"),
        (CHAT, LLAMA, "put the one chat into a list"),
        ([[{"content": "x"}]], LLAMA, "message 0 of a chat has no role"),
        ([CHAT, [*CHAT, "yes"]], LLAMA, "chat 1: message 4 of a chat is no table"),
        ([CHAT, [None]], LLAMA, "chat 1: message 0 of a chat is no table: expected {'role': ..., 'content': ...}, got"),
        ([None], LLAMA, "chat 0: a chat is a list of messages, each {'role': ..., 'content': ...}, got None"),
        (["Hi"], LLAMA, "chat 0: a chat is a list of messages"),
        ([CHAT], "{% if %}", "the student's chat template is not valid Jinja"),
        ([CHAT], "{{ raise_exception('no turns') }}", "the student's chat template refuses a chat: no turns"),
        ([CHAT], "{{ messages[9].role.x.y }}", "the student's chat template refuses a chat"),
        ([CHAT], "{{ ().__class__.__bases__ }}", "the student's chat template refuses a chat"),
    ],
)
def test_what_cannot_be_rendered_is_refused_in_one_sentence(
    real: Real, chats: list, template: str | None, message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        align_chats(
            chats,
            student=real("llama-3"),
            teacher=real("qwen3"),
            student_template=template,
            teacher_template=CHATML,
        )
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ends_of_turns_with_other_roles_are_paired_and_count(real: Real) -> None:
    # Mistral ends a turn with the token that ends a text, Llama with one of its own.
    llama, mistral = real("llama-3"), real("mistral-v1")
    spans = align_chats([CHAT], student=llama, teacher=mistral, student_template=LLAMA, teacher_template=INST)
    pairs = said(spans, llama, mistral)
    ends = [number for number, pair in enumerate(pairs) if pair == (b"<|eot_id|>", b"</s>")]
    assert len(ends) == 2
    assert all(spans.weight[0][number] > 0 for number in ends)
