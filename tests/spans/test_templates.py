"""Chat templates: as `transformers` renders them, in bounds of time and size."""

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from xtoken_align.errors import OptionError
from xtoken_align.spans import templates
from xtoken_align.spans.templates import Renderer

SOMEONE = SimpleNamespace(name="someone", chat_template=None, roles={"bos": (0,), "eos": (1,)}, raw=("<s>", "</s>"))
CHAT = [{"role": "user", "content": "x"}]


def written(template: str, chat: list[dict[str, Any]] = CHAT, **options: Any) -> str:
    return Renderer(SOMEONE, template, "student", options)(chat)


@pytest.mark.parametrize(
    ("written_as", "expected"),
    [
        ("tojson", {}),
        ("tojson(ensure_ascii=True)", {"ensure_ascii": True}),
        ("tojson(False, 2)", {"indent": 2}),
        ("tojson(indent='\t')", {"indent": "\t"}),
        ("tojson(separators=(',', ':'))", {"separators": (",", ":")}),
        ("tojson(separators=[',', ':'])", {"separators": (",", ":")}),
        ("tojson(sort_keys=True)", {"sort_keys": True}),
        ("tojson(True, none, (';', '='), true)", {"ensure_ascii": True, "separators": (";", "="), "sort_keys": True}),
    ],
)
def test_tojson_has_every_argument_of_transformers(written_as: str, expected: dict[str, Any]) -> None:
    value = {"b": ["é", "<"], "a": 1}
    template = "{{ value | " + written_as + " }}"
    assert written(template, value=value) == json.dumps(value, **{"ensure_ascii": False, **expected})


@pytest.mark.parametrize(
    ("written_as", "expected"),
    [
        ("'a b a' | replace('a', 'x')", "x b x"),
        ("'a b a' | replace('a', 'x', 1)", "x b a"),
        ("'ab cd' | wordwrap(2)", "ab\ncd"),
        ("'a\nb' | indent(2)", "a\n  b"),
        ("'a' | center(3)", " a "),
        ("'%s!' | format('a')", "a!"),
        ("['a', 1] | join(', ')", "a, 1"),
        ("messages | join('/', attribute='role')", "user"),
        ("[1, 2, 3] | batch(2) | list", "[[1, 2], [3]]"),
        ("[1, 2, 3] | slice(2) | list", "[[1, 2], [3]]"),
    ],
)
def test_filters_that_are_bounded_write_what_those_of_jinja2_do(written_as: str, expected: str) -> None:
    assert written("{{ " + written_as + " }}") == expected


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": None},
        {"role": "assistant", "content": "x", "reasoning_content": None, "reasoning": "hm"},
        {"role": "assistant", "content": "x", "thinking": "hm"},
        {"role": "assistant", "content": "x", "reasoning_content": "hm"},
        {"role": "assistant", "content": "x", "reasoning_content": "one", "thinking": "two"},
        {"role": "assistant", "content": "x"},
    ],
)
def test_a_template_reads_messages_as_transformers_gives_them(message: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.24")
    template = (
        "{% for m in messages %}{{ m.content }}|{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }}|"
        "{% if 'tool_calls' in m %}calls{% endif %}{% endfor %}"
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    expected = tokenizer.apply_chat_template([message], chat_template=template, tokenize=False)
    assert written(template, [message]) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(9999) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(9999) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=['a']) %}{% for i in range(9999) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% for i in range(9999) %}{% for j in range(9999) %}" + "x" * 1000 + "{% endfor %}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ [1] * 10000000000 }}",
        "{{ 10 ** 10000000000 }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ 'a'.zfill(10000000000) }}",
        "{{ '%10000000000d' % 3 }}",
        "{{ '{:10000000000}'.format(3) }}",
        "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
        "{{ ('x' * 1000000) | replace('x', 'y' * 1000000) }}",
        "{{ 'a' | center(10000000000) }}",
        "{{ range(9999) | join('x' * 1000000) }}",
        "{{ [1] | slice(10000000000) | list }}",
        "{{ 'a' | indent(10000000000, true) }}",
        "{{ [[1]] | tojson(indent=10000000000) }}",
    ],
)
def test_a_template_that_writes_without_end_is_refused_at_once(template: str) -> None:
    started = time.monotonic()
    with pytest.raises(OptionError, match="writes more than 16,777,216 characters"):
        written(template)
    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_a_template_that_loops_without_end_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_SECONDS", 0.3)
    with pytest.raises(OptionError, match="takes longer than"):
        written(template)


@pytest.mark.parametrize(
    "template", ["{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 1 // 0 }}", "{{ x.y.z }}", "{{ cycler() }}"]
)
def test_whatever_a_template_does_wrong_is_one_sentence(template: str) -> None:
    with pytest.raises(OptionError, match="the student's chat template refuses a chat: ") as caught:
        written(template)
    assert "\n" not in str(caught.value)


def test_blocks_nested_deeper_than_python_allows_are_one_sentence() -> None:
    with pytest.raises(OptionError, match="the student's chat template is not valid Jinja: too many statically nested"):
        written("{% for i in [1] %}" * 25 + "{% endfor %}" * 25)


def test_a_generation_block_changes_nothing_and_can_be_asked_for() -> None:
    template = "{% for m in messages %}<a>{% generation %}{{ m.content }}</a>{% endgeneration %}{% endfor %}"
    render = Renderer(SOMEONE, template, "student", {})
    assert render(CHAT) == "<a>x</a>"
    begin, end = templates.GENERATION
    assert render.with_generation(CHAT) == f"<a>{begin}x</a>{end}"


def test_one_moment_is_one_time_for_all_renderings() -> None:
    render = Renderer(SOMEONE, "{{ strftime_now('%H:%M:%S.%f') }}", "student", {})
    with templates.one_moment():
        assert render(CHAT) == render(CHAT)
