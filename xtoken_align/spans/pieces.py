"""What the messages of a chat say, followed through a template: pieces of their fields, and where these stand.

A piece is a thought, a content or a string of a tool call. Every piece gets a mark before and after it, and the chat is
rendered with the marks and without. Where taking the marks out again gives the plain text, the places are exact,
whatever the template did with the pieces:

    messages   user "Hi", assistant "4"
    plain      <u>Hi</u><a>4</a>
    marked     <u>[0 Hi 0]</u><a>[1 4 1]</a>        "Hi" at 3-5, "4" at 12-13

A template that looks into a content may write another text where there are marks. Then fewer marks are tried, and at
last a piece is looked for between the places of its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import OptionError

Message = Mapping[str, Any]
Chat = Sequence[Message]
Render = Callable[[list[dict[str, Any]]], str]
Field = Literal["thought", "content", "calls"]

_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
"""Where data sets and templates of 2025 and 2026 put what a model thought (Qwen, GLM, DeepSeek; gpt-oss; Gemma)."""

_THOUGHT_IN_CONTENT = re.compile(r"(?:(.*?)<think>)?(.*?)</think>(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Piece:
    """One stretch of a message.

    Attributes:
        message: the message's position in the chat.
        role: the message's role.
        field: what it is.
        path: keys from the message to the string that it stands in.
        begin: its first character there.
        text: the piece.
    """

    message: int
    role: str
    field: Field
    path: tuple[Any, ...]
    begin: int
    text: str

    @property
    def core(self) -> tuple[int, int]:
        """Where the piece without its outer white space begins and ends in its string: templates trim."""
        lead = len(self.text) - len(self.text.lstrip())
        return self.begin + lead, self.begin + lead + len(self.text.strip())

    @property
    def is_bare(self) -> bool:
        """Whether it is an empty thought inside of a content: its marks, which templates take out or write anew."""
        return self.field == "thought" and self.path == ("content",) and self.text.endswith("</think>")

    @property
    def says(self) -> bool:
        """Whether it is more than white space and marks."""
        return bool(self.text.strip()) and not self.is_bare


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the pieces of a chat stand in its rendered text.

    Attributes:
        text: the rendered chat.
        at: piece -> its first character and the one after its last; pieces that the template left out have none.
        unknown: pieces that the template may have written, and whose place nobody can tell.
    """

    text: str
    at: dict[int, tuple[int, int]]
    unknown: frozenset[int]


def pieces_of(messages: Chat) -> list[Piece]:
    """The pieces of a chat: of every message its thoughts, its content and its calls, in this order.

    Raises:
        OptionError: it is no chat, or a message has no role.

    >>> [(piece.field, piece.text) for piece in pieces_of([{"role": "assistant", "content": "<think>hm</think>4"}])]
    [('thought', 'hm'), ('content', '4')]
    """
    check_messages(messages)
    return [
        Piece(at, message["role"], *entry)
        for at, message in enumerate(messages)
        for entry in _fields(message, message["role"])
    ]


def check_messages(messages: Any) -> None:
    """Refuses what is no chat.

    Raises:
        OptionError: it is no sequence of messages, or a message has no role.
    """
    expected = "{'role': ..., 'content': ...}"
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Iterable):
        raise OptionError(f"a chat is a list of messages, each {expected}, got {messages!r:.60}")
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise OptionError(f"message {at} of a chat is no table: expected {expected}, got {message!r:.60}")
        if not isinstance(message.get("role"), str):
            raise OptionError(f"message {at} of a chat has no role: expected {expected}")


_Found = tuple[Field, tuple[Any, ...], int, str]
"""A piece's field, path, first character and text."""


def _fields(message: Message, role: str) -> Iterator[_Found]:
    """What a message says, field by field."""
    for key in _THOUGHT_KEYS:
        if isinstance(message.get(key), str):
            yield "thought", (key,), 0, message[key]
    content = message.get("content")
    if isinstance(content, str):
        yield from _content(content, role)
    for number, part in enumerate(_tables(content)):
        if isinstance(part.get("thinking"), str):
            yield "thought", ("content", number, "thinking"), 0, part["thinking"]
        if isinstance(part.get("text"), str):
            yield "content", ("content", number, "text"), 0, part["text"]
    for number, call in enumerate(_tables(message.get("tool_calls"))):
        for path, text in _call(call, ("tool_calls", number)):
            yield "calls", path, 0, text


def _tables(value: Any) -> list[Mapping[str, Any]]:
    """The entries of a list, what is no table among them as an empty one."""
    return [entry if isinstance(entry, Mapping) else {} for entry in value] if isinstance(value, (list, tuple)) else []


def _content(content: str, role: str) -> Iterator[_Found]:
    """A content, an assistant's cut into what it thought and what it said."""
    match = _THOUGHT_IN_CONTENT.fullmatch(content) if role == "assistant" else None
    if match is None:
        yield "content", ("content",), 0, content
        return
    if match[1] and match[1].strip():
        yield "content", ("content",), 0, match[1]
    if match[2].strip():
        yield "thought", ("content",), match.start(2), match[2]
    else:
        # A template that knows nothing of thoughts writes the marks of an empty one as they are.
        begin = 0 if match[1] is None else match.end(1)
        yield "thought", ("content",), begin, content[begin : match.start(3)]
    yield "content", ("content",), match.start(3), match[3]


def _call(call: Mapping[str, Any], path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """The strings of a call: its name, and its arguments' values wherever they stand."""
    function = call.get("function")
    if isinstance(function, Mapping):
        call, path = function, (*path, "function")
    if isinstance(call.get("name"), str):
        yield (*path, "name"), call["name"]
    yield from _strings(call.get("arguments"), (*path, "arguments"))


def _strings(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _strings(entry, (*path, key))
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value):
            yield from _strings(entry, (*path, number))


# Marks


@dataclass(frozen=True, slots=True)
class _Marks:
    """Marks of letters and digits, which no escape of JSON, XML or a URL changes, and no trimming takes away."""

    stem: str

    @classmethod
    def unlike(cls, text: str) -> _Marks:
        """Marks that do not stand in a text."""
        stem = "Qz7Wk"
        while stem in text:
            stem += "Jx4"
        return cls(stem)

    def mark(self, piece: int, end: bool) -> str:
        return f"{self.stem}{piece}{'b' if end else 'a'}V"

    def taken_out(self, marked: str) -> tuple[str, list[tuple[int, bool, int]]]:
        """The text without marks; and of every mark its piece, whether it is an end, and where it stood."""
        parts: list[str] = []
        found: list[tuple[int, bool, int]] = []
        size = 0
        cut = re.split(f"{self.stem}([0-9]+)([ab])V", marked)
        for at in range(0, len(cut), 3):
            parts.append(cut[at])
            size += len(cut[at])
            if at + 2 < len(cut):
                found.append((int(cut[at + 1]), cut[at + 2] == "b", size))
        return "".join(parts), found


def with_inserted(messages: Sequence[Message], inserted: Mapping[int, Mapping[tuple[Any, ...], dict[int, str]]]) -> Any:
    """The messages with texts inserted into their strings.

    Args:
        messages: the messages; they are not changed.
        inserted: message -> path of a string -> place in it -> what to insert.
    """

    def changed(value: Any, path: tuple[Any, ...], inside: Mapping[tuple[Any, ...], dict[int, str]]) -> Any:
        if isinstance(value, str):
            for place, text in sorted(inside.get(path, {}).items(), reverse=True):
                value = value[:place] + text + value[place:]
            return value
        if isinstance(value, Mapping):
            return {key: changed(entry, (*path, key), inside) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [changed(entry, (*path, number), inside) for number, entry in enumerate(value)]
        return value

    return [
        changed(message, (), inserted[at]) if at in inserted else dict(message) for at, message in enumerate(messages)
    ]


class _Search:
    """The places of a chat's pieces, found with as many marks at a time as the template bears."""

    def __init__(self, messages: Sequence[Message], pieces: Sequence[Piece], render: Render) -> None:
        self.messages = messages
        self.pieces = pieces
        self.render = render
        self.text = render([dict(message) for message in messages])
        self.marks = _Marks.unlike(self.text + "".join(piece.text for piece in pieces))
        self.at: dict[int, tuple[int, int]] = {}
        self.unknown: set[int] = set()

    def marked(self, places: Mapping[int, Sequence[tuple[int, bool]]]) -> list[tuple[int, bool, int]] | None:
        """Where marks stand in the rendered text; None where the template writes another text with them.

        Args:
            places: piece -> the places of its marks in its string, and whether each is an end.
        """
        inserted: dict[int, dict[tuple[Any, ...], dict[int, str]]] = {}
        for number, its_places in places.items():
            piece = self.pieces[number]
            texts = inserted.setdefault(piece.message, {}).setdefault(piece.path, {})
            for place, end in its_places:
                mark = self.marks.mark(number, end)
                # An end comes before the beginning of the piece that follows at the same place.
                texts[place] = mark + texts[place] if end and place in texts else texts.get(place, "") + mark
        try:
            text, found = self.marks.taken_out(self.render(with_inserted(self.messages, inserted)))
        except OptionError:
            return None
        return found if text == self.text else None

    def place(self, numbers: Sequence[int], *, whole: bool = False) -> None:
        """Places some pieces, in halves where marking all of them changes what the template writes."""
        if not numbers:
            return
        cores = {number: self._edges(number, whole=whole) for number in numbers}
        found = self.marked({number: ((begin, False), (end, True)) for number, (begin, end) in cores.items()})
        if found is not None:
            begins: dict[int, int] = {}
            for number, end, at in found:
                if not end:
                    begins.setdefault(number, at)
                elif number in begins and (whole or number not in self.at):
                    self.at[number] = (begins[number], at)
        elif len(numbers) > 1:
            half = len(numbers) // 2
            self.place(numbers[:half], whole=whole)
            self.place(numbers[half:], whole=whole)
        elif whole:
            self._place_edges(numbers[0])
        else:
            self._place_by_middle(numbers[0])

    def place_bare(self, numbers: Sequence[int]) -> None:
        """Places empty thoughts by a mark before each: most templates write their own in the place of all of them."""
        found = self.marked({number: ((self.pieces[number].core[0], False),) for number in numbers}) if numbers else []
        for number, _, at in found or ():
            marks = self.pieces[number].text.strip()
            if self.text.startswith(marks, at):
                self.at.setdefault(number, (at, at + len(marks)))
        if found is None and len(numbers) > 1:
            half = len(numbers) // 2
            self.place_bare(numbers[:half])
            self.place_bare(numbers[half:])

    def _place_edges(self, number: int) -> None:
        """White space that the template keeps on one side of a piece alone."""
        whole, core = self._edges(number, whole=True), self._edges(number, whole=False)
        for begin, end in ((whole[0], core[1]), (core[0], whole[1])):
            found = self.marked({number: ((begin, False), (end, True))}) if (begin, end) != core else None
            if found and len(found) == 2:
                self.at[number] = (found[0][2], found[1][2])
                return

    def _edges(self, number: int, *, whole: bool) -> tuple[int, int]:
        piece = self.pieces[number]
        return (piece.begin, piece.begin + len(piece.text)) if whole else piece.core

    def _place_by_middle(self, number: int) -> None:
        """One mark in the middle, for a template that looks at a content's beginning or end."""
        piece = self.pieces[number]
        begin, end = piece.core
        core = piece.text.strip()
        for middle in sorted({(begin + end) // 2, begin, end}, key=lambda place: abs(2 * place - begin - end)):
            found = self.marked({number: ((middle, False),)})
            if found is None:
                continue
            if not found:
                return
            at = found[0][2] - (middle - begin)
            if at >= 0 and self.text.startswith(core, at):
                self.at[number] = (at, at + len(core))
                return
        self.unknown.add(number)

    def search(self, number: int) -> None:
        """Looks for a piece between its neighbours, which must have places: it never leaves its own turn."""
        before, after = number - 1, number + 1
        while before >= 0 and not self.pieces[before].says:
            before -= 1
        while after < len(self.pieces) and not self.pieces[after].says:
            after += 1
        if (before >= 0 and before not in self.at) or (after < len(self.pieces) and after not in self.at):
            return
        begin = self.at[before][1] if before >= 0 else 0
        end = self.at[after][0] if after < len(self.pieces) else len(self.text)
        core = self.pieces[number].text.strip()
        if end > begin and self.text.count(core, begin, end) == 1:
            at = self.text.index(core, begin, end)
            self.at[number] = (at, at + len(core))
            self.unknown.discard(number)


def place_pieces(messages: Chat, pieces: Sequence[Piece], render: Render) -> Placed:
    """Renders a chat and finds its pieces.

    Args:
        messages: the chat.
        pieces: its pieces.
        render: the template.

    Raises:
        OptionError: the template refuses the chat.
    """
    search = _Search(messages, pieces, render)
    written = [number for number, piece in enumerate(pieces) if piece.says]
    search.place(written)
    for number in sorted(search.unknown):
        search.search(number)
    search.place_bare([number for number, piece in enumerate(pieces) if piece.is_bare])
    # Outer white space belongs to a piece where the template keeps it.
    search.place(
        [number for number in written if number in search.at and pieces[number].text != pieces[number].text.strip()],
        whole=True,
    )
    return Placed(search.text, search.at, frozenset(search.unknown))
