"""The tokens that are split or unmatched, as the compact JSON that the page's script reads."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ..mapping.mapping import Mapping
from ..rules.names import RULE_NUMBER, SPLIT_RULES
from .visible import MARKS, visible_bytes

_DIGITS = 4
"""Decimals of a weight: the smallest of the default weights is 0.0009."""


def token_table(mapping: Mapping) -> dict[str, Any]:
    """The tokens by columns, every repeated thing once: tens of thousands of rows must stay a few hundred kilobytes.

    Returns:
        `rows`: columns of equal length: `id`, `surface` (visible), `class`, `reason` and `weights` (positions in the
        lists of that name), `count` (pieces before the cut); `pieces`: positions in `teacher`, as many per row as its
        entry of `weights` is long; `lossy`: positions of rows; `marks`: what stands out in a surface, as a pattern.
    """
    entries = mapping.unmatched()
    ids = [entry.id for entry in entries]
    classes, reasons = _Numbered(), _Numbered()
    weights, teacher, pieces = _links(mapping, ids)
    lossy = mapping.lossy_rows
    return {
        "marks": MARKS,
        "rows": {
            "id": ids,
            "surface": [visible_bytes(entry.surface) for entry in entries],
            "class": [classes[entry.class_name] for entry in entries],
            "reason": [reasons[entry.reason] for entry in entries],
            "weights": weights.numbers,
            "count": _counts(mapping, ids),
        },
        "classes": classes.values,
        "reasons": reasons.values,
        "weights": weights.values,
        "pieces": teacher.numbers,
        "teacher": {"id": teacher.values, "surface": pieces},
        "lossy": [at for at, token_id in enumerate(ids) if token_id in lossy],
    }


def reasons_of(table: dict[str, Any]) -> list[tuple[str, int]]:
    """Reason -> rows, in the order of the table."""
    found = np.bincount(table["rows"]["reason"], minlength=len(table["reasons"])).tolist()
    return list(zip(table["reasons"], found, strict=True))


def embeddable(value: object) -> str:
    r"""JSON that may stand in a `script` element: no token in it can end the element or begin a comment.

    >>> embeddable("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


class _Numbered:
    """Values by the number of their first appearance, and the number of every appearance."""

    def __init__(self) -> None:
        self._number: dict[Any, int] = {}
        self.numbers: list[int] = []

    def __getitem__(self, value: object) -> int:
        return self._number.setdefault(value, len(self._number))

    def add(self, value: object) -> None:
        self.numbers.append(self[value])

    @property
    def values(self) -> list[Any]:
        return list(self._number)


def _links(mapping: Mapping, ids: list[int]) -> tuple[_Numbered, _Numbered, list[str]]:
    """The rows' weights, their teacher ids, and the surface of each teacher id that occurs."""
    matrix = mapping.matrix
    order = np.lexsort((matrix.position, matrix.rows))
    columns = matrix.indices[order].tolist()
    rounded = [round(weight, _DIGITS) for weight in matrix.data[order].tolist()]
    ends = matrix.indptr.tolist()
    weights, teacher = _Numbered(), _Numbered()
    for token_id in ids:
        start, end = ends[token_id], ends[token_id + 1]
        weights.add(tuple(rounded[start:end]))
        for column in columns[start:end]:
            teacher.add(column)
    surfaces = mapping.teacher.surfaces.list
    return weights, teacher, [visible_bytes(surfaces[column]) for column in teacher.values]


def _counts(mapping: Mapping, ids: list[int]) -> list[int]:
    """How many pieces a token has: before the cut where it was split by encoding, else its links."""
    matrix = mapping.matrix
    encoded = np.isin(matrix.owner, [RULE_NUMBER[rule] for rule in SPLIT_RULES if rule != "reverse"])
    links = np.diff(matrix.indptr)
    counts = np.where(encoded, np.maximum(mapping.student_pieces.lengths, links), links)
    chosen: list[int] = counts[np.array(ids, dtype=np.int64)].tolist()
    return chosen
