"""What `align` prints: the drawing, the statistics, or JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table
from rich.text import Text

from ..coverage.render import percent
from .align_cells import Side, cells, chunks_as_json, count_cells
from .align_rows import Drawing
from .align_tokens import Pen
from .console import stdout_console

if TYPE_CHECKING:
    from ..spans.spans import SpanStatistics

Sides = tuple[Side, Side]

_SORTS = (
    ("1 to 1", "one_to_one"),
    ("1 to n", "one_to_many"),
    ("n to 1", "many_to_one"),
    ("n to m", "many_to_many"),
)
"""A chunk's student tokens to its teacher tokens, and its share in the statistics."""


def draw(sides: Sides, found: SpanStatistics, *, limit: int | None) -> None:
    """Prints the two tokenisations one over the other, and how many chunks of which sort there are.

    Args:
        sides: student and teacher.
        found: the statistics of the whole text.
        limit: chunks and gaps that are drawn, None for all.
    """
    console = stdout_console()
    # Outside a terminal too, a width that was set is meant.
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and int(columns) else console.width
    click.echo(f"{_names(sides)}: {_summary(found)}")
    drawing = Drawing(*sides, Pen(sys.stdout.encoding or "utf-8"), width)
    plain = console.no_color or console.color_system is None
    for line in drawing.lines(islice(cells(*sides), limit)):
        # Drawing colours takes most of the time, and there are none in a pipe.
        if plain:
            click.echo("".join(text for text, _ in line))
        else:
            console.print(Text.assemble(*line), soft_wrap=True)
    total = count_cells(*sides)
    if limit is not None and total > limit:
        click.echo(f"Note: {limit:,} of {total:,} chunks and gaps are shown: --all shows all.", err=True)


def print_statistics(sides: Sides, found: SpanStatistics) -> None:
    """Prints the sorts of chunks and the tokens of both sides as tables."""
    click.echo(f"{_names(sides)}\n")
    chunks = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), show_footer=True)
    chunks.add_column("student tokens to teacher tokens", "all", no_wrap=True)
    chunks.add_column("chunks", f"{found.chunks:,}", justify="right", no_wrap=True)
    chunks.add_column("%", percent(found.chunks, found.chunks), justify="right", no_wrap=True)
    for name, count in _counts(found).items():
        chunks.add_row(name, f"{count:,}", percent(count, found.chunks))
    console = stdout_console()
    console.print(chunks)
    for line in _token_lines(found):
        click.echo(line)


def print_report(sides: Sides, found: SpanStatistics, *, stats_only: bool) -> None:
    """Prints JSON with a line for each chunk; a text has very many."""
    names = ("student", "teacher")
    head: dict[str, Any] = {"schema": 1}
    for name, side in zip(names, sides, strict=True):
        ids = {} if stats_only else {"ids": side.ids.tolist()}
        head[name] = {"name": side.vocab.name, "fingerprint": side.vocab.fingerprint, **ids}
    head["stats"] = found.to_dict()
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    if not stats_only:
        gaps = {name: side.gaps() for name, side in zip(names, sides, strict=True)}
        lines += [f'  "chunks": [{",".join(_chunk_lines(sides))}]', f'  "gaps": {json.dumps(gaps)}']
    click.echo("{\n" + ",\n".join(lines) + "\n}")


def _chunk_lines(sides: Sides) -> Iterator[str]:
    return (f"\n    {json.dumps(chunk)}" for chunk in chunks_as_json(*sides))


def _names(sides: Sides) -> str:
    student, teacher = sides
    return f"{teacher.vocab.name} -> {student.vocab.name}"


def _counts(found: SpanStatistics) -> dict[str, int]:
    return {name: round(getattr(found, share) * found.chunks) for name, share in _SORTS}


def _summary(found: SpanStatistics) -> str:
    sorts = ", ".join(f"{count:,} {name}" for name, count in _counts(found).items() if count)
    gaps = f"; in no chunk: {_gaps(found)}" if found.student_gaps or found.teacher_gaps else ""
    return f"{found.chunks:,} chunks{f' ({sorts})' if sorts else ''}{gaps}"


def _token_lines(found: SpanStatistics) -> list[str]:
    return [
        "",
        f"Tokens: student {found.student_tokens:,}, teacher {found.teacher_tokens:,}.",
        f"In no chunk: {_gaps(found)}.",
        f"The longest chunk has {found.longest:,} tokens on one side.",
    ]


def _gaps(found: SpanStatistics) -> str:
    return f"student {found.student_gaps:,}, teacher {found.teacher_gaps:,}"
