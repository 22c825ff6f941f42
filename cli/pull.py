"""`xtoken-align pull`."""

from __future__ import annotations

from typing import Any

import click

from .console import check_place, direction, place_options, print_json, steps, tell, write_mapping


@click.command("pull")
@click.argument("repository", metavar="USER/REPO[@REVISION]")
@place_options()
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
    from ..errors import OptionError
    from ..store.load import is_repository, load

    check_place(options)
    if not is_repository(repository.partition("@")[0]):
        raise OptionError(f"{repository!r} is not a Hub id: expected user/repo or user/repo@revision, without -- or ..")
    with steps(quiet=options["quiet"] or options["as_json"]) as say:
        say(f"fetching {repository}")
        mapping = load(f"hf://{repository}")
    path = write_mapping(mapping, options)
    if options["quiet"]:
        click.echo(path)
    elif options["as_json"]:
        print_json({**mapping.to_dict(), "repository": repository, "path": str(path)})
    else:
        tell(f"{direction(mapping.student.name, mapping.teacher.name)}, version {mapping.version}.")
        tell(f"Written to {path}")
