"""Texts of the experiment: running sums and short stories, drawn with a seed, some with wrong answers."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

FIRST, SECOND = 120, 9
"""Operands are 1 to these; answers are 0 to their sum, so numerals have one to three digits."""
HELD_OUT = 0.1
"""Share of the problems that no training text has."""
LINKS = {"sum": 4, "story": 3}
"""Sums in a running sum, and in a story."""
STORIES = 0.4
"""Share of the texts that are stories."""

BEGINNINGS = ("{name} has {a} {things}", "{name} wants {a} {things}")
NAMES = (
    ("Ada", "Ben", "Eva", "Ian", "Kim", "Leo", "Max", "Zoe"),
    ("Amy", "Bob", "Fay", "Gus", "Jim", "Liz", "Rex", "Una"),
)
THINGS = (
    ("bags", "cups", "figs", "hats", "keys", "maps", "pens", "rings"),
    ("buns", "caps", "eggs", "jars", "nuts", "pots", "tops", "wigs"),
)
"""Names and things in two halves: a tokenizer that was trained on one half cuts the words of the other."""


class Problem(NamedTuple):
    """A sum: `a sign b`."""

    a: int
    sign: str
    b: int

    @property
    def answer(self) -> int:
        """What the sum comes to."""
        return self.a + self.b if self.sign == "+" else self.a - self.b


@dataclass(frozen=True)
class Text:
    """A text.

    Attributes:
        prompt: the text up to its first answer.
        rest: the text from there on.
        sums: its problems, each with the answer that the text gives.
        places: where in the text each answer begins.
    """

    prompt: str
    rest: str
    sums: tuple[tuple[Problem, int], ...]
    places: tuple[int, ...]

    @property
    def text(self) -> str:
        """The whole text."""
        return self.prompt + self.rest

    @property
    def answer(self) -> int:
        """What belongs after the prompt."""
        return self.sums[0][0].answer


@dataclass(frozen=True)
class Pool:
    """Problems to draw from."""

    problems: tuple[Problem, ...]

    @cached_property
    def by_first(self) -> dict[int, list[Problem]]:
        """The problems that begin with a number."""
        made: dict[int, list[Problem]] = defaultdict(list)
        for problem in self.problems:
            made[problem.a].append(problem)
        return dict(made)


def pools(seed: int = 0) -> tuple[Pool, Pool]:
    """All problems, split into those for training and those held out.

    >>> train, held_out = pools()
    >>> len(train.problems), len(held_out.problems), set(train.problems) & set(held_out.problems)
    (1902, 211, set())
    """
    pairs = [(a, b) for a in range(1, FIRST + 1) for b in range(1, SECOND + 1)]
    made = [Problem(a, sign, b) for a, b in pairs for sign in "+-" if sign == "+" or b <= a]
    random.Random(seed).shuffle(made)  # noqa: S311 - a fixed order, no secret
    cut = round(len(made) * HELD_OUT)
    return Pool(tuple(made[cut:])), Pool(tuple(made[:cut]))


def draw(
    pool: Pool, count: int, seed: int, *, wrong: float = 0.0, stories: float = STORIES, half: int | None = None
) -> list[Text]:
    """Draws texts.

    Args:
        pool: the problems to draw from, with replacement.
        count: how many texts.
        seed: equal seeds give equal texts.
        wrong: share of the answers that are wrong; a running sum goes on from a wrong answer.
        stories: share of the texts that are stories.
        half: of which half the names and things are; by default of both.

    >>> one = Pool((Problem(34, "+", 8), Problem(42, "-", 11)))
    >>> [text.text for text in draw(one, 2, seed=0, stories=0)]
    ['34+8=42-11=31.', '42-11=31.']
    """
    source = random.Random(f"{seed} {wrong} {stories} {half}")  # noqa: S311 - texts, no secret
    return [_text(source, pool, wrong, half, story=source.random() < stories) for _ in range(count)]


def _text(source: random.Random, pool: Pool, wrong: float, half: int | None, *, story: bool) -> Text:
    problem = source.choice(pool.problems)
    sums = [(problem, _said(source, problem, wrong))]
    while len(sums) < LINKS["story" if story else "sum"] and (going_on := pool.by_first.get(sums[-1][1])):
        problem = source.choice(going_on)
        sums.append((problem, _said(source, problem, wrong)))
    halves = (0, 1) if half is None else (half,)
    name = source.choice([name for each in halves for name in NAMES[each]])
    things = source.choice([thing for each in halves for thing in THINGS[each]])
    first = sums[0][0].a
    text = source.choice(BEGINNINGS).format(name=name, a=first, things=things) if story else str(first)
    places = []
    for (_, sign, b), said in sums:
        places.append(len(text) + len(f"{sign}{b}="))
        text += f"{sign}{b}={said} {things}" if story else f"{sign}{b}={said}"
    return Text(text[: places[0]], f"{text[places[0] :]}.", tuple(sums), tuple(places))


def _said(source: random.Random, problem: Problem, wrong: float) -> int:
    """The right answer, or with the probability `wrong` another number, all equally likely."""
    right = problem.answer
    if source.random() >= wrong:
        return right
    return source.choice([other for other in range(FIRST + SECOND + 1) if other != right])


def wrong_share(texts: Sequence[Text]) -> float:
    """Which share of the answers is wrong."""
    wrong = [said != problem.answer for text in texts for problem, said in text.sums]
    return sum(wrong) / len(wrong)
