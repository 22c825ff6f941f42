"""The results by arm: means over seeds, spreads, and differences seed by seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NAMES = {
    "no teacher": "no teacher",
    "same-kd": "same-tokenizer KD",
    "uld": "ULD",
    "gold-none": "GOLD, unnormalised",
    "gold": "GOLD",
    "h-kl-none": "H-KL, unnormalised",
    "h-kl": "H-KL",
    "p-kl": "P-KL",
    "p-kl-mean": "P-KL, decay weights",
    "partition-kl": "Partition-KL",
    "c-kl": "C-KL",
}
CES = {"fixed": "fixed CE", "dynamic": "dynamic CE", "per-batch": "per-batch CE", "none": "no CE"}
UNCOMMON = {"digits": "numerals", "words": "cut words", "same": "numerals"}
"""The student's tokens that each pair's teacher does not have."""
CLEAR = 0.02
"""A difference is called clear if all seeds agree on its sign and its mean is at least this."""


@dataclass(frozen=True)
class Row:
    """An arm's results, a value per seed in each.

    Attributes:
        pair: of tokenizers.
        corpus: that the students were trained on.
        arm: the loss.
        ce: what the cross-entropy does.
        runs: the results, in the order of the seeds.
    """

    pair: str
    corpus: str
    arm: str
    ce: str
    runs: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        """For people."""
        return NAMES[self.arm] if self.ce == "fixed" else f"{NAMES[self.arm]}, {CES[self.ce]}"

    def values(self, of: str) -> list[float]:
        """A value per seed; infinity for a perplexity that is no number any more."""
        return [float("inf") if run[of] is None else run[of] for run in self.runs]

    def mean(self, of: str) -> float:
        """The mean over seeds."""
        values = self.values(of)
        return sum(values) / len(values)

    def mass(self, of: str = "numerals") -> list[float]:
        """The mean over seeds of a mass, by step."""
        return [
            sum(0.0 if value is None else value for value in at) / len(at)
            for at in zip(*(run["mass"][of] for run in self.runs), strict=True)
        ]

    def noted(self, name: str) -> float | None:
        """The mean over seeds of what the loss noted in its last steps."""
        values = [run["noted"].get(name) for run in self.runs]
        return None if None in values else sum(values) / len(values)


@dataclass(frozen=True)
class Table:
    """All arms' results.

    Attributes:
        rows: in the order of the run.
        results: everything in `results.json`.
    """

    rows: tuple[Row, ...]
    results: dict[str, Any]

    @classmethod
    def of(cls, results: dict[str, Any]) -> Table:
        """Groups the runs by arm."""
        grouped: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for run in results["arms"]:
            grouped.setdefault(tuple(run[name] for name in ("pair", "corpus", "arm", "ce")), []).append(run)
        return cls(tuple(Row(*key, tuple(runs)) for key, runs in grouped.items()), results)

    def find(self, pair: str, arm: str, ce: str = "fixed", corpus: str = "wrong") -> Row | None:
        """An arm, if it was run; the arms without a teacher belong to all pairs."""
        pairs = (pair, "same") if arm in ("no teacher", "same-kd") else (pair,)
        wanted = {(one, corpus, arm, ce) for one in pairs}
        return next((row for row in self.rows if (row.pair, row.corpus, row.arm, row.ce) in wanted), None)

    def of_pair(self, pair: str, corpus: str = "wrong") -> Iterator[Row]:
        """A pair's arms, after those that belong to all pairs."""
        for row in self.rows:
            if row.corpus == corpus and row.pair in (pair, "same"):
                yield row

    def start(self, of: str) -> float:
        """The mean over seeds of what was measured before the arms began."""
        values = [start[of] for start in self.results["starts"].values()]
        return float(sum(values) / len(values))


def difference(one: Row, other: Row, of: str = "exact") -> tuple[float, str]:
    """The mean difference seed by seed, and whether it is clear: "above", "below" or "level"."""
    gaps = [ours - theirs for ours, theirs in zip(one.values(of), other.values(of), strict=True)]
    mean = sum(gaps) / len(gaps)
    if min(gaps) > 0 and mean >= CLEAR:
        return mean, "above"
    return mean, "below" if max(gaps) < 0 and mean <= -CLEAR else "level"
