"""Where commands print, the options that several have, and what the shell offers for an argument.

Names, rules, roles and messages come from files and arguments that others may have written. Whatever is printed passes
one of two places here, the process's own streams or `stdout_console` and its like, and both write control characters
out: a file cannot clear a screen or rename a window.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
from click.shell_completion import CompletionItem

from ..visible import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment
    from rich.table import Table

    from ..mapping.mapping import Mapping

Command = Callable[..., Any]


store_option = click.option(
    "--store",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The store's folder. [default: $XTOKEN_ALIGN_STORE, else the user's data folder]",
)
"""`--store` of every command that reads or writes there."""


def place_options(name: str = "STUDENT--TEACHER") -> Callable[[Command], Command]:
    """The options that say where a mapping is written; `check_place` and `write_mapping` read them.

    Args:
        name: what a mapping is called in the store where the user gives no name.
    """
    output = "Write this file instead of into the store."
    options = (
        click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help=output),
        store_option,
        click.option("--name", metavar="NAME", help=f"The mapping's name in the store. [default: {name}]"),
        click.option("--force", is_flag=True, help="Replace an existing file."),
    )

    def give(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return give


def check_place(options: dict[str, Any]) -> None:
    """Refuses a place of `place_options` that could only fail after the work was done."""
    from ..store.store import checked_name

    output: Path | None = options["output"]
    if output is not None and (options["store"] is not None or options["name"] is not None):
        raise click.UsageError("-o names the file itself: give it alone, or --store and --name.")
    if output is not None:
        check_output(output)
    if options["name"] is not None:
        checked_name(options["name"])


def check_output(output: Path) -> None:
    """Refuses a file that cannot be written where it is to be."""
    from ..errors import StoreError

    if not output.parent.is_dir():
        raise StoreError(f"cannot write {output}: there is no folder {output.parent}; make it, or choose another place")
    if output.is_dir():
        raise StoreError(f"cannot write {output}: it is a folder; name a file in it")


def write_mapping(mapping: Mapping, options: dict[str, Any], *, name: str | None = None) -> Path:
    """Writes a mapping where `place_options` say. A file that is this mapping already stays as it is.

    Args:
        mapping: the mapping.
        options: the command's options.
        name: its name in the store where the user gives none.
    """
    from ..errors import StoreError
    from ..store.store import Store, holds

    output: Path | None = options["output"]
    if output is None:
        return Store(options["store"]).save(mapping, name=options["name"] or name, force=options["force"])
    if options["force"] or not output.exists():
        return mapping.save(output, overwrite=options["force"])
    if holds(output, mapping):
        return output
    raise StoreError(f"{output} exists and is not this mapping: give --force to replace it, or another file after -o")


def ignore_notes() -> None:
    """Leaves the project's warnings unsaid, for `--quiet`."""
    import warnings

    from ..errors import XTokenWarning

    warnings.simplefilter("ignore", XTokenWarning)


def tokenizers(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Aliases that begin with what was typed, and files."""
    from ..sources.presets import presets

    return _offer(presets(), incomplete)


def mappings(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names in the store that begin with what was typed, and files."""
    from ..store.store import Store

    return _offer(Store(ctx.params.get("store")).names(), incomplete)


def _offer(names: object, incomplete: str) -> list[CompletionItem]:
    found = [CompletionItem(str(name)) for name in names if str(name).startswith(incomplete)]  # type: ignore[attr-defined]
    # The shell itself completes the paths of an item of type file.
    return found or [CompletionItem(incomplete, type="file")]


def print_json(data: Any) -> None:
    """Prints one JSON value; what UTF-8 cannot say of a terminal's encoding is escaped."""
    click.echo(json.dumps(data, ensure_ascii=True, indent=2))


class PrintableStream:
    """A text stream that writes control characters out.

    It has no `buffer`, so that nobody writes past it. A rich console, which steers the terminal, writes to `raw`.

    Args:
        raw: where the text goes.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        self.raw.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self.raw, name)


@contextmanager
def printable_streams() -> Iterator[None]:
    """Lets any text be printed anywhere: controls and what the terminal's encoding lacks are escaped.

    A closed stream swallows what is written to it.
    """
    before = sys.stdout, sys.stderr
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the life of the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, PrintableStream(stream))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _console(stream: Any, width: int | None = None) -> Console:
    """A rich console without markup or highlighting, since tokens are printed as they are."""
    from rich.console import Console

    class PrintableConsole(Console):
        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=printable(segment.text))

    file = getattr(stream, "raw", stream)
    return PrintableConsole(file=file, width=width, markup=False, highlight=False, emoji=False)


def stdout_console() -> Console:
    """A console for data; 100 columns in a pipe, unless COLUMNS says otherwise."""
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and int(columns) else 100
    return _console(sys.stdout, None if sys.stdout.isatty() else width)


def print_table(table: Table, *, narrow: Table | None = None) -> None:
    """Prints a table; never one that is cut off, since a line that the terminal breaks is still whole.

    Args:
        table: the table.
        narrow: a table that says less, for where the first does not fit.
    """
    console = stdout_console()
    measured = console.measure(table, options=console.options.update(width=1000))
    # The minimum is that of the longest words, where a cell may be broken.
    least = measured.maximum if all(column.no_wrap for column in table.columns) else measured.minimum
    if narrow is not None and console.width < least:
        print_table(narrow)
        return
    console.width = max(console.width, least)
    console.print(table)


def tell(text: str, *, err: bool = False) -> None:
    """Prints sentences, a line each; in a terminal, which breaks lines anywhere, they break between words."""
    if (sys.stderr if err else sys.stdout).isatty():
        text = "\n".join(map(_wrapped, text.split("\n")))
    click.echo(text, err=err, color=True)


def _wrapped(line: str) -> str:
    columns = shutil.get_terminal_size().columns
    if len(line) <= columns:
        return line
    indent = " " * (len(line) - len(line.lstrip(" ")))
    return textwrap.fill(line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def stderr_console() -> Console:
    """A console for progress."""
    return _console(sys.stderr)


def counted(count: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "file"), counted(2000, "file")
    ('1 file', '2,000 files')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def direction(student: str, teacher: str) -> str:
    """The sentence with which every report begins, without its full stop.

    >>> direction("llama-3", "qwen3")
    'Student llama-3 learns from teacher qwen3'
    """
    return f"Student {printable(student, one_line=True)} learns from teacher {printable(teacher, one_line=True)}"


@contextmanager
def steps(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yields a function that says what is being done, shown while it lasts where stderr is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    with stderr_console().status("") as status:
        yield status.update


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Yields a function that says that one more of `total` is done; the bar is shown where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import Progress

    # Redirected, what is printed on stdout would come out with the bar on stderr.
    with Progress(console=stderr_console(), redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def run_bar() -> Iterator[Callable[..., None]]:
    """Yields a function that says how far a long run is (`completed`, `total`) and what it does (`description`).

    It is shown as a bar. What is being done stands behind it, and takes a second line in a narrow terminal.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    what = TextColumn("{task.description}", markup=False, table_column=Column())
    with Progress(BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), what, console=stderr_console()) as bar:
        task = bar.add_task("", total=None)
        yield partial(bar.update, task)


def visible(surface: bytes) -> str:
    """A surface for a terminal: text with control characters and edge spaces made visible, else its bytes.

    >>> visible(b" the"), visible(b"\\n"), visible(bytes([0xE4, 0xB8]))
    ("' the'", "'\\\\n'", '<e4 b8>')
    """
    try:
        text = surface.decode()
    except UnicodeDecodeError:
        return f"<{surface.hex(' ')}>"
    return repr(text)
