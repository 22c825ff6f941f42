"""What is read of a `tokenizer.json` as blocks is what JSON holds, and is written as that."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtoken_align.readers.json_blocks import Merges, WrittenTable, merges_value, parse_blocks, to_json

HALVES = st.one_of(
    st.sampled_from(
        ["a", "Ġ", ",", '"', "\\", "],[", "]]", ']"', '","', "\\u0000", "\n", "[", "\\\\", '\\"', "é", " "]
    ),
    st.sampled_from(['"merges": [["', '"vocab": {', "#version"]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4),
)
PAIRS = st.lists(st.tuples(HALVES, HALVES), max_size=8)
INDENTS = st.sampled_from([None, 0, 2])
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")])


def halves(merge: Any) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def is_same(data: dict[str, Any], text: str) -> Any:
    """Reads a text, compares all of it with its JSON, and what is written of it; returns the model as it was read."""
    parsed = parse_blocks(text.encode())
    model = parsed["model"]
    merges = model["merges"]
    listed = merges.parsed() if isinstance(merges, Merges) else merges
    assert {**parsed, "model": {**model, "merges": listed}} == data
    assert merges_value(merges) == merges_value(listed)
    written = json.loads(to_json(parsed))
    assert [halves(merge) for merge in written["model"].pop("merges")] == [halves(merge) for merge in listed]
    assert written == {**data, "model": {key: data["model"][key] for key in data["model"] if key != "merges"}}
    return model


@given(PAIRS, INDENTS, SEPARATORS, st.booleans(), st.dictionaries(HALVES, st.integers(0, 9), max_size=4))
def test_pairs_of_any_strings_in_any_layout(
    pairs: list[tuple[str, str]],
    indent: int | None,
    separators: tuple[str, str],
    ascii_only: bool,
    entries: dict[str, int],
) -> None:
    vocab = {'"merges"': 1, 'x"merges': 2, **entries}
    data = {"model": {"vocab": vocab, "merges": [list(pair) for pair in pairs]}, "z": ["]]"]}
    model = is_same(data, json.dumps(data, indent=indent, separators=separators, ensure_ascii=ascii_only))
    assert isinstance(model["vocab"], dict)


@given(PAIRS, INDENTS, SEPARATORS, st.booleans())
def test_merges_with_a_space_between_their_halves(
    pairs: list[tuple[str, str]], indent: int | None, separators: tuple[str, str], ascii_only: bool
) -> None:
    data = {"model": {"merges": [f"{left} {right}" for left, right in pairs], "vocab": {"a": 0}}, "z": None}
    is_same(data, json.dumps(data, indent=indent, separators=separators, ensure_ascii=ascii_only))


@pytest.mark.parametrize("merges", [[["a", ","], [",", '"'], ["\\", "\n"]], ["a b", "] c", ", ]"]])
def test_common_layouts_are_read_as_blocks(merges: list[Any]) -> None:
    data = {"model": {"vocab": {"a": 0, '"\\': 1}, "merges": merges}}
    for text in (json.dumps(data), json.dumps(data, indent=2), json.dumps(data, separators=(",", ":"))):
        model = is_same(data, text)
        assert isinstance(model["merges"], Merges)
        assert isinstance(model["vocab"], WrittenTable)
        assert json.loads(model["vocab"].written) == model["vocab"]


@pytest.mark.parametrize("halves_of_one", [["a", " "], [" ", "b"], ["#version", "1"]])
def test_halves_that_a_space_would_not_keep_apart_stay_pairs(halves_of_one: list[str]) -> None:
    merges = Merges(merges_value([["x", "y"], halves_of_one]), paired=True)
    assert json.loads(merges.to_json()) == [["x", "y"], halves_of_one]


def test_lists_and_tables_elsewhere_are_left_alone() -> None:
    for data in (
        {"model": {"vocab": {"a": 0}, "merges": []}, "other": {"merges": ["a b"]}},
        {"other": {"vocab": {"b": 1}}, "model": {"vocab": {"a": 0}}},
        {"vocab": {"b": 1}, "model": {"vocab": [["a", 0.0]]}},
        {"model": None, "vocab": {"a": 1}},
        {"merges": ["a b"]},
    ):
        assert parse_blocks(json.dumps(data).encode()) == data


def test_half_a_file_is_not_whole_json() -> None:
    for text in (
        b'{"model": {"vocab": {}, "merges": [["a", "b"], ["c"',
        b'{"model": {"vocab": {"a": 1',
        b'{"model": {"vocab": {"\xff": 1}, "merges": []}}',
        b'{"model": {"vocab": {}, "merges": ["a \xff"]}}',
    ):
        with pytest.raises(ValueError, match=r"delimiter|decode|Expecting"):
            parse_blocks(text)
