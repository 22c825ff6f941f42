"""Long texts and large batches: time and memory grow with the length and no faster."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from span_checks import vocab

from xtoken_align.spans.aligner import align_ids, align_texts
from xtoken_align.spans.chunks import chunks_of
from xtoken_align.spans.spans import Spans
from xtoken_align.spans.tables import pair_tables
from xtoken_align.spans.units import units_of

Ids = list[np.ndarray]

LONG = 1_000_000
"""Bytes of the long text; the short one has a quarter."""

ONES = vocab(["a", "aaa"])
THREES = vocab(["aaa", "a", "aa"])
BYTES = vocab([bytes([byte]) for byte in range(256)])
MARKS = vocab(["<s>", "<image>", "a"], roles={"bos": [0], "image": [1]})
LETTERS = np.random.default_rng(5).integers(97, 123, LONG)


def without_a_common_boundary(size: int) -> tuple[list[int], list[int]]:
    whole = size // 3
    return [0] + [1] * (whole - 1) + [0, 0], [0] * whole


def one_letter(size: int) -> tuple[list[int], list[int]]:
    return [0] * size, [2] * (size // 2)


def differing_in_many_places(size: int) -> tuple[np.ndarray, np.ndarray]:
    text = LETTERS[:size]
    other = text.copy()
    other[::100] = 65
    return text, other


def with_many_insertions(size: int) -> tuple[np.ndarray, np.ndarray]:
    text = LETTERS[:size]
    return text, np.insert(text, np.arange(0, size, 200), 65)


def cut_on_the_left(size: int) -> tuple[np.ndarray, np.ndarray]:
    return LETTERS[:size], LETTERS[size // 10 : size]


def cut_on_the_right(size: int) -> tuple[np.ndarray, np.ndarray]:
    return LETTERS[: size - size // 10], LETTERS[:size]


def repeating_with_differences(size: int) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.full(size, 97), np.full(size, 97)
    one[::50], other[7::57] = 98, 99
    return one, other


def of_specials_alone(size: int) -> tuple[list[int], list[int]]:
    return [1] * (size // 4) + [2], [1] * (size // 5) + [2]


CASES = {
    without_a_common_boundary: (ONES, THREES),
    one_letter: (ONES, THREES),
    differing_in_many_places: (BYTES, BYTES),
    with_many_insertions: (BYTES, BYTES),
    cut_on_the_left: (BYTES, BYTES),
    cut_on_the_right: (BYTES, BYTES),
    repeating_with_differences: (BYTES, BYTES),
    of_specials_alone: (MARKS, MARKS),
}


def seconds_of(call: Callable[[], Spans]) -> tuple[float, Spans]:
    start = time.process_time()
    made = call()
    return time.process_time() - start, made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_four_times_the_text_takes_about_four_times_as_long(case: Callable[[int], tuple[Ids, Ids]]) -> None:
    student, teacher = CASES[case]
    long = LONG // 4 if case in (with_many_insertions, repeating_with_differences) else LONG
    sides = {size: [np.asarray(side)[None] for side in case(size)] for size in (long // 4, long)}
    seconds = dict.fromkeys(sides, math.inf)
    # What else the machine does makes a run slower, never faster, so the fastest of up to five runs counts.
    for _ in range(5):
        for size, (one, other) in sides.items():
            spent, spans = seconds_of(lambda a=one, b=other: align_ids(a, b, student=student, teacher=teacher))
            seconds[size] = min(seconds[size], spent)
            assert spans.count[0] > 0
        if seconds[long] < 10 * seconds[long // 4] + 0.1:
            return
    pytest.fail(f"seconds by bytes of text: {seconds}")


def test_a_text_without_a_common_boundary_is_one_chunk() -> None:
    ours, theirs = without_a_common_boundary(LONG)
    spans = align_ids([ours], [theirs], student=ONES, teacher=THREES)
    assert spans.count.tolist() == [1]
    assert (spans.student == 0).all()
    assert (spans.teacher == 0).all()


def test_what_two_long_texts_share_is_found() -> None:
    for case in (differing_in_many_places, with_many_insertions, cut_on_the_left, cut_on_the_right):
        ours, theirs = (side[None] for side in case(LONG // 10))
        spans = align_ids(ours, theirs, student=BYTES, teacher=BYTES)
        assert int(spans.count[0]) >= 0.89 * LONG // 10
        kept = spans.student[0] >= 0
        assert np.array_equal(ours[0][kept], theirs[0][spans.teacher[0] >= 0])


@pytest.mark.parametrize(
    "case",
    [without_a_common_boundary, one_letter, differing_in_many_places, of_specials_alone],
    ids=lambda c: c.__name__,
)
def test_memory_is_a_small_multiple_of_the_text(case: Callable[[int], tuple[Ids, Ids]]) -> None:
    student, teacher = CASES[case]
    one, other = (np.asarray(side)[None] for side in case(LONG // 4))
    align_ids(one[:, :9], other[:, :9], student=student, teacher=teacher)
    tracemalloc.start()
    try:
        align_ids(one, other, student=student, teacher=teacher)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # One number of eight bytes per byte of text and per token, some twenty times over.
    assert peak < 20 * 8 * (LONG // 4 + one.size + other.size)


def test_ten_thousand_empty_texts_have_ten_thousand_empty_rows() -> None:
    seconds, spans = seconds_of(lambda: align_texts([""] * 10_000, student=ONES, teacher=THREES))
    assert spans.student.shape == spans.teacher.shape == (10_000, 0)
    assert spans.count.tolist() == [0] * 10_000
    some = align_ids([[]] * 9_999 + [[0]], [[]] * 9_999 + [[1]], student=ONES, teacher=THREES)
    assert some.count.tolist() == [0] * 9_999 + [1]
    assert seconds < 5


def test_rows_are_aligned_as_one_by_one_whatever_the_blocks() -> None:
    rng = np.random.default_rng(3)
    texts = ["".join(map(chr, rng.integers(97, 99, int(size)))) for size in rng.integers(0, 60, 40)]
    pairs = vocab([b"a", b"b", b"ab", b"ba", b"aab"])
    plain = vocab([b"a", b"b", b"abb", b"bb"])
    ours, theirs = (side.encode_batch(texts) for side in (pairs, plain))
    theirs[5] = theirs[5][::-1]
    theirs[25] = theirs[25][:-3]
    student, teacher = (units_of(side, width=9, side="student") for side in (ours, theirs))
    args = student.ids, student.counts, teacher.ids, teacher.counts, pair_tables(pairs, plain)
    together, whole = chunks_of(*args, block_tokens=50), chunks_of(*args)
    for name in ("student", "teacher", "count", "differs"):
        assert np.array_equal(getattr(together, name), getattr(whole, name)), name
    spans = align_ids(ours, theirs, student=pairs, teacher=plain)
    for row, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        alone = align_ids([one], [other], student=pairs, teacher=plain)
        assert np.array_equal(alone.student[0], spans.student[row, : len(one)])
        assert np.array_equal(alone.teacher[0], spans.teacher[row, : len(other)])
