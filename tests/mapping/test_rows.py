"""Rows as people and programs read them."""

from __future__ import annotations

import json

from xtoken_align.mapping.find import Link, Row, json_surface


def test_surfaces_are_strings_where_they_are_utf8_and_hexadecimal_elsewhere() -> None:
    assert json_surface(" é\n".encode()) == " é\n"
    assert json_surface(b"\xe4\xb8") == {"hex": "e4b8"}
    assert json_surface(b"") == ""


def test_a_row_has_the_keys_that_programs_rely_on() -> None:
    link = Link(7, b"2", 0.9009009, 0, "digits")
    row = Row(id=3, surface=b"20", kind="text", rule="digits", links=(link,))
    assert row.to_dict() == {
        "id": 3,
        "surface": "20",
        "kind": "text",
        "rule": "digits",
        "row": [{"teacher_id": 7, "surface": "2", "weight": 0.9009009, "position": 0}],
    }


def test_an_empty_row_says_why_and_a_lossy_row_that_it_is() -> None:
    empty = Row(id=0, surface=b"", kind="hole", rule="none", links=(), reason="hole").to_dict()
    assert (empty["row"], empty["reason"]) == ([], "hole")
    lossy = Row(id=0, surface=b"a", kind="text", rule="decompose", links=(), lossy=True).to_dict()
    assert lossy["lossy"] is True


def test_every_row_is_json() -> None:
    row = Row(id=0, surface=b"\xff", kind="text", rule="bytes", links=(Link(1, b"\xff", 1.0, 0, "bytes"),))
    assert json.loads(json.dumps(row.to_dict()))["surface"] == {"hex": "ff"}
