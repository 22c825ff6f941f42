"""The figures: numerals' mass over training, and exact answers by arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from questions import OWN_TEXT, PANELS
from settings import CORPORA
from table import CES, NAMES, Row, Table

COLOURS = {
    "no teacher": "#6b6b6b",
    "same-kd": "#111111",
    "c-kl": "#2c8a2c",
    "c-kl-first": "#8fc28f",
    "c-kl-end": "#8fc28f",
    "c-kl-paths": "#8fc28f",
    "c-kl-teacher": "#8fc28f",
    "c-kl-reverse": "#4f9f6f",
    "c-kl-jsd": "#4f9f6f",
    "partition-kl": "#0e8f8f",
    "p-kl": "#1f5fbf",
    "gold": "#c0222f",
    "uld": "#c47f00",
    "alm": "#e0a94a",
    "strict": "#7b3fa0",
    "strict-16": "#b48ad0",
    "bpm": "#d1477a",
    "escd": "#8a5a2b",
    "simct": "#5b6fbf",
}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "svg.hashsalt": "uncommon-token",
    "savefig.dpi": 130,
    "figure.facecolor": "white",
}
TITLES = {"digits": "the teacher splits digits", "words": "words differ"}
FEW = ("no teacher", "gold", "p-kl", "c-kl-first", "c-kl")


def figures(table: Table, folder: Path) -> None:
    """Draws `results.png`, `results.svg` and `small.png`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with mpl.rc_context(STYLE):
        drawn = _large(plt, table)
        drawn.savefig(folder / "results.png")
        drawn.savefig(folder / "results.svg", metadata={"Date": None})
        drawn = _small(plt, table)
        drawn.savefig(folder / "small.png")
        plt.close("all")


def _large(plt: Any, table: Table) -> Any:
    """A panel per pair, corpus and policy, the arms with the cross-entropy on the left."""
    panels = [(*panel, ce) for panel in PANELS for ce in CES] + [(*panel, "none") for panel in OWN_TEXT]
    drawn, axes = plt.subplots(4, 2, figsize=(13, 19), layout="constrained", height_ratios=(20, 16, 11, 10))
    for axis, (pair, corpus, policy, ce) in zip(axes.flat, panels, strict=True):
        text = "the student's own text" if policy == "on" else f"{CORPORA[corpus]:.0%} wrong answers"
        _exact(axis, table.of(pair, ce, corpus, policy), f"{TITLES[pair]}; {text}; {CES[ce]}", table)
    return drawn


def _small(plt: Any, table: Table) -> Any:
    drawn, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    rows = table.of("digits")
    few = [row for row in rows if row.arm in FEW]
    _mass(axes[0], few, "Mass on packed numerals over training", "numerals")
    # Between the lines that stay above and the one that falls.
    if few:
        axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    _exact(axes[1], [row for row in rows if row.arm in (*FEW, "same-kd")], "Exact answers on held-out sums", table)
    return drawn


def _mass(axis: Any, rows: Sequence[Row], title: str, of: str) -> None:
    for row in rows:
        steps = row.runs[0]["steps"]
        axis.plot(steps, row.mass(of), color=COLOURS[row.arm], label=NAMES[row.arm], linewidth=1.6)
        seeds = [[0.0 if value is None else value for value in run["mass"][of]] for run in row.runs]
        low, high = ([kind(at) for at in zip(*seeds, strict=True)] for kind in (min, max))
        axis.fill_between(steps, low, high, color=COLOURS[row.arm], alpha=0.12, linewidth=0)
    axis.set(title=title, xlabel="step", ylim=(0, 1.03))
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)


def _exact(axis: Any, rows: Sequence[Row], title: str, table: Table) -> None:
    if not rows:
        axis.set_axis_off()
        return
    places = list(range(len(rows)))
    for place, row in zip(places, rows, strict=True):
        values, colour = row.values("exact"), COLOURS[row.arm]
        axis.plot([0, row.mean("exact")], [place, place], color=colour, linewidth=6, alpha=0.3, solid_capstyle="butt")
        axis.plot(values, [place] * len(values), "o", color=colour, markersize=5, markeredgecolor="white")
        axis.text(1.02, place, f"{row.mean('exact'):.2f}", va="center", fontsize=8)
    lines = [axis.axvline(table.start("exact"), color="#888888", linewidth=1, linestyle=":", label="before")]
    without = next((row for row in rows if row.arm == "no teacher"), None)
    if without is not None:
        lines.append(axis.axvline(without.mean("exact"), color="#6b6b6b", linewidth=1, label="no teacher"))
    below = {"loc": "upper right", "bbox_to_anchor": (1, 0), "borderaxespad": 2.4}
    axis.legend(handles=lines, frameon=False, fontsize=8, ncols=2, **below)
    axis.set_yticks(places, [row.name for row in rows])
    axis.set(title=title, xlim=(0, 1), ylim=(places[-1] + 0.6, -0.6))
    axis.set_xlabel("share, a dot per seed", loc="left")
    axis.tick_params(axis="y", length=0)
