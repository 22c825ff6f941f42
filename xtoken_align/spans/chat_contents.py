"""The contents of a chat, found in what a template wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError
from .chat_render import Render

Message = Mapping[str, Any]

_STAND_IN = re.compile("\ue000(\\d+)\ue001")
"""What stands for a content while its place is looked for: private-use characters, which no template knows."""


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


def contents_of(messages: Sequence[Message]) -> list[Content]:
    """The texts of a chat's messages, in order; a content in parts has one for each part with a text.

    Raises:
        OptionError: a message has no role.
    """
    found: list[Content] = []
    for at, message in enumerate(messages):
        role = message.get("role")
        if not isinstance(role, str):
            raise OptionError(f"message {at} of a chat has no role: expected {{'role': ..., 'content': ...}}")
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        found += [Content(at, role, str(part["text"])) for part in parts if _has_text(part)]
    return found


def render_chat(messages: Sequence[Message], contents: Sequence[Content], render: Render) -> Rendered:
    """Renders a chat and finds its contents.

    The chat is rendered once more with a stand-in for every content, which shows what the template writes around them.

    Args:
        messages: the chat.
        contents: its contents.
        render: the template.
    """
    given = [dict(message) for message in messages]
    text = render(given)
    try:
        frame = render(_with_texts(given, [f"\ue000{at}\ue001" for at in range(len(contents))]))
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
    found: list[Region] = []
    for number in order:
        for skipped, form in _forms(contents[number].text):
            begin = text.find(form, at) if form else -1
            if begin >= 0:
                found.append(Region(number, begin, begin + len(form), skipped))
                at = begin + len(form)
                break
    return found


def _with_texts(messages: list[dict[str, Any]], texts: list[str]) -> list[dict[str, Any]]:
    """The messages with their contents' texts replaced, in order."""
    left = iter(texts)
    made: list[dict[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            content = next(left)
        elif isinstance(content, list):
            content = [{**part, "text": next(left)} if _has_text(part) else part for part in content]
        made.append({**message, "content": content} if "content" in message else message)
    return made


def _has_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)
