"""What aligning two vocabularies needs to know of each id, looked up once per pair."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab

_NO_PAIR = frozenset(("pad", "unk"))
"""Roles that make no pair: padding is no text, and what an unknown token stands for is not known."""


@dataclass(frozen=True, eq=False)
class PairTables:
    """Both vocabularies as one: the teacher's ids follow the student's.

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


@lru_cache(maxsize=8)
def pair_tables(student: Vocab, teacher: Vocab) -> PairTables:
    """The tables of a pair; kept, since training aligns one pair over and over."""
    vocabs = (student, teacher)
    numbers: dict[bytes, int] = {}
    number_of = numbers.setdefault
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
            (number_of(surface, len(numbers) + 1) for vocab in vocabs for surface in vocab.surfaces.list),
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


def _same_specials(student: Vocab, ours: list[int], teacher: Vocab, theirs: list[int]) -> NDArray[np.bool_]:
    same = np.zeros((len(ours), len(theirs)), dtype=np.bool_)
    row_of = {token_id: row for row, token_id in enumerate(ours)}
    column_of = {token_id: column for column, token_id in enumerate(theirs)}
    for role in student.roles.keys() & teacher.roles.keys() - _NO_PAIR:
        rows = [row_of[token_id] for token_id in student.roles[role] if token_id in row_of]
        columns = [column_of[token_id] for token_id in teacher.roles[role] if token_id in column_of]
        same[np.ix_(rows, columns)] = True
    mute = [{token_id for role in _NO_PAIR for token_id in vocab.roles.get(role, ())} for vocab in (student, teacher)]
    by_string: dict[str, list[int]] = {}
    for token_id in theirs:
        if teacher.raw[token_id] and token_id not in mute[1]:
            by_string.setdefault(teacher.raw[token_id], []).append(column_of[token_id])
    for token_id in ours:
        if token_id not in mute[0]:
            same[row_of[token_id], by_string.get(student.raw[token_id], [])] = True
    return same
