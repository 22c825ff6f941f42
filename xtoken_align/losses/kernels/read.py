"""What every kernel reads: lines of rows, outcomes of both sides, and which of these are chosen.

Logits are read where they lie, in their own dtype. A program handles some columns of some rows, a *tile*, so that what
says which token belongs to which outcome is read once for several rows. Sums are made in one order whatever the device
does first, so that equal inputs give equal bits.

Every row is described by its line in `lists`, int64 (n, LISTED), whose fields are named below. Rows without a chunk and
a label, which are only to get a gradient of 0, follow after those that the sums are made of.
"""

# Arguments are pointers and numbers of Triton's own, for which there are no types; those that it compiles for are in
# capitals, as is usual there.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-not-found, import-untyped"
# ruff: noqa: ANN001, ANN201, N803 - a kernel takes plain pointers and numbers, many of them

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.0e38)
"""Stands for -inf where differences are taken, since that of two infinities is no number."""

LOG2_E = tl.constexpr(1.4426950408889634)

FORWARD = tl.constexpr(0)
REVERSE = tl.constexpr(1)
JSD = tl.constexpr(2)

# The fields of a line.
OURS = tl.constexpr(0)
"""Where the student's logits begin, in elements."""
THEIRS = tl.constexpr(1)
"""Where the teacher's do."""
OUT = tl.constexpr(2)
"""Where the row's gradient begins."""
CHUNK = tl.constexpr(3)
"""The row's chunk, -1 for none."""
LABEL = tl.constexpr(4)
"""The token that the row is to predict, negative for none."""
TEXT_OUTCOME = tl.constexpr(5)
"""The outcome that the text has, -1 where nobody asks."""
PLAIN = tl.constexpr(6)
"""Where the student's logits begin for the label, which leaves nothing out; elsewhere `OURS` may point to a copy."""
LISTED = tl.constexpr(7)
"""How many fields there are."""

BEST_OF_TEACHER = tl.constexpr(1)
BEST_OF_STUDENT = tl.constexpr(2)
"""Which outcomes are compared: the teacher's best, all others as one rest, or the student's best and no others."""


class Sides(NamedTuple):
    """Both sides' logits, and what tells tokens from outcomes.

    Attributes:
        student: logits.
        teacher: logits.
        masses: float32 (2, n, joint + 1), both sides' log masses of the joint columns and of what is in no column.
        code: int32 (width,), of each student token the teacher's token of its outcome where both are alone there,
            other_width + the number of the joint column elsewhere, -1 for tokens in none.
        lists: the rows' lines.
        rows: n, the rows that have a chunk or a label.
        width: the student's.
        other_width: the teacher's.
        joint: how many joint columns there are.
        token_blocks: how many blocks the student's tokens make; further blocks go along the joint columns.
    """

    student: Any
    teacher: Any
    masses: Any
    code: Any
    lists: Any
    rows: Any
    width: Any
    other_width: Any
    joint: Any
    token_blocks: Any


class Tile(NamedTuple):
    """Some rows: their numbers, which of them there are, which have a chunk, and where each one's logits begin."""

    row: Any
    real: Any
    compares: Any
    ours: Any
    theirs: Any


@triton.jit
def exp(value):
    """e^value, 0 where that is less than 1e-38: one multiplication and one instruction, where `tl.exp` takes five."""
    return tl.exp2(value * LOG2_E)


@triton.jit
def log_sum(top, total):
    """The logarithm of a sum that is relative to its largest, -inf where it is of nothing."""
    return tl.where(total == 0, float("-inf"), top + tl.log(total))


@triton.jit
def added(one, other):
    """log(exp(one) + exp(other)), -inf of nothing."""
    top = tl.maximum(tl.maximum(one, other), LOWEST)
    return log_sum(top, exp(one - top) + exp(other - top))


@triton.jit
def share(part, whole):
    """exp(part) / (exp(part) + exp(whole)) of two logarithms, 0 of nothing."""
    return tl.where(part == float("-inf"), 0.0, 1 / (1 + exp(whole - part)))


@triton.jit
def log_mixture(log_p, log_q, beta):
    """log(beta exp(log_p) + (1 - beta) exp(log_q)) of numbers of which one at least is above -inf."""
    log_p, log_q = log_p + tl.log(beta), log_q + tl.log(1 - beta)
    top = tl.maximum(log_p, log_q)
    return top + tl.log(exp(log_p - top) + exp(log_q - top))


@triton.jit
def scores_at(pointer, mask):
    """Logits as float32, -inf where there is none."""
    return tl.load(pointer, mask=mask, other=float("-inf")).to(tl.float32)


@triton.jit
def field(lists, row, real, FIELD: tl.constexpr, nothing):
    """One field of the rows' lines, `nothing` for rows that there are not."""
    return tl.load(lists + row * LISTED + FIELD, mask=real, other=nothing)


@triton.jit
def start_of(lists, row, real, FIELD: tl.constexpr, ALIGNED: tl.constexpr):
    """Where rows begin, which is a multiple of 16 if `ALIGNED`."""
    start = field(lists, row, real, FIELD, 0)
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    return start


@triton.jit
def tile_of(sides, number, OUR_ALIGNED: tl.constexpr, THEIR_ALIGNED: tl.constexpr, ROWS: tl.constexpr):
    """The rows of the tile with this number."""
    row = number.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < sides.rows
    compares = real & (field(sides.lists, row, real, CHUNK, -1) >= 0)
    ours = start_of(sides.lists, row, real, OURS, OUR_ALIGNED)
    return Tile(row, real, compares, ours, start_of(sides.lists, row, real, THEIRS, THEIR_ALIGNED))


@triton.jit
def joint_masses_at(sides, row, column, mask, SIDE: tl.constexpr, nothing=float("-inf")):
    """Log masses of joint columns of one side, the student's if `SIDE` is 0; `nothing` where there is none."""
    # A tile's last rows need not exist; what is read for them is not used.
    begin = tl.minimum(row, sides.rows - 1) + SIDE * sides.rows.to(tl.int64)
    return tl.load(sides.masses + begin * (sides.joint + 1) + column, mask=mask, other=nothing)


@triton.jit
def partners(sides, token):
    """The tokens' codes, and which tokens are alone in their outcome on both sides."""
    partner = tl.load(sides.code + token, mask=token < sides.width, other=-1)
    # As a whole number without a sign -1 is more than any token.
    return partner, partner.to(tl.uint32, bitcast=True) < sides.other_width.to(tl.uint32)


@triton.jit
def outcomes(sides, tile, block, BLOCK: tl.constexpr):
    """Both sides' log masses of a block of outcomes, (rows, BLOCK) each, which places are outcomes, (BLOCK,), and the
    student's logits of a block of tokens, (rows, BLOCK).

    The first blocks go along the student's tokens, of which those that are alone in their outcome on both sides count;
    further blocks go along the joint columns. Where there is no outcome, both masses are LOWEST and logits are -inf.
    """
    place = tl.arange(0, BLOCK)
    if block < sides.token_blocks:
        token = block * BLOCK + place
        partner, there = partners(sides, token)
        logits = scores_at(sides.student + tile.ours[:, None] + token[None, :], (token < sides.width)[None, :])
        # A teacher's row is named also where nothing is compared, so that any can be read.
        theirs = tl.load(sides.teacher + tile.theirs[:, None] + partner[None, :], mask=there[None, :], other=0.0)
        # Half precision has no number as low as LOWEST.
        theirs = tl.where(there[None, :], theirs.to(tl.float32), LOWEST)
        ours = tl.where(there[None, :], logits, LOWEST)
    else:
        column = (block - sides.token_blocks) * BLOCK + place
        there = column < sides.joint
        ours = joint_masses_at(sides, tile.row[:, None], column[None, :], there[None, :], 0, LOWEST)
        theirs = joint_masses_at(sides, tile.row[:, None], column[None, :], there[None, :], 1, LOWEST)
        logits = tl.full(ours.shape, float("-inf"), tl.float32)
    return ours, theirs, there, logits


@triton.jit
def compared(ours, theirs, there, tile, BOTH: tl.constexpr):
    """The log masses of outcomes that count, -inf elsewhere. With `BOTH` one that the teacher cannot have is none."""
    mask = tile.compares[:, None] & there[None, :]
    ours, theirs = tl.where(mask, ours, float("-inf")), tl.where(mask, theirs, float("-inf"))
    if BOTH:
        ours = tl.where(theirs == float("-inf"), float("-inf"), ours)
    return ours, theirs


@triton.jit
def places_of(sides, block, BLOCK: tl.constexpr):
    """The places of a block's outcomes: the student's tokens first, then the joint columns."""
    first = tl.where(block < sides.token_blocks, block * BLOCK, sides.width + (block - sides.token_blocks) * BLOCK)
    return first + tl.arange(0, BLOCK)


@triton.jit
def are_chosen(ours, theirs, threshold, tile, place, CHOSEN: tl.constexpr):
    """Which outcomes are among the best: larger than the last of these, or equal to it and not of a later place.

    A row's threshold is that value in the high 32 bits, as `thresholds` orders values, and that place in the low ones.
    """
    packed = tl.load(threshold + tile.row, mask=tile.real, other=0)
    # Nothing is below -inf.
    ordered = tl.maximum((packed >> 32).to(tl.uint32), 0x007FFFFF)
    bits = tl.where(ordered >= 0x80000000, ordered ^ 0x80000000, ordered ^ 0xFFFFFFFF)
    least, last = bits.to(tl.float32, bitcast=True)[:, None], (packed & 0x7FFFFFFF).to(tl.int32)[:, None]
    values = ours if CHOSEN == BEST_OF_STUDENT else theirs
    return (values > least) | ((values == least) & (place[None, :] <= last))
