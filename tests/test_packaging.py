"""What is installed: the package list, the package data, and the one place that spells the name of cli/."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import xtoken_align

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_the_explicit_package_list_is_what_is_on_the_disk() -> None:
    on_disk = {"xtoken_align", *(f"xtoken_align.{beside}" for beside in ("cli", "mappings"))}
    for marker in (ROOT / "xtoken_align").rglob("__init__.py"):
        on_disk.add(".".join(marker.parent.relative_to(ROOT).parts))
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk
    assert (ROOT / "cli" / "__init__.py").exists()
    assert (ROOT / "mappings" / "__init__.py").exists()


def test_only_the_project_file_spells_the_dotted_name_of_the_command_line() -> None:
    name = "xtoken_align" + ".cli"
    spelling = {
        path.relative_to(ROOT).as_posix()
        for path in tracked()
        if path.suffix in {".py", ".md", ".sh", ".toml", ""} and path.is_file()
        and name in path.read_text(encoding="utf-8", errors="replace")
    }  # fmt: skip
    assert spelling == {"pyproject.toml"}


def test_every_part_of_the_package_is_in_the_import_contract() -> None:
    layers = set(PROJECT["tool"]["importlinter"]["contracts"][0]["layers"])
    parts = {
        f"xtoken_align.{path.stem}"
        for path in (ROOT / "xtoken_align").iterdir()
        if (path.is_dir() and (path / "__init__.py").exists()) or path.suffix == ".py"
    }
    assert parts - layers == {"xtoken_align.__init__", "xtoken_align._version"}


def test_the_package_data_is_installed() -> None:
    package = Path(xtoken_align.__file__).parent
    assert (package / "py.typed").exists()
    assert (package / "sources" / "presets.json").exists()


def test_the_installed_version_is_the_sources() -> None:
    from importlib.metadata import version

    assert version("xtoken-align") == xtoken_align.__version__


def test_torch_is_pinned_for_the_tests_and_not_for_users() -> None:
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["torch"] == ["torch>=2.6"]
    assert not any(re.match(r"(torch|transformers)\b", line) for line in PROJECT["project"]["dependencies"])
    assert not any(re.match(r"torch\b", line) for line in extras["demo"])


def test_no_file_names_a_machine_or_a_registry() -> None:
    wrong = re.compile(r"(?<![\w.])/(?:tmp|work|root|farm)/\w|(?:files\.)?pythonhosted\.org|pypi\.org")
    found = {
        path.relative_to(ROOT).as_posix()
        for path in tracked()
        if path.suffix in {".py", ".md", ".sh", ".toml", ".json", ".txt"} and path.is_file()
        and wrong.search(path.read_text(encoding="utf-8", errors="replace"))
    }  # fmt: skip
    # This file names them to look for them.
    assert found <= {"tests/test_packaging.py"}
