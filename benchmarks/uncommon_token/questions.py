"""Answers to the experiment's questions, worded by what the numbers say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

from settings import CORPORA
from table import CES, UNCOMMON, Row, Table, difference

KEPT = 0.9
"""Mass that stays above this share of what it was before counts as kept."""
COLLAPSED = 0.5
"""Exact answers below this share of what they were before, and mass below this share, count as a collapse."""
WORDS = {"above": "clearly above", "below": "clearly below", "level": "not clearly different from"}
MAPPED = ("digits", "words")
PANELS = (("digits", "wrong", "off"), ("words", "wrong", "off"), ("digits", "mostly", "off"))
OWN_TEXT = (("digits", "wrong", "on"), ("words", "wrong", "on"))
"""Pair, corpus and policy of the tables."""


def questions(table: Table) -> str:
    """A section per question."""
    parts = (_default, _cures, _disagreeing, _best, _coverage, _divergences, _own_text, _lost)
    told = [(part.__doc__, list(part(table))) for part in parts]
    return "\n".join(
        "\n".join([f"### {asked}\n", *(f"- {line}" for line in lines), ""]) for asked, lines in told if lines
    )


def _default(table: Table) -> Iterator[str]:
    """Does the default beat training without a teacher, and how near does it come to the same tokenizer?"""
    for pair, ce in product(MAPPED, CES):
        ours, without, same = (table.find(pair, arm, ce) for arm in ("c-kl", "no teacher", "same-kd"))
        if ours is None or without is None or same is None:
            continue
        seeds = [one - other for one, other in zip(ours.values("exact"), without.values("exact"), strict=True)]
        share = (ours.mean("exact") - without.mean("exact")) / (same.mean("exact") - without.mean("exact"))
        yield (
            f"`{pair}`, {CES[ce]}: C-KL {ours.mean('exact'):.3f}, {_than(ours, without)}, by seed "
            f"{', '.join(f'{gap:+.3f}' for gap in seeds)}; same tokenizer {same.mean('exact'):.3f}, so {share:.0%} of "
            f"the way; perplexity {ours.mean('perplexity'):.3f} against {without.mean('perplexity'):.3f} and "
            f"{same.mean('perplexity'):.3f}."
        )


def _cures(table: Table) -> Iterator[str]:
    """Which of C-KL's two cures does what?"""
    for ce in CES:
        rows = _found(table, "digits", ("c-kl-first", "c-kl-end", "c-kl-paths", "c-kl-teacher", "c-kl"), ce)
        if rows:
            yield f"`digits`, {CES[ce]}: {_listed(rows)}."


def _disagreeing(table: Table) -> Iterator[str]:
    """Does it survive text that the teacher disagrees with?"""
    for ce in CES:
        ours = table.find("digits", "c-kl", ce, "mostly")
        others = [
            table.find("digits", arm, ce, "mostly")
            for arm in ("no teacher", "same-kd", "c-kl-first", "p-kl", "strict", "bpm", "escd", "simct")
        ]
        if ours is not None:
            told = "; ".join(_than(ours, other) for other in others if other is not None)
            yield f"{CORPORA['mostly']:.0%} wrong answers, {CES[ce]}: C-KL {ours.mean('exact'):.3f}, {told}."


def _best(table: Table) -> Iterator[str]:
    """Which loss is best, and which beat training without a teacher?"""
    for (pair, corpus, policy), ce in product(PANELS, CES):
        yield from _beside(table, pair, ce, corpus, policy, "no teacher")


def _coverage(table: Table) -> Iterator[str]:
    """Does coverage help or hurt?"""
    for pair, ce in product(MAPPED, CES):
        rows = _found(table, pair, ("strict", "strict-16", "escd", "bpm", "c-kl"), ce)
        if len(rows) > 1:
            yield f"`{pair}`, {CES[ce]}, from the least compared to the most: {_listed(rows)}."


def _divergences(table: Table) -> Iterator[str]:
    """Forward, reverse, or between?"""
    for pair, (ce, policy) in product(MAPPED, (("fixed", "off"), ("none", "off"), ("none", "on"))):
        rows = _found(table, pair, ("c-kl", "c-kl-reverse", "c-kl-jsd"), ce, policy)
        if len(rows) > 1:
            text = "the student's own text" if policy == "on" else "the corpus's text"
            yield f"`{pair}`, {CES[ce]}, {text}: {_listed(rows)}."


def _own_text(table: Table) -> Iterator[str]:
    """Which loss wins on the student's own text?"""
    for pair, corpus, policy in OWN_TEXT:
        yield from _beside(table, pair, "none", corpus, policy, "c-kl")


def _lost(table: Table) -> Iterator[str]:
    """Which losses take away tokens that the teacher does not have?"""
    for row in table.rows:
        fate = _fate(table, row)
        if row.pair in MAPPED and fate is not None:
            text = "own text" if row.policy == "on" else f"{CORPORA[row.corpus]:.0%} wrong"
            yield f"`{row.pair}`, {row.name}, {CES[row.ce]}, {text}: {fate}."


def _found(table: Table, pair: str, arms: Iterable[str], ce: str, policy: str = "off") -> list[Row]:
    """The arms that were run."""
    return [row for arm in arms if (row := table.find(pair, arm, ce, policy=policy)) is not None]


def _listed(rows: Iterable[Row]) -> str:
    return ", ".join(f"{row.name} {row.mean('exact'):.3f} ({row.mean('perplexity'):.3f})" for row in rows)


def _beside(table: Table, pair: str, ce: str, corpus: str, policy: str, arm: str) -> Iterator[str]:
    """The arms of a panel by how they stand to one of them."""
    other = table.find(pair, arm, ce, corpus, policy)
    rows = [row for row in table.of(pair, ce, corpus, policy) if row is not other]
    if other is None or not rows:
        return
    text = "the student's own text" if policy == "on" else f"{CORPORA[corpus]:.0%} wrong answers"
    for fate in ("above", "level", "below"):
        some = [row for row in rows if difference(row, other)[1] == fate]
        if some:
            named = ", ".join(f"{row.name} {row.mean('exact'):.3f}" for row in some)
            yield f"`{pair}`, {text}, {CES[ce]}, {WORDS[fate]} {other.name} ({other.mean('exact'):.3f}): {named}."


def _than(one: Row, other: Row, of: str = "exact") -> str:
    """One arm beside another."""
    gap, fate = difference(one, other, of)
    return f"{WORDS[fate]} {other.name} ({other.mean(of):.3f}; {gap:+.3f})"


def _fate(table: Table, row: Row) -> str | None:
    """What became of the tokens that the teacher does not have, and of the answers; None if both were kept."""
    name = UNCOMMON[row.pair]
    mass, before, exact = row.mass(name), table.start("exact"), row.mean("exact")
    told = (
        f"mass of {name} {mass[0]:.2f} before, {min(mass):.2f} at its lowest, {mass[-1]:.2f} at the end; exact "
        f"{before:.2f} before, {exact:.2f} at the end"
    )
    wrong, lost = exact < COLLAPSED * before, min(mass) < KEPT * mass[0]
    if wrong and min(mass) < COLLAPSED * mass[0]:
        return f"collapse ({told})"
    if lost:
        return f"{name} lost, answers {'lost' if wrong else 'not'} ({told})"
    return None
