"""The rules: their order, the options that decide them, and what each of them links."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabs import Token, make_vocab, vocabs

from xtoken_align import Mapping, Vocab, build
from xtoken_align.errors import OptionError
from xtoken_align.mapping.find import Row
from xtoken_align.rules.links import RULE_NUMBER, RULES
from xtoken_align.rules.pieces import Pair
from xtoken_align.rules.rules import DEFAULT_RULES, SELECTABLE, rule_options, run_rules
from xtoken_align.vocab.kinds import Kind

SMALL = make_vocab(["12", "a", " a"]), make_vocab(["1", "2", "a"], name="teacher")


def build_small(**options: Any) -> Any:
    return build(student=SMALL[0], teacher=SMALL[1], **options)


def test_the_rules_run_in_their_fixed_order() -> None:
    assert (
        *("none", "override", "identity", "exact", "special", "space"),
        *("case", "nfkc", "digits", "decompose", "bytes", "reverse"),
    ) == RULES
    assert tuple(rule for rule in SELECTABLE if rule not in ("case", "nfkc")) == DEFAULT_RULES


def test_the_order_in_which_rules_are_named_changes_nothing() -> None:
    one, other = (build_small(rules=rules) for rules in (["digits", "space", "exact"], ["exact", "digits", "space"]))
    assert one.content_hash == other.content_hash


def test_disabled_rules_are_reported_with_0() -> None:
    coverage = build_small(rules=["exact"]).coverage()
    assert coverage.rules == {rule: int(rule == "exact") for rule in RULES if rule != "none"}


@pytest.mark.parametrize("name", ["exactly", "none", "reverse", "", "Exact"])
def test_unknown_rules_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(OptionError, match="the rules are override, identity, exact"):
        build_small(rules=["exact", name])


def test_an_empty_list_of_rules_is_refused() -> None:
    with pytest.raises(OptionError, match="at least one"):
        build_small(rules=[])


@pytest.mark.parametrize(
    "options",
    [
        *({"lead": value} for value in (0, -1, 1.1, float("nan"))),
        *({"decay": value} for value in (-0.1, 1.1, float("nan"))),
        *({"top_k": value} for value in (0, -1, 256, 2.5)),
    ],
)
def test_numbers_out_of_their_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))} is a"):
        build_small(**options)


def test_whole_numbers_and_fractions_of_one_value_make_one_mapping() -> None:
    assert build_small(lead=1, decay=0).content_hash == build_small(lead=1.0, decay=0.0).content_hash


@given(vocabs("student"), vocabs("teacher"), st.sets(st.sampled_from(SELECTABLE), min_size=1))
def test_no_row_is_given_by_two_rules(student: Vocab, teacher: Vocab, rules: set[str]) -> None:
    seen: set[int] = set()
    for links in run_rules(Pair.of(student, teacher), rule_options(rules=sorted(rules))):
        rows = set(links.rows.tolist())
        assert not rows & seen
        seen |= rows


@given(vocabs("student"), vocabs("teacher"))
@settings(max_examples=25)
def test_switching_a_later_rule_off_changes_no_row_of_an_earlier_one(student: Vocab, teacher: Vocab) -> None:
    full = build(student=student, teacher=teacher)
    for count in range(1, len(DEFAULT_RULES) + 1):
        some = build(student=student, teacher=teacher, rules=DEFAULT_RULES[:count])
        for token_id, rule in enumerate(full.rules):
            if rule in DEFAULT_RULES[:count]:
                assert some.row(token_id) == full.row(token_id)
            else:
                assert some.rules[token_id] == "none"


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
def test_equal_vocabularies_map_every_token_to_itself(vocab: Vocab) -> None:
    mapping = build(student=vocab, teacher=vocab)
    for token_id in vocab.speakable_ids.tolist():
        assert matched(mapping.row(token_id)) == ("identity", [token_id])
    assert mapping.coverage().recommendation.paper_rule.loss == "identity"
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
