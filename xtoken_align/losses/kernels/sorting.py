"""What tells the order of two sides' values without sorting them: how many are in each bin, see `losses.sorting`."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-not-found, import-untyped"
# ruff: noqa: ANN001, ANN201, ANN202, N803 - a kernel takes plain pointers and numbers, many of them

import triton
import triton.language as tl

SHIFT = tl.constexpr(15)
"""A bin's values have the same bits but for so many: float32 keeps the exponent and 8 of 23 digits."""
LOWEST_BIN = tl.constexpr(((127 - 56) << (23 - SHIFT.value)) - 1)
"""Bin 1 begins at 2^-56."""
BINS = tl.constexpr(((128 - 127 + 56) << (23 - SHIFT.value)) + 2)
"""The last bin begins at 2, so that no probability is in it."""
UNCLEAR = tl.constexpr(2)
"""Stands for the sign of values that their bins do not tell."""


@triton.jit
def _bins_of(value):
    """NaN is in the first bin or the last."""
    return tl.minimum(tl.maximum((value.to(tl.int32, bitcast=True) >> SHIFT) - LOWEST_BIN, 0), BINS - 1)


@triton.jit(do_not_specialize=["width", "blocks"])
def counted_bins(values, bins, width, blocks, BLOCK: tl.constexpr):
    """Counts the values (n, width) that are in each bin but the first: bins int32 (n, BINS), 0 before.

    Grid (n * blocks,).
    """
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + row * width + column, mask=column < width, other=0.0)
    own = _bins_of(value)
    tl.atomic_add(bins + row * BINS + own, 1, mask=own > 0, sem="relaxed")


@triton.jit
def _signs(above, other_end, unclear, most):
    """Those of bins with so many values above, where the other side has `other_end` values in them or above."""
    larger = tl.minimum(above, most) >= other_end
    sign = tl.where(above >= most, 0, tl.where(larger, 1, -1))
    return tl.where(unclear, UNCLEAR, sign).to(tl.int8)


@triton.jit(do_not_specialize=["most"])
def signs_of_bins(bins, other_bins, signs, other_signs, most, BLOCK: tl.constexpr):
    """Turns counts int32 (n, BINS) into how many values are in higher bins, and finds each bin's sign: int8 (n, BINS).

    The student's values of a bin have the ranks R_s to R_s + c_s - 1. Where R_s >= R_t + c_t, they face values of the
    teacher's in lower bins, and the teacher's of this bin face such of the student's in higher ones; and the other way
    round. Ranks from `most` on are not compared. Grid (n,).
    """
    row = tl.program_id(0).to(tl.int64) * BINS
    ours, theirs = 0, 0
    for at in range(0, BINS, BLOCK):
        # From the highest down.
        place = BINS - 1 - at - tl.arange(0, BLOCK)
        real = place >= 0
        our_count = tl.load(bins + row + place, mask=real, other=0)
        their_count = tl.load(other_bins + row + place, mask=real, other=0)
        above, other_above = ours + tl.cumsum(our_count) - our_count, theirs + tl.cumsum(their_count) - their_count
        ours, theirs = ours + tl.sum(our_count), theirs + tl.sum(their_count)
        our_end, their_end = tl.minimum(above + our_count, most), tl.minimum(other_above + their_count, most)
        unclear = (tl.minimum(above, most) < their_end) & (tl.minimum(other_above, most) < our_end)
        unclear |= (above < most) & (above + our_count > most)
        unclear |= (other_above < most) & (other_above + their_count > most)
        tl.store(signs + row + place, _signs(above, their_end, unclear, most), mask=real)
        tl.store(other_signs + row + place, _signs(other_above, our_end, unclear, most), mask=real)
        tl.store(bins + row + place, above, mask=real)
        tl.store(other_bins + row + place, other_above, mask=real)


@triton.jit(do_not_specialize=["width", "blocks"])
def signs_of_values(values, signs, out, sums, width, blocks, BLOCK: tl.constexpr):
    """Each value's sign, which is its bin's: out int8 (n, width), and by block the sum of sign times value where it is
    clear: sums float64 (n, blocks). Grid (n * blocks,).
    """
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + row * width + column, mask=column < width, other=0.0)
    sign = tl.load(signs + row * BINS + _bins_of(value))
    tl.store(out + row * width + column, sign, mask=column < width)
    # Products with signs are exact, so that only the sum is rounded; 0 times NaN is NaN.
    part = tl.where(sign == UNCLEAR, 0.0, sign.to(tl.float32)) * value
    tl.store(sums + tl.program_id(0), tl.sum(part.to(tl.float64)))
