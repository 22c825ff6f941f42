"""The slow twin of a build: W straight from its definition, one row and one rule at a time."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from xtoken_align.vocab.kinds import Kind
from xtoken_align.vocab.roles import ROLES
from xtoken_align.vocab.vocab import Vocab

ORDER = ("identity", "exact", "special", "space", "case", "nfkc", "digits", "decompose", "bytes")
DEFAULT = tuple(rule for rule in ORDER if rule not in ("case", "nfkc"))

Cell = tuple[float, str, int]
"""Weight, rule, position."""


def surface_of(vocab: Vocab, token_id: int) -> bytes:
    return vocab.surfaces[token_id]


def kind_of(vocab: Vocab, token_id: int) -> Kind:
    return Kind(vocab.kinds[token_id])


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def ids_with(vocab: Vocab, surface: bytes, kind: Kind) -> list[int]:
    """All ids of a kind with a surface; the empty surface stands for nothing."""
    return [i for i in range(len(vocab)) if surface and surface_of(vocab, i) == surface and kind_of(vocab, i) == kind]


def decomposition(vocab: Vocab, token_id: int, by: Vocab) -> list[int]:
    """A token as the other vocabulary writes it, [] where it cannot."""
    surface, kind = surface_of(vocab, token_id), kind_of(vocab, token_id)
    if kind not in (Kind.TEXT, Kind.BYTE):
        return []
    if vocab.fingerprint == by.fingerprint:
        return [token_id]
    equal = ids_with(by, surface, kind)
    if equal:
        return equal[:1]
    if kind == Kind.TEXT and is_utf8(surface):
        pieces = by.encode_batch([surface.decode()])[0]
    else:
        pieces = _spell(surface, kind, by)
    return pieces if all(kind_of(by, piece) in (Kind.TEXT, Kind.BYTE) for piece in pieces) else []


def _spell(surface: bytes, kind: Kind, by: Vocab) -> list[int]:
    other = ids_with(by, surface, Kind.TEXT if kind == Kind.BYTE else Kind.BYTE)
    if other:
        return other[:1]
    merged = by.encoder.encode_bytes(surface)
    if merged and b"".join(surface_of(by, piece) for piece in merged) == surface:
        return merged
    pieces: list[int] = []
    # What is UTF-8 is encoded, what is not goes byte by byte.
    for part in re.split(r"([\udc80-\udcff]+)", surface.decode("utf-8", "surrogateescape")):
        data = part.encode("utf-8", "surrogateescape")
        if not data:
            continue
        if is_utf8(data):
            ids = by.encode_batch([data.decode()])[0]
            if not ids or any(kind_of(by, piece) not in (Kind.TEXT, Kind.BYTE) for piece in ids):
                return []
            pieces += ids
            continue
        for value in data:
            single = ids_with(by, bytes([value]), Kind.BYTE) or ids_with(by, bytes([value]), Kind.TEXT)
            if not single:
                return []
            pieces += single[:1]
    return pieces


def decayed(pieces: Sequence[int], lead: float, decay: float, top_k: int) -> list[tuple[int, float, int]]:
    """(piece, weight, position) of the first `top_k`, weights normalised, zeros left out."""
    kept = list(pieces)[:top_k]
    weights = [lead * decay**position for position in range(len(kept))]
    return [
        (piece, weight / sum(weights), position)
        for position, (piece, weight) in enumerate(zip(kept, weights, strict=True))
        if weight > 0
    ]


def whole_match(rule: str, row: int, student: Vocab, teacher: Vocab) -> int | None:
    """The one column that a whole-token rule gives a row."""
    surface, kind = surface_of(student, row), kind_of(student, row)
    found: list[int] = []
    if rule == "identity" and student.fingerprint == teacher.fingerprint:
        found = _identity(row, student, teacher)
    elif rule == "exact" and kind in (Kind.TEXT, Kind.BYTE):
        found = ids_with(teacher, surface, kind)
    elif rule == "special" and kind == Kind.SPECIAL:
        found = _special(row, student, teacher)
    elif kind == Kind.TEXT and surface and is_utf8(surface):
        found = _near(rule, surface, teacher)
    return found[0] if found else None


def _identity(row: int, student: Vocab, teacher: Vocab) -> list[int]:
    kind = kind_of(student, row)
    if kind in (Kind.TEXT, Kind.BYTE):
        return [row]
    named = kind in (Kind.SPECIAL, Kind.RESERVED)
    return [
        i for i in range(len(teacher)) if named and teacher.raw[i] == student.raw[row] and kind_of(teacher, i) == kind
    ]


def _near(rule: str, surface: bytes, teacher: Vocab) -> list[int]:
    if rule == "space":
        variants = [b" " + surface] + ([surface[1:]] if surface[:1] == b" " else [])
        found = [i for variant in variants for i in ids_with(teacher, variant, Kind.TEXT)]
        return found if len(found) == 1 else []
    folds = {"case": str.casefold, "nfkc": lambda text: unicodedata.normalize("NFKC", text)}
    if rule not in folds:
        return []
    fold = folds[rule]
    theirs = [(i, surface_of(teacher, i)) for i in range(len(teacher)) if kind_of(teacher, i) == Kind.TEXT]
    return [i for i, other in theirs if other and is_utf8(other) and fold(other.decode()) == fold(surface.decode())]


def _special(row: int, student: Vocab, teacher: Vocab) -> list[int]:
    same = [
        i for i in range(len(teacher)) if kind_of(teacher, i) == Kind.SPECIAL and teacher.raw[i] == student.raw[row]
    ]
    for role in ROLES:
        if row in student.roles.get(role, ()) and teacher.roles.get(role):
            members = teacher.roles[role]
            if same and same[0] in members:
                return same
            return [members[min(student.roles[role].index(row), len(members) - 1)]]
    return same


def slow_build(
    student: Vocab,
    teacher: Vocab,
    *,
    rules: Sequence[str] = DEFAULT,
    lead: float = 0.9,
    decay: float = 0.1,
    top_k: int = 4,
    reverse_pass: bool = False,
) -> dict[tuple[int, int], Cell]:
    """W as (row, column) -> (weight, rule, position)."""
    cells: dict[tuple[int, int], Cell] = {}
    for row in range(len(student)):
        for rule in ORDER:
            links = _links(rule, row, student, teacher, (lead, decay, top_k)) if rule in rules else []
            if links:
                for column, weight, position in links:
                    _add(cells, (row, column), (weight, rule, position))
                break
    if reverse_pass:
        reached = {column for _, column in cells}
        for column in range(len(teacher)):
            if column not in reached:
                for row, weight, position in decayed(decomposition(teacher, column, student), lead, decay, top_k):
                    _add(cells, (row, column), (weight, "reverse", position))
    totals: dict[int, float] = {}
    for (row, _), (weight, _, _) in cells.items():
        totals[row] = totals.get(row, 0.0) + weight
    return {cell: (weight / totals[cell[0]], rule, at) for cell, (weight, rule, at) in cells.items()}


def _links(
    rule: str, row: int, student: Vocab, teacher: Vocab, decay: tuple[float, float, int]
) -> list[tuple[int, float, int]]:
    surface, kind = surface_of(student, row), kind_of(student, row)
    text = kind == Kind.TEXT and is_utf8(surface)
    numeral = text and re.fullmatch(rb" ?[0-9]+", surface) is not None
    splits = {
        "digits": numeral,
        "decompose": text,
        "bytes": kind == Kind.BYTE or (kind == Kind.TEXT and not text),
    }
    if rule in splits:
        return decayed(decomposition(student, row, teacher), *decay) if splits[rule] else []
    column = whole_match(rule, row, student, teacher)
    return [] if column is None else [(column, 1.0, 0)]


def _add(cells: dict[tuple[int, int], Cell], at: tuple[int, int], new: Cell) -> None:
    before = cells.get(at)
    cells[at] = new if before is None else (before[0] + new[0], *before[1:])
