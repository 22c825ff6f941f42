"""Common stretches: equal, ascending, and found around one difference."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtoken_align.spans.careful import common_stretches


def found(one: bytes, other: bytes) -> list[tuple[int, int, int]]:
    stretches = common_stretches(np.frombuffer(one, dtype=np.uint8), np.frombuffer(other, dtype=np.uint8))
    at = there = 0
    for start, other_start, length in stretches:
        assert length > 0
        assert start >= at
        assert other_start >= there
        assert one[start : start + length] == other[other_start : other_start + length]
        assert start + length <= len(one)
        assert other_start + length <= len(other)
        at, there = start + length, other_start + length
    return stretches


def covered(stretches: list[tuple[int, int, int]]) -> int:
    return sum(length for _, _, length in stretches)


def unique(size: int, seed: int) -> bytes:
    return bytes(random.Random(seed).choices(range(256), k=size))


few = st.text(alphabet="ab", max_size=200).map(str.encode)
pieces = st.lists(st.integers(0, 12), max_size=12).map(lambda seeds: b"".join(unique(20, seed) for seed in seeds))


@given(one=st.one_of(st.binary(max_size=80), few, pieces), other=st.one_of(st.binary(max_size=80), few, pieces))
def test_stretches_are_equal_bytes_and_ascend_on_both_sides_without_overlap(one: bytes, other: bytes) -> None:
    stretches = found(one, other)
    mirrored = found(other, one)
    head = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    for some, first in ((stretches, (0, 0)), (mirrored, (0, 0))):
        assert (covered(some) > 0) >= (head > 0)
        if head:
            assert some[0][:2] == first
            assert some[0][2] >= head


@given(text=st.one_of(st.binary(max_size=200), few))
def test_a_text_and_itself_are_one_stretch(text: bytes) -> None:
    assert found(text, text) == ([(0, 0, len(text))] if text else [])


@given(
    seed=st.integers(0, 99),
    at=st.integers(0, 400),
    gone=st.integers(0, 80),
    put=st.binary(max_size=80),
)
def test_one_insertion_deletion_or_replacement_leaves_all_the_rest(seed: int, at: int, gone: int, put: bytes) -> None:
    text = unique(400, seed)
    changed = text[:at] + put + text[at + gone :]
    assert covered(found(text, changed)) >= len(text) - len(text[at : at + gone])
    assert covered(found(changed, text)) >= len(text) - len(text[at : at + gone])


@pytest.mark.parametrize("size", [40, 12])
def test_many_differences_leave_what_lies_between_them(size: int) -> None:
    parts = [unique(size, seed) for seed in range(30)]
    one = b"".join(part + b"..."[: at % 4] for at, part in enumerate(parts))
    other = b"".join(part + b"?!" for part in parts)
    assert covered(found(one, other)) >= 30 * size


def test_a_beginning_and_an_end_are_cut_off() -> None:
    text = unique(300, 1)
    for cut in (1, 7, 50, 200):
        assert found(text, text[cut:])[-1] == (cut, 0, 300 - cut)
        assert found(text, text[:-cut]) == [(0, 0, 300 - cut)]
        assert found(b"user: " + text, text[cut:])[-1] == (6 + cut, 0, 300 - cut)


def test_parts_that_changed_places_keep_one_order() -> None:
    parts = [unique(50, seed) for seed in range(4)]
    stretches = found(b"".join(parts), b"".join([parts[0], parts[2], parts[3], parts[1]]))
    assert covered(stretches) == 150


def test_nothing_in_common_is_no_stretch() -> None:
    assert found(b"a" * 100, b"b" * 100) == []
    assert found(b"", b"b") == []
