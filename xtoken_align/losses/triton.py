"""The common comparison of outcomes on a GPU, by Triton's kernels: one row a chunk, every outcome possible.

It gives what `functional.outcomes_kl` and autograd give, with two readings of either side's logits and one writing of
the gradient. Where an outcome is impossible, or a row has none, the value is NaN or infinite, and autograd has to be
asked.
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
from .inputs import Compared
from .tables import LEFT, SMALL, Cells, Grouping, Outcomes, make_grouping, share_inside, without

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
        from . import triton_kernels
    except ImportError:
        return None
    return triton_kernels


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


def compare_outcomes(
    student: torch.Tensor,
    teacher: torch.Tensor,
    outcomes: Outcomes,
    *,
    temperature: float,
    coefficient: torch.Tensor | None,
    out: torch.Tensor | None,
    left: tuple[Cells | None, Cells | None] = (None, None),
    text: torch.Tensor | None = None,
) -> Compared:
    """The outcomes of some rows compared; where a value is NaN or infinite nothing of that row counts.

    Args:
        student: float32 (n, V_s), logits whose last stride is 1; not changed.
        teacher: float32 (n, V_t).
        outcomes: indexed, without links.
        temperature: T.
        coefficient: floats (n,), what each row's value is multiplied by in the loss; None without a gradient.
        out: float32 (n, V_s), where the gradient goes.
        left: the tokens that the rows leave out, the student's and the teacher's.
        text: int64 (n,), the outcome that the text has, or None.
    """
    kernels = _kernels()
    assert kernels is not None
    student, teacher = (
        side if one is None else without(side, one) for side, one in zip((student, teacher), left, strict=True)
    )
    with _current(student.device):
        ours, theirs = outcomes.student, outcomes.teacher
        assert ours.index is not None
        assert theirs.index is not None
        rows, count = len(student), ours.count
        shared = [_shared_masses(kernels, *side) for side in ((student, ours), (teacher, theirs))]
        sides = (
            *(student, student.stride(0), shared[0], shared[0].shape[1], ours.index.source, student.shape[1]),
            *(teacher, teacher.stride(0), shared[1], shared[1].shape[1], theirs.index.source, teacher.shape[1]),
        )
        blocks = -(-count // _COLUMNS)
        partial = student.new_empty(rows, blocks, 2, 3)
        grid = (blocks, rows)
        kernels.partial_totals[grid](*sides, partial, count, 1 / temperature, BLOCK=_COLUMNS)
        tops, whole, totals = _joined(partial, temperature)
        kept = share_inside(teacher, theirs, whole[:, 1])
        factor = kept if outcomes.weigh_by_kept else torch.ones_like(kept)
        # Without a gradient these stand in for what the kernel does not write.
        weight, gradient, slope = factor, student, shared[0]
        if coefficient is not None and out is not None:
            weight = coefficient * factor * temperature
            gradient = out
            slope = torch.empty_like(shared[0])
        found = student.new_empty(rows, blocks, 2)
        kernels.divergences[grid](
            *sides,
            *(tops, totals, weight, gradient, gradient.stride(0), slope, found, count, 1 / temperature),
            WITH_GRADIENT=coefficient is not None,
            BLOCK=_COLUMNS,
        )
        # A row without any mass has no value, though its numbers may be finite.
        value = found[..., 0].sum(dim=1).masked_fill_(~(tops > LEFT / 2).all(dim=1), math.nan)
        if coefficient is not None:
            gradient.index_fill_(1, ours.index.alone, 0)
            _spread(kernels, student, ours, shared[0], slope, gradient)
        agrees = found[..., 1].amax(dim=1) == 0
        empty = 1 - share_inside(student, ours, whole[:, 0])
        plausible = None
        if text is not None:
            source = theirs.index.source[text].long().unsqueeze(1)
            alone = teacher.gather(1, source.clamp(0, teacher.shape[1] - 1))
            many = alone
            if shared[1].shape[1]:
                many = shared[1].gather(1, (source - teacher.shape[1]).clamp_min(0))
            mass = torch.where(source < teacher.shape[1], alone, many).squeeze(1)
            plausible = (mass - tops[:, 1]).exp()
        value = value.clamp_min_(0) * (factor * temperature**2)
        return Compared(value, agrees, 1 - kept, empty, torch.ones_like(agrees), plausible)


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
    index = grouping.index
    assert index is not None
    rows, count = len(scores), len(index.shared)
    masses = scores.new_empty(rows, count)
    if not count:
        return masses
    arguments = (scores, scores.stride(0), index.shared_head, index.member, index.offsets)
    grid = (-(-count // _SHARED), rows)
    kernels.small_sums[grid](*arguments, masses, count, SMALL, BLOCK=_SHARED)
    if len(index.large):
        kernels.large_sums[(len(index.large), rows)](*arguments, index.large, masses, count, BLOCK=_LARGE)
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
    index = grouping.index
    assert index is not None
    slots = torch.arange(len(index.shared), device=scores.device)
    for tokens, slot in ((index.shared_head, slots), (index.member, index.slot)):
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
