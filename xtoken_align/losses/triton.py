"""Outcomes compared on a GPU, by Triton's kernels: one row a chunk, every divergence of all outcomes.

It gives what `functional.outcomes_kl` and autograd give, and the cross-entropy of labels beside it. Two sweeps over
the logits do it, three for a JSD: the first finds the sums of each row, the second writes the gradient. In between
nothing is copied to the host, so that the processor never waits.
"""

from __future__ import annotations

import math
import subprocess
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import XTokenWarning
from ..spans.spans import IGNORED
from ..spans.units import offsets_of
from .divergence import Measure, compare, normalised
from .inputs import Compared
from .plan import Block, Ids
from .tables import Cells, Grouping, Outcomes, log_masses, make_grouping

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What logits may be; float64 is computed in float64, by autograd."""


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
_INTERPRETER = Tiling(rows=8, columns=64, lanes=8, big=6, warps=4)
"""In the interpreter a program takes milliseconds, however little it does; small vocabularies have several all the
same."""
_AT_ONCE = 4096
"""Rows that are compared at once: their joint columns take memory. A batch of fewer is one launch of each kernel."""


def tiling(device: torch.device) -> Tiling:
    """That of a device."""
    return _INTERPRETER if device.type == "cpu" else _GPU


@cache
def _kernels() -> ModuleType | None:
    """The kernels, or None where Triton is not installed; PyTorch for CUDA on Linux brings it."""
    try:
        from . import triton_kernels
    except ImportError:
        return None
    return triton_kernels


@dataclass(frozen=True, eq=False)
class Joint:
    """The tokens of one side's joint columns, laid out for `joint_masses`, which explains the order; all int32.

    Attributes:
        member: the tokens of the big columns, one column after another.
        begin: where each one's begin in `member`, and the end.
        big: their numbers.
        lane: the tokens of the small columns, slice by slice, -1 for none.
        slice_begin: where each slice begins in `lane`, and the end.
        order: the column of each lane, by falling size; -1 for none.
    """

    member: torch.Tensor
    begin: torch.Tensor
    big: torch.Tensor
    lane: torch.Tensor
    slice_begin: torch.Tensor
    order: torch.Tensor

    @property
    def parts(self) -> int:
        """How many programs sum them for some rows."""
        return len(self.big) + len(self.slice_begin) - 1


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
        student: the student's tokens of these.
        teacher: the teacher's.
    """

    code: torch.Tensor
    source: torch.Tensor
    joint: int
    student: Joint
    teacher: Joint


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""The codes of tables that are alive, by the tensor that holds the student's columns."""


def codes_of(outcomes: Outcomes) -> Codes:
    """The codes of a table, which are made once for as long as its tensors live."""
    key, other = outcomes.student.group, outcomes.teacher.group
    if key in _known and _known[key][0] is other:
        codes: Codes = _known[key][1]
        return codes
    codes = _make_codes(outcomes, tiling(key.device))
    _known[key] = (other, codes)
    return codes


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
    laid = [_lay_out(number[group], outside, int(joint.sum()), sizes, device) for group, outside in sides]
    code, source_ = (torch.from_numpy(one.astype(np.int32)).to(device) for one in (source[sides[0][0]], source[:-1]))
    return Codes(code, source_, int(joint.sum()), *laid)


def _lay_out(number: Ids, outside: NDArray[np.bool_], count: int, sizes: Tiling, device: torch.device) -> Joint:
    """The tokens of joint columns: `number` (V,) has each token's column, and those outside are one more."""
    number = np.where(outside, count, number)
    tokens = np.flatnonzero(number >= 0)
    tokens = tokens[np.argsort(number[tokens], kind="stable")]
    size = np.bincount(number[tokens], minlength=count + 1)
    begin = offsets_of(size)
    big = np.flatnonzero(size > sizes.big)
    big = big[np.argsort(-size[big], kind="stable")]
    small = np.flatnonzero(size <= sizes.big)
    small = small[np.argsort(-size[small], kind="stable")]
    slices = -(-len(small) // sizes.lanes)
    order = np.full(slices * sizes.lanes, -1)
    order[: len(small)] = small
    # The first column of a slice is its largest.
    slice_begin = offsets_of(size[small[:: sizes.lanes]] * sizes.lanes)
    lane = np.full(slice_begin[-1], -1)
    of = np.arange(len(small)).repeat(size[small])
    depth = np.arange(len(of)) - offsets_of(size[small])[of]
    lane[slice_begin[of // sizes.lanes] + depth * sizes.lanes + of % sizes.lanes] = tokens[begin[small][of] + depth]
    member = np.concatenate([np.zeros(0, dtype=np.int64), *(tokens[begin[one] : begin[one + 1]] for one in big)])
    arrays = member, offsets_of(size[big]), big, lane, slice_begin, order
    return Joint(*(torch.from_numpy(one.astype(np.int32)).to(device) for one in arrays))


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
        left: what lines leave out on both sides, or None for nothing.
        late: int64 (rows,), the labels of rows of which tokens of the student are left out, -100 elsewhere; their
            cross-entropy leaves nothing out, so the kernels cannot make it. None where there are none.
    """

    student: Ids
    teacher: Ids
    chunk: Ids
    label: Ids
    text: Ids
    left: tuple[Places | None, Places | None] = (None, None)
    late: Ids | None = None

    def between(self, first: int, last: int) -> Lines:
        """Some of them."""
        left = []
        for places in self.left:
            own = np.zeros(0, dtype=np.int64) if places is None else places[0]
            own = np.flatnonzero((own >= first) & (own < last))
            left.append(None if places is None or not len(own) else (places[0][own] - first, places[1][own]))
        student, teacher, chunk, label, text = (
            getattr(self, name)[first:last] for name in ("student", "teacher", "chunk", "label", "text")
        )
        return Lines(student, teacher, chunk, label, text, (left[0], left[1]))


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
    label, late = np.full(count, IGNORED), None
    if labels:
        # A row can have its label in one block and its chunk in another; what then is left has a label alone.
        wanted = [(block, np.flatnonzero(block.labels != IGNORED)) for block in blocks if block.labels is not None]
        row = _concatenated([block.student_rows[own] if in_batch else own for block, own in wanted])
        of_row = np.full(1 + max(row.max(initial=-1), student.max(initial=-1)), IGNORED)
        of_row[row] = _concatenated([block.labels[own] for block, own in wanted if block.labels is not None])
        if ours is not None:
            late = np.full_like(of_row, IGNORED)
            late[student[ours[0]]] = of_row[student[ours[0]]]
            of_row[student[ours[0]]] = IGNORED
        label = of_row[student]
        of_row[student] = IGNORED
        alone = np.flatnonzero(of_row != IGNORED)
        student, label = np.concatenate([student, alone]), np.concatenate([label, of_row[alone]])
        teacher = np.concatenate([teacher, np.zeros_like(alone)])
        chunk, text = (np.concatenate([one, np.full_like(alone, -1)]) for one in (chunk, text))
    return Lines(student, teacher, chunk, label, text, (ours, theirs), late)


def _concatenated(arrays: Sequence[Ids]) -> Ids:
    return np.concatenate([np.zeros(0, dtype=np.int64), *arrays])


@dataclass(frozen=True, eq=False)
class Wanted:
    """What the gradient is made of and where it goes.

    Attributes:
        weight: floats (N,), what each chunk's value is multiplied by in the loss.
        label_weight: scalar, what each label's cross-entropy is multiplied by; None without labels.
        out: floats (rows, V_s), like the student's logits, whose last stride is 1; None without a gradient.
    """

    weight: torch.Tensor
    label_weight: torch.Tensor | None = None
    out: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Side:
    """One side's logits, where each row begins in them, and the table's joint columns.

    Attributes:
        logits: whose last stride is 1.
        start: int64 (n,), on the host, in elements.
        copies: rows that leave something out, to which `start` points.
    """

    logits: torch.Tensor
    start: Ids
    copies: torch.Tensor | None = None

    @property
    def aligned(self) -> bool:
        """Whether rows begin where 16 elements can be read at once."""
        return bool((self.start % 16 == 0).all()) and self.logits.data_ptr() % 32 == 0


def _side(logits: torch.Tensor, rows: Ids, grouping: Grouping, left: Places | None) -> Side:
    start = rows * logits.stride(0)
    if left is None:
        return Side(logits, start)
    # Few rows leave something out. They are copied, with -inf at tokens that belong to an outcome, and their lines
    # point to the copies: a line's beginning counts from the logits, wherever in memory it lies.
    places, number = np.unique(left[0], return_inverse=True)
    step = -(-logits.shape[1] // 16) * 16
    copies = logits.new_empty(len(places), step)
    own, row, token = (
        torch.from_numpy(one).to(logits.device, non_blocking=True) for one in (rows[places], number, left[1])
    )
    copies[:, : logits.shape[1]] = logits.index_select(0, own)
    belongs = grouping.group[token] < grouping.count
    copies[row, token] = torch.where(belongs, -math.inf, copies[row, token])
    start[places] = (copies.data_ptr() - logits.data_ptr()) // logits.element_size() + np.arange(len(places)) * step
    return Side(logits, start, copies)


def compare_rows(
    student: torch.Tensor,
    teacher: torch.Tensor,
    outcomes: Outcomes,
    lines: Lines,
    wanted: Wanted,
    numbers: torch.Tensor,
    *,
    measure: Measure,
    both: bool = False,
) -> torch.Tensor | None:
    """Compares rows, and adds up the cross-entropy of labels.

    Args:
        student: floats (rows, V_s), logits in one of `DTYPES` whose last stride is 1; not changed.
        teacher: floats (rows, V_t).
        outcomes: the table, without links.
        lines: the rows.
        wanted: the weights, and where the gradient goes: the rows of `lines.student` are written whole.
        numbers: float32 (6, N), what is said of chunks, in the order of `inputs.Compared`; written at `lines.chunk`.
        measure: how outcomes are compared; `top_k` or `student_top_k`, not both.
        both: outcomes that the teacher cannot have are compared on neither side.

    Returns:
        Scalar, the sum of the labels' cross-entropies, or None where `wanted` has no weight of labels.
    """
    entropies = []
    for first in range(0, len(lines.chunk), _AT_ONCE):
        some = lines.between(first, first + _AT_ONCE) if len(lines.chunk) > _AT_ONCE else lines
        with _current(student.device):
            entropies.append(_Launch(student, teacher, outcomes, some, measure, both=both).run(wanted, numbers))
    if wanted.label_weight is None:
        return None
    return torch.cat([numbers.new_zeros(0), *entropies]).sum()


class _Launch:
    """The launches for some rows, which share most of their arguments."""

    def __init__(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        outcomes: Outcomes,
        lines: Lines,
        measure: Measure,
        *,
        both: bool,
    ) -> None:
        kernels = _kernels()
        assert kernels is not None
        self.kernels, self.codes, self.outcomes, self.measure = kernels, codes_of(outcomes), outcomes, measure
        self.sizes, self.both = tiling(student.device), both
        self.ours = _side(student, lines.student, outcomes.student, lines.left[0])
        self.theirs = _side(teacher, lines.teacher, outcomes.teacher, lines.left[1])
        self.lines, self.rows = lines, len(lines.chunk)
        self.tiles = -(-self.rows // self.sizes.rows)

    def run(self, wanted: Wanted, numbers: torch.Tensor) -> torch.Tensor:
        """All of them; returns the rows' cross-entropies."""
        width, out = self.ours.logits.shape[1], wanted.out
        out_start = self.lines.student * (0 if out is None else out.stride(0))
        table = [self.ours.start, self.theirs.start, out_start, self.lines.chunk, self.lines.label, self.lines.text]
        self.lists = torch.from_numpy(np.stack(table, axis=1)).to(numbers.device, non_blocking=True)
        self.joints = [
            self._joint_masses(side, joint, field)
            for field, (side, joint) in enumerate(((self.ours, self.codes.student), (self.theirs, self.codes.teacher)))
        ]
        token_blocks = -(-width // self.sizes.columns)
        blocks = token_blocks + -(-self.codes.joint // self.sizes.columns)
        self.shared = (self.ours.logits, self.theirs.logits, *self.joints)
        self.shape = (self.rows, width, self.theirs.logits.shape[1], self.codes.joint)
        self.form = {
            "BOTH": self.both,
            "OUR_ALIGNED": self.ours.aligned,
            "THEIR_ALIGNED": self.theirs.aligned,
            "ROWS": self.sizes.rows,
            "BLOCK": self.sizes.columns,
            "num_warps": self.sizes.warps,
        }
        self.thresholds = self._thresholds(width)
        kept, entropy = self._sweep(wanted, numbers, token_blocks, blocks)
        if out is not None:
            aligned = bool((out_start % 16 == 0).all()) and out.data_ptr() % 32 == 0
            label_weight = numbers if wanted.label_weight is None else wanted.label_weight
            self.kernels.gradients[(self.tiles * token_blocks,)](
                *(*self.shared, self.codes.code, self.lists, self.thresholds, kept, label_weight, out),
                *(*self.shape, token_blocks, 1 / self.measure.temperature, self.measure.beta),
                DIVERGENCE=self._divergence,
                CHOSEN=self._chosen,
                LABELS=wanted.label_weight is not None,
                OUT_ALIGNED=aligned,
                **self.form,
            )
        return entropy

    @property
    def _divergence(self) -> int:
        return ("forward", "reverse", "jsd").index(self.measure.effective)

    @property
    def _chosen(self) -> int:
        """0 where all outcomes are compared, 1 for the teacher's best, 2 for the student's."""
        most = (self.measure.top_k, self.measure.student_top_k)
        few = [one is not None and one < self.outcomes.student.count for one in most]
        return few.index(True) + 1 if any(few) else 0

    def _thresholds(self, width: int) -> torch.Tensor:
        """int64 (n,), the key of the last outcome that is chosen; nothing where all are."""
        # A program handles one row here, and so many columns more.
        columns = self.sizes.rows * self.sizes.columns
        token_blocks, joint_blocks = -(-width // columns), -(-self.codes.joint // columns)
        made = torch.empty(self.rows if self._chosen else 0, dtype=torch.int64, device=self.lists.device)
        if self._chosen:
            most = (self.measure.top_k, self.measure.student_top_k)[self._chosen - 1]
            form = {name: value for name, value in self.form.items() if name != "ROWS"} | {"BLOCK": columns}
            self.kernels.thresholds[(self.rows,)](
                *(*self.shared, self.codes.code, self.lists, made),
                *(*self.shape[1:], token_blocks, token_blocks + joint_blocks, most),
                CHOSEN=self._chosen,
                **form,
            )
        return made

    def _joint_masses(self, side: Side, joint: Joint, field: int) -> torch.Tensor:
        """Floats (n, J + 1), the log masses of one side's joint columns and of what is outside of every column."""
        masses = torch.empty(self.rows, self.codes.joint + 1, device=side.logits.device)
        self.kernels.joint_masses[(self.tiles * joint.parts,)](
            *(side.logits, self.lists, *vars(joint).values(), masses),
            *(self.rows, self.codes.joint + 1, len(joint.big), joint.parts),
            FIELD=field,
            ROWS=self.sizes.rows,
            LANES=self.sizes.lanes,
        )
        return masses

    def _sweep(
        self, wanted: Wanted, numbers: torch.Tensor, token_blocks: int, blocks: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The first sweep, and for a JSD the second: the numbers that rows keep, and their cross-entropies."""
        kernels, measure, labels = self.kernels, self.measure, wanted.label_weight is not None
        found = numbers.new_empty(kernels.SUMS, self.rows, blocks)
        kept = numbers.new_empty(kernels.KEPT, self.rows)
        entropy = numbers.new_empty(self.rows if labels else 0)
        inverse, form = 1 / measure.temperature, {"TEMPERED": measure.temperature != 1, "LABELS": labels}
        of_rows = {"ROWS": self.sizes.rows, "BLOCK": 1 << blocks.bit_length()}
        arguments = (*self.shared, self.codes.code, self.lists, self.thresholds)
        numbers_of_blocks = (*self.shape, token_blocks, blocks, inverse)
        kernels.sums[(self.tiles * blocks,)](
            *arguments,
            found,
            *numbers_of_blocks,
            DIVERGENCE=self._divergence,
            CHOSEN=self._chosen,
            **form,
            **self.form,
        )
        kernels.close_rows[(self.tiles,)](
            *(found, *self.shared, self.codes.source, self.lists, wanted.weight, kept, numbers, entropy),
            *(self.rows, numbers.shape[1], self.theirs.logits.shape[1], self.codes.joint, blocks, measure.temperature),
            DIVERGENCE=self._divergence,
            CHOSEN=self._chosen,
            **form,
            BY_KEPT=self.outcomes.weigh_by_kept,
            TEXT=bool((self.lines.text >= 0).any()),
            **of_rows,
        )
        if measure.effective == "jsd":
            found = numbers.new_empty(2, self.rows, blocks)
            kernels.mixtures[(self.tiles * blocks,)](
                *arguments, kept, found, *numbers_of_blocks, measure.beta, CHOSEN=self._chosen, **self.form
            )
            kernels.close_mixtures[(self.tiles,)](
                *(found, self.lists, kept, numbers, self.rows, blocks, inverse, measure.beta),
                CHOSEN=self._chosen,
                **of_rows,
            )
        return kept, entropy


def compare_outcomes(
    student: torch.Tensor,
    teacher: torch.Tensor,
    outcomes: Outcomes,
    *,
    measure: Measure,
    coefficient: torch.Tensor | None,
    out: torch.Tensor | None,
    left: tuple[Cells | None, Cells | None] = (None, None),
    text: torch.Tensor | None = None,
    both: bool = False,
) -> Compared:
    """The outcomes of some rows compared, each a chunk.

    Args:
        student: floats (n, V_s), logits; not changed.
        teacher: floats (n, V_t).
        outcomes: the table, without links.
        measure: how outcomes are compared; `top_k` or `student_top_k`, not both.
        coefficient: floats (n,), what each row's value is multiplied by in the loss; None without a gradient.
        out: floats (n, V_s), where the gradient goes.
        left: the tokens that the rows leave out, the student's and the teacher's.
        text: int64 (n,), the outcome that the text has, or None.
        both: see `compare_rows`.
    """
    count = len(student)
    own = np.arange(count)
    places = [None if one is None else (one[0].cpu().numpy(), one[1].cpu().numpy()) for one in left]
    outcome = np.full(count, -1) if text is None else text.cpu().numpy()
    lines = Lines(own, own, own, np.full(count, IGNORED), outcome, (places[0], places[1]))
    numbers = torch.zeros(6, count, device=student.device)
    weight = numbers.new_ones(count) if coefficient is None else coefficient.float()
    wanted = Wanted(weight, out=None if coefficient is None else out)
    compare_rows(student, teacher, outcomes, lines, wanted, numbers, measure=measure, both=both)
    value, agrees, dropped, empty, compared, plausible = numbers
    return Compared(value, agrees > 0, dropped, empty, compared > 0, plausible if text is not None else None)


def multiply(values: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiplies a tensor in its place by a scalar, which is neither waited for nor, where it is 1, applied."""
    kernels = _kernels()
    if kernels is None or not values.is_contiguous() or not values.numel() or not kernels_work(values.device):
        values.mul_(factor.to(values.dtype))
        return
    with _current(values.device):
        kernels.multiplied[(-(-values.numel() // 4096),)](values, factor, values.numel(), BLOCK=4096)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Triton starts its kernels on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def kernels_work(
    device: torch.device, student: torch.dtype = torch.float32, teacher: torch.dtype = torch.float32
) -> bool:
    """Whether the kernels can be compiled for a device and logits of these dtypes, and give what plain operations do.

    Compiling takes a C compiler and a device that Triton knows. A few rows are tried at the first use, so that neither
    a missing compiler nor a wrong number can spoil a training; what fails is a warning, and a plain path is taken.
    """
    if _kernels() is None or student not in DTYPES or teacher not in DTYPES:
        return False
    try:
        error = max(_error(device, student, teacher, measure) for measure in _TRIED)
    except (RuntimeError, OSError, subprocess.SubprocessError) as problem:
        reason = f"Triton cannot run its kernels on {device}: {problem}"
    else:
        if error < _CLOSE:
            return True
        reason = (
            f"Triton's kernels miss the plain form's numbers on {device} for {student} and {teacher} by {error:.1e}"
        )
    warnings.warn(f"{reason}; so the losses take a plain path, which is slower", XTokenWarning, stacklevel=2)
    return False


_TRIED = (Measure(), Measure("reverse", temperature=1.5), Measure("jsd", 0.3), Measure(top_k=1))
_CLOSE = 1e-4
"""What the kernels' numbers may miss those of float64 by."""


def _error(device: torch.device, student: torch.dtype, teacher: torch.dtype, measure: Measure) -> float:
    """By how much the kernels miss a plain form, for three rows of seven and five tokens; infinity for NaN."""
    sides = torch.tensor([0, 1, 1, 2, -1, 2, 2]), torch.tensor([1, 0, 2, 2, -1])
    ours, theirs = (make_grouping(side.to(device), 3) for side in sides)
    logits = [
        (torch.arange(3 * len(side)).view(3, -1) * step % 5.5 - 2).to(device, dtype)
        for side, step, dtype in zip(sides, (1.7, 2.3), (student, teacher), strict=True)
    ]
    # Gradients of float16 are kept in float32, since a weight makes them small.
    out = torch.empty_like(logits[0], dtype=torch.float32 if student == torch.float16 else student)
    own, labels = np.arange(3), np.array([4, IGNORED, 0])
    numbers, one = torch.zeros(6, 3, device=device), torch.ones((), device=device)
    entropy = compare_rows(
        logits[0],
        logits[1],
        Outcomes(ours, theirs, None, weigh_by_kept=False),
        Lines(own, own, own, labels, own),
        Wanted(torch.ones(3, device=device), one, out),
        numbers,
        measure=measure,
    )
    assert entropy is not None
    leaf = logits[0].double().requires_grad_()
    with torch.enable_grad():
        log_student, log_teacher = (
            normalised(log_masses(one, grouping), looks=False)
            for one, grouping in ((leaf, ours), (logits[1].double(), theirs))
        )
        value = compare(log_teacher, log_student, measure=measure, looks=False).value
        expected = torch.nn.functional.cross_entropy(leaf, torch.from_numpy(labels).to(device), reduction="sum")
        (gradient,) = torch.autograd.grad(value.sum() + expected, leaf)
    plausible = (log_teacher.diagonal() - log_teacher.amax(dim=1)).exp()
    pairs = (numbers[0], value), (numbers[5], plausible), (entropy, expected), (out, gradient)
    errors = [float((found.double() - right.detach()).abs().amax()) for found, right in pairs]
    # A gradient is rounded to its dtype.
    errors[3] -= float(torch.finfo(out.dtype).eps)
    return math.inf if math.isnan(sum(errors)) else max(errors)
