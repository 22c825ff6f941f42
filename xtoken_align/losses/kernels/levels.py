"""C-KL's levels: one side's tokens that begin with a prefix against what the other side says after that prefix.

A level's outcomes stand one after another: the end, then each next piece. After the prefix `1` a student that speaks in
digits says `2`, `3` or anything else, which is the end; of a teacher with the tokens `1`, `12`, `123`, `13` the same
outcomes have the masses of `12` and `123`, of `13`, and of `1`. `level_masses` sums both sides', `level_values`
compares them chunk by chunk, and two kernels add the gradient to the rows that `gradients` has written.

A level has a line of `LEVEL` numbers in `table`, int64 (m, LEVEL), whose fields are named below. Levels of one chunk
follow each other, and so do those of one side in it.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-not-found, import-untyped"
# ruff: noqa: ANN001, ANN201, ANN202, N803 - a kernel takes plain pointers and numbers, many of them

import triton
import triton.language as tl

from .close import NOTHING, PLAUSIBLE, VALUE
from .read import FORWARD, LOWEST, REVERSE, exp, log_mixture, log_sum, scores_at
from .sweep import slopes_of

SPEAKER = tl.constexpr(0)
"""Who has spoken the prefix, 0 the teacher, 1 the student; the other is restricted to tokens that begin with it."""
STUDENT_START = tl.constexpr(1)
"""Where the student's logits begin, in elements."""
TEACHER_START = tl.constexpr(2)
"""Where the teacher's do."""
OUT_START = tl.constexpr(3)
"""Where the gradient of the student's row does."""
CHUNK_OF = tl.constexpr(4)
FIRST = tl.constexpr(5)
"""The first outcome, which is the end."""
LAST = tl.constexpr(6)
"""The one after the last."""
TEXT = tl.constexpr(7)
"""The outcome that the text has."""
BEGINS = tl.constexpr(8)
"""Whether the weights of a chunk's levels begin with this one."""
LEVEL = tl.constexpr(9)
"""How many fields there are."""


@triton.jit
def _of(table, level, FIELD: tl.constexpr):
    return tl.load(table + level * LEVEL + FIELD)


@triton.jit
def _others(pieces, at, last, token, counts, BLOCK: tl.constexpr):
    """Which of a block's tokens are no piece. Pieces ascend; returned is the first one behind the block, too."""
    begin = tl.min(token, 0)
    piece = tl.load(pieces + at, mask=at < last, other=9223372036854775807)
    while piece < begin + BLOCK:
        counts = counts * (token != piece).to(tl.int32)
        at += 1
        piece = tl.load(pieces + at, mask=at < last, other=9223372036854775807)
    return counts, at


@triton.jit
def _end(scores, start, live, width, pieces, first, last, BLOCK: tl.constexpr):
    """Log of the sum over all tokens with a probability but the pieces."""
    lane = tl.arange(0, BLOCK)
    top, total = tl.full((BLOCK,), LOWEST, tl.float32), tl.full((BLOCK,), 0.0, tl.float32)
    at = first + 1
    for begin in range(0, width, BLOCK):
        token = begin + lane
        counts = tl.load(live + token, mask=token < width, other=0).to(tl.int32)
        counts, at = _others(pieces, at, last, token, counts, BLOCK)
        value = scores_at(scores + start + token, counts > 0)
        larger = tl.maximum(top, value)
        more = tl.where(value == float("-inf"), 0.0, exp(value - larger))
        total = total * exp(top - larger) + more
        top = larger
    whole = tl.max(top, 0)
    return log_sum(whole, tl.sum(total * exp(top - whole), 0))


@triton.jit
def _spoken(scores, start, pieces, log_end, out, first, last, OUTCOMES: tl.constexpr):
    """Log masses of the outcomes of the side that has spoken the prefix."""
    for at in range(first, last, OUTCOMES):
        outcome = at + tl.arange(0, OUTCOMES)
        inside = outcome < last
        piece = tl.load(pieces + outcome, mask=inside, other=-1)
        value = tl.where(piece < 0, log_end, scores_at(scores + start + piece, piece >= 0))
        tl.store(out + outcome, value, mask=inside)


@triton.jit
def _restricted(scores, start, token_begin, tokens, out, first, last, OUTCOMES: tl.constexpr):
    """Those of the other side: the sums over each outcome's tokens."""
    for at in range(first, last, OUTCOMES):
        outcome = at + tl.arange(0, OUTCOMES)
        inside = outcome < last
        begin = tl.load(token_begin + outcome, mask=inside, other=0)
        size = tl.load(token_begin + outcome + 1, mask=inside, other=0) - begin
        top, total = tl.full((OUTCOMES,), LOWEST, tl.float32), tl.full((OUTCOMES,), 0.0, tl.float32)
        for depth in range(tl.max(size, 0)):
            token = tl.load(tokens + begin + depth, mask=depth < size, other=0)
            value = scores_at(scores + start + token, depth < size)
            larger = tl.maximum(top, value)
            total = total * exp(top - larger) + tl.where(value == float("-inf"), 0.0, exp(value - larger))
            top = larger
        tl.store(out + outcome, log_sum(top, total), mask=inside)


@triton.jit(do_not_specialize=["count"])
def level_masses(
    student,
    teacher,
    live,
    other_live,
    table,
    pieces,
    token_begin,
    tokens,
    out,
    width,
    other_width,
    count,
    OUTCOMES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Both sides' log masses of each level's outcomes: out (2, count), the student's first.

    Args:
        student: logits.
        teacher: logits.
        live: int8 (width,), 1 for the student's tokens that have a probability.
        other_live: int8 (other_width,), the teacher's.
        table: the levels.
        pieces: int64 (count,), what was spoken, -1 for the end; those of a level ascend.
        token_begin: int64 (count + 1,), where the restricted side's tokens of each outcome begin in `tokens`.
        tokens: int64.
        out: see above.
        width: of the student's rows.
        other_width: of the teacher's.
        count: how many outcomes there are.
        OUTCOMES: how many at once.
        BLOCK: how many tokens at once.

    Grid (levels,).
    """
    level = tl.program_id(0).to(tl.int64)
    first, last = _of(table, level, FIRST), _of(table, level, LAST)
    ours, theirs = _of(table, level, STUDENT_START), _of(table, level, TEACHER_START)
    if _of(table, level, SPEAKER) == 0:
        log_end = _end(teacher, theirs, other_live, other_width, pieces, first, last, BLOCK)
        _spoken(teacher, theirs, pieces, log_end, out + count, first, last, OUTCOMES)
        _restricted(student, ours, token_begin, tokens, out, first, last, OUTCOMES)
    else:
        log_end = _end(student, ours, live, width, pieces, first, last, BLOCK)
        _spoken(student, ours, pieces, log_end, out, first, last, OUTCOMES)
        _restricted(teacher, theirs, token_begin, tokens, out + count, first, last, OUTCOMES)


@triton.jit
def _grown(top, total, values, counts):
    """A sum of exponentials relative to its largest, and some more values that count."""
    larger = tl.maximum(top, tl.maximum(tl.max(tl.where(counts, values, LOWEST), 0), LOWEST))
    more = tl.sum(tl.where(counts, exp(values - larger), 0.0), 0)
    return larger, total * exp(top - larger) + more


@triton.jit
def _normalisers(masses, count, first, last, inverse, DIVERGENCE: tl.constexpr, OUTCOMES: tl.constexpr):
    """Logs of the sums over outcomes: the student's and the teacher's at T, the student's share inside, the teacher's
    best and its sum at T = 1.
    """
    nothing = tl.full((), 0.0, tl.float32)
    lowest = nothing + LOWEST
    our_top, our_sum, their_top, their_sum = lowest, nothing, lowest, nothing
    apart_top, apart_sum, whole_top, whole_sum = lowest, nothing, lowest, nothing
    for at in range(first, last, OUTCOMES):
        outcome = at + tl.arange(0, OUTCOMES)
        ours = scores_at(masses + outcome, outcome < last)
        theirs = scores_at(masses + count + outcome, outcome < last)
        possible = ours != float("-inf")
        given = possible & (theirs != float("-inf"))
        counted = given if DIVERGENCE == REVERSE else possible
        our_top, our_sum = _grown(our_top, our_sum, ours * inverse, counted)
        their_top, their_sum = _grown(their_top, their_sum, theirs * inverse, given)
        whole_top, whole_sum = _grown(whole_top, whole_sum, theirs, theirs != float("-inf"))
        if DIVERGENCE == REVERSE:
            apart_top, apart_sum = _grown(apart_top, apart_sum, ours * inverse, possible)
    log_inside = nothing
    if DIVERGENCE == REVERSE:
        log_inside = our_top + tl.log(our_sum) - apart_top - tl.log(apart_sum)
    log_whole = log_sum(whole_top, whole_sum)
    return our_top + tl.log(our_sum), log_sum(their_top, their_sum), log_inside, whole_top, log_whole


@triton.jit
def _shares_at(masses, count, outcome, inside, inverse, log_ours, log_theirs):
    """Log Q and log P of some outcomes, and which of these are possible and which are given."""
    ours = scores_at(masses + outcome, inside)
    theirs = scores_at(masses + count + outcome, inside)
    possible = ours != float("-inf")
    given = possible & (theirs != float("-inf"))
    log_q = tl.where(possible, ours * inverse - log_ours, 0.0)
    return log_q, theirs * inverse - log_theirs, possible, given


@triton.jit
def _terms(log_q, log_p, possible, given, beta, DIVERGENCE: tl.constexpr):
    """What some outcomes add to the value, and to the mean that slopes are taken against."""
    if DIVERGENCE == FORWARD:
        value = tl.sum(tl.where(given, exp(log_p) * (log_p - log_q), 0.0), 0)
        mean = value
    elif DIVERGENCE == REVERSE:
        value = tl.sum(tl.where(given, exp(log_q) * (log_q - log_p), 0.0), 0)
        mean = value
    else:
        log_m = log_mixture(log_p, log_q, beta)
        mean = tl.sum(tl.where(possible, exp(log_q) * (log_q - log_m), 0.0), 0)
        value = (1 - beta) * mean + beta * tl.sum(tl.where(given, exp(log_p) * (log_p - log_m), 0.0), 0)
    return value, mean


@triton.jit(do_not_specialize=["count", "chunks"])
def level_values(
    masses,
    table,
    program,
    weight,
    factors,
    numbers,
    slopes,
    count,
    chunks,
    temperature,
    beta,
    DIVERGENCE: tl.constexpr,
    PLAUSIBLY: tl.constexpr,
    OUTCOMES: tl.constexpr,
):
    """Adds each chunk's weighted levels to its value, and gives what the loss changes by with the student's log masses.

    With `PLAUSIBLY` the first level of a chunk's side counts as much as the chunk's number `PLAUSIBLE` says, and each
    further one the product of that with P(o) / max P of the levels before it, o the text's outcome; else all count 1.

    Args:
        masses: float32 (2, count), see `level_masses`.
        table: the levels.
        program: int64 (programs + 1,), where the levels of each program's chunk begin.
        weight: float32 (N,).
        factors: of which the first is what values are multiplied by in the loss.
        numbers: float32 (6, N), what is said of chunks.
        slopes: float32 (count,), out.
        count: how many outcomes there are.
        chunks: N.
        temperature: T.
        beta: of a JSD.
        DIVERGENCE: which.
        PLAUSIBLY: see above.
        OUTCOMES: how many at once.

    Grid (chunks that have levels,).
    """
    begin, end = tl.load(program + tl.program_id(0)), tl.load(program + tl.program_id(0) + 1)
    chunk = _of(table, begin, CHUNK_OF)
    inverse = 1 / temperature
    first_weight, scale = tl.full((), 1.0, tl.float32), tl.load(weight + chunk) * tl.load(factors)
    if PLAUSIBLY:
        first_weight = tl.load(numbers + PLAUSIBLE * chunks.to(tl.int64) + chunk)
    total, counts = tl.full((), 0.0, tl.float32), first_weight
    for level in range(begin, end):
        counts = tl.where(_of(table, level, BEGINS) > 0, first_weight, counts)
        first, last = _of(table, level, FIRST), _of(table, level, LAST)
        sums = _normalisers(masses, count, first, last, inverse, DIVERGENCE, OUTCOMES)
        log_ours, log_theirs, log_inside, best, _ = sums
        value, mean = total * 0, total * 0
        for at in range(first, last, OUTCOMES):
            outcome = at + tl.arange(0, OUTCOMES)
            log_q, log_p, possible, given = _shares_at(
                masses, count, outcome, outcome < last, inverse, log_ours, log_theirs
            )
            more, more_mean = _terms(log_q, log_p, possible, given, beta, DIVERGENCE)
            value += more
            mean += more_mean
        # Where the teacher gives nothing that the student can, there is no comparison.
        some = log_theirs != float("-inf")
        value = (value - log_inside) * temperature * temperature
        total += tl.where(some, tl.where(value < 0, 0.0, value) * counts, 0.0)
        for at in range(first, last, OUTCOMES):
            outcome = at + tl.arange(0, OUTCOMES)
            log_q, log_p, possible, given = _shares_at(
                masses, count, outcome, outcome < last, inverse, log_ours, log_theirs
            )
            slope = slopes_of(log_q, log_p, given, mean, log_inside, beta, DIVERGENCE) * temperature * scale * counts
            tl.store(slopes + outcome, tl.where(possible, tl.where(some, slope, 0.0), 0.0), mask=outcome < last)
        if PLAUSIBLY:
            text = tl.load(masses + count + _of(table, level, TEXT))
            counts *= tl.where(best <= NOTHING, 0.0, exp(text - best))
    place = numbers + VALUE * chunks.to(tl.int64) + chunk
    tl.store(place, tl.load(place) + total)


@triton.jit(do_not_specialize=["blocks"])
def spoken_gradients(student, live, table, levels, pieces, masses, slopes, out, width, blocks, BLOCK: tl.constexpr):
    """Adds the gradient of levels whose prefix the student has spoken: that of a piece to its token, that of the end to
    all tokens that are no piece, each as much as it has of their sum.

    `levels` int64 holds their numbers; no two of them have one row. Grid (their number * blocks,).
    """
    level = tl.load(levels + tl.program_id(0) // blocks)
    first, last = _of(table, level, FIRST), _of(table, level, LAST)
    token = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    begin = tl.min(token, 0)
    here = token < width
    value = scores_at(student + _of(table, level, STUDENT_START) + token, here)
    log_end = tl.load(masses + first)
    slope = tl.load(slopes + first) + tl.full((BLOCK,), 0.0, tl.float32)
    counts = (tl.load(live + token, mask=here, other=0) > 0) & (value != float("-inf")) & (slope != 0)
    change = tl.where(counts, slope * exp(value - log_end), 0.0)
    for outcome in range(first + 1, last):
        piece = tl.load(pieces + outcome)
        if (piece >= begin) & (piece < begin + BLOCK):
            change = tl.where(token == piece, tl.load(slopes + outcome), change)
    place = out + _of(table, level, OUT_START) + token
    before = tl.load(place, mask=here, other=0.0).to(tl.float32)
    tl.store(place, (before + change).to(out.dtype.element_ty), mask=here)


@triton.jit
def restricted_gradients(
    student, table, program, outcome_of, token_begin, tokens, masses, slopes, out, BLOCK: tl.constexpr
):
    """Adds the gradient of levels to which the student is restricted: of each outcome to its tokens, each as much as it
    has of their sum. Levels of one chunk have one row and come one after another.

    `program` is as for `level_values`; levels whose prefix the student has spoken are left out. `outcome_of` int64 has
    the outcome of each of `tokens`. Grid (chunks that have levels,).
    """
    begin, end = tl.load(program + tl.program_id(0)), tl.load(program + tl.program_id(0) + 1)
    for level in range(begin, end):
        if _of(table, level, SPEAKER) == 0:
            start, place = _of(table, level, STUDENT_START), out + _of(table, level, OUT_START)
            first = tl.load(token_begin + _of(table, level, FIRST))
            last = tl.load(token_begin + _of(table, level, LAST))
            for at in range(first, last, BLOCK):
                number = at + tl.arange(0, BLOCK)
                inside = number < last
                token = tl.load(tokens + number, mask=inside, other=0)
                outcome = tl.load(outcome_of + number, mask=inside, other=0)
                value = scores_at(student + start + token, inside)
                slope = tl.load(slopes + outcome, mask=inside, other=0.0)
                counts = (slope != 0) & (value != float("-inf"))
                part = exp(value - tl.load(masses + outcome, mask=inside, other=0.0))
                before = tl.load(place + token, mask=inside, other=0.0).to(tl.float32)
                after = before + tl.where(counts, slope * part, 0.0)
                tl.store(place + token, after.to(out.dtype.element_ty), mask=inside)
            # The next level's tokens are among these, and another thread may have them.
            tl.debug_barrier()
