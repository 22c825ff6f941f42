"""How values look in a notebook: a pandas table, or a card of HTML with a title, a bar of shares and a few facts.

Names and tokens come from files that others may have written, so every text is escaped and its control characters are
written out. Styles are inline and take the notebook's own colours, since a notebook keeps no style sheet of ours.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import MissingExtraError
from .visible import printable

WAY_COLOURS = {"exact": "#0072b2", "near": "#00835f", "split": "#eaa221", "empty": "#a3abb5"}
"""How a row is mapped -> its colour in cards and plots."""

_CARD = "border:1px solid #8886;border-radius:8px;padding:.6em 1em;max-width:48em;line-height:1.5"
_NAME = "padding:0 1.2em 0 0;text-align:left;opacity:.7;white-space:nowrap"
_VALUE = "padding:0;text-align:left;overflow-wrap:anywhere"


def card(title: str, facts: Mapping[str, object], ways: Mapping[str, int] | None = None) -> str:
    """A value as HTML.

    Args:
        title: what it is, in a few words.
        facts: name -> value, one line each; whole numbers get thousands separators.
        ways: how many rows are exact, near, split and empty, drawn as one bar with a legend.

    Returns:
        One element.
    """
    rows = "".join(
        f'<tr style="background:none"><th style="{_NAME}">{_text(name)}</th>'
        f'<td style="{_VALUE}">{_text(value)}</td></tr>'
        for name, value in facts.items()
    )
    bar = "" if not ways or not sum(ways.values()) else _bar(ways)
    return f'<div style="{_CARD}"><b>{_text(title)}</b>{bar}<table style="margin:.3em 0 0">{rows}</table></div>'


def data_frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Any:
    """A pandas table.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise MissingExtraError("A table of pandas", "notebook") from error
    return DataFrame(list(rows), columns=list(columns))


def _bar(ways: Mapping[str, int]) -> str:
    total = sum(ways.values())
    parts = "".join(
        f'<span style="height:.7em;width:{100 * count / total:.3f}%;background:{WAY_COLOURS[way]}"></span>'
        for way, count in ways.items()
    )
    legend = " &nbsp; ".join(
        f'<span style="color:{WAY_COLOURS[way]}">■</span> {way} {count:,}' for way, count in ways.items()
    )
    return f'<div style="display:flex;margin:.4em 0 .2em">{parts}</div><small>{legend}</small>'


def _text(value: object) -> str:
    shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return html.escape(printable(shown, one_line=True))
