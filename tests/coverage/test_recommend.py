from __future__ import annotations

import pytest

from xtoken_align.coverage import CLASSES, ClassRow, recommend
from xtoken_align.coverage.recommend import Recommendation
from xtoken_align.errors import OptionError


def row(common: int, total: int) -> ClassRow:
    return ClassRow(total=total, exact=common, split=total - common, common_strict=common, common_relaxed=common)


GOOD = {"digits_2": row(100, 100), "digits_3": row(1000, 1000), "ascii_punct_1": row(60, 64), "greek": row(3, 9)}
LOST = {**GOOD, "digits_2": row(0, 100), "digits_3": row(0, 1000)}
EMPTY = {"latin": ClassRow(total=6, empty=6)}


@pytest.mark.parametrize(
    ("rows", "identical", "says"),
    [
        (LOST, False, "the teacher writes 1,100 of the student's numerals in several tokens"),
        (GOOD, False, "the teacher writes 10 of the student's tokens in several tokens"),
        ({"latin": row(6, 6)}, False, "the teacher has each of the student's tokens"),
        (EMPTY, False, "no token in common"),
        (LOST, True, "the two vocabularies are equal"),
    ],
)
def test_one_loss_is_named_with_one_reason_in_plain_words(rows: dict, identical: bool, says: str) -> None:
    advice = recommend(rows, identical=identical)

    assert advice.loss == "c-kl"
    assert says in advice.reason


def test_the_papers_rule_asks_for_projection_where_numerals_are_lost() -> None:
    rule = recommend(LOST, identical=False).paper_rule

    assert rule.loss == "p-kl"
    assert rule.because == (
        "only 0 of 100 numerals of 2 digits and 0 of 1,000 numerals of 3 digits are tokens of the teacher too"
    )
    assert rule.in_file == (
        "0 of 100 digits_2 and 0 of 1000 digits_3 tokens are in the strict common set (half is needed)"
    )


def test_the_papers_rule_takes_the_hybrid_loss_where_the_critical_classes_are_kept() -> None:
    rule = recommend(GOOD, identical=False).paper_rule

    assert rule.loss == "h-kl"
    assert rule.because == (
        "100 of 100 numerals of 2 digits, 1,000 of 1,000 numerals of 3 digits and 60 of 64 single punctuation marks "
        "are tokens of the teacher too"
    )
    assert rule.in_file == (
        "100 of 100 digits_2, 1000 of 1000 digits_3 and 60 of 64 ascii_punct_1 tokens are in the strict common set "
        "(half is enough)"
    )


@pytest.mark.parametrize(("common", "loss"), [(49, "p-kl"), (50, "h-kl")])
def test_exactly_half_is_enough_for_the_papers_rule(common: int, loss: str) -> None:
    advice = recommend({"digits_2": row(common, 100)}, identical=False, critical=["digits_2"])

    assert advice.paper_rule.loss == loss


def test_a_class_without_tokens_never_decides() -> None:
    rule = recommend({"digits_2": ClassRow(), "latin": row(5, 6)}, identical=False).paper_rule

    assert rule.loss == "h-kl"
    assert rule.because == "5 of the student's 6 tokens are tokens of the teacher too, and no critical class has any"
    assert rule.in_file == "no critical class has tokens, and 5 of 6 ids are in the strict common set"


def test_the_papers_rule_asks_for_projection_where_nothing_is_common() -> None:
    rule = recommend({"latin": row(0, 6)}, identical=False).paper_rule

    assert (rule.loss, rule.because) == ("p-kl", "none of the student's 6 tokens is a token of the teacher too")
    assert rule.in_file == "none of the 6 student ids is in the strict common set"


def test_the_papers_rule_takes_an_ordinary_kl_for_equal_vocabularies() -> None:
    rule = recommend({"digits_2": row(0, 100)}, identical=True).paper_rule

    assert (rule.loss, rule.because, rule.in_file) == ("identity", *["the two vocabularies are equal"] * 2)


def test_the_users_critical_classes_replace_the_default_ones() -> None:
    assert recommend(GOOD, identical=False, critical=["greek", "greek"]).paper_rule.because == (
        "only 3 of 9 greek tokens are tokens of the teacher too"
    )
    assert recommend({**GOOD, "digits_2": row(0, 100)}, identical=False, critical=[]).paper_rule.loss == "h-kl"


@pytest.mark.parametrize("critical", [["digits_2", "digits_9"], "digits_9"])
def test_an_unknown_critical_class_is_refused_with_the_known_ones(critical: list[str] | str) -> None:
    with pytest.raises(OptionError, match="got 'digits_9'; choose among") as refusal:
        recommend(GOOD, identical=True, critical=critical)

    assert all(name in str(refusal.value) for name in CLASSES)


@pytest.mark.parametrize(("rows", "identical"), [(GOOD, False), (LOST, False), (EMPTY, False), (LOST, True)])
def test_a_recommendation_survives_a_mappings_file(rows: dict, identical: bool) -> None:
    advice = recommend(rows, identical=identical)

    assert Recommendation.from_metadata(advice.to_metadata(), rows) == advice
