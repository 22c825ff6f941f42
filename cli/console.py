"""Where commands print, and what the shell offers for an argument."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from rich.console import Console


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


def stdout_console() -> Console:
    """A console for data: no markup or highlighting, since tokens are printed as they are; 100 columns in a pipe."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 100)


@contextmanager
def steps(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yields a function that says what is being done, shown while it lasts where stderr is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False)
    with console.status("") as status:
        yield status.update


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
