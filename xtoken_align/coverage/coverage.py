"""The coverage of a mapping: rows counted by class, by rule and by the reason they are empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cards import WAY_COLOURS, card, data_frame
from ..errors import ArtifactError, MissingExtraError
from ..matrix import Matrix, relaxed_common, strict_common
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
        columns = [column.name for column in fields(ClassRow)]
        counts = {
            name: ClassRow(**{column: _field(row, column, int) for column in columns})
            for name, row in _table(stored, "classes", CLASSES, dict).items()
        }
        cells = _table(stored, "by_class_and_rule", CLASSES, dict)
        advice = _field(stored, "recommendation", dict)
        return cls(
            classes=counts,
            rules=_table(stored, "rules", RULES, int),
            empty=_table(stored, "empty", tuple(EMPTY_REASONS), int),
            lossy=_field(stored, "lossy", int),
            by_class_and_rule={name: _table(cells, name, RULES, int) for name in cells},
            recommendation=Recommendation.from_metadata(
                {key: _field(advice, key, str) for key in ("loss", "default", "because")}, counts
            ),
        )


def measure(
    matrix: Matrix,
    *,
    kinds: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    lossy: int,
    identical: bool,
    critical: Sequence[str] = DEFAULT_CRITICAL,
) -> Coverage:
    """Counts a mapping's rows.

    Args:
        matrix: W as arrays.
        kinds: uint8 (student width,), values of `Kind`.
        classes: uint8 (student width,), positions in `CLASSES`, from `classify`.
        lossy: how many rows are marked lossy.
        identical: whether the two vocabularies are equal.
        critical: names of the classes by which the paper's rule decides.

    Returns:
        The coverage.

    Raises:
        OptionError: `critical` names an unknown class.
    """
    # Four numerals of class 5, owned by the rules exact, digits, digits and none: their row of `cells` has 1 under
    # exact, 2 under digits and 1 under none. A cell is one number, class * rules + rule, and `bincount` counts these.
    owner = matrix.owner
    cells = np.bincount(classes.astype(np.int64) * len(RULES) + owner, minlength=len(CLASSES) * len(RULES))
    cells = cells.reshape(len(CLASSES), len(RULES))
    columns = {"total": cells.sum(axis=1)}
    for way, owners in (("exact", EXACT_RULES), ("near", NEAR_RULES), ("split", SPLIT_RULES), ("empty", ("none",))):
        columns[way] = cells[:, [RULE_NUMBER[rule] for rule in owners]].sum(axis=1)
    # An override is near with one link and split with more.
    overridden, single = owner == RULE_NUMBER["override"], np.diff(matrix.indptr) <= 1
    column, weight = matrix.top
    for way, rows in (
        ("near", overridden & single),
        ("split", overridden & ~single),
        ("common_strict", strict_common(owner, column)),
        ("common_relaxed", relaxed_common(column, weight)),
    ):
        columns[way] = columns.get(way, 0) + np.bincount(classes[rows], minlength=len(CLASSES))
    by_class = {
        name: ClassRow(**{way: int(counts[number]) for way, counts in columns.items()})
        for number, name in enumerate(CLASSES)
    }
    empty_kinds = np.bincount(kinds[owner == 0], minlength=len(Kind))
    return Coverage(
        classes=by_class,
        rules={rule: int(cells[:, number].sum()) for rule, number in RULE_NUMBER.items() if rule != "none"},
        empty={reason: int(empty_kinds[list(members)].sum()) for reason, members in EMPTY_REASONS.items()},
        lossy=int(lossy),
        by_class_and_rule={
            name: {rule: int(count) for rule, count in zip(RULES[1:], owned, strict=True) if count}
            for name, owned in zip(CLASSES, cells[:, 1:].tolist(), strict=True)
            if any(owned)
        },
        recommendation=recommend(by_class, identical=identical, critical=critical),
    )


_EXPECTED = {dict: "a table", int: "a count", str: "a string"}


def _field(stored: Mapping[str, Any], key: str, kind: type[Any]) -> Any:
    """The value of a key, if it is of the kind that is expected; a count is at least 0, and not True or False."""
    value: Any = stored.get(key)
    if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 0)):
        came = "nothing" if value is None else repr(value)[:40]
        raise ArtifactError(
            f"the coverage's field {key!r} should be {_EXPECTED[kind]}, got {came}; rebuild the mapping"
        )
    return value


def _table(stored: Mapping[str, Any], key: str, order: Sequence[str], kind: type[Any]) -> dict[str, Any]:
    """The table under a key, its values of one kind; names that a newer version may have added come last.

    A file's JSON is sorted by key, and people read tables in the order of the names here: `byte`, `code`, `special`
    become `special`, `byte`, `code`.
    """
    table = _field(stored, key, dict)
    names = dict.fromkeys((*(name for name in order if name in table), *table))
    return {name: _field(table, name, kind) for name in names}
