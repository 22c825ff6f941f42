"""Chats: each side renders the messages by its own template; what aligns is what the messages say.

From top to bottom this file follows a chat: its contents, the templates, the rendered text with the places of the
contents in it, its tokens, and their places on an axis that both sides share. The axis holds the contents alone, one
after another, with a step of one between two. A user says "Hi" and the assistant "4":

    axis      "Hi" at 1-3, "4" at 4-5
    student   <u> Hi </u> <a> 4 </a>       Hi 1-3, 4 at 4-5; </u> and <a> stand between the two contents
    teacher   U : H i / A : 4              H 1-2, i 2-3, 4 at 4-5; the rest is in no chunk

Special tokens that correspond and stand between the same two contents are paired; all other text of a template is in
no chunk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, OptionError
from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab
from .careful import Placed, chunks_of_placed, common_stretches, with_specials
from .chunks import Chunks
from .fold import SideText, text_by_offsets, text_by_surfaces
from .spans import AlignedUnits
from .tables import PairTables
from .units import End, Flags, Numbers, Units, one_per_row

Message = Mapping[str, Any]
Chat = Sequence[Message]
Template = str | Callable[[list[dict[str, Any]]], str]
Render = Callable[[list[dict[str, Any]]], str]

_NAMED_ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
"""Roles whose tokens a template may write by name, as `bos_token` (transformers' `apply_chat_template`)."""

_TURN_ENDS = ("eot", "eos", "eom")

_STAND_IN = re.compile("\ue000(\\d+)\ue001")
"""What stands for a content while its place is looked for: private-use characters, which no template knows."""


def align_chat_units(
    chats: Sequence[Chat],
    tables: PairTables,
    renders: tuple[Render, Render],
    loss_roles: Sequence[str],
    limits: tuple[int | None, int | None],
    truncation_side: End = "right",
) -> AlignedUnits:
    """Renders, encodes and aligns chats, a unit per chat.

    Args:
        chats: the chats.
        tables: the pair's tables.
        renders: both sides' templates, the student's first.
        loss_roles: whose messages count in the loss.
        limits: tokens to cut to, the student's and the teacher's.
        truncation_side: where to cut.
    """
    if isinstance(chats, Mapping) or any(isinstance(chat, Mapping) for chat in chats):
        raise OptionError("chats are a sequence of chats, each a sequence of messages: put the one chat into a list")
    contents = [contents_of(chat) for chat in chats]
    sides: list[list[ChatRow]] = []
    for vocab, first_id, render in (
        (tables.student, 0, renders[0]),
        (tables.teacher, len(tables.student), renders[1]),
    ):
        rendered = [render_chat(chat, texts, render) for chat, texts in zip(chats, contents, strict=True)]
        tokens = tokenize_chats(rendered, vocab, tables, first_id=first_id)
        sides.append(
            [
                _on_contents(row, _Regions.of(chat, texts, frozenset(loss_roles)), vocab)
                for row, chat, texts in zip(tokens, rendered, contents, strict=True)
            ]
        )
    slices = [
        [_kept(len(row.ids), limit, truncation_side) for row in side] for side, limit in zip(sides, limits, strict=True)
    ]
    pairs: list[tuple[Placed, Placed]] = []
    for student, teacher, student_slice, teacher_slice in zip(*sides, *slices, strict=True):
        # Specials correspond only between two contents that are neighbours on the other side too.
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
    return AlignedUnits(
        student_units, teacher_units, chunks, student_labelled, teacher_labelled, (tables.student, tables.teacher)
    )


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


# Contents


@dataclass(frozen=True, slots=True)
class Content:
    """One text of a message.

    Attributes:
        message: the message's position in the chat.
        role: the message's role.
        text: the text.
    """

    message: int
    role: str
    text: str


def contents_of(messages: Chat) -> list[Content]:
    """The texts of a chat's messages, in order; a content in parts has one for each part with a text.

    Raises:
        OptionError: a message has no role.
    """
    contents: list[Content] = []
    for at, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str):
            raise OptionError(f"message {at} of a chat has no role: expected {{'role': ..., 'content': ...}}")
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        contents += [Content(at, role, str(part["text"])) for part in parts if _has_text(part)]
    return contents


def _has_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)


def _with_texts(messages: list[dict[str, Any]], texts: Sequence[str]) -> list[dict[str, Any]]:
    """The messages with their contents' texts replaced, in order."""
    left = iter(texts)
    replaced: list[dict[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            content = next(left)
        elif isinstance(content, list):
            content = [{**part, "text": next(left)} if _has_text(part) else part for part in content]
        replaced.append({**message, "content": content} if "content" in message else message)
    return replaced


# Templates


def renderer(vocab: Vocab, template: Template | None, side: str, options: Mapping[str, Any]) -> Render:
    """What renders a side's chats: Jinja in a sandbox, with the settings that templates are written for.

    Args:
        vocab: the side's tokenizer, for its own template and its special tokens.
        template: a Jinja template, a function from messages to text, or None for the tokenizer's own.
        side: `student` or `teacher`, for messages.
        options: further variables of a Jinja template (`tools`, `enable_thinking`, ...).

    Raises:
        OptionError: there is no template, or it is not valid.
        MissingExtraError: jinja2 is not installed.
    """
    if callable(template):
        return template
    source = template if template is not None else vocab.chat_template
    if source is None:
        raise OptionError(
            f"the {side} {vocab.name} has no chat template: give `{side}_template`, a Jinja template or a function "
            "from messages to text"
        )
    compiled = _compiled(source, side)
    special_tokens = {f"{role}_token": vocab.raw[vocab.roles[role][0]] for role in _NAMED_ROLES if role in vocab.roles}
    variables = {"add_generation_prompt": False, "tools": None, "documents": None, **special_tokens, **options}

    def render(messages: list[dict[str, Any]]) -> str:
        from jinja2 import TemplateError

        try:
            return str(compiled.render(messages=messages, **variables))
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise OptionError(f"the {side}'s chat template refuses a chat: {error}") from error

    return render


@lru_cache(maxsize=16)
def _compiled(source: str, side: str) -> Any:
    try:
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingExtraError("Rendering a chat template", "chat") from error

    class Generation(Extension):
        """`{% generation %}` marks what an assistant wrote; rendering it changes nothing."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def to_json(value: Any, indent: int | None = None, **options: Any) -> str:
        # jinja2's own filter escapes HTML's characters.
        return json.dumps(value, ensure_ascii=False, indent=indent, **options)

    def refuse(message: str) -> str:
        raise TemplateError(message)

    # The settings under which the templates of transformers are written.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise OptionError(f"the {side}'s chat template is not valid Jinja: {error}") from error


# Rendered chats


@dataclass(frozen=True, slots=True)
class Region:
    """Where a content stands in a rendered chat.

    Attributes:
        content: the content's position among the chat's contents.
        begin: its first character in the rendered text.
        end: the character after its last.
        skipped: characters at the content's beginning that the template left out.
    """

    content: int
    begin: int
    end: int
    skipped: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A chat as a template wrote it; contents that it left out or changed have no region."""

    text: str
    regions: tuple[Region, ...]


def render_chat(messages: Chat, contents: Sequence[Content], render: Render) -> Rendered:
    """Renders a chat and finds its contents.

    The chat is rendered once more with a stand-in for every content, which shows what the template writes around them:
    from `<u>{0}</u><a>{1}</a>` the pieces `<u>`, `</u><a>` and `</a>`. They are looked for in the text in turn.

    Args:
        messages: the chat.
        contents: its contents.
        render: the template.
    """
    plain_messages = [dict(message) for message in messages]
    text = render(plain_messages)
    try:
        stand_ins = [f"\ue000{at}\ue001" for at in range(len(contents))]
        frame = render(_with_texts(plain_messages, stand_ins))
    except OptionError:
        # A template may look into a content, and refuse what it finds.
        return Rendered(text, tuple(_searched(text, contents, 0, range(len(contents)))))
    order = [int(number) for number in _STAND_IN.findall(frame)]
    around = _STAND_IN.split(frame)[::2]
    regions: list[Region] = []
    at = 0
    for step, number in enumerate(order):
        if not text.startswith(around[step], at):
            # What the template writes depends on the contents.
            return Rendered(text, (*regions, *_searched(text, contents, at, order[step:])))
        at += len(around[step])
        region = _region(text, at, contents[number].text, number, around[step + 1], last=step + 1 == len(order))
        if region is None:
            return Rendered(text, (*regions, *_searched(text, contents, at, order[step + 1 :])))
        at = region.end
        if region.end > region.begin and region.skipped >= 0:
            regions.append(region)
    return Rendered(text, tuple(regions))


def _region(text: str, at: int, content: str, number: int, after: str, *, last: bool) -> Region | None:
    """The content that begins at `at` and is followed by `after`; None where it cannot be told where it ends."""
    for skipped, form in _forms(content):
        end = at + len(form)
        if text.startswith(form, at) and text.startswith(after, end) and (not last or len(text) == end + len(after)):
            return Region(number, at, end, skipped)
    end = len(text) - len(after) if last else text.find(after, at)
    if end < at or not text.startswith(after, end):
        return None
    # The template kept a part of the content, or wrote another text: then the region counts as template.
    return Region(number, at, end, content.find(text[at:end]))


def _forms(content: str) -> list[tuple[int, str]]:
    """A content as it is and trimmed, with how many characters are left out before it."""
    lead = len(content) - len(content.lstrip())
    return [(0, content), (lead, content.strip()), (lead, content.lstrip()), (0, content.rstrip())]


def _searched(text: str, contents: Sequence[Content], at: int, order: Sequence[int]) -> list[Region]:
    """Contents found one after another, where the frame does not say where they are."""
    regions: list[Region] = []
    for number in order:
        for skipped, form in _forms(contents[number].text):
            begin = text.find(form, at) if form else -1
            if begin >= 0:
                regions.append(Region(number, begin, begin + len(form), skipped))
                at = begin + len(form)
                break
    return regions


# Tokens of rendered chats


@dataclass(frozen=True, eq=False)
class ChatTokens:
    """One chat's tokens.

    Attributes:
        ids: int64 (tokens,).
        side_text: what they say, on the axis of the rendered text's bytes.
    """

    ids: Numbers
    side_text: SideText


def tokenize_chats(chats: Sequence[Rendered], vocab: Vocab, tables: PairTables, *, first_id: int) -> list[ChatTokens]:
    """Tokenises rendered chats.

    Special tokens are parsed in what the template wrote alone: what looks like one in a message is text.

    Args:
        chats: the rendered chats.
        vocab: the side's tokenizer.
        tables: the pair's tables.
        first_id: what `PairTables` adds to this side's ids.
    """
    pieces = [list(_pieces(chat, vocab)) for chat in chats]
    encoded = iter(vocab.encode_batch([text for row in pieces for text, special in row if special is None]))
    rows: list[ChatTokens] = []
    for row in pieces:
        parts: list[SideText] = []
        ids: list[int] = []
        for text, special in row:
            piece_ids = [special] if special is not None else next(encoded)
            ids += piece_ids
            parts.append(_piece_text(text, np.array(piece_ids, dtype=np.int64), special, vocab, tables, first_id))
        rows.append(ChatTokens(np.array(ids, dtype=np.int64), _one_after_another(parts)))
    return rows


def _pieces(chat: Rendered, vocab: Vocab) -> Iterator[tuple[str, int | None]]:
    """Cuts a chat at the special tokens that the template wrote: pieces, each text (None) or a special token's id."""
    pattern, id_of = _specials(vocab)
    edges = [0, *(edge for region in chat.regions for edge in (region.begin, region.end)), len(chat.text)]
    done = 0
    for begin, end in list(pairwise(edges))[::2]:
        for match in pattern.finditer(chat.text, begin, end):
            if match.start() > done:
                yield chat.text[done : match.start()], None
            yield match[0], id_of[match[0]]
            done = match.end()
    if done < len(chat.text):
        yield chat.text[done:], None


@lru_cache(maxsize=16)
def _specials(vocab: Vocab) -> tuple[re.Pattern[str], dict[str, int]]:
    ids = ((vocab.kinds == Kind.SPECIAL) | (vocab.kinds == Kind.RESERVED)).nonzero()[0].tolist()
    id_of = {vocab.raw[token_id]: token_id for token_id in reversed(ids) if vocab.raw[token_id]}
    longest_first = sorted(id_of, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)"), id_of


def _piece_text(
    text: str, ids: Numbers, special: int | None, vocab: Vocab, tables: PairTables, first_id: int
) -> SideText:
    """What the tokens of a piece say, on the axis of the piece's bytes."""
    pair_ids = ids + first_id
    data = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
    if special is not None:
        zero, sharp = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.bool_)
        return SideText(data, zero, zero, sharp, sharp, ~sharp, tables.special[pair_ids])
    by_offsets = text_by_offsets(text, ids, vocab, tables, first_id=first_id)
    if by_offsets is not None:
        return by_offsets
    # The surfaces are not the text, and nobody says which characters they stand for: tokens in a common stretch.
    side = text_by_surfaces(pair_ids, tables, trim=False, fold=False)
    begin, end = np.zeros_like(side.begin), np.zeros_like(side.end)
    inside = np.zeros(len(pair_ids), dtype=np.bool_)
    for start, in_text, length in common_stretches(side.text, data):
        within = (side.begin >= start) & (side.end <= start + length)
        inside |= within
        begin = np.where(within, side.begin - start + in_text, begin)
        end = np.where(within, side.end - start + in_text, end)
    begin = np.maximum.accumulate(begin)
    end = np.maximum(end, begin)
    return SideText(data, begin, end, side.sharp_begin, side.sharp_end, side.has_text & inside, side.specials)


def _one_after_another(parts: Sequence[SideText]) -> SideText:
    """Pieces one after another on one axis."""
    sizes = np.array([len(part.text) for part in parts], dtype=np.int64)
    starts = sizes.cumsum() - sizes
    if not parts:
        nothing, none = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
        return SideText(np.zeros(0, np.uint8), nothing, nothing, none, none, none, np.zeros(0, np.int32))
    return SideText(
        text=np.concatenate([part.text for part in parts]),
        begin=np.concatenate([part.begin + start for part, start in zip(parts, starts, strict=True)]),
        end=np.concatenate([part.end + start for part, start in zip(parts, starts, strict=True)]),
        sharp_begin=np.concatenate([part.sharp_begin for part in parts]),
        sharp_end=np.concatenate([part.sharp_end for part in parts]),
        has_text=np.concatenate([part.has_text for part in parts]),
        specials=np.concatenate([part.specials for part in parts]),
    )


# Tokens on the axis of the contents


@dataclass(frozen=True, eq=False)
class ChatRow:
    """One chat on one side.

    Attributes:
        ids: int64 (tokens,).
        placed: the tokens on the axis of the chat's contents.
        places: int64 (tokens,), where each token stands on it.
        specials: int32 (tokens,), rows or columns of the pair's table.
        between: int64 (tokens,), the contents before and after each token, as one number.
        labelled: bool (tokens,), which count in the loss.
    """

    ids: Numbers
    placed: Placed
    places: Numbers
    specials: NDArray[np.int32]
    between: Numbers
    labelled: Flags


@dataclass(frozen=True, eq=False)
class _Regions:
    """The regions of a rendered chat in its bytes, as arrays; region 0 is empty, for what precedes all contents.

    `<u>Hi</u><a>4</a>` has "Hi" at 3-5 and "4" at 12-13, which stand at 1-3 and 4-5 on the axis:

        begins 0 3 12    ends 0 5 13    shift 0 -2 -8    content -1 0 1 2    closes 0 3 5

    Attributes:
        begins: int64 (regions + 1,), ascending.
        ends: int64 (regions + 1,).
        shift: int64 (regions + 1,), from a place in the rendered text to one on the axis of the contents.
        content: int64 (regions + 2,), the content's position; -1 before the first, and the number of contents at last.
        closes: int64 (regions + 1,), where the content ends on the axis.
        counts: bool (regions + 1,), whether the content counts in the loss.
        final: bool (regions + 1,), whether it is the last of its message.
    """

    begins: Numbers
    ends: Numbers
    shift: Numbers
    content: Numbers
    closes: Numbers
    counts: Flags
    final: Flags

    @classmethod
    def of(cls, chat: Rendered, contents: Sequence[Content], loss_roles: frozenset[str]) -> _Regions:
        """The regions of a rendered chat."""
        sizes = [_size(content.text) for content in contents]
        bases = np.cumsum([1, *(size + 1 for size in sizes)])
        begins, ends, shift, closes, counts, final = [0], [0], [0], [0], [False], [False]
        for region in chat.regions:
            number = region.content
            content = contents[number]
            begins.append(_size(chat.text[: region.begin]))
            ends.append(_size(chat.text[: region.end]))
            shift.append(int(bases[number]) + _size(content.text[: region.skipped]) - begins[-1])
            closes.append(int(bases[number]) + sizes[number])
            counts.append(content.role in loss_roles)
            final.append(number + 1 == len(contents) or contents[number + 1].message != content.message)
        return cls(
            begins=np.array(begins),
            ends=np.array(ends),
            shift=np.array(shift),
            content=np.array([-1, *(region.content for region in chat.regions), len(contents)]),
            closes=np.array(closes),
            counts=np.array(counts),
            final=np.array(final),
        )


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _on_contents(tokens: ChatTokens, regions: _Regions, vocab: Vocab) -> ChatRow:
    """Puts a chat's tokens on the axis of its contents."""
    side = tokens.side_text
    begin = side.begin
    if vocab.encoder.dummy_prefix:
        begin = _without_dummy_prefix(side, regions)
    region = regions.begins.searchsorted(begin, side="right") - 1
    inside = (side.end <= regions.ends[region]) & side.has_text
    at, end = begin + regions.shift[region], side.end + regions.shift[region]
    placed = Placed(
        begin=np.where(inside & side.sharp_begin, at, -1),
        end=np.where(inside & side.sharp_end, end, -1),
        cover=np.where(inside, end - at, 0),
        on_axis=inside,
    )
    # What stands between two contents stands at the end of the one before.
    passed = np.maximum(regions.begins.searchsorted(begin) - 1, 0)
    # Of several tokens that may end a turn, the first after the last content of a message that counts.
    enders = [token_id for role in _TURN_ENDS for token_id in vocab.roles.get(role, ())]
    turn_ends = (np.isin(tokens.ids, enders) & regions.counts[passed] & regions.final[passed]).nonzero()[0]
    _, first = np.unique(passed[turn_ends], return_index=True)
    labelled = inside & regions.counts[region]
    labelled[turn_ends[first]] = True
    return ChatRow(
        ids=tokens.ids,
        placed=placed,
        places=np.where(inside, at, regions.closes[passed]),
        specials=side.specials,
        between=regions.content[passed] * (regions.content[-1] + 2) + regions.content[passed + 1],
        labelled=labelled,
    )


def _without_dummy_prefix(side: SideText, regions: _Regions) -> Numbers:
    """Where tokens begin, without a space before a content that a tokenizer with a dummy prefix joins to it."""
    next_region = np.minimum(regions.begins.searchsorted(side.begin, side="right"), len(regions.begins) - 1)
    start = regions.begins[next_region]
    spare = (side.begin + 1 == start) & (side.end > start)
    spare[spare] = side.text[side.begin[spare]] == ord(" ")
    return np.where(spare, start, side.begin)
