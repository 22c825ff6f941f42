"""What the page says: counts, losses, rules and reasons in words."""

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
from ..mapping.mapping import Mapping, Side
from ..rules.links import WAYS
from ..rules.pieces import Pieces
from .charts import Bar, by_way

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
