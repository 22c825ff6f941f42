"""The page as text: complete, the same each time, and closed to what its tokens contain."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from small_vocabs import make_vocab, vocabs

from xtoken_align import Mapping, Vocab, build
from xtoken_align.coverage.recommend import PaperRule, Recommendation
from xtoken_align.errors import MissingExtraError, StoreError
from xtoken_align.report import render_html, write_html
from xtoken_align.vocab.kinds import Kind

_VOID = {"meta", "input", "br"}


class Outline(HTMLParser):
    """Elements, ids and attributes of a page; an element that is not closed in its place is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, attribute: str) -> list[str | None]:
        return [value for _, name, value in self.attributes if name == attribute]


@pytest.fixture(scope="module")
def page(nasty: Mapping) -> str:
    return render_html(nasty)


def test_a_page_is_the_same_each_time(nasty: Mapping, page: str) -> None:
    assert render_html(nasty) == page


def test_no_token_makes_an_element_or_an_attribute(page: str) -> None:
    outline = Outline(page)
    assert outline.elements["script"] == 3
    assert not {"img", "i", "b"} & {name for name, count in outline.elements.items() if name == "img" and count}
    assert not [name for _, name, _ in outline.attributes if name.startswith("on") or name == "style"]


def test_no_character_is_left_that_turns_text_around_or_is_not_seen(page: str) -> None:
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028\u2029\0\x1b\x7f\x85\u3164\ufe0f]", page)


def test_nothing_on_the_page_points_out_of_it(page: str) -> None:
    outline = Outline(page)
    assert not outline.values("src")
    assert all(str(target).startswith("#") for target in outline.values("href"))
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert "@import" not in page
    assert "url(" not in page


def test_the_policy_names_exactly_the_style_and_the_scripts_that_are_there(page: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]
    inline = re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", page, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline}
    assert set(re.findall(r"'sha256-([^']+)'", unescape(policy[1]))) == hashes


def test_the_data_of_the_table_is_json(page: str, nasty: Mapping) -> None:
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["rows"]["id"] == [entry.id for entry in nasty.unmatched()]


def test_ids_are_unique_and_every_reference_leads_to_one(page: str) -> None:
    outline = Outline(page)
    ids = Counter(outline.values("id"))
    assert set(ids.values()) == {1}
    targets = [str(target)[1:] for target in outline.values("href")]
    for attribute in ("for", "aria-labelledby", "aria-describedby"):
        targets += [str(target) for target in outline.values(attribute)]
    assert set(targets) <= set(ids)


def test_every_table_has_a_caption_and_every_scrolling_part_can_be_reached_with_the_keyboard(page: str) -> None:
    outline = Outline(page)
    assert outline.elements["table"] == outline.elements["caption"] > 0
    for part in re.findall(r'<(?:div|pre)[^>]* class="scroll[^>]*>', page):
        assert 'tabindex="0"' in part


def test_the_page_says_what_the_mapping_is(page: str, nasty: Mapping) -> None:
    for words in (nasty.version, nasty.content_hash, nasty.student.fingerprint, "Train with C-KL", "role bos"):
        assert words in page
    assert "created" not in page


def test_a_page_is_dated_only_where_the_mapping_is(nasty: Mapping) -> None:
    assert "2026-01-02" in render_html(replace(nasty, created="2026-01-02"))


def test_a_recommendation_of_a_newer_version_is_shown_as_it_is(nasty: Mapping) -> None:
    measured = replace(
        nasty.coverage(), recommendation=Recommendation("<new>", "<reason>", PaperRule("<other>", "<because>", ""))
    )
    assert "Train with &lt;new&gt;" in render_html(replace(nasty, measured=measured))


@given(vocabs("student"), vocabs("teacher"))
@settings(max_examples=15)
def test_any_mapping_makes_a_well_formed_page(student: Vocab, teacher: Vocab) -> None:
    Outline(render_html(build(student=student, teacher=teacher)))


@pytest.mark.parametrize("kind", [Kind.TEXT, Kind.PADDING, Kind.SPECIAL])
def test_vocabularies_with_nothing_in_common_make_a_page(kind: Kind) -> None:
    mapping = build(student=make_vocab([(b"a", kind)]), teacher=make_vocab(["b"]))
    page = render_html(mapping)
    Outline(page)
    assert "No token is split." in page


def test_names_with_half_characters_are_written_out(nasty: Mapping) -> None:
    broken = replace(nasty, student=replace(nasty.student, name="a\ud800", source="\udce4"))
    render_html(broken).encode()


def test_the_file_is_the_page(tmp_path: Path, nasty: Mapping, page: str) -> None:
    path = tmp_path / "report.html"
    path.write_text("older", encoding="utf-8")
    write_html(nasty, path)
    assert path.read_text(encoding="utf-8") == page
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, nasty: Mapping) -> None:
    with pytest.raises(StoreError, match="cannot write"):
        write_html(nasty, tmp_path / "absent" / "report.html")


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_a_missing_library_is_named_by_its_extra(library: str, nasty: Mapping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"xtoken-align\[report\]"):
        render_html(nasty)


def test_the_page_of_a_real_pair_stays_below_four_megabytes(llama_qwen: Mapping) -> None:
    page = render_html(llama_qwen)
    assert len(page.encode()) < 4_000_000
    Outline(page)
    assert "0 of 100 numerals of 2 digits and 0 of 1,000 numerals of 3 digits" in page
