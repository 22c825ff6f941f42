"""The report's colours: one hue for each way of being mapped, one lightness for each rule of that way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..rules.names import EXACT_RULES, NEAR_RULES, RULES, SPLIT_RULES

WAYS = ("exact", "near", "split", "empty")
"""How a row is mapped: the columns of the coverage report."""


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour on a light and on a dark page."""

    light: str
    dark: str


# Blue, green and orange after Okabe and Ito's set for colour-blind readers (jfly.uni-koeln.de/color, 2008); the rules
# of one way differ in lightness, which every eye sees. Rules that run by default have the middle of their hue.
_COLOURS = {
    "identity": Colour("#004a78", "#1f6fa8"),
    "exact": Colour("#0072b2", "#3a9bdc"),
    "special": Colour("#6cbdec", "#9dd6f9"),
    "space": Colour("#00835f", "#1fae86"),
    "case": Colour("#62c3a2", "#83dcbf"),
    "nfkc": Colour("#005a41", "#0d7d5e"),
    "override": Colour("#bf76ab", "#d487bb"),
    "digits": Colour("#c4450c", "#e8703a"),
    "decompose": Colour("#eaa221", "#f0b445"),
    "bytes": Colour("#7a3b06", "#a7602a"),
    "reverse": Colour("#f3cd7e", "#f9e0a8"),
    "none": Colour("#a3abb5", "#59626e"),
}
assert set(_COLOURS) == set(RULES), "every rule has a colour"

_WAY_COLOURS = {"exact": "exact", "near": "space", "split": "decompose", "empty": "none"}

OTHER = Colour("#5f6670", "#b6bec8")
"""For a rule that only a newer version knows."""


def way_of(rule: str, links: int) -> str:
    """How a row is mapped, from its rule and its number of links: an override is near with one, split with more.

    >>> way_of("space", 1), way_of("override", 2), way_of("none", 0)
    ('near', 'split', 'empty')
    """
    if rule == "override":
        return "near" if links <= 1 else "split"
    for way, rules in (("exact", EXACT_RULES), ("near", NEAR_RULES), ("split", SPLIT_RULES)):
        if rule in rules:
            return way
    return "empty"


def by_way(rules: Iterable[str]) -> list[str]:
    """Rules in the order in which a bar shows them: exact first, then near, overrides, split, and last no rule."""
    given = list(rules)
    order = (*EXACT_RULES, *NEAR_RULES, "override", *SPLIT_RULES)
    return [rule for rule in order if rule in given] + [rule for rule in given if rule not in order]


def swatch(rule: str) -> str:
    """The style class that fills a shape with a rule's colour."""
    return f"rule-{rule}" if rule in _COLOURS else "rule-other"


def style_rules() -> str:
    """The colours as style sheet text: one property per rule for each of the two themes, one class per rule and way."""
    named = {**{f"rule-{rule}": colour for rule, colour in _COLOURS.items()}, "rule-other": OTHER}
    named |= {f"way-{way}": _COLOURS[rule] for way, rule in _WAY_COLOURS.items()}
    light = "".join(f"--{name}:{colour.light};" for name, colour in named.items())
    dark = "".join(f"--{name}:{colour.dark};" for name, colour in named.items())
    classes = "".join(f".{name}{{fill:var(--{name});background-color:var(--{name})}}\n" for name in named)
    # A printed page is light, whatever the screen is.
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{classes}"
