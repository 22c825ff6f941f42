"""`xtoken-align gc`."""

from __future__ import annotations

from pathlib import Path

import click

from .console import counted, print_json, store_option


@click.command("gc")
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="Versions of each mapping that stay.",
)
@store_option
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print the removed files as JSON.")
def command(keep: int, store: Path | None, dry_run: bool, as_json: bool) -> None:
    """Remove all but the newest versions of every mapping in the store; those that ship with the package stay.

    \b
    Examples:
      xtoken-align gc --dry-run
      xtoken-align gc --keep 3
    """
    from ..store.store import Store, collect

    gone = [str(path) for path in collect(Store(store), keep=keep, dry_run=dry_run)]
    if as_json:
        print_json({"removed": gone, "dry_run": dry_run})
        return
    for path in gone:
        click.echo(path)
    click.echo(f"{counted(len(gone), 'file')} {'would go' if dry_run else 'removed'}.", err=True)
