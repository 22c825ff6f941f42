"""The rules that match whole tokens: identity, exact, special, space, case and nfkc. Every link has weight 1."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..vocab.kinds import Kind
from ..vocab.roles import ROLES
from ..vocab.vocab import Vocab
from .links import Links, one_to_one
from .pieces import Pair, is_utf8

Open = NDArray[np.bool_]


def identity(pair: Pair, open_rows: Open) -> Links:
    """Equal fingerprints: every text and byte id to itself, specials and reserved ids by equal string."""
    if not pair.identical:
        return one_to_one("identity", (), ())
    rows = pair.student.speakable_ids.tolist()
    columns = list(rows)
    for kind in (Kind.SPECIAL, Kind.RESERVED):
        teacher = _by_string(pair.teacher, kind)
        for row in pair.student.ids_of(kind).tolist():
            column = teacher.get(pair.student.raw[row])
            if column is not None:
                rows.append(row)
                columns.append(column)
    return _still_open("identity", rows, columns, open_rows)


def exact(pair: Pair, open_rows: Open) -> Links:
    """Equal surfaces of the same kind, text or byte; among duplicates the lowest teacher id."""
    rows = np.flatnonzero(open_rows & (pair.student_equal >= 0))
    return one_to_one("exact", rows.astype(np.int32), pair.student_equal[rows])


def special(pair: Pair, open_rows: Open) -> Links:
    """Special tokens by equal role, else by equal string; several tokens of one role are told apart by string."""
    teacher_by_string = _by_string(pair.teacher, Kind.SPECIAL)
    rows: list[int] = []
    columns: list[int] = []
    for row in np.flatnonzero(open_rows & (pair.student.kinds == Kind.SPECIAL)).tolist():
        shared = next((role for role in _roles_of(pair.student, row) if role in pair.teacher.roles), None)
        same_string = teacher_by_string.get(pair.student.raw[row])
        if shared is not None:
            column = _of_role(pair, row, shared, same_string)
        elif same_string is not None:
            column = same_string
        else:
            continue
        rows.append(row)
        columns.append(column)
    return one_to_one("special", rows, columns)


def _of_role(pair: Pair, row: int, role: str, same_string: int | None) -> int:
    """Which of the teacher's tokens of a role: the equal string, else the one of equal rank, else the last."""
    members = pair.teacher.roles[role]
    if same_string is not None and same_string in members:
        return same_string
    rank = pair.student.roles[role].index(row)
    return members[min(rank, len(members) - 1)]


def _roles_of(vocab: Vocab, token_id: int) -> list[str]:
    order = {role: position for position, role in enumerate(ROLES)}
    held = (role for role, ids in vocab.roles.items() if token_id in ids)
    return sorted(held, key=lambda role: (order.get(role, len(order)), role))


def _by_string(vocab: Vocab, kind: Kind) -> dict[str, int]:
    return {vocab.raw[token_id]: token_id for token_id in reversed(vocab.ids_of(kind).tolist())}


def space(pair: Pair, open_rows: Open) -> Links:
    """Equal after adding or dropping one leading space, where exactly one such teacher token exists.

    Surfaces that are not UTF-8 are left to the rule `bytes`: a space more or less says nothing about half a character.
    """
    lowest, highest = pair.teacher.lowest_text_id, pair.teacher.highest_text_id
    surfaces = pair.student.surfaces.list
    rows: list[int] = []
    columns: list[int] = []
    for row in pair.open_text(open_rows):
        surface = surfaces[row]
        variants = (b" " + surface, surface[1:]) if surface.startswith(b" ") else (b" " + surface,)
        found = [variant for variant in variants if variant in lowest]
        if len(found) == 1 and lowest[found[0]] == highest[found[0]] and is_utf8(surface):
            rows.append(row)
            columns.append(lowest[found[0]])
    return one_to_one("space", rows, columns)


def case(pair: Pair, open_rows: Open) -> Links:
    """Equal after case folding; among several the lowest teacher id."""
    return _folded("case", pair, open_rows, str.casefold)


def nfkc(pair: Pair, open_rows: Open) -> Links:
    """Equal after compatibility folding (NFKC); among several the lowest teacher id."""
    return _folded("nfkc", pair, open_rows, lambda text: unicodedata.normalize("NFKC", text))


def _folded(rule: str, pair: Pair, open_rows: Open, fold: Callable[[str], str]) -> Links:
    teacher: dict[str, int] = {}
    for surface, column in pair.teacher.lowest_text_id.items():
        if is_utf8(surface):
            key = fold(surface.decode())
            teacher[key] = min(column, teacher.get(key, column))
    surfaces = pair.student.surfaces.list
    rows: list[int] = []
    columns: list[int] = []
    for row in pair.open_text(open_rows):
        if surfaces[row] and is_utf8(surfaces[row]):
            match = teacher.get(fold(surfaces[row].decode()))
            if match is not None:
                rows.append(row)
                columns.append(match)
    return one_to_one(rule, rows, columns)


def _still_open(rule: str, rows: list[int], columns: list[int], open_rows: Open) -> Links:
    kept = open_rows[rows] if rows else np.zeros(0, dtype=np.bool_)
    return one_to_one(rule, np.asarray(rows, dtype=np.int32)[kept], np.asarray(columns, dtype=np.int32)[kept])
