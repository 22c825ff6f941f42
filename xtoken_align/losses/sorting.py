"""Probabilities of two sides compared rank by rank: ULD, and the remainders of H-KL and GOLD.

A processor sorts. A GPU counts, which takes a fraction of the time. Of a value it need not be known which rank it has,
only whether the other side's value of the same rank is smaller: the sum over ranks of |p - q| is that of p - q where q
is smaller and of q - p elsewhere, so each value counts once, with a sign that is its slope, too. Values are put into
*bins*, and how many of a side are in higher bins tells the ranks of a bin's values. Three values and two:

    bin        6    5    4    3         The student's .6 has rank 0, and so has the teacher's .5 of a lower bin: +1, and
    student    .6        .3   .1        -1 for the .5. The .1 has rank 2, where the teacher has nothing left: +1. In bin
    teacher         .5   .28            4 both values have rank 1: the bin does not tell which is larger, and only such
                                        values are sorted.

Of real distributions these are one in a hundred. The result is that of sorting, but for values below 2^-56.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary

from .inputs import Compared
from .tables import Ranks, Tokens
from .triton import current, kernels_work, loaded, works_as_told

_BITS = 0x7FFFFFFF
"""The bits of a float but its sign."""
_BLOCK = 2048
"""How many values a program counts."""


def sorted_distance(student: torch.Tensor, teacher: torch.Tensor, limit: int | None) -> torch.Tensor:
    """Sum over ranks of |student's value - teacher's value|, each row sorted in descending order.

    Args:
        student: floats (c, U_s), at least 0.
        teacher: floats (c, U_t), at least 0, without a graph.
        limit: compare the first m = min(U_s, U_t, limit) ranks; None compares all, the shorter filled up with zeros.

    Returns:
        Floats (c,).

    Example:
        >>> student = torch.tensor([[0.1, 0.7]], requires_grad=True)
        >>> distance = sorted_distance(student, torch.tensor([[0.5, 0.3, 0.2]]), None)
        >>> round(distance.item(), 4), torch.autograd.grad(distance, student)[0].tolist()
        (0.6, [[-1.0, 1.0]])
    """
    shared = min(student.shape[1], teacher.shape[1])
    shared = shared if limit is None else min(shared, limit)
    if _counts(student) and teacher.numel():
        most = max(student.shape[1], teacher.shape[1]) if limit is None else shared
        counted: torch.Tensor = _ByCounting.apply(student, teacher, most)  # type: ignore[no-untyped-call]
        return counted
    kept = student.shape[1] if limit is None else shared
    values = student.gather(1, _descending(student.detach(), kept)[1])
    others = _largest_in_order(teacher, shared)
    distance = (values[:, :shared] - others).abs().sum(dim=1)
    if limit is not None:
        return distance
    # What either side has beyond the other's width is compared with zeros.
    return distance + values[:, shared:].abs().sum(dim=1) + (teacher.sum(dim=1) - others.sum(dim=1)).clamp_min(0)


def masked_sorted_distance(
    student: torch.Tensor, teacher: torch.Tensor, masks: tuple[torch.Tensor, torch.Tensor], limit: int | None
) -> torch.Tensor:
    """`sorted_distance` of the columns that two masks leave, in fixed shapes.

    Args:
        student: floats (c, V_s), at least 0.
        teacher: floats (c, V_t), at least 0.
        masks: bool (V_s,) and (V_t,), the columns that are compared.
        limit: as for `sorted_distance`.
    """
    ours, theirs = (
        torch.where(mask, side, 0.0).sort(dim=1, descending=True).values
        for side, mask in zip((student, teacher), masks, strict=True)
    )
    width = min(ours.shape[1], theirs.shape[1])
    difference = (ours[:, :width] - theirs[:, :width]).abs()
    if limit is None:
        return difference.sum(dim=1) + ours[:, width:].abs().sum(dim=1) + theirs[:, width:].sum(dim=1)
    shared = torch.minimum(masks[0].sum(), masks[1].sum()).clamp_max(limit)
    return difference.mul(torch.arange(width, device=shared.device) < shared).sum(dim=1)


def _descending(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest values of each row in order, and their places."""
    if values.device.type != "cpu" or values.dtype != torch.float32 or not values.numel() or not count:
        best = values.topk(count, dim=1, sorted=True)
        return best.values, best.indices
    # numpy sorts integers with vector instructions, ten times as fast as torch sorts pairs. The bits of floats that are
    # not negative are in the order of the floats, so value and place go into one integer.
    keys = values.numpy().view(np.int32).astype(np.int64) << 32
    keys |= np.arange(values.shape[1])
    if count < keys.shape[1]:
        keys = np.partition(keys, keys.shape[1] - count, axis=1)[:, keys.shape[1] - count :]
    keys.sort(axis=1)
    keys = keys[:, ::-1]
    places = torch.from_numpy(keys & 0xFFFFFFFF)
    return torch.from_numpy((keys >> 32).astype(np.int32).view(np.float32)), places


def _largest_in_order(values: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest values of each row in order."""
    if values.device.type != "cpu" or not values.numel() or not count:
        return _descending(values, count)[0]
    array = values.numpy()
    if count < array.shape[1]:
        array = np.partition(array, array.shape[1] - count, axis=1)[:, array.shape[1] - count :]
    return torch.from_numpy(np.sort(array, axis=1)[:, ::-1].copy())


def _counts(values: torch.Tensor) -> bool:
    """Whether values are compared by counting. That asks how many are unclear, which a CUDA graph cannot."""
    if values.device.type != "cuda" or values.dtype != torch.float32 or is_captured(values.device):
        return False
    return values.numel() > 0 and counting_works(values.device)


def is_captured(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@cache
def counting_works(device: torch.device) -> bool:
    """Whether the kernels give what sorting does, see `triton.kernels_work`."""
    return kernels_work(device) and works_as_told(device, lambda: _error(device))


def _error(device: torch.device) -> float:
    """By how much the kernels miss two sorts, for three rows of 700 and 500 values; infinity for NaN."""
    student, teacher = (
        (torch.arange(3 * width, device=device).view(3, -1) * step % 5.5).softmax(dim=1)
        for width, step in ((700, 1.7), (500, 2.3))
    )
    signs, sums = signs_and_sums(student, teacher, 700)
    ours, theirs = (side.sort(dim=1, descending=True).values for side in (student, teacher))
    difference = ours - torch.nn.functional.pad(theirs, (0, 200))
    # Equal values share their slopes, whichever of them has which.
    slopes = (signs * student).sum(dim=1) - (difference.sign() * ours).sum(dim=1)
    error = float((sums.sum(dim=0) - difference.abs().sum(dim=1)).abs().amax() + slopes.abs().amax())
    return math.inf if math.isnan(error) else error


class _ByCounting(torch.autograd.Function):
    """The distance; its slopes are found with it."""

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor, most: int) -> torch.Tensor:
        ctx.signs, sums = signs_and_sums(student.contiguous(), teacher.contiguous(), most)
        return sums.sum(dim=0).float()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return ctx.signs * slope.unsqueeze(1), None, None


def signs_and_sums(student: torch.Tensor, teacher: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The sign of each of the student's values, int8 (c, U_s), and each side's sum of sign times value, float64 (2, c).

    The distance is what the two add up to.

    Args:
        student: float32 (c, U_s), contiguous, probabilities.
        teacher: float32 (c, U_t).
        most: how many ranks are compared.
    """
    kernels = loaded()
    assert kernels is not None
    rows, device, sides = len(student), student.device, (student, teacher)
    blocks = [-(-side.shape[1] // _BLOCK) for side in sides]
    above = torch.zeros(2, rows, kernels.BINS.value, dtype=torch.int32, device=device)
    of_bins = torch.empty_like(above, dtype=torch.int8)
    signs = [torch.empty_like(side, dtype=torch.int8) for side in sides]
    sums = [torch.empty(rows, count, dtype=torch.float64, device=device) for count in blocks]
    with current(device):
        for side, values in enumerate(sides):
            grid = (rows * blocks[side],)
            kernels.counted_bins[grid](values, above[side], values.shape[1], blocks[side], BLOCK=_BLOCK)
        # Triton's interpreter takes its time for a block, however large.
        kernels.signs_of_bins[(rows,)](*above, *of_bins, most, BLOCK=8192 if device.type == "cpu" else _BLOCK)
        for side, values in enumerate(sides):
            grid, size = (rows * blocks[side],), (values.shape[1], blocks[side])
            kernels.signs_of_values[grid](values, of_bins[side], signs[side], sums[side], *size, BLOCK=_BLOCK)
    of_sides = torch.stack([own.sum(dim=1) for own in sums])
    unclear = [_Unclear(side, own) for side, own in zip(sides, signs, strict=True)]
    for number, own, other in ((0, unclear[0], unclear[1]), (1, unclear[1], unclear[0])):
        found = own.signs(other, above[number], above[1 - number], most)
        signs[number].view(-1)[own.place] = found
        of_sides[number].index_put_((own.row,), found * own.value.double(), accumulate=True)
    return signs[0], of_sides


def compares(ranks: Ranks, device: torch.device) -> bool:
    """Whether `compare_ranks` can compare these: sets of tokens, and nothing beside them."""
    if ranks.common is not None or ranks.student_stops is not None or ranks.teacher_stops is not None:
        return False
    indexed = ranks.student_rest.ids is not None and ranks.teacher_rest.ids is not None
    return indexed and not is_captured(device) and counting_works(device)


def compare_ranks(
    student: torch.Tensor,
    teacher: torch.Tensor,
    ranks: Ranks,
    *,
    temperature: float,
    coefficient: torch.Tensor,
    out: torch.Tensor | None,
    adds: bool,
) -> Compared:
    """`functional.sorted_l1` of rows of which each is a chunk, by kernels: from logits to gradient.

    Args:
        student: floats (n, V_s), logits whose last stride is 1; not changed.
        teacher: floats (n, V_t).
        ranks: the tokens that are sorted, without stops or a common part.
        temperature: T.
        coefficient: floats (n,), what each row's value is multiplied by in the loss.
        out: floats (n, V_s), where the gradient goes; None without one.
        adds: whether it is added to what is there.
    """
    kernels = loaded()
    assert kernels is not None
    rows, inverse = len(student), 1 / temperature
    kept = student.new_empty(2, 3, rows, dtype=torch.float32)
    roles = _role(ranks.student_silent, ranks.student_rest), _role(ranks.teacher_silent, ranks.teacher_rest)
    shares = []
    with current(student.device):
        for logits, role, own in zip((student, teacher), roles, kept, strict=True):
            width, blocks = logits.shape[1], -(-logits.shape[1] // _BLOCK)
            size = (rows, logits.stride(0), width, blocks, inverse)
            found = kept.new_empty(2, rows, blocks)
            shares.append(kept.new_empty(rows, width))
            kernels.normalisers[(rows * blocks,)](logits, role, found, *size, BLOCK=_BLOCK)
            arguments = (logits, role, found, own, shares[-1], *size)
            kernels.probabilities[(rows * blocks,)](*arguments, BLOCK=_BLOCK, BLOCKS=1 << blocks.bit_length())
    signs, sums = signs_and_sums(shares[0], shares[1], ranks.most)
    compared = (kept[0, 2] > 0) & (kept[1, 2] > 0)
    if out is not None:
        logits, width, blocks = student, student.shape[1], -(-student.shape[1] // _BLOCK)
        factor = torch.where(compared, coefficient.float() * temperature, 0.0)
        with current(student.device):
            kernels.rank_gradients[(rows * blocks,)](
                *(logits, roles[0], kept[0], signs, sums[0].float(), factor, out),
                *(rows, logits.stride(0), width, out.stride(0), blocks, inverse),
                ADDS=adds,
                BLOCK=_BLOCK,
            )
    value = torch.where(compared, sums.sum(dim=0).float() * temperature**2, 0.0)
    nothing = torch.zeros_like(value)
    return Compared(value, torch.zeros_like(compared), nothing, nothing, compared)


_roles: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Roles of tokens by the mask of those that are sorted, for as long as it lives."""


def _role(silent: Tokens, rest: Tokens) -> torch.Tensor:
    """int8 (V,), what each token is to the kernels."""
    if rest.mask not in _roles or _roles[rest.mask][0] is not silent.mask:
        _roles[rest.mask] = silent.mask, (~silent.mask).to(torch.int8) + rest.mask.to(torch.int8)
    role: torch.Tensor = _roles[rest.mask][1]
    return role


class _Unclear:
    """A side's values whose bins do not tell their signs, int64 (m,) each, by row and in descending order.

    Attributes:
        place: the place among all values.
        row: the row.
        value: float32 (m,).
        bin: the bin.
        key: ascending, the row and how far the bits of the value are below the largest.
    """

    def __init__(self, values: torch.Tensor, signs: torch.Tensor) -> None:
        kernels = loaded()
        assert kernels is not None
        place = (signs.view(-1) == kernels.UNCLEAR.value).nonzero().squeeze(1)
        # The bits of floats that are not negative are in the order of the floats.
        bits = values.view(-1)[place].view(torch.int32).long()
        key = (place // max(values.shape[1], 1) << 32) + _BITS - bits
        self.key, order = key.sort(stable=True)
        self.place, bits = place[order], bits[order]
        self.row, self.value = self.key >> 32, values.view(-1)[self.place]
        self.bin = (bits >> kernels.SHIFT.value).sub_(kernels.LOWEST_BIN.value).clamp_max_(kernels.BINS.value - 1)
        self._highest = ((self.bin + kernels.LOWEST_BIN.value + 1) << kernels.SHIFT.value) - 1
        self._highest[self.bin == kernels.BINS.value - 1] = _BITS

    def signs(self, other: _Unclear, above: torch.Tensor, other_above: torch.Tensor, most: int) -> torch.Tensor:
        """Their signs, int8 (m,), where so many values are in higher bins: int32 (c, BINS) for both sides."""
        begin = (self.row << 32) + _BITS - self._highest
        number = torch.arange(len(begin), device=begin.device) - torch.searchsorted(self.key, begin)
        rank = above[self.row, self.bin] + number
        # The other side's values of the bin have the ranks `first` to `end`.
        first, end = other_above[self.row, self.bin], other_above[self.row, self.bin - 1]
        faced = torch.where(rank < first, math.inf, 0.0)
        inside = (rank >= first) & (rank < end)
        place = torch.searchsorted(other.key, begin) + rank - first
        values = torch.nn.functional.pad(other.value, (0, 1))
        faced = torch.where(inside, values[place.clamp(0, len(values) - 1)], faced)
        return torch.where(rank < most, (self.value - faced).sign(), 0.0).to(torch.int8)
