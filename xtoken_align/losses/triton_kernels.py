"""Triton kernels that compare the outcomes of two sides' rows; `triton` calls them and says what they compute.

Logits are read where they lie, in their own dtype, and nothing of their size is kept but the gradient. A program
handles some columns of some rows, so that what says which token belongs to which outcome is read once for several rows.
Sums are made in one order whatever the device does first, so that equal inputs give equal bits.

Every row is described by its line in `lists`, int64 (n, 6): where its logits begin, the student's and the teacher's,
where its gradient begins, its chunk (-1 for none), its label (negative for none) and its text's outcome (-1 for none).

Source: online softmax, Milakov and Gimelshein (2018).
"""

# Arguments are pointers and numbers of Triton's own, for which there are no types; those that it compiles for are in
# capitals, as is usual there.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-not-found, import-untyped"
# ruff: noqa: ANN001, ANN201, ANN202, N803, C901, PLR0912, PLR0915 - a kernel may pass a screen

import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.0e38)
"""Stands for -inf where differences are taken, since that of two infinities is no number."""
NOTHING = tl.constexpr(-5.0e19)
"""A row whose largest mass is no more than this has no distribution; half of `tables.LEFT`."""

FORWARD = tl.constexpr(0)
REVERSE = tl.constexpr(1)
JSD = tl.constexpr(2)

LISTED = tl.constexpr(6)
"""How many numbers a line of `lists` has."""

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
SUMS = 19
"""How many these are."""

BEST_OF_TEACHER = tl.constexpr(1)
BEST_OF_STUDENT = tl.constexpr(2)
"""Which outcomes are compared: the teacher's best, all others as one rest, or the student's best and no others."""
DIGIT = tl.constexpr(7)
"""Bits of an outcome's key that are looked at in one pass, of which there are eight."""
DIGIT_VALUES = tl.constexpr(128)
"""How many numbers these bits can make."""
PLACES = tl.constexpr(16777216)
"""More than there are outcomes: a key's last 24 bits tell equal ones apart, of which the first is the better one."""

# What `close_rows` keeps of a row, each (n,).
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
KEPT = 11
"""How many these are."""

# What is said of a chunk, each (N,), in the order of `inputs.Compared`.
VALUE = tl.constexpr(0)
AGREES = tl.constexpr(1)
DROPPED = tl.constexpr(2)
EMPTY = tl.constexpr(3)
COMPARED = tl.constexpr(4)
PLAUSIBLE = tl.constexpr(5)


@triton.jit
def _log_sum(top, total):
    """The logarithm of a sum that is relative to its largest, -inf where it is of nothing."""
    return tl.where(total == 0, float("-inf"), top + tl.log(total))


@triton.jit
def _joined(top, total, value):
    """One more value in a sum of exponentials that is relative to its largest; -inf adds nothing."""
    larger = tl.maximum(top, value)
    return larger, total * tl.exp(top - larger) + tl.where(value == float("-inf"), 0.0, tl.exp(value - larger))


@triton.jit
def _rows_of(lists, row, real, FIELD: tl.constexpr, ALIGNED: tl.constexpr):
    """One number of the rows' lines; where logits begin, it is a multiple of 16 if `ALIGNED`."""
    number = tl.load(lists + row * LISTED + FIELD, mask=real, other=0)
    if ALIGNED:
        number = tl.multiple_of(number, 16)
    return number


@triton.jit(do_not_specialize=["rows", "count", "bigs", "parts"])
def joint_masses(
    scores,
    lists,
    member,
    begin,
    big,
    lane,
    slice_begin,
    order,
    out,
    rows,
    count,
    bigs,
    parts,
    FIELD: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Log of the sum over the tokens of each joint column: out (n, count), -inf for columns without one.

    A program sums either one big column, whose tokens stand in `member`, or `LANES` small ones. Those of a slice of
    small columns of the sizes 3, 2, 2 stand in `lane` as 0 1 2, 3 4 5, 6 - -: the first tokens, the second ones, ...

    Grid (tiles of rows * parts,), where the first `bigs` parts of a tile are the big columns.
    """
    part = tl.program_id(0) % parts
    row = (tl.program_id(0) // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = (row < rows) & (tl.load(lists + row * LISTED + 3, mask=row < rows, other=-1) >= 0)
    start = tl.load(lists + row * LISTED + FIELD, mask=real, other=0)
    place = tl.arange(0, LANES)
    top = tl.full((ROWS, LANES), LOWEST, tl.float32)
    total = tl.full((ROWS, LANES), 0.0, tl.float32)
    if part < bigs:
        first, last = tl.load(begin + part), tl.load(begin + part + 1)
        for at in range(first, last, LANES):
            inside = at + place < last
            token = tl.load(member + at + place, mask=inside, other=0)
            mask = real[:, None] & inside[None, :]
            value = tl.load(scores + start[:, None] + token[None, :], mask=mask, other=float("-inf")).to(tl.float32)
            top, total = _joined(top, total, value)
        whole = tl.max(top, 1)
        total_whole = tl.sum(total * tl.exp(top - whole[:, None]), 1)
        tl.store(out + row * count + tl.load(big + part), _log_sum(whole, total_whole), mask=row < rows)
    else:
        column = tl.load(order + (part - bigs) * LANES + place)
        first, last = tl.load(slice_begin + part - bigs), tl.load(slice_begin + part - bigs + 1)
        for at in range(first, last, LANES):
            token = tl.load(lane + at + place)
            mask = real[:, None] & (token >= 0)[None, :]
            value = tl.load(scores + start[:, None] + token[None, :], mask=mask, other=float("-inf")).to(tl.float32)
            top, total = _joined(top, total, value)
        mask = (row < rows)[:, None] & (column >= 0)[None, :]
        tl.store(out + row[:, None] * count + column[None, :], _log_sum(top, total), mask=mask)


@triton.jit
def _outcomes(
    student,
    teacher,
    our_start,
    their_start,
    our_joint,
    their_joint,
    code,
    row,
    real,
    compares,
    block,
    token_blocks,
    width,
    other_width,
    joint,
    BOTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Both sides' log masses of a block of outcomes, and the student's logits of a block of tokens: (rows, BLOCK) each.

    The first blocks go along the student's tokens, of which those that are alone in their outcome on both sides count;
    further blocks go along the joint columns. Where there is no outcome both masses are -inf.
    """
    place = tl.arange(0, BLOCK)
    if block < token_blocks:
        token = block * BLOCK + place
        partner = tl.load(code + token, mask=token < width, other=-1)
        alone = (partner >= 0) & (partner < other_width)
        mask = real[:, None] & (token < width)[None, :]
        logits = tl.load(student + our_start[:, None] + token[None, :], mask=mask, other=float("-inf")).to(tl.float32)
        mask = compares[:, None] & alone[None, :]
        theirs = tl.load(teacher + their_start[:, None] + partner[None, :], mask=mask, other=float("-inf")).to(
            tl.float32
        )
        ours = tl.where(mask, logits, float("-inf"))
    else:
        column = (block - token_blocks) * BLOCK + place
        mask = compares[:, None] & (column < joint)[None, :]
        places = row[:, None] * (joint + 1) + column[None, :]
        ours = tl.load(our_joint + places, mask=mask, other=float("-inf"))
        theirs = tl.load(their_joint + places, mask=mask, other=float("-inf"))
        logits = tl.full(ours.shape, float("-inf"), tl.float32)
    if BOTH:
        ours = tl.where(theirs == float("-inf"), float("-inf"), ours)
    return ours, theirs, logits


@triton.jit
def _keys(values, place):
    """Whole numbers of 56 bits in the order of the values, and among equal ones in that of falling places."""
    bits = values.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) + 2147483648
    return ordered * PLACES + (PLACES - 1 - place)


@triton.jit
def _places(block, token_blocks, width, BLOCK: tl.constexpr):
    """The places of a block's outcomes: the student's tokens first, then the joint columns."""
    first = tl.where(block < token_blocks, block * BLOCK, width + (block - token_blocks) * BLOCK)
    return first + tl.arange(0, BLOCK)


@triton.jit
def _are_chosen(ours, theirs, threshold, row, real, place, CHOSEN: tl.constexpr):
    """Which outcomes are among the best."""
    least = tl.load(threshold + row, mask=real, other=0)
    return _keys(ours if CHOSEN == BEST_OF_STUDENT else theirs, place) >= least[:, None]


@triton.jit(do_not_specialize=["other_width", "joint", "token_blocks", "blocks", "most"])
def thresholds(
    student,
    teacher,
    our_joint,
    their_joint,
    code,
    lists,
    out,
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
):
    """The key of the outcome that is the last of the best `most` of a row, 0 where there are fewer: out int64 (n,).

    It is found digit by digit, from the highest: the outcomes whose keys begin like it are counted by their next digit.
    Grid (n,).
    """
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    real = row >= 0
    compares = tl.load(lists + row * LISTED + 3) >= 0
    our_start = _rows_of(lists, row, real, 0, OUR_ALIGNED)
    their_start = _rows_of(lists, row, real, 1, THEIR_ALIGNED)
    lane = tl.arange(0, 256)
    missing = tl.full((1,), 0, tl.int32) + most
    prefix = tl.full((1,), 0, tl.int64)
    for digit in range(8):
        shift = (7 - digit) * DIGIT
        counts = tl.full((256,), 0, tl.int32)
        for block in range(blocks):
            ours, theirs, _ = _outcomes(
                student,
                teacher,
                our_start,
                their_start,
                our_joint,
                their_joint,
                code,
                row,
                real,
                compares,
                block,
                token_blocks,
                width,
                other_width,
                joint,
                BOTH,
                BLOCK,
            )
            values = ours if CHOSEN == BEST_OF_STUDENT else theirs
            keys = _keys(values, _places(block, token_blocks, width, BLOCK)[None, :])
            begins = (values != float("-inf")) & ((keys >> (shift + DIGIT)) == prefix[:, None])
            # What does not count has a number that no digit has.
            number = tl.where(begins, (keys >> shift) & (DIGIT_VALUES - 1), 255).to(tl.int32)
            counts += tl.histogram(tl.reshape(number, (BLOCK,)), 256)
        counts = tl.where(lane < DIGIT_VALUES, counts, 0)
        from_here = tl.cumsum(counts, 0, reverse=True)
        own = tl.max(tl.where(from_here >= missing, lane, 0), 0)
        missing -= tl.sum(tl.where(lane > own, counts, 0), 0)
        prefix = prefix * DIGIT_VALUES + own
    tl.store(out + row, prefix)


@triton.jit
def _block_sum(values, counts, inverse, TEMPERED: tl.constexpr):
    """The largest of the values that count, the sum of their exponentials relative to it, as they are and tempered."""
    top = tl.maximum(tl.max(tl.where(counts, values, LOWEST), 1), LOWEST)
    above = values - top[:, None]
    parts = tl.where(counts, tl.exp(above), 0.0)
    total = tl.sum(parts, 1)
    tempered = total
    if TEMPERED:
        parts = tl.where(counts, tl.exp(above * inverse), 0.0)
        tempered = tl.sum(parts, 1)
    return top, total, tempered, above, parts


@triton.jit(do_not_specialize=["rows", "other_width", "joint", "token_blocks", "blocks"])
def sums(
    student,
    teacher,
    our_joint,
    their_joint,
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
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The first sweep: what of a block of outcomes adds up over a row; out (SUMS, n, blocks).

    Grid (tiles of rows * blocks,).
    """
    block = tl.program_id(0) % blocks
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    compares = real & (tl.load(lists + row * LISTED + 3, mask=real, other=-1) >= 0)
    ours, theirs, logits = _outcomes(
        student,
        teacher,
        _rows_of(lists, row, real, 0, OUR_ALIGNED),
        _rows_of(lists, row, real, 1, THEIR_ALIGNED),
        our_joint,
        their_joint,
        code,
        row,
        real,
        compares,
        block,
        token_blocks,
        width,
        other_width,
        joint,
        BOTH,
        BLOCK,
    )
    place = out + row * blocks + block
    step = rows.to(tl.int64) * blocks
    lost = (theirs != float("-inf")) & (ours == float("-inf"))
    if CHOSEN:
        # What is not chosen becomes one outcome, or with the student's best is lost to the teacher.
        chosen = _are_chosen(
            ours, theirs, threshold, row, real, _places(block, token_blocks, width, BLOCK)[None, :], CHOSEN
        )
        rest_top, rest_sum, _, _, _ = _block_sum(ours, (ours != float("-inf")) & ~chosen, inverse, TEMPERED=False)
        tl.store(place + OUR_REST_TOP * step, rest_top, mask=real)
        tl.store(place + OUR_REST_SUM * step, rest_sum, mask=real)
        ours = tl.where(chosen, ours, float("-inf"))
        lost = (theirs != float("-inf")) & (ours == float("-inf"))
        if CHOSEN == BEST_OF_TEACHER:
            rest_top, rest_sum, _, _, _ = _block_sum(
                theirs, (theirs != float("-inf")) & ~chosen, inverse, TEMPERED=False
            )
            tl.store(place + THEIR_REST_TOP * step, rest_top, mask=real)
            tl.store(place + THEIR_REST_SUM * step, rest_sum, mask=real)
            theirs = tl.where(chosen, theirs, float("-inf"))
            lost = lost & chosen
    # Comparisons with -inf are False for NaN, which so counts as an outcome and shows in the loss.
    possible = ours != float("-inf")
    given = possible & (theirs != float("-inf"))
    counted = given if DIVERGENCE == REVERSE else possible
    our_top, our_sum, our_tempered, our_above, our_parts = _block_sum(ours, counted, inverse, TEMPERED)
    their_top, their_sum, their_tempered, their_above, their_parts = _block_sum(theirs, given, inverse, TEMPERED)
    both_top = tl.max(tl.where(theirs == their_top[:, None], ours, float("-inf")), 1)
    tl.store(place + OUR_TOP * step, our_top, mask=real)
    tl.store(place + OUR_SUM * step, our_sum, mask=real)
    tl.store(place + THEIR_TOP * step, their_top, mask=real)
    tl.store(place + THEIR_SUM * step, their_sum, mask=real)
    tl.store(place + BOTH_TOP * step, both_top, mask=real)
    if TEMPERED:
        tl.store(place + OUR_TEMPERED * step, our_tempered, mask=real)
        tl.store(place + THEIR_TEMPERED * step, their_tempered, mask=real)
    if DIVERGENCE == FORWARD:
        tl.store(
            place + CROSS * step, tl.sum(tl.where(given, their_parts * (their_above - our_above), 0.0), 1), mask=real
        )
    if DIVERGENCE == REVERSE:
        tl.store(
            place + CROSS * step, tl.sum(tl.where(given, our_parts * (our_above - their_above), 0.0), 1), mask=real
        )
    # What one side alone can give is rare, so it is summed apart.
    lost_top = tl.full((ROWS,), LOWEST, tl.float32)
    lost_sum = tl.full((ROWS,), 0.0, tl.float32)
    if tl.max(tl.max(lost.to(tl.int32), 1), 0) > 0:
        lost_top, lost_sum, _, _, _ = _block_sum(theirs, lost, inverse, TEMPERED=False)
    tl.store(place + LOST_TOP * step, lost_top, mask=real)
    tl.store(place + LOST_SUM * step, lost_sum, mask=real)
    if DIVERGENCE == REVERSE:
        apart = possible & (theirs == float("-inf"))
        apart_top = tl.full((ROWS,), LOWEST, tl.float32)
        apart_sum = tl.full((ROWS,), 0.0, tl.float32)
        apart_tempered = tl.full((ROWS,), 0.0, tl.float32)
        if tl.max(tl.max(apart.to(tl.int32), 1), 0) > 0:
            apart_top, apart_sum, apart_tempered, _, _ = _block_sum(ours, apart, inverse, TEMPERED)
        tl.store(place + APART_TOP * step, apart_top, mask=real)
        tl.store(place + APART_SUM * step, apart_sum, mask=real)
        tl.store(place + APART_TEMPERED * step, apart_tempered, mask=real)
    if LABELS:
        all_top, all_sum, _, _, _ = _block_sum(logits, logits != float("-inf"), inverse, TEMPERED=False)
        tl.store(place + ALL_TOP * step, all_top, mask=real)
        tl.store(place + ALL_SUM * step, all_sum, mask=real)


@triton.jit
def _row_sum(place, step, inside, TOP: tl.constexpr, SUM: tl.constexpr, inverse, is_rest, rest):
    """The blocks' largest value and their sum relative to it, with how far each block's own largest lies below.

    Where `is_rest`, a block holds nothing but the rest, of which `rest` is the log mass; -inf where it does not count.
    """
    top = tl.load(place + TOP * step, mask=inside, other=LOWEST)
    part = tl.load(place + SUM * step, mask=inside, other=0.0)
    top = tl.where(is_rest, tl.maximum(rest, LOWEST)[:, None], top)
    part = tl.where(is_rest, (rest != float("-inf")).to(tl.float32)[:, None], part)
    whole = tl.max(top, 1)
    below = top - whole[:, None]
    return whole, tl.sum(part * tl.exp(below * inverse), 1), below, part


@triton.jit
def _share(part, whole):
    """exp(part) / (exp(part) + exp(whole)) of two logarithms, 0 of nothing."""
    share = 1 / (1 + tl.exp(whole - part))
    return tl.where(part == float("-inf"), 0.0, share)


@triton.jit
def _added(one, other):
    """log(exp(one) + exp(other)), -inf of nothing."""
    top = tl.maximum(tl.maximum(one, other), LOWEST)
    return _log_sum(top, tl.exp(one - top) + tl.exp(other - top))


@triton.jit(do_not_specialize=["rows", "chunks", "other_width", "joint", "blocks"])
def close_rows(
    found,
    student,
    teacher,
    our_joint,
    their_joint,
    source,
    lists,
    weight,
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
    """Adds the blocks of a row up: what is said of its chunk, numbers (6, N), and what the second sweep has to know.

    Let S and R be the student's and the teacher's tempered sums relative to their largest masses, and x the sum of R's
    parts times the difference of both sides. The forward KL is x / (T R) - log R + log S. The reverse KL is the same
    with the sides exchanged, over what the teacher can give, less log of the student's share there. A JSD needs one
    more sweep, `mixtures`. Grid (tiles of rows,).
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    lane = tl.arange(0, BLOCK)
    inside = real[:, None] & (lane < blocks)[None, :]
    place = found + row[:, None] * blocks + lane[None, :]
    step = rows.to(tl.int64) * blocks
    inverse = 1 / temperature
    nothing = tl.full((ROWS,), float("-inf"), tl.float32)
    is_rest = (lane == blocks)[None, :] & real[:, None]
    no_rest = is_rest & (lane < 0)[None, :]
    our_rest, their_rest, our_rest_top = nothing, nothing, nothing
    if CHOSEN:
        rest_top, rest_sum, _, _ = _row_sum(place, step, inside, OUR_REST_TOP, OUR_REST_SUM, 1.0, no_rest, nothing)
        our_rest, our_rest_top = _log_sum(rest_top, rest_sum), rest_top
    if CHOSEN == BEST_OF_TEACHER:
        rest_top, rest_sum, _, _ = _row_sum(place, step, inside, THEIR_REST_TOP, THEIR_REST_SUM, 1.0, no_rest, nothing)
        their_rest = _log_sum(rest_top, rest_sum)
    # The rest is an outcome like others: given, lost or apart.
    rest_given = their_rest != float("-inf")
    rest_possible = (our_rest != float("-inf")) & (CHOSEN == BEST_OF_TEACHER)
    our_own = tl.where(rest_possible & (rest_given | (DIVERGENCE != REVERSE)), our_rest, float("-inf"))
    their_own = tl.where(rest_possible & rest_given, their_rest, float("-inf"))
    lost_own = tl.where(rest_given & ~rest_possible, their_rest, float("-inf"))
    our_top, our_sum, our_below, our_part = _row_sum(place, step, inside, OUR_TOP, OUR_SUM, 1.0, is_rest, our_own)
    their_top, their_sum, their_below, their_part = _row_sum(
        place, step, inside, THEIR_TOP, THEIR_SUM, 1.0, is_rest, their_own
    )
    lost_top, lost_sum, _, _ = _row_sum(place, step, inside, LOST_TOP, LOST_SUM, 1.0, is_rest, lost_own)
    our_tempered, their_tempered = our_sum, their_sum
    if TEMPERED:
        _, our_tempered, _, our_part = _row_sum(place, step, inside, OUR_TOP, OUR_TEMPERED, inverse, is_rest, our_own)
        _, their_tempered, _, their_part = _row_sum(
            place, step, inside, THEIR_TOP, THEIR_TEMPERED, inverse, is_rest, their_own
        )
    our_log, their_log = tl.log(our_tempered), tl.log(their_tempered)
    our_whole, their_given = _log_sum(our_top, our_sum), _log_sum(their_top, their_sum)
    our_best = our_top
    log_inside = our_top * 0
    if DIVERGENCE == REVERSE:
        apart_own = tl.where(rest_possible & ~rest_given, our_rest, float("-inf"))
        apart_top, apart_sum, _, _ = _row_sum(place, step, inside, APART_TOP, APART_SUM, 1.0, is_rest, apart_own)
        our_whole = _added(our_whole, _log_sum(apart_top, apart_sum))
        our_best = tl.maximum(our_top, apart_top)
        apart_tempered = apart_sum
        if TEMPERED:
            _, apart_tempered, _, _ = _row_sum(
                place, step, inside, APART_TOP, APART_TEMPERED, inverse, is_rest, apart_own
            )
        # -log(1 + exp(further)), where further is what the student gives apart against what it gives inside.
        further = (apart_top - our_top) * inverse + tl.log(apart_tempered) - our_log
        log_inside = -(tl.maximum(further, 0.0) + tl.log(1 + tl.exp(-tl.abs(further))))
        log_inside = tl.where(apart_tempered == 0, 0.0, log_inside)
    mean = our_top * 0
    if DIVERGENCE != JSD:
        # A block's terms are relative to its own largest values; here they become relative to the row's.
        cross = tl.load(place + CROSS * step, mask=inside, other=0.0)
        if DIVERGENCE == FORWARD:
            moved = tl.where(their_part == 0, 0.0, their_part * (their_below - our_below))
            mean = tl.sum((cross + moved) * tl.exp(their_below * inverse), 1) * inverse / their_tempered
            mean = mean - their_log + our_log
        else:
            moved = tl.where(our_part == 0, 0.0, our_part * (our_below - their_below))
            mean = tl.sum((cross + moved) * tl.exp(our_below * inverse), 1) * inverse / our_tempered
            mean = mean - our_log + their_log
    # Without a distribution on a side, or an outcome that both can give, nothing is compared. Of NaN this is not so.
    chunk = tl.load(lists + row * LISTED + 3, mask=real, other=-1)
    their_best = tl.maximum(their_top, lost_top)
    some = (chunk >= 0) & ~((their_tempered == 0) | (their_best <= NOTHING) | (our_best <= NOTHING))
    their_whole = _added(their_given, _log_sum(lost_top, lost_sum))
    inside_columns = 1 - _share(
        tl.load(their_joint + row * (joint + 1) + joint, mask=real, other=float("-inf")), their_whole
    )
    factor = temperature * temperature * (inside_columns if BY_KEPT else 1.0)
    # A teacher's NaN shows though the student cannot give its outcome.
    factor = tl.where(some, factor + 0 * lost_sum, 0.0)
    scale = factor / temperature * tl.load(weight + chunk, mask=chunk >= 0, other=0.0)
    # Of all outcomes, whether or not they are chosen, one is the best on both sides.
    both = tl.load(place + BOTH_TOP * step, mask=inside, other=LOWEST)
    tops = tl.load(place + THEIR_TOP * step, mask=inside, other=LOWEST)
    top = tl.max(tops, 1)
    best = tl.max(tl.load(place + OUR_TOP * step, mask=inside, other=LOWEST), 1)
    if DIVERGENCE == REVERSE:
        best = tl.maximum(best, tl.max(tl.load(place + APART_TOP * step, mask=inside, other=LOWEST), 1))
    best = tl.maximum(best, our_rest_top)
    agrees = some & (tl.max(tl.where(tops == top[:, None], both, float("-inf")), 1) >= best)
    if CHOSEN:
        agrees = agrees & (top >= tl.max(tl.load(place + LOST_TOP * step, mask=inside, other=LOWEST), 1))
    lost = tl.where(our_best <= NOTHING, 1.0, _share(_log_sum(lost_top, lost_sum), their_given))
    out = numbers + tl.maximum(chunk, 0)
    many = chunks.to(tl.int64)
    divergence = mean - log_inside
    result = tl.where(some, tl.where(divergence < 0, 0.0, divergence) * factor, 0.0)
    tl.store(out + VALUE * many, result, mask=chunk >= 0)
    tl.store(out + AGREES * many, agrees.to(tl.float32), mask=chunk >= 0)
    tl.store(out + DROPPED * many, 1 - inside_columns * (1 - lost), mask=chunk >= 0)
    our_outside = tl.load(our_joint + row * (joint + 1) + joint, mask=real, other=float("-inf"))
    if CHOSEN == BEST_OF_STUDENT:
        our_whole = _added(our_whole, our_rest)
    tl.store(out + EMPTY * many, _share(our_outside, our_whole), mask=chunk >= 0)
    tl.store(out + COMPARED * many, some.to(tl.float32), mask=chunk >= 0)
    if TEXT:
        column = tl.load(lists + row * LISTED + 5, mask=real, other=-1)
        at = tl.load(source + column, mask=column >= 0, other=-1)
        start = tl.load(lists + row * LISTED + 1, mask=real, other=0)
        alone = (at >= 0) & (at < other_width)
        chosen = tl.load(teacher + start + at, mask=alone, other=float("-inf")).to(tl.float32)
        there = their_joint + row * (joint + 1) + at - other_width
        chosen = tl.where(alone, chosen, tl.load(there, mask=at >= other_width, other=float("-inf")))
        top = tl.maximum(top, tl.max(tl.load(place + LOST_TOP * step, mask=inside, other=LOWEST), 1))
        tl.store(out + PLAUSIBLE * many, tl.where(some, tl.exp(chosen - top), 0.0), mask=chunk >= 0)
    log_all = our_top * 0
    if LABELS:
        all_top, all_sum, _, _ = _row_sum(place, step, inside, ALL_TOP, ALL_SUM, 1.0, no_rest, nothing)
        log_all = all_top + tl.log(all_sum)
        label = tl.load(lists + row * LISTED + 4, mask=real, other=-1)
        start = tl.load(lists + row * LISTED, mask=real, other=0)
        own = tl.load(student + start + label, mask=label >= 0, other=0.0).to(tl.float32)
        tl.store(entropy + row, tl.where(label >= 0, log_all - own, 0.0), mask=real)
    place = kept + row
    step = rows.to(tl.int64)
    tl.store(place + ROW_OUR_TOP * step, our_top, mask=real)
    tl.store(place + ROW_OUR_LOG * step, our_log, mask=real)
    tl.store(place + ROW_THEIR_TOP * step, their_top, mask=real)
    tl.store(place + ROW_THEIR_LOG * step, their_log, mask=real)
    tl.store(place + ROW_MEAN * step, mean, mask=real)
    tl.store(place + ROW_LOG_INSIDE * step, log_inside, mask=real)
    tl.store(place + ROW_SCALE * step, scale, mask=real)
    tl.store(place + ROW_FACTOR * step, factor, mask=real)
    tl.store(place + ROW_LOG_ALL * step, log_all, mask=real)
    tl.store(place + ROW_OUR_REST * step, our_rest, mask=real)
    tl.store(place + ROW_THEIR_REST * step, their_rest, mask=real)


@triton.jit
def _log_mixture(log_p, log_q, beta):
    """log(beta exp(log_p) + (1 - beta) exp(log_q)) of numbers of which one at least is above -inf."""
    log_p, log_q = log_p + tl.log(beta), log_q + tl.log(1 - beta)
    top = tl.maximum(log_p, log_q)
    return top + tl.log(tl.exp(log_p - top) + tl.exp(log_q - top))


@triton.jit
def _row_numbers(kept, rows, row, real, FIELD: tl.constexpr):
    """One of the numbers that `close_rows` keeps, as a column beside the rows' outcomes."""
    return tl.load(kept + FIELD * rows.to(tl.int64) + row, mask=real, other=0.0)[:, None]


@triton.jit(do_not_specialize=["rows", "other_width", "joint", "token_blocks", "blocks"])
def mixtures(
    student,
    teacher,
    our_joint,
    their_joint,
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
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    compares = real & (tl.load(lists + row * LISTED + 3, mask=real, other=-1) >= 0)
    ours, theirs, _ = _outcomes(
        student,
        teacher,
        _rows_of(lists, row, real, 0, OUR_ALIGNED),
        _rows_of(lists, row, real, 1, THEIR_ALIGNED),
        our_joint,
        their_joint,
        code,
        row,
        real,
        compares,
        block,
        token_blocks,
        width,
        other_width,
        joint,
        BOTH,
        BLOCK,
    )
    if CHOSEN:
        chosen = _are_chosen(
            ours, theirs, threshold, row, real, _places(block, token_blocks, width, BLOCK)[None, :], CHOSEN
        )
        ours = tl.where(chosen, ours, float("-inf"))
    possible = ours != float("-inf")
    our_top, our_log = (
        _row_numbers(kept, rows, row, real, ROW_OUR_TOP),
        _row_numbers(kept, rows, row, real, ROW_OUR_LOG),
    )
    their_top = _row_numbers(kept, rows, row, real, ROW_THEIR_TOP)
    their_log = _row_numbers(kept, rows, row, real, ROW_THEIR_LOG)
    log_q = tl.where(possible, (ours - our_top) * inverse - our_log, 0.0)
    log_p = (theirs - their_top) * inverse - their_log
    log_m = _log_mixture(log_p, log_q, beta)
    given = possible & (theirs != float("-inf"))
    place = out + row * blocks + block
    tl.store(place, tl.sum(tl.where(given, tl.exp(log_p) * (log_p - log_m), 0.0), 1), mask=real)
    part = tl.sum(tl.where(possible, tl.exp(log_q) * (log_q - log_m), 0.0), 1)
    tl.store(place + rows.to(tl.int64) * blocks, part, mask=real)


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
    step = rows.to(tl.int64)
    place = found + row[:, None] * blocks + lane[None, :]
    theirs = tl.sum(tl.load(place, mask=inside, other=0.0), 1)
    ours = tl.sum(tl.load(place + step * blocks, mask=inside, other=0.0), 1)
    if CHOSEN == BEST_OF_TEACHER:
        # The rest is one outcome more.
        our_rest = tl.load(kept + ROW_OUR_REST * step + row, mask=real, other=float("-inf"))
        their_rest = tl.load(kept + ROW_THEIR_REST * step + row, mask=real, other=float("-inf"))
        possible = our_rest != float("-inf")
        log_q = (our_rest - tl.load(kept + ROW_OUR_TOP * step + row, mask=real, other=0.0)) * inverse
        log_q = tl.where(possible, log_q - tl.load(kept + ROW_OUR_LOG * step + row, mask=real, other=0.0), 0.0)
        log_p = (their_rest - tl.load(kept + ROW_THEIR_TOP * step + row, mask=real, other=0.0)) * inverse
        log_p = log_p - tl.load(kept + ROW_THEIR_LOG * step + row, mask=real, other=0.0)
        log_m = _log_mixture(log_p, log_q, beta)
        given = possible & (their_rest != float("-inf"))
        theirs += tl.where(given, tl.exp(log_p) * (log_p - log_m), 0.0)
        ours += tl.where(possible, tl.exp(log_q) * (log_q - log_m), 0.0)
    value = beta * theirs + (1 - beta) * ours
    factor = tl.load(kept + ROW_FACTOR * step + row, mask=real, other=0.0)
    chunk = tl.load(lists + row * LISTED + 3, mask=real, other=-1)
    result = tl.where(factor == 0, 0.0, tl.where(value < 0, 0.0, value) * factor)
    tl.store(numbers + VALUE + tl.maximum(chunk, 0), result, mask=chunk >= 0)
    tl.store(kept + ROW_MEAN * step + row, ours, mask=real)


@triton.jit(do_not_specialize=["rows", "other_width", "joint", "blocks"])
def gradients(
    student,
    teacher,
    our_joint,
    their_joint,
    code,
    lists,
    threshold,
    kept,
    label_weight,
    out,
    rows,
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
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The second sweep: the gradient of a block of the student's tokens, in the dtype of `out`.

    A token has its share of its outcome's slope, exp(z - log mass). With P, Q the distributions of outcomes the slope
    is T times Q - P (forward), Q (log Q - log P - mean) (reverse), (1 - beta) Q (log Q - log M - mean) (JSD). Every
    token's place is written, 0 where nothing is compared. Grid (tiles of rows * blocks,).
    """
    block = tl.program_id(0) % blocks
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    token = block * BLOCK + tl.arange(0, BLOCK)
    here = real[:, None] & (token < width)[None, :]
    start = _rows_of(lists, row, real, 0, OUR_ALIGNED)
    logits = tl.load(student + start[:, None] + token[None, :], mask=here, other=float("-inf")).to(tl.float32)
    compares = real & (tl.load(lists + row * LISTED + 3, mask=real, other=-1) >= 0)
    partner = tl.load(code + token, mask=token < width, other=-1)
    alone = (partner >= 0) & (partner < other_width)
    mask = compares[:, None] & alone[None, :]
    start = _rows_of(lists, row, real, 1, THEIR_ALIGNED)
    theirs = tl.load(teacher + start[:, None] + partner[None, :], mask=mask, other=float("-inf")).to(tl.float32)
    shared = compares[:, None] & (partner >= other_width)[None, :]
    places = row[:, None] * (joint + 1) + (partner - other_width)[None, :]
    ours = tl.where(alone[None, :], logits, tl.load(our_joint + places, mask=shared, other=float("-inf")))
    theirs = tl.where(alone[None, :], theirs, tl.load(their_joint + places, mask=shared, other=float("-inf")))
    counts = compares[:, None] & (partner >= 0)[None, :] & (logits != float("-inf"))
    if BOTH:
        counts = counts & (theirs != float("-inf"))
    itself = alone[None, :] & counts
    if CHOSEN:
        place = tl.where(alone, token, width + partner - other_width)
        chosen = _are_chosen(ours, theirs, threshold, row, real, place[None, :], CHOSEN)
        if CHOSEN == BEST_OF_TEACHER:
            # What is not chosen has its share of the rest.
            ours = tl.where(chosen, ours, _row_numbers(kept, rows, row, real, ROW_OUR_REST))
            theirs = tl.where(chosen, theirs, _row_numbers(kept, rows, row, real, ROW_THEIR_REST))
            itself = itself & chosen
        else:
            counts = counts & chosen
    given = theirs != float("-inf")
    ours = tl.where(counts, ours, 0.0)
    share = tl.where(itself, 1.0, tl.exp(tl.where(counts, logits, 0.0) - ours))
    our_top, our_log = (
        _row_numbers(kept, rows, row, real, ROW_OUR_TOP),
        _row_numbers(kept, rows, row, real, ROW_OUR_LOG),
    )
    their_top = _row_numbers(kept, rows, row, real, ROW_THEIR_TOP)
    their_log = _row_numbers(kept, rows, row, real, ROW_THEIR_LOG)
    log_q = (ours - our_top) * inverse - our_log
    log_p = (theirs - their_top) * inverse - their_log
    if DIVERGENCE == FORWARD:
        slope = tl.exp(log_q) - tl.exp(log_p)
    else:
        mean = _row_numbers(kept, rows, row, real, ROW_MEAN)
        if DIVERGENCE == REVERSE:
            # What the teacher cannot give costs what it has of the student's mass.
            log_inside = _row_numbers(kept, rows, row, real, ROW_LOG_INSIDE)
            centred = tl.exp(log_q) * (log_q - log_p - mean - 1 + tl.exp(log_inside))
            slope = tl.where(given, centred, tl.exp(log_q + log_inside))
        else:
            log_m = _log_mixture(log_p, log_q, beta)
            slope = (1 - beta) * tl.exp(log_q) * (log_q - log_m - mean)
    scale = _row_numbers(kept, rows, row, real, ROW_SCALE)
    change = tl.where(counts & (scale != 0), scale * slope * share, 0.0)
    if LABELS:
        label = tl.load(lists + row * LISTED + 4, mask=real, other=-1)
        log_all = _row_numbers(kept, rows, row, real, ROW_LOG_ALL)
        extra = tl.exp(logits - log_all) - (token[None, :] == label[:, None]).to(tl.float32)
        change += tl.where((label >= 0)[:, None], tl.load(label_weight) * extra, 0.0)
    start = _rows_of(lists, row, real, 2, OUT_ALIGNED)
    tl.store(out + start[:, None] + token[None, :], change.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["count"])
def multiplied(values, factor, count, BLOCK: tl.constexpr):
    """The values times a number, in their place; nothing is read where it is 1, as it is in most trainings."""
    by = tl.load(factor).to(tl.float32)
    if by != 1:
        place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(values + place, mask=place < count, other=0.0)
        tl.store(values + place, (value.to(tl.float32) * by).to(values.dtype.element_ty), mask=place < count)
