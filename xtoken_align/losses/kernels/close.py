"""What closes a sweep: a row's blocks are added up to its chunk's numbers, and all chunks' numbers to the loss."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-not-found, import-untyped"
# ruff: noqa: ANN001, ANN201, ANN202, N803 - a kernel takes plain pointers and numbers, many of them

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .read import (
    BEST_OF_STUDENT,
    BEST_OF_TEACHER,
    CHUNK,
    FORWARD,
    JSD,
    LABEL,
    LOWEST,
    PLAIN,
    REVERSE,
    TEXT_OUTCOME,
    THEIRS,
    Sides,
    added,
    exp,
    field,
    joint_masses_at,
    log_mixture,
    log_sum,
    scores_at,
    share,
)
from .sweep import (
    ALL_TOP,
    APART_TOP,
    BOTH_TOP,
    CROSS,
    LOST_TOP,
    ODD,
    OUR_REST_TOP,
    OUR_TOP,
    ROW_FACTOR,
    ROW_LOG_ALL,
    ROW_LOG_INSIDE,
    ROW_MEAN,
    ROW_ODD,
    ROW_OUR_LOG,
    ROW_OUR_REST,
    ROW_OUR_TOP,
    ROW_SCALE,
    ROW_THEIR_LOG,
    ROW_THEIR_REST,
    ROW_THEIR_TOP,
    THEIR_REST_TOP,
    THEIR_TOP,
)

NOTHING = tl.constexpr(-5.0e19)
"""A row whose largest mass is no more than this has no distribution; half of `tables.LEFT`."""

ENDLESS = tl.constexpr(1.0e30)
"""Stands for the log sum of a row that is not compared: against it every share is 0."""

# What is said of a chunk, each (N,), in the order of `inputs.Compared`.
VALUE = tl.constexpr(0)
AGREES = tl.constexpr(1)
DROPPED = tl.constexpr(2)
EMPTY = tl.constexpr(3)
COMPARED = tl.constexpr(4)
PLAUSIBLE = tl.constexpr(5)


class Found(NamedTuple):
    """Where a tile's blocks stand in what a sweep found.

    Attributes:
        place: (rows, lanes), the first sum of each row's blocks; one lane more is for a rest.
        step: how far the sums lie apart.
        inside: (rows, lanes), the lanes that are blocks.
        is_rest: (rows, lanes), the lane after them.
    """

    place: Any
    step: Any
    inside: Any
    is_rest: Any


class Sum(NamedTuple):
    """A sum over a row, relative to its largest value: that value, the sum, the sum at T, and by block (rows, lanes)
    how far its own largest lies below and what it has of the sum at T.
    """

    top: Any
    total: Any
    tempered: Any
    below: Any
    part: Any


@triton.jit
def _row_sum(found, rest, inverse, TOP: tl.constexpr, RESTS: tl.constexpr, TEMPERED: tl.constexpr):
    """The blocks' sums added up, where the sum stands after the largest and that at T after the sum.

    If `RESTS`, the rest of log mass `rest` (rows,) is one outcome more; -inf where it does not count.
    """
    top = tl.load(found.place + TOP * found.step, mask=found.inside, other=LOWEST)
    part = tl.load(found.place + (TOP + 1) * found.step, mask=found.inside, other=0.0)
    if RESTS:
        there = (rest != float("-inf")).to(tl.float32)[:, None]
        top = tl.where(found.is_rest, tl.maximum(rest, LOWEST)[:, None], top)
        part = tl.where(found.is_rest, there, part)
    whole = tl.max(top, 1)
    below = top - whole[:, None]
    total = tl.sum(part * exp(below), 1)
    tempered = total
    if TEMPERED:
        part = tl.load(found.place + (TOP + 2) * found.step, mask=found.inside, other=0.0)
        if RESTS:
            part = tl.where(found.is_rest, there, part)
        tempered = tl.sum(part * exp(below * inverse), 1)
    return Sum(whole, total, tempered, below, part)


@triton.jit
def _largest(found, TOP: tl.constexpr):
    """The blocks' largest values (rows, lanes)."""
    return tl.load(found.place + TOP * found.step, mask=found.inside, other=LOWEST)


class Rests(NamedTuple):
    """The outcomes that are not chosen, as one: log masses (rows,), -inf for none, and the student's largest."""

    ours: Any
    theirs: Any
    our_top: Any


@triton.jit
def _rests(found, nothing, CHOSEN: tl.constexpr):
    ours, theirs, our_top = nothing, nothing, nothing
    if CHOSEN:
        rest = _row_sum(found, nothing, 1.0, OUR_REST_TOP, RESTS=False, TEMPERED=False)
        ours, our_top = log_sum(rest.top, rest.total), rest.top
    if CHOSEN == BEST_OF_TEACHER:
        rest = _row_sum(found, nothing, 1.0, THEIR_REST_TOP, RESTS=False, TEMPERED=False)
        theirs = log_sum(rest.top, rest.total)
    return Rests(ours, theirs, our_top)


class Row(NamedTuple):
    """What is known of a tile's rows.

    Attributes:
        ours: the student's sum: what it can give, in a reverse KL of what the teacher can, too.
        theirs: the teacher's sum of what both can give.
        lost: its sum of what the student cannot give.
        our_whole: log of all that the student can give.
        our_best: its largest mass.
        log_inside: log of the share of what the teacher can give, too, at T; of a reverse KL, else 0.
    """

    ours: Any
    theirs: Any
    lost: Any
    our_whole: Any
    our_best: Any
    log_inside: Any


@triton.jit
def _row(found, rests, inverse, DIVERGENCE: tl.constexpr, RESTS: tl.constexpr, TEMPERED: tl.constexpr):
    # The rest is an outcome like others: given, lost or apart.
    given, possible = rests.theirs != float("-inf"), (rests.ours != float("-inf")) & RESTS
    own = tl.where(possible & (given | (DIVERGENCE != REVERSE)), rests.ours, float("-inf"))
    ours = _row_sum(found, own, inverse, OUR_TOP, RESTS, TEMPERED)
    own = tl.where(possible & given, rests.theirs, float("-inf"))
    theirs = _row_sum(found, own, inverse, THEIR_TOP, RESTS, TEMPERED)
    own = tl.where(given & ~possible, rests.theirs, float("-inf"))
    lost = _row_sum(found, own, 1.0, LOST_TOP, RESTS, TEMPERED=False)
    our_whole, our_best = log_sum(ours.top, ours.total), ours.top
    log_inside = ours.top * 0
    if DIVERGENCE == REVERSE:
        own = tl.where(possible & ~given, rests.ours, float("-inf"))
        apart = _row_sum(found, own, inverse, APART_TOP, RESTS, TEMPERED=True)
        our_whole = added(our_whole, log_sum(apart.top, apart.total))
        our_best = tl.maximum(ours.top, apart.top)
        # -log(1 + exp(further)), where further is what the student gives apart against what it gives inside.
        further = (apart.top - ours.top) * inverse + tl.log(apart.tempered) - tl.log(ours.tempered)
        log_inside = -(tl.maximum(further, 0.0) + tl.log(1 + exp(-tl.abs(further))))
        log_inside = tl.where(apart.tempered == 0, 0.0, log_inside)
    return Row(ours, theirs, lost, our_whole, our_best, log_inside)


@triton.jit
def _mean(found, ours, theirs, inverse, DIVERGENCE: tl.constexpr):
    """The sum of P (log P - log Q), or with a reverse KL of Q (log Q - log P); 0 for a JSD, whose sum is not known yet.

    Let S and R be the student's and the teacher's sums at T relative to their largest masses, and x the sum of R's
    parts times the difference of both sides. The forward KL is x / (T R) - log R + log S.
    """
    mean = ours.top * 0
    if DIVERGENCE != JSD:
        # A block's terms are relative to its own largest values; here they become relative to the row's.
        cross = tl.load(found.place + CROSS * found.step, mask=found.inside, other=0.0)
        log_ratio = tl.log(ours.tempered) - tl.log(theirs.tempered)
        if DIVERGENCE == FORWARD:
            moved = tl.where(theirs.part == 0, 0.0, theirs.part * (theirs.below - ours.below))
            mean = tl.sum((cross + moved) * exp(theirs.below * inverse), 1) * inverse / theirs.tempered + log_ratio
        else:
            moved = tl.where(ours.part == 0, 0.0, ours.part * (ours.below - theirs.below))
            mean = tl.sum((cross + moved) * exp(ours.below * inverse), 1) * inverse / ours.tempered - log_ratio
    return mean


@triton.jit
def _agrees(found, known, rests, CHOSEN: tl.constexpr, DIVERGENCE: tl.constexpr):
    """Whether of all outcomes, chosen or not, one is the best on both sides; and the teacher's largest mass."""
    top = tl.max(_largest(found, THEIR_TOP), 1)
    best = tl.max(_largest(found, OUR_TOP), 1)
    if DIVERGENCE == REVERSE:
        best = tl.maximum(best, tl.max(_largest(found, APART_TOP), 1))
    best = tl.maximum(best, rests.our_top)
    lost_top = tl.max(_largest(found, LOST_TOP), 1)
    # An outcome's logarithms add up to so much only if both are the largest.
    agrees = known & (tl.max(_largest(found, BOTH_TOP), 1) >= top + best)
    if CHOSEN:
        agrees = agrees & (top >= lost_top)
    return agrees, tl.maximum(top, lost_top)


@triton.jit
def _text_outcome(sides, source, row, real):
    """The teacher's log mass (rows,) of the outcome that the text has."""
    column = field(sides.lists, row, real, TEXT_OUTCOME, -1)
    at = tl.load(source + column, mask=column >= 0, other=-1)
    start = field(sides.lists, row, real, THEIRS, 0)
    alone = (at >= 0) & (at < sides.other_width)
    chosen = scores_at(sides.teacher + start + at, alone)
    return tl.where(alone, chosen, joint_masses_at(sides, row, at - sides.other_width, at >= sides.other_width, 1))


@triton.jit
def _put(kept, rows, row, real, FIELD: tl.constexpr, value):
    tl.store(kept + FIELD * rows.to(tl.int64) + row, value, mask=real)


@triton.jit
def _keep(kept, rows, row, real, some, known, rests):
    """What the next sweeps read; of rows that are not compared so much that all shares are 0."""
    _put(kept, rows, row, real, ROW_OUR_TOP, tl.where(some, known.ours.top, 0.0))
    _put(kept, rows, row, real, ROW_OUR_LOG, tl.where(some, tl.log(known.ours.tempered), ENDLESS))
    _put(kept, rows, row, real, ROW_THEIR_TOP, tl.where(some, known.theirs.top, 0.0))
    _put(kept, rows, row, real, ROW_THEIR_LOG, tl.where(some, tl.log(known.theirs.tempered), ENDLESS))
    _put(kept, rows, row, real, ROW_LOG_INSIDE, tl.where(some, known.log_inside, 0.0))
    _put(kept, rows, row, real, ROW_OUR_REST, rests.ours)
    _put(kept, rows, row, real, ROW_THEIR_REST, rests.theirs)


@triton.jit
def _cross_entropy(found, sides, row, real, nothing):
    """Log of the sum over all of the student's tokens, and the labels' cross-entropies, 0 without a label."""
    whole = _row_sum(found, nothing, 1.0, ALL_TOP, RESTS=False, TEMPERED=False)
    log_all = whole.top + tl.log(whole.total)
    label = field(sides.lists, row, real, LABEL, -1)
    own = scores_at(sides.student + field(sides.lists, row, real, PLAIN, 0) + label, label >= 0)
    return log_all, tl.where(label >= 0, log_all - own, 0.0)


@triton.jit(do_not_specialize=["rows", "chunks", "other_width", "joint", "blocks"])
def close_rows(
    found,
    student,
    teacher,
    masses,
    source,
    lists,
    weight,
    factors,
    kept,
    numbers,
    entropy,
    rows,
    chunks,
    other_width,
    joint,
    blocks,
    temperature,
    DIVERGENCE: tl.constexpr,
    CHOSEN: tl.constexpr,
    TEMPERED: tl.constexpr,
    LABELS: tl.constexpr,
    BY_KEPT: tl.constexpr,
    TEXT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds the blocks of a row up: what is said of its chunk, numbers (6, N), and what the next sweep has to know.

    The first of `factors` is what every chunk's weight is multiplied by in the loss. Grid (tiles of rows,).
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    lane = tl.arange(0, BLOCK)
    inside = real[:, None] & (lane < blocks)[None, :]
    is_rest = real[:, None] & (lane == blocks)[None, :]
    place = found + row[:, None] * blocks + lane[None, :]
    found = Found(place, rows.to(tl.int64) * blocks, inside, is_rest)
    sides = Sides(student, teacher, masses, source, lists, rows, 0, other_width, joint, 0)
    inverse, nothing = 1 / temperature, tl.full((ROWS,), float("-inf"), tl.float32)
    rests = _rests(found, nothing, CHOSEN)
    known = _row(found, rests, inverse, DIVERGENCE, CHOSEN == BEST_OF_TEACHER, TEMPERED)
    mean = _mean(found, known.ours, known.theirs, inverse, DIVERGENCE)
    # Without a distribution on a side, or an outcome that both can give, nothing is compared. Of NaN this is not so.
    chunk = field(lists, row, real, CHUNK, -1)
    their_best = tl.maximum(known.theirs.top, known.lost.top)
    lacks = (known.theirs.tempered == 0) | (their_best <= NOTHING) | (known.our_best <= NOTHING)
    some = (chunk >= 0) & ~lacks
    their_given, log_lost = log_sum(known.theirs.top, known.theirs.total), log_sum(known.lost.top, known.lost.total)
    outside = joint_masses_at(sides, row, joint, real, 1)
    inside_columns = 1 - share(outside, added(their_given, log_lost))
    # A teacher's NaN shows though the student cannot give its outcome.
    factor = temperature * temperature * (inside_columns if BY_KEPT else 1.0)
    factor = tl.where(some, factor + 0 * known.lost.total, 0.0)
    scale = factor / temperature * tl.load(weight + chunk, mask=chunk >= 0, other=0.0) * tl.load(factors)
    agrees, their_top = _agrees(found, some, rests, CHOSEN, DIVERGENCE)
    lost = tl.where(known.our_best <= NOTHING, 1.0, share(log_lost, their_given))
    our_whole = known.our_whole
    if CHOSEN == BEST_OF_STUDENT:
        our_whole = added(our_whole, rests.ours)
    divergence = mean - known.log_inside
    value = tl.where(some, tl.where(divergence < 0, 0.0, divergence) * factor, 0.0)
    out, many, has = numbers + tl.maximum(chunk, 0), chunks.to(tl.int64), chunk >= 0
    tl.store(out + VALUE * many, value, mask=has)
    tl.store(out + AGREES * many, agrees.to(tl.float32), mask=has)
    tl.store(out + DROPPED * many, 1 - inside_columns * (1 - lost), mask=has)
    tl.store(out + EMPTY * many, share(joint_masses_at(sides, row, joint, real, 0), our_whole), mask=has)
    tl.store(out + COMPARED * many, some.to(tl.float32), mask=has)
    if TEXT:
        plausible = exp(_text_outcome(sides, source, row, real) - their_top)
        tl.store(out + PLAUSIBLE * many, tl.where(some, plausible, 0.0), mask=has)
    if LABELS:
        log_all, cross = _cross_entropy(found, sides, row, real, nothing)
        tl.store(entropy + row, cross, mask=real)
        _put(kept, rows, row, real, ROW_LOG_ALL, log_all)
    _keep(kept, rows, row, real, some, known, rests)
    _put(kept, rows, row, real, ROW_MEAN, tl.where(some, mean, 0.0))
    if CHOSEN != BEST_OF_STUDENT:
        odd = tl.load(found.place + ODD * found.step, mask=found.inside, other=0.0)
        _put(kept, rows, row, real, ROW_ODD, tl.max(odd, 1))
    _put(kept, rows, row, real, ROW_SCALE, scale)
    _put(kept, rows, row, real, ROW_FACTOR, factor)


@triton.jit
def _kept(kept, rows, row, real, FIELD: tl.constexpr):
    return tl.load(kept + FIELD * rows.to(tl.int64) + row, mask=real, other=0.0)


@triton.jit(do_not_specialize=["rows", "blocks"])
def close_mixtures(
    found,
    lists,
    kept,
    numbers,
    rows,
    blocks,
    inverse,
    beta,
    CHOSEN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds up what `mixtures` found: the values of chunks, and the mean that the gradient needs.

    Grid (tiles of rows,).
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    lane = tl.arange(0, BLOCK)
    inside = real[:, None] & (lane < blocks)[None, :]
    place = found + row[:, None] * blocks + lane[None, :]
    theirs = tl.sum(tl.load(place, mask=inside, other=0.0), 1)
    ours = tl.sum(tl.load(place + rows.to(tl.int64) * blocks, mask=inside, other=0.0), 1)
    if CHOSEN == BEST_OF_TEACHER:
        # The rest is one outcome more.
        our_rest, their_rest = (
            _kept(kept, rows, row, real, ROW_OUR_REST),
            _kept(kept, rows, row, real, ROW_THEIR_REST),
        )
        possible = our_rest != float("-inf")
        log_q = (our_rest - _kept(kept, rows, row, real, ROW_OUR_TOP)) * inverse
        log_q = tl.where(possible, log_q - _kept(kept, rows, row, real, ROW_OUR_LOG), 0.0)
        log_p = (their_rest - _kept(kept, rows, row, real, ROW_THEIR_TOP)) * inverse
        log_p = log_p - _kept(kept, rows, row, real, ROW_THEIR_LOG)
        log_m = log_mixture(log_p, log_q, beta)
        given = possible & (their_rest != float("-inf"))
        theirs += tl.where(given, exp(log_p) * (log_p - log_m), 0.0)
        ours += tl.where(possible, exp(log_q) * (log_q - log_m), 0.0)
    value = beta * theirs + (1 - beta) * ours
    factor = _kept(kept, rows, row, real, ROW_FACTOR)
    chunk = field(lists, row, real, CHUNK, -1)
    result = tl.where(factor == 0, 0.0, tl.where(value < 0, 0.0, value) * factor)
    tl.store(numbers + VALUE + tl.maximum(chunk, 0), result, mask=chunk >= 0)
    _put(kept, rows, row, real, ROW_MEAN, ours)


TOTALS = 10
"""How many numbers `totals` gives beside the loss."""


@triton.jit
def _total(values, weight, number, here, so_far):
    return so_far + tl.load(values + number, mask=here, other=0.0) * weight


@triton.jit(do_not_specialize=["chunks", "rows"])
def totals(numbers, entropy, weight, factors, loss, out, chunks, rows, BLOCK: tl.constexpr):
    """What all chunks' numbers and all rows' cross-entropies add up to, in one order: loss (), out (TOTALS,).

    Args:
        numbers: float32 (6, chunks).
        entropy: float32 (rows,).
        weight: float32 (chunks,).
        factors: float32 (4,), of the weighted values and the cross-entropies in the loss, and in the means.
        loss: see `inputs.Totals`.
        out: what follows there.
        chunks: how many there are.
        rows: how many cross-entropies there are.
        BLOCK: how many are read at once.

    One program.
    """
    lane = tl.arange(0, BLOCK)
    many = chunks.to(tl.int64)
    zero = tl.full((BLOCK,), 0.0, tl.float32)
    value, agrees, dropped, empty, compared, used, count, cross = zero, zero, zero, zero, zero, zero, zero, zero
    for at in range(0, chunks, BLOCK):
        number, here = at + lane, at + lane < chunks
        own = tl.load(weight + number, mask=here, other=0.0)
        value = _total(numbers + VALUE * many, own, number, here, value)
        agrees = _total(numbers + AGREES * many, own, number, here, agrees)
        dropped = _total(numbers + DROPPED * many, own, number, here, dropped)
        empty = _total(numbers + EMPTY * many, own, number, here, empty)
        compared = _total(numbers + COMPARED * many, own, number, here, compared)
        count = _total(numbers + COMPARED * many, (own > 0).to(tl.float32), number, here, count)
        used += own
    for at in range(0, rows, BLOCK):
        cross += tl.load(entropy + at + lane, mask=at + lane < rows, other=0.0)
    kd, entropies = tl.sum(value, 0), tl.sum(cross, 0)
    tl.store(loss, kd * tl.load(factors) + entropies * tl.load(factors + 1))
    tl.store(out, kd)
    tl.store(out + 1, entropies)
    tl.store(out + 2, kd * tl.load(factors + 2))
    tl.store(out + 3, entropies * tl.load(factors + 3))
    tl.store(out + 4, tl.sum(used, 0))
    tl.store(out + 5, tl.sum(agrees, 0))
    tl.store(out + 6, tl.sum(dropped, 0))
    tl.store(out + 7, tl.sum(empty, 0))
    tl.store(out + 8, tl.sum(compared, 0))
    tl.store(out + 9, tl.sum(count, 0))
