"""The slow twin of the alignment: what a chunk is, token by token; the fast path's definition and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xtoken_align.spans.careful import Stretch, common_stretches, has_dummy_prefix
from xtoken_align.spans.fold import Folded, Folding
from xtoken_align.spans.tables import best_pairs_in_order
from xtoken_align.vocab.kinds import Kind
from xtoken_align.vocab.vocab import Vocab

Boundary = tuple[int, ...]
"""A place on the axis and how many paired specials stand there before it; a boundary that compares with nothing has a
third number, the side's own."""


@dataclass
class _Token:
    text: bytes
    is_special: bool
    roles: frozenset[str]
    string: str
    begin: Boundary | None = None
    end: Boundary | None = None
    place: int = 0


def slow_chunks(
    student_ids: Sequence[int], teacher_ids: Sequence[int], *, student: Vocab, teacher: Vocab
) -> tuple[list[int], list[int]]:
    """Aligns one unit.

    1. Text and byte tokens say their surfaces; everything else says nothing. A dummy prefix that the other side does
       not have is no text.
    2. What the two texts have in common is the axis: one stretch where one text is the beginning of the other, else the
       common stretches of the two texts as both normalisers leave them. Where surfaces of word ends carry a space that
       the text may not have, the beginning of a text is not enough.
    3. A token is on the axis if it lies inside one stretch. Specials that correspond and stand at one place are too;
       between two stretches, all that one side alone says counts as one place.
    4. A chunk goes from a beginning that both sides have to the next end that both sides have, without a hole on
       either side.

    Args:
        student_ids: the student's ids.
        teacher_ids: the teacher's.
        student: the student.
        teacher: the teacher.

    Returns:
        The chunk of every student and of every teacher token, -1 outside every chunk.
    """
    sides = (_tokens(student_ids, student), _tokens(teacher_ids, teacher))
    _trim(sides, (student, teacher))
    texts = [b"".join(token.text for token in side) for side in sides]
    shorter = min(map(len, texts))
    compared = max(map(len, texts)) if student.ends_words or teacher.ends_words else shorter
    one_text = texts[0][:compared] == texts[1][:compared]
    if one_text:
        folded = [_unfolded(text) for text in texts]
        stretches = [(0, 0, shorter)] if shorter else []
    else:
        folding = Folding(student, teacher)
        folded = [folding.fold(text) if folding.changes else _unfolded(text) for text in texts]
        stretches = common_stretches(folded[0].text, folded[1].text)
    for which in (0, 1):
        _put(sides[which], folded[which], stretches, which)
        if one_text:
            # Past the end of the shorter text places differ, so what stands there has no counterpart.
            _place_by_text(sides[which])
    _pair_specials(*sides)
    return _walk(*sides)


def _tokens(ids: Sequence[int], vocab: Vocab) -> list[_Token]:
    made = []
    for token_id in ids:
        kind = vocab.kinds[token_id]
        made.append(
            _Token(
                text=vocab.surfaces[token_id] if kind <= Kind.BYTE else b"",
                is_special=kind in {Kind.SPECIAL, Kind.RESERVED},
                roles=frozenset(role for role, members in vocab.roles.items() if token_id in members),
                string=vocab.raw[token_id],
            )
        )
    return made


def _trim(sides: tuple[list[_Token], list[_Token]], vocabs: tuple[Vocab, Vocab]) -> None:
    texts = [b"".join(token.text for token in side) for side in sides]
    for side, vocab in enumerate(vocabs):
        if vocab.encoder.dummy_prefix and has_dummy_prefix(texts[side], texts[1 - side]):
            first = next(token for token in sides[side] if token.text)
            first.text = first.text[1:]


def _unfolded(text: bytes) -> Folded:
    positions = np.arange(len(text) + 1)
    return Folded(np.frombuffer(text, dtype=np.uint8), positions, np.ones(len(text) + 1, dtype=np.bool_))


def _put(side: list[_Token], folded: Folded, stretches: list[Stretch], which: int) -> None:
    """Gives every token inside a stretch its place on the axis, and every other one the place that it stands at."""
    said = 0
    for token in side:
        sharp = bool(folded.sharp[said]), bool(folded.sharp[said + len(token.text)])
        begin, end = int(folded.at[said]), int(folded.at[said + len(token.text)])
        said += len(token.text)
        # The axis has a step of one between two stretches.
        base = 1
        for stretch in stretches:
            start, length = stretch[which], stretch[2]
            if start < begin:
                token.place = base + min(begin - start, length)
            speaks = token.text and (begin < end or not all(sharp))
            if speaks and start <= begin and end <= start + length:
                token.begin = (
                    (base + begin - start, 0) if sharp[0] else (base + begin - start, 0, said - len(token.text), which)
                )
                token.end = (base + end - start, 0) if sharp[1] else (base + end - start, 0, said, which)
            base += length + 1


def _place_by_text(side: list[_Token]) -> None:
    said = 0
    for token in side:
        token.place = 1 + said
        said += len(token.text)


def _pair_specials(ours: list[_Token], theirs: list[_Token]) -> None:
    for place in {token.place for token in ours if token.is_special}:
        one, other = ([token for token in side if token.is_special and token.place == place] for side in (ours, theirs))
        if not other:
            continue
        pairs = best_pairs_in_order(
            np.array([[_correspond(left, right) for right in other] for left in one], dtype=np.bool_)
        )
        for number, pair in enumerate(pairs):
            for token in (one[pair[0]], other[pair[1]]):
                token.begin, token.end = (place, number), (place, number + 1)
        for side in (ours, theirs):
            for token in side:
                # What begins at the place comes after the specials there.
                if not token.is_special and token.begin is not None and token.begin == (place, 0) and pairs:
                    token.begin = (place, len(pairs))


def _correspond(one: _Token, other: _Token) -> bool:
    mute = {"pad", "unk"}
    # Whatever ends a turn or a text on one side stands for whatever ends one on the other.
    ends = {"eos", "eot", "eom", "stop"}
    if one.roles & other.roles - mute or (one.roles & ends and other.roles & ends):
        return True
    return one.string == other.string != "" and not (one.roles & mute or other.roles & mute)


def _walk(ours: list[_Token], theirs: list[_Token]) -> tuple[list[int], list[int]]:
    sides = [[(at, token) for at, token in enumerate(side) if token.begin is not None] for side in (ours, theirs)]
    begins = [{token.begin: number for number, (_, token) in enumerate(side)} for side in sides]
    ends = {token.end for _, token in sides[0]} & {token.end for _, token in sides[1]}
    chunks = [[-1] * len(ours), [-1] * len(theirs)]
    number = 0
    for begin in sorted(filter(None, begins[0])):
        if begin not in begins[1]:
            continue
        runs = [_run(side, first[begin], ends) for side, first in zip(sides, begins, strict=True)]
        closed = [run[-1][1].end if run else None for run in runs]
        # Bytes of a character that a normaliser takes away end where they begin.
        if closed[0] is not None and closed[0] == closed[1] and begin < closed[0]:
            for chunk, run in zip(chunks, runs, strict=True):
                for at, _ in run:
                    chunk[at] = number
            number += 1
    return chunks[0], chunks[1]


def _run(side: list[tuple[int, _Token]], first: int, ends: set[Boundary | None]) -> list[tuple[int, _Token]]:
    """The tokens from one on to the first end that both sides have, [] where there is a hole before it."""
    run: list[tuple[int, _Token]] = []
    for at, token in side[first:]:
        if run and token.begin != run[-1][1].end:
            return []
        run.append((at, token))
        if token.end in ends:
            return run
    return []
