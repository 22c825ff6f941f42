"""The student tokens that a mapping splits or leaves empty, for people to read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cards import data_frame
from ..coverage.classes import CLASSES, classify
from ..coverage.coverage import EMPTY_REASONS
from ..errors import OptionError
from ..matrix import Matrix
from ..rules.links import RULE_NUMBER, RULES, SPLIT_RULES
from ..visible import visible_bytes
from ..vocab.kinds import Kind
from .find import json_surface

REASON_OF_KIND = {kind: reason for reason, kinds in EMPTY_REASONS.items() for kind in kinds}
"""Why a row without links is empty, by the kind of its token."""

_LAST = ("special", "byte", "partial_utf8", "reserved")
_READING_ORDER = np.array(
    [0 if name.startswith("digits") else 2 + _LAST.index(name) if name in _LAST else 1 for name in CLASSES]
)
"""A number per class: numerals are listed first, since losing them costs most, and tokens that are no text last."""


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A student token that is neither exact nor near.

    Attributes:
        id: student id.
        surface: its bytes.
        reason: `split by RULE`, or why its row is empty.
        class_name: its class.
    """

    id: int
    surface: bytes
    reason: str
    class_name: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `inspect --unmatched`."""
        return {
            "id": self.id,
            "surface": json_surface(self.surface),
            "reason": self.reason,
            "class": self.class_name,
        }


class UnmatchedTokens(list[Unmatched]):
    """Tokens that are neither exact nor near, as a list that a notebook can show as a table."""

    def to_frame(self) -> Any:
        """A pandas table with the columns id, surface (as text, what is not seen written out), class, reason.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = [{**entry.to_dict(), "surface": visible_bytes(entry.surface)} for entry in self]
        return data_frame(rows, ("id", "surface", "class", "reason"))


def unmatched_tokens(
    kinds: NDArray[np.uint8],
    surfaces: Sequence[bytes],
    matrix: Matrix,
    *,
    classes: Sequence[str],
    reasons: Sequence[str],
    pattern: str | None,
    limit: int | None,
) -> UnmatchedTokens:
    """`Mapping.unmatched`, over the student's kinds and surfaces and W."""
    unknown = [name for name in classes if name not in CLASSES]
    if unknown:
        raise OptionError(f"no class is called {unknown[0]!r}: the classes are {', '.join(CLASSES)}")
    try:
        wanted = None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise OptionError(f"{pattern!r} is no regular expression: {error}") from error
    owner = matrix.owner
    split = np.isin(owner, [RULE_NUMBER[rule] for rule in SPLIT_RULES])
    split |= (owner == RULE_NUMBER["override"]) & (np.diff(matrix.indptr) > 1)
    candidates = np.flatnonzero(split | (owner == 0))
    # Classifying a whole vocabulary takes a while: only the tokens that are split or empty are classified.
    class_of = classify(kinds[candidates], [surfaces[token_id] for token_id in candidates.tolist()])
    # Ids 3 5 8 of the classes latin, digits_2, special have the reading orders 1 0 2: 5 3 8. Stable, so that ids ascend
    # within a class.
    order = np.argsort(_READING_ORDER[class_of], kind="stable")
    tokens = UnmatchedTokens()
    for at in order.tolist():
        # Counted after filtering: `limit` tokens that were asked for, not the first `limit` of all.
        if limit is not None and len(tokens) >= limit:
            break
        token_id, name = int(candidates[at]), CLASSES[class_of[at]]
        rule = RULES[owner[token_id]]
        reason = REASON_OF_KIND[Kind(kinds[token_id])] if rule == "none" else f"split by {rule}"
        if (
            (not classes or name in classes)
            and (not reasons or any(part in reason for part in reasons))
            and (wanted is None or wanted.search(surfaces[token_id].decode("utf-8", "backslashreplace")))
        ):
            tokens.append(Unmatched(token_id, surfaces[token_id], reason, name))
    return tokens
