"""Triton kernels of the common comparison of outcomes; `triton` calls them and says what they compute.

Each kernel reads rows of logits where they lie and keeps nothing of their size. A program handles some columns of one
row, and the columns of a row follow each other, so that the few rows that are read at a time stay in the cache. Sums
are made in one order whatever the device does first, so that equal inputs give equal bits.

Source: online softmax, Milakov and Gimelshein (2018).
"""

# Arguments are pointers and numbers of Triton's own, for which there are no types; those that it compiles for are in
# capitals, as is usual there.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-not-found, import-untyped"
# ruff: noqa: ANN001, ANN201, ANN202, N803

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.0e38)
"""Stands for -inf inside of sums, where the difference of two infinities would be no number."""


@triton.jit
def _finite(value):
    """A number in place of -inf; what is no number stays so."""
    return tl.where(value == float("-inf"), LOWEST, value)


@triton.jit
def _log_sum(top, total):
    """The logarithm of a sum that is relative to its largest, -inf where it is of nothing."""
    mass = top + tl.log(total)
    return tl.where(mass <= LOWEST, float("-inf"), mass)


@triton.jit
def _joined(top, total, value):
    """One more value in a sum of exponentials that is relative to its largest."""
    larger = tl.maximum(top, value)
    return larger, total * tl.exp(top - larger) + tl.exp(value - larger)


@triton.jit
def small_sums(scores, stride, heads, members, offsets, out, count, limit, BLOCK: tl.constexpr):
    """Log of the sum over each shared column of at most `limit` members beside its head.

    Grid (blocks of columns, rows); scores (n, V); heads (G,); members (M,) in the order of columns; offsets (G + 1,);
    out (n, G).
    """
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < count
    first = tl.load(offsets + column, mask=inside, other=0)
    size = tl.load(offsets + column + 1, mask=inside, other=0) - first
    inside = inside & (size <= limit)
    size = tl.where(inside, size, 0)
    top = tl.load(scores + row * stride + tl.load(heads + column, mask=inside, other=0), mask=inside, other=0.0)
    top = _finite(top.to(tl.float32))
    total = tl.full((BLOCK,), 1.0, tl.float32)
    for place in range(tl.max(size)):
        more = place < size
        token = tl.load(members + first + place, mask=more, other=0)
        value = tl.load(scores + row * stride + token, mask=more, other=0.0).to(tl.float32)
        new_top, new_total = _joined(top, total, _finite(value))
        top, total = tl.where(more, new_top, top), tl.where(more, new_total, total)
    tl.store(out + row * count + column, _log_sum(top, total), mask=inside)


@triton.jit
def large_sums(scores, stride, heads, members, offsets, large, out, count, BLOCK: tl.constexpr):
    """The same for the columns in `large`, each a program's: grid (columns, rows)."""
    row = tl.program_id(1).to(tl.int64)
    column = tl.load(large + tl.program_id(0))
    first, last = tl.load(offsets + column), tl.load(offsets + column + 1)
    head = _finite(tl.load(scores + row * stride + tl.load(heads + column)).to(tl.float32))
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.full((BLOCK,), 0.0, tl.float32)
    for start in range(first, last, BLOCK):
        more = start + lane < last
        token = tl.load(members + start + lane, mask=more, other=0)
        value = tl.load(scores + row * stride + token, mask=more, other=0.0).to(tl.float32)
        new_top, new_total = _joined(top, total, _finite(value))
        top, total = tl.where(more, new_top, top), tl.where(more, new_total, total)
    whole = tl.maximum(tl.max(top), head)
    total = tl.sum(total * tl.exp(top - whole)) + tl.exp(head - whole)
    tl.store(out + row * count + column, _log_sum(whole, total))


@triton.jit
def _masses(scores, stride, shared, shared_count, source, width, row, column, inside):
    """Log masses of some columns, -inf for those that hold nothing, and where they come from."""
    place = tl.load(source + column, mask=inside, other=-1)
    alone = tl.load(scores + row * stride + place, mask=(place >= 0) & (place < width), other=float("-inf"))
    joint = tl.load(shared + row * shared_count + (place - width), mask=place >= width, other=float("-inf"))
    return tl.where(place >= width, joint, alone.to(tl.float32)), place


@triton.jit
def _store_totals(mass, out, inverse):
    """The largest of some log masses, and the sums relative to it, as they are and tempered."""
    top = tl.maximum(tl.max(mass), LOWEST)
    tl.store(out, top)
    tl.store(out + 1, tl.sum(tl.exp(mass - top)))
    tl.store(out + 2, tl.sum(tl.exp((mass - top) * inverse)))


@triton.jit
def partial_totals(
    student,
    student_stride,
    student_shared,
    student_shared_count,
    student_source,
    student_width,
    teacher,
    teacher_stride,
    teacher_shared,
    teacher_shared_count,
    teacher_source,
    teacher_width,
    out,
    count,
    inverse,
    BLOCK: tl.constexpr,
):
    """Both sides' totals over a block of columns: grid (blocks, rows); out (n, blocks, 2, 3)."""
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < count
    place = out + (row * tl.num_programs(0) + tl.program_id(0)) * 6
    ours, _ = _masses(
        student,
        student_stride,
        student_shared,
        student_shared_count,
        student_source,
        student_width,
        row,
        column,
        inside,
    )
    _store_totals(ours, place, inverse)
    theirs, _ = _masses(
        teacher,
        teacher_stride,
        teacher_shared,
        teacher_shared_count,
        teacher_source,
        teacher_width,
        row,
        column,
        inside,
    )
    _store_totals(theirs, place + 3, inverse)


@triton.jit
def divergences(
    student,
    student_stride,
    student_shared,
    student_shared_count,
    student_source,
    student_width,
    teacher,
    teacher_stride,
    teacher_shared,
    teacher_shared_count,
    teacher_source,
    teacher_width,
    tops,
    totals,
    weight,
    gradient,
    gradient_stride,
    slope,
    out,
    count,
    inverse,
    WITH_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum over a block of columns of p (log p - log q), and the largest sum of both log masses less their tops.

    Grid (blocks, rows); out (n, blocks, 2); tops (n, 2), both sides' largest log masses; totals (n, 2), the logarithms
    of the tempered sums relative to them. The gradient of a column with one token is written to the token's place, that
    of a shared one to slope (n, G).
    """
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < count
    ours, place = _masses(
        student,
        student_stride,
        student_shared,
        student_shared_count,
        student_source,
        student_width,
        row,
        column,
        inside,
    )
    theirs, other = _masses(
        teacher,
        teacher_stride,
        teacher_shared,
        teacher_shared_count,
        teacher_source,
        teacher_width,
        row,
        column,
        inside,
    )
    ours = ours - tl.load(tops + row * 2)
    theirs = theirs - tl.load(tops + row * 2 + 1)
    best = tl.max(tl.where((place >= 0) & (other >= 0), ours + theirs, float("-inf")))
    log_q = ours * inverse - tl.load(totals + row * 2)
    log_p = theirs * inverse - tl.load(totals + row * 2 + 1)
    p = tl.exp(log_p)
    # Where a column holds nothing both logarithms are -inf, and where the teacher has nothing there is nothing to pay.
    pays = p > 0
    term = p * (tl.where(pays, log_p, 0.0) - tl.where(pays, log_q, 0.0))
    result = out + (row * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(result, tl.sum(term))
    tl.store(result + 1, best)
    if WITH_GRADIENT:
        change = tl.load(weight + row) * (tl.exp(log_q) - p)
        single = inside & (place >= 0) & (place < student_width)
        tl.store(gradient + row * gradient_stride + place, change, mask=single)
        joint = inside & (place >= student_width)
        tl.store(slope + row * student_shared_count + (place - student_width), change, mask=joint)


@triton.jit
def spread_slopes(
    scores, stride, tokens, slots, shared, slope, shared_count, gradient, gradient_stride, count, BLOCK: tl.constexpr
):
    """Each token of a shared column gets its share of the column's slope: grid (blocks of tokens, rows)."""
    row = tl.program_id(1).to(tl.int64)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < count
    token = tl.load(tokens + lane, mask=inside, other=0)
    slot = row * shared_count + tl.load(slots + lane, mask=inside, other=0)
    whole = tl.maximum(tl.load(shared + slot, mask=inside, other=0.0), LOWEST)
    value = tl.load(scores + row * stride + token, mask=inside, other=0.0).to(tl.float32)
    change = tl.load(slope + slot, mask=inside, other=0.0) * tl.exp(value - whole)
    tl.store(gradient + row * gradient_stride + token, change, mask=inside)
