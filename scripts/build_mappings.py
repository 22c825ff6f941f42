"""Fills mappings/ with the mappings that ship with the package, and writes its README.

    python scripts/build_mappings.py

Needs the package with the extra `demo`. Equal vocabularies give equal files, so a second run changes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from xtoken_align import Mapping, Store, build, read_vocab

ROOT = Path(__file__).parents[1] / "mappings"
PAIRS = (
    ("llama-3", "qwen3"),
    ("llama-3", "deepseek"),
    ("llama-3", "mistral-tekken"),
    ("llama-3", "o200k"),
    ("qwen3", "llama-3"),
)
"""(student, teacher), by alias."""

HEAD = """# The mappings that ship with the package

`xtoken_align.load("llama-3--qwen3")` finds them without a network. They are made by `python scripts/build_mappings.py`,
and a test builds each anew and compares content hashes. `NOTICE` says whose vocabularies they describe.

"""
COUNTS = ("rows", "exact", "near", "split", "empty", "lossy")
COLUMNS = ("mapping", "version", *COUNTS, "numerals of 2, 3 digits", "paper's rule")


def main() -> None:
    """Builds every pair, removes other versions, writes the table."""
    # A date in a file would change its bytes with every run.
    os.environ.pop("SOURCE_DATE_EPOCH", None)
    vocabularies = {name: read_vocab(name) for name in {name for pair in PAIRS for name in pair}}
    store = Store(ROOT)
    rows = []
    for student, teacher in PAIRS:
        mapping = build(student=vocabularies[student], teacher=vocabularies[teacher])
        kept = store.save(mapping)
        for other in kept.parent.glob("*.npz"):
            if other != kept:
                other.unlink()
        (kept.parent / ".lock").unlink(missing_ok=True)
        rows.append(_row(mapping, kept))
    table = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", *rows]
    (ROOT / "README.md").write_text(HEAD + "\n".join(table) + "\n", encoding="utf-8")


def _row(mapping: Mapping, file: Path) -> str:
    coverage = mapping.coverage()
    ways = {
        way: sum(getattr(row, way) for row in coverage.classes.values()) for way in ("exact", "near", "split", "empty")
    }
    numerals = [coverage.classes[f"digits_{count}"] for count in (2, 3)]
    cells = (
        f"`{file.parent.name}`",
        f"`{mapping.version}`",
        f"{mapping.student.sizes.logits:,}",
        *(f"{count:,}" for count in ways.values()),
        f"{coverage.lossy:,}",
        ", ".join(f"{row.exact:,} of {row.total:,}" for row in numerals),
        coverage.recommendation.paper_rule.loss,
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
