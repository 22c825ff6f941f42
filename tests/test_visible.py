"""Strings made visible."""

from __future__ import annotations

import re

import regex
from hypothesis import given
from hypothesis import strategies as st

from xtoken_align.visible import LONGEST, MARKS, markup, visible, visible_bytes

_UNSEEN = regex.compile(r"[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]")


def test_bidirectional_overrides_are_written_out() -> None:
    assert visible("a\u202eb\u2066") == r"a\u202eb\u2066"


def test_a_backslash_of_the_token_itself_is_doubled() -> None:
    assert visible("\\n") == r"\\n"
    assert visible("\n") == r"\n"


def test_bytes_and_code_points_do_not_look_alike() -> None:
    assert visible_bytes(b"\x85") == r"\x85"
    assert visible_bytes("\x85".encode()) == r"\u0085"


def test_characters_that_draw_nothing_are_written_out_though_they_are_letters_or_marks() -> None:
    assert visible("\u3164\ufe0f\u2800\u00a0") == r"\u3164\ufe0f\u2800\u00a0"


def test_spaces_and_ordinary_letters_of_any_script_stay() -> None:
    assert visible(" the 中 слово עברית") == " the 中 слово עברית"


def test_a_long_string_is_cut_and_says_by_how_much() -> None:
    assert visible("a" * (LONGEST + 3)) == "a" * LONGEST + "\\…[3 more]"
    assert visible("a" * LONGEST) == "a" * LONGEST


@given(st.text())
def test_nothing_unseen_is_left(text: str) -> None:
    assert not _UNSEEN.search(visible(text))
    visible(text).encode()


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_two_surfaces_never_look_the_same(one: bytes, other: bytes) -> None:
    assert (visible_bytes(one) == visible_bytes(other)) == (one == other)


@given(st.text())
def test_every_backslash_begins_a_mark(text: str) -> None:
    assert "\\" not in re.sub(MARKS, "", visible(text))


@given(st.text())
def test_markup_has_the_text_and_no_elements_but_its_own(text: str) -> None:
    html = str(markup(visible(text)))
    plain = re.sub(r"</?(?:bdi|span)(?: class=\"[a-z ]+\")?>", "", html)
    assert "<" not in plain
    assert ">" not in plain


def test_markup_names_spaces_and_escapes() -> None:
    assert str(markup(visible(" a\n"))) == (
        '<bdi class="tok"><span class="sp"> </span>a<span class="esc">\\n</span></bdi>'
    )


def test_an_empty_surface_says_so() -> None:
    assert "no text" in markup("")


def test_a_leading_combining_mark_is_given_something_to_sit_on() -> None:
    assert 'class="tok mark"' in markup("\u0301")
