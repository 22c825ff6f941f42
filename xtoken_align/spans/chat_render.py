"""A side's chat template as a function: Jinja in a sandbox, with the settings that templates are written for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from ..errors import MissingExtraError, OptionError
from ..vocab.vocab import Vocab

Template = str | Callable[[list[dict[str, Any]]], str]
Render = Callable[[list[dict[str, Any]]], str]

_NAMED_ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")


def renderer(vocab: Vocab, template: Template | None, side: str, options: Mapping[str, Any]) -> Render:
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
    if callable(template):
        return template
    source = template if template is not None else vocab.chat_template
    if source is None:
        raise OptionError(
            f"the {side} {vocab.name} has no chat template: give `{side}_template`, a Jinja template or a function "
            "from messages to text"
        )
    compiled = _compiled(source, side)
    named = {f"{role}_token": vocab.raw[vocab.roles[role][0]] for role in _NAMED_ROLES if role in vocab.roles}
    variables = {"add_generation_prompt": False, "tools": None, "documents": None, **named, **options}

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

    # The settings under which the templates of transformers are written.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise OptionError(f"the {side}'s chat template is not valid Jinja: {error}") from error


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    # jinja2's own filter escapes HTML's characters.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _refuse(message: str) -> str:
    from jinja2 import TemplateError

    raise TemplateError(message)
