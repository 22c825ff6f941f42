"""The rules that split tokens: what counts as a numeral, as text, as bytes, and what the reverse pass adds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from small_vocabs import make_vocab, vocabs

from xtoken_align import Mapping, Vocab, build
from xtoken_align.rules.links import RULE_NUMBER
from xtoken_align.vocab.kinds import Kind

DIGITS = make_vocab([*"0123456789", " ", "a"], name="teacher")


def links(mapping: Mapping, token: int | str | bytes) -> list[tuple[bytes, float, int]]:
    return [(link.surface, round(link.weight, 4), link.position) for link in mapping.row(token).links]


@pytest.mark.parametrize(
    ("numeral", "rule"),
    [("12", "digits"), (" 12", "digits"), ("1" * 50, "digits"), ("  12", "decompose"), ("12a", "decompose")],
)
def test_a_numeral_has_ascii_digits_and_at_most_one_leading_space(numeral: str, rule: str) -> None:
    assert build(student=make_vocab([numeral]), teacher=DIGITS).row(0).rule == rule


def test_digits_of_other_scripts_are_no_numerals() -> None:
    teacher = make_vocab(["１", "２"], name="teacher")
    assert build(student=make_vocab(["１２"]), teacher=teacher).row(0).rule == "decompose"


def test_three_pieces_weigh_as_the_paper_says() -> None:
    assert links(build(student=make_vocab(["201"]), teacher=DIGITS), "201") == [
        (b"2", 0.9009, 0),
        (b"0", 0.0901, 1),
        (b"1", 0.009, 2),
    ]


def test_the_second_zero_of_200_is_added_to_its_first() -> None:
    mapping = build(student=make_vocab(["200"]), teacher=DIGITS)
    assert links(mapping, "200") == [(b"2", 0.9009, 0), (b"0", 0.0991, 1)]
    assert mapping.decompositions("student")[0] == [2, 0, 0]


def test_a_row_is_cut_to_its_first_four_pieces_and_its_decomposition_is_not() -> None:
    mapping = build(student=make_vocab(["12345"]), teacher=DIGITS)
    assert [surface for surface, _, _ in links(mapping, 0)] == [b"1", b"2", b"3", b"4"]
    assert mapping.decompositions("student")[0] == [1, 2, 3, 4, 5]


def test_decay_0_keeps_the_first_piece_alone() -> None:
    assert links(build(student=make_vocab(["201"]), teacher=DIGITS, decay=0), 0) == [(b"2", 1.0, 0)]


def test_decay_1_weighs_all_pieces_alike() -> None:
    assert [weight for _, weight, _ in links(build(student=make_vocab(["12"]), teacher=DIGITS, decay=1), 0)] == [
        0.5
    ] * 2


def test_top_k_1_keeps_the_first_piece_alone() -> None:
    assert links(build(student=make_vocab(["201"]), teacher=DIGITS, top_k=1), 0) == [(b"2", 1.0, 0)]


def test_text_with_an_unknown_token_in_it_stays_empty() -> None:
    teacher = make_vocab(["a", (b"<unk>", Kind.SPECIAL)], unknown=1, name="teacher")
    row = build(student=make_vocab(["aж"]), teacher=teacher).row(0)
    assert (row.links, row.reason) == ((), "teacher cannot spell it")


def test_a_text_that_a_normaliser_changes_is_marked_lossy_and_counted() -> None:
    teacher = make_vocab(["e", "a"], normalise={"é": "e"}, name="teacher")
    mapping = build(student=make_vocab(["éa", "ea"]), teacher=teacher)
    assert (mapping.row(0).rule, mapping.row(0).lossy, mapping.row(1).lossy) == ("decompose", True, False)
    assert mapping.coverage().lossy == 1


def test_text_that_spells_a_special_token_is_text() -> None:
    teacher = make_vocab([(b"<s>", Kind.SPECIAL), "<", "s", ">"], name="teacher")
    mapping = build(student=make_vocab(["<s>"]), teacher=teacher)
    assert mapping.decompositions("student")[0] == [1, 2, 3]


def test_a_byte_token_becomes_the_text_of_its_byte() -> None:
    student = make_vocab([(b"8", Kind.BYTE)])
    teacher = make_vocab([(b"<>", Kind.SPECIAL), "8"], name="teacher")
    assert build(student=student, teacher=teacher).row(0).rule == "bytes"
    assert links(build(student=student, teacher=teacher), 0) == [(b"8", 1.0, 0)]


def test_half_a_character_becomes_the_byte_token_of_its_byte() -> None:
    teacher = make_vocab(["a", (b"\xc3", Kind.BYTE)], name="teacher")
    mapping = build(student=make_vocab([b"\xc3"]), teacher=teacher)
    assert (mapping.row(0).rule, links(mapping, 0)) == ("bytes", [(b"\xc3", 1.0, 0)])


@pytest.mark.parametrize("merges_bytes", [True, False])
def test_bytes_without_an_equal_become_the_teachers_bytes(merges_bytes: bool) -> None:
    teacher = make_vocab(["a", (b"\xe4", Kind.BYTE), (b"\xb8", Kind.BYTE)], merges_bytes=merges_bytes, name="teacher")
    mapping = build(student=make_vocab([b"a\xe4\xb8"]), teacher=teacher)
    assert mapping.row(0).rule == "bytes"
    assert mapping.decompositions("student")[0] == [0, 1, 2]


def test_the_teachers_own_merges_over_bytes_come_before_its_byte_tokens() -> None:
    teacher = make_vocab([b"\xe4", b"\xb8", b"\xe4\xb8", b"\x80"], name="teacher")
    mapping = build(student=make_vocab([b"\xe4\xb8\x80\xe4"]), teacher=teacher)
    assert mapping.decompositions("student")[0] == [2, 3, 0]


def test_bytes_that_the_teacher_lacks_leave_the_row_empty() -> None:
    assert build(student=make_vocab([b"\xe4"]), teacher=make_vocab(["a"])).row(0).reason == "teacher cannot spell it"


def test_the_reverse_pass_gives_an_unreached_teacher_token_to_its_student_pieces() -> None:
    student, teacher = make_vocab(["a", "b", "c"]), make_vocab(["a", "b", "ab", "c"], name="teacher")
    mapping = build(student=student, teacher=teacher, reverse_pass=True)
    # ab is a, b with 10/11 and 1/11; the rows of a and b are normalised again.
    assert links(mapping, 0) == [
        (b"a", round(1 / (1 + 10 / 11), 4), 0),
        (b"ab", round((10 / 11) / (1 + 10 / 11), 4), 0),
    ]
    assert links(mapping, 1) == [(b"b", round(11 / 12, 4), 0), (b"ab", round(1 / 12, 4), 1)]
    assert mapping.rules == ["exact", "exact", "exact"]
    assert [link.rule for link in mapping.row(0).links] == ["exact", "reverse"]
    assert mapping.coverage().rules["reverse"] == 0


def test_the_reverse_pass_weighs_a_split_row_as_one_before_it_adds_to_it() -> None:
    student = make_vocab(["12", "1"])
    teacher = make_vocab(["1", "2", "12x", "x"], name="teacher")
    student_with_x = make_vocab(["12", "1", "x"])
    assert student.sizes.logits == 2
    mapping = build(student=student_with_x, teacher=teacher, reverse_pass=True)
    total = 1 + 10 / 11
    assert links(mapping, 0) == [
        (b"1", round(10 / 11 / total, 4), 0),
        (b"12x", round(10 / 11 / total, 4), 0),
        (b"2", round(1 / 11 / total, 4), 1),
    ]


def test_a_row_that_only_the_reverse_pass_fills_is_its_own() -> None:
    student = make_vocab(["q", "ж"], normalise={"é": "ж"})
    teacher = make_vocab(["é"], name="teacher")
    mapping = build(student=student, teacher=teacher, reverse_pass=True)
    assert mapping.row(1).rule == "reverse"
    assert mapping.coverage().rules["reverse"] == 1


@given(vocabs("student"), vocabs("teacher"))
@settings(max_examples=80, deadline=None)
def test_the_reverse_pass_leaves_untouched_rows_and_all_owners_as_they_were(student: Vocab, teacher: Vocab) -> None:
    before = build(student=student, teacher=teacher)
    after = build(student=student, teacher=teacher, reverse_pass=True)
    backward = after.matrix.rule == RULE_NUMBER["reverse"]
    touched = set(after.matrix.rows[backward].tolist())
    for token_id in range(len(student)):
        if token_id not in touched:
            assert after.row(token_id) == before.row(token_id)
        elif before.row(token_id).links:
            assert after.row(token_id).rule == before.row(token_id).rule
    reached = np.zeros(len(teacher), dtype=np.bool_)
    reached[after.matrix.indices] = True
    assert reached[after.decompositions("teacher").lengths > 0].all()


@given(vocabs("student"), vocabs("teacher"))
@settings(max_examples=80, deadline=None)
def test_pieces_spell_their_token_unless_it_is_counted_as_lossy(student: Vocab, teacher: Vocab) -> None:
    mapping = build(student=student, teacher=teacher)
    for tokens, by, side in ((student, teacher, "student"), (teacher, student, "teacher")):
        pieces = mapping.decompositions(side)
        lossy = set(pieces.lossy.tolist())
        for token_id in range(len(tokens)):
            if pieces[token_id]:
                said = b"".join(by.surfaces[piece] for piece in pieces[token_id])
                assert (said != tokens.surfaces[token_id]) == (token_id in lossy)
                assert (by.kinds[pieces[token_id]] <= Kind.BYTE).all()
