"""`xtoken-align list`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import print_json, print_table, store_option, tell

if TYPE_CHECKING:
    from ..store.store import Entry


@click.command("list")
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def command(store: Path | None, as_json: bool) -> None:
    """List the mappings in the store and those that ship with the package, oldest version first.

    \b
    Examples:
      xtoken-align list
      xtoken-align list --store ./mappings --json
    """
    from ..store.store import Store, entries

    kept = Store(store)
    found = entries(kept)
    if as_json:
        print_json([entry.to_dict() for entry in found])
    elif found:
        _render(found)
    else:
        tell(f"No mappings in {kept.root}: make one with `xtoken-align build TEACHER STUDENT`.", err=True)


def _render(found: list[Entry]) -> None:
    from time import time

    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in ("name", "version", "size", "age", "made"):
        table.add_column(column, justify="right" if column in ("size", "age") else "left", no_wrap=True)
    now = time()
    for entry in found:
        made = "damaged" if entry.problem is not None else entry.provenance or ""
        table.add_row(
            entry.name,
            entry.version,
            f"{entry.bytes / 1e6:.1f} MB",
            age(now - entry.modified),
            f"{made}, shipped" if entry.shipped else made,
        )
    print_table(table)


def age(seconds: float) -> str:
    """A time span in its largest unit.

    >>> [age(seconds) for seconds in (3, 120, 7200, 200000)]
    ['3 s', '2 min', '2 h', '2 days']
    """
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(max(seconds, 0))} s"
