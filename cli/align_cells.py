"""The cells of an aligned text: its chunks, and between them the tokens that are in none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..spans.spans import Spans
    from ..vocab.vocab import Vocab

Range = tuple[int, int]

_LAST_THAT_SPEAKS = 1
"""`Kind.BYTE`: text and byte tokens stand for text, all later kinds do not."""

_BLOCK = 1 << 12
"""Ranges that become Python's numbers at a time: most texts are shown in part."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A chunk, or a run of one side's tokens that are in no chunk.

    Attributes:
        student: half-open range of the student's tokens.
        teacher: of the teacher's; empty where the student has tokens in no chunk.
        chunk: the chunk's number, None for a gap.
    """

    student: Range
    teacher: Range
    chunk: int | None


@dataclass(frozen=True, eq=False)
class Side:
    """One side of an aligned text.

    Attributes:
        vocab: its tokenizer.
        ids: int64 (tokens,).
        chunk: int32 (tokens,), -1 in no chunk.
        count: how many chunks there are.
    """

    vocab: Vocab
    ids: NDArray[np.int64]
    chunk: NDArray[np.int32]
    count: int

    @cached_property
    def ranges(self) -> NDArray[np.int64]:
        """int64 (chunks, 2), where each chunk's first token stands, and where its last one ends."""
        places = np.flatnonzero(self.chunk >= 0)
        numbers, every = self.chunk[places], np.arange(self.count)
        first, last = np.searchsorted(numbers, every), np.searchsorted(numbers, every, "right") - 1
        return np.stack([places[first], places[last] + 1], axis=1)

    def gaps(self) -> list[list[int]]:
        """Half-open ranges of the tokens that are in no chunk."""
        outside = np.concatenate([[False], self.chunk < 0, [False]])
        edges = np.flatnonzero(outside[1:] != outside[:-1])
        ranges: list[list[int]] = edges.reshape(-1, 2).tolist()
        return ranges

    def surfaces(self, tokens: Range) -> list[bytes]:
        """What each token of a range stands for; a special token's name."""
        surfaces = self.vocab.surfaces
        return [surfaces[token] for token in self.ids[slice(*tokens)].tolist()]

    def said(self) -> list[bytes]:
        """What each chunk says; nothing for one of special tokens."""
        spoken = self.vocab.kinds[self.ids] <= _LAST_THAT_SPEAKS
        kept = (self.chunk >= 0) & spoken
        said: list[list[bytes]] = [[] for _ in range(self.count)]
        surfaces = self.vocab.surfaces.list
        for chunk, token in zip(self.chunk[kept].tolist(), self.ids[kept].tolist(), strict=True):
            said[chunk].append(surfaces[token])
        return [b"".join(parts) for parts in said]


def sides_of(spans: Spans, student: Vocab, teacher: Vocab) -> tuple[Side, Side]:
    """The two sides of the one text that was aligned."""
    count = int(spans.count[0])
    return (
        Side(student, spans.student_ids[0][spans.student_mask[0]], spans.student[0][spans.student_mask[0]], count),
        Side(teacher, spans.teacher_ids[0][spans.teacher_mask[0]], spans.teacher[0][spans.teacher_mask[0]], count),
    )


def cells(student: Side, teacher: Side) -> Iterator[Cell]:
    """The cells in the order of the text; at one place the student's gap comes first."""
    at = [0, 0]
    for number, (own, other) in enumerate(zip(_places(student), _places(teacher), strict=True)):
        if own[0] > at[0]:
            yield Cell((at[0], own[0]), (at[1], at[1]), None)
        if other[0] > at[1]:
            yield Cell((own[0], own[0]), (at[1], other[0]), None)
        if number < student.count:
            yield Cell((own[0], own[1]), (other[0], other[1]), number)
        at = [own[1], other[1]]


def count_cells(student: Side, teacher: Side) -> int:
    """How many cells there are."""
    places = (np.concatenate([side.ranges, [[len(side.ids)] * 2]]) for side in (student, teacher))
    gaps = (int(np.count_nonzero(place[:, 0] > np.append(0, place[:-1, 1]))) for place in places)
    return student.count + sum(gaps)


def _places(side: Side) -> Iterator[list[int]]:
    """Every chunk's range, and an empty one where the tokens end."""
    for begin in range(0, side.count, _BLOCK):
        yield from side.ranges[begin : begin + _BLOCK].tolist()
    yield [len(side.ids)] * 2


def chunks_as_json(student: Side, teacher: Side) -> Iterator[dict[str, Any]]:
    """Every chunk's ranges of tokens and what it says, as the student's tokens spell it."""
    from ..mapping.find import json_surface

    ranges = zip(student.ranges.tolist(), teacher.ranges.tolist(), student.said(), strict=True)
    for own, other, surface in ranges:
        yield {"student": own, "teacher": other, "surface": json_surface(surface)}
