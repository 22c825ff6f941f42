"""What Triton's kernels read beside the logits: outcomes as codes, and the rows of a batch as lines.

All of it is made on the host. Codes are those of a table and made once; lines are those of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.weak import WeakIdKeyDictionary

from ..spans.spans import IGNORED
from ..spans.units import offsets_of
from .chain import spell_out
from .plan import Block, Ids
from .tables import Outcomes


@dataclass(frozen=True)
class Tiling:
    """How much of the work a program does.

    Attributes:
        rows: how many rows it handles at once.
        columns: how many tokens or outcomes of each.
        lanes: how many joint columns, or tokens of a big one.
        big: joint columns of more tokens have a program of their own.
        warps: how many groups of 32 threads do a sweep's work.
    """

    rows: int
    columns: int
    lanes: int
    big: int
    warps: int


_GPU = Tiling(rows=2, columns=2048, lanes=256, big=128, warps=8)
"""What says which token is in which outcome is read once for two rows. A thread has 16 logits of each side, which takes
about 100 registers."""
_INTERPRETER = Tiling(rows=8, columns=64, lanes=16, big=12, warps=4)
"""In the interpreter a program takes milliseconds, however little it does; small vocabularies have several all the
same."""
AT_ONCE = 4096
"""Rows that are compared at once: their joint columns take memory. A batch of fewer is one launch of each kernel."""
AT_ONCE_OF_STATES = 128
"""The same where logits are made of hidden states to save memory."""


def tiling(device: torch.device) -> Tiling:
    """That of a device."""
    return _INTERPRETER if device.type == "cpu" else _GPU


@dataclass(frozen=True, eq=False)
class Codes:
    """Outcomes as the kernels read them.

    Six student tokens in the columns 0 1 1 2 - 3 and five teacher tokens in 1 0 2 2 3: the columns 0 and 3 have one
    token on each side, 1 and 2 are joint, with the numbers 0 and 1. So code = [1, 5, 5, 6, -1, 4], source = [1, 5, 6,
    4], and what is outside of every column has the number 2.

    Attributes:
        code: int32 (V_s,), of each student token the teacher's token of its column where both are alone there, V_t +
            the number of the joint column elsewhere, -1 for tokens in no column.
        source: int32 (K,), where the teacher's mass of a column is found: likewise.
        joint: how many joint columns there are; one more holds what is outside of every column.
        tokens: int32, both sides' tokens of these, laid out for `joint_masses`, which explains the order.
        order: int32, the column of each lane of its slices, -1 for none.
        work: int32 (parts, 4), see there; what takes longest comes first.
        belongs: on the host, bool (V_s,) and (V_t,), the tokens that are in a column.
    """

    code: torch.Tensor
    source: torch.Tensor
    joint: int
    tokens: torch.Tensor
    order: torch.Tensor
    work: torch.Tensor
    belongs: tuple[NDArray[np.bool_], NDArray[np.bool_]]


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""What was made of tensors that are alive: codes by the tensor that holds the student's columns, masks by their ids."""


def codes_of(outcomes: Outcomes) -> Codes:
    """The codes of a table, which are made once for as long as its tensors live."""
    key, other = outcomes.student.group, outcomes.teacher.group
    if key in _known and _known[key][0] is other:
        codes: Codes = _known[key][1]
        return codes
    codes = _make_codes(outcomes, tiling(key.device))
    _known[key] = (other, codes)
    return codes


def live_of(silent: torch.Tensor, width: int) -> torch.Tensor:
    """int8 (width,), 0 at these tokens, made once for as long as the tensor lives."""
    if silent not in _known:
        _known[silent] = torch.ones(width, dtype=torch.int8, device=silent.device).index_fill_(0, silent, 0)
    live: torch.Tensor = _known[silent]
    return live


def _make_codes(outcomes: Outcomes, sizes: Tiling) -> Codes:
    sides = [
        (side.group.cpu().numpy(), side.outside.mask.cpu().numpy()) for side in (outcomes.student, outcomes.teacher)
    ]
    count, device = outcomes.student.count, outcomes.student.group.device
    members = [np.bincount(group, minlength=count + 1)[:count] for group, _ in sides]
    alone = (members[0] == 1) & (members[1] == 1)
    joint = (members[0] + members[1] > 0) & ~alone
    # Tokens in no column have the column `count`, which is neither.
    number = np.append(np.where(joint, joint.cumsum() - 1, -1), -1)
    width = len(sides[1][0])
    partner = np.full(count + 1, -1)
    partner[sides[1][0]] = np.arange(width)
    source = np.where(number >= 0, width + number, -1)
    source[:-1][alone] = partner[:-1][alone]
    laid = _LaidOut(sizes)
    for side, (group, outside) in enumerate(sides):
        laid.add(side, np.where(outside, int(joint.sum()), number[group]), int(joint.sum()) + 1)
    arrays = source[sides[0][0]], source[:-1], *laid.arrays()
    code, of_column, tokens, order, work = (torch.from_numpy(one.astype(np.int32)).to(device) for one in arrays)
    belongs = sides[0][0] < count, sides[1][0] < count
    return Codes(code, of_column, int(joint.sum()), tokens, order, work, belongs)


@dataclass(eq=False)
class _LaidOut:
    """Tokens of joint columns as parts, each the work of one program; filled side by side."""

    sizes: Tiling
    tokens: list[Ids] = field(default_factory=list)
    order: list[Ids] = field(default_factory=list)
    work: list[Ids] = field(default_factory=list)

    def add(self, side: int, number: Ids, count: int) -> None:
        """One side's: `number` (V,) has each token's column, 0 to count - 1, -1 for none."""
        members = np.flatnonzero(number >= 0)
        members = members[np.argsort(number[members], kind="stable")]
        size = np.bincount(number[members], minlength=count)
        begin = offsets_of(size)
        big = np.flatnonzero(size > self.sizes.big)
        for column in big:
            self._append(side, members[begin[column] : begin[column + 1]], int(column))
        # The first column of a slice is its largest.
        lanes = self.sizes.lanes
        small = np.flatnonzero(size <= self.sizes.big)
        small = small[np.argsort(-size[small], kind="stable")]
        for at in range(0, len(small), lanes):
            own = small[at : at + lanes]
            column = np.arange(len(own)).repeat(size[own])
            depth = np.arange(len(column)) - offsets_of(size[own])[column]
            lane = np.full(size[own[0]] * lanes, -1)
            lane[depth * lanes + column] = members[begin[own][column] + depth]
            self._append(side, lane, -1 - lanes * len(self.order))
            self.order.append(np.append(own, np.full(lanes - len(own), -1)))

    def _append(self, side: int, tokens: Ids, own: int) -> None:
        first = sum(map(len, self.tokens))
        self.tokens.append(tokens)
        self.work.append(np.array([side, first, first + len(tokens), own]))

    def arrays(self) -> tuple[Ids, Ids, Ids]:
        """Tokens, order and work of all parts, those with most tokens first."""
        work = np.stack(self.work)
        return _concatenated(self.tokens), _concatenated(self.order), work[np.argsort(work[:, 1] - work[:, 2])]


Places = tuple[Ids, Ids]
"""Some tokens of some lines: int64 (m,) places of the lines and int64 (m,) tokens."""


@dataclass(frozen=True, eq=False)
class Lines:
    """Rows to compare, int64 (n,) each on the host.

    Attributes:
        student: the student's row, where its gradient goes, too; no row twice.
        teacher: the teacher's; any for rows without a chunk.
        chunk: the chunk, -1 for rows that have a label alone.
        label: the token that the row is to predict, -100 for none.
        text: the outcome that the text has, -1 where nobody asks.
        left: what lines leave out on both sides, or None for nothing; a label's cross-entropy leaves nothing out.
        idle: int64 (m,), further rows of the student, whose gradient is 0.
    """

    student: Ids
    teacher: Ids
    chunk: Ids
    label: Ids
    text: Ids
    left: tuple[Places | None, Places | None] = (None, None)
    idle: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def is_plain(self) -> bool:
        """Whether line n is row n on both sides and chunk n, without a label or anything else."""
        own, nothing = np.arange(len(self.chunk)), not len(self.idle) and self.left == (None, None)
        same = all(np.array_equal(one, own) for one in (self.student, self.teacher, self.chunk))
        return nothing and same and bool((self.label < 0).all()) and bool((self.text < 0).all())

    def between(self, first: int, last: int) -> Lines:
        """Some of them; the last ones have the idle rows."""
        left = []
        for places in self.left:
            own = np.zeros(0, dtype=np.int64) if places is None else places[0]
            own = np.flatnonzero((own >= first) & (own < last))
            left.append(None if places is None or not len(own) else (places[0][own] - first, places[1][own]))
        student, teacher, chunk, label, text = (
            getattr(self, name)[first:last] for name in ("student", "teacher", "chunk", "label", "text")
        )
        idle = self.idle if last >= len(self.chunk) else self.idle[:0]
        return Lines(student, teacher, chunk, label, text, (left[0], left[1]), idle)

    def with_idle(self, rows: int) -> Lines:
        """The same with all other rows of `rows` as idle ones."""
        return replace(self, idle=np.setdiff1d(np.arange(rows), self.student, assume_unique=True))


def lines_of(blocks: Sequence[Block], *, in_batch: bool, labels: bool) -> Lines:
    """The rows of level one and those that have a label.

    Args:
        blocks: in which every chunk has one row on each side.
        in_batch: whether rows are those of the batch; else they are those of the only block.
        labels: whether labels are asked for.
    """
    parts: list[tuple[Ids, Ids, Ids, Ids]] = []
    left: list[list[Ids]] = [[], [], [], []]
    count = 0
    for block in blocks:
        rows = (block.student_rows, block.teacher_rows)
        if block.left is not None:
            for side, entries in ((0, block.left.student), (1, block.left.teacher), (1, block.left.unmatched)):
                left[2 * side].append(entries.chunk + count)
                left[2 * side + 1].append(entries.token)
        for part in block.parts:
            places = [np.arange(side.start, side.stop) for side in (part.student, part.teacher)]
            sides = [own[place] for own, place in zip(rows, places, strict=True)] if in_batch else places
            own = part.chunks
            numbers = np.arange(own.start, own.stop) if isinstance(own, slice) else own.numpy()
            outcome = np.full(len(numbers), -1) if part.text is None else part.text
            parts.append((sides[0], sides[1], numbers, outcome))
            count += len(numbers)
    student, teacher, chunk, text = (_concatenated([part[field] for part in parts]) for field in range(4))
    sides_left = [(_concatenated(left[side]), _concatenated(left[side + 1])) for side in (0, 2)]
    ours, theirs = (places if len(places[0]) else None for places in sides_left)
    label = np.full(count, IGNORED)
    if labels:
        # A row can have its label in one block and its chunk in another; what then is left has a label alone.
        wanted = [(block, np.flatnonzero(block.labels != IGNORED)) for block in blocks if block.labels is not None]
        row = _concatenated([block.student_rows[own] if in_batch else own for block, own in wanted])
        of_row = np.full(1 + max(row.max(initial=-1), student.max(initial=-1)), IGNORED)
        of_row[row] = _concatenated([block.labels[own] for block, own in wanted if block.labels is not None])
        label = of_row[student]
        of_row[student] = IGNORED
        alone = np.flatnonzero(of_row != IGNORED)
        student, label = np.concatenate([student, alone]), np.concatenate([label, of_row[alone]])
        teacher = np.concatenate([teacher, np.zeros_like(alone)])
        chunk, text = (np.concatenate([one, np.full_like(alone, -1)]) for one in (chunk, text))
    return Lines(student, teacher, chunk, label, text, (ours, theirs))


@dataclass(frozen=True, eq=False)
class LevelLines:
    """C-KL's levels of a batch as the kernels in `kernels.levels` read them, on the host; all int64.

    Levels are in the order of their chunks, those to which the student is restricted first.

    Attributes:
        speaker: (m,), 0 where the teacher has spoken the prefix, 1 where the student has.
        student: (m,), the student's row.
        teacher: (m,), the teacher's.
        chunk: (m,).
        first: (m,), the first outcome of each, which is its end.
        last: (m,), the one after its last.
        text: (m,), the outcome that the text has.
        begins: (m,), 1 where a chunk's or a side's levels begin.
        pieces: (outcomes,), what was spoken, -1 for the end.
        token_begin: (outcomes + 1,), where the restricted side's tokens of each outcome begin.
        tokens: these tokens.
        outcome_of: the outcome of each.
    """

    speaker: Ids
    student: Ids
    teacher: Ids
    chunk: Ids
    first: Ids
    last: Ids
    text: Ids
    begins: Ids
    pieces: Ids
    token_begin: Ids
    tokens: Ids
    outcome_of: Ids

    @property
    def programs(self) -> Ids:
        """Where each chunk's levels begin, and the end."""
        return np.append(np.flatnonzero(np.diff(self.chunk, prepend=-1)), len(self.chunk))


def level_lines_of(blocks: Sequence[Block], *, in_batch: bool) -> LevelLines | None:
    """The levels of all blocks, None where there are none; their rows are as for `lines_of`."""
    fields: list[list[Ids]] = [[] for _ in range(7)]
    outcomes: list[list[Ids]] = [[] for _ in range(4)]
    count, token_count = 0, 0
    for block in blocks:
        for levels in block.levels:
            level, piece, token, outcome = spell_out(levels.tree, levels.node)
            own = np.searchsorted(level, np.arange(len(levels.node) + 1)) + count
            speaker = np.full(len(levels.node), int(not levels.of_student))
            rows = levels.student, levels.teacher
            if in_batch:
                rows = block.student_rows[levels.student], block.teacher_rows[levels.teacher]
            found = (speaker, *rows, levels.chunk, own[:-1], own[1:], own[:-1] + levels.following)
            begins = np.searchsorted(outcome, np.arange(len(level))) + token_count
            for kept, one in zip((*fields, *outcomes), (*found, piece, begins, token, outcome + count), strict=True):
                kept.append(one)
            count, token_count = count + len(level), token_count + len(token)
    if not count:
        return None
    of_levels = [_concatenated(one) for one in fields]
    order = np.lexsort((of_levels[0], of_levels[3]))
    speaker, student, teacher, chunk, first, last, text = (one[order] for one in of_levels)
    begins = np.append(True, (np.diff(chunk) != 0) | (np.diff(speaker) != 0)).astype(np.int64)
    pieces, token_begin, tokens, outcome_of = (_concatenated(one) for one in outcomes)
    token_begin = np.append(token_begin, token_count)
    return LevelLines(
        speaker, student, teacher, chunk, first, last, text, begins, pieces, token_begin, tokens, outcome_of
    )


def _concatenated(arrays: Sequence[Ids]) -> Ids:
    return np.concatenate([np.zeros(0, dtype=np.int64), *arrays])
