"""Which loss suits a pair of tokenizers, from how its mapping covers the critical classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import OptionError
from .classes import CLASSES, ClassRow

DEFAULT_CRITICAL = ("digits_2", "digits_3", "ascii_punct_1")
"""The classes that decide: numerals of several digits and single marks, which arithmetic needs whole."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A loss for a pair, and why.

    Attributes:
        loss: the rule of the method's paper: `p-kl`, `h-kl`, or `identity` for equal vocabularies.
        default: this library's own choice, which a loss of kind `auto` takes: `c-kl` or `partition-kl`.
        because: one sentence with the numbers that decided `loss`.
    """

    loss: str
    default: str
    because: str


def recommend(
    rows: Mapping[str, ClassRow],
    *,
    identical: bool,
    critical: Sequence[str] = DEFAULT_CRITICAL,
    has_decompositions: bool = True,
) -> Recommendation:
    """Recommends a loss from the counts per class.

    `p-kl` where a critical class that has tokens keeps less than half of them in the strict common set, or where that
    set is empty; `identity` for equal vocabularies; else `h-kl`. A class without tokens never decides.

    Args:
        rows: class name -> counts; an absent class has no tokens.
        identical: whether the two vocabularies are equal.
        critical: names of the classes that decide.
        has_decompositions: whether the mapping knows how each side spells the other's tokens; C-KL needs that.

    Returns:
        The recommendation.

    Raises:
        OptionError: `critical` names an unknown class.

    Example:
        >>> recommend({"digits_2": ClassRow(total=100, split=100), "greek": ClassRow(5, 5, common_strict=5)},
        ...           identical=False).because
        '0 of 100 digits_2 tokens are in the strict common set (half is needed)'

    Source: X-Token (arXiv:2605.21699, 2026), section 4.
    """
    deciding = {name: rows[name] for name in _known(critical) if name in rows and rows[name].total}
    lost = {name: row for name, row in deciding.items() if 2 * row.common_strict < row.total}
    total = sum(row.total for row in rows.values())
    common = sum(row.common_strict for row in rows.values())
    default = "c-kl" if has_decompositions else "partition-kl"
    if identical:
        return Recommendation("identity", default, "the two vocabularies are equal")
    if not common:
        return Recommendation("p-kl", default, f"none of the {total} student ids is in the strict common set")
    if lost:
        return Recommendation("p-kl", default, f"{_numbers(lost)} (half is needed)")
    if deciding:
        return Recommendation("h-kl", default, f"{_numbers(deciding)} (half is enough)")
    return Recommendation(
        "h-kl", default, f"no critical class has tokens, and {common} of {total} ids are in the strict common set"
    )


def _known(critical: Sequence[str]) -> tuple[str, ...]:
    names = (critical,) if isinstance(critical, str) else tuple(dict.fromkeys(critical))
    unknown = [name for name in names if name not in CLASSES]
    if unknown:
        raise OptionError(
            f"expected names of token classes as critical, got {', '.join(map(repr, unknown))}; "
            f"choose among {', '.join(CLASSES)}"
        )
    return names


def _numbers(rows: Mapping[str, ClassRow]) -> str:
    parts = [f"{row.common_strict} of {row.total} {name}" for name, row in rows.items()]
    listed = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"{listed} tokens are in the strict common set"
