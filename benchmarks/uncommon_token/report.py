"""Writes `RESULTS.md` and the figures from `results.json`.

python benchmarks/uncommon_token/report.py [FOLDER]
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path

from figures import figures
from questions import OWN_TEXT, PANELS, questions
from settings import CORPORA, PAIRS
from table import CES, Row, Table

COLUMNS = (
    ("arm", ":--"),
    ("exact", "--:"),
    ("(lowest, highest)", "--:"),
    ("first digit", "--:"),
    ("later digits", "--:"),
    ("as one token", "--:"),
    ("numerals", "--:"),
    ("cut words", "--:"),
    ("perplexity", "--:"),
)


def write_report(folder: Path) -> None:
    """Writes everything that is made of a folder's `results.json`."""
    table = Table.read(json.loads((folder / "results.json").read_text(encoding="utf-8")))
    (folder / "RESULTS.md").write_text(markdown(table), encoding="utf-8")
    figures(table, folder)


def markdown(table: Table) -> str:
    """`RESULTS.md`."""
    parts = [HEAD.format(**_sizes(table)), _models(table)]
    parts += ["## Answers\n", questions(table)]
    for (pair, corpus, policy), ce in product((*PANELS, *OWN_TEXT), CES):
        rows = table.of(pair, ce, corpus, policy)
        if any(row.pair == pair for row in rows):
            text = "the student's own text" if policy == "on" else f"{CORPORA[corpus]:.0%} of the answers are wrong"
            parts += [f"## `{pair}`: {PAIRS[pair]}; {text}; {CES[ce]}\n", _rows(rows)]
    versions = ", ".join(f"{name} {number}" for name, number in table.results["versions"].items())
    parts.append(f"Made with {versions}. Every number by seed and step is in `results.json`.\n")
    return "\n".join(parts)


HEAD = """# Which loss teaches across tokenizers?

Made by `python benchmarks/uncommon_token/run.py`, which took {processor:.0f} minutes of processor time in processes of
one thread each. Do not edit.

A student that packs up to three digits into a token is distilled from three teachers: one that has a token per digit
(`digits`), one that packs as the student does and has other words (`words`), and one with the student's own tokenizer.
All are Llama-style models of width 128 on byte-level BPE tokenizers trained on the text: running sums
(`44+9=53+1=54.`) and stories (`Amy has 44 pens+9=53 pens.`). Students begin from a checkpoint that was trained for
{start_steps} steps on clean text (one per seed) and are then trained for {steps} steps of {rows} texts, in which a
quarter of the answers is wrong, or three quarters. *The student's own text* is what the student writes after a text's
first question, sampled anew at every step. Teachers are trained on clean text and shared by the seeds ({seeds}). A
tenth of the problems is in no training text; {questions} held-out texts are asked about. Sizes and steps were chosen on
seeds 0 to 2, and C-KL's forms were compared on 3 and 4 while they were developed; by the others nothing was chosen.

*Exact* is the share of right answers by greedy decoding. *First digit* is the share with the right first digit; *later
digits* is, of the answers of several digits that have it, the share that is right; *as one token* is the share of those
that the student writes as one token. *Numerals* is the student's probability on its tokens of two or three digits where
the text goes on with one: the lowest at any look and the last; *cut words* is the same of its words that the teacher of
`words` has no token for. *Perplexity* is per byte of held-out clean text. Values are means over seeds. A difference is
called clear if all seeds agree on its sign and its mean is at least 0.02.

![exact answers by loss](results.png)
"""


def _sizes(table: Table) -> dict[str, object]:
    settings = table.results["settings"]
    return {
        "start_steps": settings["start"]["steps"],
        "processor": table.results["processor_minutes"],
        "seeds": ", ".join(map(str, table.results["seeds"])),
        **{name: settings[name] for name in ("steps", "rows", "questions")},
    }


def _models(table: Table) -> str:
    lines = ["| model | exact | later digits | perplexity |", "| :-- | --: | --: | --: |"]
    named = {f"teacher of `{pair}`": one for pair, one in table.results["teachers"].items()}
    named |= {f"student before its arms, seed {seed}": one for seed, one in table.results["starts"].items()}
    for name, one in named.items():
        lines.append(f"| {name} | {one['exact']:.2f} | {one['later_digits']:.2f} | {one['perplexity']:.3f} |")
    return "\n".join([*lines, ""])


def _rows(rows: list[Row]) -> str:
    lines = [" | ".join(["", *(name for name, _ in COLUMNS), ""]).strip()]
    lines.append("|".join(["", *(f" {align} " for _, align in COLUMNS), ""]))
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join([*lines, ""])


def _cells(row: Row) -> list[str]:
    exact = row.values("exact")
    return [
        row.name,
        f"{row.mean('exact'):.2f}",
        f"{min(exact):.2f}, {max(exact):.2f}",
        *(f"{row.mean(name):.2f}" for name in ("first_digit", "later_digits", "packed")),
        *(_course(row, name) for name in ("numerals", "cut words")),
        f"{row.mean('perplexity'):.3f}",
    ]


def _course(row: Row, of: str) -> str:
    """The lowest mass and the last."""
    if of not in row.runs[0]["mass"]:
        return ""
    mass = row.mass(of)
    return f"{min(mass):.2f}, {mass[-1]:.2f}"


if __name__ == "__main__":
    write_report(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
