"""`xtoken-align pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .console import check_place, direction, output_option, print_json, steps, store_option


@click.command("pull")
@click.argument("repository", metavar="USER/REPO[@REVISION]")
@output_option
@store_option
@click.option("--name", help="The mapping's name in the store. [default: STUDENT--TEACHER]")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the mapping's path alone.")
def command(repository: str, **options: Any) -> None:
    """Take the mapping of USER/REPO from the Hub, check it, and keep it in the store.

    A revision is a branch, a tag or a commit. What was fetched once is taken from the cache when the Hub cannot be
    reached. Other commands take USER/REPO[@REVISION] as well, and keep nothing.

    \b
    Examples:
      xtoken-align pull user/llama-3-from-qwen3
      xtoken-align pull user/llama-3-from-qwen3@v1 -o mapping.npz
    """
    from ..errors import OptionError, StoreError
    from ..store.load import is_repository, load
    from ..store.store import Store

    check_place(options)
    output: Path | None = options["output"]
    if not is_repository(repository.partition("@")[0]):
        raise OptionError(f"{repository!r} is not a Hub id: expected user/repo or user/repo@revision, without -- or ..")
    if output is not None and output.exists() and not options["force"]:
        raise StoreError(f"{output} exists: give --force to replace it, or another file after -o")
    with steps(quiet=options["quiet"] or options["as_json"]) as say:
        say(f"fetching {repository}")
        mapping = load(f"hf://{repository}")
    if output is not None:
        path = mapping.save(output, overwrite=options["force"])
    else:
        path = Store(options["store"]).save(mapping, name=options["name"], force=options["force"])
    if options["quiet"]:
        click.echo(path)
    elif options["as_json"]:
        print_json({**mapping.to_dict(), "repository": repository, "path": str(path)})
    else:
        click.echo(f"{direction(mapping.student.name, mapping.teacher.name)}, version {mapping.version}.")
        click.echo(f"Written to {path}")
