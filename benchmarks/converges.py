"""What each loss converges to: how far from the teacher's strings a student ends that can be anything and sees all.

    python benchmarks/converges.py [--only KIND ...] [--out converges.json]
    python benchmarks/converges.py --table converges.json

The student is a table: logits of its next token, one row for each last token. The teacher is a Markov chain over
letters, perfect at its own tokens. There is no sampling of batches: every pair of neighbouring chunks of a long text
counts as often as it occurs, and L-BFGS minimises the sum of the slow losses of `tests/losses/`. So what is left is
the loss's own: a student that writes the teacher's strings exists, and a loss is right if it ends there.

Worlds: `a` the student packs, `b` the teacher packs, `c` each packs its own, `d` tokens cross. The text is the
teacher's, but a quarter of its letters is noise. Each loss is minimised alone, and with the text's cross-entropy beside
it. The figure is KL(teacher's strings || student's) per letter, in nats; a cross-entropy alone learns the noise.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "losses")]

from slow_exact import Comparison, ExactKL  # noqa: E402 - the slow losses stand among the tests
from slow_kinds import slow_kind  # noqa: E402
from slow_loss import slow_loss  # noqa: E402
from slow_parts import Batch  # noqa: E402
from small_vocabs import make_vocab  # noqa: E402

from xtoken_align import align_ids, build  # noqa: E402

LETTERS = "abc"
LENGTH = 200_000  # letters
AHEAD = 6  # letters that decide any two neighbouring tokens
NOISE = 0.25
STEPS = 60  # of L-BFGS

WORLDS = {
    "a": (["a", "b", "c", "ab", "abb"], ["a", "b", "c"]),
    "b": (["a", "b", "c"], ["a", "b", "c", "ab", "abb"]),
    "c": (["a", "b", "c", "ab"], ["a", "b", "c", "cc"]),
    "d": (["a", "b", "c", "bc"], ["a", "b", "c", "ab"]),
}
"""Tokens of the student and the teacher; all beginnings of a token are tokens, so the last token is all that counts."""

Values = Callable[["World", torch.Tensor, torch.Tensor], torch.Tensor]
"""A loss of each pair of chunks."""


@dataclass(frozen=True, eq=False)
class Side:
    """One tokenizer: the longest match."""

    tokens: Sequence[str]

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Finds the next token."""
        return re.compile("|".join(sorted(self.tokens, key=len, reverse=True)))

    def encode(self, text: str) -> list[str]:
        """A text's tokens."""
        return self.pattern.findall(text)

    def table(self, chain: np.ndarray) -> np.ndarray:
        """float64 (V, V), P(next token | last token) where letters follow a Markov chain (3, 3)."""
        made = np.zeros((len(self.tokens),) * 2)
        for row, last in enumerate(self.tokens):
            for letters in product(LETTERS, repeat=AHEAD):
                future = "".join(letters)
                first, second = self.encode(last + future)[:2]
                if first == last:
                    path = [LETTERS.index(letter) for letter in last[-1] + future]
                    made[row, self.tokens.index(second)] += np.prod(chain[path[:-1], path[1:]])
        return made / made.sum(1, keepdims=True)


class World:
    """Two tokenizers, the teacher's rows, and how often each pair of neighbouring chunks occurs.

    Args:
        student: its tokens.
        teacher: its tokens.
        seed: of the teacher's chain.
        noise: the share of letters that are drawn at random.
        length: letters of the text whose pairs of chunks are counted.
    """

    def __init__(
        self,
        student: Sequence[str],
        teacher: Sequence[str],
        *,
        seed: int = 0,
        noise: float = NOISE,
        length: int = LENGTH,
    ) -> None:
        source = np.random.default_rng(seed)
        self.chain = source.dirichlet(np.ones(len(LETTERS)), size=len(LETTERS)) * 0.75 + 0.25 / len(LETTERS)
        self.sides = Side(student), Side(teacher)
        self.vocabs = make_vocab(list(student), name="student"), make_vocab(list(teacher), name="teacher")
        self.mapping = build(student=self.vocabs[0], teacher=self.vocabs[1])
        self.rows = torch.from_numpy(self.sides[1].table(self.chain)).log()
        self.truth = torch.from_numpy(self.sides[0].table(self.chain))
        text = "".join(LETTERS[at] for at in walk((1 - noise) * self.chain + noise / len(LETTERS), length, source))
        ours, theirs = (side.encode(text) for side in self.sides)
        self.bigrams = torch.zeros(len(student), len(student), dtype=torch.float64)
        for (last, token), count in Counter(pairwise(ours)).items():
            self.bigrams[student.index(last), student.index(token)] = count
        found = chunks(ours, theirs)
        counts = Counter(pairwise(found))
        self.weight = torch.tensor([*counts.values()], dtype=torch.float64) / counts.total()
        ids = [
            [[side.tokens.index(token) for chunk in pair for token in chunk[number]] for pair in counts]
            for number, side in enumerate(self.sides)
        ]
        # The first chunk of a row is predicted by nothing, so only the second one counts.
        self.spans = align_ids(*ids, student=self.vocabs[0], teacher=self.vocabs[1])
        self.ids = [torch.from_numpy(side) for side in (self.spans.student_ids, self.spans.teacher_ids)]

    @cached_property
    def exact(self) -> tuple[ExactKL, list[list[Comparison]]]:
        """Path-exact KL, and what it compares in each pair of chunks."""
        loss = ExactKL(*self.vocabs, self.mapping)
        student = torch.zeros(*self.ids[0].shape, len(self.truth), dtype=torch.float64)
        return loss, loss.comparisons(Batch.of(self.mapping, student, self.rows[self.ids[1]]), self.spans)[0]

    def distance(self, table: torch.Tensor) -> float:
        """KL(teacher's strings || student's) per letter, of a student (V, V) of logits by last token."""
        share = torch.full((len(self.truth),), 1 / len(self.truth), dtype=torch.float64)
        for _ in range(1000):
            share = share @ self.truth
        sizes = torch.tensor([len(token) for token in self.sides[0].tokens], dtype=torch.float64)
        given = self.truth > 0
        terms = torch.where(given, self.truth * (self.truth.clamp_min(1e-300).log() - table.log_softmax(1)), 0.0)
        return float(share @ terms.sum(1) / (share @ sizes))

    def cross_entropy(self, table: torch.Tensor) -> torch.Tensor:
        """Of the text, per token of the student."""
        return -(self.bigrams * table.log_softmax(1)).sum() / self.bigrams.sum()

    def distillation(self, table: torch.Tensor, values: Values) -> torch.Tensor:
        """A loss per chunk of the text."""
        return self.weight @ values(self, table[self.ids[0]], self.rows[self.ids[1]])


def walk(chain: np.ndarray, length: int, source: np.random.Generator) -> Iterable[int]:
    """A text of a Markov chain, letter by letter."""
    bounds, draws, at = chain.cumsum(1), source.random(length), 0
    for draw in draws:
        at = min(int((bounds[at] < draw).sum()), len(LETTERS) - 1)
        yield at


def chunks(student: Sequence[str], teacher: Sequence[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The shortest runs of tokens that both sides write with the same letters.

    >>> chunks(["ab", "c"], ["a", "b", "c"])
    [(('ab',), ('a', 'b')), (('c',), ('c',))]
    """
    found, at, size = [], [0, 0], [0, 0]
    while at[0] < len(student) and at[1] < len(teacher):
        begin = tuple(at)
        while size[0] != size[1] or at[0] == begin[0]:
            side = int(size[0] > size[1]) if size[0] != size[1] else 0
            if at[side] == len((student, teacher)[side]):
                return found
            size[side] += len((student, teacher)[side][at[side]])
            at[side] += 1
        found.append((tuple(student[begin[0] : at[0]]), tuple(teacher[begin[1] : at[1]])))
    return found


def this_year(kind: str, **options: Any) -> Values:
    """A kind and its options of `slow_kind`."""
    return lambda world, student, teacher: (
        slow_kind(world.mapping, student, teacher, world.spans, kind=kind, **options).chunk_kd
    )


def older(kind: str, **options: Any) -> Values:
    """A kind of `slow_loss`."""
    return lambda world, student, teacher: (
        slow_loss(world.mapping, student, teacher, world.spans, kind=kind, **options).chunk_kd
    )


def same_tokenizer(world: World, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """A KL over the student's tokens from a teacher that has its tokenizer, at the chunk's first position."""
    del teacher
    first = torch.tensor([int((row == 1).int().argmax()) - 1 for row in torch.from_numpy(world.spans.student)])
    rows = torch.arange(len(first))
    truth, guess = world.truth[world.ids[0][rows, first]], student[rows, first].log_softmax(1)
    return torch.where(truth > 0, truth * (truth.clamp_min(1e-300).log() - guess), 0.0).sum(1)


def path_exact(world: World, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Path-exact KL; what it compares is found once a world."""
    batch = Batch.of(world.mapping, student, teacher)
    loss, comparisons = world.exact
    return torch.stack([loss.value(batch, chunk) for chunk in comparisons])


LOSSES: dict[str, Values] = {
    "same-tokenizer KD": same_tokenizer,
    "exact": path_exact,
    "C-KL": this_year("c-kl"),
    "C-KL, text": this_year("c-kl", level_weight="text"),
    "C-KL, reverse": this_year("c-kl", divergence="reverse"),
    "C-KL, jsd": this_year("c-kl", divergence="jsd"),
    "C-KL, first form": this_year("c-kl", level_weight="text", end=False),
    "Partition-KL": this_year("partition-kl"),
    "P-KL": this_year("p-kl"),
    "H-KL": this_year("h-kl"),
    "GOLD": this_year("gold"),
    "GOLD, unnormalised": older("gold", normalize="none"),
    "ULD": older("uld"),
    "ALM": older("alm"),
    "strict": this_year("strict"),
    "BPM": this_year("bpm"),
    "BPM, forward": this_year("bpm", divergence="forward"),
    "ESCD": this_year("escd"),
    "SimCT": this_year("simct"),
}


def minimise(world: World, values: Values | None, *, with_text: bool) -> dict[str, Any]:
    """Where a loss ends; `grows` if the distance was still growing, as it does where a loss has no minimum."""
    table = torch.zeros(len(world.truth), len(world.truth), dtype=torch.float64, requires_grad=True)
    seen = []
    for _ in range(2):
        search = torch.optim.LBFGS(
            [table], max_iter=STEPS // 2, line_search_fn="strong_wolfe", tolerance_grad=1e-8, tolerance_change=1e-9
        )

        def total() -> torch.Tensor:
            search.zero_grad()  # noqa: B023 - called at once
            loss = torch.zeros((), dtype=torch.float64)
            if values is not None:
                loss = loss + world.distillation(table, values)
            if with_text:
                loss = loss + world.cross_entropy(table)
            loss.backward()
            return loss

        search.step(total)
        seen.append(world.distance(table.detach()))
    return {"distance": round(seen[1], 6), "grows": seen[1] > max(1.05 * seen[0], 0.5)}


def line(name: str, cells: dict[str, dict[str, Any]]) -> str:
    """A loss's line of the table."""
    parts = [f"{cell['distance']:8.4f}{'+' if cell['grows'] else ' '}" for cell in cells.values()]
    return f"{name:<20}" + " ".join(parts)


def markdown(losses: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """The lines of the documentation's table."""
    columns = [f"{beside}, {world}" for beside in ("alone", "+ CE") for world in WORLDS]
    lines = [f"| loss | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
    for name, cells in losses.items():
        figures = ["" if column not in cells else f"{cells[column]['distance']:.4f}" for column in columns]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return lines


def main() -> None:
    """Minimises all losses in all worlds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[*LOSSES], help="these losses alone")
    parser.add_argument("--out", type=Path, help="write the figures as JSON; other losses' in the file stay")
    parser.add_argument("--table", type=Path, help="print the table of a file that --out has written, and end")
    options = parser.parse_args()
    if options.table:
        print("\n".join(markdown(json.loads(options.table.read_text(encoding="utf-8"))["losses"])))
        return
    torch.set_num_threads(1)
    worlds = {name: World(*tokens) for name, tokens in WORLDS.items()}
    started = perf_counter()
    table = json.loads(options.out.read_text())["losses"] if options.out and options.out.exists() else {}
    table["CE"] = {f"+ CE, {name}": minimise(world, None, with_text=True) for name, world in worlds.items()}
    print(f"{'KL per letter':<20}" + " ".join(f"{f'alone, {name}':>9}" for name in worlds), end=" ")
    print(" ".join(f"{f'+ CE, {name}':>9}" for name in worlds))
    print(f"{'CE':<{20 + 10 * len(worlds)}}" + line("", table["CE"])[20:])
    for name in options.only or LOSSES:
        table[name] = {
            f"{'+ CE' if with_text else 'alone'}, {letter}": minimise(world, LOSSES[name], with_text=with_text)
            for with_text in (False, True)
            for letter, world in worlds.items()
        }
        print(line(name, table[name]), flush=True)
        if options.out:
            options.out.write_text(json.dumps({"worlds": WORLDS, "noise": NOISE, "losses": table}, indent=1) + "\n")
    print(f"+: still growing when the search ended. {perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
