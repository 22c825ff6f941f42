"""`xtoken-align push`."""

from __future__ import annotations

from pathlib import Path

import click

from .console import direction, mappings, print_json, steps, store_option, tell


@click.command("push")
@click.argument("mapping", shell_complete=mappings)
@click.argument("repository", metavar="USER/REPO")
@click.option("--private", is_flag=True, help="Make the repository private, if it is not there yet.")
@click.option("--dry-run", is_flag=True, help="Print the card, and write nothing.")
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(mapping: str, repository: str, private: bool, dry_run: bool, store: Path | None, as_json: bool) -> None:
    """Write a MAPPING to the Hub as USER/REPO: one file, and a card with its coverage and versions.

    It is written with your own token, that of `hf auth login` or $HF_TOKEN, and never without one.

    \b
    Examples:
      xtoken-align push llama-3--qwen3 user/llama-3-from-qwen3 --dry-run
      xtoken-align push mapping.npz user/llama-3-from-qwen3 --private
    """
    from ..export.hub_repository import mapping_card, push_mapping
    from ..store.load import load

    loaded = load(mapping, store=store)
    if dry_run:
        card = mapping_card(loaded, repository)
        if as_json:
            print_json({"schema": 1, "repository": repository, "commit": None, "version": loaded.version, "card": card})
        else:
            click.echo(card, nl=False)
        return
    with steps(quiet=as_json) as say:
        say(f"writing to {repository}")
        pushed = push_mapping(loaded, repository, private=private)
    if as_json:
        print_json(pushed.to_dict())
        return
    tell(f"{direction(loaded.student.name, loaded.teacher.name)}, version {pushed.version}.")
    tell(f"Written to {repository}, commit {pushed.commit}")
    tell(f"Anyone who may read it loads it as {repository}@{pushed.commit[:40]}")
