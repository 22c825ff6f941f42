"""Chat templates: Jinja as `transformers` sets it up, in a sandbox with bounds of time and size.

A template comes from a file of a stranger. It may loop without end or write without end, so every pass of a loop looks
at the clock, and everything that makes text looks at its length.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

from ..errors import MissingExtraError, OptionError
from ..vocab.vocab import Vocab

Tools = list[dict[str, Any]]
"""JSON schemas of the functions that an assistant may call."""

Template = str | Callable[[list[dict[str, Any]]], str]

MAX_SECONDS = 10.0
"""Longest time for one chat; published templates take milliseconds."""

MAX_CHARACTERS = 1 << 24
"""Longest text of one chat: four million tokens, more than any model reads."""

GENERATION = "\ue0f2", "\ue0f3"
"""What stands around the text of a `{% generation %}` block, where its place is asked for: private-use characters."""

_NAMED_ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
"""Roles whose tokens a template may write by name, as `bos_token` (transformers' `apply_chat_template`)."""

_deadline: ContextVar[float] = ContextVar("deadline")
_now: ContextVar[datetime | None] = ContextVar("now", default=None)
_marks_generation: ContextVar[bool] = ContextVar("marks_generation", default=False)


@contextmanager
def one_moment() -> Iterator[None]:
    """Within it, templates that write the time write one and the same."""
    token = _now.set(datetime.now().astimezone())
    try:
        yield
    finally:
        _now.reset(token)


class Renderer:
    """What renders a side's chats.

    Args:
        vocab: the side's tokenizer, for its own template and its special tokens.
        template: a Jinja template, a function from messages to text, or None for the tokenizer's own.
        side: `student` or `teacher`, for messages.
        options: further variables of a Jinja template (`tools`, `enable_thinking`, ...).

    Raises:
        OptionError: there is no template, or it is not valid.
        MissingExtraError: jinja2 is not installed.
    """

    def __init__(self, vocab: Vocab, template: Template | None, side: str, options: Mapping[str, Any]) -> None:
        source = template if template is not None else vocab.chat_template
        if source is None:
            raise OptionError(
                f"the {side} {vocab.name} has no chat template: give `{side}_template`, a Jinja template or a function "
                "from messages to text"
            )
        self._side = side
        self._function = source if callable(source) else None
        self._compiled = None if callable(source) else _compiled(source, side)
        self.says_generation = isinstance(source, str) and bool(re.search(r"\{%-?\s*generation\b", source))
        named = {f"{role}_token": vocab.raw[vocab.roles[role][0]] for role in _NAMED_ROLES if role in vocab.roles}
        self._variables = {"tools": None, "documents": None, **named, **options}
        self._generation_prompt: str | None = None

    def __call__(self, messages: list[dict[str, Any]]) -> str:
        """The text of a chat.

        Raises:
            OptionError: the template refuses the chat, or takes too long, or writes too much.
        """
        return self._render(messages, add_generation_prompt=False)

    def with_tools(self, tools: Tools | None) -> Renderer:
        """The same for a chat with tools of its own, in the place of those of the options; a function sees none."""
        if tools is None:
            return self
        _ = self.generation_prompt  # found once for all chats
        other = copy.copy(self)
        other._variables = {**self._variables, "tools": tools}  # noqa: SLF001 - a copy of its own
        return other

    def with_generation(self, messages: list[dict[str, Any]]) -> str:
        """The same with `GENERATION` around what the template itself says an assistant wrote."""
        token = _marks_generation.set(True)
        try:
            return self._render(messages, add_generation_prompt=False)
        finally:
            _marks_generation.reset(token)

    def asking(self, messages: list[dict[str, Any]]) -> str:
        """The text of a chat with what the template writes before an answer that is yet to come.

        A function, and a template that does not look at `add_generation_prompt`, write the chat alone.
        """
        return self._render(messages, add_generation_prompt=True)

    @property
    def generation_prompt(self) -> str:
        """What the template writes before an answer that is yet to come; "" where it writes nothing."""
        if self._generation_prompt is None:
            chat = [{"role": "user", "content": "x"}]
            try:
                without = self._render(chat, add_generation_prompt=False)
                prompted = self._render(chat, add_generation_prompt=True)
            except OptionError:
                without = prompted = ""
            self._generation_prompt = prompted.removeprefix(without) if prompted.startswith(without) else ""
        return self._generation_prompt

    def _render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        if self._compiled is None:
            assert self._function is not None
            return self._function(messages)
        from jinja2 import TemplateError

        variables = {"add_generation_prompt": add_generation_prompt, **self._variables}
        token = _deadline.set(time.monotonic() + MAX_SECONDS)
        try:
            written: list[str] = []
            size = 0
            for piece in self._compiled.generate(messages=[*map(_as_templates_expect, messages)], **variables):
                size += len(piece)
                _check(size)
                written.append(piece)
            return "".join(written)
        except (
            TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RuntimeError,
            MemoryError,
        ) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OptionError(f"the {self._side}'s chat template refuses a chat: {reason:.300}") from error
        finally:
            _deadline.reset(token)


def _as_templates_expect(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as transformers hands it to a template: without keys that are None, a thought under both its names.

    Tables fill what a message does not have with None, and templates would write the word.

    >>> _as_templates_expect({"role": "assistant", "content": None, "reasoning": "hm"})
    {'thinking': 'hm', 'role': 'assistant', 'reasoning': 'hm', 'reasoning_content': 'hm'}
    """
    given = {key: value for key, value in message.items() if value is not None}
    thoughts = [given[key] for key in ("reasoning_content", "thinking", "reasoning") if key in given]
    return {"thinking": thoughts[0], **given, "reasoning_content": thoughts[0]} if thoughts else given


def tools_of(value: Any) -> Tools | None:
    r"""What a row of a data set says of the tools of its chat: schemas, or JSON of such; None where it names none.

    Raises:
        OptionError: it is neither.

    >>> tools_of('[{"type": "function"}]'), tools_of(['{"name": "f"}']), tools_of("")
    ([{'type': 'function'}], [{'name': 'f'}], None)
    """
    expected = "`tools` is a list of JSON schemas, or JSON of such a list"

    def parsed(given: Any) -> Any:
        if not isinstance(given, str):
            return given
        try:
            return json.loads(given) if given.strip() else None
        except (ValueError, RecursionError) as error:
            raise OptionError(f"{expected}, got {given[:40]!r}, which is no JSON ({error})") from error

    tools = parsed(value)
    if tools is None:
        return None
    entries = [parsed(entry) for entry in tools] if isinstance(tools, (list, tuple)) else [tools]
    wrong = [entry for entry in entries if not isinstance(entry, Mapping)]
    if wrong or not isinstance(tools, (list, tuple)):
        raise OptionError(f"{expected}, got {(wrong or entries)[0]!r:.60}")
    return [dict(entry) for entry in entries]


def to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT002 - the order of transformers' own filter
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT002 - as above
) -> str:
    r"""`tojson` with transformers' arguments in its order; jinja2's own filter escapes HTML's characters.

    >>> to_json({"b": "é", "a": 1}, sort_keys=True), to_json(["é"], True)
    ('{"a": 1, "b": "é"}', '["\\u00e9"]')
    """
    _check((len(indent) if isinstance(indent, str) else indent or 0) * 64)
    if separators is not None:
        separators = (separators[0], separators[1])
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check(size: int) -> None:
    """Refuses a text that is too long, and anything once the time is over."""
    if size > MAX_CHARACTERS:
        raise ValueError(f"it writes more than {MAX_CHARACTERS:,} characters")
    if time.monotonic() > _deadline.get(float("inf")):
        raise ValueError(f"it takes longer than {MAX_SECONDS:.0f} seconds")


class _Bounded:
    """What a loop goes through, with a look at the clock at every step."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            _check(0)
            yield item

    def __len__(self) -> int:
        return len(self._items)


def _size(value: Any) -> int:
    """How much text a value is, about: characters of a string, entries of a list."""
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


def _widths(form: str) -> int:
    """About how long a format makes a text beside what stands in it: no field is wider than a number in the format."""
    return len(form) + sum(map(int, re.findall(r"\d{1,18}", form)))


def _check_call(function: Any, arguments: Iterable[Any]) -> None:
    """Refuses a method of a string that would make a text without bounds: `ljust`, `replace`, `join` and their kin."""
    # jinja2 wraps `format` to keep attributes from it.
    owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
    if not isinstance(owner, str):
        return
    arguments = list(arguments)
    width = max((value for value in arguments if isinstance(value, int)), default=0)
    name = getattr(function, "__name__", "")
    if name in {"ljust", "rjust", "center", "zfill", "expandtabs"}:
        _check(width * (owner.count("\t") + 1 if name == "expandtabs" else 1))
    elif name == "replace" and len(arguments) > 1 and isinstance(arguments[0], str):
        count = owner.count(arguments[0]) if arguments[0] else len(owner) + 1
        _check(len(owner) + count * _size(arguments[1]))
    elif name == "join" and arguments and isinstance(arguments[0], (list, tuple)):
        _check(sum(map(_size, arguments[0])) + len(owner) * len(arguments[0]))
    elif name in {"format", "format_map"}:
        _check(_widths(owner))
    elif name == "translate":
        raise ValueError("it calls a method that makes texts of any length")


def _checked_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of jinja2 that makes long texts of short ones, bounded before it makes them."""
    # jinja2 gives some filters its own state as a first argument, as a mark on them says, which `wraps` copies.
    own_arguments = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def bounded(*arguments: Any, **options: Any) -> Any:
        own, value, others = arguments[:own_arguments], arguments[own_arguments], arguments[own_arguments + 1 :]
        given = [*others, *options.values()]
        width = max((number for number in given if isinstance(number, int)), default=0)
        if name in {"center", "wordwrap"}:
            _check(width)
        elif name == "indent":
            _check((width + sum(map(_size, given))) * (str(value).count("\n") + 1))
        elif name in {"batch", "slice"}:
            _check(width)
        elif name == "join":
            value = _counted(value, max(map(_size, given), default=0))
        elif name == "replace" and len(given) > 1:
            text, old = str(value), str(given[0])
            _check(len(text) + (text.count(old) if old else len(text) + 1) * _size(given[1]))
        elif name == "format":
            _check(_widths(str(value)))
        return function(*own, value, *others, **options)

    return bounded


def _counted(items: Iterable[Any], between: int) -> Iterator[Any]:
    """The items of what is joined, as long as their texts and the `between` characters before each are no more."""
    size = 0
    for item in items:
        size += _size(item) + between
        _check(size)
        yield item


@lru_cache(maxsize=16)
def _compiled(source: str, side: str) -> Any:
    try:
        from jinja2 import TemplateError
    except ImportError as error:
        raise MissingExtraError("Rendering a chat template", "chat") from error
    try:
        return _environment().from_string(source)
    # What jinja2 makes of a template is Python: blocks nested more than twenty deep are a SyntaxError of its.
    except (TemplateError, RecursionError, SyntaxError, MemoryError) as error:
        raise OptionError(f"the {side}'s chat template is not valid Jinja: {' '.join(str(error).split())}") from error


def _environment() -> Any:
    """Jinja with the settings, filters and functions under which the templates of transformers are written."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols

    def refuse(message: str) -> str:
        raise TemplateError(message)

    def now(form: str) -> str:
        return (_now.get() or datetime.now().astimezone()).strftime(form)

    def bounded_loop(items: Any) -> Any:
        return items if isinstance(items, str) and not items else _Bounded(items)

    def bounded_text(text: str) -> str:
        _check(len(text))
        return text

    extensions = [_generation_tag(), loopcontrols]
    environment = _bounded_sandbox()(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters |= {"tojson": to_json, "bounded_loop": bounded_loop, "bounded_text": bounded_text}
    for name in ("center", "indent", "wordwrap", "batch", "slice", "replace", "format", "join"):
        environment.filters[name] = _checked_filter(name, environment.filters[name])
    del environment.globals["lipsum"]  # any number of paragraphs, made before anything can look at their length
    environment.globals |= {"raise_exception": refuse, "strftime_now": now}
    return environment


def _generation_tag() -> Any:
    """`{% generation %}` stands around what an assistant wrote; rendering it changes nothing."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("around"), [], [], body).set_lineno(line)

        def around(self, caller: Callable[[], str]) -> str:
            text = caller()
            return f"{GENERATION[0]}{text}{GENERATION[1]}" if _marks_generation.get() else text

    return Generation


def _bounded_sandbox() -> Any:
    """A sandbox that looks at the clock in every loop and call, and at the length of every text that it makes."""
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    class Bounds(NodeTransformer):
        def visit_For(self, node: Any) -> Any:  # noqa: N802 - jinja2's name
            node = self.generic_visit(node)
            node.iter = nodes.Filter(node.iter, "bounded_loop", [], [], None, None).set_lineno(node.lineno)
            return node

        def visit_Concat(self, node: Any) -> Any:  # noqa: N802 - jinja2's name
            node = self.generic_visit(node)
            return nodes.Filter(node, "bounded_text", [], [], None, None).set_lineno(node.lineno)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("+", "*", "**", "%"))

        def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
            return Bounds().visit(super()._parse(source, name, filename))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operation(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, *arguments: Any, **options: Any) -> Any:
            _check(0)
            _check_call(function, [*arguments, *options.values()])
            return super().call(context, function, *arguments, **options)

    return Environment


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuses an operation whose result would be too long, before it is made."""
    if operator == "+":
        _check(_size(left) + _size(right))
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int) and not isinstance(value, int):
                _check(_size(value) * max(times, 0))
    elif operator == "**":
        _check(int(right) * 64 if isinstance(right, (int, float)) else MAX_CHARACTERS + 1)
    elif isinstance(left, str):
        _check(_widths(left))
