"""`xtoken-align verify`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from .console import mappings as complete_mappings
from .console import print_json, progress_bar, store_option, tell

_MANY = 50
"""From so many mappings on, processes of their own save more time (60 ms a mapping) than they take to start."""

_AT_ONCE = 8
"""How many mappings a process is given at a time."""


@click.command("verify")
@click.argument("mappings", nargs=-1, metavar="[MAPPING]...", shell_complete=complete_mappings)
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.pass_context
def command(ctx: click.Context, mappings: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Check mapping files from end to end: form, bounds, row sums, hash and counts. Without names, the whole store.

    \b
    Examples:
      xtoken-align verify
      xtoken-align verify llama-3--qwen3
      xtoken-align verify a.npz b.npz --json
    """
    if not mappings:
        from ..store.store import Store

        kept = Store(store)
        mappings = tuple(str(path) for name in sorted(kept.names()) for path in kept.versions(name))
        if not mappings and not as_json:
            click.echo("No mappings in the store.", err=True)
    results = []
    for result in _checked(mappings, store):
        results.append(result)
        if as_json:
            continue
        if result["ok"]:
            click.echo(f"{result['mapping']}: whole, version {result['version']}")
        else:
            # The problems of a file begin with its path already, and what is no mapping is named too.
            named = result["mapping"] in result["problem"]
            tell(result["problem"] if named else f"{result['mapping']}: {result['problem']}", err=True)
    if as_json:
        print_json(results)
    if not all(result["ok"] for result in results):
        ctx.exit(1)


def _checked(mappings: tuple[str, ...], store: Path | None) -> Iterator[dict[str, Any]]:
    """The results in order, each as soon as it is known; many mappings are shared out among the processors."""
    check = partial(_check, store=store)
    if len(mappings) < _MANY:
        yield from map(check, mappings)
        return
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor() as pool:
        results = pool.map(check, mappings, chunksize=_AT_ONCE)
        with progress_bar("Checking", len(mappings)) as advance:
            for result in results:
                yield result
                advance()


def _check(name: str, store: Path | None) -> dict[str, Any]:
    from ..errors import XTokenError
    from ..store.load import verify

    try:
        return {"mapping": name, "ok": True, "version": verify(name, store=store).version}
    except XTokenError as error:
        return {"mapping": name, "ok": False, "problem": str(error)}
