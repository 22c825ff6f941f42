"""What the page says: counts, losses, rules and reasons in words, and its tables of numerals and tokens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from collections.abc import Mapping as Table
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..coverage.classes import ClassRow
from ..coverage.coverage import Coverage
from ..coverage.render import percent
from ..mapping.audit import Audit, SpecialDecision
from ..mapping.find import Row
from ..mapping.mapping import Mapping, Side
from ..rules.links import RULE_NUMBER, SPLIT_RULES, WAYS
from ..rules.pieces import Pieces
from ..visible import MARKS, visible_bytes
from ..vocab.kinds import Kind
from .charts import Bar, by_way, way_of

_GROUPS = "the tokens of both sides that begin alike, and compares what the groups are worth to each model."

LOSSES = {
    "c-kl": (
        "Train with C-KL",
        f"C-KL groups {_GROUPS} A token that the other side writes in several pieces is then followed piece by piece.",
    ),
    "partition-kl": ("Train with Partition-KL", f"Partition-KL groups {_GROUPS}"),
}
"""Loss -> (headline, what it does)."""

PAPER_LOSSES = {"p-kl": "P-KL", "h-kl": "H-KL", "identity": "an ordinary KL"}
"""Loss of the paper's rule -> its name in a sentence."""

WAY_WORDS = {
    "exact": "one teacher token says the same",
    "near": "one teacher token says nearly the same",
    "split": "the teacher writes it in several pieces",
    "empty": "nothing is mapped",
    "absent": "no token of the student",
}
"""How a row is mapped -> what that means."""

RULES = {
    "identity": "equal vocabularies, every id to itself",
    "exact": "the same bytes",
    "special": "a special token of the same role or name",
    "space": "the same but for one leading space",
    "case": "the same but for upper and lower case",
    "nfkc": "the same after compatibility folding",
    "override": "given by hand",
    "digits": "a numeral, split as the teacher splits it",
    "decompose": "text, as the teacher tokenises it",
    "bytes": "bytes that are no whole characters",
    "reverse": "a piece of some teacher token",
    "none": "no teacher token",
}
"""Rule -> what its links mean."""

REASONS = {
    "reserved": "a filler that no text contains",
    "padding": "a logit without a token",
    "hole": "an id without a token",
    "special without counterpart": "no special token of the teacher has its role or name",
    "teacher cannot spell it": "the teacher's tokenizer gives nothing, or an unknown token",
}
"""Why a row is empty -> what that means."""


def loss_words(loss: str) -> tuple[str, str]:
    """Headline and explanation; a loss of a newer version is named without one."""
    return LOSSES.get(loss, (f"Train with {loss}", ""))


MOST_LOSSY = 200
"""Lossy rows that are listed; all of them are in the table of tokens."""

MOST_SPECIALS = 400
"""Special tokens that are listed; some tokenizers have thousands of alike ones."""

_MOST_PIECES = 10
"""From here on lengths share a bar: a token of a hundred spaces must not make a hundred bars."""

_MOST_CHARACTERS = 2000
"""Of an option's value: an override list may have thousands of entries."""


@dataclass(frozen=True, slots=True)
class LossyRow:
    """A student token whose pieces spell another text."""

    id: int
    surface: bytes
    pieces: tuple[bytes, ...]


def class_bars(coverage: Coverage) -> list[Bar]:
    """The classes that have tokens, numerals first, each with its rows by rule."""
    present = {name: row for name, row in coverage.classes.items() if row.total}
    return [
        Bar(
            name,
            row.total,
            row.exact + row.near,
            {**coverage.by_class_and_rule.get(name, {}), **({"none": row.empty} if row.empty else {})},
        )
        for name, row in sorted(present.items(), key=lambda item: not item[0].startswith("digits"))
    ]


def rule_counts(coverage: Coverage) -> dict[str, int]:
    """Rule -> rows, those that own any, in the order of the bars; `none` counts the empty rows."""
    counts = {rule: rows for rule, rows in coverage.rules.items() if rows}
    counts["none"] = sum(coverage.empty.values())
    return {rule: counts[rule] for rule in by_way(counts) if counts[rule]}


def totals(coverage: Coverage) -> ClassRow:
    """All classes together."""
    rows = coverage.classes.values()
    return ClassRow(**{column: sum(getattr(row, column) for row in rows) for column in ("total", *WAYS)})


def way_widths(every: ClassRow) -> Iterator[tuple[str, int, float, float]]:
    """Way, rows, and where its part of a bar 100 wide begins and how wide it is; ways without rows are left out."""
    left = 0.0
    for way in WAYS:
        rows = getattr(every, way)
        if rows:
            width = 100 * rows / every.total
            yield way, rows, round(left, 3), round(width, 3)
            left += width


def piece_counts(pieces: Pieces) -> list[tuple[str, int]]:
    """Number of pieces -> tokens, from two pieces on; empty if nothing is split."""
    counts = np.bincount(np.minimum(pieces.lengths, _MOST_PIECES), minlength=_MOST_PIECES + 1)
    last = int(np.flatnonzero(counts).max(initial=0))
    labels = {_MOST_PIECES: f"{_MOST_PIECES}+"}
    return [(labels.get(length, str(length)), int(counts[length])) for length in range(2, last + 1)]


def lossy_rows(mapping: Mapping) -> list[LossyRow]:
    """The first rows whose pieces spell another text, uncut."""
    surfaces, teacher = mapping.student.surfaces, mapping.teacher.surfaces
    return [
        LossyRow(token_id, surfaces[token_id], tuple(teacher[piece] for piece in mapping.student_pieces[token_id]))
        for token_id in mapping.student_pieces.lossy[:MOST_LOSSY].tolist()
    ]


def special_decisions(audited: Audit) -> list[SpecialDecision]:
    """The special tokens that are listed: all, or where they are very many those with a role or a counterpart first."""
    ordered = sorted(audited.specials, key=lambda decision: not decision.roles and decision.teacher_id is None)
    return sorted(ordered[:MOST_SPECIALS], key=lambda decision: decision.id)


def decided_by(audited: Audit) -> dict[str, int]:
    """How the special tokens were matched -> how many; roles are taken together."""
    return dict(Counter("role" if decision.by.startswith("role ") else decision.by for decision in audited.specials))


def side_facts(side: Side) -> dict[str, str]:
    """What the page says of one side."""
    sizes = side.sizes
    return {
        "name": side.name,
        "source": side.source,
        "revision": side.revision or "not recorded",
        "base vocabulary": f"{sizes.base:,}",
        "with added tokens": f"{sizes.with_added:,}",
        "highest id + 1": f"{sizes.ids:,}",
        "logit width": f"{sizes.logits:,}",
        "fingerprint": side.fingerprint,
    }


def mapping_facts(mapping: Mapping) -> dict[str, str]:
    """What the page says of the mapping as a whole."""
    sizes = mapping.bin_sizes
    return {
        "content hash": mapping.content_hash,
        "provenance": mapping.provenance,
        **({"created": mapping.created} if mapping.created else {}),
        "links": f"{len(mapping.matrix.data):,}",
        "bins": f"{sizes.count:,}; the largest hold {sizes.largest_student:,} student tokens "
        f"and {sizes.largest_teacher:,} teacher tokens",
        **{f"option {name.replace('_', ' ')}": _plain(value) for name, value in sorted(mapping.options.items())},
    }


def shares(counts: Table[str, int], total: int) -> list[tuple[str, int, str]]:
    """Name, count and share of the whole."""
    return [(name, count, percent(count, total)) for name, count in counts.items()]


def _plain(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value) or "none"
    if isinstance(value, str):
        return value
    text = json.dumps(value, ensure_ascii=False)
    return f"{text[:_MOST_CHARACTERS]} …" if len(text) > _MOST_CHARACTERS else text


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
