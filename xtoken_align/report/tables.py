"""The page's tables: numerals from 0 to 999, and the tokens that are split or unmatched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..mapping.find import Row
from ..mapping.mapping import Mapping
from ..rules.links import RULE_NUMBER, SPLIT_RULES
from ..visible import MARKS, visible_bytes
from ..vocab.kinds import Kind
from .charts import way_of

ABSENT = "absent"
"""The student has no token for the numeral: it writes several."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One numeral.

    Attributes:
        way: `exact`, `near`, `split`, `empty` or `absent`; its style class is named after it.
        title: the numeral, its rule and its pieces in words.
        x: column in its block of ten by ten.
        y: row in its block.
    """

    way: str
    title: str
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Hundred:
    """A hundred numerals in ten rows."""

    first: int
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """`0-99`, with a dash."""
        return f"{self.first}–{self.first + 99}"


def numerals(mapping: Mapping) -> tuple[Hundred, ...]:
    """The ten blocks; a numeral that is several tokens counts as its lowest id."""
    wanted = {str(number).encode(): number for number in range(1000)}
    ids: dict[int, int] = {}
    surfaces = mapping.student.surfaces.list
    for token_id in (mapping.student.kinds == Kind.TEXT).nonzero()[0].tolist():
        number = wanted.get(surfaces[token_id])
        if number is not None:
            ids.setdefault(number, token_id)
    cells = [_cell(number, mapping.row(ids[number]) if number in ids else None) for number in range(1000)]
    return tuple(Hundred(first, tuple(cells[first : first + 100])) for first in range(0, 1000, 100))


def counts(hundreds: tuple[Hundred, ...]) -> dict[str, int]:
    """Way -> cells, the ways that occur, in the order of the legend."""
    ways = [cell.way for hundred in hundreds for cell in hundred.cells]
    return {way: ways.count(way) for way in ("exact", "near", "split", "empty", ABSENT) if way in ways}


def _cell(number: int, row: Row | None) -> Cell:
    y, x = divmod(number % 100, 10)
    if row is None:
        return Cell(ABSENT, f"{number}: not a token", x, y)
    if not row.links:
        return Cell("empty", f"{number}: empty, {row.reason}", x, y)
    pieces = ", ".join(f"{visible_bytes(link.surface)} ({link.weight:.4g})" for link in row.links)
    return Cell(way_of(row.rule, len(row.links)), f"{number}: {row.rule}, {pieces}", x, y)


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
    rows = np.bincount(table["rows"]["reason"], minlength=len(table["reasons"])).tolist()
    return list(zip(table["reasons"], rows, strict=True))


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
