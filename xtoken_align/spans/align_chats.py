"""Spans from chats: each side renders the messages by its own template; what aligns is what the messages say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError
from ..read import as_vocab
from .chat_axis import ChatRow, Frame, between_the_same, on_contents
from .chat_contents import Content, Message, contents_of, render_chat
from .chat_render import Render, Template, renderer
from .chat_tokens import tokenize_chats
from .chunks import Chunks
from .covered import Placed, chunks_of_placed
from .make import Aligned, make_spans
from .resync import with_specials
from .spans import Spans
from .tables import PairTables, pair_tables
from .units import End, Units, check_side, padded

Flags = NDArray[np.bool_]


def align_chats(
    chats: Sequence[Sequence[Message]],
    *,
    student: Any,
    teacher: Any,
    student_template: Template | None = None,
    teacher_template: Template | None = None,
    template_options: Mapping[str, Any] | None = None,
    loss_roles: Sequence[str] = ("assistant",),
    max_student_tokens: int | None = None,
    max_teacher_tokens: int | None = None,
    truncation_side: End = "right",
    padding_side: End = "right",
) -> Spans:
    r"""Renders chats with both sides' templates, tokenises them and aligns what the messages say.

    A message's content aligns with itself, whatever stands around it; special tokens with equal roles between the same
    two contents align with each other; all other text of a template is in no chunk.

    Args:
        chats: chats, each a sequence of messages with a `role` and a `content` (a text, or parts with a `text`).
        student: the student's `Vocab`, or a source of it, read anew at every call.
        teacher: the teacher's.
        student_template: a Jinja template or a function from messages to text; by default the tokenizer's own.
        teacher_template: the same of the teacher.
        template_options: further variables of both Jinja templates (`tools`, `enable_thinking`, ...).
        loss_roles: whose messages count in the loss: their contents, and the special token that ends them.
        max_student_tokens: cut to so many tokens.
        max_teacher_tokens: the same of the teacher.
        truncation_side: where to cut, `left` or `right`.
        padding_side: where shorter rows are padded, `left` or `right`.

    Returns:
        The spans, a row per chat; they hold the ids and the loss masks of both sides.

    Raises:
        OptionError: a side has no template, a template refuses a chat, or an option makes no sense.
        MissingExtraError: jinja2 is not installed.

    >>> import xtoken_align
    >>> student, teacher = xtoken_align.read_vocab("llama-3"), xtoken_align.read_vocab("qwen3")
    >>> llama = "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
    >>> chatml = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    >>> ours, theirs = ("{% for m in messages %}" + turn + "{% endfor %}" for turn in (llama, chatml))
    >>> chat = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    >>> spans = align_chats([chat], student=student, teacher=teacher, student_template=ours, teacher_template=theirs)
    >>> int(spans.count[0]), int(spans.weight.sum())  # of the chunks the answer and the end of its turn have weight
    (10, 2)
    """
    check_side("padding_side", padding_side)
    check_side("truncation_side", truncation_side)
    tables = pair_tables(as_vocab(student), as_vocab(teacher))
    options = template_options or {}
    renders = (
        renderer(tables.student, student_template, "student", options),
        renderer(tables.teacher, teacher_template, "teacher", options),
    )
    limits = (max_student_tokens, max_teacher_tokens)
    return make_spans(aligned_chats(chats, tables, renders, loss_roles, limits, truncation_side, padding_side))


def aligned_chats(
    chats: Sequence[Sequence[Message]],
    tables: PairTables,
    renders: tuple[Render, Render],
    loss_roles: Sequence[str],
    limits: tuple[int | None, int | None],
    truncation_side: End = "right",
    padding_side: End = "right",
) -> Aligned:
    """Renders, encodes and aligns chats, a unit per chat; see `align_chats`."""
    if isinstance(chats, Mapping) or any(isinstance(chat, Mapping) for chat in chats):
        raise OptionError("chats are a sequence of chats, each a sequence of messages: put the one chat into a list")
    contents = [contents_of(chat) for chat in chats]
    roles = frozenset(loss_roles)
    sides = (
        _side(chats, contents, tables, "student", renders[0], roles),
        _side(chats, contents, tables, "teacher", renders[1], roles),
    )
    kept = [
        [_kept(len(row.ids), limit, truncation_side) for row in side] for side, limit in zip(sides, limits, strict=True)
    ]
    pairs: list[tuple[Placed, Placed]] = []
    for one, other, cut, cut_other in zip(*sides, *kept, strict=True):
        whole = with_specials(
            between_the_same(one, other), ((one.placed, one.places), (other.placed, other.places)), tables
        )
        pairs.append((_sliced(whole[0], cut), _sliced(whole[1], cut_other)))
    chunks = Chunks(*chunks_of_placed(pairs), np.zeros(len(pairs), dtype=np.bool_))
    ours, theirs = (_rows(side, cut, padding_side) for side, cut in zip(sides, kept, strict=True))
    return Aligned(ours[0], theirs[0], chunks, ours[1], theirs[1])


def _side(
    chats: Sequence[Sequence[Message]],
    contents: Sequence[Sequence[Content]],
    tables: PairTables,
    side: str,
    render: Render,
    loss_roles: frozenset[str],
) -> list[ChatRow]:
    vocab, first_id = (tables.student, 0) if side == "student" else (tables.teacher, len(tables.student))
    rendered = [render_chat(chat, texts, render) for chat, texts in zip(chats, contents, strict=True)]
    tokens = tokenize_chats(rendered, vocab, tables, first_id=first_id)
    return [
        on_contents(row, Frame.of(chat, texts, loss_roles), vocab)
        for row, chat, texts in zip(tokens, rendered, contents, strict=True)
    ]


def _kept(count: int, limit: int | None, truncation_side: End) -> slice:
    if limit is not None and limit < 1:
        raise OptionError(f"a maximum of tokens is a positive number, got {limit}")
    if limit is None or count <= limit:
        return slice(0, count)
    return slice(0, limit) if truncation_side == "right" else slice(count - limit, count)


def _sliced(placed: Placed, kept: slice) -> Placed:
    return Placed(placed.begin[kept], placed.end[kept], placed.cover[kept], placed.on_axis[kept])


def _rows(side: Sequence[ChatRow], kept: Sequence[slice], padding_side: End) -> tuple[Units, Flags]:
    rows = [(row.ids[part], row.labelled[part]) for row, part in zip(side, kept, strict=True)]
    counts = np.array([len(ids) for ids, _ in rows], dtype=np.int64)
    ids = np.concatenate([np.zeros(0, dtype=np.int64), *(ids for ids, _ in rows)])
    labelled = np.concatenate([np.zeros(0, dtype=np.bool_), *(labelled for _, labelled in rows)])
    return padded(ids, counts, padding_side), labelled
