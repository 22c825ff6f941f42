"""Answers to the experiment's questions, worded by what the numbers say."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from settings import PAIRS
from table import CES, NAMES, UNCOMMON, Row, Table, difference

KEPT = 0.9
"""Mass that stays above this share of what it was before counts as kept."""
COLLAPSED = 0.5
"""Exact answers below this share of what they were before, and mass below this share, count as a collapse."""
WORDS = {"above": "clearly above", "below": "clearly below", "level": "not clearly different from"}
MAPPED = ("digits", "words")


def questions(table: Table) -> str:
    """A section per question."""
    parts = (_gold, _p_kl, _c_kl, _dynamic, _h_kl, _better)
    return "\n".join("\n".join([f"### {part.__doc__}\n", *(f"- {line}" for line in part(table)), ""]) for part in parts)


def _gold(table: Table) -> Iterable[str]:
    """Does GOLD collapse?"""
    for pair in MAPPED:
        for arm in ("gold-none", "gold"):
            for ce in ("fixed", "none"):
                row = table.find(pair, arm, ce)
                if row is not None:
                    yield f"`{pair}`, {row.name}: {_fate(table, row)}."


def _p_kl(table: Table) -> Iterable[str]:
    """Does P-KL keep the numerals?"""
    for arm in ("p-kl", "p-kl-mean", "partition-kl"):
        for ce in CES:
            row = table.find("digits", arm, ce)
            if row is not None:
                before, lowest = row.mass()[0], min(row.mass())
                kept = "yes" if lowest >= KEPT * before else "no"
                course = f"{before:.2f} before, {lowest:.2f} at its lowest, {row.mass()[-1]:.2f} at the end"
                yield f"{row.name}: {kept} (mass {course})."


def _c_kl(table: Table) -> Iterable[str]:
    """Does C-KL also teach the later digits?"""
    for ce in ("fixed", "none"):
        ours, others = table.find("digits", "c-kl", ce), ("p-kl", "partition-kl", "no teacher")
        for other in (table.find("digits", name, ce) for name in others):
            if ours is not None and other is not None:
                yield (
                    f"{ours.name}: later digits {ours.mean('later_digits'):.2f}, {_than(ours, other, 'later_digits')}; "
                    f"first digits {ours.mean('first_digit'):.2f} against {other.mean('first_digit'):.2f}."
                )


def _dynamic(table: Table) -> Iterable[str]:
    """Is dynamic scaling unsafe, and with what?"""
    for pair in MAPPED:
        for arm in NAMES:
            fixed = table.find(pair, arm)
            for ce in ("dynamic", "per-batch"):
                row = table.find(pair, arm, ce)
                if row is None or fixed is None:
                    continue
                scale = row.noted("scale")
                factor = "no finite number" if scale is None else f"{scale:.3g}"
                yield (
                    f"`{pair}`, {row.name}: {row.mean('exact'):.2f}, {_than(row, fixed)}; {_fate(table, row)}; mean "
                    f"factor of the last steps {factor}."
                )


def _h_kl(table: Table) -> Iterable[str]:
    """Where does H-KL win?"""
    for pair in MAPPED:
        row, mapping = table.find(pair, "h-kl"), table.results["mappings"].get(pair)
        if row is None or mapping is None:
            continue
        more = mapping["relaxed"] - mapping["strict"]
        pairs = f"has {more} pairs more than GOLD's {mapping['strict']}" if more else "has GOLD's pairs and so is GOLD"
        yield f"`{pair}`: H-KL {pairs}; exact {row.mean('exact'):.2f}, perplexity {row.mean('perplexity'):.3f}."
        for arm in ("h-kl-none", "gold", "gold-none", "p-kl", "c-kl", "no teacher"):
            other = table.find(pair, arm)
            if other is not None:
                yield f"`{pair}`: H-KL is {_than(row, other)}; perplexity there {other.mean('perplexity'):.3f}."


def _better(table: Table) -> Iterable[str]:
    """Which of them beats training without a teacher?"""
    without = table.find("same", "no teacher")
    if without is None:
        return
    yield f"Without a teacher: {without.mean('exact'):.2f} (before: {table.start('exact'):.2f})."
    arms = {pair: [row for row in table.of_pair(pair) if row.pair == pair] for pair in PAIRS}
    for pair, rows in arms.items():
        for fate in ("above", "level", "below"):
            some = [row for row in rows if row is not without and difference(row, without)[1] == fate]
            named = ", ".join(f"{row.name} {row.mean('exact'):.2f}" for row in _best_first(some))
            if named:
                yield f"`{pair}`, {WORDS[fate]} it: {named}."
    clean = table.find("same", "no teacher", corpus="clean")
    rows = chain.from_iterable(table.of_pair(pair, "clean") for pair in ("same", "digits"))
    unique = {id(row): row for row in rows if row is not clean}
    if clean is not None and unique:
        named = ", ".join(f"{row.name} ({row.pair}) {row.mean('exact'):.2f}" for row in _best_first(unique.values()))
        yield f"On clean text, without a teacher {clean.mean('exact'):.2f}; {named}."


def _best_first(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -row.mean("exact"))


def _than(one: Row, other: Row, of: str = "exact") -> str:
    """One arm beside another."""
    gap, fate = difference(one, other, of)
    return f"{WORDS[fate]} {other.name} ({other.mean(of):.2f}; {gap:+.2f})"


def _fate(table: Table, row: Row) -> str:
    """What became of the tokens that the teacher does not have, and of the answers."""
    name = UNCOMMON[row.pair]
    mass, before, exact = row.mass(name), table.start("exact"), row.mean("exact")
    course = f"mass of {name} {mass[0]:.2f} before, {min(mass):.2f} at its lowest, {mass[-1]:.2f} at the end"
    told = f"{course}; exact {before:.2f} before, {exact:.2f} at the end"
    wrong, lost = exact < COLLAPSED * before, min(mass) < KEPT * mass[0]
    if wrong and min(mass) < COLLAPSED * mass[0]:
        return f"collapse ({told})"
    if lost:
        return f"{name} lost, answers {'lost' if wrong else 'not'} ({told})"
    return f"{name} kept, answers lost ({told})" if wrong else f"no collapse ({told})"
