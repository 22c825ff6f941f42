"""Bins against a union-find that anyone can follow."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabs import make_vocab, vocabs

from xtoken_align import Vocab, build
from xtoken_align.mapping.bins import BinSizes, measure_bins, split_into_bins
from xtoken_align.vocab.kinds import Kind


def slow_bins(student_first: list[int], teacher_first: list[int]) -> tuple[list[int], list[int]]:
    """Union-find over all tokens; components with both sides, numbered by their lowest student id."""
    width = len(student_first)
    parent = list(range(width + len(teacher_first)))

    def root(node: int) -> int:
        while parent[node] != node:
            node = parent[node]
        return node

    for token_id, piece in enumerate(student_first):
        if piece >= 0:
            parent[root(token_id)] = root(width + piece)
    for token_id, piece in enumerate(teacher_first):
        if piece >= 0:
            parent[root(width + token_id)] = root(piece)
    roots = [root(node) for node in range(len(parent))]
    shared = set(roots[:width]) & set(roots[width:])
    number: dict[int, int] = {}
    for node in roots[:width]:
        if node in shared:
            number.setdefault(node, len(number))
    bins = [number.get(node, -1) for node in roots]
    return bins[:width], bins[width:]


def firsts(own: int, other: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(-1, other - 1), min_size=own, max_size=own)


SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(SIZES.flatmap(lambda sizes: st.tuples(firsts(*sizes), firsts(*sizes[::-1]))))
@settings(max_examples=200)
def test_bins_are_those_of_a_union_find(pair: tuple[list[int], list[int]]) -> None:
    student, teacher = split_into_bins(*(np.array(side, dtype=np.int32) for side in pair))
    assert (student.tolist(), teacher.tolist()) == slow_bins(*pair)


@given(vocabs("student"), vocabs("teacher"), st.booleans())
def test_a_mappings_bins_are_those_of_its_first_pieces(student: Vocab, teacher: Vocab, reverse_pass: bool) -> None:
    mapping = build(student=student, teacher=teacher, reverse_pass=reverse_pass)
    slow = slow_bins(*(mapping.first_pieces(side).tolist() for side in ("student", "teacher")))
    assert tuple(side.tolist() for side in mapping.bins()) == slow
    assert mapping.bin_sizes == measure_bins(*mapping.bins())


def test_a_long_chain_of_first_pieces_is_one_bin() -> None:
    length = 200_000
    ids = np.arange(length, dtype=np.int32)
    student, teacher = split_into_bins(ids[::-1].copy(), np.minimum(ids[::-1] + 1, length - 1).astype(np.int32))
    assert set(student.tolist()) == set(teacher.tolist()) == {0}


def test_a_token_without_partner_is_in_no_bin() -> None:
    student, teacher = split_into_bins(np.array([0, -1], np.int32), np.array([0, -1, -1], np.int32))
    assert (student.tolist(), teacher.tolist()) == ([0, -1], [0, -1, -1])


def test_sizes_are_counted_on_each_side_by_itself() -> None:
    sizes = measure_bins(np.array([0, 0, 1, -1], np.int32), np.array([0, 1, 1, 1, -1], np.int32))
    assert sizes == BinSizes(2, 2, 3)
    assert measure_bins(np.array([-1], np.int32), np.array([], np.int32)) == BinSizes(0, 0, 0)


def test_numerals_share_the_bin_of_their_first_digit() -> None:
    mapping = build(student=make_vocab(["2", "20", "201", "3"]), teacher=make_vocab([*"0123"], name="teacher"))
    student, teacher = mapping.bins()
    assert student.tolist() == [0, 0, 0, 1]
    assert teacher.tolist() == [-1, -1, 0, 1]


def test_matched_specials_make_a_bin_and_others_none() -> None:
    student = make_vocab(["a", (b"<s>", Kind.SPECIAL), (b"<x>", Kind.SPECIAL)], roles={"bos": [1]})
    teacher = make_vocab(["a", (b"<b>", Kind.SPECIAL), (b"<y>", Kind.SPECIAL)], roles={"bos": [1]}, name="teacher")
    student_bin, teacher_bin = build(student=student, teacher=teacher).bins()
    assert (student_bin.tolist(), teacher_bin.tolist()) == ([0, 1, -1], [0, 1, -1])


def test_the_rule_bytes_takes_part_in_bins() -> None:
    student, teacher = make_vocab([b"\xc3\xa9\xc3"]), make_vocab([(b"\xc3", Kind.BYTE), (b"\xa9", Kind.BYTE)], name="t")
    assert build(student=student, teacher=teacher).bins()[0].tolist() == [0]
