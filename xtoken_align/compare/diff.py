"""Comparing two mappings: their vocabularies, their rows, and their coverage."""

from __future__ import annotations

from collections.abc import Mapping as Table
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cards import card
from ..coverage.classes import ClassRow
from ..mapping.find import json_surface
from ..mapping.mapping import Mapping
from ..rules.links import RULES
from ..vocab.fingerprint import PART_WORDS
from .parts import PartsMatch
from .tokens import Match, Vocabulary

TOLERANCE = 1e-6
"""Weights are float32: two that differ by less are the same."""


@dataclass(frozen=True, eq=False)
class RowComparison:
    """The rows of two mappings, student tokens matched by `student`, teacher tokens by `teacher`."""

    old: Mapping
    new: Mapping
    student: Match
    teacher: Match

    @cached_property
    def distance(self) -> NDArray[np.float64]:
        """float64 (old student logits,), L1 distance between a token's rows.

        A link to a token that the other teacher does not have counts whole.
        """
        old, new = self.old.matrix, self.new.matrix
        if self.old.content_hash == self.new.content_hash:
            return np.zeros(old.shape[0])
        # The new links in the old mapping's ids; a teacher token that is new gets a column beyond all old ones.
        new_rows = self.student.old_of_new[new.rows]
        columns = self.teacher.old_of_new[new.indices].astype(np.int64)
        columns = np.where(columns >= 0, columns, old.shape[1] + new.indices)
        in_old = new_rows >= 0
        before = _Cells(old.rows, old.indices.astype(np.int64), old.data)
        after = _Cells(new_rows[in_old], columns[in_old], new.data[in_old])
        # Most rows are one link on both sides, and need no sorting to be compared.
        single = (before.counts(old.shape[0]) == 1) & (after.counts(old.shape[0]) == 1)
        distance = _distance_of_many(before.without(single), after.without(single), old.shape)
        rows = np.flatnonzero(single)
        (was, weight_was), (now, weight_now) = (cells.of_single(single, old.shape[0]) for cells in (before, after))
        distance[rows] = np.where(was == now, np.abs(weight_was - weight_now), weight_was + weight_now)
        return distance

    @cached_property
    def _pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Old and new ids of the student tokens that both mappings have."""
        old_ids = np.flatnonzero(self.student.new_of_old >= 0)
        return old_ids, self.student.new_of_old[old_ids]

    def _both(self) -> NDArray[np.bool_]:
        old_ids, new_ids = self._pairs
        return (self.old.matrix.owner[old_ids] > 0) & (self.new.matrix.owner[new_ids] > 0)

    @cached_property
    def rule(self) -> NDArray[np.int64]:
        """Old ids whose row another rule owns now."""
        old_ids, new_ids = self._pairs
        other_rule = self.old.matrix.owner[old_ids] != self.new.matrix.owner[new_ids]
        return np.asarray(old_ids[self._both() & other_rule])

    @cached_property
    def weights(self) -> NDArray[np.int64]:
        """Old ids whose row the same rule owns and whose links or weights are others."""
        old_ids, new_ids = self._pairs
        same_rule = self._both() & (self.old.matrix.owner[old_ids] == self.new.matrix.owner[new_ids])
        return np.asarray(old_ids[same_rule & (self.distance[old_ids] > TOLERANCE)])

    @cached_property
    def same(self) -> int:
        """How many rows are the same."""
        return int(self._both().sum()) - len(self.rule) - len(self.weights)

    @cached_property
    def added(self) -> NDArray[np.int64]:
        """New ids that have a row now: their token is new, or its row was empty."""
        filled = self.new.matrix.owner > 0
        before = self.student.old_of_new
        had = np.zeros(len(filled), dtype=np.bool_)
        had[before >= 0] = self.old.matrix.owner[before[before >= 0]] > 0
        return np.flatnonzero(filled & ~had & self.student.used_new)

    @cached_property
    def removed(self) -> NDArray[np.int64]:
        """Old ids that had a row: their token is gone, or its row is empty now."""
        filled = self.old.matrix.owner > 0
        after = self.student.new_of_old
        has = np.zeros(len(filled), dtype=np.bool_)
        has[after >= 0] = self.new.matrix.owner[after[after >= 0]] > 0
        return np.flatnonzero(filled & ~has & self.student.used_old)


@dataclass(frozen=True, eq=False)
class _Cells:
    """Links as rows, columns and weights, in the old mapping's ids."""

    rows: NDArray[np.int32]
    columns: NDArray[np.int64]
    weights: NDArray[np.float32]

    def counts(self, height: int) -> NDArray[np.int64]:
        return np.bincount(self.rows, minlength=height)

    def without(self, rows: NDArray[np.bool_]) -> _Cells:
        others = ~rows[self.rows]
        return _Cells(self.rows[others], self.columns[others], self.weights[others])

    def of_single(self, rows: NDArray[np.bool_], height: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The column and the weight of each marked row, which has one link, by ascending row."""
        single = rows[self.rows]
        columns, weights = np.zeros(height, dtype=np.int64), np.zeros(height)
        columns[self.rows[single]] = self.columns[single]
        weights[self.rows[single]] = self.weights[single]
        return columns[rows], weights[rows]


def _distance_of_many(before: _Cells, after: _Cells, shape: tuple[int, int]) -> NDArray[np.float64]:
    """L1 distance of each row, for rows with any number of links.

    A row {2: 0.9, 0: 0.1} that becomes {2: 0.8, 1: 0.2} has the changes 0.1, 0.1 and 0.2 in columns 2, 0 and 1: 0.4.
    """
    # Every cell is one number; before counts positive, after negative, and what is left is the change.
    width = max(int(after.columns.max(initial=0)) + 1, shape[1])
    cells = np.concatenate([part.rows.astype(np.int64) * width + part.columns for part in (before, after)])
    weights = np.concatenate([before.weights.astype(np.float64), -after.weights.astype(np.float64)])
    unique, inverse = np.unique(cells, return_inverse=True)
    change = np.abs(np.bincount(inverse, weights, minlength=len(unique)))
    # Without cells bincount counts, in integers.
    return np.bincount(unique // width, change, minlength=shape[0]).astype(np.float64)


@dataclass(frozen=True, slots=True)
class VocabularyChange:
    """One side's tokens, before and after.

    Attributes:
        added: tokens that only the new side has.
        removed: tokens that only the old side has.
        moved: tokens with another id.
        repurposed: ids that stand for another token.
        renamed: special ids with another name, neither of which the other side has.
    """

    added: int
    removed: int
    moved: int
    repurposed: int
    renamed: int


@dataclass(frozen=True, slots=True)
class RowChange:
    """Rows that have links in at least one of the mappings; every one is counted once.

    Attributes:
        same: the same links with the same weights, by the same rule.
        rule: owned by another rule.
        weights: owned by the same rule, with other links or weights.
        added: only the new mapping has a row for the token.
        removed: only the old one has.
    """

    same: int
    rule: int
    weights: int
    added: int
    removed: int


@dataclass(frozen=True, eq=False, repr=False)
class Diff:
    """What differs between two mappings.

    Attributes:
        old: version of the old mapping.
        new: version of the new one.
        student: the student's vocabulary.
        teacher: the teacher's.
        rows: the rows.
        l1: sum of the L1 distances of the rows that both have.
        classes: class -> counts before and after, where they differ.
        recommendation: the recommended losses before and after.
        paper_rule: what the rule of the method's paper names, before and after.
        options: option -> values before and after, where they differ.
        otherwise_encoded: sides whose tokens are equal but whose text is encoded otherwise.
        otherwise: side -> what differs beside its tokens: how often and why text is encoded otherwise, roles,
            templates, decoders, logit widths.
        unknown: which of the two mappings, `old` or `new`, were written before mappings kept their tokenizers' parts.
    """

    old: str
    new: str
    student: VocabularyChange
    teacher: VocabularyChange
    rows: RowChange
    l1: float
    classes: Table[str, tuple[ClassRow, ClassRow]]
    recommendation: tuple[str, str]
    paper_rule: tuple[str, str]
    options: Table[str, tuple[Any, Any]]
    otherwise_encoded: tuple[str, ...]
    otherwise: Table[str, tuple[str, ...]]
    unknown: tuple[str, ...]
    comparison: RowComparison = field(repr=False)

    def __repr__(self) -> str:
        rows = ", ".join(f"{count:,} {words}" for words, count in self._row_counts().items() if count)
        return f"Diff({self.old} to {self.new}: {rows or 'no rows'})"

    def _repr_html_(self) -> str:
        facts: dict[str, object] = {f"rows {words}": count for words, count in self._row_counts().items()}
        for side, change in (("student", self.student), ("teacher", self.teacher)):
            counts = ", ".join(f"{count:,} {name}" for name, count in asdict(change).items() if count)
            facts[f"{side}'s tokens"] = counts or "unchanged"
        for side in ("student", "teacher"):
            facts |= {f"{side} otherwise": "; ".join(self.otherwise[side])} if side in self.otherwise else {}
        facts |= {f"option {name}": f"{was!r} before, {now!r} now" for name, (was, now) in self.options.items()}
        return card(f"What differs between {self.old} and {self.new}", facts)

    def _row_counts(self) -> dict[str, int]:
        names = {"same": "the same", "rule": "by another rule", "weights": "with other weights", "added": "new"}
        return {names.get(name, "gone"): count for name, count in asdict(self.rows).items()}

    @property
    def provenance(self) -> tuple[str, str]:
        """`built`, `learned` or `imported`, of the old and of the new mapping."""
        return self.comparison.old.provenance, self.comparison.new.provenance

    @property
    def differs(self) -> bool:
        """Whether a training run could tell the mappings apart."""
        counts = (*asdict(self.student).values(), *asdict(self.teacher).values())
        rows = asdict(self.rows)
        return any(counts) or any(rows[key] for key in rows if key != "same") or bool(self.otherwise)

    def to_dict(self, *, limit: int | None = 0) -> dict[str, Any]:
        """The JSON of `diff`.

        Args:
            limit: how many entries each list of `changes` has at most; None for all.
        """
        return {
            "schema": 1,
            "old": self.old,
            "new": self.new,
            "differs": self.differs,
            "student": asdict(self.student),
            "teacher": asdict(self.teacher),
            "rows": asdict(self.rows),
            "l1": round(self.l1, 6),
            "classes": {
                name: {"before": asdict(before), "after": asdict(after)}
                for name, (before, after) in self.classes.items()
            },
            "recommendation": {"before": self.recommendation[0], "after": self.recommendation[1]},
            "paper_rule": {"before": self.paper_rule[0], "after": self.paper_rule[1]},
            "options": {name: {"before": before, "after": after} for name, (before, after) in self.options.items()},
            "otherwise_encoded": list(self.otherwise_encoded),
            "otherwise": {side: list(words) for side, words in self.otherwise.items()},
            "unknown": list(self.unknown),
            "changes": self.changes(limit=limit),
        }

    def changes(self, *, limit: int | None = None) -> dict[str, Any]:
        """What changed, token by token.

        Args:
            limit: how many entries each list has at most; rows with the largest L1 distance come first.
        """
        comparison = self.comparison
        return {
            "student": _token_lists(comparison.student, limit),
            "teacher": _token_lists(comparison.teacher, limit),
            "rows": {
                "rule": [self._row(i) for i in self._largest(comparison.rule, limit)],
                "weights": [self._row(i) for i in self._largest(comparison.weights, limit)],
                "added": [_token(comparison.new.student, i) for i in comparison.added[:limit].tolist()],
                "removed": [_token(comparison.old.student, i) for i in comparison.removed[:limit].tolist()],
            },
        }

    def _largest(self, ids: NDArray[np.int64], limit: int | None) -> list[int]:
        order = np.argsort(-self.comparison.distance[ids], kind="stable")[:limit]
        largest: list[int] = ids[order].tolist()
        return largest

    def _row(self, old_id: int) -> dict[str, Any]:
        comparison = self.comparison
        new_id = int(comparison.student.new_of_old[old_id])
        return {
            **_token(comparison.old.student, old_id),
            "rule": [
                RULES[comparison.old.matrix.owner[old_id]],
                RULES[comparison.new.matrix.owner[new_id]],
            ],
            "l1": round(float(comparison.distance[old_id]), 6),
            "before": [link.to_dict() for link in comparison.old.row(old_id).links],
            "after": [link.to_dict() for link in comparison.new.row(new_id).links],
        }


def diff(old: Mapping, new: Mapping) -> Diff:
    """Compares two mappings by what their tokens say, not by their ids.

    Args:
        old: the mapping in use.
        new: the one to take its place.

    Returns:
        What differs.
    """
    student, teacher = Match(old.student, new.student), Match(old.teacher, new.teacher)
    rows = RowComparison(old, new, student, teacher)
    parts = {"student": PartsMatch(old.student, new.student), "teacher": PartsMatch(old.teacher, new.teacher)}
    before, after = old.coverage(), new.coverage()
    both = np.flatnonzero(student.new_of_old >= 0)
    return Diff(
        old=old.version,
        new=new.version,
        student=_vocabulary_change(student),
        teacher=_vocabulary_change(teacher),
        rows=RowChange(rows.same, len(rows.rule), len(rows.weights), len(rows.added), len(rows.removed)),
        l1=float(rows.distance[both].sum()),
        classes={
            name: (before.classes[name], after.classes[name])
            for name in before.classes
            if before.classes[name] != after.classes[name]
        },
        recommendation=(before.recommendation.loss, after.recommendation.loss),
        paper_rule=(before.recommendation.paper_rule.loss, after.recommendation.paper_rule.loss),
        options={
            name: (old.options.get(name), new.options.get(name))
            for name in sorted({*old.options, *new.options})
            # An imported mapping has none of the options of `build`.
            if "imported" not in (old.provenance, new.provenance) and old.options.get(name) != new.options.get(name)
        },
        otherwise_encoded=tuple(side for side, match in parts.items() if match.same_tokens and match.encoding_words()),
        otherwise={side: words for side, match in parts.items() if (words := _otherwise(match))},
        unknown=tuple(
            when
            for when, mapping in (("old", old), ("new", new))
            if mapping.student.parts is None or mapping.teacher.parts is None
        ),
        comparison=rows,
    )


def _otherwise(match: PartsMatch) -> tuple[str, ...]:
    """What of a side differs beside its tokens."""
    widths = match.old.sizes.logits, match.new.sizes.logits
    words = [f"{widths[0]:,} logits before, {widths[1]:,} now"] if widths[0] != widths[1] else []
    if match.same_tokens:
        words += [f"text is encoded otherwise: {encoding}"] if (encoding := match.encoding_words()) else []
    else:
        words += [f"another {PART_WORDS[name]}" for name in match.encoding]
    return (*words, *match.beside_words("before", "now"))


def _vocabulary_change(match: Match) -> VocabularyChange:
    renamed = len(match.renamed)
    return VocabularyChange(
        added=len(match.added) - renamed,
        removed=len(match.removed) - renamed,
        moved=len(match.moved),
        repurposed=len(match.repurposed),
        renamed=renamed,
    )


def _token(side: Vocabulary, token_id: int) -> dict[str, Any]:
    return {"id": token_id, "surface": json_surface(side.surfaces[token_id])}


def _token_lists(match: Match, limit: int | None) -> dict[str, Any]:
    old, new = match.old, match.new
    renamed = set(match.renamed.tolist())

    def without_renamed(ids: NDArray[np.int64]) -> list[int]:
        return [token_id for token_id in ids.tolist() if token_id not in renamed][:limit]

    def two_names(ids: NDArray[np.int64]) -> list[dict[str, Any]]:
        return [
            {"id": i, "before": json_surface(old.surfaces[i]), "after": json_surface(new.surfaces[i])}
            for i in ids[:limit].tolist()
        ]

    return {
        "added": [_token(new, i) for i in without_renamed(match.added)],
        "removed": [_token(old, i) for i in without_renamed(match.removed)],
        "moved": [{**_token(old, i), "to": int(match.new_of_old[i])} for i in match.moved[:limit].tolist()],
        "repurposed": two_names(match.repurposed),
        "renamed": two_names(match.renamed),
    }
