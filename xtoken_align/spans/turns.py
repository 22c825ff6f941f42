"""What an assistant wrote in a rendered chat: stretches of its turns, each a thought, a content, calls or the end.

From top to bottom: the stretches of one turn, and where a turn begins. `<a><think>why</think>yes</a>` with the pieces
"why" and "yes" has the stretches

    thought   <think> why </think>      the template's marks around a thought are the assistant's words too
    content   yes
    end       </a>
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import OptionError
from .pieces import Chat, Piece, Placed
from .templates import GENERATION, Renderer

FIELDS = ("template", "thought", "content", "calls", "end")
"""What a token of a chat belongs to; `loss_on` names some of all but the first."""

LOSS_ON = ("thought", "content", "calls", "end")

_STAND_IN = "\ue0f0"
"""What stands for a message where its turn's beginning is looked for: a private-use character."""

_THINK_START = re.compile(
    r"(?:<think(?:ing)?>|\[THINK\]|<\|START_THINKING\|>|<\|reasoning_thinking_start\|>|<\|channel>thought)\s*\Z"
)
_THINK_MARK = re.compile(r"</?think(?:ing)?>|\[/?THINK\]|<\|(?:START|END)_THINKING\|>|<\|channel>|<channel\|>")


_CLOSING = re.compile(r"[\"'}\])]*")
"""What closes a call in a template that ends no turn."""


@dataclass(frozen=True, slots=True)
class TurnTokens:
    """Finds the tokens that turns are made of.

    Attributes:
        ends: tokens that end a turn.
        headers: tokens that begin another.
        controls: all control tokens.
    """

    ends: re.Pattern[str]
    headers: re.Pattern[str]
    controls: re.Pattern[str]

    def end_behind(self, text: str, at: int, limit: int, *, told: bool) -> tuple[int, int] | None:
        """The token that ends a turn whose last piece ends at `at`; None where there is none before the next turn.

        A control token of no known role that alone stands before the next header ends the turn too.
        """
        ender = self.ends.search(text, at, limit)
        header = self.headers.search(text, at, limit)
        if ender and (told or header is None or ender.start() <= header.start()):
            return ender.span()
        alone = self.controls.search(text, at, limit)
        if alone and header and alone.end() <= header.start() and not text[alone.end() : header.start()].strip():
            return alone.span()
        return None


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a rendered chat.

    Attributes:
        begin: its first character.
        end: the one after its last.
        message: the message that it belongs to.
        field: one of `FIELDS`.
        key: what corresponds to it on the other side: the message, and a name within it.
        piece: the piece that it is, if it is one.
        labelled: whether the message's role counts in the loss.
    """

    begin: int
    end: int
    message: int
    field: str
    key: tuple[int, str]
    piece: int | None = None
    labelled: bool = False


def stretches_of(
    messages: Chat,
    pieces: Sequence[Piece],
    placed: Placed,
    render: Renderer,
    tokens: TurnTokens,
    loss_roles: frozenset[str],
) -> list[Stretch]:
    """The stretches of a rendered chat, in the order of its text; what lies between them is the template's.

    Args:
        messages: the chat.
        pieces: its pieces.
        placed: where these stand.
        render: the template.
        tokens: finds the tokens that turns are made of.
        loss_roles: whose messages count in the loss.
    """
    spans = _generation(messages, placed, render) if "assistant" in loss_roles else None
    order = sorted(placed.at, key=lambda number: placed.at[number])
    # The pieces of a message that follow each other in the text: one message may be written in several places.
    turns: list[list[int]] = []
    for number in order:
        if turns and pieces[turns[-1][-1]].message == pieces[number].message:
            turns[-1].append(number)
        else:
            turns.append([number])
    stretches: list[Stretch] = []
    done = 0
    for at, turn in enumerate(turns):
        until = placed.at[turns[at + 1][0]][0] if at + 1 < len(turns) else len(placed.text)
        first = pieces[turn[0]]
        message, role = first.message, first.role
        labelled = role in loss_roles
        written = role == "assistant" or labelled or any(pieces[number].field == "calls" for number in turn)
        regions = [(placed.at[number], pieces[number].field, number) for number in turn]
        if not written:
            new = [Stretch(*place, message, field, (message, str(number)), number) for place, field, number in regions]
        else:
            begin, end = regions[0][0][0], None
            told = _spans_around(spans or (), begin, regions[-1][0][1])
            if spans is not None and role == "assistant":
                labelled = bool(told)
                begin, end = (max(told[0][0], done), min(told[-1][1], until)) if told else (begin, None)
            else:
                begin = _begin(messages, placed.text, done, regions, message, render, tokens)
            new = _turn(placed.text, begin, end, until, regions, tokens, message, labelled)
            # Between the blocks of one turn stands what the template says that a tool answered.
            new = [part for one in new for part in _inside(one, told)] if len(told) > 1 else new
        stretches += [one for one in new if one.begin < one.end]
        done = max(done, stretches[-1].end if stretches else 0)
    if spans is not None:
        return _with_bare_spans(stretches, spans, placed.text, tokens)
    said = {piece.message for number, piece in enumerate(pieces) if piece.says or number in placed.at}
    for at, one in enumerate(messages):
        if at not in said and one.get("role") == "assistant" and "assistant" in loss_roles:
            stretches = _with_empty_answer(stretches, messages, at, placed.text, render, tokens)
    return stretches


def _turn(
    text: str,
    begin: int,
    end: int | None,
    until: int,
    regions: Sequence[tuple[tuple[int, int], str, int]],
    tokens: TurnTokens,
    message: int,
    labelled: bool,
) -> list[Stretch]:
    """The stretches of one turn.

    Args:
        text: the rendered chat.
        begin: where the turn's own words begin.
        end: where they end, by the template's word; None if the template does not say.
        until: where the next message's first piece begins.
        regions: the pieces of the turn: place, field and number.
        tokens: finds the tokens that turns are made of.
        message: the message's position.
        labelled: whether its role counts.
    """
    stretches: list[Stretch] = []
    names: dict[str, int] = {}

    def add(first: int, last: int, field: str, name: str, piece: int | None = None) -> None:
        names[name] = names.get(name, -1) + 1
        key = (message, name if piece is not None else f"{name} {names[name]}")
        stretches.append(Stretch(first, last, message, field, key, piece, labelled))

    at = begin
    previous = ""
    for number, ((first, last), field, piece) in enumerate(regions):
        if field == "calls":
            # All calls that follow each other, with what the template writes around them, are one stretch.
            if previous != "calls":
                calls_begin = min(at, first)
        else:
            if previous == "calls":
                # Where the template does not say what was spoken, a tool's answer may stand behind the calls.
                closed = first if end is not None else _CLOSING.match(text, at, first).end()  # type: ignore[union-attr]
                add(calls_begin, closed, "calls", "calls")
            elif at < first and (end is not None or (previous, field) != ("content", "content")):
                gap = text[at:first]
                before = "thought" if previous == "thought" or _THINK_MARK.search(gap) else field
                add(at, first, before, "before" if number == 0 else "between")
            add(first, last, field, str(piece), piece)
        at, previous = last, field
    limit = until if end is None else end
    ender = tokens.end_behind(text, at, limit, told=end is not None)
    close = ender[0] if ender else limit if end is not None else at
    if previous == "calls":
        closed = close if ender or end is not None else _CLOSING.match(text, at, limit).end()  # type: ignore[union-attr]
        add(calls_begin, closed, "calls", "calls")
    elif (end is not None or previous == "thought") and close > at:
        add(at, close, "thought" if previous == "thought" else "end", "after")
    if ender:
        add(ender[0], limit if end is not None else ender[1], "end", "end")
    return stretches


def _begin(
    messages: Chat,
    text: str,
    done: int,
    regions: Sequence[tuple[tuple[int, int], str, int]],
    message: int,
    render: Renderer,
    tokens: TurnTokens,
) -> int:
    """Where an assistant's own words begin, in a turn whose first piece is known.

    Behind what the template writes to ask for an answer, if that stands there. Else behind what it writes before a
    message with another content; a mark that opens a thought belongs to the thought all the same.
    """
    (first, _), field, _ = regions[0]
    if messages[message].get("role") != "assistant":
        return first
    gap = text[done:first]
    prompt = render.generation_prompt
    for asked in dict.fromkeys((prompt, _THINK_START.sub("", prompt))):
        at = gap.rfind(asked) if asked.strip() else -1
        begin = done + at + len(asked)
        # Before an answer that said nothing the same words stand; an end of a turn follows there.
        if at >= 0 and not tokens.ends.search(text, begin, first):
            # An empty thought before a content is the template's.
            return first if field == "content" and _THINK_MARK.search(text, begin, first) else begin
    if field == "content":
        return first
    opening = _THINK_START.search(gap)
    if field == "thought" and opening:
        return done + opening.start()
    other = dict(messages[message])
    for key in ("reasoning_content", "reasoning", "thinking", "thought", "tool_calls"):
        other.pop(key, None)
    try:
        without = render(
            [*map(dict, messages[:message]), {**other, "content": _STAND_IN}, *map(dict, messages[message + 1 :])]
        )
    except OptionError:
        return first
    common = next((at for at, (one, other) in enumerate(zip(text, without, strict=False)) if one != other), first)
    return min(common, first) if common >= done else first


def _with_empty_answer(
    stretches: Sequence[Stretch], messages: Chat, message: int, text: str, render: Renderer, tokens: TurnTokens
) -> list[Stretch]:
    """The stretches, and the end of an answer that says nothing, where the template writes it as it writes others."""
    other = {**messages[message], "content": _STAND_IN}
    try:
        before, found, after = render(
            [*map(dict, messages[:message]), other, *map(dict, messages[message + 1 :])]
        ).partition(_STAND_IN)
    except OptionError:
        return [*stretches]
    if not found or before + after != text:
        return [*stretches]
    at = len(before)
    until = min((one.begin for one in stretches if one.begin >= at), default=len(text))
    ender = tokens.end_behind(text, at, until, told=False)
    if ender is None or any(one.begin < ender[1] and at < one.end for one in stretches):
        return [*stretches]
    end = Stretch(ender[0], ender[1], message, "end", (message, "end 0"), labelled=True)
    return sorted((*stretches, end), key=lambda one: one.begin)


def _generation(messages: Chat, placed: Placed, render: Renderer) -> list[tuple[int, int]] | None:
    """Where `{% generation %}` blocks stand in the text; None for a template without."""
    if not render.says_generation or any(mark in placed.text for mark in GENERATION):
        return None
    parts = re.split(f"([{''.join(GENERATION)}])", render.with_generation([dict(message) for message in messages]))
    if "".join(parts[0::2]) != placed.text:
        return None
    spans: list[tuple[int, int]] = []
    opened: list[int] = []
    size = 0
    for at in range(0, len(parts) - 1, 2):
        size += len(parts[at])
        if parts[at + 1] == GENERATION[0]:
            opened.append(size)
        elif opened:
            spans.append((opened.pop(), size))
    return spans


def _spans_around(spans: Sequence[tuple[int, int]], begin: int, end: int) -> list[tuple[int, int]]:
    """The blocks that a turn stands in."""
    return [span for span in spans if span[0] < end and begin < span[1]]


def _inside(stretch: Stretch, spans: Sequence[tuple[int, int]]) -> list[Stretch]:
    """The parts of a stretch that stand in blocks."""
    parts = [(max(stretch.begin, begin), min(stretch.end, end)) for begin, end in spans]
    return [replace(stretch, begin=begin, end=end) for begin, end in parts if begin < end]


def _with_bare_spans(
    stretches: Sequence[Stretch], spans: Sequence[tuple[int, int]], text: str, tokens: TurnTokens
) -> list[Stretch]:
    """The stretches, and blocks in which no piece stands: an answer that says nothing, and its end."""
    bare: list[Stretch] = []
    for begin, end in spans:
        if any(one.begin < end and begin < one.end for one in stretches):
            continue
        # Of tokens whose role nobody knows, the last one ends the block.
        ender = tokens.ends.search(text, begin, end) or [None, *tokens.controls.finditer(text, begin, end)][-1]
        close = ender.start() if ender else end
        said = "thought" if _THINK_MARK.search(text, begin, close) else "content"
        bare += [
            Stretch(first, last, -1, field, (-1, f"{field} {first}"), None, labelled=True)
            for first, last, field in ((begin, close, said), (close, end, "end"))
            if first < last
        ]
    return sorted((*stretches, *bare), key=lambda one: one.begin)
