"""The figures: numerals' mass over training, and exact answers by arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from table import CES, NAMES, UNCOMMON, Row, Table

COLOURS = {
    "no teacher": "#6b6b6b",
    "same-kd": "#111111",
    "uld": "#c47f00",
    "gold-none": "#c0222f",
    "gold": "#e8747c",
    "h-kl-none": "#7b3fa0",
    "h-kl": "#b48ad0",
    "p-kl": "#1f5fbf",
    "p-kl-mean": "#7fb0ee",
    "partition-kl": "#0e8f8f",
    "c-kl": "#2c8a2c",
}
STYLES: dict[str, Any] = {
    **dict.fromkeys(("gold", "p-kl-mean", "same-kd"), "--"),
    # Dots, since these can lie on GOLD's lines.
    **dict.fromkeys(("h-kl-none", "h-kl"), (0, (1, 2.5))),
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
GAP = 0.7  # between the groups of arms in the right-hand figures
FEW = ("no teacher", "uld", "gold-none", "p-kl", "c-kl")


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
    # A pair that was not run has no panels; the arms without a pair stand beside any.
    titles = {pair: title for pair, title in TITLES.items() if any(row.pair == pair for row in table.rows)}
    titles = titles or dict(list(TITLES.items())[:1])
    drawn = plt.figure(figsize=(13, 7.5 + 3.5 * len(titles)), layout="constrained")
    upper, lower = drawn.subfigures(2, 1, height_ratios=(0.725 * len(titles), 2))
    axes = upper.subplots(len(titles), len(CES), sharey="row", squeeze=False)
    for line, (pair, title) in zip(axes, titles.items(), strict=True):
        for axis, (ce, told) in zip(line, CES.items(), strict=True):
            rows = [row for row in table.of_pair(pair) if row.ce == ce]
            _mass(axis, [row for row in rows if UNCOMMON[pair] in row.runs[0]["mass"]], told, UNCOMMON[pair])
        line[0].set_ylabel(f"mass on {UNCOMMON[pair]}\n({title})")
    handles = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    upper.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False)
    panels = lower.subplots(1, len(titles), squeeze=False)[0]
    for axis, (pair, title) in zip(panels, titles.items(), strict=True):
        _exact(axis, list(table.of_pair(pair)), f"Exact answers: {title}", table)
    return drawn


def _small(plt: Any, table: Table) -> Any:
    drawn, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    rows = [row for row in table.of_pair("digits") if row.ce == "fixed"]
    few = [row for row in rows if row.arm in FEW]
    _mass(axes[0], few, "Mass on packed numerals over training", "numerals")
    # Between the lines that stay above and the one that falls.
    if few:
        axes[0].legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.84))
    _exact(axes[1], [row for row in rows if row.arm in (*FEW, "same-kd")], "Exact answers on held-out sums", table)
    return drawn


def _mass(axis: Any, rows: Sequence[Row], title: str, of: str) -> None:
    for row in rows:
        steps, style = row.runs[0]["steps"], STYLES.get(row.arm, "-")
        axis.plot(steps, row.mass(of), linestyle=style, color=COLOURS[row.arm], label=NAMES[row.arm], linewidth=1.6)
        seeds = [[0.0 if value is None else value for value in run["mass"][of]] for run in row.runs]
        low, high = ([kind(at) for at in zip(*seeds, strict=True)] for kind in (min, max))
        axis.fill_between(steps, low, high, color=COLOURS[row.arm], alpha=0.12, linewidth=0)
    axis.set(title=title, xlabel="step", ylim=(0, 1.03))
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)


def _exact(axis: Any, rows: Sequence[Row], title: str, table: Table) -> None:
    if not rows:
        axis.set_axis_off()
        return
    ordered = sorted(rows, key=lambda row: (list(CES).index(row.ce), list(NAMES).index(row.arm)))
    groups = list(dict.fromkeys(row.ce for row in ordered))
    places = [number + GAP * groups.index(row.ce) for number, row in enumerate(ordered)]
    for place, row in zip(places, ordered, strict=True):
        values, colour = row.values("exact"), COLOURS[row.arm]
        axis.plot([0, row.mean("exact")], [place, place], color=colour, linewidth=6, alpha=0.3, solid_capstyle="butt")
        axis.plot(values, [place] * len(values), "o", color=colour, markersize=5, markeredgecolor="white")
        axis.text(1.02, place, f"{row.mean('exact'):.2f}", va="center", fontsize=8)
    lines = [axis.axvline(table.start("exact"), color="#888888", linewidth=1, linestyle=":", label="before")]
    without = table.find("same", "no teacher")
    if without is not None:
        lines.append(axis.axvline(without.mean("exact"), color="#6b6b6b", linewidth=1, label="no teacher"))
    below = {"loc": "upper right", "bbox_to_anchor": (1, 0), "borderaxespad": 2.4}
    axis.legend(handles=lines, frameon=False, fontsize=8, ncols=2, **below)
    axis.set_yticks(places, [row.name for row in ordered])
    axis.set(title=title, xlim=(0, 1), ylim=(places[-1] + 0.6, -0.6))
    axis.set_xlabel("share, a dot per seed", loc="left")
    axis.tick_params(axis="y", length=0)
