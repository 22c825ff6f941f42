"""`xtoken-align verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import mappings as complete_mappings
from .console import print_json


@click.command("verify")
@click.argument("mappings", nargs=-1, metavar="[MAPPING]...", shell_complete=complete_mappings)
@click.option("--store", type=click.Path(path_type=Path), metavar="DIR", help="The store's folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.pass_context
def command(ctx: click.Context, mappings: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Check mapping files from end to end: form, bounds, row sums and content hash. Without names, the whole store.

    \b
    Examples:
      xtoken-align verify
      xtoken-align verify llama-3--qwen3
      xtoken-align verify a.npz b.npz --json
    """
    if not mappings:
        from ..store.store import Store, entries

        mappings = tuple(str(entry.path) for entry in entries(Store(store)))
        if not mappings and not as_json:
            click.echo("No mappings in the store.", err=True)
    results = [_check(name, store) for name in mappings]
    if as_json:
        print_json(results)
    else:
        for result in results:
            if result["ok"]:
                click.echo(f"{result['mapping']}: whole, version {result['version']}")
            else:
                # The problems of a file begin with its path already.
                named = result["problem"].startswith(result["mapping"])
                click.echo(result["problem"] if named else f"{result['mapping']}: {result['problem']}", err=True)
    if not all(result["ok"] for result in results):
        ctx.exit(1)


def _check(name: str, store: Path | None) -> dict[str, Any]:
    from ..errors import XTokenError
    from ..store.load import load

    try:
        return {"mapping": name, "ok": True, "version": load(name, store=store).version}
    except XTokenError as error:
        return {"mapping": name, "ok": False, "problem": str(error)}
