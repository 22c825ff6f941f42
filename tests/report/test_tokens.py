"""The table of tokens as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabs import vocabs

from xtoken_align import Mapping, Vocab, build
from xtoken_align.report.tables import embeddable, reasons_of, token_table
from xtoken_align.visible import visible_bytes


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
@settings(max_examples=60, deadline=None)
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
