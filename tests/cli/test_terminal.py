"""What comes from files and arguments reaches a terminal with its control characters written out."""

from __future__ import annotations

import gc
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import part

from xtoken_align import load

Invoke = Callable[..., Any]

EVIL = "x\x1b]0;TITLE\x07\x1b[2J\x9b31m\u202e"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def evil(built: Path, tmp_path: Path) -> Path:
    """A whole mapping file whose names and rules steer a terminal."""
    mapping = load(built)
    measured = mapping.coverage()
    changed = replace(
        mapping,
        student=replace(mapping.student, name=EVIL, source=EVIL, roles={EVIL: (1,)}),
        teacher=replace(mapping.teacher, name=f"{EVIL}\nError: forged"),
        measured=replace(measured, rules={**measured.rules, EVIL: 1}, empty={**measured.empty, EVIL: 1}),
        options={**mapping.options, EVIL: EVIL},
    )
    return changed.save(tmp_path / "evil.npz")


@pytest.mark.parametrize(
    "arguments",
    [["inspect"], ["inspect", "--json"], ["inspect", "--unmatched"], ["show", "nothing"], ["show", EVIL], ["verify"]],
)
def test_a_mapping_cannot_steer_the_terminal(invoke: Invoke, evil: Path, arguments: list[str]) -> None:
    result = invoke(arguments[0], evil, *arguments[1:])
    assert not CONTROLS.search(result.out + result.err)
    assert "Traceback" not in result.err


def test_a_name_stays_in_its_line(invoke: Invoke, evil: Path) -> None:
    first = invoke("inspect", evil).out.splitlines()[0]
    assert first.startswith("Student x\\u001b]0;TITLE\\u0007\\u001b[2J")
    assert "\\u000aError: forged" in first


def test_json_stays_json_of_the_same_names(invoke: Invoke, evil: Path) -> None:
    report = json.loads(invoke("inspect", evil, "--json").out)
    assert report["student"]["name"] == EVIL


def test_a_difference_of_mappings_is_printed_without_controls(invoke: Invoke, evil: Path, built: Path) -> None:
    result = invoke("diff", built, evil)
    assert not CONTROLS.search(result.out + result.err)


@pytest.mark.parametrize("command", ["compat", "build", "inspect", "show", "verify", "distill", EVIL])
def test_what_is_typed_is_written_out_in_errors(invoke: Invoke, tmp_path: Path, command: str) -> None:
    file = tmp_path / f"{EVIL}.tiktoken"
    file.write_text("garbage\n")
    for place in (file, tmp_path / "absent" / EVIL):
        result = invoke(command, place, place)
        assert result.code in (1, 2)
        assert not CONTROLS.search(result.out + result.err)


def test_a_wrong_option_is_written_out(invoke: Invoke) -> None:
    assert not CONTROLS.search(invoke("build", f"--{EVIL}").err)
    assert not CONTROLS.search(invoke("inspect", "a", "--limit", EVIL).err)


def test_a_table_writes_controls_out_and_keeps_its_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.table import Table

    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    table = Table("name", style="bold red")
    table.add_row(f"left{EVIL}")
    with part("console").printable_streams():
        part("console").stdout_console().print(table)
    assert re.search("\x1b\\[[0-9;]*m", terminal.getvalue())
    assert "left" in terminal.getvalue()
    assert not CONTROLS.search(re.sub("\x1b\\[[0-9;]*m", "", terminal.getvalue()))


def test_a_traceback_is_written_out(execute: Invoke, tmp_path: Path) -> None:
    result = execute("inspect", tmp_path / f"{EVIL}.npz", "--debug")
    assert "StoreError" in result.err
    assert not CONTROLS.search(result.err)


class Terminal(io.StringIO):
    """A terminal of 60 columns."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def in_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs a command in a terminal of 60 columns; the lines that it prints there."""

    def call(*arguments: str | Path) -> list[str]:
        terminal = Terminal()
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, terminal)
        for name, value in {"COLUMNS": "60", "NO_COLOR": "1", "TERM": "xterm"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["xtoken-align", *map(str, arguments)])
        try:
            part("main").run(part("main").cli)
        finally:
            gc.enable()
        return re.sub("\x1b\\[[0-9;]*m", "", terminal.getvalue()).splitlines()

    return call


def test_sentences_and_tables_fit_a_narrow_terminal(in_terminal: Callable[..., list[str]], built: Path) -> None:
    lines = in_terminal("inspect", built)
    assert max(map(len, lines)) <= 60
    assert "…" not in "".join(lines)
    assert any(line.split() == ["class", "ids", "exact", "near", "split", "empty"] for line in lines)


def test_a_table_that_does_not_fit_is_printed_whole(
    in_terminal: Callable[..., list[str]], invoke: Invoke, tokenizers: tuple[str, str], tmp_path: Path
) -> None:
    name, store = "a-name-that-takes-more-than-half-of-a-line", tmp_path / "store"
    assert invoke("build", *tokenizers, "--store", store, "--name", name).code == 0
    (line,) = [line for line in in_terminal("list", "--store", store) if name in line]
    assert line.split()[-1] == "built"
    assert "…" not in line


def test_a_refusal_breaks_between_words(in_terminal: Callable[..., list[str]]) -> None:
    lines = in_terminal("show", "no--mapping", "a")
    assert len(lines) > 1
    assert all(len(line) <= 60 or " " not in line for line in lines)
    assert "no mapping is called 'no--mapping'" in " ".join(lines)


def test_a_long_run_says_how_far_it_is_and_what_it_does_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in {"COLUMNS": "60", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    with part("console").run_bar() as update:
        update(completed=13, total=90, description="loss 4.827  bits/byte 2.434  kd 1.551  agreement 0.03529")
    drawn = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "13/90" in drawn
    assert "0.03529" in drawn
    assert "…" not in drawn
