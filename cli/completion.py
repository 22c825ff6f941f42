"""What the shell offers for an argument: aliases of tokenizers, names in the store, and files where neither fits."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


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
