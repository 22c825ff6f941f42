"""Values say in one line and one card what they are, whatever their names hold."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from small_vocabs import make_vocab

from xtoken_align import Mapping, Vocab, build, compat, diff
from xtoken_align.cards import card

EVIL = "x\x1b]0;TITLE\x07\x1b[2J<script>\n"


def vocab(*tokens: str) -> Vocab:
    return make_vocab(["1", "2", *tokens], name=EVIL, source=EVIL)


@pytest.fixture(scope="module")
def mapping() -> Mapping:
    return build(student=vocab("12", "the"), teacher=vocab("t", "h", "e"))


def values(mapping: Mapping) -> list[object]:
    both = mapping.student, mapping.teacher
    return [vocab("12"), mapping, *both, mapping.coverage(), compat(*both), diff(mapping, mapping)]


def test_a_value_prints_one_line_without_control_characters(mapping: Mapping) -> None:
    for value in values(mapping):
        assert len(repr(value)) < 400
        assert not re.search(r"[\x00-\x1f\x7f]", repr(value)), type(value)


def test_a_mapping_says_who_learns_from_whom_and_how_rows_are_mapped(mapping: Mapping) -> None:
    assert f"{mapping.version}: student x\\u001b]0;TITLE" in repr(mapping)
    assert re.search(r"learns from teacher .*, \d+ exact, \d+ near, \d+ split, \d+ empty rows", repr(mapping))


def test_a_card_is_one_element_that_nothing_escapes_from(mapping: Mapping) -> None:
    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()
            self.depth = 0

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.add(tag)
            self.depth += 1

        def handle_endtag(self, tag: str) -> None:
            self.depth -= 1

    for value in values(mapping):
        if hasattr(value, "_repr_html_"):
            tags = Tags()
            tags.feed(value._repr_html_())
            assert tags.seen <= {"div", "b", "table", "tr", "th", "td", "span", "small"}
            assert tags.depth == 0
            assert "\x1b" not in value._repr_html_()


def test_numbers_have_separators_and_a_bar_shows_the_shares() -> None:
    shown = card("title", {"links": 12345}, {"exact": 3, "near": 0, "split": 1, "empty": 0})
    assert "12,345" in shown
    assert "width:75.000%" in shown


def test_coverage_and_unmatched_tokens_are_tables(mapping: Mapping) -> None:
    pytest.importorskip("pandas")
    coverage = mapping.coverage()
    frame = coverage.to_frame()
    assert frame["total"].to_dict() == {name: row.total for name, row in coverage.present().items()}
    listed = mapping.unmatched()
    assert list(listed.to_frame()["id"]) == [entry.id for entry in listed]
    assert list(mapping.unmatched(limit=0).to_frame().columns) == ["id", "surface", "class", "reason"]


def test_coverage_is_drawn_with_a_bar_for_each_class(mapping: Mapping) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    axes = mapping.coverage().plot()
    assert [label.get_text() for label in axes.get_yticklabels()] == list(mapping.coverage().present())
    pyplot.close("all")


@pytest.mark.parametrize(("module", "call"), [("pandas", "to_frame"), ("matplotlib.pyplot", "plot")])
def test_a_missing_library_is_named_by_its_extra(
    mapping: Mapping, monkeypatch: pytest.MonkeyPatch, module: str, call: str
) -> None:
    from xtoken_align.errors import MissingExtraError

    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingExtraError, match=r"xtoken-align\[notebook\]"):
        getattr(mapping.coverage(), call)()
