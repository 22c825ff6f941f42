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

from .console import print_json, stderr_console, stdout_console, store_option

if TYPE_CHECKING:
    from ..training import DistillConfig, DistillResult

_SHOWN = ("loss", "kd", "ce", "agreement", "eval_loss", "eval_kd", "eval_agreement")


@click.command("distill")
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False), metavar="CONFIG")
@click.option("-o", "--output", metavar="DIR", help="The run's folder, instead of the configuration's `output`.")
@click.option("--steps", type=int, metavar="N", help="Optimiser steps, instead of `training.max_steps`.")
@store_option
@click.option("--check", is_flag=True, help="Check the configuration, and do nothing else.")
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

    def change(values: dict[str, Any]) -> None:
        if options["output"] is not None:
            values["output"] = options["output"]
        if options["steps"] is not None:
            training = values.setdefault("training", {})
            if isinstance(training, dict):
                training["max_steps"] = options["steps"]

    made = read_config(config, change)
    if options["check"]:
        from ..training.config import check_config

        check_config(made)
        if options["as_json"]:
            print_json({"config": str(config), "in_order": True})
        else:
            click.echo(f"{config} is in order: {made.sentence}.")
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
        _render(result, made.sentence)


def _run(config: DistillConfig, store: Path | None, *, quiet: bool) -> DistillResult:
    # Switched off for short commands; a run of days needs it.
    gc.enable()
    if quiet:
        import warnings

        from ..errors import XTokenWarning

        warnings.simplefilter("ignore", XTokenWarning)
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
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=stderr_console()) as bar:
        task = bar.add_task("", total=None)

        def report(step: int, steps: int, found: Mapping[str, float]) -> None:
            bar.update(task, completed=step, total=steps)
            if found:
                bar.update(task, description=_figures(found))

        yield lambda text: bar.update(task, description=text), report


def _line(step: int, steps: int, found: Mapping[str, float]) -> None:
    if found:
        click.echo(f"step {step}/{steps}  {_figures(found)}", err=True)


def _figures(found: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {found[name]:.4g}" for name in _SHOWN if name in found)


def _render(result: DistillResult, sentence: str) -> None:
    """Prints who learnt from whom, the teachers, the metrics before and after, and where the student is."""
    from rich import box
    from rich.table import Table

    console = stdout_console()
    click.echo(f"{sentence[0].upper()}{sentence[1:]}\n")
    teachers = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in ("teacher", "loss", "mapping", "weight"):
        teachers.add_column(name, no_wrap=True)
    for teacher in result.teachers:
        teachers.add_row(teacher["name"], teacher["loss"], teacher["mapping"], f"{teacher['weight']:g}")
    console.print(teachers)
    console.print()
    metrics = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    columns = {"before": result.before, "after": result.after, "in training": result.training}
    metrics.add_column("metric", no_wrap=True)
    for name in columns:
        metrics.add_column(name, justify="right", no_wrap=True)
    for metric in dict.fromkeys([*result.before, *result.after, *result.training]):
        metrics.add_row(metric, *(_number(column.get(metric)) for column in columns.values()))
    console.print(metrics)
    click.echo(
        f"\n{result.steps:,} steps on {result.rows:,} rows, measured on {result.held_out:,} held-out rows, "
        f"{result.seconds:.1f} s{f', resumed at step {result.resumed:,}' if result.resumed else ''}"
    )
    click.echo(f"Written to {result.student}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
