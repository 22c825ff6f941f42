"""The command group: help, versions, wrong usage, and how a command ends."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import START, part

COMMANDS = part("main").COMMANDS

Invoke = Callable[..., Any]


def test_the_overview_names_every_command_and_how_to_begin(invoke: Invoke) -> None:
    result = invoke("--help")
    assert (result.code, result.err) == (0, "")
    for name, (_, line) in COMMANDS.items():
        assert f"  {name}" in result.out
        assert line in result.out
    assert "xtoken-align build qwen3 llama-3" in result.out


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself_with_examples(invoke: Invoke, name: str) -> None:
    result = invoke(name, "--help")
    assert result.code == 0
    assert result.out == invoke(name, "-h").out
    assert f"xtoken-align {name} " in result.out
    assert "Examples:" in result.out or "Example:" in result.out


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_fits_a_terminal_and_names_what_an_option_takes(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = invoke(name, "--help").out
    assert max(map(len, text.splitlines())) <= 80
    assert "\\u0008" not in text
    assert not re.search("TEXT|INTEGER|FLOAT|RANGE", text.partition("Options:")[2].replace("--text TEXT", ""))


def test_help_imports_neither_numpy_nor_scipy_nor_torch_nor_transformers(execute: Invoke) -> None:
    check = (
        "import atexit\n"
        "atexit.register(lambda: sys.stderr.write(' '.join(m for m in sys.modules if m in "
        "('numpy', 'scipy', 'torch', 'transformers', 'tokenizers', 'rich'))))"
    )
    result = execute("--help", before=check)
    assert (result.code, result.err) == (0, "")


def test_the_version_names_what_results_depend_on(invoke: Invoke) -> None:
    result = invoke("--version")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()][:3] == ["xtoken-align", "python", "numpy"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bild"], "did you mean build?"),
        (["zzz"], "no command is called 'zzz'"),
        (["--zzz"], "No such option"),
        (["build"], "the teacher is missing"),
        (["build", "a"], "the student is missing"),
        (["build", "a", "b", "c"], "got 'c' as well"),
        (["build", "--teacher", "a", "--student", "b", "c"], "got 'c' as well"),
        (["build", "a", "b", "-o", "x", "--store", "y"], "-o names the file itself"),
        (["build", "a", "b", "-o", "x", "--name", "y"], "-o names the file itself"),
        (["build", "a", "b", "--top-k", "few"], "--top-k"),
        (["inspect"], "Missing argument 'MAPPING'"),
        (["inspect", "a", "--limit", "-1"], "--limit"),
        (["show"], "Missing argument 'MAPPING'"),
        (["show", "a"], "name a TOKEN"),
        (["show", "a", "--id", "x"], "'x' is not a valid integer"),
    ],
)
def test_wrong_usage_exits_2_with_a_hint(invoke: Invoke, arguments: list[str], says: str) -> None:
    result = invoke(*arguments)
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert "--help" in result.err
    assert "Traceback" not in result.err


def test_no_command_shows_the_overview_and_is_wrong_usage(invoke: Invoke) -> None:
    result = invoke()
    assert result.code == 2
    assert "Commands:" in result.err + result.out


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_a_traceback_wherever_it_stands(execute: Invoke, place: int) -> None:
    arguments = ["build", "/absent/a", "/absent/b"]
    arguments.insert(place, "--debug")
    result = execute(*arguments)
    assert result.code == 1
    assert "Traceback" in result.err
    assert "SourceError" in result.err


def test_debug_after_two_dashes_is_an_argument(invoke: Invoke) -> None:
    assert "got '--debug' as well" in invoke("build", "a", "b", "--", "--debug").err


def test_a_reader_that_goes_away_ends_a_command_quietly(built: Path) -> None:
    command = f"{sys.executable} -c '{START}'"
    done = subprocess.run(
        ["bash", "-c", f"{command} inspect {built} --unmatched | head -1"], capture_output=True, check=False, timeout=60
    )
    assert done.stderr == b""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["inspect"], ["show", "12"], ["verify"], ["inspect", "--json"]])
def test_a_closed_stdout_is_no_reason_for_a_traceback(built: Path, arguments: list[str]) -> None:
    words = " ".join([arguments[0], str(built), *arguments[1:]])
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{START}' {words} >&-"],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_tokens_are_printed_in_any_encoding(execute: Invoke, built: Path, encoding: str) -> None:
    result = execute("inspect", built, "--unmatched", PYTHONIOENCODING=encoding)
    assert (result.code, result.err) == (0, "")
    result = execute("inspect", built, PYTHONIOENCODING=encoding)
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    ("module", "function"),
    [("builder", "assemble_matrix"), ("builder", "run_rules"), ("mapping.file", "write_atomically")],
)
def test_an_interrupted_build_says_so_and_leaves_no_file(
    execute: Invoke, tokenizers: tuple[str, str], tmp_path: Path, module: str, function: str
) -> None:
    before = (
        "import os, signal\n"
        # Where the tests run in the background of a shell, SIGINT is ignored from the start.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import xtoken_align.{module} as module\n"
        f"original = module.{function}\n"
        f"def interrupted(*arguments, **options):\n"
        f"    os.kill(os.getpid(), signal.{signal.SIGINT.name})\n"
        f"    return original(*arguments, **options)\n"
        f"module.{function} = interrupted"
    )
    result = execute("build", *tokenizers, "--store", tmp_path / "store", before=before)
    assert (result.code, result.out) == (130, "")
    assert result.err.strip() == "Interrupted: no file was left half-written."
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_running_out_of_memory_is_one_sentence(
    invoke: Invoke, tokenizers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import xtoken_align.builder

    def starve(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(xtoken_align.builder, "assemble_matrix", starve)
    result = invoke("build", *tokenizers)
    assert (result.code, result.err) == (1, "Error: there is not enough memory for this\n")


def test_an_error_of_the_system_names_its_file(
    invoke: Invoke, tokenizers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import xtoken_align.builder

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "disk.bin")

    monkeypatch.setattr(xtoken_align.builder, "assemble_matrix", fail)
    assert invoke("build", *tokenizers).err == "Error: disk.bin: Input/output error\n"


def test_an_error_nobody_foresaw_keeps_its_traceback(
    invoke: Invoke, tokenizers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import xtoken_align.builder

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(xtoken_align.builder, "assemble_matrix", fail)
    with pytest.raises(ZeroDivisionError):
        invoke("build", *tokenizers)
