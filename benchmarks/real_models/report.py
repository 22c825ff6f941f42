"""The tables and the figure of `results.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLASSES = ("all", "prose", "code", "numerals")
TITLES = {
    "transfer": "SmolLM2-135M gets Llama-3's tokenizer; the teacher is SmolLM2-135M as it was",
    "families": "SmolLM2-135M learns from Gemma-3-270m",
}


def bits_per_byte(measured: dict[str, Any], name: str, rows: str | None = None) -> float:
    """Bits per byte of a class.

    Args:
        measured: of a model, as `evaluated` returns it.
        name: "all" or "prose" or "code", of the drawn passages, or "numerals", wherever they stand.
        rows: of a student with another tokenizer, "split" or "exact": tokens whose rows were made so alone.
    """
    parts = ("text", "numerals") if name == "numerals" else ("text",)
    bits = size = 0.0
    for part in parts:
        for full, spent in measured[part]["bits"].items():
            kind, _, way = full.partition(", ")
            if name in {"all", kind} and rows in {None, way}:
                bits, size = bits + spent, size + measured[part]["bytes"][full]
    return bits / size if size else math.nan


@dataclass(frozen=True)
class Line:
    """An arm's line at one learning rate, of seed 0, which all arms have: means over unequal seeds do not compare.

    Attributes:
        name: of the arm.
        rate: its learning rate.
        bits: class -> bits per byte.
        by_seed: seed -> bits per byte of all text.
        closed: the share of the way from the student before any arm to the teacher.
        step: processor seconds a step, as a multiple of those of plain cross-entropy at the same rate.
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
    made = []
    for first in (one for one in arms if one["seed"] == 0):
        name, rate = first["arm"], first["rate"]
        bits = {each: bits_per_byte(first, each) for each in CLASSES}
        seeds = {one["seed"]: bits_per_byte(one, "all") for one in arms if (one["arm"], one["rate"]) == (name, rate)}
        closed = (floor - bits["all"]) / (floor - ceiling)
        step = first["processor_seconds_a_step"] / plain.get(rate, math.nan)
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
    rows = [
        "| | rate | all | prose | code | numerals | way closed | step |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
        _bound("teacher, the ceiling", bounds["teacher"]),
    ]
    for line in shown:
        classes = " | ".join(f"{line.bits[each]:.3f}" for each in CLASSES)
        rows.append(f"| {line.name} | {line.rate:.0e} | {classes} | {line.closed:.0%} | {line.step:.2f} |")
    return [*rows, _bound("student before, the floor", bounds["student"])]


def _bound(name: str, measured: dict[str, Any]) -> str:
    classes = " | ".join(f"{bits_per_byte(measured, each):.3f}" for each in CLASSES)
    return f"| *{name}* | | {classes} | | |"


def by_seed(results: dict[str, Any], pair: str) -> list[str]:
    """Bits per byte of all text, seed by seed, each arm at its best rate."""
    best = best_lines(results, pair)
    seeds = sorted({seed for line in best for seed in line.by_seed})
    rows = ["| | rate | " + " | ".join(f"seed {seed}" for seed in seeds) + " |"]
    rows.append("| :-- | --: |" + " --: |" * len(seeds))
    for line in best:
        cells = (f"{line.by_seed[seed]:.3f}" if seed in line.by_seed else "" for seed in seeds)
        rows.append(f"| {line.name} | {line.rate:.0e} | " + " | ".join(cells) + " |")
    return rows


def by_rows(results: dict[str, Any], pair: str) -> list[str]:
    """Where bits are won: bits per byte of tokens whose rows were copied and of those whose rows were made, seed 0."""
    rows = ["| | rate | copied rows | made rows |", "| :-- | --: | --: | --: |"]
    found = {(one["arm"], one["rate"]): one for one in results["arms"] if one["pair"] == pair and one["seed"] == 0}
    best = best_lines(results, pair)
    shown = [("*student before*", "", results["bounds"][pair]["student"])]
    shown += [(line.name, f"{line.rate:.0e}", found[line.name, line.rate]) for line in best]
    for name, rate, one in shown:
        copied, made = (bits_per_byte(one, "all", way) for way in ("exact", "split"))
        rows.append(f"| {name} | {rate} | {copied:.3f} | {made:.3f} |")
    return rows


def curve(arm: dict[str, Any], window: int = 6) -> tuple[list[int], list[float]]:
    """Tokens read, and bits a token on text not read before, as means over some steps."""
    seen, spent, tokens = [], [], 0
    steps = [step for step in arm["steps"] if "ce" in step]
    for first in range(0, len(steps), window):
        some = steps[first : first + window]
        count = sum(step["tokens"] for step in some)
        tokens += count
        seen.append(tokens - count // 2)
        spent.append(sum(step["ce"] * step["tokens"] for step in some) / count / math.log(2))
    return seen, spent


def write_report(folder: Path) -> None:
    """Writes `RESULTS.md` and the figure beside `results.json`."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    pairs = [pair for pair in TITLES if any(one["pair"] == pair for one in results["arms"])]
    if not pairs or any(pair not in results["bounds"] for pair in pairs):
        return
    settings = results["settings"]
    text = [
        "# A real model with another tokenizer",
        "",
        "Made by `python benchmarks/real_models/run.py`. Do not edit.",
        "",
        *_method(settings, results["device"]),
        "",
        "![bits per byte by loss](results.png)",
    ]
    for pair in pairs:
        best = best_lines(results, pair)
        others = [
            line for line in lines(results, pair) if (line.name, line.rate) not in {(b.name, b.rate) for b in best}
        ]
        text += ["", f"## {TITLES[pair]}", ""]
        text += ["Each loss at the rate that is best for it, with seed 0:", "", *table(results, pair, best)]
        if others:
            text += ["", "At the other rate:", "", *table(results, pair, others)]
        text += ["", "Seed by seed, all text, at the best rate:", "", *by_seed(results, pair)]
        if pair == "transfer":
            text += ["", "By how the row of the token was made, with seed 0:", "", *by_rows(results, pair)]
    (folder / "RESULTS.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    figure(results, pairs, folder)


def _method(settings: dict[str, Any], device: str) -> Iterable[str]:
    yield (
        f"Every arm reads the same {settings['steps']} batches; a batch has {settings['rows']} of the passages, of "
        f"about {settings['size']} bytes each, from the documentation (prose) and the package (code) of Django's "
        f"source distribution. Files are split into training and held-out ones. {settings['held_out']} held-out "
        f"passages and the {settings['numerals']} with the most digits are measured. AdamW; products in bfloat16. "
        f"Each seed draws other passages; the better rate is chosen with seed 0, on the text that is measured. "
        f"Measured on {device}."
    )
    yield ""
    yield (
        "*All*, *prose*, *code* and *numerals* are bits per byte of held-out text, the fewer the better; they compare "
        "across tokenizers. *Way closed* is the share of the way from the student before any training to the teacher. "
        "*Step* is the processor time of a whole step, without the teacher's forward pass, as a multiple of that of "
        "plain cross-entropy; the machine was shared, so it is rough."
    )


def figure(results: dict[str, Any], pairs: list[str], folder: Path) -> None:
    """Draws `results.png` and `results.svg`: bits per byte by arm, and the curves of `transfer`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "real-models"}
    with mpl.rc_context({**style, "savefig.dpi": 130, "figure.facecolor": "white"}):
        drawn, axes = plt.subplots(1, len(pairs) + 1, figsize=(4.6 * (len(pairs) + 1), 3.6), layout="constrained")
        for axis, pair in zip(axes, pairs, strict=False):
            _bars(axis, results, pair)
        _curves(axes[-1], results, pairs[0])
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
    highest = max(value for line in others.values() for value in line.by_seed.values())
    axis.set_xlim(ceiling - 0.1 * (highest - ceiling) - 0.01, highest + 0.4 * (highest - ceiling) + 0.01)
    axis.set_yticks(range(len(shown)), [f"{line.name}, {line.rate:.0e}" for line in shown])
    axis.set_xlabel("bits per byte of held-out text")
    axis.set_title(TITLES[pair].replace("; ", ";\n"), fontsize=9)
    axis.plot([], [], "k.", label="a seed")
    axis.plot([], [], "x", color="tab:gray", label="at the other rate")
    axis.legend(loc="upper right", frameon=False, fontsize=8)


def _curves(axis: Any, results: dict[str, Any], pair: str) -> None:
    best = {(line.name, line.rate) for line in best_lines(results, pair)}
    for arm in results["arms"]:
        if arm["pair"] == pair and arm["seed"] == 0 and (arm["arm"], arm["rate"]) in best and "ce" in arm["steps"][0]:
            axis.plot(*curve(arm), marker=".", label=arm["arm"])
    axis.set_xlabel("tokens read")
    axis.set_ylabel("bits a token, on text not read before")
    axis.set_title("on the way, seed 0", fontsize=9)
    axis.legend(frameon=False, fontsize=8)
