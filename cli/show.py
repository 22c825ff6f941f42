"""`xtoken-align show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import mappings, print_json, store_option, visible

if TYPE_CHECKING:
    from ..mapping.find import Row


@click.command("show")
@click.argument("mapping", shell_complete=mappings)
@click.argument("tokens", nargs=-1, metavar="[TOKEN]...")
@click.option("--id", "ids", type=int, multiple=True, metavar="N", help="A student id; may be given several times.")
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def command(mapping: str, tokens: tuple[str, ...], ids: tuple[int, ...], store: Path | None, as_json: bool) -> None:
    """Show the rows of student tokens: the rule that made each, the teacher's pieces and their weights.

    A TOKEN is a surface (the text it stands for), else the string its file writes for it.

    \b
    Examples:
      xtoken-align show llama-3--qwen3 201 ' the' --id 128009
      xtoken-align show mapping.npz '<0x38>' --json
    """
    if not tokens and not ids:
        raise click.UsageError("name a TOKEN, or an id with --id.")
    from ..store.load import load

    loaded = load(mapping, store=store)
    rows = [row for token in tokens for row in loaded.rows(token)]
    rows += [loaded.row(token_id) for token_id in ids]
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    for row in rows:
        click.echo("\n".join(_lines(row)))


def _lines(row: Row) -> list[str]:
    head = f"{row.id}  {visible(row.surface)}  {row.kind}"
    if not row.links:
        return [f"{head}  empty: {row.reason}"]
    lines = [f"{head}  {row.rule}{', lossy' if row.lossy else ''}"]
    for link in row.links:
        reverse = "  reverse" if link.rule == "reverse" != row.rule else ""
        lines.append(f"    {link.weight:.4f}  {link.teacher_id:>7}  {visible(link.surface)}{reverse}")
    return lines
