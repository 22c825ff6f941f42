"""What a person should check in a mapping: special tokens without a counterpart, suggested pairs, collisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..matrix import Matrix, relaxed_common, strict_common
from ..rules.links import RULES
from ..vocab.kinds import Kind
from ..vocab.roles import stop_ids
from ..vocab.vocab import Vocab
from .find import json_surface
from .mapping import Mapping, Side

_LEAST_SCORE = 60.0


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A pair of special tokens with like names, and how like they are (0 to 100)."""

    student_id: int
    student: str
    teacher_id: int
    teacher: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        """An entry of an override file, with the score beside it."""
        return {"student": self.student, "teacher": [self.teacher], "score": round(self.score, 1)}


def suggest_specials(mapping: Mapping) -> tuple[Suggestion, ...]:
    """For each special student token without a row, the teacher's special token with the most similar name.

    Args:
        mapping: the mapping.

    Returns:
        The suggestions by student id; names less than 60 of 100 alike are left out.
    """
    student, teacher = mapping.student, mapping.teacher
    unmatched = np.flatnonzero((student.kinds == Kind.SPECIAL) & (mapping.matrix.owner == 0)).tolist()
    candidates = np.flatnonzero(teacher.kinds == Kind.SPECIAL).tolist()
    if not unmatched or not candidates:
        return ()
    # rapidfuzz keeps the keys of a table: asked for the best of {15: "<s>", 16: "</s>"} for `<S>`, it answers with
    # ("<s>", 66.7, 15).
    from rapidfuzz import fuzz, process

    names = {token_id: teacher.surfaces[token_id].decode("utf-8", "replace") for token_id in candidates}
    suggestions = []
    for token_id in unmatched:
        name = student.surfaces[token_id].decode("utf-8", "replace")
        best = process.extractOne(name, names, scorer=fuzz.ratio, score_cutoff=_LEAST_SCORE)
        if best is not None:
            text, score, teacher_id = best
            suggestions.append(Suggestion(token_id, name, int(teacher_id), text, float(score)))
    return tuple(suggestions)


def override_text(suggestions: tuple[Suggestion, ...]) -> str:
    """The suggestions as the text of an override file, each with its score in a comment."""
    import json

    lines = []
    for suggestion in suggestions:
        # A JSON string is a YAML string, whatever the name contains.
        student, teacher = json.dumps(suggestion.student), json.dumps(suggestion.teacher)
        lines.append(f"- {{student: {student}, teacher: [{teacher}]}}  # {suggestion.score:.0f} of 100 alike")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class SpecialDecision:
    """What became of one special token of the student.

    Attributes:
        id: student id.
        surface: its string.
        roles: its roles.
        teacher_id: the teacher token that it is mapped to, None where it is not.
        teacher_surface: that token's string.
        by: `role NAME`, `string`, `override`, `identity`, or `unmatched`.
    """

    id: int
    surface: bytes
    roles: tuple[str, ...]
    teacher_id: int | None
    teacher_surface: bytes | None
    by: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `inspect`."""
        teacher = None if self.teacher_surface is None else json_surface(self.teacher_surface)
        return {
            "id": self.id,
            "surface": json_surface(self.surface),
            "roles": list(self.roles),
            "teacher_id": self.teacher_id,
            "teacher_surface": teacher,
            "by": self.by,
        }


@dataclass(frozen=True, slots=True)
class Audit:
    """What a person should check, beside the counts of the coverage.

    Attributes:
        specials: every special token of the student, by id.
        suggestions: pairs for the unmatched ones, by likeness of their names: to be checked, never applied.
        lossy: student ids whose decomposition spells another text.
        unreached: teacher ids of kind text, byte or special that no row has a link to.
        duplicates: ids whose surface a lower id has already, student's and teacher's; None where nobody counted.
        common_strict: size of the strict common set.
        common_relaxed: size of the relaxed one: how far H-KL's expansion goes.
        collisions: rows with a link heavy enough for the relaxed set, whose teacher token a heavier row has taken.
        disagreeing: ids whose decoder spells another text than their encoder consumes, student's and teacher's.
    """

    specials: tuple[SpecialDecision, ...]
    suggestions: tuple[Suggestion, ...]
    lossy: NDArray[np.int32]
    unreached: NDArray[np.int64]
    duplicates: tuple[int | None, ...]
    common_strict: int
    common_relaxed: int
    collisions: int
    disagreeing: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `inspect`."""
        return {
            "specials": [decision.to_dict() for decision in self.specials],
            "suggestions": [suggestion.to_dict() for suggestion in self.suggestions],
            "lossy_ids": self.lossy.tolist(),
            "unreached": len(self.unreached),
            "duplicates": {"student": self.duplicates[0], "teacher": self.duplicates[1]},
            "common": {
                "strict": self.common_strict,
                "relaxed": self.common_relaxed,
                "collisions": self.collisions,
            },
            "decoder_disagrees": {"student": self.disagreeing[0], "teacher": self.disagreeing[1]},
        }


def audit(mapping: Mapping, *, threshold: float = 0.6) -> Audit:
    """Audits a mapping.

    Args:
        mapping: the mapping.
        threshold: the weight from which a link enters the relaxed common set.
    """
    matrix = mapping.matrix
    column, weight = matrix.top
    # Heaviest links to the columns 4 4 7 with the weights .9 .7 .5: at 0.6 the first is in the relaxed set, the second
    # a collision, for its token is taken, and the third neither.
    relaxed = relaxed_common(column, weight, threshold)
    reached = np.zeros(matrix.shape[1], dtype=np.bool_)
    # Padding and holes of the teacher are never spoken: whether a row reaches them says nothing.
    reached[matrix.indices] = True
    return Audit(
        specials=tuple(_specials(mapping)),
        suggestions=suggest_specials(mapping),
        lossy=mapping.student_pieces.lossy,
        unreached=np.flatnonzero(~reached & (mapping.teacher.kinds <= Kind.SPECIAL)),
        duplicates=tuple(mapping.notes.get(f"{side}_duplicates") for side in ("student", "teacher")),
        common_strict=int(strict_common(matrix.owner, column).sum()),
        common_relaxed=int(relaxed.sum()),
        collisions=int(((weight >= np.float32(threshold)) & ~relaxed).sum()),
        disagreeing=(
            len(mapping.notes.get("student_decoder_disagrees", ())),
            len(mapping.notes.get("teacher_decoder_disagrees", ())),
        ),
    )


def _specials(mapping: Mapping) -> list[SpecialDecision]:
    decisions = []
    for token_id in np.flatnonzero(mapping.student.kinds == Kind.SPECIAL).tolist():
        row = mapping.row(token_id)
        # Only an override gives a special token several links; the first piece stands for them.
        link = row.links[0] if row.links else None
        roles = _roles(mapping.student, token_id)
        decisions.append(
            SpecialDecision(
                id=token_id,
                surface=row.surface,
                roles=roles,
                teacher_id=None if link is None else link.teacher_id,
                teacher_surface=None if link is None else link.surface,
                by="unmatched" if link is None else _by(mapping, token_id, link.teacher_id, row.surface, link.surface),
            )
        )
    return decisions


def _by(mapping: Mapping, token_id: int, teacher_id: int, surface: bytes, teacher_surface: bytes) -> str:
    rule = RULES[mapping.matrix.owner[token_id]]
    if rule != "special":
        return rule
    # `<|eot_id|>` to `<|im_end|>` are both `eot`: by role. `<pad>` to `<pad>` without a shared role: by string.
    shared = [role for role in _roles(mapping.student, token_id) if teacher_id in mapping.teacher.roles.get(role, ())]
    if shared:
        return f"role {shared[0]}"
    return "string" if surface == teacher_surface else rule


def _roles(side: Side, token_id: int) -> tuple[str, ...]:
    return tuple(role for role, ids in side.roles.items() if token_id in ids)


def unpaired_ends(student: Side | Vocab, teacher: Side | Vocab, matrix: Matrix) -> str | None:
    """A sentence for a pair in which no token that ends a turn is linked to one of the other side; None for others.

    What ends a turn is known by its role, or by the list of `generation_config.json`. A pair of two vocabularies
    without any end, as of two rank files, has nothing to link.

    Args:
        student: the student's side, or its vocabulary.
        teacher: the teacher's.
        matrix: W.
    """
    stops = stop_ids(student), stop_ids(teacher)
    if not any(stops):
        return None
    if not all(stops):
        ending, silent = ("student", "teacher") if stops[0] else ("teacher", "student")
        sides = {"student": student, "teacher": teacher}
        return (
            f"the {ending} {sides[ending].name} has a token that ends a turn, and the {silent} {sides[silent].name} "
            "has none by role or generation_config.json: a student trained so does not learn when to stop; give the "
            f"{silent}'s folder with its tokenizer_config.json or generation_config.json"
        )
    if (np.isin(matrix.rows, stops[0]) & np.isin(matrix.indices, stops[1])).any():
        return None
    return (
        f"no token that ends a turn of {student.name} has a counterpart that ends one of {teacher.name}: "
        "a student trained so does not learn when to stop; map one to the other with an override"
    )
