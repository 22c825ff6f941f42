"""Chats: each side renders the messages by its own template; what aligns is what the messages say.

From top to bottom this file follows a chat: its text and the stretches of it that messages wrote, its tokens, what each
token belongs to, and the tokens' places on an axis that both sides share. The axis holds the stretches that both sides
have, one after another, with a step of one between two. A user says "Hi" and the assistant "4":

    axis      "Hi" at 1-3, "4" at 4-5
    student   <u> Hi </u> <a> 4 </a>       Hi 1-3, 4 at 4-5; </u> and <a> stand between the two contents
    teacher   U : H i / A : 4              H 1-2, i 2-3, 4 at 4-5; the rest is in no chunk

Special tokens that correspond and stand between the same two stretches are paired; all other text of a template is in
no chunk.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, XTokenWarning
from ..readers.parsed import Part, Run, cut, pattern_of
from ..vocab.roles import stop_ids
from ..vocab.vocab import Vocab
from .careful import Placed, chunks_of_placed, common_stretches, with_specials
from .chunks import Chunks
from .fold import SideText, byte_positions, one_after_another, text_by_surfaces, text_of_run
from .pieces import Chat, Piece, pieces_of, place_pieces
from .spans import AlignedUnits
from .tables import PairTables
from .templates import Renderer, one_moment, tools_of
from .turns import FIELDS, LOSS_ON, Stretch, TurnTokens, stretches_of
from .units import End, Flags, Numbers, Units, one_per_row

T = TypeVar("T")

Unplaced = Literal["leave out", "refuse"]
"""What becomes of a chat that a template changes so that nobody can tell where its contents stand.

Left out, no token of that side counts and no chunk has a weight; the student's labels stay where its own side is known.
"""

_HEADERS = ("bos", "header_start", "system", "user", "assistant", "tool_responses_start", "tool_response_start")
"""Roles of tokens with which another turn begins."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """What counts in the loss, and how chats are read and cut.

    Attributes:
        loss_roles: whose messages count.
        loss_on: what of them counts: some of `LOSS_ON`.
        parse_special: whether what looks like a control token in a message is one.
        limits: tokens to cut to, the student's and the teacher's.
        truncation_side: where to cut.
        unplaced: what becomes of a chat in which the place of something that counts is unknown.
    """

    loss_roles: Collection[str] = ("assistant",)
    loss_on: Collection[str] = LOSS_ON
    parse_special: bool = False
    limits: tuple[int | None, int | None] = (None, None)
    truncation_side: End = "right"
    unplaced: Unplaced = "leave out"

    def __post_init__(self) -> None:
        if self.unplaced not in get_args(Unplaced):
            raise OptionError(f"unplaced is one of {', '.join(get_args(Unplaced))}, got {self.unplaced!r}")
        for name in ("loss_roles", "loss_on"):
            if isinstance(getattr(self, name), str):
                raise OptionError(f"{name} is a list of names, got the string {getattr(self, name)!r}")
        unknown = sorted(set(self.loss_on) - set(LOSS_ON))
        if unknown:
            raise OptionError(f"loss_on names {', '.join(LOSS_ON)}, got {unknown[0]!r}")


def align_chat_units(
    chats: Sequence[Chat],
    tables: PairTables,
    renders: tuple[Renderer, Renderer],
    options: ChatOptions,
    tools: Sequence[Any] | None = None,
) -> AlignedUnits:
    """Renders, encodes and aligns chats, a unit per chat.

    Args:
        chats: the chats.
        tables: the pair's tables.
        renders: both sides' templates, the student's first.
        options: what counts in the loss, and how chats are read and cut.
        tools: those of every chat, as `tools_of` takes them.
    """
    sides, unplaced = chat_rows(chats, tables, renders, options, tools)
    slices = [
        [_kept(len(row.ids), limit, options.truncation_side) for row in side]
        for side, limit in zip(sides, options.limits, strict=True)
    ]
    pairs: list[tuple[Placed, Placed]] = []
    for student, teacher, student_slice, teacher_slice in zip(*sides, *slices, strict=True):
        # Specials correspond only between two stretches that are neighbours on the other side too.
        student_specials = np.where(np.isin(student.between, teacher.between), student.specials, -1).astype(np.int32)
        teacher_specials = np.where(np.isin(teacher.between, student.between), teacher.specials, -1).astype(np.int32)
        whole = with_specials(
            (student_specials, teacher_specials),
            ((student.placed, student.places), (teacher.placed, teacher.places)),
            tables,
        )
        pairs.append((_cut(whole[0], student_slice), _cut(whole[1], teacher_slice)))
    chunks = Chunks(*chunks_of_placed(pairs), np.zeros(len(pairs), dtype=np.bool_))
    (student_units, student_labelled), (teacher_units, teacher_labelled) = (
        _units(side, side_slices) for side, side_slices in zip(sides, slices, strict=True)
    )
    vocabs = tables.student, tables.teacher
    return AlignedUnits(
        student_units, teacher_units, chunks, student_labelled, teacher_labelled, vocabs, unplaced=unplaced
    )


def chat_rows(
    chats: Sequence[Chat],
    tables: PairTables,
    renders: tuple[Renderer, Renderer],
    options: ChatOptions,
    tools: Sequence[Any] | None = None,
) -> tuple[list[list[ChatRow]], int]:
    """Both sides' chats, uncut, and how many have contents whose place is unknown; arguments as `align_chat_units`."""
    if isinstance(chats, Mapping) or any(isinstance(chat, Mapping) for chat in chats):
        raise OptionError("chats are a sequence of chats, each a sequence of messages: put the one chat into a list")
    if tools is not None and len(tools) != len(chats):
        raise OptionError(f"tools are one entry per chat, got {len(tools)} for {len(chats)} chats")
    pieces = [_in_row(row, pieces_of, chat) for row, chat in enumerate(chats)]
    schemas = [_in_row(row, tools_of, given) for row, given in enumerate(tools or [None] * len(chats))]
    rendered: list[list[Rendered]] = []
    for vocab, render in ((tables.student, renders[0]), (tables.teacher, renders[1])):
        rendered.append(
            [
                _in_row(row, render_chat, chat, its_pieces, render.with_tools(schemas[row]), vocab, options)
                for row, (chat, its_pieces) in enumerate(zip(chats, pieces, strict=True))
            ]
        )
    unplaced = _unplaced(rendered, options)
    sides: list[list[ChatRow]] = []
    for which, (vocab, first_id) in enumerate(((tables.student, 0), (tables.teacher, len(tables.student)))):
        tokens = tokenize_chats(rendered[which], vocab, tables, first_id=first_id, options=options)
        sides.append([])
        for row, side_text in enumerate(tokens):
            both = rendered[0][row], rendered[1][row]
            axis = _Axis.of(both[which], which, len(chats[row]), _common(pieces[row], *both))
            on_axis = _on_axis(side_text, axis, vocab, options)
            if which == 1:
                # The teacher's labels weigh chunks; the student's are for a cross-entropy too.
                on_axis = replace(on_axis, labelled=on_axis.labelled & on_axis.compared)
            sides[-1].append(on_axis)
    return sides, unplaced


def _in_row(row: int, work: Callable[..., T], *arguments: Any) -> T:
    """What a function makes of one chat; its refusal says which chat it was."""
    try:
        return work(*arguments)
    except OptionError as error:
        raise OptionError(f"chat {row}: {error}") from error


def _unplaced(rendered: Sequence[Sequence[Rendered]], options: ChatOptions) -> int:
    """How many chats do not count, since nobody can tell where a template put what their messages say; says so."""
    rows = [row for row, both in enumerate(zip(*rendered, strict=True)) if any(chat.unplaced for chat in both)]
    if not rows:
        return 0
    sides = [side for side, chats in zip(("student", "teacher"), rendered, strict=True) if chats[rows[0]].unplaced]
    reason = f"the {' and the '.join(sides)}'s template changes what the messages say, so that their place is unknown"
    if options.unplaced == "refuse":
        raise OptionError(f"chat {rows[0]}: {reason}; give another template, or unplaced='leave out'")
    count = f"{len(rows)} of {len(rendered[0])} chats"
    warnings.warn(
        f"{count} are left out of the distillation loss (the first is chat {rows[0]}): {reason}",
        XTokenWarning,
        stacklevel=5,
    )
    return len(rows)


def _kept(count: int, limit: int | None, truncation_side: End) -> slice:
    """Which tokens of a row are kept."""
    if limit is not None and limit < 1:
        raise OptionError(f"a maximum of tokens is a positive number, got {limit}")
    if limit is None or count <= limit:
        return slice(0, count)
    return slice(0, limit) if truncation_side == "right" else slice(count - limit, count)


def _cut(placed: Placed, part: slice) -> Placed:
    return Placed(placed.begin[part], placed.end[part], placed.cover[part], placed.on_axis[part])


def _units(side: Sequence[ChatRow], slices: Sequence[slice]) -> tuple[Units, Flags]:
    """A side's chats, cut, as units; and bool (tokens,), which tokens count in the loss."""
    ids = [row.ids[part] for row, part in zip(side, slices, strict=True)]
    labelled = [row.labelled[part] for row, part in zip(side, slices, strict=True)]
    counts = np.array([len(row) for row in ids], dtype=np.int64)
    flat = np.concatenate([np.zeros(0, dtype=np.int64), *ids])
    return one_per_row(flat, counts), np.concatenate([np.zeros(0, dtype=np.bool_), *labelled])


# Rendered chats


@dataclass(frozen=True, slots=True)
class Rendered:
    """A chat as a template wrote it.

    Attributes:
        text: the text.
        stretches: what messages wrote, in the order of the text.
        said: where pieces of messages stand, ascending.
        unplaced: whether the place of something that counts in the loss is unknown; then nothing counts.
    """

    text: str
    stretches: tuple[Stretch, ...]
    said: tuple[tuple[int, int], ...]
    unplaced: bool


def render_chat(
    messages: Chat, pieces: Sequence[Piece], render: Renderer, vocab: Vocab, options: ChatOptions
) -> Rendered:
    """Renders a chat and finds what its messages wrote."""
    roles = frozenset(options.loss_roles)
    with one_moment():
        placed = place_pieces(messages, pieces, render)
        stretches = stretches_of(messages, pieces, placed, render, turn_tokens(vocab), roles)
    unplaced = any(pieces[number].role in roles for number in placed.unknown)
    if unplaced:
        stretches = [replace(stretch, labelled=False) for stretch in stretches]
    return Rendered(placed.text, tuple(stretches), tuple(sorted(placed.at.values())), unplaced)


@lru_cache(maxsize=16)
def turn_tokens(vocab: Vocab) -> TurnTokens:
    """Finds the tokens that turns of a tokenizer's chats are made of."""

    def strings(ids: Iterable[int]) -> re.Pattern[str]:
        return pattern_of(frozenset(vocab.raw[token_id] for token_id in ids))

    return TurnTokens(
        ends=strings(stop_ids(vocab)),
        headers=strings(token_id for role in _HEADERS for token_id in vocab.roles.get(role, ())),
        controls=pattern_of(frozenset(vocab.controls)),
    )


# Tokens of rendered chats


def tokenize_chats(
    chats: Sequence[Rendered], vocab: Vocab, tables: PairTables, *, first_id: int, options: ChatOptions
) -> list[tuple[Numbers, SideText]]:
    """Tokenises rendered chats as their tokenizer does.

    Control tokens are parsed in what the template wrote alone: what looks like one in a message is text.

    Args:
        chats: the rendered chats.
        vocab: the side's tokenizer.
        tables: the pair's tables.
        first_id: what `PairTables` adds to this side's ids.
        options: whether control tokens are parsed in messages too.

    Returns:
        For every chat its ids, and what they say on the axis of the rendered text's bytes.
    """
    parts = [control_parts(chat, vocab, options) for chat in chats]
    rows: list[tuple[Numbers, SideText]] = []
    for runs in vocab.row_encoder.encode_parts(parts):
        ids = np.array([token for run in runs for token in run.ids], dtype=np.int64)
        sides = [text_of_any_run(run, vocab, tables, first_id) for run in runs]
        rows.append((ids, one_after_another(sides)))
    return rows


def control_parts(chat: Rendered, vocab: Vocab, options: ChatOptions) -> list[Part]:
    """A chat as parts: its control tokens, and the text between."""
    controls = vocab.controls
    literal = () if vocab.row_tokens is None else vocab.row_tokens.literal
    if options.parse_special:
        return list(cut(chat.text, controls, literal))
    messages = list(chat.said)
    parts: list[Part] = []
    text: list[str] = []
    at = 0
    for piece, token in cut(chat.text, controls, literal):
        end = at + len(piece)
        while messages and messages[0][1] <= at:
            messages.pop(0)
        if token is None or (messages and messages[0][0] < end):
            text.append(piece)
        else:
            if text:
                parts.append(("".join(text), None))
                text.clear()
            parts.append((piece, token))
        at = end
    if text:
        parts.append(("".join(text), None))
    return parts


def text_of_any_run(run: Run, vocab: Vocab, tables: PairTables, first_id: int) -> SideText:
    """What the tokens of a run say, on the axis of the run's bytes."""
    placed = text_of_run(run, vocab, tables, first_id=first_id)
    if placed is not None:
        return placed
    # The surfaces are not the text, and nobody says which characters they stand for: tokens in a common stretch.
    data = np.frombuffer(run.text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
    side = text_by_surfaces(np.array(run.ids, dtype=np.int64) + first_id, tables, trim=False, fold=False)
    begin, end = np.zeros_like(side.begin), np.zeros_like(side.end)
    inside = np.zeros(len(run.ids), dtype=np.bool_)
    for start, in_text, length in common_stretches(side.text, data):
        within = (side.begin >= start) & (side.end <= start + length)
        inside |= within
        begin = np.where(within, side.begin - start + in_text, begin)
        end = np.where(within, side.end - start + in_text, end)
    begin = np.maximum.accumulate(begin)
    end = np.maximum(end, begin)
    return SideText(data, begin, end, side.sharp_begin, side.sharp_end, side.has_text & inside, side.specials)


# Tokens on the axis of the stretches


@dataclass(frozen=True, eq=False)
class ChatRow:
    """One chat on one side.

    Attributes:
        ids: int64 (tokens,).
        placed: the tokens on the axis of what both sides wrote.
        places: int64 (tokens,), where each token stands on it.
        specials: int32 (tokens,), rows or columns of the pair's table.
        between: int64 (tokens,), the messages before and after each token, as one number.
        message: int64 (tokens,), the message that each belongs to, -1 for what is the template's own.
        fields: uint8 (tokens,), what each belongs to: positions in `FIELDS`.
        labelled: bool (tokens,), which count in the loss.
        compared: bool (tokens,), which belong to a stretch that both sides wrote alike, or end a turn.
    """

    ids: Numbers
    placed: Placed
    places: Numbers
    specials: NDArray[np.int32]
    between: Numbers
    message: Numbers
    fields: NDArray[np.uint8]
    labelled: Flags
    compared: Flags


@dataclass(frozen=True, eq=False)
class _Axis:
    """The stretches of a rendered chat in its bytes, as arrays; stretch 0 is empty, for what precedes all others.

    `<u>Hi</u><a>4</a>` has "Hi" at 3-5 and "4" at 12-13, which stand at 1-3 and 4-5 on the axis:

        begins 0 3 12    ends 0 5 13    shift 0 -2 -8    message 0 1 2 3    closes 0 3 5

    Attributes:
        begins: int64 (stretches + 1,), ascending.
        ends: int64 (stretches + 1,).
        shift: int64 (stretches + 1,), from a place in the rendered text to one on the axis.
        message: int64 (stretches + 2,), each stretch's message, counted from 1; the last is one above all.
        closes: int64 (stretches + 1,), where the stretch, or the last before it that both sides have, ends on the axis.
        common: bool (stretches + 1,), whether both sides have it, with the same text.
        field: uint8 (stretches + 1,), positions in `FIELDS`.
        labelled: bool (stretches + 1,).
    """

    begins: Numbers
    ends: Numbers
    shift: Numbers
    message: Numbers
    closes: Numbers
    common: Flags
    field: NDArray[np.uint8]
    labelled: Flags

    @classmethod
    def of(
        cls, chat: Rendered, which: int, messages: int, on_axis: Mapping[tuple[int, str], tuple[int, int, int]]
    ) -> _Axis:
        """The stretches of one side.

        Args:
            chat: the chat as this side's template wrote it.
            which: 0 for the student's side, 1 for the teacher's.
            messages: how many messages the chat has.
            on_axis: what `_common` gives.
        """
        byte_at = byte_positions(chat.text)
        begins, ends, shift, message, closes = [0], [0], [0], [0], [0]
        common, field, labelled = [False], [0], [False]
        for stretch in chat.stretches:
            begins.append(int(byte_at[stretch.begin]))
            ends.append(int(byte_at[stretch.end]))
            at = on_axis.get(stretch.key)
            shift.append(0 if at is None else at[which] - begins[-1])
            closes.append(closes[-1] if at is None else at[2])
            message.append(stretch.message + 1)
            common.append(at is not None)
            field.append(FIELDS.index(stretch.field))
            labelled.append(stretch.labelled)
        return cls(
            begins=np.array(begins),
            ends=np.array(ends),
            shift=np.array(shift),
            message=np.array([*message, messages + 1]),
            closes=np.array(closes),
            common=np.array(common),
            field=np.array(field, dtype=np.uint8),
            labelled=np.array(labelled),
        )


def _common(
    pieces: Sequence[Piece], student: Rendered, teacher: Rendered
) -> dict[tuple[int, str], tuple[int, int, int]]:
    """Where the stretches that both sides have stand on the axis: each side's beginning, and the common end.

    A thought or a content may be cut on either side: then both stand where they stand in the message's own text. All
    else must be equal text, and so must a thought inside of a content, with the marks around it: a template that takes
    it out and writes it otherwise says another text.
    """
    of_teacher = {stretch.key: (at, stretch) for at, stretch in enumerate(teacher.stretches)}
    on_axis: dict[tuple[int, str], tuple[int, int, int]] = {}
    base, reached = 1, -1
    for stretch in student.stretches:
        at, counterpart = of_teacher.get(stretch.key, (-1, None))
        # Ends of turns correspond by their roles, whatever they are called.
        if counterpart is None or at <= reached or stretch.field == "end":
            continue
        if stretch.piece is not None and stretch.field == "thought" and pieces[stretch.piece].path[0] == "content":
            blocks = [
                _thought_block(side.text, one.begin, one.end)
                for side, one in ((student, stretch), (teacher, counterpart))
            ]
            if blocks[0] != blocks[1]:
                continue
        text, its_text = (side.text[one.begin : one.end] for side, one in ((student, stretch), (teacher, counterpart)))
        skipped, size = (0, 0), _size(text)
        if text != its_text:
            whole = pieces[stretch.piece].text if stretch.piece is not None else ""
            places = whole.find(text), whole.find(its_text)
            if min(places) < 0:
                continue
            skipped, size = (_size(whole[: places[0]]), _size(whole[: places[1]])), _size(whole)
        on_axis[stretch.key] = base + skipped[0], base + skipped[1], base + size
        base += size + 1
        reached = at
    return on_axis


def _thought_block(text: str, begin: int, end: int) -> str:
    """A thought with the marks around it, as a template wrote it."""
    opening = re.search(r"<think>\s*\Z", text[:begin])
    closing = re.match(r"\s*</think>", text[end:])
    return text[opening.start() if opening else begin : end + closing.end() if closing else end]


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _on_axis(tokens: tuple[Numbers, SideText], axis: _Axis, vocab: Vocab, options: ChatOptions) -> ChatRow:
    """Puts a chat's tokens on the axis, and says what each belongs to."""
    ids, side = tokens
    begin = _without_dummy_prefix(side, axis) if vocab.encoder.dummy_prefix else side.begin
    is_special = side.specials >= 0
    stretch = axis.begins.searchsorted(begin, side="right") - 1
    inside = (stretch > 0) & (side.end <= axis.ends[stretch]) & (side.has_text | is_special)
    # What both sides wrote alike corresponds byte by byte, specials in it too.
    on_axis = inside & axis.common[stretch]
    at, end = begin + axis.shift[stretch], side.end + axis.shift[stretch]
    placed = Placed(
        begin=np.where(on_axis & side.sharp_begin, at, -1),
        end=np.where(on_axis & side.sharp_end, end, -1),
        cover=np.where(on_axis, end - at, 0),
        on_axis=on_axis,
    )
    is_end = axis.field[stretch] == FIELDS.index("end")
    # What stands between two stretches stands at the end of the one before.
    passed = np.maximum(axis.begins.searchsorted(begin) - 1, 0)
    whose = inside | (_within_neighbours(side.end, stretch, axis) & side.has_text)
    fields = np.where(whose, axis.field[stretch], 0).astype(np.uint8)
    counts = np.isin(fields, [FIELDS.index(name) for name in options.loss_on])
    return ChatRow(
        ids=ids,
        placed=placed,
        places=np.where(on_axis, at, axis.closes[passed]),
        specials=np.where(inside & ~is_end, np.int32(-1), side.specials),
        between=axis.message[passed] * (axis.message[-1] + 1) + axis.message[passed + 1],
        message=np.where(whose, axis.message[stretch] - 1, -1),
        fields=fields,
        labelled=counts & axis.labelled[stretch],
        compared=axis.common[stretch] | is_end,
    )


def _within_neighbours(end: Numbers, stretch: Numbers, axis: _Axis) -> Flags:
    r"""Which tokens reach over stretches that follow each other in one message and count alike.

    The thought "why." and the template's mark behind it, `\n</think>`, are two stretches of the assistant's. The token
    `.\n` is in neither, and the assistant's words all the same.

    Args:
        end: int64 (tokens,), where they end in the text.
        stretch: int64 (tokens,), the stretch in which each begins.
        axis: the stretches.
    """
    last = axis.begins.searchsorted(end) - 1
    parts = (axis.begins[1:] != axis.ends[:-1]) | (axis.message[1:-1] != axis.message[:-2])
    parts |= axis.labelled[1:] != axis.labelled[:-1]
    borders = np.concatenate([[0], np.cumsum(parts)])
    reaches: Flags = (stretch > 0) & (last > stretch) & (end <= axis.ends[last]) & (borders[last] == borders[stretch])
    return reaches


def _without_dummy_prefix(side: SideText, axis: _Axis) -> Numbers:
    """Where tokens begin, without a space before a stretch that a tokenizer with a dummy prefix joins to it."""
    next_stretch = np.minimum(axis.begins.searchsorted(side.begin, side="right"), len(axis.begins) - 1)
    start = axis.begins[next_stretch]
    spare = (side.begin + 1 == start) & (side.end > start)
    spare[spare] = side.text[side.begin[spare]] == ord(" ")
    return np.where(spare, start, side.begin)
