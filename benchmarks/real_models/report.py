"""The tables and the figure of `results.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from train import PAIRS

CLASSES = ("all", "prose", "code", "numerals", "javascript")


def bits_per_byte(measured: dict[str, Any], name: str, rows: str | None = None) -> float:
    """Bits per byte of a class.

    Args:
        measured: of a model, as `evaluated` returns it.
        name: "all" or "prose" or "code", of the drawn passages, "numerals", wherever they stand in prose and code, or
            "javascript", all that stands there.
        rows: of a student with another tokenizer, "split" or "exact": tokens whose rows were made so alone.
    """
    parts = {"numerals": ("text", "numerals"), "javascript": ("javascript",)}.get(name, ("text",))
    bits = size = 0.0
    for part in parts:
        for full, spent in measured.get(part, {"bits": {}})["bits"].items():
            kind, _, way = full.partition(", ")
            if name in {"all", "javascript", kind} and rows in {None, way}:
                bits, size = bits + spent, size + measured[part]["bytes"][full]
    return bits / size if size else math.nan


def shown_rate(rate: float) -> str:
    """A learning rate in as few digits as it has.

    >>> shown_rate(2e-4), shown_rate(1.5e-3)
    ('2e-04', '1.5e-03')
    """
    short = f"{rate:.0e}"
    return short if float(short) == rate else f"{rate:.1e}"


@dataclass(frozen=True)
class Line:
    """An arm's line at one learning rate, of seed 0, which all arms have: means over unequal seeds do not compare.

    Attributes:
        name: of the arm.
        rate: its learning rate.
        bits: class -> bits per byte.
        by_seed: seed -> bits per byte of all text.
        closed: the share of the way from the student before any arm to the teacher.
        step: processor seconds a step, as a multiple of those of plain cross-entropy (at the same rate, if it has one).
    """

    name: str
    rate: float
    bits: dict[str, float]
    by_seed: dict[int, float]
    closed: float
    step: float


def lines(results: dict[str, Any], pair: str) -> list[Line]:
    """A pair's arms at each rate at which there is seed 0, the best first."""
    arms = [one for one in results["arms"] if one["pair"] == pair]
    floor, ceiling = (bits_per_byte(results["bounds"][pair][side], "all") for side in ("student", "teacher"))
    plain = {one["rate"]: one["processor_seconds_a_step"] for one in arms if (one["arm"], one["seed"]) == ("CE", 0)}
    any_plain = next(iter(plain.values()), math.nan)
    made = []
    for first in (one for one in arms if one["seed"] == 0):
        name, rate = first["arm"], first["rate"]
        bits = {each: bits_per_byte(first, each) for each in CLASSES}
        seeds = {one["seed"]: bits_per_byte(one, "all") for one in arms if (one["arm"], one["rate"]) == (name, rate)}
        closed = (floor - bits["all"]) / (floor - ceiling)
        step = first["processor_seconds_a_step"] / plain.get(rate, any_plain)
        made.append(Line(name, rate, bits, seeds, closed, step))
    return sorted(made, key=lambda line: line.bits["all"])


def best_lines(results: dict[str, Any], pair: str) -> list[Line]:
    """A pair's arms, each at the rate that is best for it; the best first."""
    by_name: dict[str, Line] = {}
    for line in lines(results, pair):
        by_name.setdefault(line.name, line)
    return list(by_name.values())


def table(results: dict[str, Any], pair: str, shown: list[Line]) -> list[str]:
    """A pair's table in Markdown, with some of its lines between the ceiling and the floor."""
    bounds = results["bounds"][pair]
    classes = [each for each in CLASSES if not any(math.isnan(line.bits[each]) for line in shown)]

    def row(name: str, bits: dict[str, float], rate: str = "", closed: str = "", step: str = "") -> str:
        cells = " | ".join(f"{bits[each]:.3f}" for each in classes)
        return f"| {name} | {rate} | {cells} | {closed} | {step} |".replace("  ", " ")

    teacher, student = (
        {each: bits_per_byte(bounds[side], each) for each in classes} for side in ("teacher", "student")
    )
    named = " | ".join({"javascript": "JavaScript"}.get(each, each) for each in classes)
    return [
        f"| | rate | {named} | way closed | step |",
        "| :-- | --: |" + " --: |" * (len(classes) + 2),
        row("*teacher, the ceiling*", teacher),
        *(row(each.name, each.bits, shown_rate(each.rate), f"{each.closed:.0%}", f"{each.step:.2f}") for each in shown),
        row("*student before, the floor*", student),
    ]


def by_seed(results: dict[str, Any], pair: str) -> list[str]:
    """Bits per byte of all text, seed by seed, each arm at its best rate."""
    best = best_lines(results, pair)
    seeds = sorted({seed for line in best for seed in line.by_seed})
    rows = ["| | rate | " + " | ".join(f"seed {seed}" for seed in seeds) + " |"]
    rows.append("| :-- | --: |" + " --: |" * len(seeds))
    for line in best:
        cells = (f"{line.by_seed[seed]:.3f}" if seed in line.by_seed else "" for seed in seeds)
        rows.append(f"| {line.name} | {shown_rate(line.rate)} | " + " | ".join(cells) + " |")
    return rows


def by_rows(results: dict[str, Any], pair: str) -> list[str]:
    """Where bits are won: bits per byte of tokens whose rows were copied and of those whose rows were made, seed 0."""
    rows = ["| | rate | copied rows | made rows |", "| :-- | --: | --: | --: |"]
    found = {(one["arm"], one["rate"]): one for one in results["arms"] if one["pair"] == pair and one["seed"] == 0}
    best = best_lines(results, pair)
    shown = [("*student before*", "", results["bounds"][pair]["student"])]
    shown += [(line.name, shown_rate(line.rate), found[line.name, line.rate]) for line in best]
    for name, rate, one in shown:
        copied, made = (bits_per_byte(one, "all", way) for way in ("exact", "split"))
        rows.append(f"| {name} | {rate} | {copied:.3f} | {made:.3f} |")
    return rows


def curve(results: dict[str, Any], arm: dict[str, Any]) -> list[tuple[int, float, float]]:
    """Steps, processor seconds and bits per byte of held-out text on the way: before, at each check, at the end.

    The seconds are the steps times the median of a step, so that a first step that reads from the disk does not count.
    """
    before = bits_per_byte(results["bounds"][arm["pair"]]["student"], "all")
    points = [(0, before), *((check["steps"], bits_per_byte(check, "all")) for check in arm["checks"])]
    points.append((len(arm["steps"]), bits_per_byte(arm, "all")))
    return [(steps, steps * arm["processor_seconds_a_step"], bits) for steps, bits in points]


def bits_after(points: list[tuple[int, float, float]], seconds: float) -> float:
    """Bits per byte after some processor seconds, in a line between the measured ones.

    >>> round(bits_after([(0, 0.0, 1.8), (10, 20.0, 1.4), (20, 40.0, 1.2)], 30.0), 6)
    1.3
    """
    for (_, begin, before), (_, end, after) in pairwise(points):
        if begin <= seconds <= end:
            return before + (after - before) * (seconds - begin) / (end - begin)
    return points[-1][2]


def on_the_way(results: dict[str, Any], pair: str) -> list[str]:
    """Bits per byte of all text after parts of the steps, and what each arm has reached when the fastest ends."""
    arms = [one for one in results["arms"] if one["pair"] == pair and one["seed"] == 0]
    curves = {(one["arm"], one["rate"]): curve(results, one) for one in arms}
    fastest = min(points[-1][1] for points in curves.values())
    checked = [steps for steps, _, _ in next(iter(curves.values()))[1:]]
    rows = ["| | rate | " + " | ".join(f"{steps} steps" for steps in checked) + " | seconds | as the fastest ends |"]
    rows.append("| :-- | --: |" + " --: |" * (len(checked) + 2))
    for line in lines(results, pair):
        points = curves[line.name, line.rate]
        cells = " | ".join(f"{bits:.3f}" for _, _, bits in points[1:])
        then = bits_after(points, fastest)
        rows.append(f"| {line.name} | {shown_rate(line.rate)} | {cells} | {points[-1][1]:.0f} | {then:.3f} |")
    return rows


def write_report(folder: Path) -> None:
    """Writes `RESULTS.md` and the figure beside `results.json`."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    measured = {one["pair"] for one in results["arms"] if one["seed"] == 0}
    pairs = [pair for pair in PAIRS if pair in measured and pair in results["bounds"]]
    if not pairs:
        return
    text = [
        "# Real models that learn from real models",
        "",
        "Made by `python benchmarks/real_models/run.py`. Do not edit.",
        "",
        *_method(results),
        "",
        "![bits per byte by loss](results.png)",
    ]
    for pair in pairs:
        text += ["", f"## {PAIRS[pair].title}", "", *_of_pair(results, pair)]
    (folder / "RESULTS.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    figure(results, pairs, folder)


def _of_pair(results: dict[str, Any], pair: str) -> Iterable[str]:
    """What `RESULTS.md` says of a pair."""
    arms = [one for one in results["arms"] if one["pair"] == pair]
    first = next(one for one in arms if one["seed"] == 0)
    epochs = PAIRS[pair].epochs
    again = f", each passage {epochs} times" if epochs > 1 else ""
    yield f"{first['tokens']:,} of the student's tokens in {len(first['steps'])} steps{again}, with seed 0:"
    best = best_lines(results, pair)
    yield from ("", *table(results, pair, best))
    chosen = {(line.name, line.rate) for line in best}
    others = [line for line in lines(results, pair) if (line.name, line.rate) not in chosen]
    if others:
        yield from ("", "At the other rate:", "", *table(results, pair, others))
    if any(one["seed"] for one in arms):
        yield from ("", "Seed by seed, all text, at the best rate:", "", *by_seed(results, pair))
    if first.get("checks"):
        yield from ("", "On the way, all text:", "", *on_the_way(results, pair))
    if any(name.endswith("split") for name in first["text"]["bits"]):
        yield from ("", "By how the row of the token was made, with seed 0:", "", *by_rows(results, pair))


def _method(results: dict[str, Any]) -> Iterable[str]:
    settings = results["settings"]
    yield (
        f"All arms of a pair read the same batches, of passages of about {settings['size']} bytes each, from the "
        f"documentation (prose) and the package (code) of Django's source distribution. Files are split into training "
        f"and held-out ones. {settings['held_out']} held-out passages and the {settings['numerals']} with the most "
        f"digits are measured, and in part passages of JavaScript, which no arm reads. AdamW; products in bfloat16. "
        f"Each seed draws other passages. Where there are two rates, each loss has that which is better for it with "
        f"seed 0, on the text that is measured. Measured on {results['device']}."
    )
    yield ""
    yield (
        "*All*, *prose*, *code* and *numerals* are bits per byte of held-out text, the fewer the better; they compare "
        "across tokenizers. *Way closed* is the share of the way from the student before any training to the teacher. "
        "*Step* is the processor time of a whole step, without the teacher's forward pass, as a multiple of that of "
        "plain cross-entropy; *seconds* is that time for all steps. The machine was shared, so both are rough. *As the "
        "fastest ends* is what an arm has reached in the seconds of the fastest, read off between two measurements; "
        "there the learning rate of the slower ones has not fallen yet."
    )
    yield ""
    seconds = sum(len(one["steps"]) * one["processor_seconds_a_step"] for one in results["arms"])
    yield (
        f"All steps that stand here took {seconds / 60:.0f} minutes of a core. Loading, the teachers' passes and "
        f"measuring take a third as long again at most, so that two processes on two free cores need about "
        f"{2 / 3 * seconds / 60:.0f} minutes for everything."
    )


def figure(results: dict[str, Any], pairs: list[str], folder: Path) -> None:
    """Draws `results.png` and `results.svg`: bits per byte by arm, and on the way where that was measured."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    on_way = [pair for pair in pairs if any(one.get("checks") for one in results["arms"] if one["pair"] == pair)]
    count = len(pairs) + len(on_way)
    columns = min(count, 4)
    rows = -(-count // columns)
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "real-models"}
    with mpl.rc_context({**style, "savefig.dpi": 130, "figure.facecolor": "white"}):
        size = (4.6 * columns, 3.5 * rows)
        drawn, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        for axis, pair in zip(axes.flat, pairs, strict=False):
            _bars(axis, results, pair)
        for axis, pair in zip(axes.flat[len(pairs) :], on_way, strict=False):
            _curves(axis, results, pair)
        for axis in axes.flat[count:]:
            axis.set_axis_off()
        drawn.savefig(folder / "results.png")
        drawn.savefig(folder / "results.svg", metadata={"Date": None})
        plt.close(drawn)


def _bars(axis: Any, results: dict[str, Any], pair: str) -> None:
    shown = best_lines(results, pair)[::-1]
    others = {(line.name, line.rate): line for line in lines(results, pair)}
    for place, line in enumerate(shown):
        color = "tab:blue" if "C-KL" in line.name else "tab:gray"
        axis.barh(place, line.bits["all"], color=color, alpha=0.75)
        axis.plot(list(line.by_seed.values()), [place] * len(line.by_seed), "k.", markersize=4)
        slower = [
            other.bits["all"] for (name, rate), other in others.items() if name == line.name and rate != line.rate
        ]
        axis.plot(slower, [place] * len(slower), "x", color="tab:gray", markersize=4)
        axis.annotate(f"  {line.bits['all']:.3f}", (max([*line.by_seed.values(), *slower]), place), va="center")
    ceiling = bits_per_byte(results["bounds"][pair]["teacher"], "all")
    axis.axvline(ceiling, color="tab:green", linestyle="--", label=f"teacher {ceiling:.3f}")
    values = [ceiling, *(value for line in others.values() for value in line.by_seed.values())]
    span = max(values) - min(values)
    axis.set_xlim(min(values) - 0.1 * span - 0.01, max(values) + 0.5 * span + 0.01)
    axis.set_yticks(range(len(shown)), [f"{line.name}, {shown_rate(line.rate)}" for line in shown])
    axis.set_xlabel("bits per byte of held-out text")
    axis.set_title(PAIRS[pair].title.replace("; ", ";\n"), fontsize=9)
    if any(len(line.by_seed) > 1 for line in shown):
        axis.plot([], [], "k.", label="a seed")
    if len(others) > len(shown):
        axis.plot([], [], "x", color="tab:gray", label="at the other rate")
    # Below, where no bar and no number stands.
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False, fontsize=8)


def _curves(axis: Any, results: dict[str, Any], pair: str) -> None:
    best = {(line.name, line.rate): line for line in best_lines(results, pair)}
    for arm in results["arms"]:
        if arm["pair"] == pair and arm["seed"] == 0 and (arm["arm"], arm["rate"]) in best:
            # The beginning is the same for all, and far above.
            points = curve(results, arm)[1:]
            seconds, bits = ([point[place] for point in points] for place in (1, 2))
            axis.plot(seconds, bits, marker=".", label=arm["arm"])
    axis.set_xlabel("processor seconds")
    axis.set_ylabel("bits per byte of held-out text")
    axis.set_title(f"{_short(pair)}\non the way", fontsize=9)
    axis.legend(frameon=False, fontsize=8)


def _short(pair: str) -> str:
    return PAIRS[pair].title.partition("; ")[0]
