"""`diff`: what would change if one mapping took the place of another."""

from __future__ import annotations

from collections.abc import Mapping as Table
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..coverage.rows import ClassRow
from ..mapping.mapping import Mapping
from ..mapping.rows import json_surface
from ..rules.names import RULES
from .rows import RowComparison
from .tokens import Match, Vocabulary


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


@dataclass(frozen=True, eq=False)
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
        options: option -> values before and after, where they differ.
        otherwise_encoded: sides whose tokens are equal but whose text is encoded otherwise.
    """

    old: str
    new: str
    student: VocabularyChange
    teacher: VocabularyChange
    rows: RowChange
    l1: float
    classes: Table[str, tuple[ClassRow, ClassRow]]
    recommendation: tuple[str, str]
    options: Table[str, tuple[Any, Any]]
    otherwise_encoded: tuple[str, ...]
    comparison: RowComparison = field(repr=False)

    @property
    def differs(self) -> bool:
        """Whether a training run could tell the mappings apart."""
        counts = (*asdict(self.student).values(), *asdict(self.teacher).values())
        rows = asdict(self.rows)
        return any(counts) or any(rows[key] for key in rows if key != "same") or bool(self.otherwise_encoded)

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
            "options": {name: {"before": before, "after": after} for name, (before, after) in self.options.items()},
            "otherwise_encoded": list(self.otherwise_encoded),
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
        kept: list[int] = ids[order].tolist()
        return kept

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
        options={
            name: (old.options.get(name), new.options.get(name))
            for name in sorted({*old.options, *new.options})
            if old.options.get(name) != new.options.get(name)
        },
        otherwise_encoded=tuple(
            name
            for name, match in (("student", student), ("teacher", teacher))
            if match.old.fingerprint != match.new.fingerprint and not any(asdict(_vocabulary_change(match)).values())
        ),
        comparison=rows,
    )


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
