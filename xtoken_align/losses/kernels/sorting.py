"""What tells the order of two sides' values without sorting them: how many are in each bin, see `losses.sorting`."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-not-found, import-untyped"
# ruff: noqa: ANN001, ANN201, ANN202, N803 - a kernel takes plain pointers and numbers, many of them

import triton
import triton.language as tl

from .close import ENDLESS, NOTHING
from .read import LOWEST, exp, scores_at

SHIFT = tl.constexpr(15)
"""A bin's values have the same bits but for so many: float32 keeps the exponent and 8 of 23 digits."""
LOWEST_BIN = tl.constexpr(((127 - 56) << (23 - SHIFT.value)) - 1)
"""Bin 1 begins at 2^-56."""
BINS = tl.constexpr(((128 - 127 + 56) << (23 - SHIFT.value)) + 2)
"""The last bin begins at 2, so that no probability is in it."""
UNCLEAR = tl.constexpr(2)
"""Stands for the sign of values that their bins do not tell."""

SILENT = tl.constexpr(0)
"""Tokens without a probability."""
SORTED = tl.constexpr(2)
"""Tokens whose probabilities are compared by rank; 1 are all others."""


@triton.jit(do_not_specialize=["rows", "blocks"])
def normalisers(logits, role, out, rows, stride, width, blocks, inverse, BLOCK: tl.constexpr):
    """Of a block of a row's logits the largest, and the sum of the exponentials of all over T relative to it.

    Args:
        logits: whose rows begin `stride` elements apart.
        role: int8 (width,), `SILENT`, 1 or `SORTED`.
        out: float32 (2, n, blocks).
        rows: n.
        stride: see above.
        width: how many tokens there are.
        blocks: of a row.
        inverse: 1 / T.
        BLOCK: how many tokens a block has.

    Grid (n * blocks,).
    """
    row = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    live = tl.load(role + token, mask=token < width, other=SILENT) != SILENT
    value = scores_at(logits + row * stride + token, live)
    top = tl.maximum(tl.max(value, 0), LOWEST)
    tl.store(out + tl.program_id(0), top)
    tl.store(out + rows.to(tl.int64) * blocks + tl.program_id(0), tl.sum(exp((value - top) * inverse), 0))


@triton.jit(do_not_specialize=["rows", "blocks"])
def probabilities(
    logits, role, found, kept, out, rows, stride, width, blocks, inverse, BLOCK: tl.constexpr, BLOCKS: tl.constexpr
):
    """The probabilities of a block of sorted tokens, 0 of all others: out float32 (n, width).

    `found` is what `normalisers` gives; `kept` float32 (3, n) gets the row's largest logit, the logarithm of its sum,
    and 1 if it has a distribution. Grid (n * blocks,).
    """
    row, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    lane, many = tl.arange(0, BLOCKS), rows.to(tl.int64)
    tops = tl.load(found + row * blocks + lane, mask=lane < blocks, other=LOWEST)
    sums = tl.load(found + (many + row) * blocks + lane, mask=lane < blocks, other=0.0)
    top = tl.max(tops, 0)
    total = tl.sum(sums * exp((tops - top) * inverse), 0)
    # Without a distribution every share is 0. Of NaN this is not so.
    lacks = (total == 0) | (top <= NOTHING)
    log_total = tl.where(lacks, ENDLESS, tl.log(total))
    token = block * BLOCK + tl.arange(0, BLOCK)
    chosen = tl.load(role + token, mask=token < width, other=SILENT) == SORTED
    value = scores_at(logits + row * stride + token, chosen)
    tl.store(out + row * width + token, exp((value - top) * inverse - log_total), mask=token < width)
    if block == 0:
        tl.store(kept + row, top)
        tl.store(kept + many + row, log_total)
        tl.store(kept + 2 * many + row, tl.where(lacks, 0.0, 1.0))


@triton.jit(do_not_specialize=["rows", "blocks"])
def rank_gradients(
    logits,
    role,
    kept,
    signs,
    part,
    coefficient,
    out,
    rows,
    stride,
    width,
    out_stride,
    blocks,
    inverse,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of the sum of sign times probability: p (sign - part), where other tokens than sorted ones have the
    sign 0.

    Args:
        logits: see `normalisers`.
        role: see there.
        kept: float32 (3, n), see `probabilities`.
        signs: int8 (n, width).
        part: float32 (n,), what the row's sum is.
        coefficient: float32 (n,), what each row's gradient is multiplied by.
        out: whose rows begin `out_stride` elements apart; with `ADDS` added to what is there.
        rows: n.
        stride: of the logits.
        width: how many tokens there are.
        out_stride: see above.
        blocks: of a row.
        inverse: 1 / T.
        ADDS: see above.
        BLOCK: how many tokens a block has.

    Grid (n * blocks,).
    """
    row = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    kind = tl.load(role + token, mask=token < width, other=SILENT)
    value = scores_at(logits + row * stride + token, kind != SILENT)
    share = exp((value - tl.load(kept + row)) * inverse - tl.load(kept + rows.to(tl.int64) + row))
    sign = tl.load(signs + row * width + token, mask=kind == SORTED, other=0).to(tl.float32)
    change = tl.load(coefficient + row) * share * (sign - tl.load(part + row))
    here = token < width
    if ADDS:
        change += tl.load(out + row * out_stride + token, mask=here, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + token, change.to(out.dtype.element_ty), mask=here)


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
