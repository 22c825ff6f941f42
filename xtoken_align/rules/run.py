"""Runs the rules in their order: the first that yields links for a row owns it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError
from . import matching, splitting
from .links import OPTIONAL_RULES, RULES, Decay, Links
from .override import Override, override
from .pieces import Pair

SELECTABLE = tuple(rule for rule in RULES if rule not in ("none", "reverse"))
DEFAULT_RULES = tuple(rule for rule in SELECTABLE if rule not in OPTIONAL_RULES)


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """What decides the links, beside the two vocabularies.

    Attributes:
        rules: names of the rules that run; their order is fixed.
        decay: weights of decompositions.
        reverse_pass: whether teacher tokens without an entry are decomposed into student tokens.
        overrides: the user's own rows.
    """

    rules: tuple[str, ...] = DEFAULT_RULES
    decay: Decay = field(default_factory=Decay)
    reverse_pass: bool = False
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        for rule in self.rules:
            if rule not in SELECTABLE:
                raise OptionError(f"no rule is called {rule!r}: the rules are {', '.join(SELECTABLE)}")
        if not self.rules:
            raise OptionError(f"no rule is named: name at least one of {', '.join(SELECTABLE)}")
        object.__setattr__(self, "rules", tuple(rule for rule in SELECTABLE if rule in self.rules))


Rule = Callable[[Pair, NDArray[np.bool_], RuleOptions], Links]

_RULES: dict[str, Rule] = {
    "override": lambda pair, open_rows, options: override(pair, open_rows, options.overrides, options.decay),
    "identity": lambda pair, open_rows, _: matching.identity(pair, open_rows),
    "exact": lambda pair, open_rows, _: matching.exact(pair, open_rows),
    "special": lambda pair, open_rows, _: matching.special(pair, open_rows),
    "space": lambda pair, open_rows, _: matching.space(pair, open_rows),
    "case": lambda pair, open_rows, _: matching.case(pair, open_rows),
    "nfkc": lambda pair, open_rows, _: matching.nfkc(pair, open_rows),
    "digits": lambda pair, open_rows, options: splitting.digits(pair, open_rows, options.decay),
    "decompose": lambda pair, open_rows, options: splitting.decompose_text(pair, open_rows, options.decay),
    "bytes": lambda pair, open_rows, options: splitting.byte_tokens(pair, open_rows, options.decay),
}


def run_rules(pair: Pair, options: RuleOptions) -> list[Links]:
    """Every enabled rule's links, the reverse pass last.

    Args:
        pair: student and teacher.
        options: what decides.

    Returns:
        One `Links` per rule that ran; no row is in two of them, but for `reverse`.

    Raises:
        OverrideError: an override names an unknown token.
    """
    open_rows = np.ones(len(pair.student), dtype=np.bool_)
    found: list[Links] = []
    for name in options.rules:
        links = _RULES[name](pair, open_rows, options)
        open_rows[links.rows] = False
        found.append(links)
    if options.reverse_pass:
        reached = np.zeros(len(pair.teacher), dtype=np.bool_)
        for links in found:
            reached[links.columns] = True
        found.append(splitting.reverse(pair, reached, options.decay))
    return found


def rule_options(
    *,
    rules: Sequence[str] | None = None,
    case: bool = False,
    nfkc: bool = False,
    lead: float = 0.9,
    decay: float = 0.1,
    top_k: int = 4,
    reverse_pass: bool = False,
    overrides: Sequence[Override] = (),
) -> RuleOptions:
    """Options from the flat arguments of `build`.

    Raises:
        OptionError: an unknown rule, or a number out of its range.
    """
    chosen = tuple(rules) if rules is not None else DEFAULT_RULES
    chosen += ("case",) * case + ("nfkc",) * nfkc + ("override",) * bool(overrides)
    return RuleOptions(chosen, Decay(lead, decay, top_k), reverse_pass, tuple(overrides))
