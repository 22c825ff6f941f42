"""Rows of a run: what `texts` may name, texts and chats, and which of a row's tokens are labels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from training_world import World

from xtoken_align.errors import CorpusError, OptionError
from xtoken_align.training import DistillConfig, distill
from xtoken_align.training.config_file import from_values
from xtoken_align.training.rows import HubTexts, labelled_rows, make_rows, read_sources, sources_of

datasets = pytest.importorskip("datasets")
pytest.importorskip("jinja2")

TEMPLATE = """
{%- for m in messages %}{{ '<s>' + m.role + ':' }}
{%- if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}
{{- m.content or '' }}
{%- for call in m.tool_calls or [] %}{{ ' CALL ' + call.function.name + ' ' + (call.function.arguments | tojson) }}
{%- endfor %}{{ '</s>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}
"""
CALL = {"type": "function", "function": {"name": "counts", "arguments": {"stones": 30, "sea": None}}}
TOOLS = [{"type": "function", "function": {"name": "counts", "parameters": {"type": "object"}}}]
CHAT = [
    {"role": "system", "content": "a river runs"},
    {"role": "user", "content": "the sum of 12 and 30?"},
    {"role": "assistant", "reasoning_content": "nobody counts.", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "it is 42 in the sea"},
]
SHORT = [{"role": "user", "content": "12 and 30"}, {"role": "assistant", "content": "42"}]


@pytest.fixture
def config(world: World, tmp_path: Path) -> Any:
    """Makes a configuration of a short run on chats."""
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    rows = [{"messages": CHAT, "tools": TOOLS}, *({"messages": SHORT} for _ in range(20))]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**changes: Any) -> DistillConfig:
        template = {"chat_template": str(tmp_path / "chat.jinja")}
        values = {
            "student": {"model": str(world.student), **template},
            "teachers": {"model": str(world.teacher), **template},
            "texts": str(tmp_path / "chats.jsonl"),
            "output": str(tmp_path / "run"),
            "holdout": 2,
            "training": {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True},
            **changes,
        }
        return from_values(DistillConfig, values)

    return make


def test_of_a_chat_the_assistants_tokens_are_labels_and_no_other(config: Any) -> None:
    (row, short) = labelled_rows(config(), 2)
    said = [(part.message, part.role, part.field, part.surface.decode()) for part in row.parts if part.labelled]
    assert said == [
        (2, "assistant", "thought", "<think>nobody counts."),
        (2, "assistant", "calls", '</think> CALL counts {"stones": 30, "sea": null}'),
        (2, "assistant", "end", "</s>"),
        (4, "assistant", "content", "it is 42 in the sea"),
        (4, "assistant", "end", "</s>"),
    ]
    whole = b"".join(part.surface for part in row.parts).decode()
    assert whole.startswith("<s>system:a river runs</s><s>user:the sum of 12 and 30?</s><s>assistant:<think>")
    assert row.cut == 0
    assert 0 < row.labels < row.tokens
    assert [part.surface for part in short.parts if part.labelled] == [b"42", b"</s>"]


def test_a_token_over_a_thought_and_the_mark_behind_it_is_the_assistants(config: Any, tmp_path: Path) -> None:
    # The small vocabulary has the token `uns`: the thought ends behind its `u`, and the mark is `ns to`.
    (tmp_path / "glued.jinja").write_text(
        "{% for m in messages %}<s>{{ m.role }}:{{ m.reasoning_content }}ns to{{ m.content }}</s>{% endfor %}"
    )
    chat = [{"role": "assistant", "reasoning_content": "the river ru", "content": " the sea"}]
    (tmp_path / "glued.jsonl").write_text(json.dumps({"messages": chat}))
    part = {"chat_template": str(tmp_path / "glued.jinja")}
    given = config()
    values = {"student": {"model": given.student.model, **part}, "teachers": {"model": given.teachers[0].model, **part}}
    (row,) = labelled_rows(config(texts=str(tmp_path / "glued.jsonl"), **values), 1)
    assert b"".join(part.surface for part in row.parts if part.labelled) == b"the river runs to the sea</s>"


def test_thoughts_and_calls_can_be_left_out(config: Any) -> None:
    (row,) = labelled_rows(config(collate={"loss_on": ["content", "end"]}), 1)
    assert {part.field for part in row.parts if part.labelled} == {"content", "end"}


def test_a_long_chat_says_what_is_cut_off(config: Any) -> None:
    training = {"max_student_tokens": 20, "use_cpu": True}
    (row,) = labelled_rows(config(training=training), 1)
    assert row.tokens == 20
    assert row.cut > 20


def test_a_student_learns_from_chats(config: Any, world: World, tmp_path: Path) -> None:
    made = distill(config(training={"max_steps": 8, "learning_rate": 0.02, "use_cpu": True}), store=world.store)
    assert made.after["bits_per_byte"] < made.before["bits_per_byte"]
    assert (made.rows, made.held_out) == (19, 2)
    assert (made.student / "chat_template.jinja").read_text() == TEMPLATE


def test_chats_without_a_template_are_refused_with_its_place(config: Any, world: World) -> None:
    with pytest.raises(OptionError, match=r"2 mistakes:\n  student \(.*as student.chat_template\n  teachers\[0\] "):
        labelled_rows(config(student={"model": str(world.student)}, teachers={"model": str(world.teacher)}), 1)


def test_chats_of_every_kind_of_file_are_the_same(config: Any, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table
    rows = [{"messages": SHORT}, {"messages": CHAT}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    # A table gives every message every key.
    parquet.write_table(table.from_pylist(rows), tmp_path / "table.parquet")
    (tmp_path / "named.jsonl").write_text("".join(json.dumps({"talk": row["messages"]}) + "\n" for row in rows))
    plain = [{**row, "tools": None} for row in rows]
    tabled = [{"messages": without_nulls(row["messages"]), "tools": None} for row in rows]
    for name in ("list.json", "packed.jsonl.gz", "table.parquet"):
        expected = tabled if name == "table.parquet" else plain
        assert list(read_sources([str(tmp_path / name)], "text", 100)) == expected, name
    assert list(read_sources([str(tmp_path / "named.jsonl")], "talk", 100)) == plain
    kept, _ = make_rows(config(texts=str(tmp_path / "table.parquet")), tmp_path / "kept")
    assert kept[:]["messages"] == [row["messages"] for row in tabled]


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"messages": [{"from": "human", "value": "Hi"}]}', "message 0 of line 1 of .* has no role but from, value"),
        ('{"conversations": []}', "has no text under 'text' and no chat under 'messages', but conversations"),
        ('{"messages": []}', r"has no text under 'text' and no chat under 'messages', but messages \(\[\]\)"),
        ('{"text": "a"}\n{"messages": [{"role": "user", "content": "b"}]}', "has chats, but the rows before are texts"),
        ('{"messages": "["}', "line 1 of .* is not JSON"),
    ],
)
def test_what_is_neither_a_text_nor_a_chat_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(CorpusError, match=said):
        list(read_sources([str(tmp_path / "rows.jsonl")], "text", 100))


def test_folders_and_patterns_stand_for_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/one.txt", "a/b/two.jsonl.gz", "a/.hidden/three.txt", "a/four.png", "five.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    assert sources_of(["a"]) == ["a/b/two.jsonl.gz", "a/one.txt"]
    assert sources_of(["**/*.txt", "a", "hf://me/texts"]) == [
        *("a/one.txt", "five.txt", "a/b/two.jsonl.gz", "hf://me/texts")
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError) as refusal:
        sources_of(["nowhere.txt", "*.csv", "empty", "five.txt"])
    assert [line.split(":")[0] for line in str(refusal.value).split("\n  ")] == [
        "3 mistakes",
        "there is no file nowhere.txt",
        "no file fits the pattern *.csv",
        "the folder empty has no files that end in .txt, .text, .md, .rst, .jsonl, .ndjson, .json, .parquet",
    ]


def test_a_data_set_of_the_hub_is_read_as_files_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*given: Any, **named: Any) -> list[dict[str, Any]]:
        asked.append((given, named))
        return [{"text": "the sea", "id": 1}, {"text": None, "id": 2}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = list(read_sources(["hf://me/texts@v1/small/test"], "text", 100))
    assert rows == [{"text": "the sea", "ends": True}]
    assert asked == [(("me/texts", "small"), {"split": "test", "revision": "v1", "streaming": True})]


def test_without_a_network_a_data_set_of_the_hub_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CorpusError, match=r"cannot read hf://me/texts from the Hub \(.*\): see that it exists and that"
    ):
        list(read_sources(["hf://me/texts"], "text", 100))
    with pytest.raises(CorpusError, match="hf://me names no data set: expected hf://OWNER/NAME"):
        HubTexts.of("hf://me")


def test_only_the_piece_that_ends_its_text_ends(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "one two three\nfour"}) + '\n{"text": "five"}\n')
    rows = list(read_sources([str(tmp_path / "rows.jsonl")], "text", 8))
    assert [(row["text"], row["ends"]) for row in rows] == [
        *(("one two", False), (" three\n", False), ("four", True), ("five", True))
    ]


def test_where_a_text_goes_on_its_end_is_no_label(world: World, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("the river runs to the sea")
    values = {"student": {"model": str(world.student)}, "teachers": {"model": str(world.teacher)}, "output": "run"}
    config = from_values(DistillConfig, {**values, "texts": [str(tmp_path / "long.txt")], "longest_text": 16})
    first, last = labelled_rows(config, 2)
    ends = [[(part.surface, part.labelled) for part in row.parts][-1] for row in (first, last)]
    assert ends == [(b"</s>", False), (b"</s>", True)]


def test_a_chat_that_is_checked_by_hand_reads_as_yaml_says_it(config: Any, tmp_path: Path) -> None:
    written = yaml.safe_dump(config().to_dict())
    assert from_values(DistillConfig, yaml.safe_load(written)) == config()
