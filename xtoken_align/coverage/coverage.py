"""The coverage of a mapping: rows counted by class, by rule and by the reason they are empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cards import WAY_COLOURS, card, data_frame
from ..errors import ArtifactError, MissingExtraError
from ..rules.links import EXACT_RULES, NEAR_RULES, RULE_NUMBER, RULES, SPLIT_RULES, WAYS
from ..visible import printable
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


@dataclass(frozen=True, slots=True, repr=False)
class Coverage:
    """What a mapping matches and what it loses.

    Attributes:
        classes: class -> counts, every class of `CLASSES`.
        rules: rule -> rows that it owns, every rule but `none`.
        empty: reason -> empty rows, every reason.
        lossy: rows whose pieces do not spell the token byte for byte.
        by_class_and_rule: class -> rule -> rows; cells without rows are left out.
        recommendation: the loss to train the pair with.
    """

    classes: Mapping[str, ClassRow]
    rules: Mapping[str, int]
    empty: Mapping[str, int]
    lossy: int
    by_class_and_rule: Mapping[str, Mapping[str, int]]
    recommendation: Recommendation

    def __repr__(self) -> str:
        counts = ", ".join(f"{count:,} {way}" for way, count in self.ways().items())
        total = sum(self.ways().values())
        return printable(f"Coverage({total:,} rows: {counts}; train with {self.recommendation.loss})", one_line=True)

    def _repr_html_(self) -> str:
        advice, empty = self.recommendation, {reason: rows for reason, rows in self.empty.items() if rows}
        facts = {
            "rules": ", ".join(f"{rule} {rows:,}" for rule, rows in self.rules.items() if rows),
            "empty rows": ", ".join(f"{reason} {rows:,}" for reason, rows in empty.items()) or "none",
            "lossy rows": self.lossy,
            "train with": f"{advice.loss}: {advice.reason}",
        }
        return card(f"Coverage of {sum(self.ways().values()):,} rows", facts, self.ways())

    def ways(self) -> dict[str, int]:
        """How many rows are exact, near, split and empty."""
        return {way: sum(getattr(row, way) for row in self.classes.values()) for way in WAYS}

    def present(self) -> dict[str, ClassRow]:
        """The classes that have tokens, in the order in which people read them: numerals first."""
        names = sorted(self.classes, key=lambda name: not name.startswith("digits"))
        return {name: self.classes[name] for name in names if self.classes[name].total}

    def to_frame(self) -> Any:
        """The classes that have tokens as a pandas table: a row per class, a column per count.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = self.present()
        frame = data_frame([asdict(row) for row in rows.values()], [column.name for column in fields(ClassRow)])
        frame.index = list(rows)
        return frame.rename_axis("class")

    def plot(self, *, ax: Any = None) -> Any:
        """Draws with matplotlib how the rows of each class are mapped, as shares of the class.

        Args:
            ax: axes to draw on, by default new ones.

        Returns:
            The axes.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise MissingExtraError("Plotting the coverage", "notebook") from error
        rows = self.present()
        if ax is None:
            _, ax = plt.subplots(figsize=(8, 1.2 + 0.25 * len(rows)), layout="constrained")
        left = np.zeros(len(rows))
        for way, colour in WAY_COLOURS.items():
            share = np.array([getattr(row, way) / row.total for row in rows.values()])
            ax.barh(list(rows), share, left=left, color=colour, label=way)
            left += share
        ax.set(xlabel="share of the student's tokens", xlim=(0, 1))
        ax.set_ylim(len(rows) - 0.4, -0.6)  # the first class stands at the top
        ax.legend(ncols=len(WAY_COLOURS), loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
        return ax

    def to_dict(self) -> dict[str, Any]:
        """Returns plain dictionaries, the JSON shapes of the command line."""
        return {**asdict(self), "recommendation": self.recommendation.to_dict()}

    def to_metadata(self) -> dict[str, Any]:
        """The form in which a mapping's file keeps it; part of the content hash."""
        return {**asdict(self), "recommendation": self.recommendation.to_metadata()}

    @classmethod
    def from_metadata(cls, stored: Mapping[str, Any]) -> Coverage:
        """Reads what `to_metadata` wrote; other keys beside its own are ignored.

        Args:
            stored: the dictionary, perhaps from a file of unknown origin.

        Returns:
            A coverage equal to the one written.

        Raises:
            ArtifactError: a field is missing or is not what it should be; the message names it.
        """
        classes = _field(stored, "classes", dict, "a table")
        cells = _field(stored, "by_class_and_rule", dict, "a table")
        advice = _field(stored, "recommendation", dict, "a table")
        columns = [column.name for column in fields(ClassRow)]
        counts = {
            name: ClassRow(**{column: _count(_field(classes, name, dict, "a table"), column) for column in columns})
            for name in _ordered(classes, CLASSES)
        }
        # A file's JSON is sorted by key; the order in which people read the tables is the order of the names here.
        return cls(
            classes=counts,
            rules=_counts(stored, "rules", RULES),
            empty=_counts(stored, "empty", tuple(EMPTY_REASONS)),
            lossy=_count(stored, "lossy"),
            by_class_and_rule={name: _counts(cells, name, RULES) for name in _ordered(cells, CLASSES)},
            recommendation=Recommendation.from_metadata(
                {key: _field(advice, key, str, "a string") for key in ("loss", "default", "because")}, counts
            ),
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
        critical: names of the classes by which the paper's rule decides.
        has_decompositions: whether the mapping stores both directions' decompositions.

    Returns:
        The coverage.

    Raises:
        OptionError: `critical` names an unknown class.
    """
    shape = (len(CLASSES), len(RULES))
    # cells[class, rule] counts the rows of a class that a rule owns; class 4 and rule 8 stand at 4 * 12 + 8 in `flat`.
    flat = np.bincount(np.ravel_multi_index((classes, owner), shape), minlength=shape[0] * shape[1])
    cells = flat.reshape(shape)
    overridden = owner == RULE_NUMBER["override"]
    single = _per_class(classes, overridden & (links_per_row <= 1))
    columns = {
        "total": cells.sum(axis=1),
        "exact": _owned_by(EXACT_RULES, cells),
        "near": _owned_by(NEAR_RULES, cells) + single,
        "split": _owned_by(SPLIT_RULES, cells) + _per_class(classes, overridden) - single,
        "empty": _owned_by(("none",), cells),
        "common_strict": _per_class(classes, common_strict),
        "common_relaxed": _per_class(classes, common_relaxed),
    }
    rows = {
        name: ClassRow(**{column: int(counts[number]) for column, counts in columns.items()})
        for number, name in enumerate(CLASSES)
    }
    # An override is near with one link and split with more; the reason for an empty row follows from its token's kind.
    empty_kinds = np.bincount(kinds[owner == 0], minlength=len(Kind))
    return Coverage(
        classes=rows,
        rules={rule: int(cells[:, number].sum()) for rule, number in RULE_NUMBER.items() if rule != "none"},
        empty={reason: int(empty_kinds[list(members)].sum()) for reason, members in EMPTY_REASONS.items()},
        lossy=int(lossy),
        by_class_and_rule={
            name: {rule: int(count) for rule, count in zip(RULES[1:], owned, strict=True) if count}
            for name, owned in zip(CLASSES, cells[:, 1:].tolist(), strict=True)
            if any(owned)
        },
        recommendation=recommend(rows, identical=identical, critical=critical, has_decompositions=has_decompositions),
    )


def _per_class(classes: NDArray[np.uint8], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 (classes,), how many of the chosen rows are of each class."""
    return np.bincount(classes[chosen], minlength=len(CLASSES))


def _owned_by(rules: Sequence[str], cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 (classes,), how many rows of each class the rules own together."""
    counts: NDArray[np.int64] = cells[:, [RULE_NUMBER[rule] for rule in rules]].sum(axis=1)
    return counts


def _ordered(table: Mapping[str, Any], order: Sequence[str]) -> list[str]:
    """The table's keys: those in `order` first and in it, then what a newer version may have added."""
    return [name for name in order if name in table] + [name for name in table if name not in order]


def _counts(stored: Mapping[str, Any], key: str, order: Sequence[str]) -> dict[str, int]:
    table = _field(stored, key, dict, "a table")
    return {name: _count(table, name) for name in _ordered(table, order)}


def _count(stored: Mapping[str, Any], key: str) -> int:
    value = _field(stored, key, int, "a count")
    if isinstance(value, bool) or value < 0:
        raise _malformed(key, "a count", value)
    return int(value)


def _field(stored: Mapping[str, Any], key: str, kind: type, expected: str) -> Any:
    """The value of a key, if it is of the kind that is expected."""
    value = stored.get(key)
    if not isinstance(value, kind):
        raise _malformed(key, expected, value)
    return value


def _malformed(key: str, expected: str, value: object) -> ArtifactError:
    came = "nothing" if value is None else repr(value)[:40]
    return ArtifactError(f"the coverage's field {key!r} should be {expected}, got {came}; rebuild the mapping")
