"""What messages say is followed through published templates, and never leaves its turn."""

import json
import os
import re
from functools import cache
from importlib.util import find_spec
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from test_row_ids import added, byte_level, folder_with

from xtoken_align import Vocab, XTokenError, align_chats, read_vocab
from xtoken_align.errors import OptionError, XTokenWarning
from xtoken_align.spans.aligner import Aligner, TokenFields
from xtoken_align.spans.answers import prompts_of
from xtoken_align.spans.batch import SpanCollator
from xtoken_align.spans.chats import ChatOptions, render_chat
from xtoken_align.spans.dataset import AlignColumns
from xtoken_align.spans.pieces import pieces_of, place_pieces, with_inserted
from xtoken_align.spans.spans import Spans
from xtoken_align.spans.templates import Renderer

CASES = int(os.environ.get("XTOKEN_ALIGN_TEST_CASES", "30"))

CONTENTS = (
    *("7", "yes", "hello world", "\n\nlead", "tail  \n", "  both \n", "", "Q", 'x < y & "z"', "user", "assistant\n"),
    *("é😊", '{"a": 1}', "<|im_end|>", "a\nb", "think", "</tool_call>", "<tool_response>x</tool_response>"),
)
SPECIALS = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>"),
    *(
        "<s>",
        "</s>",
        "<｜Assistant｜>",
        "<｜User｜>",
        "<｜end▁of▁sentence｜>",
        "<|user|>",
        "<|assistant|>",
        "<|system|>",
    ),
    *("<|observation|>", "<|end|>", "<|start|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>", "<turn|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|turn>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
)
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"city": "Ulm", "n": 3}}}


@cache
def templates_of_trl() -> dict[str, str]:
    spec = find_spec("trl")
    if spec is None or spec.origin is None:
        return {}
    return {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja"))
        if "llava" not in path.stem  # takes contents in parts alone
    }


def tokenizer_folder(root: Path) -> Path:
    tokens = [added(text, 0) for text in SPECIALS]
    tokens += [added(text, 0, special=False) for text in ("<think>", "</think>", "<tool_call>", "</tool_call>")]
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    return folder_with(root, byte_level(*tokens), config)


@pytest.fixture(scope="session")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Vocab:
    return read_vocab(tokenizer_folder(tmp_path_factory.mktemp("trl")))


@st.composite
def chats(draw: st.DrawFn, *, tools: bool = True) -> list[dict[str, Any]]:
    """Chats with thoughts of every form, calls, empty and repeated contents."""
    content = st.sampled_from(CONTENTS)
    messages: list[dict[str, Any]] = [{"role": "system", "content": draw(content)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(content)})
        answer: dict[str, Any] = {"role": "assistant", "content": draw(content)}
        form = draw(st.sampled_from(["", "", "reasoning_content", "thinking", "inside"]))
        if form == "inside":
            space = draw(st.sampled_from(["", "\n"]))
            answer["content"] = f"<think>{space}{draw(content)}{space}</think>{space * 2}{answer['content']}"
        elif form:
            answer[form] = draw(content)
        if tools and draw(st.booleans()):
            arguments: Any = {"city": draw(content), "n": 3, "deep": {"k": [draw(content), 1]}}
            arguments = json.dumps(arguments) if draw(st.booleans()) else arguments
            answer["tool_calls"] = [{"type": "function", "function": {"name": "look_up", "arguments": arguments}}]
            messages += [answer, {"role": "tool", "name": "look_up", "content": draw(content)}]
            answer = {"role": "assistant", "content": draw(content)}
        messages.append(answer)
    return messages


def labels(text: str, stretches: Any) -> np.ndarray:
    counts = np.zeros(len(text), dtype=bool)
    for stretch in stretches:
        counts[stretch.begin : stretch.end] |= stretch.labelled
    return counts


@pytest.mark.skipif(not templates_of_trl(), reason="trl is not installed")
@pytest.mark.parametrize("name", templates_of_trl())
def test_pieces_are_found_in_published_templates(name: str, vocab: Vocab) -> None:
    render = Renderer(vocab, templates_of_trl()[name], "student", {})

    @settings(max_examples=12, suppress_health_check=list(HealthCheck))
    @given(chats())
    def holds(chat: list[dict[str, Any]]) -> None:
        pieces = pieces_of(chat)
        try:
            placed = place_pieces(chat, pieces, render)
        except OptionError:
            assume(condition=False)
        assert not placed.unknown
        for number, (begin, end) in placed.at.items():
            if pieces[number].field != "calls" and pieces[number].role != "tool":
                assert placed.text[begin:end].strip() == pieces[number].text.strip()
        stretches = render_chat(chat, pieces, render, vocab, ChatOptions()).stretches
        assert all(one.end <= other.begin for one, other in pairwise(stretches))

    holds()


# What asks for an answer stands before the empty one and not before the thought.
CONTENT_BEHIND_A_BLANK_RESPONSE: list[dict[str, Any]] = [
    {"role": "user", "content": "7"},
    {"role": "assistant", "content": "7", "tool_calls": [CALL]},
    {"role": "tool", "name": "look_up", "content": ""},
    {"role": "assistant", "content": "7"},
]
EMPTY_ANSWER_BEFORE_A_THOUGHT = [
    {"role": "user", "content": "7"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "7", "reasoning_content": "7"},
]


EMPTY_THOUGHT_AND_SILENT_TOOL = [
    {"role": "user", "content": "7"},
    {"role": "assistant", "content": "<think>\n\n</think>\n\nyes", "tool_calls": [CALL]},
    {"role": "tool", "name": "look_up", "content": " "},
    {"role": "assistant", "content": "</think>"},
]

TOOL_OF_CALL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


@pytest.mark.skipif(not templates_of_trl(), reason="trl is not installed")
@pytest.mark.parametrize("name", templates_of_trl())
def test_published_templates_are_rendered_and_labelled_as_transformers_does(name: str, vocab: Vocab) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    template = templates_of_trl()[name]
    options: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "tools": [TOOL_OF_CALL]}
    render = Renderer(vocab, template, "student", options)
    says = render.says_generation

    @settings(max_examples=12, suppress_health_check=list(HealthCheck))
    @given(chats())
    @example(EMPTY_ANSWER_BEFORE_A_THOUGHT)
    @example(EMPTY_THOUGHT_AND_SILENT_TOOL)
    def holds(chat: list[dict[str, Any]]) -> None:
        try:
            (text,), blocks = utils.render_jinja_template(
                [chat], chat_template=template, return_assistant_tokens_mask=says, **options
            )
        except (jinja2.TemplateError, TypeError, ValueError):
            with pytest.raises(OptionError):
                render(chat)
            return
        assert render(chat) == text
        if says:
            found = render_chat(chat, pieces_of(chat), render, vocab, ChatOptions())
            told = np.zeros(len(text), dtype=bool)
            for begin, end in blocks[0]:
                told[begin:end] = True
            assert (labels(text, found.stretches) == told).all()

    holds()


@pytest.mark.skipif(not templates_of_trl(), reason="trl is not installed")
@pytest.mark.parametrize("name", [name for name in templates_of_trl() if name.endswith("_training")])
def test_no_label_lies_outside_of_what_a_template_says_that_the_assistant_wrote(name: str, vocab: Vocab) -> None:
    telling = Renderer(vocab, templates_of_trl()[name], "student", {})
    silent = Renderer(vocab, templates_of_trl()[name], "student", {})
    silent.says_generation = False

    @settings(max_examples=12, suppress_health_check=list(HealthCheck))
    @given(chats())
    @example(EMPTY_ANSWER_BEFORE_A_THOUGHT)
    @example(CONTENT_BEHIND_A_BLANK_RESPONSE)
    def holds(chat: list[dict[str, Any]]) -> None:
        pieces = pieces_of(chat)
        try:
            told = render_chat(chat, pieces, telling, vocab, ChatOptions())
        except OptionError:
            assume(condition=False)
        found = render_chat(chat, pieces, silent, vocab, ChatOptions())
        assert not (labels(found.text, found.stretches) & ~labels(told.text, told.stretches)).any()

    holds()


def messages_of_chunks(spans: Spans, vocab: Vocab, start: int) -> list[tuple[int, int]]:
    """(the student's turn, the teacher's turn) of every chunk with a weight."""
    turns = []
    for side in ("student", "teacher"):
        ids, chunk = getattr(spans, f"{side}_ids")[0], getattr(spans, side)[0]
        turns.append(dict(zip(chunk.tolist(), (ids == start).cumsum().tolist(), strict=True)))
    return [(turns[0][at], turns[1][at]) for at in range(int(spans.count[0])) if spans.weight[0][at] > 0]


CHATML_NAMES = [name for name in ("qwen2_5", "qwen3", "qwen3_5_think", "qwen3_8", "lfm2") if name in templates_of_trl()]


@pytest.mark.skipif(not CHATML_NAMES, reason="trl is not installed")
@settings(suppress_health_check=list(HealthCheck))
@given(
    chat=chats(),
    student=st.sampled_from(CHATML_NAMES),
    teacher=st.sampled_from(CHATML_NAMES),
    limit=st.none() | st.integers(5, 90),
)
def test_chunks_never_cross_turns(vocab: Vocab, chat: list, student: str, teacher: str, limit: int | None) -> None:
    assume(all(message["role"] != "tool" for message in chat))
    given_templates = {
        "student_template": templates_of_trl()[student],
        "teacher_template": templates_of_trl()[teacher],
    }
    try:
        spans = align_chats(
            [chat], student=vocab, teacher=vocab, **given_templates, max_student_tokens=limit, max_teacher_tokens=limit
        )
    except XTokenError:
        assume(condition=False)
    start = vocab.controls["<|im_start|>"]
    # Some templates write a system message of their own.
    shift = {len([1 for name in (student, teacher) if name == "qwen2_5"])}
    pairs = messages_of_chunks(spans, vocab, start)
    assert len({one - other for one, other in pairs}) <= 1, (pairs, shift)


def with_tags(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chat whose every piece begins and ends with a word that names its message: `m3q`."""
    inserted: dict[int, dict[tuple[Any, ...], dict[int, str]]] = {}
    for piece in pieces_of(chat):
        if piece.field != "calls":
            begin, end = piece.core
            places = inserted.setdefault(piece.message, {}).setdefault(piece.path, {})
            for place, tag in ((begin, f"m{piece.message}q "), (end, f" m{piece.message}q")):
                places[place] = places.get(place, "") + tag
    tagged: list[dict[str, Any]] = with_inserted(chat, inserted)
    return tagged


def messages_by_tags(spans: Spans, vocab: Vocab, side: str) -> tuple[set[int], dict[int, set[int]]]:
    """The messages whose tags count in the loss; and of every chunk the messages between whose tags it stands."""
    mask = getattr(spans, f"{side}_mask")[0]
    ids, labels, chunks = (getattr(spans, name)[0][mask] for name in (f"{side}_ids", f"{side}_loss_mask", side))
    said = [vocab.surfaces[token] for token in ids.tolist()]
    counted = b"".join(text if label else b" " for text, label in zip(said, labels, strict=True))
    tags = [(match.start(), match.end(), int(match[1])) for match in re.finditer(rb"m(\d+)q", b"".join(said))]
    owner = np.full(sum(map(len, said)) + 1, -1)
    for (begin, _, first), (_, end, second) in pairwise(tags):
        if first == second:
            owner[begin:end] = first
    begins = np.cumsum([0, *map(len, said)])[:-1]
    messages: dict[int, set[int]] = {}
    for chunk, message in zip(chunks.tolist(), owner[begins].tolist(), strict=True):
        if message >= 0:
            messages.setdefault(chunk, set()).add(message)
    return {int(match[1]) for match in re.finditer(rb"m(\d+)q", counted)}, messages


@pytest.mark.skipif(not templates_of_trl(), reason="trl is not installed")
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    chat=chats(),
    student=st.sampled_from(sorted(templates_of_trl()) or [""]),
    teacher=st.sampled_from(sorted(templates_of_trl()) or [""]),
    limit=st.none() | st.integers(5, 300),
)
def test_in_any_two_published_templates_only_the_assistant_counts_and_only_with_itself(
    vocab: Vocab, chat: list, student: str, teacher: str, limit: int | None
) -> None:
    templates = {"student_template": templates_of_trl()[student], "teacher_template": templates_of_trl()[teacher]}
    limits = {"max_student_tokens": limit, "max_teacher_tokens": limit}
    chat = with_tags(chat)
    try:
        spans = align_chats([chat], student=vocab, teacher=vocab, **templates, **limits)
    except XTokenError:
        assume(condition=False)
    assert spans.unplaced == 0
    of_assistant = {at for at, message in enumerate(chat) if message["role"] == "assistant"}
    sides = [messages_by_tags(spans, vocab, side) for side in ("student", "teacher")]
    for counted, _ in sides:
        assert counted <= of_assistant
    for chunk in np.flatnonzero(spans.weight[0]).tolist():
        ours, theirs = (messages.get(chunk) for _, messages in sides)
        assert ours == theirs or None in (ours, theirs)


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}"
    "</think>{% endif %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}"
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
)
XML = TEMPLATE.replace(
    "{{ c.function | tojson }}", "<f>{{ c.function.name }}</f><city>{{ c.function.arguments.city }}</city>"
)


def counted(
    vocab: Vocab, message: dict[str, Any], side: str = "student", teacher: str = TEMPLATE, **options: Any
) -> str:
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", **message}]
    spans = align_chats(
        [chat], student=vocab, teacher=vocab, student_template=TEMPLATE, teacher_template=teacher, **options
    )
    ids = getattr(spans, f"{side}_ids")[0][getattr(spans, f"{side}_loss_mask")[0]]
    return b"".join(vocab.surfaces[token] for token in ids.tolist()).decode()


THINKS = {"content": "yes", "reasoning_content": "why"}
CALLS = {"content": "Wait.", "tool_calls": [CALL]}
JSON = '<tool_call>{"name": "look_up", "arguments": {"city": "Ulm", "n": 3}}</tool_call>'


def test_all_that_an_assistant_wrote_counts_by_default(vocab: Vocab) -> None:
    assert counted(vocab, THINKS) == "<think>why</think>yes<|im_end|>"
    assert counted(vocab, CALLS) == f"Wait.{JSON}<|im_end|>"
    assert counted(vocab, {"content": None, "tool_calls": [CALL, CALL]}) == f"{JSON}{JSON}<|im_end|>"


@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [
        (["content"], "yes"),
        (["thought"], "<think>why</think>"),
        (["end"], "<|im_end|>"),
        (["content", "end"], "yes<|im_end|>"),
        ([], ""),
    ],
)
def test_every_kind_can_be_left_out_by_its_name(vocab: Vocab, loss_on: list[str], expected: str) -> None:
    assert counted(vocab, THINKS, loss_on=loss_on) == expected
    with pytest.raises(OptionError, match="loss_on names thought, content, calls, end, got 'thougt'"):
        counted(vocab, THINKS, loss_on=["thougt"])


@pytest.mark.parametrize(
    "content", ["<think>\n\n</think>\n\nyes", "</think>yes", "<think></think>", "a<think></think>b"]
)
def test_an_empty_thought_that_a_message_spells_out_counts_where_the_template_keeps_it(
    vocab: Vocab, content: str
) -> None:
    assert counted(vocab, {"content": content}) == f"{content}<|im_end|>"
    takes_out = TEMPLATE.replace("{{ m.content or '' }}", "{{ m.content.split('</think>')[-1].lstrip() }}")
    assert counted(vocab, {"content": content}, "teacher", teacher=takes_out).endswith("<|im_end|>")
    both = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": content}]]
    templates = {"student_template": TEMPLATE, "teacher_template": TEMPLATE}
    spans = align_chats(both, student=vocab, teacher=vocab, **templates)
    assert (spans.student[spans.student_loss_mask] >= 0).all()


def test_the_end_of_an_empty_answer_counts(vocab: Vocab) -> None:
    assert counted(vocab, {"content": ""}) == "<|im_end|>"
    assert counted(vocab, {"content": ""}, "teacher") == "<|im_end|>"
    assert counted(vocab, {"content": ""}, loss_on=["content"]) == ""


def test_calls_that_the_templates_write_differently_count_for_the_student_alone(vocab: Vocab) -> None:
    assert counted(vocab, CALLS, teacher=XML) == f"Wait.{JSON}<|im_end|>"
    assert counted(vocab, CALLS, "teacher", teacher=XML) == "Wait.<|im_end|>"
    assert counted(vocab, CALLS, "teacher") == f"Wait.{JSON}<|im_end|>"


def test_a_chat_whose_answer_is_changed_beyond_recognition_has_no_label_and_is_counted(vocab: Vocab) -> None:
    shouting = TEMPLATE.replace("{{ m.content or '' }}", "{{ m.content | length }}")
    with pytest.warns(XTokenWarning, match=r"1 of 1 chats are left out of the distillation loss \(the first is chat 0"):
        assert counted(vocab, {"content": "yes"}, "teacher", teacher=shouting) == ""
    with pytest.raises(OptionError, match="chat 0: the teacher's template changes what the messages say"):
        counted(vocab, {"content": "yes"}, teacher=shouting, unplaced="refuse")
    with pytest.raises(OptionError, match="unplaced is one of leave out, refuse, got 'drop'"):
        counted(vocab, {"content": "yes"}, unplaced="drop")


def test_a_chat_that_is_left_out_is_counted_and_its_neighbour_is_not(vocab: Vocab) -> None:
    # The template says something else of a long content alone.
    shortens = TEMPLATE.replace("{{ m.content or '' }}", "{{ m.content if m.content == 'Q' else m.content | length }}")
    chats_ = [[{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}] for text in ("maybe", "Q")]
    given = {"student": vocab, "teacher": vocab, "student_template": TEMPLATE, "teacher_template": shortens}
    with pytest.warns(XTokenWarning, match="chats are left out of the distillation loss"):
        spans = align_chats(chats_[:1], **given)
    assert (spans.unplaced, float(spans.weight.sum())) == (1, 0)
    # The student's own side is known, and its cross-entropy counts.
    assert spans.student_loss_mask.any()
    assert align_chats(chats_[:1], **given | {"teacher_template": TEMPLATE}).unplaced == 0


WITH_TOOLS = "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


def test_every_rows_own_tools_reach_both_templates(vocab: Vocab, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "yes"}]
    given = {
        "student_template": WITH_TOOLS + TEMPLATE,
        "teacher_template": WITH_TOOLS.replace("tojson", "tojson(indent=1)") + TEMPLATE,
    }
    collate = SpanCollator(student=vocab, teacher=vocab, **given)
    schemas = [TOOLS, json.dumps(TOOLS), [json.dumps(TOOLS[0])]]
    rows = [{"messages": chat, "tools": tools} for tools in [*schemas, None]] + [{"messages": chat}]
    spans = collate.spans(rows)
    folder = tokenizer_folder(tmp_path)
    align = AlignColumns(student=folder, teacher=folder, column="messages", **given)
    columns = align({"messages": [chat] * 5, "tools": [row.get("tools") for row in rows]})
    prompts = prompts_of(collate, rows, prompt_tokens=1)
    for row, tools in enumerate([*[TOOLS] * 3, None, None]):
        alone = align_chats([chat], student=vocab, teacher=vocab, **given, template_options={"tools": tools})
        for side in ("student", "teacher"):
            ids, mask = getattr(spans, f"{side}_ids")[row], getattr(spans, f"{side}_mask")[row]
            expected = getattr(alone, f"{side}_ids")[0].tolist()
            assert ids[mask].tolist() == expected
            assert columns[f"{side}_ids"][row].tolist() == expected
        # The student goes on behind the user's turn.
        prompt = prompts[row].ids.tolist()
        assert alone.student_ids[0].tolist()[: len(prompt)] == prompt
        assert ("look_up" in "".join(text for text, _ in prompts[row].teacher_parts)) == (tools is not None)


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("[{", r"`tools` is a list of JSON schemas, or JSON of such a list, got '\[\{', which is no JSON"),
        ({"type": "function"}, "or JSON of such a list, got {'type': 'function'}"),
        ([3], "or JSON of such a list, got 3"),
    ],
)
def test_a_mistake_in_tools_says_which_row_it_is(vocab: Vocab, tools: Any, said: str) -> None:
    chat = [{"role": "user", "content": "Q"}]
    collate = SpanCollator(student=vocab, teacher=vocab, student_template=TEMPLATE, teacher_template=TEMPLATE)
    rows = [{"messages": chat}, {"messages": chat, "tools": tools}]
    with pytest.raises(OptionError, match=f"chat 1: .*{said}"):
        collate.spans(rows)
    with pytest.raises(OptionError, match=f"row 1: .*{said}"):
        prompts_of(collate, rows, prompt_tokens=1)
    with pytest.raises(OptionError, match="tools are one entry per chat, got 1 for 2 chats"):
        collate.chats([chat, chat], tools=[None])


def test_every_token_says_which_message_and_field_it_is_of(vocab: Vocab) -> None:
    message = {"role": "assistant", "content": "yes", "reasoning_content": "why", "tool_calls": [CALL]}
    aligner = Aligner(student=vocab, teacher=vocab, student_template=TEMPLATE, teacher_template=XML)
    chat = [{"role": "user", "content": "Q"}, message]
    ((student, teacher),) = aligner.chat_fields([chat])

    def read(side: TokenFields) -> list[tuple[int, str, str, bool]]:
        names = zip(side.message.tolist(), side.fields, side.labelled.tolist(), strict=True)
        parts = [
            (*key, b"".join(vocab.surfaces[token] for _, token in run).decode())
            for key, run in groupby(zip(names, side.ids.tolist(), strict=True), key=lambda one: one[0])
        ]
        return [(at, field, text, labelled) for at, field, labelled, text in parts]

    template = "<|im_end|>\n<|im_start|>assistant\n"
    assert read(student) == [
        (-1, "template", "<|im_start|>user\n", False),
        (0, "content", "Q", False),
        (-1, "template", template, False),
        (1, "thought", "<think>why</think>", True),
        (1, "content", "yes", True),
        (1, "calls", JSON, True),
        (1, "end", "<|im_end|>", True),
        (-1, "template", "\n", False),
    ]
    xml = "<tool_call><f>look_up</f><city>Ulm</city></tool_call>"
    assert (1, "calls", xml, False) in read(teacher)
    assert (1, "thought", "<think>why</think>", True) in read(teacher)


def test_a_refused_chat_says_which_one_it_is(vocab: Vocab) -> None:
    picky = "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not this') }}{% endif %}{% endfor %}"
    with pytest.raises(OptionError, match="chat 1: the student's chat template refuses a chat: not this"):
        align_chats(
            [[{"role": "user", "content": text}] for text in ("yes", "no")],
            student=vocab,
            teacher=vocab,
            student_template=picky,
            teacher_template=TEMPLATE,
        )


def test_a_template_without_ends_of_turns_ends_them_with_the_next_header(tmp_path: Path) -> None:
    # GLM: the model stops by writing the next speaker's token, as its generation_config.json says.
    tokens = [added(text, 0) for text in ("<|user|>", "<|assistant|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")]
    data = byte_level(*tokens)
    ids = {token["content"]: token["id"] for token in data["added_tokens"]}
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [ids["<|endoftext|>"], ids["<|user|>"]]}), encoding="utf-8"
    )
    glm = read_vocab(folder_with(tmp_path, data, {"eos_token": "<|endoftext|>"}))
    headers = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    chat = [{"role": ("user", "assistant")[at % 2], "content": f"text {at}"} for at in range(4)]
    chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    spans = align_chats([chat], student=glm, teacher=glm, student_template=chatml, teacher_template=headers)
    weighted = [number for number in range(int(spans.count[0])) if spans.weight[0][number] > 0]
    pairs = [
        tuple(
            b"".join(
                glm.surfaces[token] for token in getattr(spans, f"{side}_ids")[0][getattr(spans, side)[0] == number]
            )
            for side in ("student", "teacher")
        )
        for number in weighted
    ]
    # Nothing follows the last answer.
    assert pairs.count((b"<|im_end|>", b"<|user|>")) == 1
    said = b"".join(ours for ours, _ in pairs)
    assert said == b"text 1<|im_end|>text 3"


def test_a_template_that_looks_at_a_contents_beginning_is_followed_with_fewer_marks(vocab: Vocab) -> None:
    looks = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.content.startswith('Q') and m.content.endswith('?') %}[asks] {% endif %}{{ m.content }}"
        "<|im_end|>\n{% endfor %}"
    )
    chat = [{"role": "user", "content": "Q, why?"}, {"role": "assistant", "content": "Q, so?"}]
    placed = place_pieces(chat, pieces_of(chat), Renderer(vocab, looks, "student", {}))
    assert [placed.text[slice(*placed.at[number])] for number in range(2)] == ["Q, why?", "Q, so?"]


def test_a_search_never_leaves_its_own_turn(vocab: Vocab) -> None:
    # A content that decides what is written can bear no mark at all; "no" stands in another turn too.
    switch = (
        "{% for m in messages %}<|im_start|>{% if m.content in ['yes', 'no'] %}{{ m.content }}{% else %}?{% endif %}"
        "<|im_end|>{% endfor %}"
    )
    chat = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(["no", "maybe", "no"])]
    placed = place_pieces(chat, pieces_of(chat), Renderer(vocab, switch, "student", {}))
    for number, (begin, end) in placed.at.items():
        turn = placed.text[:begin].count("<|im_start|>") - 1
        assert turn == number
        assert placed.text[begin:end] == chat[number]["content"]
