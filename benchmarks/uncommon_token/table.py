"""The results by arm: means over seeds, spreads, and differences seed by seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NAMES = {
    "no teacher": "no teacher",
    "same-kd": "same-tokenizer KD",
    "c-kl": "C-KL",
    "c-kl-first": "C-KL, first form",
    "c-kl-end": "C-KL, END alone",
    "c-kl-paths": "C-KL, paths alone",
    "c-kl-teacher": "C-KL, teacher's paths",
    "c-kl-reverse": "C-KL, reverse",
    "c-kl-jsd": "C-KL, JSD",
    "partition-kl": "Partition-KL",
    "p-kl": "P-KL",
    "gold": "GOLD",
    "uld": "ULD",
    "alm": "ALM x 100",
    "strict": "strict",
    "strict-16": "strict, best 16",
    "bpm": "BPM",
    "escd": "ESCD",
    "simct": "SimCT",
}
CES = {"fixed": "with CE", "none": "without CE"}
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
        policy: whose text it was, "off" for the corpus's, "on" for the student's.
        runs: the results, in the order of the seeds.
    """

    pair: str
    corpus: str
    arm: str
    ce: str
    policy: str
    runs: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        """For people."""
        return NAMES[self.arm]

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
    def read(cls, results: dict[str, Any]) -> Table:
        """Groups the runs by arm."""
        grouped: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for run in results["arms"]:
            grouped.setdefault(tuple(run[name] for name in ("pair", "corpus", "arm", "ce", "policy")), []).append(run)
        # An arm that lacks a seed would be compared with others on other seeds.
        whole = {key: runs for key, runs in grouped.items() if len(runs) == len(results["seeds"])}
        return cls(tuple(Row(*key, tuple(runs)) for key, runs in whole.items()), results)

    def find(self, pair: str, arm: str, ce: str = "fixed", corpus: str = "wrong", policy: str = "off") -> Row | None:
        """An arm, if it was run; the arms without a pair of tokenizers belong to all pairs."""
        one = "same" if arm in ("no teacher", "same-kd") else pair
        wanted = (one, corpus, arm, "fixed" if arm == "no teacher" else ce, "off" if arm == "no teacher" else policy)
        return next((row for row in self.rows if (row.pair, row.corpus, row.arm, row.ce, row.policy) == wanted), None)

    def of(self, pair: str, ce: str = "fixed", corpus: str = "wrong", policy: str = "off") -> list[Row]:
        """A pair's arms of one kind, the best first, after the arms that belong to all pairs."""
        own = [row for row in self.rows if (row.pair, row.ce, row.corpus, row.policy) == (pair, ce, corpus, policy)]
        shared = [self.find(pair, arm, ce, corpus, policy) for arm in ("no teacher", "same-kd")]
        return [row for row in shared if row is not None] + sorted(own, key=lambda row: -row.mean("exact"))

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
