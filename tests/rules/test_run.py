"""The order of the rules, and the options that decide them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabs import make_vocab, vocabs

from xtoken_align import Vocab, build
from xtoken_align.errors import OptionError
from xtoken_align.rules.links import RULES
from xtoken_align.rules.pieces import Pair
from xtoken_align.rules.run import DEFAULT_RULES, SELECTABLE, rule_options, run_rules

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
@settings(max_examples=80, deadline=None)
def test_no_row_is_given_by_two_rules(student: Vocab, teacher: Vocab, rules: set[str]) -> None:
    seen: set[int] = set()
    for links in run_rules(Pair(student, teacher), rule_options(rules=sorted(rules))):
        rows = set(links.rows.tolist())
        assert not rows & seen
        seen |= rows


@given(vocabs("student"), vocabs("teacher"))
@settings(max_examples=25, deadline=None)
def test_switching_a_later_rule_off_changes_no_row_of_an_earlier_one(student: Vocab, teacher: Vocab) -> None:
    full = build(student=student, teacher=teacher)
    for count in range(1, len(DEFAULT_RULES) + 1):
        some = build(student=student, teacher=teacher, rules=DEFAULT_RULES[:count])
        for token_id, rule in enumerate(full.rules):
            if rule in DEFAULT_RULES[:count]:
                assert some.row(token_id) == full.row(token_id)
            else:
                assert some.rules[token_id] == "none"
