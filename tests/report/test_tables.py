"""The page's tables: tokens that are split or unmatched, and numerals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_vocabs import make_vocab, vocabs

from xtoken_align import Mapping, Vocab, build
from xtoken_align.report.contents import counts, embeddable, numerals, reasons_of, token_table
from xtoken_align.visible import visible_bytes
from xtoken_align.vocab.kinds import Kind


def unpacked(table: dict[str, Any]) -> list[tuple[Any, ...]]:
    rows, at, found = table["rows"], 0, []
    for row, token_id in enumerate(rows["id"]):
        weights = table["weights"][rows["weights"][row]]
        pieces = table["pieces"][at : at + len(weights)]
        at += len(weights)
        links = [
            (table["teacher"]["id"][piece], table["teacher"]["surface"][piece], weight)
            for piece, weight in zip(pieces, weights, strict=True)
        ]
        reason, name = table["reasons"][rows["reason"][row]], table["classes"][rows["class"][row]]
        found.append((token_id, rows["surface"][row], name, reason, links))
    assert at == len(table["pieces"])
    return found


def told_by_rows(mapping: Mapping) -> list[tuple[Any, ...]]:
    return [
        (
            entry.id,
            visible_bytes(entry.surface),
            entry.class_name,
            entry.reason,
            [
                (link.teacher_id, visible_bytes(link.surface), round(link.weight, 4))
                for link in mapping.row(entry.id).links
            ],
        )
        for entry in mapping.unmatched()
    ]


@given(vocabs("student"), vocabs("teacher"), st.booleans())
def test_the_columns_hold_what_the_rows_of_the_mapping_say(student: Vocab, teacher: Vocab, reverse: bool) -> None:
    mapping = build(student=student, teacher=teacher, reverse_pass=reverse)
    table = token_table(mapping)
    assert unpacked(table) == told_by_rows(mapping)
    assert {table["rows"]["id"][at] for at in table["lossy"]} <= mapping.lossy_rows
    assert sum(rows for _, rows in reasons_of(table)) == len(table["rows"]["id"])


def test_the_number_of_pieces_is_that_before_the_cut(nasty: Mapping) -> None:
    rows = token_table(nasty)["rows"]
    assert rows["count"][rows["surface"].index(r"x\u2028y\u2029z")] == len("x\u2028y\u2029z".encode())
    assert rows["count"][rows["surface"].index("<unused0>")] == 0


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "]]>&amp;", "\u2028\u2029"])
def test_embedded_json_can_neither_end_its_element_nor_be_read_as_markup(text: str) -> None:
    embedded = embeddable({"a": text})
    assert not set("<>&\u2028\u2029") & set(embedded)
    assert json.loads(embedded) == {"a": text}


def small() -> Mapping:
    student = make_vocab(["7", "12", "9", "3", ("5", Kind.SPECIAL), "007", "12", "1000"], name="student")
    teacher = make_vocab(["7", "1", "2", " 9"], name="teacher")
    return build(student=student, teacher=teacher)


def test_every_numeral_has_a_cell_that_names_its_rule_and_pieces() -> None:
    cells = [cell for hundred in numerals(small()) for cell in hundred.cells]
    assert len(cells) == 1000
    assert cells[7].title == "7: exact, 7 (1)"
    assert cells[12].title == "12: digits, 1 (0.9091), 2 (0.09091)"
    assert cells[9].title == "9: space,  9 (1)"
    assert cells[3].title == "3: empty, teacher cannot spell it"
    assert cells[8].title == "8: not a token"


def test_only_text_tokens_that_are_the_bare_numeral_count() -> None:
    assert counts(numerals(small())) == {"exact": 1, "near": 1, "split": 1, "empty": 1, "absent": 996}


def test_cells_lie_ten_to_a_row() -> None:
    hundreds = numerals(small())
    assert [(hundred.first, len(hundred.cells)) for hundred in hundreds[:2]] == [(0, 100), (100, 100)]
    assert (hundreds[3].cells[47].x, hundreds[3].cells[47].y) == (7, 4)
    assert hundreds[3].name == "300–399"
