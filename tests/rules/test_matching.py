"""The rules that match whole tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from small_vocabs import Token, make_vocab, vocabs

from xtoken_align import Vocab, build
from xtoken_align.mapping.find import Row
from xtoken_align.vocab.kinds import Kind


def row_of(student: Sequence[bytes | str | Token], teacher: Sequence[bytes | str | Token], **options: Any) -> Row:
    """The row of the student's first token."""
    return build(student=make_vocab(student), teacher=make_vocab(teacher, name="teacher"), **options).row(0)


def matched(row: Row) -> tuple[str, list[int]]:
    return row.rule, [link.teacher_id for link in row.links]


def special(text: str) -> Token:
    return text.encode(), Kind.SPECIAL


def test_exact_takes_the_lowest_of_equal_teacher_tokens() -> None:
    assert matched(row_of(["ab"], ["a", "ab", "ab"])) == ("exact", [1])


def test_exact_compares_bytes_and_never_what_they_decode_to() -> None:
    assert matched(row_of([b"\xc3"], [b"\xe4", b"\xc3"])) == ("exact", [1])
    assert matched(row_of([b"\xc3"], ["\ufffd", "a"])) == ("none", [])


def test_exact_keeps_text_and_byte_tokens_apart() -> None:
    assert matched(row_of(["8"], [(b"8", Kind.BYTE), "8"])) == ("exact", [1])
    assert matched(row_of([(b"8", Kind.BYTE)], ["8", (b"8", Kind.BYTE)])) == ("exact", [1])


@pytest.mark.parametrize("kind", [Kind.SPECIAL, Kind.RESERVED, Kind.PADDING, Kind.HOLE])
def test_text_never_matches_a_token_of_another_kind(kind: Kind) -> None:
    assert matched(row_of(["<s>"], [(b"<s>", kind), "x"])) == ("none", [])
    assert row_of([(b"<s>", kind), "x"], ["<s>"]).links == ()


def test_empty_surfaces_match_nothing() -> None:
    assert matched(row_of([""], ["", "a"])) == ("none", [])


def test_space_adds_or_drops_one_leading_space() -> None:
    assert matched(row_of(["a"], [" a"])) == ("space", [0])
    assert matched(row_of([" a"], ["a"])) == ("space", [0])
    assert matched(row_of(["  a"], ["x", "a", " a"])) == ("space", [2])


def test_space_needs_exactly_one_candidate() -> None:
    assert row_of([" a"], ["a", "  a"]).rule != "space"
    assert row_of(["a"], [" a", " a"]).rule != "space"
    assert row_of([" "], ["  ", " b"]).rule == "space"


def test_space_comes_after_exact() -> None:
    assert matched(row_of(["a"], [" a", "a"])) == ("exact", [1])


def test_space_leaves_half_characters_to_the_rule_bytes() -> None:
    assert row_of([b" \xc3"], [b"\xc3", " "]).rule == "bytes"


def test_case_and_nfkc_are_off_unless_asked_for() -> None:
    assert row_of(["A"], ["a"]).rule == "none"
    assert row_of(["ﬁ"], ["fi"]).rule == "none"
    assert matched(row_of(["A"], ["x", "a"], case=True)) == ("case", [1])
    assert matched(row_of(["ﬁ"], ["x", "fi"], nfkc=True)) == ("nfkc", [1])
    assert row_of(["ﬁ"], ["fi"], rules=["nfkc"]).rule == "nfkc"


def test_case_folds_both_sides_and_takes_the_lowest_teacher_token() -> None:
    assert matched(row_of(["STRASSE"], ["x", "Straße", "strasse"], case=True)) == ("case", [1])


def test_case_goes_before_nfkc_whatever_order_is_asked_for() -> None:
    assert matched(row_of(["Ａ"], ["A", "ａ"], rules=["nfkc", "case"])) == ("case", [1])


def test_rows_of_near_rules_keep_the_pieces_that_encoding_gives() -> None:
    mapping = build(student=make_vocab([" ab"]), teacher=make_vocab(["ab", " a", "b"], name="teacher"))
    assert matched(mapping.row(0)) == ("space", [0])
    assert mapping.decompositions("student")[0] == [1, 2]
    assert mapping.first_pieces("student").tolist() == [1]


def specials(
    student: list[str], student_roles: dict[str, list[int]], teacher: list[str], teacher_roles: dict[str, list[int]]
) -> list[int | None]:
    """The teacher token of each student special; both sides have one text token after them."""
    mapping = build(
        student=make_vocab([*map(special, student), "a"], roles=student_roles),
        teacher=make_vocab([*map(special, teacher), "b"], roles=teacher_roles, name="teacher"),
    )
    return [mapping.row(i).links[0].teacher_id if mapping.row(i).links else None for i in range(len(student))]


def test_specials_match_by_role_before_they_match_by_string() -> None:
    assert specials(["<e>"], {"eos": [0]}, ["<e>", "<end>"], {"eos": [1]}) == [1]


def test_specials_without_a_shared_role_match_by_string() -> None:
    assert specials(["<e>", "<q>"], {}, ["<q>", "<x>"], {}) == [None, 0]


def test_the_first_role_that_two_tokens_share_decides() -> None:
    assert specials(["<e>"], {"eot": [0], "eos": [0]}, ["<1>", "<2>"], {"eos": [0], "eot": [1]}) == [1]


def test_several_tokens_of_one_role_are_told_apart_by_string() -> None:
    assert specials(["<a>", "<b>"], {"eos": [0, 1]}, ["<b>", "<a>"], {"eos": [0, 1]}) == [1, 0]


def test_several_tokens_of_one_role_without_equal_strings_keep_their_order() -> None:
    assert specials(["<a>", "<b>"], {"eos": [0, 1]}, ["<c>", "<d>"], {"eos": [0, 1]}) == [0, 1]


def test_similar_names_are_no_match() -> None:
    assert specials(["<|begin_of_text|>"], {}, ["<|endoftext|>"], {}) == [None]


def test_a_special_without_counterpart_says_so() -> None:
    row = row_of([special("<s>"), "a"], ["a"])
    assert (row.rule, row.reason) == ("none", "special without counterpart")


def test_empty_rows_say_what_the_token_is() -> None:
    student = make_vocab([(b"<unused1>", Kind.RESERVED), (b"", Kind.PADDING), (b"", Kind.HOLE), "ж"])
    mapping = build(student=student, teacher=make_vocab(["a"], name="teacher"))
    assert [mapping.row(i).reason for i in range(4)] == ["reserved", "padding", "hole", "teacher cannot spell it"]
    assert sum(mapping.coverage().empty.values()) == 4


@given(vocabs())
@settings(max_examples=60, deadline=None)
def test_equal_vocabularies_map_every_token_to_itself(vocab: Vocab) -> None:
    mapping = build(student=vocab, teacher=vocab)
    for token_id in vocab.speakable_ids.tolist():
        assert matched(mapping.row(token_id)) == ("identity", [token_id])
    assert mapping.coverage().recommendation.loss == "identity"
    student_bin, teacher_bin = mapping.bins()
    speakable = vocab.speakable_ids
    assert (student_bin[speakable] == teacher_bin[speakable]).all()
    assert len(set(student_bin[speakable].tolist())) == len(speakable)


def test_equal_text_under_other_specials_is_identity_with_specials_by_string_then_role() -> None:
    student = make_vocab(["a", special("<s>"), special("<e>"), (b"<unused0>", Kind.RESERVED)], roles={"eos": [2]})
    teacher = make_vocab(
        ["a", special("<end>"), special("<s>"), (b"<unused1>", Kind.RESERVED), (b"", Kind.PADDING)],
        roles={"eos": [1]},
        name="teacher",
    )
    mapping = build(student=student, teacher=teacher)
    assert [matched(mapping.row(i)) for i in range(4)] == [
        ("identity", [0]),
        ("identity", [2]),
        ("special", [1]),
        ("none", []),
    ]
