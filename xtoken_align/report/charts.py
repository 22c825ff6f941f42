"""The report's two kinds of chart, drawn by matplotlib without colours: the page's style sheet has those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..coverage.render import percent
from .palette import by_way, swatch
from .svg import Shape, inline_svg
from .visible import visible
from .words import rule_name

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 7.6
"""Inches; the page scales a chart to its column."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One class of tokens.

    Attributes:
        name: its name.
        total: ids of the class.
        matched: how many of them are exact or near.
        rules: rule -> rows, `none` for the empty ones.
    """

    name: str
    total: int
    matched: int
    rules: Mapping[str, int]


def coverage_chart(bars: Sequence[Bar]) -> Markup:
    """A bar from 0 to 100% per class, in it a segment per rule; beside it the number of ids and the matched share.

    Args:
        bars: one at least, each with a total above 0.
    """
    height = 0.27 * len(bars) + 0.6
    shapes = {"grid": Shape("grid")}
    with _plain_figure(_WIDTH, height) as figure:
        axes = _bare_axes(figure, (0.155, 0.3 / height, 0.62, 1 - 0.6 / height))
        axes.set_xlim(0, 100)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        lines = axes.vlines([0, 25, 50, 75, 100], -0.5, len(bars) - 0.5, clip_on=False, zorder=0)
        lines.set_gid("grid")
        for row, bar in enumerate(bars):
            _stack(axes, row, bar, shapes)
            axes.text(-1.5, row, _plain(bar.name), ha="right", va="center_baseline", parse_math=False)
            axes.text(116, row, f"{bar.total:,}", ha="right", va="center_baseline")
            axes.text(134, row, percent(bar.matched, bar.total), ha="right", va="center_baseline")
        for x, label in ((0, "0%"), (50, "50%"), (100, "100%")):
            axes.text(x, len(bars) - 0.3, label, ha="center", va="top", fontsize=8)
        for x, label in ((116, "ids"), (134, "one to one")):
            axes.text(x, -0.75, label, ha="right", va="bottom", fontsize=8)
        return inline_svg(figure, shapes, "Share of each class's ids by the rule that maps them, class by class")


def pieces_chart(counts: Sequence[tuple[str, int]], described: str) -> Markup:
    """Upright bars with their counts above them.

    Args:
        counts: label -> height, from left to right; one at least.
        described: what is counted, `Llama-3's tokens by ...`.
    """
    highest = max(count for _, count in counts) or 1
    shapes = {"grid": Shape("grid")}
    with _plain_figure(_WIDTH / 2, 2.1) as figure:
        axes = _bare_axes(figure, (0.02, 0.15, 0.96, 0.72))
        axes.set_xlim(-0.5, len(counts) - 0.5)
        axes.set_ylim(0, highest)
        axes.hlines([0], -0.5, len(counts) - 0.5, clip_on=False).set_gid("grid")
        for x, (label, count) in enumerate(counts):
            (bar,) = axes.bar([x], [count], width=0.72, clip_on=False)
            bar.set_gid(f"bar-{x}")
            shapes[f"bar-{x}"] = Shape("way-split", f"{label} pieces: {count:,} tokens")
            axes.text(x, count + 0.025 * highest, f"{count:,}", ha="center", va="bottom", fontsize=8)
            axes.text(x, -0.04 * highest, label, ha="center", va="top", fontsize=8)
        return inline_svg(figure, shapes, described)


def _stack(axes: Axes, row: int, bar: Bar, shapes: dict[str, Shape]) -> None:
    left = 0.0
    for number, rule in enumerate(by_way(bar.rules)):
        rows = bar.rules[rule]
        width = 100 * rows / bar.total
        (segment,) = axes.barh([row], [width], left=[left], height=0.7, clip_on=False)
        gid = f"segment-{row}-{number}"
        segment.set_gid(gid)
        title = f"{visible(bar.name)}, {rule_name(rule)}: {rows:,} of {bar.total:,} ({percent(rows, bar.total)})"
        shapes[gid] = Shape(swatch(rule), title)
        left += width


@contextmanager
def _plain_figure(width: float, height: float) -> Iterator[Figure]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        # The user's own settings (LaTeX text, other fonts) are for other charts.
        mpl.rcdefaults()
        mpl.rcParams["font.size"] = 9
        yield Figure(figsize=(width, height))


def _bare_axes(figure: Figure, place: tuple[float, float, float, float]) -> Axes:
    axes = figure.add_axes(place)
    axes.set_axis_off()
    return axes


def _plain(name: str) -> str:
    # matplotlib measures text with a font of its own and warns of characters that it lacks.
    return visible(name).encode("ascii", "backslashreplace").decode()[:20]
