"""Which loss to train a pair of tokenizers with, and why, from how its mapping covers the classes of tokens.

The answer is one loss and one reason. What the rule of the method's paper would say stands beside it as a footnote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import OptionError
from .classes import CLASSES, ClassRow

DEFAULT_CRITICAL = ("digits_2", "digits_3", "ascii_punct_1")
"""The classes by which the paper's rule decides: what arithmetic is written in."""

_CLASS_WORDS = {
    "digits_2": "numerals of 2 digits",
    "digits_3": "numerals of 3 digits",
    "digits_4plus": "numerals of 4 digits or more",
    "ascii_punct_1": "single punctuation marks",
}


@dataclass(frozen=True, slots=True)
class PaperRule:
    """What the rule of the method's paper says, a footnote to the recommendation.

    Attributes:
        loss: `p-kl`, `h-kl`, or `identity` for equal vocabularies.
        because: the numbers that decided it, in plain words.
        in_file: the same as mapping files have it. It is part of their content hash, so its first wording stays.
    """

    loss: str
    because: str
    in_file: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The loss to train a pair with, and why.

    Attributes:
        loss: what `XTokenLoss` takes for the kind `auto`.
        reason: why, in plain words.
        paper_rule: what the rule of the method's paper says.
    """

    loss: str
    reason: str
    paper_rule: PaperRule

    def to_dict(self) -> dict[str, Any]:
        """The JSON of the commands."""
        rule = {"loss": self.paper_rule.loss, "because": self.paper_rule.because}
        return {"loss": self.loss, "reason": self.reason, "paper_rule": rule}

    def to_metadata(self) -> dict[str, str]:
        """The form in which mapping files keep it."""
        return {"loss": self.paper_rule.loss, "default": self.loss, "because": self.paper_rule.in_file}

    @classmethod
    def from_metadata(cls, stored: Mapping[str, str], rows: Mapping[str, ClassRow]) -> Recommendation:
        """Reads what `to_metadata` wrote; a loss or a sentence of another version is kept as it is.

        Args:
            stored: the three strings.
            rows: class name -> counts of the same file.
        """
        # A file keeps three strings, and plain words are made anew from its counts: if this version would write the
        # same strings, its words explain them. What it would not write is shown as it is.
        ours = recommend(rows, identical=stored["loss"] == "identity")
        known = (stored["loss"], stored["because"]) == (ours.paper_rule.loss, ours.paper_rule.in_file)
        rule = ours.paper_rule if known else PaperRule(stored["loss"], stored["because"], stored["because"])
        reason = ours.reason if stored["default"] == ours.loss else "the version that built this mapping chose it"
        return cls(stored["default"], reason, rule)


def recommend(
    rows: Mapping[str, ClassRow],
    *,
    identical: bool,
    critical: Sequence[str] = DEFAULT_CRITICAL,
) -> Recommendation:
    """Recommends a loss from the counts per class.

    Args:
        rows: class name -> counts; an absent class has no tokens.
        identical: whether the two vocabularies are equal.
        critical: names of the classes by which the paper's rule decides; they do not change `loss`.

    Returns:
        The recommendation.

    Raises:
        OptionError: `critical` names an unknown class.

    Example:
        >>> advice = recommend({"digits_2": ClassRow(total=100, split=100), "greek": ClassRow(5, 5, common_strict=5)},
        ...                    identical=False)
        >>> print(advice.loss, advice.reason, sep=": ")
        c-kl: the teacher writes 100 of the student's numerals in several tokens, and c-kl compares these piece by piece
        >>> advice.paper_rule.loss, advice.paper_rule.because
        ('p-kl', 'only 0 of 100 numerals of 2 digits are tokens of the teacher too')
    """
    # Numerals of other scripts are words to most tokenizers.
    numerals = sum(row.split for name, row in rows.items() if name.startswith("digits") and name != "digits_other")
    split = sum(row.split for row in rows.values())
    mapped = split + sum(row.exact + row.near for row in rows.values())
    # Of what C-KL is good for, the first that fits is the reason.
    if identical:
        reason = "the two vocabularies are equal, and c-kl then is an ordinary KL, token by token"
    elif not mapped:
        reason = "the two vocabularies have no token in common, so that no loss can teach much; c-kl uses what there is"
    elif split:
        count, what = (numerals, "numerals") if numerals else (split, "tokens")
        reason = (
            f"the teacher writes {count:,} of the student's {what} in several tokens, and c-kl compares these piece "
            "by piece"
        )
    else:
        reason = (
            "the teacher has each of the student's tokens, and c-kl compares what the teacher writes in fewer tokens "
            "piece by piece"
        )
    return Recommendation("c-kl", reason, paper_rule(rows, identical=identical, critical=critical))


def paper_rule(rows: Mapping[str, ClassRow], *, identical: bool, critical: Sequence[str]) -> PaperRule:
    """The rule of the method's paper, by the student's tokens that are tokens of the teacher too.

    `p-kl` where a critical class that has tokens keeps less than half of them, or where no token at all is common;
    `identity` for equal vocabularies; else `h-kl`. A class without tokens never decides.

    Raises:
        OptionError: `critical` names an unknown class.

    Source: X-Token (arXiv:2605.21699, 2026), section 4.
    """
    critical = (critical,) if isinstance(critical, str) else tuple(dict.fromkeys(critical))
    unknown = [name for name in critical if name not in CLASSES]
    if unknown:
        raise OptionError(
            f"expected names of token classes as critical, got {', '.join(map(repr, unknown))}; "
            f"choose among {', '.join(CLASSES)}"
        )
    # With 0 of 100 `digits_2`, 60 of 64 `ascii_punct_1` and no `digits_3`, two classes decide, and one of them is lost.
    deciding = {name: rows[name] for name in critical if name in rows and rows[name].total}
    lost = {name: row for name, row in deciding.items() if 2 * row.common_strict < row.total}
    total = sum(row.total for row in rows.values())
    common = sum(row.common_strict for row in rows.values())
    if identical:
        return PaperRule("identity", "the two vocabularies are equal", "the two vocabularies are equal")
    if not common:
        return PaperRule(
            "p-kl",
            f"none of the student's {total:,} tokens is a token of the teacher too",
            f"none of the {total} student ids is in the strict common set",
        )
    if not deciding:
        return PaperRule(
            "h-kl",
            f"{common:,} of the student's {total:,} tokens are tokens of the teacher too, and no critical class has "
            "any",
            f"no critical class has tokens, and {common} of {total} ids are in the strict common set",
        )
    in_words, in_file = _counted(lost or deciding)
    if lost:
        return PaperRule("p-kl", f"only {in_words}", f"{in_file} (half is needed)")
    return PaperRule("h-kl", in_words, f"{in_file} (half is enough)")


def _counted(rows: Mapping[str, ClassRow]) -> tuple[str, str]:
    """How many tokens of each class are common, in plain words and as mapping files say it: `3 of 9 greek and ...`."""
    words, names = [], []
    for name, row in rows.items():
        words.append(f"{row.common_strict:,} of {row.total:,} {_CLASS_WORDS.get(name, f'{name} tokens')}")
        names.append(f"{row.common_strict} of {row.total} {name}")
    in_words, in_file = (
        f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0] for parts in (words, names)
    )
    return f"{in_words} are tokens of the teacher too", f"{in_file} tokens are in the strict common set"
