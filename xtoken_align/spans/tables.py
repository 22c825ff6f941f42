"""What aligning needs to know of each id of a pair, looked up once per pair; and which special tokens correspond."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..vocab.kinds import Kind
from ..vocab.roles import stop_ids
from ..vocab.vocab import Vocab
from .units import runs

_NEVER_PAIRED = frozenset(("pad", "unk"))
"""Roles that make no pair: padding is no text, and nobody knows what an unknown token stands for."""

_LONGEST_RUN = 64
"""Runs of specials up to this length are paired in the best way; in longer ones only equal positions are paired."""

Places = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PairTables:
    """Both vocabularies as one: the teacher's ids follow the student's, so teacher id 5 is `len(student) + 5`.

    Attributes:
        student: the student.
        teacher: the teacher.
        lengths: int32 (both logits,), bytes of text that a token contributes; 0 for all but text and byte tokens.
        text: int32 (both logits,), a positive number per surface: equal numbers are equal bytes.
        special: int32 (both logits,), a special's row (student) or column (teacher) of `same_special`, -1 elsewhere.
        spaced: bool (both logits,), text and byte tokens whose surface begins with a space.
        begins: int64 (both logits,), where a token's surface begins in `blob`.
        blob: uint8, all surfaces one after another.
        same_special: bool (student specials, teacher specials), equal roles or equal strings.
    """

    student: Vocab
    teacher: Vocab
    lengths: NDArray[np.int32]
    text: NDArray[np.int32]
    special: NDArray[np.int32]
    spaced: NDArray[np.bool_]
    begins: NDArray[np.int64]
    blob: NDArray[np.uint8]
    same_special: NDArray[np.bool_]

    def surfaces(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8, the surfaces of tokens one after another; `ids` as this class counts them."""
        return self.blob[runs(self.begins[ids], self.lengths[ids])]


@lru_cache(maxsize=8)
def pair_tables(student: Vocab, teacher: Vocab) -> PairTables:
    """The tables of a pair; kept, since training aligns one pair over and over."""
    vocabs = (student, teacher)
    number_of: dict[bytes, int] = {}
    lengths = np.concatenate([np.where(vocab.kinds <= Kind.BYTE, vocab.surfaces.lengths, 0) for vocab in vocabs])
    begins = np.concatenate([student.surfaces.offsets[:-1], teacher.surfaces.offsets[:-1] + len(student.surfaces.blob)])
    blob = np.concatenate([vocab.surfaces.blob for vocab in vocabs])
    spaced = lengths > 0
    spaced[spaced] = blob[begins[spaced]] == ord(" ")
    special = np.full(len(lengths), -1, dtype=np.int32)
    ids = [_special_ids(vocab) for vocab in vocabs]
    special[ids[0]] = np.arange(len(ids[0]))
    special[np.asarray(ids[1], dtype=np.int64) + len(student)] = np.arange(len(ids[1]))
    return PairTables(
        student=student,
        teacher=teacher,
        lengths=lengths.astype(np.int32),
        text=np.fromiter(
            (number_of.setdefault(surface, len(number_of) + 1) for vocab in vocabs for surface in vocab.surfaces.list),
            dtype=np.int32,
            count=len(lengths),
        ),
        special=special,
        spaced=spaced,
        begins=begins,
        blob=blob,
        same_special=_same_specials(student, ids[0], teacher, ids[1]),
    )


def _special_ids(vocab: Vocab) -> list[int]:
    ids: list[int] = np.flatnonzero((vocab.kinds == Kind.SPECIAL) | (vocab.kinds == Kind.RESERVED)).tolist()
    return ids


def _same_specials(student: Vocab, student_ids: list[int], teacher: Vocab, teacher_ids: list[int]) -> NDArray[np.bool_]:
    """Which specials correspond: those that share a role, and those that are written alike."""
    same = np.zeros((len(student_ids), len(teacher_ids)), dtype=np.bool_)
    row_of = {token_id: row for row, token_id in enumerate(student_ids)}
    column_of = {token_id: column for column, token_id in enumerate(teacher_ids)}
    for role in student.roles.keys() & teacher.roles.keys() - _NEVER_PAIRED:
        rows = [row_of[token_id] for token_id in student.roles[role] if token_id in row_of]
        columns = [column_of[token_id] for token_id in teacher.roles[role] if token_id in column_of]
        same[np.ix_(rows, columns)] = True
    # Whatever ends a turn corresponds to whatever ends a turn: models have several such tokens, by other names.
    stops = [
        [place[token_id] for token_id in stop_ids(vocab) if token_id in place]
        for vocab, place in ((student, row_of), (teacher, column_of))
    ]
    same[np.ix_(*stops)] = True
    unpaired = [
        {token_id for role in _NEVER_PAIRED for token_id in vocab.roles.get(role, ())} for vocab in (student, teacher)
    ]
    by_string: dict[str, list[int]] = {}
    for token_id in teacher_ids:
        if teacher.raw[token_id] and token_id not in unpaired[1]:
            by_string.setdefault(teacher.raw[token_id], []).append(column_of[token_id])
    for token_id in student_ids:
        if token_id not in unpaired[0]:
            same[row_of[token_id], by_string.get(student.raw[token_id], [])] = True
    return same


def paired_specials(
    student: NDArray[np.int32],
    student_places: Places,
    teacher: NDArray[np.int32],
    teacher_places: Places,
    same: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs specials that stand at one place, in order, where they have an equal role or string.

    Student `<s>` at place 0 and `<end>` `<s>` at place 9, teacher `<bos>` at 0 and `<bos>` at 9: at place 0 both have
    one special, and they correspond, so (0, 0) is a pair. At place 9 the numbers differ, so the best pairing in order
    is looked for: (2, 1).

    Args:
        student: int32 (n,), rows of `same`: the student's specials in the order of the text.
        student_places: int64 (n,), ascending: where each stands.
        teacher: int32 (m,), columns of `same`.
        teacher_places: int64 (m,).
        same: bool (student specials, teacher specials).

    Returns:
        Positions in `student` and in `teacher`, pair by pair, both ascending.
    """
    places = np.intersect1d(student_places, teacher_places)
    student_begin, student_end = (np.searchsorted(student_places, places, side) for side in ("left", "right"))
    teacher_begin, teacher_end = (np.searchsorted(teacher_places, places, side) for side in ("left", "right"))
    # Places with equally many specials on both sides that all correspond one by one: nearly all, and done at once.
    counts = student_end - student_begin
    even = np.flatnonzero(counts == teacher_end - teacher_begin)
    left, right = runs(student_begin[even], counts[even]), runs(teacher_begin[even], counts[even])
    fits = same[student[left], teacher[right]]
    all_fit = np.ones(len(even), dtype=np.bool_)
    all_fit[np.repeat(np.arange(len(even)), counts[even])[~fits]] = False
    of_fitting = np.repeat(all_fit, counts[even])
    pairs = [(left[of_fitting], right[of_fitting])]
    # The other places one by one.
    for at in np.setdiff1d(np.arange(len(places)), even[all_fit]).tolist():
        one = student[student_begin[at] : student_end[at]]
        other = teacher[teacher_begin[at] : teacher_end[at]]
        if max(len(one), len(other)) > _LONGEST_RUN:
            # No grid of all by all: a picture may be thousands of specials.
            size = min(len(one), len(other))
            fit = same[one[:size], other[:size]].nonzero()[0]
            chosen = np.stack((fit, fit), axis=1)
        else:
            chosen = np.array(best_pairs_in_order(same[np.ix_(one, other)]), dtype=np.int64).reshape(-1, 2)
        pairs.append((chosen[:, 0] + student_begin[at], chosen[:, 1] + teacher_begin[at]))
    left, right = (np.sort(np.concatenate(side)) for side in zip(*pairs, strict=True))
    return left, right


def best_pairs_in_order(grid: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The longest list of pairs (row, column) that are True, ascending on both sides; the earliest among equals.

    The longest common subsequence, by the table of the best list from each (row, column) on.

    >>> best_pairs_in_order(np.array([[True, True], [False, True]]))
    [(0, 0), (1, 1)]
    >>> best_pairs_in_order(np.array([[False], [True]]))
    [(1, 0)]
    """
    rows, columns = grid.shape
    if not grid.any():
        return []
    if max(rows, columns) > _LONGEST_RUN:
        return [(at, at) for at in range(min(rows, columns)) if grid[at, at]]
    best = np.zeros((rows + 1, columns + 1), dtype=np.int32)
    for row in range(rows - 1, -1, -1):
        for column in range(columns - 1, -1, -1):
            skip = max(best[row + 1, column], best[row, column + 1])
            best[row, column] = max(skip, best[row + 1, column + 1] + 1) if grid[row, column] else skip
    chosen: list[tuple[int, int]] = []
    row = column = 0
    while row < rows and column < columns:
        if grid[row, column] and best[row, column] == best[row + 1, column + 1] + 1:
            chosen.append((row, column))
            row, column = row + 1, column + 1
        elif best[row + 1, column] >= best[row, column + 1]:
            row += 1
        else:
            column += 1
    return chosen
