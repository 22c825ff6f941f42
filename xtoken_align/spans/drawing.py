"""The drawing of an aligned text: its cells, which are chunks and gaps, as HTML for notebooks and with matplotlib."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError
from ..visible import visible_bytes
from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab

Range = tuple[int, int]

INK = "#1f2328"
CHUNK_COLOURS = ("#cfe3ff", "#d3f2d0", "#ffe9bd", "#ead9ff")
"""Backgrounds of chunks in turn; `INK` on each has a contrast of more than 11 to 1."""

GAP_INK, GAP_COLOUR = "#ffffff", "#b3261e"

_BLOCK = 1 << 12
"""Ranges that become Python's numbers at a time: most texts are shown in part."""

_CELLS_DRAWN = 200
_LINE = 100
"""Characters of a line of a plot."""


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
        """int64 (chunks, 2), where each chunk's first token stands, and where its last one ends.

        The chunks 0 0 -1 1 have the ranges 0-2 and 3-4.
        """
        places = np.flatnonzero(self.chunk >= 0)
        numbers, chunks = self.chunk[places], np.arange(self.count)
        first, last = np.searchsorted(numbers, chunks), np.searchsorted(numbers, chunks, "right") - 1
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

    def chunk_texts(self) -> list[bytes]:
        """What each chunk says; nothing for one of special tokens."""
        has_text = (self.chunk >= 0) & (self.vocab.kinds[self.ids] <= Kind.BYTE)
        texts: list[list[bytes]] = [[] for _ in range(self.count)]
        surfaces = self.vocab.surfaces.list
        for chunk, token in zip(self.chunk[has_text].tolist(), self.ids[has_text].tolist(), strict=True):
            texts[chunk].append(surfaces[token])
        return [b"".join(parts) for parts in texts]


def cells(student: Side, teacher: Side) -> Iterator[Cell]:
    """The cells in the order of the text; at one place the student's gap comes first.

    Student chunks 0 -1 1, teacher chunks 0 1: chunk 0, a gap of the student's token 1, chunk 1.
    """
    student_at = teacher_at = 0
    ranges = zip(_ranges(student), _ranges(teacher), strict=True)
    for number, ((student_begin, student_end), (teacher_begin, teacher_end)) in enumerate(ranges):
        if student_begin > student_at:
            yield Cell((student_at, student_begin), (teacher_at, teacher_at), None)
        if teacher_begin > teacher_at:
            yield Cell((student_begin, student_begin), (teacher_at, teacher_begin), None)
        if number < student.count:
            yield Cell((student_begin, student_end), (teacher_begin, teacher_end), number)
        student_at, teacher_at = student_end, teacher_end


def count_cells(student: Side, teacher: Side) -> int:
    """How many cells there are."""
    ranges = (np.concatenate([side.ranges, [[len(side.ids)] * 2]]) for side in (student, teacher))
    gaps = (int(np.count_nonzero(side[:, 0] > np.append(0, side[:-1, 1]))) for side in ranges)
    return student.count + sum(gaps)


def _ranges(side: Side) -> Iterator[list[int]]:
    """Every chunk's range, and an empty one where the tokens end."""
    for begin in range(0, side.count, _BLOCK):
        yield from side.ranges[begin : begin + _BLOCK].tolist()
    yield [len(side.ids)] * 2


def _colours(cell: Cell) -> tuple[str, str]:
    """Ink and background of a cell."""
    if cell.chunk is None:
        return GAP_INK, GAP_COLOUR
    return INK, CHUNK_COLOURS[cell.chunk % len(CHUNK_COLOURS)]


def as_html(student: Side, teacher: Side) -> str:
    """An aligned text as HTML: the student's tokens over the teacher's, a box per cell, controls written out."""
    boxes = []
    for cell in islice(cells(student, teacher), _CELLS_DRAWN):
        ink, background = _colours(cell)
        lines = (
            "┊".join(html.escape(visible_bytes(surface)) for surface in side.surfaces(tokens)) or "&nbsp;"
            for side, tokens in ((student, cell.student), (teacher, cell.teacher))
        )
        box = "display:inline-block;vertical-align:top;margin:0 1px 4px 0;padding:0 3px;white-space:pre"
        boxes.append(f'<span style="{box};color:{ink};background:{background}">{"<br>".join(lines)}</span>')
    total = count_cells(student, teacher)
    more = f" … {total - _CELLS_DRAWN:,} more chunks and gaps" if total > _CELLS_DRAWN else ""
    names = html.escape(f"student {student.vocab.name} over teacher {teacher.vocab.name}")
    return f'<div><small>{names}</small><div style="font-family:monospace">{"".join(boxes)}{more}</div></div>'


def plot_tokens(student: Side, teacher: Side, *, ax: Any = None) -> Any:
    """Draws an aligned text with matplotlib, see `Spans.plot`."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtraError("Plotting an aligned text", "report") from error
    boxes: list[tuple[int, int, int, list[str], tuple[str, str]]] = []
    line = column = 0
    for cell in islice(cells(student, teacher), _CELLS_DRAWN):
        labels = [
            "┊".join(visible_bytes(surface) for surface in side.surfaces(tokens)).replace(" ", "␣")
            for side, tokens in ((student, cell.student), (teacher, cell.teacher))
        ]
        width = max(map(len, labels)) + 1
        if column and column + width > _LINE:
            line, column = line + 1, 0
        boxes.append((line, column, width, labels, _colours(cell)))
        column += width
    if ax is None:
        _, ax = plt.subplots(figsize=(9, 0.4 + 0.6 * (line + 1)), layout="constrained")
    for at, left, width, labels, (ink, background) in boxes:
        for lane, label in enumerate(labels):
            y = 2.4 * at + lane
            ax.barh(y, width - 0.15, left=left, height=0.95, color=background)
            # No mathematics: a dollar sign is a token.
            ax.text(left + 0.4, y, label, color=ink, va="center", family="monospace", fontsize=8.5, parse_math=False)
    title = f"student {student.vocab.name} over teacher {teacher.vocab.name}"
    ax.set(xlim=(0, _LINE), ylim=(2.4 * line + 1.7, -0.7), title=title)
    ax.set_axis_off()
    return ax
