"""`xtoken-align cache`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import counted, print_json, run_bar, tell

if TYPE_CHECKING:
    from ..training import CacheReport, DistillConfig


@click.command("cache")
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False), metavar="CONFIG")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The cache's folder. [default: cache in the run's folder]",
)
@click.option(
    "--teacher",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Which of the teachers, counted from 0.",
)
@click.option(
    "--keep",
    type=click.Choice(["top_k", "hidden"]),
    default="top_k",
    show_default=True,
    help="What is kept of each position: the best tokens, or the last hidden states, which serve every loss.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens that are kept of each position. [default: 64]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32"]),
    metavar="DTYPE",
    help="How they are kept: float16, bfloat16 or float32. [default: float16 for tokens, bfloat16 for hidden states]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Rows that the teacher reads at a time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; print the folder alone.")
def command(config: Path, output: Path | None, teacher: int, as_json: bool, quiet: bool, **options: Any) -> None:
    """Run a teacher of a `distill` configuration over its texts once, and keep what it says.

    A run then learns from the cache, without the teacher in memory. Written again after it was cut off, the cache goes
    on with the first file that is missing.

    \b
    Examples:
      xtoken-align cache run.yaml
      xtoken-align cache run.yaml --top-k 128 -o ./cache
      xtoken-align cache run.yaml --keep hidden
    """
    from ..training import cache_teacher, read_config

    made = read_config(config, files=True)
    gc.enable()
    try:
        with _progress(quiet=quiet) as (say, space, report):
            done = cache_teacher(made, output, teacher=teacher, progress=report, say=say, space=space, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on with the first file that is missing.") from None
    if as_json:
        print_json({**asdict(done), "folder": str(done.folder)})
    elif quiet:
        click.echo(done.folder)
    else:
        _render(done, made, teacher, keep=options["keep"])


@contextmanager
def _progress(
    *, quiet: bool
) -> Iterator[tuple[Callable[[str], object], Callable[[str], object], Callable[[int, int], object]]]:
    """What is being done, what space it takes, and how far it is: a bar in a terminal, else a line for each tenth."""
    if quiet:
        yield lambda _: None, lambda _: None, lambda *_: None
        return
    if not sys.stderr.isatty():
        told = [0]

        def count(done: int, rows: int) -> None:
            if 10 * done // max(rows, 1) > told[0]:
                told[0] = 10 * done // max(rows, 1)
                click.echo(f"{done:,} of {rows:,} rows", err=True)

        yield lambda text: click.echo(text, err=True), lambda text: click.echo(text, err=True), count
        return
    with run_bar() as update:
        yield (
            lambda text: update(description=text),
            # The bar keeps below what is printed.
            lambda text: click.echo(text, err=True),
            lambda done, rows: update(completed=done, total=rows),
        )


def _render(done: CacheReport, config: DistillConfig, teacher: int, *, keep: str) -> None:
    """Prints what was written, and how a configuration names it."""
    from ..training.config import tokenizer_source

    tell(
        f"{done.rows:,} rows, {done.positions:,} positions, {done.bytes / 1e6:,.1f} MB in {done.seconds:,.1f} s; "
        f"{counted(done.written, 'file')} written, {done.kept:,} were there"
    )
    each = f"A position takes {done.bytes / max(done.positions, 1):,.1f} bytes"
    if keep == "hidden":
        tell(f"{each}, and the output head {done.head_bytes / 1e6:,.1f} MB")
    else:
        left = f"{100 * done.mean_rest:.2f}% of the probability"
        tell(f"{each}; left out of the kept tokens: {left}")
    tell(f"Written to {done.folder}. In the configuration, in place of the teacher's model:")
    source = tokenizer_source(config.teachers[teacher])
    click.echo(f"  {{cache: {done.folder}, tokenizer: {source}}}")
