"""The mappings that ship with the package: all there, small enough, whole, and what a build makes today."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import xtoken_align
from xtoken_align import Vocab, build, load
from xtoken_align.mapping.storage import load_mapping
from xtoken_align.store.store import shipped_root

PAIRS = [
    ("llama-3", "qwen3"),
    ("llama-3", "deepseek"),
    ("llama-3", "mistral-tekken"),
    ("llama-3", "o200k"),
    ("qwen3", "llama-3"),
]
README = Path(__file__).parents[1] / "mappings" / "README.md"


def files() -> list[Path]:
    root = shipped_root()
    assert root is not None
    return sorted(root.glob("*/*.npz"))


def test_the_promised_pairs_ship_once_each_and_take_at_most_16_mb() -> None:
    assert sorted(file.parent.name for file in files()) == sorted(f"{student}--{teacher}" for student, teacher in PAIRS)
    assert sum(file.stat().st_size for file in files()) <= 16_000_000


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_a_shipped_mapping_is_the_one_that_a_build_makes(
    real: Callable[[str], Vocab], student: str, teacher: str
) -> None:
    shipped = load(f"{student}--{teacher}", student=real(student), teacher=real(teacher))
    built = build(student=real(student), teacher=real(teacher))
    assert shipped.content_hash == built.content_hash


def test_a_shipped_mapping_loads_by_name_with_an_empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTOKEN_ALIGN_STORE", str(tmp_path / "absent"))
    mapping = xtoken_align.load("llama-3--qwen3")
    assert mapping.W.shape == (128_256, 151_936)
    assert mapping.row("201").rule == "digits"


def test_the_table_in_the_readme_is_that_of_the_files() -> None:
    text = README.read_text(encoding="utf-8")
    for file in files():
        mapping = load_mapping(file)
        assert mapping.version == file.stem
        coverage = mapping.coverage()
        exact = sum(row.exact for row in coverage.classes.values())
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{file.parent.name}`")]
        assert f"`{mapping.version}`" in line
        assert f" {exact:,} " in line
        assert line.endswith(f" {coverage.recommendation.loss} |")
