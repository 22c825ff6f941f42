"""The names of the rules, in the order in which they run; the position is the number stored per link."""

from __future__ import annotations

RULES = (
    "none",
    "override",
    "identity",
    "exact",
    "special",
    "space",
    "case",
    "nfkc",
    "digits",
    "decompose",
    "bytes",
    "reverse",
)
"""Index 0 marks a row without links. `reverse` is no owner unless a row has nothing else."""

RULE_NUMBER = {name: number for number, name in enumerate(RULES)}

EXACT_RULES = ("identity", "exact", "special")
NEAR_RULES = ("space", "case", "nfkc")
SPLIT_RULES = ("digits", "decompose", "bytes", "reverse")
OPTIONAL_RULES = ("case", "nfkc")
