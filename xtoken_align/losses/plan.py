"""The plan of a batch: which rows and chunks are read together, as blocks of whole chunks.

Results do not depend on how a batch is cut; time and memory do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, pairwise
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.weak import WeakIdKeyDictionary

from ..mapping.mapping import Side
from ..spans.spans import IGNORED, Predictions, Spans
from ..spans.units import offsets_of
from ..vocab.kinds import Kind
from .chain import Left, Levels, PrefixTree, Reads, find_levels
from .divergence import Divergence, Measure
from .tables import Outcomes

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class BlockSizes:
    """Rows taken at a time; results do not depend on them.

    Attributes:
        logits: of a block of logits.
        hidden: of a block of hidden states, for which a head makes logits.
        rows: of a block where plain functions compare row with row.
        part: rows of a block whose formulas are called at a time, since that takes memory.
        levels: levels of C-KL whose whole rows are copied at a time, for sums over "everything else".
    """

    logits: int
    hidden: int
    rows: int
    part: int
    levels: int


WIDTH = 1 << 17
"""The width of the rows that the sizes below are for; of narrower ones proportionally more are taken."""


MOST = 64
"""But no more times as many: a GPU's grid has at most 65,535 rows."""


CPU = BlockSizes(logits=16, hidden=192, rows=8, part=8, levels=16)
"""What is made for a few rows stays in the processor's cache. Each block of hidden states adds to the gradient of the
whole head: 128 rows take 1.11 times as long as logits, 192 take 1.06, and 256 take 1.02 but more than an eighth of the
memory."""


ACCELERATOR = BlockSizes(logits=512, hidden=1024, rows=512, part=512, levels=512)
"""Every operation has to keep a whole device busy for longer than it takes to start the next one. Of hidden states
these are the most rows, see `rows_of_states`."""


def rows_of_states(device: torch.device, sizes: BlockSizes, count: int) -> int:
    """Rows of a block of hidden states, for a batch of so many chunks.

    On a GPU it is a tenth of the batch. A row of a block has what a row of logits has, its logits of both sides and
    its gradient, each once, in the same dtype; all else is made for `lines.AT_ONCE_OF_STATES` rows. So a loss from
    hidden states takes less than an eighth of the memory of the same loss from logits. Each block reads the heads and
    adds to the gradient of the student's, so that fewer rows would take more time.
    """
    return sizes.hidden if device.type == "cpu" else share_of_batch(count, sizes.hidden, 32)


def share_of_batch(count: int, most: int, step: int) -> int:
    """A tenth of a batch in whole steps, four at least and no more than `most`.

    >>> share_of_batch(2048, 1024, 32), share_of_batch(100, 1024, 32), share_of_batch(100_000, 1024, 32)
    (192, 128, 1024)
    """
    return min(max(count // 10 // step * step, 4 * step), most)


def block_sizes(device: torch.device, *widths: int) -> BlockSizes:
    """The sizes on a device for rows of these widths: those of both sides' logits, and of hidden states."""
    sizes = CPU if device.type == "cpu" else ACCELERATOR
    factor = min(max(WIDTH // max(1, *widths), 1), MOST)
    return BlockSizes(**{name: factor * size for name, size in vars(sizes).items()})


@dataclass(frozen=True, eq=False)
class Planned:
    """The plan of a batch that was asked for before its loss.

    Attributes:
        batch: the plan.
        labels: int64 (B, T_s), the labels on the host, or None.
    """

    batch: Batch
    labels: Ids | None


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="xtoken-align-plan")


if hasattr(os, "register_at_fork"):
    # A forked process has no thread but its own, so it begins one anew.
    os.register_at_fork(after_in_child=_thread.cache_clear)


Name = tuple[object, ...]

_begun: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""What is planned or being planned: by spans, the names that were given, what these tell by its id, and the futures."""


def begin_plan(spans: Spans, name: Name, work: Callable[[], Planned], *, kept: Sequence[object]) -> None:
    """Plans on a thread of its own; `take_plan` with the same spans and name waits for it.

    Args:
        spans: the batch's chunks.
        name: tells this plan from others of the same spans.
        work: plans.
        kept: what the name tells by its id, so that nothing else gets that id.
    """
    _begun[spans] = name, kept, _thread().submit(work)


def take_plan(spans: Spans, name: Name | None) -> Planned | None:
    """What was begun, once; None where that is nothing, or something else."""
    begun: tuple[Name, Sequence[object], Future[Planned]] | None = _begun.pop(spans, None)  # type: ignore[no-untyped-call]
    return None if begun is None or begun[0] != name else begun[2].result()


class Further(Protocol):
    """Comparisons of some chunks beside those of whole rows by a term's table, with rows of their own."""

    @property
    def chunk(self) -> Ids:
        """int64 (m,), the chunk of each, ascending."""

    def take(self, which: slice | NDArray[np.bool_]) -> Self:
        """Some of them."""

    def rows(self) -> tuple[Ids, Ids]:
        """The student's and the teacher's rows that they read."""

    def placed(self, student: Callable[[Ids], Ids], teacher: Callable[[Ids], Ids]) -> Self:
        """The same with rows numbered anew."""

    def values(
        self, student: Reads, teacher: Reads, outcomes: Outcomes, measure: Measure
    ) -> tuple[torch.Tensor, Divergence | None]:
        """Floats (m,), and what else was found, where it is that of a chunk's first position."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some chunks of a block, whose formulas are called at once.

    Attributes:
        chunks: their numbers in the batch, a range or int64.
        student: their rows of level one among the block's.
        teacher: the teacher's.
        student_size: int64, how many rows each chunk has; None where each has one on both sides.
        teacher_size: int64, or None.
        text: int64, the outcome that the text of each chunk has, where levels are weighed by it; or None.
    """

    chunks: slice | torch.Tensor
    student: slice
    teacher: slice
    student_size: Ids | None = None
    teacher_size: Ids | None = None
    text: Ids | None = None

    @property
    def range(self) -> slice:
        """The chunks where none is left out."""
        assert isinstance(self.chunks, slice)
        return self.chunks


@dataclass(frozen=True, eq=False)
class Block:
    """Rows that are read at once. Those of level one come first, chunk by chunk; rows of further levels and rows with
    nothing but a label follow.

    Attributes:
        student_rows: int64, flattened positions.
        teacher_rows: int64.
        parts: the chunks, some at a time.
        level_one: how many of the student's rows are level one's.
        levels: C-KL's further levels, those of some chunks at a time, whose rows count in the block.
        further: other comparisons beside level one, likewise.
        left: what level one of C-KL leaves out, chunks counted from the block's first one; None if nothing.
        labels: int64, what each of the student's rows is to predict, -100 for nothing; or None.
    """

    student_rows: Ids
    teacher_rows: Ids
    parts: tuple[Part, ...]
    level_one: int
    levels: tuple[Levels, ...] = ()
    further: tuple[Further, ...] = ()
    left: Left | None = None
    labels: Ids | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """What of a batch is compared.

    Attributes:
        blocks: the rows.
        weight: float32 (N,), each chunk's weight, 0 for misfits.
        misfits: how many chunks cannot be compared.
    """

    blocks: tuple[Block, ...]
    weight: NDArray[np.float32]
    misfits: int


def plan_batch(
    predictions: Predictions,
    labels: Ids | None,
    sizes: BlockSizes,
    *,
    rows: int,
    merge: str,
    bins: tuple[Ids, Ids] | None = None,
    trees: tuple[PrefixTree, PrefixTree] | None = None,
    left: Left | None = None,
    single: bool = False,
    blank: NDArray[np.bool_] | None = None,
    by_table: NDArray[np.bool_] | None = None,
    further: Sequence[Further] = (),
) -> Batch:
    """Cuts a batch into blocks of whole chunks.

    Args:
        predictions: the chunks, as numpy arrays.
        labels: int64 (B * T_s,), what the logits at each position are to predict, -100 for nothing.
        sizes: of the parts of a block.
        rows: about how many rows a block has.
        merge: "first" reads a chunk's first predicting position on both sides, "mean" all.
        bins: each token's bin on both sides, where chunks that begin in two bins are misfits.
        trees: C-KL's, of the student's decompositions and of the teacher's.
        left: what level one of C-KL leaves out.
        single: chunks of several tokens on a side are misfits, too, and misfits are not read.
        blank: bool (N,), chunks that are left out without being misfits.
        by_table: bool (N,), False for chunks whose first position is among `further`.
        further: comparisons beside level one's.
    """
    fits = np.ones(len(predictions), dtype=np.bool_) if bins is None else begin_alike(predictions, bins)
    sides = [(predictions.student, predictions.student_offsets), (predictions.teacher, predictions.teacher_offsets)]
    if single:
        fits &= one_to_one(predictions)
    shown = np.ones_like(fits) if blank is None else ~blank
    misfits, fits = int((~fits & shown).sum()), fits & shown
    if merge == "first":
        read = fits if single else np.ones_like(fits)
        read = read if by_table is None else read & by_table
        sides = [(side_rows[offsets[:-1]][read], offsets_of(read)) for side_rows, offsets in sides]
    further = [one.take(fits[one.chunk]) for one in further]
    levels = [
        find_levels(tree, predictions, fits, of_student=of_student)
        for tree, of_student in zip(trees or (), (True, False), strict=trees is not None)
    ]
    # What is compared beside a chunk's rows counts as rows, too.
    beside = np.bincount(
        np.concatenate([np.zeros(0, dtype=np.int64), *(one.chunk for one in further)]), minlength=len(fits)
    )
    longest = np.maximum(sides[0][1], sides[1][1]) + offsets_of(beside)
    blocks = [
        _block(first, last, sides, (levels, further), list(pairwise(_bounds(longest, first, last, sizes.part))), sizes)
        for first, last in pairwise(_bounds(longest, 0, len(predictions), rows))
    ]
    if bins is not None and trees is not None:
        # A misfit has no level that would ask for its outcome.
        text = np.where(fits, bins[1][predictions.teacher_tokens[predictions.teacher_offsets[:-1]]], 0)
        blocks = [_with_text(block, text, left) for block in blocks]
    if labels is not None:
        blocks = _with_labels(blocks, labels, rows)
    return Batch(tuple(blocks), np.where(fits, predictions.weight, 0).astype(np.float32), misfits)


def _with_labels(blocks: Sequence[Block], labels: Ids, rows: int) -> list[Block]:
    """The blocks with labels: a row's counts in the first block that reads it; those that none reads get new blocks."""
    pending, labelled = labels.copy(), []
    for block in blocks:
        labelled.append(replace(block, labels=pending[block.student_rows]))
        pending[block.student_rows] = IGNORED
    alone = np.flatnonzero(pending != IGNORED)
    for start in range(0, len(alone), rows):
        own_rows = alone[start : start + rows]
        labelled.append(Block(own_rows, alone[:0], (), 0, labels=pending[own_rows]))
    return labelled


def begin_alike(predictions: Predictions, bins: tuple[Ids, Ids]) -> NDArray[np.bool_]:
    """Bool (N,), which chunks' first tokens lie in one bin.

    With bins [0, 1] of the student's tokens and [1, 0] of the teacher's, it is one whose first tokens are the student's
    0 and the teacher's 1; one that begins with token 0 on both sides is none.
    """
    first_student = bins[0][predictions.student_tokens[predictions.student_offsets[:-1]]]
    first_teacher = bins[1][predictions.teacher_tokens[predictions.teacher_offsets[:-1]]]
    return np.asarray((first_student == first_teacher) & (first_student >= 0))


def one_to_one(predictions: Predictions) -> NDArray[np.bool_]:
    """Bool (N,), which chunks have one token on each side."""
    return np.asarray((np.diff(predictions.student_offsets) == 1) & (np.diff(predictions.teacher_offsets) == 1))


def blank_tokens(side: Side) -> NDArray[np.bool_]:
    """Which tokens of kinds text and byte have no other bytes than ASCII white space, bool (V,)."""
    surfaces = side.surfaces
    seen = offsets_of(~np.isin(surfaces.blob, np.frombuffer(b" \t\n\r\v\f", dtype=np.uint8)))[surfaces.offsets]
    blank = (surfaces.lengths > 0) & (seen[1:] == seen[:-1])
    return np.asarray(np.isin(side.kinds, [Kind.TEXT, Kind.BYTE]) & blank)


def all_of_chunk(tokens: NDArray[np.bool_], predictions: Predictions) -> NDArray[np.bool_]:
    """Bool (N,), which chunks have only such student tokens."""
    others = offsets_of(~tokens[predictions.student_tokens])[predictions.student_offsets]
    return np.asarray(others[1:] == others[:-1])


def _with_text(block: Block, text: Ids, left: Left | None) -> Block:
    """The block with what C-KL's level one has to know: the text's outcomes and what is left out."""
    ranges = [part.range for part in block.parts]
    first, last = ranges[0].start, ranges[-1].stop
    own = None if left is None else left.between(first, last, moved=first)
    parts = tuple(replace(part, text=text[own_range]) for part, own_range in zip(block.parts, ranges, strict=True))
    return replace(block, parts=parts, left=own or None)


def _bounds(offsets: Ids, first: int, last: int, rows: int) -> list[int]:
    """Where to cut chunks first to last, so that as many whole ones are together as `rows` hold, one at least.

    Chunks of 1, 3, 2 rows have offsets [0, 1, 4, 6]; with rows=4 the bounds are [0, 2, 3].
    """
    bounds = [first]
    while bounds[-1] < last:
        full = int(np.searchsorted(offsets, offsets[bounds[-1]] + rows, side="right")) - 1
        bounds.append(min(max(full, bounds[-1] + 1), last))
    return bounds


def _block(
    first: int,
    last: int,
    sides: Sequence[tuple[Ids, Ids]],
    beside: tuple[Sequence[Levels], Sequence[Further]],
    bounds: Sequence[tuple[int, int]],
    sizes: BlockSizes,
) -> Block:
    """The block of chunks first to last, without labels.

    If chunks 4 and 5 have the rows 10 and 12 and a level of chunk 4 reads row 11, the block's rows are 10, 12, 11, of
    which the first two are level one's, and the level's place is 2.

    Args:
        first: the first chunk.
        last: the chunk after the last one.
        sides: the student's and the teacher's rows of level one, with where each chunk's begin.
        beside: all further levels of the batch, and its other comparisons.
        bounds: the first chunk of each part, and the one after its last.
        sizes: of which `levels` is read.
    """
    own, further = ([one.take(slice(*np.searchsorted(one.chunk, [first, last]))) for one in part] for part in beside)
    rows = [side_rows[offsets[first] : offsets[last]] for side_rows, offsets in sides]
    level_one = len(rows[0])
    read = [one.rows() for one in (*own, *further)]
    if any(map(len, chain.from_iterable(read))):
        # Level one's rows stand first, and in one piece where chunks follow each other; what else is read is appended
        # once, however often it is.
        rows = [
            np.concatenate([here, np.setdiff1d(np.concatenate(more), here)])
            for here, more in zip(rows, zip(*read, strict=True), strict=True)
        ]
        numbered = [_place_among(here) for here in rows]
        own, further = ([one.placed(*numbered) for one in part] for part in (own, further))
    parts = []
    for begin, end in bounds:
        # Rows count from the block's first one, chunks through the batch.
        places = [slice(int(at[begin] - at[first]), int(at[end] - at[first])) for _, at in sides]
        student_size, teacher_size = (np.diff(at[begin : end + 1]) for _, at in sides)
        chunks: slice | torch.Tensor = slice(begin, end)
        if not student_size.all():
            # Chunks that are not read have no rows.
            if not student_size.any():
                continue
            chunks = torch.from_numpy(begin + np.flatnonzero(student_size))
            student_size, teacher_size = (size[size > 0] for size in (student_size, teacher_size))
        part = Part(chunks, places[0], places[1])
        if (student_size != 1).any() or (teacher_size != 1).any():
            part = replace(part, student_size=student_size, teacher_size=teacher_size)
        parts.append(part)
    return Block(
        student_rows=rows[0],
        teacher_rows=rows[1],
        parts=tuple(parts),
        level_one=level_one,
        levels=tuple(_whole_chunks(own, sizes.levels)),
        further=tuple(_whole_chunks(further, sizes.levels)),
    )


def _place_among(rows: Ids) -> Callable[[Ids], Ids]:
    """From rows to their places: with the rows 10, 12, 11 it turns 11, 10 into 2, 0."""
    order = np.argsort(rows)
    return lambda read: order[np.searchsorted(rows, read, sorter=order)]


def _whole_chunks(comparisons: Sequence[Any], count: int) -> Iterator[Any]:
    """Cuts comparisons so that as many are together as `count` holds, but never a chunk's: weights are a product.

    Those of the chunks 3, 3, 5, 7 are the ranges (0, 2), (2, 4) for a count of 2, and (0, 3), (3, 4) for one of 3.
    """
    for one in comparisons:
        offsets = np.append(np.flatnonzero(np.diff(one.chunk, prepend=-1)), len(one.chunk))
        for begin, end in pairwise(offsets[_bounds(offsets, 0, len(offsets) - 1, count)].tolist()):
            yield one.take(slice(begin, end))


def blocks_of_rows(rows: int, sizes: BlockSizes) -> tuple[Block, ...]:
    """Blocks in which row number n of both sides is chunk n."""
    blocks = []
    for first in range(0, rows, sizes.rows):
        own = np.arange(first, min(first + sizes.rows, rows))
        place = slice(0, len(own))
        blocks.append(Block(own, own, (Part(slice(first, first + len(own)), place, place),), len(own)))
    return tuple(blocks)
