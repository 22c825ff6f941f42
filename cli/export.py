"""`xtoken-align export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import check_output, direction, mappings, print_json, steps, store_option, tell

if TYPE_CHECKING:
    from ..mapping.formats import Exported
    from ..mapping.mapping import Mapping

# As in `xtoken_align.mapping.formats`, which takes numpy to import; a test compares the two.
FORMATS = ("nemo-rl", "safetensors", "torch", "json", "parquet", "tli", "d2t", "token-map")


@click.command("export")
@click.argument("mapping", shell_complete=mappings)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(FORMATS),
    metavar="FORMAT",
    required=True,
    help="What to write: one of the above.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", required=True, help="The file to write."
)
@click.option(
    "--layout",
    type=click.Choice(["csr", "coo"]),
    default="csr",
    show_default=True,
    help="Of torch: the layout of the sparse tensor.",
)
@click.option("--top-k", type=int, metavar="N", help="Of nemo-rl: keep each row's N heaviest links. [default: all]")
@store_option
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the file's path alone.")
def command(mapping: str, format_name: Any, output: Path, **options: Any) -> None:
    """Write a MAPPING for another program.

    \b
      nemo-rl      NeMo-RL's projection matrix (.pt)
      torch        W as one sparse tensor (.pt)
      safetensors  W as CSR arrays, with positions, rules and metadata
      json         the rows with surfaces and rules, one to a line
      parquet      a row for each link, with surfaces and rules

    For speculative decoding, the student drafts and the teacher is the target; only tokens that both have are in it:

    \b
      tli          ids of common tokens, absolute, -1 for none (safetensors)
      d2t          d2t as offsets, and t2d, for EAGLE-3 (safetensors)
      token-map    absolute ids, for SGLang's --speculative-token-map (.pt)

    \b
    Examples:
      xtoken-align export llama-3--qwen3 --format nemo-rl -o projection.pt
      xtoken-align export mapping.npz --format parquet -o links.parquet
      xtoken-align export llama-3--qwen3 --format d2t -o maps.safetensors
    """
    from ..errors import StoreError
    from ..store.load import load

    check_output(output)
    if output.exists() and not options["force"]:
        raise StoreError(f"{output} exists: give --force to replace it, or another file after -o")
    loaded = load(mapping, store=options["store"])
    with steps(quiet=options["quiet"] or options["as_json"]) as say:
        say(f"writing {format_name}")
        written = loaded.export(
            output,
            format=format_name,
            layout=options["layout"],
            top_k=options["top_k"],
            overwrite=options["force"],
        )
    if options["quiet"]:
        click.echo(output)
    elif options["as_json"]:
        print_json(written.to_dict())
    else:
        _render(written, loaded)


def _render(written: Exported, mapping: Mapping) -> None:
    from ..mapping.formats import FORMATS as ABOUT

    tell(f"{direction(mapping.student.name, mapping.teacher.name)}, version {written.version}.")
    tell(f"{written.format}: {ABOUT[written.format].about}\n")
    width = max(map(len, written.holds))
    for name, what in written.holds.items():
        click.echo(f"  {name:<{width}}  {what}")
    click.echo()
    for note in written.notes:
        tell(note)
    size = f"{written.bytes / 1e6:.1f} MB" if written.bytes >= 1e5 else f"{written.bytes / 1e3:.1f} kB"
    tell(f"Written to {written.path}, {size}")
