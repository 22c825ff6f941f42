"""The common stretches of two texts, where a normaliser, a template or a cut made them differ."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

Stretch = tuple[int, int, int]
"""Where a stretch begins in the one text, where in the other, and its length."""

Text = NDArray[np.uint8]

_WINDOWS = (32, 8)
"""Bytes that have to be equal, and occur once on each side, for a stretch between two differences to be found."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_FACTOR), -1, 1 << 64))


def common_stretches(one: Text, other: Text) -> list[Stretch]:
    """Finds stretches that both texts have, in the same order, in linear time.

    A common beginning and a common end come first. Between them, stretches grow from windows of 32 bytes, then of 8,
    that occur once on each side; of those that cross each other the longest chain is kept (the idea of patience diff).

    Args:
        one: uint8 (n,).
        other: uint8 (m,).

    Returns:
        Stretches, ascending on both sides and without overlap; every one is equal bytes.

    >>> text = lambda string: np.frombuffer(string.encode(), dtype=np.uint8)
    >>> common_stretches(text("user: hello"), text("hello"))
    [(6, 0, 5)]
    """
    found: list[Stretch] = []
    _between(one, other, 0, 0, _WINDOWS, found)
    return found


def _between(one: Text, other: Text, at: int, there: int, windows: tuple[int, ...], found: list[Stretch]) -> None:
    head = _equal_run(one, other)
    if head:
        found.append((at, there, head))
        one, other, at, there = one[head:], other[head:], at + head, there + head
    tail = _equal_run(one[::-1], other[::-1])
    one, other = one[: len(one) - tail], other[: len(other) - tail]
    if windows and min(len(one), len(other)) >= windows[0]:
        begin, begin_there = 0, 0
        for start, there_start, length in [*_anchors(one, other, windows[0]), (len(one), len(other), 0)]:
            # Between two anchors lies what no window of this size could find.
            piece, piece_there = one[begin:start], other[begin_there:there_start]
            _between(piece, piece_there, at + begin, there + begin_there, windows[1:], found)
            if length:
                found.append((at + start, there + there_start, length))
            begin, begin_there = start + length, there_start + length
    elif len(windows) > 1:
        _between(one, other, at, there, windows[1:], found)
    if tail:
        found.append((at + len(one), there + len(other), tail))


def _equal_run(one: Text, other: Text) -> int:
    """How many bytes are equal from the beginning on."""
    size = min(len(one), len(other))
    step, done = 64, 0
    while done < size:
        end = min(size, done + step)
        differs = one[done:end] != other[done:end]
        if differs.any():
            return done + int(differs.argmax())
        done, step = end, step * 4
    return size


def _anchors(one: Text, other: Text, window: int) -> list[Stretch]:
    """Stretches around windows that occur once on each side, ascending on both and without overlap."""
    left, right = _once(one, window), _once(other, window)
    _, ours, theirs = np.intersect1d(left[0], right[0], assume_unique=True, return_indices=True)
    starts, theres = left[1][ours], right[1][theirs]
    order = starts.argsort()
    starts, theres = starts[order], theres[order]
    begins = np.ones(len(starts), dtype=np.bool_)
    begins[1:] = (starts[1:] - starts[:-1] != 1) | (theres[1:] - theres[:-1] != 1)
    first = begins.nonzero()[0]
    sizes = np.diff(first, append=len(starts))
    grown = _grown(
        one,
        other,
        list(zip(starts[first].tolist(), theres[first].tolist(), (sizes + window - 1).tolist(), strict=True)),
    )
    return _apart(_chain(grown))


def _once(text: Text, window: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The codes of the windows that occur once, ascending, and where."""
    powers = np.full(len(text) + 1, _FACTOR, dtype=np.uint64)
    powers[0] = 1
    powers = np.cumprod(powers)
    sums = np.zeros(len(text) + 1, dtype=np.uint64)
    np.cumsum((text + np.uint64(1)) * powers[:-1], out=sums[1:])
    back = np.full(len(text) - window + 1, _INVERSE, dtype=np.uint64)
    back[0] = 1
    codes = (sums[window:] - sums[:-window]) * np.cumprod(back)
    values, at, counts = np.unique(codes, return_index=True, return_counts=True)
    return values[counts == 1], at[counts == 1]


def _grown(one: Text, other: Text, stretches: list[Stretch]) -> list[Stretch]:
    """The stretches as far as they go in both directions; those whose bytes differ (equal codes by chance) left out."""
    made: list[Stretch] = []
    for start, there, length in stretches:
        if made and start - made[-1][0] == there - made[-1][1] and start < made[-1][0] + made[-1][2]:
            continue
        if not np.array_equal(one[start : start + length], other[there : there + length]):
            continue
        before = _equal_run(one[:start][::-1], other[:there][::-1])
        after = _equal_run(one[start + length :], other[there + length :])
        made.append((start - before, there - before, before + length + after))
    return made


def _chain(stretches: list[Stretch]) -> list[Stretch]:
    """The chain, ascending on both sides, with most stretches (patience sorting)."""
    stretches = sorted(set(stretches))
    tops: list[int] = []
    piles: list[int] = []
    before = [-1] * len(stretches)
    for at, (_, there, length) in enumerate(stretches):
        pile = bisect_left(tops, there + length)
        before[at] = piles[pile - 1] if pile else -1
        if pile == len(tops):
            tops.append(there + length)
            piles.append(at)
        else:
            tops[pile], piles[pile] = there + length, at
    chain: list[Stretch] = []
    at = piles[-1] if piles else -1
    while at >= 0:
        chain.append(stretches[at])
        at = before[at]
    return chain[::-1]


def _apart(chain: list[Stretch]) -> list[Stretch]:
    """The chain with every overlap taken from the later stretch."""
    made: list[Stretch] = []
    end = end_there = 0
    for start, there, length in chain:
        cut = max(end - start, end_there - there, 0)
        if cut < length:
            made.append((start + cut, there + cut, length - cut))
            end, end_there = start + length, there + length
    return made
