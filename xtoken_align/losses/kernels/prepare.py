"""What is made before the sweeps: joint columns, keys of the best outcomes, copies of rows that leave tokens out."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-not-found, import-untyped"
# ruff: noqa: ANN001, ANN201, ANN202, N803 - a kernel takes plain pointers and numbers, many of them

import triton
import triton.language as tl

from .read import (
    BEST_OF_STUDENT,
    CHUNK,
    LISTED,
    LOWEST,
    Sides,
    exp,
    field,
    joint_masses_at,
    log_sum,
    partners,
    places_of,
    scores_at,
    tile_of,
)

DIGIT_VALUES = tl.constexpr(2048)
"""What 11 bits can be: values are looked at in digits of 11, 11 and 10 bits."""
PLACE_BITS = tl.constexpr(22)
PLACES = tl.constexpr(4194304)
"""More than there are outcomes: a key's last bits tell equal values apart, of which the first place is the best."""


@triton.jit(do_not_specialize=["count"])
def copies(student, teacher, out, other_out, ours, theirs, width, other_width, count, BLOCK: tl.constexpr):
    """Copies of the rows of both sides that leave something out.

    Args:
        student: logits.
        teacher: logits.
        out: like the student's logits, the copies one after another.
        other_out: the teacher's.
        ours: int64 (count, 2), where each of the student's rows and its copy begin.
        theirs: int64, the teacher's.
        width: of the student's rows.
        other_width: of the teacher's.
        count: how many of the student's rows there are; those of the teacher follow.
        BLOCK: tokens of a program.

    Grid (rows of both sides, blocks of the wider side).
    """
    number = tl.program_id(0)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if number < count:
        start, place = tl.load(ours + 2 * number), tl.load(ours + 2 * number + 1)
        tl.store(out + place + token, tl.load(student + start + token, mask=token < width), mask=token < width)
    else:
        number -= count
        start, place = tl.load(theirs + 2 * number), tl.load(theirs + 2 * number + 1)
        mask = token < other_width
        tl.store(other_out + place + token, tl.load(teacher + start + token, mask=mask), mask=mask)


@triton.jit(do_not_specialize=["count", "other_count"])
def impossible(out, other_out, cells, other_cells, count, other_count, BLOCK: tl.constexpr):
    """-inf at some places of the copies: cells int64 (count,), other_cells int64 (other_count,). Grid (blocks,)."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lowest = tl.full((BLOCK,), float("-inf"), tl.float32)
    own = tl.load(cells + place, mask=place < count, other=0)
    tl.store(out + own, lowest.to(out.dtype.element_ty), mask=place < count)
    own = tl.load(other_cells + place, mask=place < other_count, other=0)
    tl.store(other_out + own, lowest.to(other_out.dtype.element_ty), mask=place < other_count)


@triton.jit
def _lane_sums(scores, start, real, tokens, first, last, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Sums of exponentials along `tokens`, of which every lane takes one of `LANES`; relative to the lane's largest."""
    place = tl.arange(0, LANES)
    top = tl.full((ROWS, LANES), LOWEST, tl.float32)
    total = tl.full((ROWS, LANES), 0.0, tl.float32)
    for at in range(first, last, LANES):
        token = tl.load(tokens + at + place, mask=at + place < last, other=-1)
        value = scores_at(scores + start[:, None] + token[None, :], real[:, None] & (token >= 0)[None, :])
        larger = tl.maximum(top, value)
        more = tl.where(value == float("-inf"), 0.0, exp(value - larger))
        total = total * exp(top - larger) + more
        top = larger
    return top, total


@triton.jit(do_not_specialize=["rows", "joint", "parts"])
def joint_masses(
    student,
    teacher,
    lists,
    tokens,
    order,
    work,
    out,
    rows,
    joint,
    parts,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Log of the sum over each joint column's tokens on both sides: out (2, n, joint + 1), -inf where none has any,
    0 in rows without a chunk.

    A program sums either one big column or `LANES` small ones. Those of a slice of small columns of the sizes 3, 2, 2
    stand in `tokens` as 0 1 2, 3 4 5, 6 - -: the first tokens, the second ones, ...; a big column's as they are.

    Args:
        student: logits.
        teacher: logits.
        lists: the rows' lines.
        tokens: int32, of all parts, -1 for none.
        order: int32, the column of each lane of the slices, -1 for none.
        work: int32 (parts, 4): the side, 0 or 1; where the part's tokens begin and end; its column if it is a big one,
            else -1 less the place of its first lane in `order`.
        out: see above.
        rows: n.
        joint: how many columns there are; one more holds what is outside of every column.
        parts: how many parts there are.
        ROWS: of a tile.
        LANES: how many columns, or tokens of a big one, at once.

    Grid (tiles of rows * parts,).
    """
    part = tl.program_id(0) % parts
    row = (tl.program_id(0) // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = row < rows
    real = exists & (field(lists, row, exists, CHUNK, -1) >= 0)
    side, own = tl.load(work + 4 * part), tl.load(work + 4 * part + 3)
    first, last = tl.load(work + 4 * part + 1), tl.load(work + 4 * part + 2)
    start = tl.load(lists + row * LISTED + side, mask=real, other=0)
    if side == 0:
        top, total = _lane_sums(student, start, real, tokens, first, last, ROWS, LANES)
    else:
        top, total = _lane_sums(teacher, start, real, tokens, first, last, ROWS, LANES)
    place = (row + side * rows.to(tl.int64)) * (joint + 1)
    if own >= 0:
        whole = tl.max(top, 1)
        of_column = log_sum(whole, tl.sum(total * exp(top - whole[:, None]), 1))
        tl.store(out + place + own, tl.where(real, of_column, 0.0), mask=exists)
    else:
        column = tl.load(order - 1 - own + tl.arange(0, LANES))
        mask = exists[:, None] & (column >= 0)[None, :]
        of_columns = tl.where(real[:, None], log_sum(top, total), 0.0)
        tl.store(out + place[:, None] + column[None, :], of_columns, mask=mask)


@triton.jit
def _values_of(sides, tile, block, CHOSEN: tl.constexpr, BOTH: tl.constexpr, BLOCK: tl.constexpr):
    """The log masses of the side whose best outcomes are looked for, as `outcomes` gives them; only it is read."""
    place = tl.arange(0, BLOCK)
    if block < sides.token_blocks:
        token = block * BLOCK + place
        partner, alone = partners(sides, token)
        mask = tile.compares[:, None] & alone[None, :]
        if CHOSEN == BEST_OF_STUDENT:
            values = scores_at(sides.student + tile.ours[:, None] + token[None, :], mask)
        else:
            values = scores_at(sides.teacher + tile.theirs[:, None] + partner[None, :], mask)
        if BOTH and CHOSEN == BEST_OF_STUDENT:
            theirs = scores_at(sides.teacher + tile.theirs[:, None] + partner[None, :], mask)
            values = tl.where(theirs == float("-inf"), float("-inf"), values)
    else:
        column = (block - sides.token_blocks) * BLOCK + place
        mask = tile.compares[:, None] & (column < sides.joint)[None, :]
        values = joint_masses_at(sides, tile.row[:, None], column[None, :], mask, 0 if CHOSEN == BEST_OF_STUDENT else 1)
        if BOTH and CHOSEN == BEST_OF_STUDENT:
            theirs = joint_masses_at(sides, tile.row[:, None], column[None, :], mask, 1)
            values = tl.where(theirs == float("-inf"), float("-inf"), values)
    return values


@triton.jit(do_not_specialize=["rows", "other_width", "joint", "token_blocks", "blocks", "most"])
def thresholds(
    student,
    teacher,
    masses,
    code,
    lists,
    near,
    out,
    rows,
    width,
    other_width,
    joint,
    token_blocks,
    blocks,
    most,
    CHOSEN: tl.constexpr,
    BOTH: tl.constexpr,
    OUR_ALIGNED: tl.constexpr,
    THEIR_ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    SAMPLE: tl.constexpr,
    NEAR: tl.constexpr,
):
    """The outcome that is the last of the best `most` of a row, see `are_chosen`: out int64 (n,).

    A sample of the outcomes gives two values between which it lies, nearly for sure. One pass counts what is above them
    and writes down what is between, of which the right one is taken: near int64 (n, NEAR) is memory for it. Where the
    sample misled, or too many lie between, the value is found digit by digit. Grid (n,).
    """
    sides = Sides(student, teacher, masses, code, lists, rows, width, other_width, joint, token_blocks)
    tile = tile_of(sides, tl.program_id(0), OUR_ALIGNED, THEIR_ALIGNED, 1)
    near += tl.program_id(0).to(tl.int64) * NEAR
    low, high = _bracket(sides, tile, most, CHOSEN, BOTH, SAMPLE)
    above, count = most * 0, most * 0
    for block in range(blocks):
        value = tl.reshape(_ordered(_values_of(sides, tile, block, CHOSEN, BOTH, BLOCK)), (BLOCK,))
        between = ((value >= low) & (value <= high)).to(tl.int32)
        above += tl.sum((value > high).to(tl.int32), 0)
        at = count + tl.cumsum(between, 0) - 1
        key = (value.to(tl.int64) << PLACE_BITS) | (PLACES - 1 - places_of(sides, block, BLOCK))
        tl.store(near + at, key, mask=(between > 0) & (at < NEAR))
        count += tl.sum(between, 0)
    # What other threads wrote is read below.
    tl.debug_barrier()
    if (count <= NEAR) & (above < most) & (above + count >= most):
        lane = tl.arange(0, NEAR)
        keys = tl.load(near + lane, mask=lane < count, other=0)
        last = _with_rank(keys, most - above, 32 + PLACE_BITS)
        value, place = last >> PLACE_BITS, PLACES - 1 - (last & (PLACES - 1))
    else:
        value, place = _by_digits(sides, tile, most, blocks, CHOSEN, BOTH, BLOCK)
    tl.store(out + tl.program_id(0), (value << 32) | place)


@triton.jit
def _bracket(sides, tile, most, CHOSEN: tl.constexpr, BOTH: tl.constexpr, SAMPLE: tl.constexpr):
    """Two values, ordered, between which the `most`-th best outcome of a row lies, nearly for sure."""
    total = sides.width + sides.joint
    step = tl.cdiv(total, SAMPLE)
    place = tl.arange(0, SAMPLE) * step
    partner, alone = partners(sides, place)
    mask, column = tile.compares[:, None] & alone[None, :], place - sides.width
    shared = tile.compares[:, None] & ((column >= 0) & (column < sides.joint))[None, :]
    ours = scores_at(sides.student + tile.ours[:, None] + place[None, :], mask)
    theirs = scores_at(sides.teacher + tile.theirs[:, None] + partner[None, :], mask)
    ours = tl.where(shared, joint_masses_at(sides, tile.row[:, None], column[None, :], shared, 0), ours)
    theirs = tl.where(shared, joint_masses_at(sides, tile.row[:, None], column[None, :], shared, 1), theirs)
    values = ours if CHOSEN == BEST_OF_STUDENT else theirs
    if BOTH and CHOSEN == BEST_OF_STUDENT:
        values = tl.where(theirs == float("-inf"), float("-inf"), values)
    values = tl.reshape(_ordered(values), (SAMPLE,))
    expected = most // step
    margin = (3 * tl.sqrt(expected.to(tl.float32))).to(tl.int32) + 8
    high = tl.where(expected <= margin, 0xFFFFFFFF, _with_rank(values, expected - margin, 32))
    return _with_rank(values, expected + margin, 32), high.to(tl.uint32)


@triton.jit
def _with_rank(keys, rank, BITS: tl.constexpr):
    """Of whole numbers of so many bits the `rank`-th largest, from 1; 0 where there are fewer."""
    found, bit = tl.full((), 0, keys.dtype), tl.full((), 1, keys.dtype) << (BITS - 1)
    for _ in range(BITS):
        trial = found | bit
        found = tl.where(tl.sum((keys >= trial).to(tl.int32), 0) >= rank, trial, found)
        bit = bit >> 1
    return found


@triton.jit
def _by_digits(sides, tile, most, blocks, CHOSEN: tl.constexpr, BOTH: tl.constexpr, BLOCK: tl.constexpr):
    """The ordered value and the place of the `most`-th best outcome of a row, digit by digit from the highest.

    The outcomes that begin like it are counted by their next digit. Where all that begin like it are among the best, no
    further digit decides anything. Where several equal it, the first places are the better ones.
    """
    number = tl.arange(0, DIGIT_VALUES)
    missing, prefix, population = most, most * 0, blocks * BLOCK
    shift, bits, lowest = prefix + 21, prefix + 11, prefix
    while shift >= 0:
        counts = tl.full((DIGIT_VALUES,), 0, tl.int32)
        for block in range(blocks):
            rest = _ordered(_values_of(sides, tile, block, CHOSEN, BOTH, BLOCK)) >> shift.to(tl.uint32)
            begins = (rest >> bits.to(tl.uint32)).to(tl.int32) == prefix
            digit = rest.to(tl.int32) & ((1 << bits) - 1)
            counts += tl.histogram(tl.reshape(tl.where(begins, digit, 0), (BLOCK,)), DIGIT_VALUES)
        # What begins otherwise was counted as 0.
        counts = tl.where(number == 0, counts + population - blocks * BLOCK, counts)
        own = tl.max(tl.where(tl.cumsum(counts, 0, reverse=True) >= missing, number, 0), 0)
        missing -= tl.sum(tl.where(number > own, counts, 0), 0)
        population = tl.sum(tl.where(number == own, counts, 0), 0)
        prefix = (prefix << bits) | own
        lowest = prefix << shift
        done = (population <= missing) | (shift == 0)
        bits = tl.where(shift == 21, 11, 10)
        shift = tl.where(done, -1, tl.where(shift == 21, 10, 0))
    last = missing * 0 + 0x7FFFFFFF
    if population > missing:
        last = _place_of_equal(sides, tile, lowest, missing, blocks, CHOSEN, BOTH, BLOCK)
    return lowest.to(tl.int64), last.to(tl.int64)


@triton.jit
def _place_of_equal(sides, tile, value, number, blocks, CHOSEN: tl.constexpr, BOTH: tl.constexpr, BLOCK: tl.constexpr):
    """The place of the outcome that is the `number`-th, from 1, of those with a value."""
    before, found = number * 0, number * 0
    for block in range(blocks):
        values = tl.reshape(_values_of(sides, tile, block, CHOSEN, BOTH, BLOCK), (BLOCK,))
        equal = (_ordered(values).to(tl.int32, bitcast=True) == value).to(tl.int32)
        count = tl.sum(equal, 0)
        if (before < number) & (before + count >= number):
            own = (equal > 0) & (before + tl.cumsum(equal, 0) == number)
            found = tl.sum(tl.where(own, places_of(sides, block, BLOCK), 0), 0)
        before += count
    return found


@triton.jit
def _ordered(values):
    """Whole numbers without a sign in the order of the values, of which 0 and -0 are equal."""
    bits = (values + 0.0).to(tl.uint32, bitcast=True)
    return tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)
