"""`xtoken-align inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import print_json, stdout_console, visible

if TYPE_CHECKING:
    from ..mapping.mapping import Mapping
    from ..mapping.rows import Unmatched


@click.command("inspect")
@click.argument("mapping")
@click.option("--unmatched", is_flag=True, help="List the tokens that are neither exact nor near, numerals first.")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="List at most N tokens.")
@click.option("--store", type=click.Path(path_type=Path), metavar="DIR", help="The store's folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(mapping: str, unmatched: bool, limit: int | None, store: Path | None, as_json: bool) -> None:  # noqa: FBT001
    """Report what a MAPPING covers, class by class and rule by rule, what stays empty and which loss suits it.

    \b
    Examples:
      xtoken-align inspect llama-3--qwen3
      xtoken-align inspect llama-3--qwen3 --unmatched --limit 20
      xtoken-align inspect mapping.npz --json
    """
    from ..store.load import load

    loaded = load(mapping, store=store)
    listed = loaded.unmatched(limit=limit) if unmatched else None
    if as_json:
        report = loaded.to_dict()
        if listed is not None:
            report["unmatched"] = [entry.to_dict() for entry in listed]
        print_json(report)
        return
    _render(loaded, listed)


def _render(mapping: Mapping, listed: list[Unmatched] | None) -> None:
    console = stdout_console()
    if listed is not None:
        for entry in listed:
            console.print(f"{entry.id:>7}  {visible(entry.surface)}  {entry.reason}", soft_wrap=True)
        return
    from ..coverage.render import coverage_table, rules_table, summary

    coverage, bins = mapping.coverage(), mapping.bin_sizes
    student, teacher = mapping.student, mapping.teacher
    console.print(
        f"{teacher.name} -> {student.name}: version {mapping.version}, {mapping.provenance}, "
        f"W is {student.sizes.logits:,} x {teacher.sizes.logits:,} with {len(mapping.matrix.data):,} links\n",
        soft_wrap=True,
    )
    console.print(coverage_table(coverage))
    console.print()
    console.print(rules_table(coverage))
    console.print()
    console.print(
        f"Bins: {bins.count:,}; the largest holds {bins.largest_student:,} student tokens, "
        f"the largest on the teacher's side {bins.largest_teacher:,}.",
        soft_wrap=True,
    )
    console.print(summary(coverage), soft_wrap=True)
