"""The sweeps over outcomes: what adds up over a row, and the gradient.

A forward or reverse KL takes two: `sums`, then `gradients`. A JSD takes `mixtures` between them, so three, and with
rows that are longer than what a program can keep no arrangement takes fewer. After one sweep a bounded number of sums
per row is known, made without the row's normalisers log S and log R. Let outcome b have the logits x and y. Its term
f(x - log S, y - log R) holds log(beta exp(y - log R) + (1 - beta) exp(x - log S)), and as functions of (x, y) these are
linearly independent for different log R - log S, so that no finite set of sums gives the value for all of them: it
takes a second sweep. A gradient's entry is Q (log Q - log M - mean), where the mean is known when the second sweep is
over, so that entries can be written in a third. (Writing Q (log Q - log M) in the second one and taking the mean's part
away later is a third sweep, too, over the gradient.) Without a gradient a JSD takes two sweeps.

Nearly all rows are *plain*: both sides can have every outcome. Their blocks ask nothing of single outcomes, which takes
half of the instructions. A block where this is not so shows it by a sum that is infinite or NaN; it is added up once
more with care, and so is the gradient of its row made.

Source: online softmax, Milakov and Gimelshein (2018).
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-not-found, import-untyped"
# ruff: noqa: ANN001, ANN201, ANN202, N803 - a kernel takes plain pointers and numbers, many of them

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .read import (
    BEST_OF_STUDENT,
    BEST_OF_TEACHER,
    FORWARD,
    LABEL,
    LOG2_E,
    LOWEST,
    OUT,
    PLAIN,
    REVERSE,
    Sides,
    are_chosen,
    compared,
    exp,
    field,
    joint_masses_at,
    log_mixture,
    outcomes,
    partners,
    places_of,
    scores_at,
    start_of,
    tile_of,
)

# What `sums` finds of a block of columns, each (n, blocks). The student's outcomes are those that it can give; in a
# reverse KL those that the teacher can give too, and the others apart.
OUR_TOP = tl.constexpr(0)
OUR_SUM = tl.constexpr(1)
OUR_TEMPERED = tl.constexpr(2)
THEIR_TOP = tl.constexpr(3)
THEIR_SUM = tl.constexpr(4)
THEIR_TEMPERED = tl.constexpr(5)
LOST_TOP = tl.constexpr(6)
LOST_SUM = tl.constexpr(7)
BOTH_TOP = tl.constexpr(8)
CROSS = tl.constexpr(9)
APART_TOP = tl.constexpr(10)
APART_SUM = tl.constexpr(11)
APART_TEMPERED = tl.constexpr(12)
ALL_TOP = tl.constexpr(13)
ALL_SUM = tl.constexpr(14)
OUR_REST_TOP = tl.constexpr(15)
OUR_REST_SUM = tl.constexpr(16)
THEIR_REST_TOP = tl.constexpr(17)
THEIR_REST_SUM = tl.constexpr(18)
ODD = tl.constexpr(19)
"""1 where the block is not plain."""
SUMS = 20
"""How many these are."""

# What is kept of a row for the sweeps after the first, each (n,).
ROW_OUR_TOP = tl.constexpr(0)
ROW_OUR_LOG = tl.constexpr(1)
ROW_THEIR_TOP = tl.constexpr(2)
ROW_THEIR_LOG = tl.constexpr(3)
ROW_MEAN = tl.constexpr(4)
ROW_LOG_INSIDE = tl.constexpr(5)
ROW_SCALE = tl.constexpr(6)
ROW_FACTOR = tl.constexpr(7)
ROW_LOG_ALL = tl.constexpr(8)
ROW_OUR_REST = tl.constexpr(9)
ROW_THEIR_REST = tl.constexpr(10)
ROW_ODD = tl.constexpr(11)
KEPT = 12
"""How many these are."""

LEAST_SHARE = tl.constexpr(1.0e-37)
"""Where both sides' shares are less than that, so is what they add to a JSD or its slope."""


class BlockSum(NamedTuple):
    """Values of a block that count, (rows,) each but for the last two.

    Attributes:
        top: the largest.
        total: the sum of their exponentials relative to it.
        tempered: the same of the values over T.
        above: (rows, BLOCK), every value relative to the largest.
        parts: (rows, BLOCK), what each adds to `tempered`.
    """

    top: Any
    total: Any
    tempered: Any
    above: Any
    parts: Any


@triton.jit
def _block_sum(values, counts, inverse, TEMPERED: tl.constexpr):
    top = tl.maximum(tl.max(tl.where(counts, values, LOWEST), 1), LOWEST)
    above = values - top[:, None]
    parts = tl.where(counts, exp(above), 0.0)
    total = tl.sum(parts, 1)
    tempered = total
    if TEMPERED:
        parts = tl.where(counts, exp(above * inverse), 0.0)
        tempered = tl.sum(parts, 1)
    return BlockSum(top, total, tempered, above, parts)


class Cell(NamedTuple):
    """Where the sums of a tile's block are stored: the first one's place, how far the others lie apart, real rows."""

    place: Any
    step: Any
    real: Any


@triton.jit
def _put(cell, FIELD: tl.constexpr, value):
    tl.store(cell.place + FIELD * cell.step, value, mask=cell.real)


@triton.jit
def _put_rare(cell, values, counts, inverse, TOP: tl.constexpr, TEMPERED: tl.constexpr):
    """Stores the sum of what is seldom there: its largest, its sum, and if `TEMPERED` that at T."""
    top = tl.full((counts.shape[0],), LOWEST, tl.float32)
    total = tl.full((counts.shape[0],), 0.0, tl.float32)
    tempered = total
    if tl.max(tl.max(counts.to(tl.int32), 1), 0) > 0:
        whole = _block_sum(values, counts, inverse, TEMPERED)
        top, total, tempered = whole.top, whole.total, whole.tempered
    _put(cell, TOP, top)
    _put(cell, TOP + 1, total)
    if TEMPERED:
        _put(cell, TOP + 2, tempered)


class PlainSum(NamedTuple):
    """Values of a block as `_block_sum` has them, and of what is not chosen the sum and the largest, (rows,) each.

    Attributes:
        spread: how far the least value lies below the largest; 0 unless some are chosen.
    """

    top: Any
    total: Any
    tempered: Any
    above: Any
    parts: Any
    rest_top: Any
    rest: Any
    spread: Any


@triton.jit
def _plain_sum(values, there, chosen, inverse, CHOSEN: tl.constexpr, TEMPERED: tl.constexpr):
    """Sums of a plain block, where LOWEST stands for places that are no outcomes."""
    top = tl.maximum(tl.max(values, 1), LOWEST)
    above = values - top[:, None]
    parts = exp(above)
    rest, spread = tl.full((values.shape[0],), 0.0, tl.float32), tl.full((values.shape[0],), 0.0, tl.float32)
    if CHOSEN:
        rest = tl.where(top == LOWEST, 0.0, tl.sum(tl.where(chosen, 0.0, parts), 1))
        parts = tl.where(chosen, parts, 0.0)
        spread = tl.max(tl.where(there[None, :], -above, 0.0), 1)
    # Relative to LOWEST itself nothing would be 1.
    total = tl.where(top == LOWEST, 0.0, tl.sum(parts, 1))
    tempered = total
    if TEMPERED:
        parts = exp(above * inverse)
        if CHOSEN:
            parts = tl.where(chosen, parts, 0.0)
        tempered = tl.where(top == LOWEST, 0.0, tl.sum(parts, 1))
    rest_top = tl.where(rest > 0, top, LOWEST)
    return PlainSum(tl.where(total > 0, top, LOWEST), total, tempered, above, parts, rest_top, rest, spread)


@triton.jit
def _put_plain(
    cell,
    ours,
    theirs,
    there,
    chosen,
    inverse,
    DIVERGENCE: tl.constexpr,
    CHOSEN: tl.constexpr,
    TEMPERED: tl.constexpr,
):
    """Stores a block's sums as if it were plain, and says whether it is not: -inf on either side, or NaN, makes the sum
    `CROSS` infinite or NaN.
    """
    our_sum = _plain_sum(ours, there, chosen, inverse, CHOSEN, TEMPERED)
    their_sum = _plain_sum(theirs, there, chosen, inverse, CHOSEN, TEMPERED)
    difference = their_sum.above - our_sum.above
    cross = tl.sum(-our_sum.parts * difference if DIVERGENCE == REVERSE else their_sum.parts * difference, 1)
    odd = ~(tl.abs(cross) < -LOWEST)
    _put(cell, OUR_TOP, our_sum.top)
    _put(cell, OUR_SUM, our_sum.total)
    _put(cell, THEIR_TOP, their_sum.top)
    _put(cell, THEIR_SUM, their_sum.total)
    _put(cell, BOTH_TOP, tl.max(ours + theirs, 1))
    _put(cell, CROSS, cross)
    if TEMPERED:
        _put(cell, OUR_TEMPERED, our_sum.tempered)
        _put(cell, THEIR_TEMPERED, their_sum.tempered)
    nothing = tl.full((ours.shape[0],), 0.0, tl.float32)
    _put(cell, LOST_TOP, nothing + LOWEST)
    _put(cell, LOST_SUM, nothing)
    if DIVERGENCE == REVERSE:
        _put(cell, APART_TOP, nothing + LOWEST)
        _put(cell, APART_SUM, nothing)
        _put(cell, APART_TEMPERED, nothing)
    if CHOSEN:
        _put(cell, OUR_REST_TOP, our_sum.rest_top)
        _put(cell, OUR_REST_SUM, our_sum.rest)
        _put(cell, THEIR_REST_TOP, their_sum.rest_top)
        _put(cell, THEIR_REST_SUM, their_sum.rest)
        # What is further below the largest than that would be lost beside it.
        odd |= tl.maximum(our_sum.spread, their_sum.spread) * tl.maximum(inverse, 1.0) > 80
    _put(cell, ODD, odd.to(tl.float32))
    return tl.max(odd.to(tl.int32), 0) > 0


@triton.jit
def _put_outcomes(cell, ours, theirs, inverse, DIVERGENCE: tl.constexpr, TEMPERED: tl.constexpr):
    """Stores the sums of what both sides or the student can give."""
    # Comparisons with -inf are False for NaN, which so counts as an outcome and shows in the loss.
    possible = ours != float("-inf")
    given = possible & (theirs != float("-inf"))
    our_sum = _block_sum(ours, given if DIVERGENCE == REVERSE else possible, inverse, TEMPERED)
    their_sum = _block_sum(theirs, given, inverse, TEMPERED)
    _put(cell, OUR_TOP, our_sum.top)
    _put(cell, OUR_SUM, our_sum.total)
    _put(cell, THEIR_TOP, their_sum.top)
    _put(cell, THEIR_SUM, their_sum.total)
    _put(cell, BOTH_TOP, tl.max(tl.where(given, ours + theirs, LOWEST), 1))
    if TEMPERED:
        _put(cell, OUR_TEMPERED, our_sum.tempered)
        _put(cell, THEIR_TEMPERED, their_sum.tempered)
    if DIVERGENCE == FORWARD:
        cross = their_sum.parts * (their_sum.above - our_sum.above)
        _put(cell, CROSS, tl.sum(tl.where(given, cross, 0.0), 1))
    if DIVERGENCE == REVERSE:
        cross = our_sum.parts * (our_sum.above - their_sum.above)
        _put(cell, CROSS, tl.sum(tl.where(given, cross, 0.0), 1))
        _put_rare(cell, ours, possible & (theirs == float("-inf")), inverse, APART_TOP, TEMPERED=True)


@triton.jit(do_not_specialize=["rows", "other_width", "joint", "token_blocks", "blocks"])
def sums(
    student,
    teacher,
    masses,
    code,
    lists,
    threshold,
    out,
    rows,
    width,
    other_width,
    joint,
    token_blocks,
    blocks,
    inverse,
    DIVERGENCE: tl.constexpr,
    CHOSEN: tl.constexpr,
    TEMPERED: tl.constexpr,
    LABELS: tl.constexpr,
    BOTH: tl.constexpr,
    OUR_ALIGNED: tl.constexpr,
    THEIR_ALIGNED: tl.constexpr,
    COPIES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The first sweep: what of a block of outcomes adds up over a row; out (SUMS, n, blocks).

    Grid (tiles of rows * blocks,).
    """
    block = tl.program_id(0) % blocks
    sides = Sides(student, teacher, masses, code, lists, rows, width, other_width, joint, token_blocks)
    tile = tile_of(sides, tl.program_id(0) // blocks, OUR_ALIGNED, THEIR_ALIGNED, ROWS)
    ours, theirs, there, logits = outcomes(sides, tile, block, BLOCK)
    cell = Cell(out + tile.row * blocks + block, rows.to(tl.int64) * blocks, tile.real)
    chosen = there[None, :]
    if CHOSEN:
        chosen = are_chosen(ours, theirs, threshold, tile, places_of(sides, block, BLOCK), CHOSEN)
    odd = True
    if CHOSEN != BEST_OF_STUDENT:
        odd = _put_plain(cell, ours, theirs, there, chosen, inverse, DIVERGENCE, CHOSEN, TEMPERED)
    if odd:
        ours, theirs = compared(ours, theirs, there, tile, BOTH)
        lost = (theirs != float("-inf")) & (ours == float("-inf"))
        if CHOSEN:
            # What is not chosen becomes one outcome, or with the student's best is lost to the teacher.
            rest = _block_sum(ours, (ours != float("-inf")) & ~chosen, inverse, TEMPERED=False)
            _put(cell, OUR_REST_TOP, rest.top)
            _put(cell, OUR_REST_SUM, rest.total)
            ours = tl.where(chosen, ours, float("-inf"))
            lost = (theirs != float("-inf")) & (ours == float("-inf"))
            if CHOSEN == BEST_OF_TEACHER:
                rest = _block_sum(theirs, (theirs != float("-inf")) & ~chosen, inverse, TEMPERED=False)
                _put(cell, THEIR_REST_TOP, rest.top)
                _put(cell, THEIR_REST_SUM, rest.total)
                theirs = tl.where(chosen, theirs, float("-inf"))
                lost = lost & chosen
        _put_outcomes(cell, ours, theirs, inverse, DIVERGENCE, TEMPERED)
        # What one side alone can give is rare, so it is summed apart.
        _put_rare(cell, theirs, lost, inverse, LOST_TOP, TEMPERED=False)
    if LABELS:
        token = block * BLOCK + tl.arange(0, BLOCK)
        logits = _plain_logits(sides, tile.row, tile.real, token, logits, tile.ours, COPIES)
        top = tl.maximum(tl.max(logits, 1), LOWEST)
        _put(cell, ALL_TOP, top)
        _put(cell, ALL_SUM, tl.sum(exp(logits - top[:, None]), 1))


@triton.jit
def _plain_logits(sides, row, real, token, logits, start, COPIES: tl.constexpr):
    """The student's logits as they are, where a label is and the line points to a copy that leaves something out."""
    if COPIES:
        plain = field(sides.lists, row, real, PLAIN, 0)
        elsewhere = real & (plain != start) & (field(sides.lists, row, real, LABEL, -1) >= 0)
        mask = elsewhere[:, None] & (token < sides.width)[None, :]
        logits = tl.where(elsewhere[:, None], scores_at(sides.student + plain[:, None] + token[None, :], mask), logits)
    return logits


@triton.jit
def _row(kept, sides, tile, FIELD: tl.constexpr):
    """One of the numbers that are kept of rows, as a column beside the rows' outcomes."""
    return tl.load(kept + FIELD * sides.rows.to(tl.int64) + tile.row, mask=tile.real, other=0.0)[:, None]


@triton.jit
def _log_shares(kept, sides, tile, ours, theirs, inverse):
    """Both sides' log masses normalised at T: log Q and log P."""
    log_q = (ours - _row(kept, sides, tile, ROW_OUR_TOP)) * inverse - _row(kept, sides, tile, ROW_OUR_LOG)
    log_p = (theirs - _row(kept, sides, tile, ROW_THEIR_TOP)) * inverse - _row(kept, sides, tile, ROW_THEIR_LOG)
    return log_q, log_p


@triton.jit(do_not_specialize=["rows", "other_width", "joint", "token_blocks", "blocks"])
def mixtures(
    student,
    teacher,
    masses,
    code,
    lists,
    threshold,
    kept,
    out,
    rows,
    width,
    other_width,
    joint,
    token_blocks,
    blocks,
    inverse,
    beta,
    CHOSEN: tl.constexpr,
    BOTH: tl.constexpr,
    OUR_ALIGNED: tl.constexpr,
    THEIR_ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sums over a block of P (log P - log M) and of Q (log Q - log M): out (2, n, blocks); the grid is that of
    `sums`.
    """
    block = tl.program_id(0) % blocks
    sides = Sides(student, teacher, masses, code, lists, rows, width, other_width, joint, token_blocks)
    tile = tile_of(sides, tl.program_id(0) // blocks, OUR_ALIGNED, THEIR_ALIGNED, ROWS)
    ours, theirs, there, _ = outcomes(sides, tile, block, BLOCK)
    their_terms, our_terms = tl.full((ROWS,), 0.0, tl.float32), tl.full((ROWS,), 0.0, tl.float32)
    odd = True
    if not CHOSEN:
        odd = _some_odd(kept, rows, tile)
    if odd:
        ours, theirs = compared(ours, theirs, there, tile, BOTH)
        if CHOSEN:
            chosen = are_chosen(ours, theirs, threshold, tile, places_of(sides, block, BLOCK), CHOSEN)
            ours = tl.where(chosen, ours, float("-inf"))
        possible = ours != float("-inf")
        log_q, log_p = _log_shares(kept, sides, tile, ours, theirs, inverse)
        log_q = tl.where(possible, log_q, 0.0)
        log_m = log_mixture(log_p, log_q, beta)
        given = possible & (theirs != float("-inf"))
        their_terms = tl.sum(tl.where(given, exp(log_p) * (log_p - log_m), 0.0), 1)
        our_terms = tl.sum(tl.where(possible, exp(log_q) * (log_q - log_m), 0.0), 1)
    else:
        # Where nothing is, both shares are 0, and so is what stands beside them as long as it is finite.
        log_q, log_p = _log_shares(kept, sides, tile, ours, theirs, inverse)
        log_q, log_p = tl.maximum(log_q, -1.0e30), tl.maximum(log_p, -1.0e30)
        q, p = exp(log_q), exp(log_p)
        log_m = tl.log(tl.maximum(beta * p + (1 - beta) * q, LEAST_SHARE))
        their_terms, our_terms = tl.sum(p * (log_p - log_m), 1), tl.sum(q * (log_q - log_m), 1)
    cell = Cell(out + tile.row * blocks + block, rows.to(tl.int64) * blocks, tile.real)
    _put(cell, 0, their_terms)
    _put(cell, 1, our_terms)


@triton.jit
def _some_odd(kept, rows, tile):
    """Whether a row is not plain. Beside rows that there are not, one has to be careful, too."""
    return tl.max(tl.load(kept + ROW_ODD * rows.to(tl.int64) + tile.row, mask=tile.real, other=1.0), 0) > 0


@triton.jit
def slopes_of(log_q, log_p, given, mean, log_inside, beta, DIVERGENCE: tl.constexpr):
    """What a divergence changes by with an outcome's log mass, over T."""
    if DIVERGENCE == FORWARD:
        slope = exp(log_q) - exp(log_p)
    elif DIVERGENCE == REVERSE:
        # What the teacher cannot give costs what it has of the student's mass.
        centred = exp(log_q) * (log_q - log_p - mean - 1 + exp(log_inside))
        slope = tl.where(given, centred, exp(log_q + log_inside))
    else:
        slope = (1 - beta) * exp(log_q) * (log_q - log_mixture(log_p, log_q, beta) - mean)
    return slope


@triton.jit
def _label_slopes(sides, tile, token, logits, kept, factors, first, BLOCK: tl.constexpr):
    """What the labels' cross-entropy adds."""
    label = field(sides.lists, tile.row, tile.real, LABEL, -1)
    factor = tl.load(factors + 1)
    change = factor * exp(logits - _row(kept, sides, tile, ROW_LOG_ALL))
    # Few blocks hold a label.
    if tl.max(((label >= first) & (label < first + BLOCK)).to(tl.int32), 0) > 0:
        change -= tl.where(token[None, :] == label[:, None], factor, 0.0)
    return tl.where((label >= 0)[:, None], change, 0.0)


@triton.jit
def _are_chosen_at(sides, tile, token, partner, alone, ours, theirs, threshold, CHOSEN: tl.constexpr):
    """Which tokens' outcomes are among the best."""
    place = tl.where(alone, token, sides.width + partner - sides.other_width)
    return are_chosen(ours, theirs, threshold, tile, place, CHOSEN)


@triton.jit
def _careful_slopes(
    sides,
    tile,
    token,
    logits,
    partner,
    alone,
    kept,
    threshold,
    inverse,
    beta,
    DIVERGENCE: tl.constexpr,
    CHOSEN: tl.constexpr,
    BOTH: tl.constexpr,
):
    """`_plain_slopes` of any rows."""
    ours, theirs = _outcomes_of_tokens(sides, tile, logits, partner, alone)
    counts = tile.compares[:, None] & (partner >= 0)[None, :] & (logits != float("-inf"))
    if BOTH:
        counts = counts & (theirs != float("-inf"))
    itself = alone[None, :] & counts
    if CHOSEN:
        chosen = _are_chosen_at(sides, tile, token, partner, alone, ours, theirs, threshold, CHOSEN)
        if CHOSEN == BEST_OF_TEACHER:
            # What is not chosen has its share of the rest.
            ours = tl.where(chosen, ours, _row(kept, sides, tile, ROW_OUR_REST))
            theirs = tl.where(chosen, theirs, _row(kept, sides, tile, ROW_THEIR_REST))
            itself = itself & chosen
        else:
            counts = counts & chosen
    ours = tl.where(counts, ours, 0.0)
    part = tl.where(itself, 1.0, exp(tl.where(counts, logits, 0.0) - ours))
    log_q, log_p = _log_shares(kept, sides, tile, ours, theirs, inverse)
    mean = _row(kept, sides, tile, ROW_MEAN)
    log_inside = _row(kept, sides, tile, ROW_LOG_INSIDE)
    slope = slopes_of(log_q, log_p, theirs != float("-inf"), mean, log_inside, beta, DIVERGENCE)
    scale = _row(kept, sides, tile, ROW_SCALE)
    return tl.where(counts & (scale != 0), scale * slope * part, 0.0)


@triton.jit
def _plain_slopes(
    sides,
    tile,
    token,
    logits,
    partner,
    alone,
    kept,
    threshold,
    inverse,
    beta,
    DIVERGENCE: tl.constexpr,
    CHOSEN: tl.constexpr,
):
    """What the value changes by with each logit, (rows, BLOCK), in plain rows.

    A token has the share exp(z - x) of its outcome's slope, x and y being the outcome's log masses, and alone it is its
    outcome, x = z. Exponents of 2 spare multiplications: with the shares q = 2^(log_q) and p = 2^(log_p) of an
    outcome, a token's parts of them are 2^(log_q + part) and 2^(log_p + part).
    """
    # Teacher's tokens and joint columns are read where a token has them, else 0.
    theirs = tl.load(sides.teacher + tile.theirs[:, None] + partner[None, :], mask=alone[None, :], other=0.0)
    shared, column = (partner >= sides.other_width)[None, :], (partner - sides.other_width)[None, :]
    their_joint = joint_masses_at(sides, tile.row[:, None], column, shared, 1, 0.0)
    theirs = tl.where(alone[None, :], theirs.to(tl.float32), their_joint)
    ours = tl.where(alone[None, :], logits, joint_masses_at(sides, tile.row[:, None], column, shared, 0, 0.0))
    if CHOSEN:
        # What is not chosen has its share of the rest.
        chosen = _are_chosen_at(sides, tile, token, partner, alone, ours, theirs, threshold, CHOSEN)
        ours = tl.where(chosen, ours, _row(kept, sides, tile, ROW_OUR_REST))
        theirs = tl.where(chosen, theirs, _row(kept, sides, tile, ROW_THEIR_REST))
    part, steepness = (logits - ours) * LOG2_E, inverse * LOG2_E
    log_q = (ours - _row(kept, sides, tile, ROW_OUR_TOP)) * steepness - _row(kept, sides, tile, ROW_OUR_LOG) * LOG2_E
    log_p = (theirs - _row(kept, sides, tile, ROW_THEIR_TOP)) * steepness
    log_p -= _row(kept, sides, tile, ROW_THEIR_LOG) * LOG2_E
    our_part = tl.exp2(log_q + part)
    if DIVERGENCE == FORWARD:
        slope = our_part - tl.exp2(log_p + part)
    elif DIVERGENCE == REVERSE:
        slope = our_part * ((log_q - log_p) / LOG2_E - _row(kept, sides, tile, ROW_MEAN))
    else:
        mixture = tl.maximum(beta * tl.exp2(log_p) + (1 - beta) * tl.exp2(log_q), LEAST_SHARE)
        slope = (1 - beta) * our_part * (log_q / LOG2_E - tl.log(mixture) - _row(kept, sides, tile, ROW_MEAN))
    return tl.where((partner >= 0)[None, :], slope * _row(kept, sides, tile, ROW_SCALE), 0.0)


@triton.jit(do_not_specialize=["rows", "lines", "other_width", "joint", "blocks"])
def gradients(
    student,
    teacher,
    masses,
    code,
    lists,
    threshold,
    kept,
    factors,
    out,
    rows,
    lines,
    width,
    other_width,
    joint,
    blocks,
    inverse,
    beta,
    DIVERGENCE: tl.constexpr,
    CHOSEN: tl.constexpr,
    LABELS: tl.constexpr,
    BOTH: tl.constexpr,
    OUR_ALIGNED: tl.constexpr,
    THEIR_ALIGNED: tl.constexpr,
    OUT_ALIGNED: tl.constexpr,
    COPIES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The last sweep: the gradient of a block of the student's tokens, in the dtype of `out`.

    A token has its share of its outcome's slope, exp(z - log mass). With P, Q the distributions of outcomes the slope
    is T times Q - P (forward), Q (log Q - log P - mean) (reverse), (1 - beta) Q (log Q - log M - mean) (JSD). Every
    token's place is written, 0 where nothing is compared. The second of `factors` is what a label's cross-entropy is
    multiplied by. Grid (tiles of lines * blocks,).
    """
    block = tl.program_id(0) % blocks
    sides = Sides(student, teacher, masses, code, lists, rows, width, other_width, joint, blocks)
    tile = tile_of(sides, tl.program_id(0) // blocks, OUR_ALIGNED, THEIR_ALIGNED, ROWS)
    token = block * BLOCK + tl.arange(0, BLOCK)
    change = tl.full((ROWS, BLOCK), 0.0, tl.float32)
    # Lines beyond the rows have no chunk and no label: their gradient is 0.
    if tl.max(tile.real.to(tl.int32), 0) > 0:
        logits = scores_at(sides.student + tile.ours[:, None] + token[None, :], (token < width)[None, :])
        partner, alone = partners(sides, token)
        odd = True
        if CHOSEN != BEST_OF_STUDENT:
            odd = _some_odd(kept, rows, tile)
        if odd:
            change = _careful_slopes(
                sides, tile, token, logits, partner, alone, kept, threshold, inverse, beta, DIVERGENCE, CHOSEN, BOTH
            )
        else:
            change = _plain_slopes(
                sides, tile, token, logits, partner, alone, kept, threshold, inverse, beta, DIVERGENCE, CHOSEN
            )
        if LABELS:
            logits = _plain_logits(sides, tile.row, tile.real, token, logits, tile.ours, COPIES)
            change += _label_slopes(sides, tile, token, logits, kept, factors, block * BLOCK, BLOCK)
    real = tile.row < lines
    start = start_of(lists, tile.row, real, OUT, OUT_ALIGNED)
    here = real[:, None] & (token < width)[None, :]
    tl.store(out + start[:, None] + token[None, :], change.to(out.dtype.element_ty), mask=here)


@triton.jit
def _outcomes_of_tokens(sides, tile, logits, partner, alone):
    """Both sides' log masses of the outcome that each of the student's tokens is in; any where it is in none."""
    mask = tile.compares[:, None] & alone[None, :]
    theirs = scores_at(sides.teacher + tile.theirs[:, None] + partner[None, :], mask)
    shared = tile.compares[:, None] & (partner >= sides.other_width)[None, :]
    column = (partner - sides.other_width)[None, :]
    our_joint = joint_masses_at(sides, tile.row[:, None], column, shared, 0)
    their_joint = joint_masses_at(sides, tile.row[:, None], column, shared, 1)
    return tl.where(alone[None, :], logits, our_joint), tl.where(alone[None, :], theirs, their_joint)


@triton.jit(do_not_specialize=["count"])
def multiplied(values, factor, count, BLOCK: tl.constexpr):
    """The values times a number, in their place; nothing is read where it is 1, as it is in most trainings."""
    by = tl.load(factor).to(tl.float32)
    if by != 1:
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(values + place, mask=place < count, other=0.0)
        tl.store(values + place, (value.to(tl.float32) * by).to(values.dtype.element_ty), mask=place < count)
