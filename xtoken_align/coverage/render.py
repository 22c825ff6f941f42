"""The coverage report for a terminal of 80 columns, or for a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..rules.links import WAYS
from .classes import ClassRow

if TYPE_CHECKING:
    from rich.table import Table

    from .coverage import Coverage


def coverage_table(coverage: Coverage, *, shares: bool = True) -> Table:
    """Draws classes against how their rows are mapped, numerals first, classes without tokens left out.

    Args:
        coverage: the counts.
        shares: whether counts have their shares beside them.

    Returns:
        A table to print with a `rich.console.Console`; 80 columns hold it for any vocabulary below a million ids, and
        60 without shares.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), show_footer=True)
    rows = coverage.present()
    # The footer, "all": each column's sum over the classes.
    every = ClassRow(**{way: sum(getattr(row, way) for row in rows.values()) for way in ("total", *WAYS)})
    table.add_column("class", "all", no_wrap=True)
    table.add_column("ids", f"{every.total:,}", justify="right", no_wrap=True)
    for way in WAYS:
        title = f"{way}   %" if shares else way
        table.add_column(title, _cell(every, way, shares=shares), justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(name, f"{row.total:,}", *(_cell(row, way, shares=shares) for way in WAYS))
    return table


def rules_table(coverage: Coverage, *, gap: int = 1) -> Table:
    """Draws classes against the rules that own their rows; rules and classes without rows are left out.

    Args:
        coverage: the counts.
        gap: columns between two of the table's, beside one.

    Returns:
        A table to print with a `rich.console.Console`.
    """
    from rich import box
    from rich.table import Table

    rules = [rule for rule, rows in coverage.rules.items() if rows]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, gap, 0, 0), show_footer=True)
    table.add_column("class", "all", no_wrap=True)
    for rule in rules:
        table.add_column(rule, f"{coverage.rules[rule]:,}", justify="right", no_wrap=True)
    for name in coverage.present():
        cells = coverage.by_class_and_rule.get(name)
        if cells:
            table.add_row(name, *(f"{cells[rule]:,}" if rule in cells else "-" for rule in rules))
    return table


def rules_line(coverage: Coverage) -> str:
    """Lists the rules that own rows, in the order in which they run: `exact 109,566, digits 1,100, ...`."""
    return _listed(coverage.rules) or "no rule found a row"


def summary(coverage: Coverage) -> str:
    """Says in a few lines which rows are empty or lossy, and which loss to train with.

    Args:
        coverage: the counts.

    Returns:
        Lines without a newline at the end.
    """
    advice = coverage.recommendation
    lines = [
        f"Rows by rule: {rules_line(coverage)}.",
        f"Empty rows: {_listed(coverage.empty) or 'none'}.",
        f"Lossy rows: {coverage.lossy:,}." if coverage.lossy else "",
        f"Train with {advice.loss}: {advice.reason}.",
        f"(The rule of the X-Token paper names {advice.paper_rule.loss}: {advice.paper_rule.because}.)",
    ]
    return "\n".join(line for line in lines if line)


def _cell(row: ClassRow, way: str, *, shares: bool) -> str:
    count = getattr(row, way)
    share = f" {percent(count, row.total).removesuffix('%'):>3}" if shares else ""
    return f"{count:,}{share}" if count else "-"


def percent(count: int, total: int) -> str:
    """A share in whole percents; a few of many must not read as none, nor all but a few as all.

    >>> percent(1, 1000), percent(999, 1000), percent(1, 3), percent(0, 0)
    ('<1%', '>99%', '33%', '-')
    """
    if not total:
        return "-"
    rounded = round(100 * count / total)
    if count and not rounded:
        return "<1%"
    if count < total and rounded == 100:
        return ">99%"
    return f"{rounded}%"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
