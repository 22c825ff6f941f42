"""`xtoken-align diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import direction, mappings, print_json, print_table, store_option, tell, visible

if TYPE_CHECKING:
    from ..compare.diff import Diff

_NUMERALS = ("digits_1", "digits_2", "digits_3", "digits_4plus")
_SHOWN_PIECES = 6


@click.command("diff")
@click.argument("old", shell_complete=mappings)
@click.argument("new", shell_complete=mappings)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    metavar="N",
    help="List at most N tokens of each kind of change.",
)
@click.option("--exit-code", is_flag=True, help="Exit with 1 where the mappings differ.")
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.pass_context
def command(
    ctx: click.Context, old: str, new: str, limit: int, exit_code: bool, store: Path | None, as_json: bool
) -> None:
    """Compare two mappings by what their tokens say, not by their ids: what would change a training run comes first.

    \b
    Examples:
      xtoken-align diff llama-3--qwen3 llama-3--qwen3.6
      xtoken-align diff old.npz new.npz --exit-code --json
    """
    from ..compare.diff import diff
    from ..store.load import load

    found = diff(load(old, store=store), load(new, store=store))
    if as_json:
        print_json(found.to_dict(limit=limit))
    else:
        _render(found, limit)
    if exit_code and found.differs:
        ctx.exit(1)


def _render(found: Diff, limit: int) -> None:
    if not found.differs:
        known = (
            "no training run could tell them apart" if not found.unknown else "nothing that is known of both differs"
        )
        tell(f"{found.old} and {found.new}: {known}.")
        return
    for when, mapping in (("Before", found.comparison.old), ("Now", found.comparison.new)):
        tell(f"{when}: {direction(mapping.student.name, mapping.teacher.name)}, version {mapping.version}.")
    click.echo()
    for line in _headline(found):
        tell(line)
    if found.classes:
        click.echo()
        print_table(_class_table(found))
    changes = found.changes(limit=limit)
    for title, entries in _listed(changes):
        click.echo(f"\n{title}")
        for entry in entries:
            click.echo(f"  {entry}")


def _headline(found: Diff) -> list[str]:
    """What a training run would notice, most important first."""
    rows, lines = found.rows, []
    for what, (before, after) in (("Recommended loss", found.recommendation), ("Paper's rule", found.paper_rule)):
        if before != after:
            lines.append(f"{what}: {before} before, {after} now.")
    numerals = [name for name in _NUMERALS if name in found.classes]
    for name in numerals:
        was, now = found.classes[name]
        lines.append(
            f"Numerals {name}: {was.exact:,} of {was.total:,} exact before, {now.exact:,} of {now.total:,} now."
        )
    lines.append(
        f"Rows: {rows.rule:,} by another rule, {rows.weights:,} with other weights, {rows.added:,} new, "
        f"{rows.removed:,} gone, {rows.same:,} the same; L1 distance {found.l1:,.1f} in all."
    )
    for side, change in (("Student", found.student), ("Teacher", found.teacher)):
        counts = ((change.added, "added"), (change.removed, "removed"), (change.moved, "moved"),
                  (change.repurposed, "ids repurposed"), (change.renamed, "renamed"))  # fmt: skip
        told = ", ".join(f"{count:,} {word}" for count, word in counts if count)
        lines.append(f"{side} tokens: {told or 'unchanged'}.")
    lines += [f"{side.capitalize()} otherwise: {'; '.join(words)}." for side, words in found.otherwise.items()]
    if found.provenance[0] != found.provenance[1]:
        lines.append(f"W was {found.provenance[0]} before and is {found.provenance[1]} now.")
    lines += [f"Option {name}: {was!r} before, {now!r} now." for name, (was, now) in found.options.items()]
    return lines


def _class_table(found: Diff) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("class", no_wrap=True)
    for way in ("exact", "near", "split", "empty"):
        table.add_column(way, justify="right", no_wrap=True)
    for name, (before, after) in found.classes.items():
        table.add_row(
            name, *(_change(getattr(before, way), getattr(after, way)) for way in ("exact", "near", "split", "empty"))
        )
    return table


def _change(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def _listed(changes: dict[str, Any]) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for rule in ("rule", "weights"):
        title = {"rule": "Rows by another rule", "weights": "Rows with other weights"}[rule]
        found.append((f"{title}, the largest changes first:", [_row(entry) for entry in changes["rows"][rule]]))
    for key, title in (("added", "Rows that are new"), ("removed", "Rows that are gone")):
        found.append((f"{title}:", [_token(entry) for entry in changes["rows"][key]]))
    for side in ("student", "teacher"):
        for key, entries in changes[side].items():
            found.append((f"{side.capitalize()} tokens {key}:", [_token(entry) for entry in entries]))
    return [(title, entries) for title, entries in found if entries]


def _row(entry: dict[str, Any]) -> str:
    was, now = (_pieces(entry[when]) for when in ("before", "after"))
    rules = " -> ".join(dict.fromkeys(entry["rule"]))
    return f"{entry['id']:>7}  {_surface(entry['surface'])}  {rules}, L1 {entry['l1']:.3f}: {was} -> {now}"


def _pieces(links: list[dict[str, Any]]) -> str:
    """The first pieces of a row; those of other programs' builders may have dozens."""
    shown = "+".join(_surface(link["surface"]) for link in links[:_SHOWN_PIECES])
    return shown if len(links) <= _SHOWN_PIECES else f"{shown}+{len(links) - _SHOWN_PIECES} more"


def _token(entry: dict[str, Any]) -> str:
    if "before" in entry:
        return f"{entry['id']:>7}  {_surface(entry['before'])} -> {_surface(entry['after'])}"
    moved = f" -> {entry['to']}" if "to" in entry else ""
    return f"{entry['id']:>7}{moved}  {_surface(entry['surface'])}"


def _surface(surface: Any) -> str:
    return visible(surface.encode() if isinstance(surface, str) else bytes.fromhex(surface["hex"]))
