"""The mappings that ship with the package: all there, small enough, whole, and what a build makes today."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import xtoken_align
from xtoken_align import Vocab, build, load
from xtoken_align.mapping.mapping import load_mapping
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
        assert line.endswith(f" {coverage.recommendation.paper_rule.loss} |")


MUTATE = """
import pathlib, random, resource, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from mutations import mutate
from xtoken_align.errors import ArtifactError
from xtoken_align.mapping.mapping import load_mapping
content = pathlib.Path(sys.argv[1]).read_bytes()
original = load_mapping(pathlib.Path(sys.argv[1]))
place = pathlib.Path(sys.argv[3], "mutated.npz")
in_use = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 500_000_000,) * 2)
rng = random.Random(1)
refused = 0
for _ in range(200):
    place.write_bytes(mutate(content, rng))
    try:
        loaded = load_mapping(place)
    except ArtifactError:
        refused += 1
    else:
        assert loaded.content_hash == original.content_hash
        assert np.array_equal(loaded.matrix.data, original.matrix.data)
print(refused)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory in use is read from /proc")
def test_a_real_mapping_that_is_damaged_is_refused_within_half_a_gigabyte(tmp_path: Path) -> None:
    file = files()[0]
    done = subprocess.run(
        [sys.executable, "-c", MUTATE, str(file), str(Path(__file__).parent), str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 100 < int(done.stdout) <= 200
