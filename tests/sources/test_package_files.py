from __future__ import annotations

import sys
from pathlib import Path

import pytest

from xtoken_align.errors import SourceError
from xtoken_align.sources.locate import package_file


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    root = tmp_path / "heavy_package_xyz"
    (root / "data").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    (root / "data" / "tokenizer.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "heavy_package_xyz"


def test_a_file_is_found_without_importing_its_package(package: str) -> None:
    assert package_file(f"pkg:{package}/data/tokenizer.json").read_text() == "{}"
    assert package not in sys.modules


def test_a_package_without_init_in_several_places_is_searched_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("one", "two"):
        (tmp_path / place / "spread_package_xyz").mkdir(parents=True)
        monkeypatch.syspath_prepend(str(tmp_path / place))
    (tmp_path / "one" / "spread_package_xyz" / "ranks.tiktoken").write_text("")
    assert package_file("pkg:spread_package_xyz/ranks.tiktoken").parent.parent.name == "one"


def test_a_missing_package_is_named() -> None:
    with pytest.raises(SourceError, match="names the package no_such_package, which is not installed"):
        package_file("pkg:no_such_package/tokenizer.json")


def test_a_missing_file_is_named(package: str) -> None:
    with pytest.raises(SourceError, match=r"has no file 'data/tekken\.json'"):
        package_file(f"pkg:{package}/data/tekken.json")


def test_a_plain_module_is_no_package() -> None:
    with pytest.raises(SourceError, match="not installed"):
        package_file("pkg:this/tokenizer.json")


@pytest.mark.parametrize(
    "source",
    [
        "pkg:",
        "pkg:json",
        "pkg:json/",
        "pkg:json/../x",
        "pkg:json//etc/passwd",
        "pkg:/etc/passwd",
        "pkg:a.b/c",
        "pkg:json/a\0",
    ],
)
def test_a_malformed_or_escaping_source_is_refused(source: str) -> None:
    with pytest.raises(SourceError, match="expected pkg:package/path/in/package"):
        package_file(source)
