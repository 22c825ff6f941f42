"""`xtoken-align distill`."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..visible import printable
from .console import ignore_notes, print_json, print_table, run_bar, store_option, tell

if TYPE_CHECKING:
    from rich.table import Table

    from ..training import DistillConfig, DistillResult
    from ..training.rows import LabelledRow

_SHOWN = {
    "loss": "loss",
    "bits_per_byte": "bits/byte",
    "kd": "kd",
    "agreement": "agreement",
    "eval_loss": "held-out loss",
    "eval_bits_per_byte": "held-out bits/byte",
}
"""A logged number -> what it is called while a run goes on."""


@click.command("distill")
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False), metavar="CONFIG")
@click.option("-o", "--output", metavar="DIR", help="The run's folder, instead of the configuration's `output`.")
@click.option("--steps", type=int, metavar="N", help="Optimiser steps, instead of `training.max_steps`.")
@store_option
@click.option("--check", is_flag=True, help="Check the configuration, and do nothing else.")
@click.option(
    "--show",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --check, show the first N rows as the student is trained on them, labels marked.",
)
@click.option("-v", "--verbose", is_flag=True, help="Print every metric, not only the result.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "-q", "--quiet", is_flag=True, help="No progress; print the student's folder alone, or with --json the result."
)
def command(config: Path, **options: Any) -> None:
    """Distil a student from one or more teachers, as a YAML file says.

    Reads texts, finds or builds the mappings, trains, and writes the student with its tokenizer. A run that was cut
    off, by Ctrl-C or worse, goes on from its last checkpoint when the same command is given again, and ends with the
    same student.

    \b
    Examples:
      xtoken-align distill run.yaml --check --show 3
      xtoken-align distill run.yaml
      torchrun --nproc-per-node 4 --no-python xtoken-align distill run.yaml

    \b
    The least that the file says:
      student: {model: ./my-student}
      teachers: [{model: Qwen/Qwen3-4B}]
      texts: [corpus.jsonl]
      output: ./run
    """
    from ..training import read_config

    if options["show"] is not None and not options["check"]:
        raise click.UsageError("--show says what a run would train on: give it with --check.")

    def change(values: dict[str, Any]) -> None:
        if options["output"] is not None:
            values["output"] = options["output"]
        if options["steps"] is not None:
            training = values.setdefault("training", {})
            if isinstance(training, dict):
                training["max_steps"] = options["steps"]

    made = read_config(config, change, files=True)
    if options["check"]:
        _check(made, config, options["show"], as_json=options["as_json"])
        return
    # Of the processes that torchrun starts, one speaks.
    speaks = os.environ.get("RANK", "0") == "0"
    result = _run(made, options["store"], quiet=options["quiet"] or not speaks)
    if not speaks:
        return
    if options["as_json"]:
        print_json(result.to_dict())
    elif options["quiet"]:
        click.echo(result.student)
    else:
        _render(result, made.sentence, verbose=options["verbose"])


def _run(config: DistillConfig, store: Path | None, *, quiet: bool) -> DistillResult:
    # Switched off for short commands; a run of days needs it.
    gc.enable()
    if quiet:
        ignore_notes()
    from ..training import distill

    try:
        with _progress(quiet=quiet) as (say, report):
            return distill(config, store=store, say=say, report=report)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from the last checkpoint, or from the beginning.") from None


Say = Callable[[str], object]
Report = Callable[[int, int, Mapping[str, float]], object]


@contextmanager
def _progress(*, quiet: bool) -> Iterator[tuple[Say, Report]]:
    """How a run goes: a bar where stderr is a terminal, else a line now and then."""
    if quiet:
        yield lambda _: None, lambda *_: None
        return
    if not sys.stderr.isatty():
        yield lambda text: click.echo(text, err=True), _line
        return
    with run_bar() as update:

        def report(step: int, steps: int, found: Mapping[str, float]) -> None:
            update(completed=step, total=steps)
            if found:
                update(description=_figures(found))

        yield lambda text: update(description=text), report


def _line(step: int, steps: int, found: Mapping[str, float]) -> None:
    if found:
        click.echo(f"step {step}/{steps}  {_figures(found)}", err=True)


def _figures(found: Mapping[str, float]) -> str:
    return "  ".join(f"{said} {found[name]:.4g}" for name, said in _SHOWN.items() if name in found)


def _check(config: DistillConfig, path: Path, show: int | None, *, as_json: bool) -> None:
    """Says that a configuration is in order, and shows rows if it should."""
    rows = []
    if show is not None:
        from ..training.rows import labelled_rows

        rows = labelled_rows(config, show)
    if as_json:
        shown = {"rows": [row.to_dict() for row in rows]} if show is not None else {}
        print_json({"config": str(path), "in_order": True, **shown})
        return
    tell(f"{path} is in order: {config.sentence}.")
    for number, row in enumerate(rows, start=1):
        _render_row(number, row)


def _render_row(number: int, row: LabelledRow) -> None:
    """Prints a row's text part by part, those that are labels with a mark before them."""
    from rich.table import Table
    from rich.text import Text

    cut = f", {row.cut:,} more are cut off" if row.cut else ""
    tell(f"\nRow {number}: {row.tokens:,} student tokens{cut}; {row.labels:,} are labels, marked with >")
    table = Table.grid(padding=(0, 1, 0, 0))
    for name in ("mark", "message", "field"):
        table.add_column(name, no_wrap=True)
    table.add_column("text", overflow="fold")
    for part in row.parts:
        message = "" if part.message is None else f"{part.message} {part.role}"
        # A line of its own for every line of the text: a long answer stays readable.
        lines = printable(part.surface.decode("utf-8", "replace")).split("\n")
        text = Text("\u21b5\n".join(lines).removesuffix("\n"), style="bold" if part.labelled else "")
        table.add_row(">" if part.labelled else "", message, part.field, text)
    print_table(table)


def _render(result: DistillResult, sentence: str, *, verbose: bool) -> None:
    """Prints who learnt from whom, what came of it, where the student is, and how to load it."""
    from rich import box
    from rich.table import Table

    tell(f"{sentence[0].upper()}{sentence[1:]}.\n")
    tell(f"{result.headline[0].upper()}{result.headline[1:]}\n")
    teachers = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("teacher", "loss", "mapping", "weight"):
        teachers.add_column(name, no_wrap=name != "teacher", overflow="fold")
    for teacher in result.teachers:
        teachers.add_row(teacher["name"], teacher["loss"], teacher["mapping"], f"{teacher['weight']:g}")
    print_table(teachers)
    if verbose:
        click.echo()
        print_table(_metrics(result))
    click.echo()
    for line in _facts(result):
        tell(line)
    tell(f"Written to {result.student}. To load it:")
    click.echo(f'  AutoModelForCausalLM.from_pretrained("{result.student}")')
    click.echo(f'  AutoTokenizer.from_pretrained("{result.student}")')


def _facts(result: DistillResult) -> Iterator[str]:
    resumed = f", resumed at step {result.resumed:,}" if result.resumed else ""
    yield f"{result.steps:,} steps on {result.rows:,} rows, measured on {result.held_out:,} held-out rows{resumed}"
    speed = "" if result.tokens_per_second is None else f", {result.tokens_per_second:,.0f} tokens/s in training"
    memory = "" if result.peak_memory is None else f", peak memory {result.peak_memory / 1e9:.1f} GB"
    yield f"{result.seconds:,.1f} s{speed}{memory}"
    lost = [f"{100 * share:.1f}% of the {side}'s tokens" for side, share in result.cut.items() if share]
    if lost:
        yield f"Rows are too long: {' and '.join(lost)} are cut off (max_student_tokens, max_teacher_tokens)"


def _metrics(result: DistillResult) -> Table:
    from rich import box
    from rich.table import Table

    metrics = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    columns = {"before": result.before, "after": result.after, "in training": result.training}
    metrics.add_column("metric", no_wrap=True)
    for name in columns:
        metrics.add_column(name, justify="right", no_wrap=True)
    for metric in dict.fromkeys([*result.before, *result.after, *result.training]):
        metrics.add_row(metric, *(_number(column.get(metric)) for column in columns.values()))
    return metrics


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
