"""The coverage of a mapping: rows counted by class, by rule and by the reason they are empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError
from ..rules.links import EXACT_RULES, NEAR_RULES, RULE_NUMBER, RULES, SPLIT_RULES
from ..vocab.kinds import Kind
from .classes import CLASSES, ClassRow
from .recommend import DEFAULT_CRITICAL, Recommendation, recommend

EMPTY_REASONS = {
    "reserved": (Kind.RESERVED,),
    "padding": (Kind.PADDING,),
    "hole": (Kind.HOLE,),
    "special without counterpart": (Kind.SPECIAL,),
    "teacher cannot spell it": (Kind.TEXT, Kind.BYTE),
}
"""Why a row is empty follows from the kind of its id."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a mapping matches and what it loses.

    Attributes:
        classes: class -> counts, every class of `CLASSES`.
        rules: rule -> rows that it owns, every rule but `none`.
        empty: reason -> empty rows, every reason.
        lossy: rows whose pieces do not spell the token byte for byte.
        by_class_and_rule: class -> rule -> rows; cells without rows are left out.
        recommendation: the loss that suits the pair.
    """

    classes: Mapping[str, ClassRow]
    rules: Mapping[str, int]
    empty: Mapping[str, int]
    lossy: int
    by_class_and_rule: Mapping[str, Mapping[str, int]]
    recommendation: Recommendation

    def to_dict(self) -> dict[str, Any]:
        """Returns plain dictionaries, the JSON shapes of the command line."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Coverage:
        """Reads what `to_dict` wrote; other keys beside its own are ignored.

        Args:
            stored: the dictionary, perhaps from a file of unknown origin.

        Returns:
            A coverage equal to the one written.

        Raises:
            ArtifactError: a field is missing or is not what it should be; the message names it.
        """
        classes = _table(stored, "classes")
        cells = _table(stored, "by_class_and_rule")
        sentences = _table(stored, "recommendation")
        # A file's JSON is sorted by key; the order in which people read the tables is the order of the names here.
        return cls(
            classes={
                name: ClassRow(**{column: _count(_table(classes, name), column) for column in _names(ClassRow)})
                for name in _ordered(classes, CLASSES)
            },
            rules=_counts(stored, "rules", RULES),
            empty=_counts(stored, "empty", tuple(EMPTY_REASONS)),
            lossy=_count(stored, "lossy"),
            by_class_and_rule={name: _counts(cells, name, RULES) for name in _ordered(cells, CLASSES)},
            recommendation=Recommendation(**{name: _text(sentences, name) for name in _names(Recommendation)}),
        )


def measure(
    *,
    kinds: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    owner: NDArray[np.uint8],
    links_per_row: NDArray[np.int64],
    common_strict: NDArray[np.bool_],
    common_relaxed: NDArray[np.bool_],
    lossy: int,
    identical: bool,
    critical: Sequence[str] = DEFAULT_CRITICAL,
    has_decompositions: bool = True,
) -> Coverage:
    """Counts a mapping's rows. All arrays have one entry per student id, up to the student's logit width.

    Args:
        kinds: values of `Kind`.
        classes: positions in `CLASSES`, from `classify`.
        owner: number of the rule that owns each row, 0 for an empty row.
        links_per_row: number of links in each row.
        common_strict: from `strict_common`.
        common_relaxed: from `relaxed_common`.
        lossy: how many rows are marked lossy.
        identical: whether the two vocabularies are equal.
        critical: names of the classes that decide the recommendation.
        has_decompositions: whether the mapping stores both directions' decompositions.

    Returns:
        The coverage.

    Raises:
        OptionError: `critical` names an unknown class.
    """
    cells = _cells(classes, owner)
    overridden = owner == RULE_NUMBER["override"]
    single = _per_class(classes, overridden & (links_per_row <= 1))
    rows = _rows(
        total=cells.sum(axis=1),
        exact=_sum_of(cells, EXACT_RULES),
        near=_sum_of(cells, NEAR_RULES) + single,
        split=_sum_of(cells, SPLIT_RULES) + _per_class(classes, overridden) - single,
        empty=_sum_of(cells, ("none",)),
        common_strict=_per_class(classes, common_strict),
        common_relaxed=_per_class(classes, common_relaxed),
    )
    empty_kinds = np.bincount(kinds[owner == 0], minlength=len(Kind))
    return Coverage(
        classes=rows,
        rules={rule: int(cells[:, number].sum()) for rule, number in RULE_NUMBER.items() if rule != "none"},
        empty={reason: int(empty_kinds[list(members)].sum()) for reason, members in EMPTY_REASONS.items()},
        lossy=int(lossy),
        by_class_and_rule=_filled_cells(cells),
        recommendation=recommend(rows, identical=identical, critical=critical, has_decompositions=has_decompositions),
    )


def _rows(**columns: NDArray[np.int64]) -> dict[str, ClassRow]:
    return {
        name: ClassRow(**{column: int(counts[number]) for column, counts in columns.items()})
        for number, name in enumerate(CLASSES)
    }


def _cells(classes: NDArray[np.uint8], owner: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Counts rows by class and rule, shape (classes, rules)."""
    shape = (len(CLASSES), len(RULES))
    return np.bincount(np.ravel_multi_index((classes, owner), shape), minlength=shape[0] * shape[1]).reshape(shape)


def _per_class(classes: NDArray[np.uint8], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.bincount(classes[chosen], minlength=len(CLASSES))


def _sum_of(cells: NDArray[np.int64], rules: Sequence[str]) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = cells[:, [RULE_NUMBER[rule] for rule in rules]].sum(axis=1)
    return counts


def _filled_cells(cells: NDArray[np.int64]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for class_number, rule_number in np.argwhere(cells).tolist():
        if rule_number:
            row = table.setdefault(CLASSES[class_number], {})
            row[RULES[rule_number]] = int(cells[class_number, rule_number])
    return table


def _names(record: type[ClassRow | Recommendation]) -> list[str]:
    return [field.name for field in fields(record)]


def _table(stored: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = stored.get(key)
    if not isinstance(value, dict):
        raise _malformed(key, "a table", value)
    return value


def _ordered(table: Mapping[str, Any], order: Sequence[str]) -> list[str]:
    """The table's keys: those in `order` first and in it, then what a newer version may have added."""
    return [name for name in order if name in table] + [name for name in table if name not in order]


def _counts(stored: Mapping[str, Any], key: str, order: Sequence[str]) -> dict[str, int]:
    table = _table(stored, key)
    return {name: _count(table, name) for name in _ordered(table, order)}


def _count(stored: Mapping[str, Any], key: str) -> int:
    value = stored.get(key)
    if type(value) is not int or value < 0:
        raise _malformed(key, "a count", value)
    return value


def _text(stored: Mapping[str, Any], key: str) -> str:
    value = stored.get(key)
    if not isinstance(value, str):
        raise _malformed(key, "a string", value)
    return value


def _malformed(key: str, expected: str, value: object) -> ArtifactError:
    came = "nothing" if value is None else repr(value)[:40]
    return ArtifactError(f"the coverage's field {key!r} should be {expected}, got {came}; rebuild the mapping")
