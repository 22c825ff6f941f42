"""Aligning texts, ids and chats: a frozen `Aligner` with the pair's settings, and functions that make and use one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError
from ..read import as_vocab
from ..vocab.vocab import Vocab
from .careful import TextPair, chunks_of_units
from .chats import ChatOptions, ChatRow, Unplaced, align_chat_units, chat_rows
from .fold import SideText, text_by_offsets
from .pieces import Chat
from .spans import AlignedUnits, Spans, make_spans
from .tables import PairTables, pair_tables
from .templates import Renderer, Template
from .turns import FIELDS, LOSS_ON
from .units import (
    EncodedTexts,
    End,
    Flags,
    Numbers,
    check_side,
    encode_texts,
    one_per_row,
    units_of,
    values_of,
    with_equal_units,
)


@dataclass(frozen=True, kw_only=True)
class Aligner:
    """Aligns what a student and a teacher make of the same texts; tokenizers and settings are read once.

    Args:
        student: the student's `Vocab`, or a source of it as `read_vocab` takes it.
        teacher: the teacher's.
        bos: for texts, put the token that begins a text before each, on the sides that have one. Without a token before
            it nothing predicts a text's first chunk, and the chunk has no weight.
        eos: for texts, put the token that ends a text after each, on the sides that have one; a text cut on the right
            has none.
        max_student_tokens: cut texts and chats to so many tokens.
        max_teacher_tokens: the same of the teacher. What only one side keeps is in no chunk.
        truncation_side: where to cut, `left` or `right`.
        student_template: for chats, a Jinja template or a function from messages to text; by default the tokenizer's
            own.
        teacher_template: the same of the teacher.
        template_options: further variables of both Jinja templates (`tools`, `enable_thinking`, ...).
        loss_roles: for chats, whose messages count in the loss.
        loss_on: for chats, what of them counts: `thought`, `content`, `calls` and the `end` of a turn, all by default.
        unplaced: what becomes of a chat that a template changes so that nobody can tell where its contents stand:
            `leave out` of the loss, with a warning and a count (`Spans.unplaced`), or `refuse`.
        parse_special: whether a text, or a message of a chat, that spells a control token holds that token; by default
            it is text, so that nobody who writes a message can end a turn.

    Raises:
        OptionError: an option has a value that makes no sense.

    >>> aligner = Aligner(student="llama-3", teacher="qwen3", bos=True)
    >>> aligner.texts(["x = 123", "of 2026"])
    Spans(2 rows, 10 student tokens (80.0% in chunks), 12 teacher tokens (100.0% in chunks), 8 chunks)
    """

    student: Any
    teacher: Any
    bos: bool = False
    eos: bool = False
    max_student_tokens: int | None = None
    max_teacher_tokens: int | None = None
    truncation_side: End = "right"
    student_template: Template | None = None
    teacher_template: Template | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    loss_roles: Sequence[str] = ("assistant",)
    loss_on: Sequence[str] = LOSS_ON
    parse_special: bool = False
    unplaced: Unplaced = "leave out"

    def __post_init__(self) -> None:
        check_side("truncation_side", self.truncation_side)
        _ = self.chat_options
        _ = self.tables  # a source that cannot be read is refused now, not by a worker

    @cached_property
    def tables(self) -> PairTables:
        """What aligning needs to know of both vocabularies."""
        return pair_tables(as_vocab(self.student), as_vocab(self.teacher))

    @cached_property
    def renders(self) -> tuple[Renderer, Renderer]:
        """Both sides' chat templates, the student's first."""
        return (
            Renderer(self.tables.student, self.student_template, "student", self.template_options),
            Renderer(self.tables.teacher, self.teacher_template, "teacher", self.template_options),
        )

    @property
    def chat_options(self) -> ChatOptions:
        """What counts in the loss of chats, and how they are cut."""
        return ChatOptions(
            loss_roles=self.loss_roles,
            loss_on=self.loss_on,
            parse_special=self.parse_special,
            limits=(self.max_student_tokens, self.max_teacher_tokens),
            truncation_side=self.truncation_side,
            unplaced=self.unplaced,
        )

    def __getstate__(self) -> dict[str, Any]:
        # Neither vocabularies nor templates can be pickled; a copy in another process reads its sources again.
        return {name: value for name, value in vars(self).items() if name not in {"tables", "renders"}}

    def texts(self, texts: Sequence[str], *, padding_side: End = "right") -> Spans:
        """Tokenises texts with both sides and aligns the two, see `align_texts`."""
        check_side("padding_side", padding_side)
        return make_spans(self.text_units(texts, padding_side))

    def chats(self, chats: Sequence[Chat], *, tools: Sequence[Any] | None = None, padding_side: End = "right") -> Spans:
        """Renders chats with both sides' templates, tokenises them and aligns what the messages say: `align_chats`."""
        check_side("padding_side", padding_side)
        return make_spans(self.chat_units(chats, padding_side, tools=tools))

    def chat_fields(
        self, chats: Sequence[Chat], *, tools: Sequence[Any] | None = None
    ) -> list[tuple[TokenFields, TokenFields]]:
        """What each token of chats belongs to, on the student's side and the teacher's: for whoever checks labels.

        Args:
            chats: as `chats` takes them; they are not cut.
            tools: as there.
        """
        sides, _ = chat_rows(chats, self.tables, self.renders, self.chat_options, tools)
        return [(TokenFields.of(student), TokenFields.of(teacher)) for student, teacher in zip(*sides, strict=True)]

    def ids(
        self,
        student_ids: Any,
        teacher_ids: Any,
        *,
        student_mask: Any = None,
        teacher_mask: Any = None,
        student_segments: Any = None,
        teacher_segments: Any = None,
        student_loss_mask: Any = None,
        teacher_loss_mask: Any = None,
    ) -> Spans:
        """Aligns two tokenisations of the same texts as they are, without cutting them: see `align_ids`."""
        if (student_segments is None) != (teacher_segments is None):
            missing = "student_segments" if student_segments is None else "teacher_segments"
            raise OptionError(f"{missing} are missing: both sides have the numbers of their documents, or neither has")
        tables = self.tables
        student = units_of(
            student_ids, width=len(tables.student), mask=student_mask, segments=student_segments, side="student"
        )
        teacher = units_of(
            teacher_ids, width=len(tables.teacher), mask=teacher_mask, segments=teacher_segments, side="teacher"
        )
        student_labelled, teacher_labelled = (
            None if mask is None else values_of(mask, units, f"{side}_loss_mask").astype(np.bool_)
            for side, mask, units in (("student", student_loss_mask, student), ("teacher", teacher_loss_mask, teacher))
        )
        student, teacher = with_equal_units(student, teacher)
        chunks = chunks_of_units(student, teacher, tables)
        vocabs = tables.student, tables.teacher
        return make_spans(AlignedUnits(student, teacher, chunks, student_labelled, teacher_labelled, vocabs))

    def text_units(self, texts: Sequence[str], padding_side: End = "right", multiple: int = 1) -> AlignedUnits:
        """Encodes and aligns texts, a unit per text; row lengths become a multiple of `multiple`."""
        if isinstance(texts, str):
            raise OptionError("texts are a sequence of strings, got one string: put it into a list")
        tables = self.tables
        around: dict[str, Any] = {
            "bos": self.bos,
            "eos": self.eos,
            "truncation_side": self.truncation_side,
            "parse_special": self.parse_special,
        }
        student_text = encode_texts(texts, tables.student, max_tokens=self.max_student_tokens, **around)
        teacher_text = encode_texts(texts, tables.teacher, max_tokens=self.max_teacher_tokens, **around)
        student = one_per_row(student_text.ids, student_text.counts, padding_side, multiple)
        teacher = one_per_row(teacher_text.ids, teacher_text.counts, padding_side, multiple)

        def texts_of(unit: int) -> TextPair | None:
            one, other = (
                _text_of_unit(texts[unit], unit, encoded, vocab, tables, first_id, parse_special=self.parse_special)
                for encoded, vocab, first_id in (
                    (student_text, tables.student, 0),
                    (teacher_text, tables.teacher, len(tables.student)),
                )
            )
            return None if one is None or other is None else (one, other)

        # What a cut on the left has left of "abab" may begin as "abab" does, and yet be its end.
        doubtful = (student_text.first_kept > 0) | (teacher_text.first_kept > 0)
        whole = self.max_student_tokens is None and self.max_teacher_tokens is None
        chunks = chunks_of_units(student, teacher, tables, texts_of, doubtful, whole_texts=whole)
        return AlignedUnits(student, teacher, chunks, vocabs=(tables.student, tables.teacher))

    def chat_units(
        self,
        chats: Sequence[Chat],
        padding_side: End = "right",
        multiple: int = 1,
        tools: Sequence[Any] | None = None,
    ) -> AlignedUnits:
        """Renders, encodes and aligns chats, a unit per chat; row lengths become a multiple of `multiple`."""
        aligned = align_chat_units(chats, self.tables, self.renders, self.chat_options, tools)
        return aligned.one_per_row(padding_side, multiple)


@dataclass(frozen=True, eq=False)
class TokenFields:
    """What each token of a rendered chat belongs to.

    Attributes:
        ids: int64 (tokens,).
        message: int64 (tokens,), the message that wrote it, -1 where the template did.
        fields: for every token `thought`, `content`, `calls`, `end` or `template`.
        labelled: bool (tokens,), whether it counts in the loss.
    """

    ids: Numbers
    message: Numbers
    fields: tuple[str, ...]
    labelled: Flags

    @classmethod
    def of(cls, row: ChatRow) -> TokenFields:
        """Those of one side's chat."""
        return cls(row.ids, row.message, tuple(FIELDS[field] for field in row.fields.tolist()), row.labelled)


def _text_of_unit(
    text: str, unit: int, encoded: EncodedTexts, vocab: Vocab, tables: PairTables, first_id: int, *, parse_special: bool
) -> SideText | None:
    """What one side says of a text, without what was cut off and with BOS and EOS around it.

    Tokens at 0-1, 1-3 and 3-4, cut on the left to the last two, with BOS: BOS stands at 1, where `1-3` begins.
    """
    before = int(encoded.uncut_counts[:unit].sum())
    ids = encoded.uncut_ids[before : before + int(encoded.uncut_counts[unit])]
    whole = text_by_offsets(text, ids, vocab, tables, first_id=first_id, parse_special=parse_special)
    if whole is None:
        return None
    first, kept_count = int(encoded.first_kept[unit]), int(encoded.kept_counts[unit])
    has_bos = encoded.bos is not None
    has_eos = int(encoded.counts[unit]) - kept_count - has_bos > 0
    bounds = np.append(whole.begin, whole.end[-1:]) if len(ids) else np.zeros(1, dtype=np.int64)
    special_of_bos, special_of_eos = (
        -1 if token is None else int(tables.special[token + first_id]) for token in (encoded.bos, encoded.eos)
    )

    def around(values: NDArray[Any], of_bos: Any, of_eos: Any) -> NDArray[Any]:
        chosen = values[first : first + kept_count]
        return np.concatenate([[of_bos] * has_bos, chosen, [of_eos] * has_eos]).astype(values.dtype)

    return SideText(
        text=whole.text,
        begin=around(whole.begin, bounds[first], bounds[first + kept_count]),
        end=around(whole.end, bounds[first], bounds[first + kept_count]),
        sharp_begin=around(whole.sharp_begin, of_bos=True, of_eos=True),
        sharp_end=around(whole.sharp_end, of_bos=True, of_eos=True),
        has_text=around(whole.has_text, of_bos=False, of_eos=False),
        specials=around(whole.specials, special_of_bos, special_of_eos),
    )


def align_texts(
    texts: Sequence[str],
    *,
    student: Any,
    teacher: Any,
    bos: bool = False,
    eos: bool = False,
    max_student_tokens: int | None = None,
    max_teacher_tokens: int | None = None,
    truncation_side: End = "right",
    padding_side: End = "right",
    parse_special: bool = False,
) -> Spans:
    """Tokenises texts with both sides and aligns the two.

    Args:
        texts: the texts.
        student: the student's `Vocab`, or a source of it, read anew at every call.
        teacher: the teacher's.
        bos: put the token that begins a text before each, on the sides that have one; more on this and the next four in
            `Aligner`.
        eos: put the token that ends a text after each, on the sides that have one.
        max_student_tokens: cut to so many tokens.
        max_teacher_tokens: the same of the teacher.
        truncation_side: where to cut, `left` or `right`.
        padding_side: where shorter rows are padded, `left` or `right`.
        parse_special: whether what looks like a control token in a text is one; by default it is text.

    Returns:
        The spans; they hold the ids of both sides.

    Raises:
        OptionError: an option has a value that makes no sense.

    >>> import xtoken_align
    >>> student, teacher = xtoken_align.read_vocab("llama-3"), xtoken_align.read_vocab("qwen3")
    >>> spans = align_texts(["x = 123"], student=student, teacher=teacher)
    >>> spans.student.tolist(), spans.teacher.tolist()
    ([[0, 1, 2, 3]], [[0, 1, 2, 3, 3, 3]])
    """
    aligner = Aligner(
        student=student,
        teacher=teacher,
        bos=bos,
        eos=eos,
        max_student_tokens=max_student_tokens,
        max_teacher_tokens=max_teacher_tokens,
        truncation_side=truncation_side,
        parse_special=parse_special,
    )
    return aligner.texts(texts, padding_side=padding_side)


def align_ids(
    student_ids: Any,
    teacher_ids: Any,
    *,
    student: Any,
    teacher: Any,
    student_mask: Any = None,
    teacher_mask: Any = None,
    student_segments: Any = None,
    teacher_segments: Any = None,
    student_loss_mask: Any = None,
    teacher_loss_mask: Any = None,
) -> Spans:
    """Aligns two tokenisations of the same texts, row by row: of a data set, or what a student has just generated.

    Text and byte tokens say their surfaces, specials and padding say nothing. A chunk's two sides say the same bytes;
    where a normaliser changed a text, the same text after both sides' normalisers. What one side alone says, and
    specials without a counterpart at their place, are in no chunk and move nothing else.

    Args:
        student_ids: int (B, T_s) array or tensor, or a sequence with a sequence of ids per row.
        teacher_ids: int (B, T_t) or a sequence per row.
        student: the student's `Vocab`, or a source of it, read anew at every call.
        teacher: the teacher's.
        student_mask: bool (B, T_s), False at padding, on either side of a row; what stands there is not looked at.
            Without it every id is a token.
        teacher_mask: bool (B, T_t).
        student_segments: int (B, T_s), in packed rows the number of each token's document; negative at padding.
            Documents of one number are aligned with each other.
        teacher_segments: int (B, T_t); given together with the student's.
        student_loss_mask: bool (B, T_s), which tokens count in the loss (`labels != -100`). A chunk has weight if all
            its tokens on both sides count.
        teacher_loss_mask: bool (B, T_t).

    Returns:
        The spans, padded as the ids are; rows of different lengths get padding on the right.

    Raises:
        OptionError: shapes do not fit, an id is out of range, or the segments are not in order.

    >>> import xtoken_align
    >>> student, teacher = xtoken_align.read_vocab("llama-3"), xtoken_align.read_vocab("qwen3")
    >>> spans = align_ids([[128000, 4513, 13]], [[16, 17, 18, 13]], student=student, teacher=teacher)
    >>> spans.student.tolist(), spans.teacher.tolist()  # begin of text, 123, full stop
    ([[-1, 0, 1]], [[0, 0, 0, 1]])
    """
    return Aligner(student=student, teacher=teacher).ids(
        student_ids,
        teacher_ids,
        student_mask=student_mask,
        teacher_mask=teacher_mask,
        student_segments=student_segments,
        teacher_segments=teacher_segments,
        student_loss_mask=student_loss_mask,
        teacher_loss_mask=teacher_loss_mask,
    )


def align_chats(
    chats: Sequence[Chat],
    *,
    student: Any,
    teacher: Any,
    student_template: Template | None = None,
    teacher_template: Template | None = None,
    template_options: Mapping[str, Any] | None = None,
    loss_roles: Sequence[str] = ("assistant",),
    loss_on: Sequence[str] = LOSS_ON,
    parse_special: bool = False,
    unplaced: Unplaced = "leave out",
    tools: Sequence[Any] | None = None,
    max_student_tokens: int | None = None,
    max_teacher_tokens: int | None = None,
    truncation_side: End = "right",
    padding_side: End = "right",
) -> Spans:
    r"""Renders chats with both sides' templates, tokenises them and aligns what the messages say.

    What a message says aligns with itself, whatever stands around it: its thoughts, its content, and its calls where
    both templates write them alike. Special tokens with equal roles between the same two contents align with each
    other; all other text of a template is in no chunk.

    Args:
        chats: chats, each a sequence of messages with a `role` and a `content` (a text, or parts with a `text`), a
            `reasoning_content` and `tool_calls`.
        student: the student's `Vocab`, or a source of it, read anew at every call.
        teacher: the teacher's.
        student_template: a Jinja template or a function from messages to text; by default the tokenizer's own.
        teacher_template: the same of the teacher.
        template_options: further variables of both Jinja templates (`tools`, `enable_thinking`, ...).
        loss_roles: whose messages count in the loss.
        loss_on: what of them counts: `thought`, `content`, `calls` and the `end` of a turn, all by default.
        parse_special: whether a message that spells a control token holds that token; by default it is text.
        unplaced: `leave out` of the loss, or `refuse`, a chat whose contents a template changes so that nobody can tell
            where they stand.
        tools: for every chat the JSON schemas of its tools, a list, JSON of a list, or None.
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
    aligner = Aligner(
        student=student,
        teacher=teacher,
        max_student_tokens=max_student_tokens,
        max_teacher_tokens=max_teacher_tokens,
        truncation_side=truncation_side,
        student_template=student_template,
        teacher_template=teacher_template,
        template_options=template_options or {},
        loss_roles=loss_roles,
        loss_on=loss_on,
        parse_special=parse_special,
        unplaced=unplaced,
    )
    return aligner.chats(chats, tools=tools, padding_side=padding_side)
