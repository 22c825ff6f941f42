"""The counts of one token class."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClassRow:
    """How many student ids of a class are mapped, and how; exact + near + split + empty = total.

    Attributes:
        total: ids of the class.
        exact: rows of rule identity, exact or special.
        near: rows of rule space, case or nfkc, and overrides with one link.
        split: rows of rule digits, decompose, bytes or reverse, and overrides with more links.
        empty: rows without links.
        common_strict: rows in the strict common set.
        common_relaxed: rows in the relaxed common set.
    """

    total: int = 0
    exact: int = 0
    near: int = 0
    split: int = 0
    empty: int = 0
    common_strict: int = 0
    common_relaxed: int = 0
