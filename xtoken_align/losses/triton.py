"""Outcomes compared on a GPU, by Triton's kernels: one row a chunk, every divergence of all outcomes.

It gives what `functional.outcomes_kl` and autograd give, and the cross-entropy of labels beside it. Two sweeps over
the logits do it, three for a JSD: the first finds the sums of each row, the second writes the gradient. In between
nothing is copied to the host, so that the processor never waits.
"""

from __future__ import annotations

import math
import subprocess
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import XTokenWarning
from ..spans.spans import IGNORED
from .divergence import Measure, compare, normalised
from .inputs import Compared, sent
from .lines import AT_ONCE, LevelLines, Lines, Places, codes_of, tiling
from .plan import Ids
from .tables import Cells, Outcomes, log_masses, make_grouping

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What logits may be; float64 is computed in float64, by autograd."""


@cache
def loaded() -> ModuleType | None:
    """The kernels, or None where Triton is not installed or too old; PyTorch for CUDA on Linux brings it."""
    try:
        version = import_module("triton").__version__
    except ImportError:
        return None
    # Functions of older versions cannot take tuples.
    if tuple(map(int, version.split(".")[:2])) < (3, 3):
        return None
    return import_module(".kernels", __package__)


@dataclass(frozen=True, eq=False)
class Wanted:
    """What the gradient is made of and where it goes.

    Attributes:
        weight: floats (N,), each chunk's weight.
        factors: floats (2,) or more: what the chunks' weighted values are multiplied by in the loss, and what the
            labels' cross-entropies are.
        labels: whether labels count.
        out: floats (rows, V_s), like the student's logits, whose last stride is 1; None without a gradient.
    """

    weight: torch.Tensor
    factors: torch.Tensor
    labels: bool = False
    out: torch.Tensor | None = None


class _Side:
    """One side's logits, and on the host where its lines begin in them.

    Few rows leave something out. They are copied, with -inf at tokens that belong to an outcome, and their lines point
    to the copies: a line's beginning counts from the logits, wherever in memory it lies.

    Attributes:
        logits: whose last stride is 1.
        plain: int64 (n,), where each line's row begins, in elements.
        start: int64 (n,), the same, or where its copy begins.
        copies: floats (k, step), rows that leave something out; the logits themselves where none does.
        pairs: int64 (k, 2), where these rows begin and where their copies do among each other.
        cells: int64, the places of what is left out in `copies`.
    """

    def __init__(self, logits: torch.Tensor, rows: Ids, left: Places | None, belongs: NDArray[np.bool_]) -> None:
        self.logits = self.copies = logits
        self.plain = self.start = rows * logits.stride(0)
        self.pairs, self.cells = np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.int64)
        if left is None:
            return
        places, number = np.unique(left[0], return_inverse=True)
        step = -(-logits.shape[1] // 16) * 16
        self.copies = logits.new_empty(len(places), step)
        begins = np.arange(len(places)) * step
        self.pairs = np.stack([self.plain[places], begins], axis=1)
        inside = belongs[left[1]]
        self.cells = number[inside] * step + left[1][inside]
        self.start = self.plain.copy()
        self.start[places] = (self.copies.data_ptr() - logits.data_ptr()) // logits.element_size() + begins

    @property
    def aligned(self) -> bool:
        """Whether rows begin where 16 elements can be read at once."""
        return bool((self.start % 16 == 0).all()) and self.logits.data_ptr() % 32 == 0


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
    at_once: int = AT_ONCE,
) -> torch.Tensor:
    """Compares rows, and makes the cross-entropy of labels.

    Args:
        student: floats (rows, V_s), logits in one of `DTYPES` whose last stride is 1; not changed.
        teacher: floats (rows, V_t).
        outcomes: the table, without links.
        lines: the rows.
        wanted: the weights, and where the gradient goes: the rows of `lines` are written whole.
        numbers: float32 (6, N), what is said of chunks, in the order of `inputs.Compared`; written at `lines.chunk`.
        measure: how outcomes are compared; `top_k` or `student_top_k`, not both.
        both: outcomes that the teacher cannot have are compared on neither side.
        at_once: how many rows memory is taken for.

    Returns:
        Floats (n,), the cross-entropy of each line, 0 for those without a label; (0,) where labels do not count.
    """
    entropy = numbers.new_empty(len(lines.chunk) if wanted.labels else 0)
    with current(student.device):
        for first in range(0, max(len(lines.chunk), 1), at_once):
            some = lines.between(first, first + at_once) if len(lines.chunk) > at_once else lines
            launch = _Launch(student, teacher, outcomes, some, measure, both=both)
            launch.run(wanted, numbers, entropy[first : first + at_once])
    return entropy


@lru_cache(maxsize=16)
def _plain_table(rows: int, strides: tuple[int, int, int], device: torch.device) -> torch.Tensor:
    """The lines of rows of which each is a chunk. They are kept, so that a function of rows copies nothing to a device
    and can be captured in a CUDA graph.
    """
    own = np.arange(rows)
    starts = [own * stride for stride in strides]
    table = np.stack([*starts, own, np.full(rows, IGNORED), np.full(rows, -1), starts[0]], axis=1)
    with torch.inference_mode(mode=False):
        return sent([table], device)[0]


class _Launch:
    """The launches for some lines, which share most of their arguments."""

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
        kernels = loaded()
        assert kernels is not None
        self.kernels, self.codes, self.outcomes, self.measure = kernels, codes_of(outcomes), outcomes, measure
        self.sizes, self.both = tiling(student.device), both
        # Kernels read some row of the teacher where they compare none.
        teacher = teacher if len(teacher) else teacher.new_zeros(1, teacher.shape[1])
        self.ours = _Side(student, lines.student, lines.left[0], self.codes.belongs[0])
        self.theirs = _Side(teacher, lines.teacher, lines.left[1], self.codes.belongs[1])
        self.lines, self.rows = lines, len(lines.chunk)
        self.tiles = -(-self.rows // self.sizes.rows)

    def run(self, wanted: Wanted, numbers: torch.Tensor, entropy: torch.Tensor) -> None:
        """All of them."""
        width, out = self.ours.logits.shape[1], wanted.out
        self._send(0 if out is None else out.stride(0))
        self.masses = torch.empty(2, self.rows, self.codes.joint + 1, device=numbers.device)
        kept = numbers.new_empty(self.kernels.KEPT, self.rows)
        token_blocks = -(-width // self.sizes.columns)
        blocks = token_blocks + -(-self.codes.joint // self.sizes.columns)
        self.shared = (self.ours.logits, self.theirs.logits, self.masses, self.codes.code, self.lists)
        self.shape = (width, self.theirs.logits.shape[1], self.codes.joint)
        self.form = {
            "BOTH": self.both,
            "OUR_ALIGNED": self.ours.aligned,
            "THEIR_ALIGNED": self.theirs.aligned,
            "ROWS": self.sizes.rows,
            "BLOCK": self.sizes.columns,
            "num_warps": self.sizes.warps,
        }
        self.of_labels = {"LABELS": wanted.labels, "COPIES": wanted.labels and len(self.ours.pairs) > 0}
        self.thresholds = numbers.new_empty(0, dtype=torch.int64)
        if self.rows:
            self._prepare(width)
            self._sweep(wanted, numbers, entropy, kept, (token_blocks, blocks))
        if out is not None:
            starts = self.out_starts
            aligned = bool((starts % 16 == 0).all()) and out.data_ptr() % 32 == 0
            self.kernels.gradients[(-(-len(starts) // self.sizes.rows) * token_blocks,)](
                *(*self.shared, self.thresholds, kept, wanted.factors, out),
                *(self.rows, len(starts), *self.shape, token_blocks, 1 / self.measure.temperature, self.measure.beta),
                DIVERGENCE=self._divergence,
                CHOSEN=self._chosen,
                OUT_ALIGNED=aligned,
                **self.of_labels,
                **self.form,
            )

    def _send(self, out_stride: int) -> None:
        """Sends what the host knows in one copy, and makes the copies of rows that leave something out."""
        lines, ours, theirs = self.lines, self.ours, self.theirs
        self.out_starts = np.concatenate([lines.student, lines.idle]) * out_stride
        if lines.is_plain:
            strides = ours.logits.stride(0), theirs.logits.stride(0), out_stride
            self.lists = _plain_table(self.rows, strides, ours.logits.device)
            return
        table = np.full((len(self.out_starts), self.kernels.LISTED), -1)
        starts = ours.start, theirs.start, self.out_starts[: self.rows]
        table[: self.rows] = np.stack([*starts, lines.chunk, lines.label, lines.text, ours.plain], axis=1)
        table[:, 2] = self.out_starts
        arrays = (table, ours.pairs, theirs.pairs, ours.cells, theirs.cells)
        self.lists, *left = sent(arrays, ours.logits.device)
        count = [len(side.pairs) for side in (ours, theirs)]
        if sum(count):
            widths = [side.logits.shape[1] for side in (ours, theirs)]
            columns = self.sizes.rows * self.sizes.columns
            self.kernels.copies[(sum(count), -(-max(widths) // columns))](
                *(ours.logits, theirs.logits, ours.copies, theirs.copies, left[0], left[1], *widths, count[0]),
                BLOCK=columns,
            )
            cells = [len(side.cells) for side in (ours, theirs)]
            self.kernels.impossible[(-(-max(cells) // self.sizes.lanes),)](
                *(ours.copies, theirs.copies, left[2], left[3], *cells), BLOCK=self.sizes.lanes
            )

    @property
    def _divergence(self) -> int:
        return _number_of(self.measure)

    @property
    def _chosen(self) -> int:
        """0 where all outcomes are compared, 1 for the teacher's best, 2 for the student's."""
        most = (self.measure.top_k, self.measure.student_top_k)
        few = [one is not None and one < self.outcomes.student.count for one in most]
        return few.index(True) + 1 if any(few) else 0

    def _prepare(self, width: int) -> None:
        """The joint columns' masses, and the keys of the last outcomes that are chosen where not all are."""
        codes, parts = self.codes, len(self.codes.work)
        self.kernels.joint_masses[(self.tiles * parts,)](
            *(self.ours.logits, self.theirs.logits, self.lists, codes.tokens, codes.order, codes.work, self.masses),
            *(self.rows, codes.joint, parts),
            ROWS=self.sizes.rows,
            LANES=self.sizes.lanes,
        )
        if self._chosen:
            self.thresholds = torch.empty(self.rows, dtype=torch.int64, device=self.lists.device)
            # A program handles one row here.
            columns = max(self.sizes.columns, 512)
            token_blocks, joint_blocks = -(-width // columns), -(-codes.joint // columns)
            most = (self.measure.top_k, self.measure.student_top_k)[self._chosen - 1]
            sizes = {"BLOCK": columns, "SAMPLE": 32 * self.sizes.lanes, "NEAR": 16 * self.sizes.lanes}
            form = {name: value for name, value in self.form.items() if name != "ROWS"} | sizes
            near = self.thresholds.new_empty(self.rows, sizes["NEAR"])
            self.kernels.thresholds[(self.rows,)](
                *(*self.shared, near, self.thresholds, self.rows, *self.shape),
                *(token_blocks, token_blocks + joint_blocks, most),
                CHOSEN=self._chosen,
                **form,
            )

    def _sweep(
        self, wanted: Wanted, numbers: torch.Tensor, entropy: torch.Tensor, kept: torch.Tensor, cut: tuple[int, int]
    ) -> None:
        """The first sweep, and for a JSD the second: the chunks' numbers, what rows keep, and their cross-entropies."""
        kernels, measure, blocks = self.kernels, self.measure, cut[1]
        found = numbers.new_empty(kernels.SUMS, self.rows, blocks)
        chosen, tempered = {"CHOSEN": self._chosen}, {"TEMPERED": measure.temperature != 1}
        of_rows = {"ROWS": self.sizes.rows, "BLOCK": 1 << blocks.bit_length()}
        arguments, shape = (*self.shared, self.thresholds), (self.rows, *self.shape, *cut, 1 / measure.temperature)
        kernels.sums[(self.tiles * blocks,)](
            *(*arguments, found, *shape),
            DIVERGENCE=self._divergence,
            **chosen,
            **tempered,
            **self.of_labels,
            **self.form,
        )
        kernels.close_rows[(self.tiles,)](
            *(found, *self.shared[:3], self.codes.source, self.lists, wanted.weight, wanted.factors, kept, numbers),
            *(entropy, self.rows, numbers.shape[1], *self.shape[1:], blocks, measure.temperature),
            DIVERGENCE=self._divergence,
            **chosen,
            **tempered,
            LABELS=wanted.labels,
            BY_KEPT=self.outcomes.weigh_by_kept,
            TEXT=bool((self.lines.text >= 0).any()),
            **of_rows,
        )
        if measure.effective == "jsd":
            found = numbers.new_empty(2, self.rows, blocks)
            kernels.mixtures[(self.tiles * blocks,)](
                *(*arguments, kept, found, *shape, measure.beta), **chosen, **self.form
            )
            kernels.close_mixtures[(self.tiles,)](
                *(found, self.lists, kept, numbers, self.rows, blocks, 1 / measure.temperature, measure.beta),
                **chosen,
                **of_rows,
            )


def compare_levels(
    student: torch.Tensor,
    teacher: torch.Tensor,
    levels: LevelLines,
    live: tuple[torch.Tensor, torch.Tensor],
    wanted: Wanted,
    numbers: torch.Tensor,
    *,
    measure: Measure,
    plausibly: bool,
) -> None:
    """C-KL's levels: their weighted values are added to their chunks', their gradient to what `compare_rows` wrote.

    Args:
        student: see `compare_rows`.
        teacher: see there.
        levels: of which no two that the student speaks have one row.
        live: int8 (V_s,) and (V_t,), 1 for tokens that have a probability.
        wanted: see `compare_rows`.
        numbers: see there.
        measure: how they are compared; no `top_k`.
        plausibly: whether a level counts as much as the teacher holds its way plausible, see `chain.level_weights`;
            else all count 1.
    """
    kernels, out, sizes = loaded(), wanted.out, tiling(student.device)
    assert kernels is not None
    starts = [rows * side.stride(0) for rows, side in ((levels.student, student), (levels.teacher, teacher))]
    place = levels.student * (0 if out is None else out.stride(0))
    table = np.stack(
        [levels.speaker, *starts, place, levels.chunk, levels.first, levels.last, levels.text, levels.begins], axis=1
    )
    spoken, programs = np.flatnonzero(levels.speaker), levels.programs
    arrays = (table, programs, levels.pieces, levels.token_begin, levels.tokens, levels.outcome_of, spoken)
    lines, program, pieces, token_begin, tokens, outcome_of, own = sent(arrays, student.device)
    count, widths = len(levels.pieces), (student.shape[1], teacher.shape[1])
    masses, slopes = numbers.new_empty(2, count), numbers.new_empty(count)
    with current(student.device):
        kernels.level_masses[(len(table),)](
            *(student, teacher, *live, lines, pieces, token_begin, tokens, masses, *widths, count),
            OUTCOMES=sizes.lanes,
            BLOCK=sizes.columns,
            num_warps=sizes.warps,
        )
        kernels.level_values[(len(programs) - 1,)](
            *(masses, lines, program, wanted.weight, wanted.factors, numbers, slopes, count, numbers.shape[1]),
            *(measure.temperature, measure.beta),
            DIVERGENCE=_number_of(measure),
            PLAUSIBLY=plausibly,
            OUTCOMES=sizes.lanes,
        )
        if out is None:
            return
        blocks = -(-widths[0] // sizes.columns)
        if len(spoken):
            kernels.spoken_gradients[(len(spoken) * blocks,)](
                *(student, live[0], lines, own, pieces, masses, slopes, out, widths[0], blocks), BLOCK=sizes.columns
            )
        if len(spoken) < len(table):
            kernels.restricted_gradients[(len(programs) - 1,)](
                *(student, lines, program, outcome_of, token_begin, tokens, masses, slopes, out), BLOCK=sizes.lanes
            )


def _number_of(measure: Measure) -> int:
    """That by which the kernels know a divergence."""
    return ("forward", "reverse", "jsd").index(measure.effective)


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
    wanted = Wanted(weight, numbers.new_ones(2), out=None if coefficient is None else out)
    compare_rows(student, teacher, outcomes, lines, wanted, numbers, measure=measure, both=both)
    value, agrees, dropped, empty, compared, plausible = numbers
    return Compared(value, agrees > 0, dropped, empty, compared > 0, plausible if text is not None else None)


def add_up(
    numbers: torch.Tensor, entropy: torch.Tensor, weight: torch.Tensor, factors: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """What the numbers of chunks and the cross-entropies of rows add up to: scalars in the order of `inputs.Totals`.

    Args:
        numbers: float32 (6, N), as `compare_rows` writes them.
        entropy: float32 (n,).
        weight: float32 (N,).
        factors: float32 (4,).
    """
    kernels = loaded()
    assert kernels is not None
    # The loss has memory of its own, since whoever gets it may change it in place.
    loss, out = numbers.new_empty(()), numbers.new_empty(kernels.TOTALS)
    with current(numbers.device):
        kernels.totals[(1,)](numbers, entropy, weight, factors, loss, out, numbers.shape[1], len(entropy), BLOCK=1024)
    return (loss, *out.unbind())


def multiply(values: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiplies a tensor in its place by a scalar, which is neither waited for nor, where it is 1, applied."""
    kernels = loaded()
    if kernels is None or not values.is_contiguous() or not values.numel() or not kernels_work(values.device):
        values.mul_(factor.to(values.dtype))
        return
    with current(values.device):
        kernels.multiplied[(-(-values.numel() // 4096),)](values, factor, values.numel(), BLOCK=4096)


def current(device: torch.device) -> AbstractContextManager[Any]:
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
    if loaded() is None or student not in DTYPES or teacher not in DTYPES:
        return False
    return works_as_told(device, lambda: max(_error(device, student, teacher, measure) for measure in _TRIED))


def works_as_told(device: torch.device, error: Callable[[], float]) -> bool:
    """Whether kernels can be compiled for a device and their numbers miss a plain form's by next to nothing."""
    try:
        missed = error()
    except (RuntimeError, OSError, subprocess.SubprocessError) as problem:
        reason = f"Triton cannot run its kernels on {device}: {problem}"
    else:
        if missed < _CLOSE:
            return True
        reason = f"Triton's kernels miss the plain form's numbers on {device} by {missed:.1e}"
    warnings.warn(f"{reason}; so the losses take a plain path, which is slower", XTokenWarning, stacklevel=3)
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
    numbers = torch.zeros(6, 3, device=device)
    entropy = compare_rows(
        logits[0],
        logits[1],
        Outcomes(ours, theirs, None, weigh_by_kept=False),
        Lines(own, own, own, labels, own),
        Wanted(torch.ones(3, device=device), torch.ones(2, device=device), labels=True, out=out),
        numbers,
        measure=measure,
    )
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
    pairs = (numbers[0], value), (numbers[5], plausible), (entropy.sum(), expected), (out, gradient)
    errors = [float((found.double() - right.detach()).abs().amax()) for found, right in pairs]
    # A gradient is rounded to its dtype.
    errors[3] -= float(torch.finfo(out.dtype).eps)
    return math.inf if math.isnan(sum(errors)) else max(errors)
