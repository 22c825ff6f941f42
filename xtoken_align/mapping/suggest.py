"""Suggestions for special tokens without a counterpart, by likeness of names.

Likeness is no evidence: `<|begin_of_text|>` is more like `<|endoftext|>` than `<|start_header_id|>` is like
`<|im_start|>`. So nothing here is ever applied; it is a draft of an override file for a person to correct.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..vocab.kinds import Kind
from .mapping import Mapping

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
    from rapidfuzz import fuzz, process

    names = {token_id: teacher.surfaces[token_id].decode("utf-8", "replace") for token_id in candidates}
    found = []
    for token_id in unmatched:
        name = student.surfaces[token_id].decode("utf-8", "replace")
        best = process.extractOne(name, names, scorer=fuzz.ratio, score_cutoff=_LEAST_SCORE)
        if best is not None:
            text, score, teacher_id = best
            found.append(Suggestion(token_id, name, int(teacher_id), text, float(score)))
    return tuple(found)


def override_text(suggestions: tuple[Suggestion, ...]) -> str:
    """The suggestions as the text of an override file, each with its score in a comment."""
    import json

    lines = []
    for suggestion in suggestions:
        # A JSON string is a YAML string, whatever the name contains.
        student, teacher = json.dumps(suggestion.student), json.dumps(suggestion.teacher)
        lines.append(f"- {{student: {student}, teacher: [{teacher}]}}  # {suggestion.score:.0f} of 100 alike")
    return "\n".join(lines)
