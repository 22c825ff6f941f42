from __future__ import annotations

import pytest

from xtoken_align.coverage import CLASSES, ClassRow, recommend
from xtoken_align.errors import OptionError


def row(common: int, total: int) -> ClassRow:
    return ClassRow(total=total, exact=common, split=total - common, common_strict=common, common_relaxed=common)


GOOD = {"digits_2": row(100, 100), "digits_3": row(1000, 1000), "ascii_punct_1": row(60, 64), "greek": row(3, 9)}


def test_lost_numerals_ask_for_projection_and_are_named_with_their_numbers() -> None:
    advice = recommend({**GOOD, "digits_2": row(0, 100), "digits_3": row(0, 1000)}, identical=False)

    assert advice.loss == "p-kl"
    assert advice.because == (
        "0 of 100 digits_2 and 0 of 1000 digits_3 tokens are in the strict common set (half is needed)"
    )


def test_kept_critical_classes_allow_the_hybrid_loss_and_are_named() -> None:
    advice = recommend(GOOD, identical=False)

    assert advice.loss == "h-kl"
    assert advice.because == (
        "100 of 100 digits_2, 1000 of 1000 digits_3 and 60 of 64 ascii_punct_1 tokens are in the strict common set "
        "(half is enough)"
    )


@pytest.mark.parametrize(("common", "loss"), [(49, "p-kl"), (50, "h-kl")])
def test_exactly_half_is_enough(common: int, loss: str) -> None:
    assert recommend({"digits_2": row(common, 100)}, identical=False, critical=["digits_2"]).loss == loss


def test_a_class_without_tokens_never_decides() -> None:
    advice = recommend({"digits_2": ClassRow(), "latin": row(5, 6)}, identical=False)

    assert advice.loss == "h-kl"
    assert advice.because == "no critical class has tokens, and 5 of 6 ids are in the strict common set"


def test_an_empty_common_set_asks_for_projection_and_says_so() -> None:
    advice = recommend({"latin": row(0, 6)}, identical=False)

    assert advice.loss == "p-kl"
    assert advice.because == "none of the 6 student ids is in the strict common set"


def test_equal_vocabularies_ask_for_the_identity() -> None:
    advice = recommend({"digits_2": row(0, 100)}, identical=True)

    assert (advice.loss, advice.because) == ("identity", "the two vocabularies are equal")


def test_the_users_critical_classes_replace_the_default_ones() -> None:
    assert recommend(GOOD, identical=False, critical=["greek", "greek"]).because == (
        "3 of 9 greek tokens are in the strict common set (half is needed)"
    )
    assert recommend({**GOOD, "digits_2": row(0, 100)}, identical=False, critical=[]).loss == "h-kl"


@pytest.mark.parametrize("critical", [["digits_2", "digits_9"], "digits_9"])
def test_an_unknown_critical_class_is_refused_with_the_known_ones(critical: list[str] | str) -> None:
    with pytest.raises(OptionError, match="got 'digits_9'; choose among") as refusal:
        recommend(GOOD, identical=True, critical=critical)

    assert all(name in str(refusal.value) for name in CLASSES)


@pytest.mark.parametrize(("has_decompositions", "default"), [(True, "c-kl"), (False, "partition-kl")])
def test_the_default_loss_depends_on_stored_decompositions(has_decompositions: bool, default: str) -> None:
    assert recommend(GOOD, identical=False, has_decompositions=has_decompositions).default == default
