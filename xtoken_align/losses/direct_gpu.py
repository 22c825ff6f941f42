"""The common case of a comparison on a GPU: one row a chunk, every outcome possible.

It does what `comparison.compare` does with two readings of either side's logits and one writing of the gradient. Where
an outcome is impossible or a row has none its values are no finite numbers, and `compare` has to be asked.
"""

from __future__ import annotations

import math
import subprocess
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch

from ..errors import XTokenWarning
from .comparison import Block, Comparison
from .grouping import SMALL, VOID, Grouping, make_grouping, share_inside

_COLUMNS = 2048
"""Columns of one program."""
_SHARED = 128
"""Shared columns of one program."""
_LARGE = 512
"""Members that are read at a time of a shared column with many of them."""


@cache
def _kernels() -> ModuleType | None:
    """The kernels, or None where Triton is not installed; PyTorch for CUDA on Linux brings it."""
    try:
        from . import gpu_kernels
    except ImportError:
        return None
    return gpu_kernels


@cache
def kernels_work(device: torch.device) -> bool:
    """Whether a kernel can be compiled and run: that takes a C compiler and a device that Triton knows."""
    kernels = _kernels()
    if kernels is None:
        return False
    group = torch.tensor([0, 0, 1], device=device)
    try:
        with _current(device):
            _shared_masses(kernels, torch.zeros(1, 3, device=device), make_grouping(group, 2))
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"Triton cannot run its kernels on {device}, so the losses take a plain path, which is slower: {error}",
            XTokenWarning,
            stacklevel=2,
        )
        return False
    return True


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Triton starts its kernels on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def can_compare_on_gpu(device: torch.device, dtype: torch.dtype, comparison: object, *, top_k: int | None) -> bool:
    """Whether a comparison is of the common case, as far as its options tell."""
    if not isinstance(comparison, Comparison) or device.type != "cuda" or dtype != torch.float32:
        return False
    count = comparison.student.count
    plain = comparison.links is None and count > 0 and (top_k is None or top_k >= count)
    return plain and kernels_work(device)


def compare_on_gpu(
    student: torch.Tensor,
    teacher: torch.Tensor,
    comparison: Comparison,
    *,
    temperature: float,
    coefficient: torch.Tensor | None,
    out: torch.Tensor | None,
) -> Block:
    """As `comparison.compare`; where a value is no finite number nothing of that row counts.

    Rows are contiguous: the last stride of `student`, `teacher` and `out` is 1.
    """
    kernels = _kernels()
    assert kernels is not None
    with _current(student.device):
        ours, theirs = comparison.student, comparison.teacher
        rows, count = len(student), ours.count
        shared = [_shared_masses(kernels, *side) for side in ((student, ours), (teacher, theirs))]
        sides = (
            *(student, student.stride(0), shared[0], shared[0].shape[1], ours.source, student.shape[1]),
            *(teacher, teacher.stride(0), shared[1], shared[1].shape[1], theirs.source, teacher.shape[1]),
        )
        blocks = -(-count // _COLUMNS)
        partial = student.new_empty(rows, blocks, 2, 3)
        grid = (blocks, rows)
        kernels.partial_totals[grid](*sides, partial, count, 1 / temperature, BLOCK=_COLUMNS)
        tops, whole, totals = _joined(partial, temperature)
        kept = share_inside(teacher, theirs, whole[:, 1])
        factor = kept if comparison.weigh_by_kept else torch.ones_like(kept)
        # Without a gradient these stand in for what the kernel does not write.
        weight, gradient, slope = factor, student, shared[0]
        if coefficient is not None:
            weight = coefficient * factor * temperature
            gradient = torch.empty_like(student) if out is None else out
            slope = torch.empty_like(shared[0])
        found = student.new_empty(rows, blocks, 2)
        kernels.divergences[grid](
            *sides,
            *(tops, totals, weight, gradient, gradient.stride(0), slope, found, count, 1 / temperature),
            WITH_GRADIENT=coefficient is not None,
            BLOCK=_COLUMNS,
        )
        # A row without any mass has no value, though its numbers may be finite.
        value = found[..., 0].sum(dim=1).masked_fill_(~(tops > VOID / 2).all(dim=1), math.nan)
        if coefficient is not None:
            gradient.index_fill_(1, ours.alone, 0)
            _spread(kernels, student, ours, shared[0], slope, gradient)
        agrees = found[..., 1].amax(dim=1) == 0
        empty = 1 - share_inside(student, ours, whole[:, 0])
        return Block(
            value.clamp_min_(0) * (factor * temperature**2),
            None if coefficient is None else gradient,
            None,
            agrees,
            1 - kept,
            empty,
            torch.ones_like(agrees),
        )


def _joined(partial: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From the totals of blocks (n, blocks, 2, 3) the rows' largest log masses (n, 2), the logs of all mass, and those
    of the tempered sums relative to the largest.
    """
    tops = partial[..., 0].amax(dim=1)
    relative = partial[..., 0] - tops.unsqueeze(1)
    whole = tops + (partial[..., 1] * relative.exp()).sum(dim=1).log()
    return tops, whole, (partial[..., 2] * (relative / temperature).exp()).sum(dim=1).log()


def _shared_masses(kernels: ModuleType, scores: torch.Tensor, grouping: Grouping) -> torch.Tensor:
    """Floats (n, G), the log masses of the shared columns."""
    rows, count = len(scores), len(grouping.shared)
    masses = scores.new_empty(rows, count)
    if not count:
        return masses
    arguments = (scores, scores.stride(0), grouping.shared_head, grouping.member, grouping.offsets)
    grid = (-(-count // _SHARED), rows)
    kernels.small_sums[grid](*arguments, masses, count, SMALL, BLOCK=_SHARED)
    if len(grouping.large):
        kernels.large_sums[(len(grouping.large), rows)](*arguments, grouping.large, masses, count, BLOCK=_LARGE)
    return masses


def _spread(
    kernels: ModuleType,
    scores: torch.Tensor,
    grouping: Grouping,
    shared: torch.Tensor,
    slope: torch.Tensor,
    gradient: torch.Tensor,
) -> None:
    """Writes the gradient of the tokens of shared columns."""
    slots = torch.arange(len(grouping.shared), device=scores.device)
    for tokens, slot in ((grouping.shared_head, slots), (grouping.member, grouping.slot)):
        if len(tokens):
            grid = (-(-len(tokens) // _COLUMNS), len(scores))
            kernels.spread_slopes[grid](
                scores,
                scores.stride(0),
                tokens,
                slot,
                shared,
                slope,
                shared.shape[1],
                gradient,
                gradient.stride(0),
                len(tokens),
                BLOCK=_COLUMNS,
            )
