"""The corpus part of `inspect`: reading with a progress bar, and the table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import stdout_console, visible

if TYPE_CHECKING:
    from ..corpus.weigh import CorpusCoverage
    from ..mapping.mapping import Mapping
    from ..mapping.side import Side
    from ..vocab.vocab import Vocab

_LEAST_SHARE = 0.95


def weigh_corpus(mapping: Mapping, paths: Sequence[str], options: dict[str, Any]) -> CorpusCoverage:
    """Weighs a mapping by files, with the tokenizers it was built from or those that the user names."""
    from ..corpus.texts import read_texts
    from ..corpus.weigh import weigh

    student = _tokenizer(mapping.student, "student", options["student"])
    teacher = _teacher(mapping, options["teacher"])
    with _progress(paths) as progress:
        return weigh(mapping, student, read_texts(paths, field=options["field"], progress=progress), teacher=teacher)


def _tokenizer(side: Side, role: str, source: str | None) -> Vocab:
    from ..errors import CorpusError, SourceError
    from ..read import read_vocab
    from ..sources.presets import presets
    from ..store.load import check_fits

    # The commit of an alias's file is recorded as well, but an alias names a generation and takes no revision.
    revision = None if source is not None or side.source in presets() else side.revision
    try:
        vocab = read_vocab(side.source if source is None else source, revision=revision)
    except SourceError as error:
        if source is not None:
            raise
        raise CorpusError(
            f"a corpus is weighed with the {role}'s tokenizer, and {side.source!r} is not to be had from here "
            f"({error}); name it with --{role}"
        ) from error
    check_fits(side, vocab, role)
    return vocab


def _teacher(mapping: Mapping, source: str | None) -> Vocab | None:
    """The teacher's tokenizer; without it one figure is left out, which is no reason to refuse the others."""
    from ..errors import XTokenError

    try:
        return _tokenizer(mapping.teacher, "teacher", source)
    except XTokenError as error:
        if source is not None:
            raise
        click.echo(f"Note: chunk starts are left out: {error}", err=True)
        return None


@contextmanager
def _progress(paths: Sequence[str]) -> Iterator[Callable[[int], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    # The size of stdin is not known: the bar then only pulses.
    files = [Path(path) for path in paths]
    total = sum(file.stat().st_size for file in files) if all(file.is_file() for file in files) else None
    with Progress(BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda size: bar.advance(task, size)


def render_corpus(found: CorpusCoverage) -> None:
    """Prints the shares, the classes, the most frequent tokens that are not exact, and the chunk starts."""
    from rich import box
    from rich.table import Table

    click.echo(f"\nIn {found.texts:,} texts, {found.tokens:,} tokens, {found.bytes:,} bytes:")
    if found.unspelled:
        click.echo(
            f"{found.unspelled:,} texts are not in it, or not whole: the student's vocabulary cannot spell them."
        )
    if not found.tokens:
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), show_footer=True)
    table.add_column("class", "all", no_wrap=True)
    table.add_column("tokens", f"{found.tokens:,}", justify="right", no_wrap=True)
    table.add_column("share", "100%", justify="right", no_wrap=True)
    for way, count in found.ways.items():
        table.add_column(way, _share(count, found.tokens), justify="right", no_wrap=True)
    for name, row in sorted(found.classes.items(), key=lambda item: -item[1]["tokens"]):
        shares = (_share(row[way], row["tokens"]) for way in found.ways)
        table.add_row(name, f"{row['tokens']:,}", _share(row["tokens"], found.tokens), *shares)
    stdout_console().print(table)
    bytes_by_way = ", ".join(f"{way} {_share(count, found.bytes)}" for way, count in found.way_bytes.items())
    click.echo(f"\nOf the bytes: {bytes_by_way}.")
    if found.frequent:
        click.echo("\nThe most frequent tokens that are not exact:")
        for entry in found.frequent:
            click.echo(f"  {entry.count:>10,}  {visible(entry.surface)}  {entry.reason}")
    _render_starts(found)


def _render_starts(found: CorpusCoverage) -> None:
    starts = found.starts
    if starts is None:
        return
    click.echo()
    if starts.share is not None:
        click.echo(f"Chunks whose first tokens lie in one bin: {starts.share:.2%} of {starts.chunks:,}.")
    if starts.skipped:
        click.echo(
            f"Looking for chunks, {starts.skipped:,} stretches of text were left out: the two tokenizers do not say "
            "the same bytes of them."
        )
    if starts.share is not None and starts.share < _LEAST_SHARE:
        click.echo(f"That is below {_LEAST_SHARE:.0%}: Partition-KL and C-KL would leave much of this text out.")


def _share(count: int, total: int) -> str:
    if not total or not count:
        return "-"
    # A few of many must not read as none, nor all but a few as all.
    if count < total and count / total >= 0.9995:
        return ">99.9%"
    return f"{count / total:.1%}" if count / total >= 0.001 else "<0.1%"
