"""The mapping as training code and people use it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from small_vocabs import make_vocab, vocabs

from xtoken_align import Mapping, Vocab, build
from xtoken_align.errors import MappingError
from xtoken_align.rules.links import RULES
from xtoken_align.vocab.kinds import Kind

STUDENT = make_vocab(
    ["12", "a", " a", (b"<s>", Kind.SPECIAL), "a", "жж", (b"<unused0>", Kind.RESERVED), " b"],
    name="pupil",
    roles={"bos": [3]},
)
TEACHER = make_vocab(["1", "2", "a", (b"<b>", Kind.SPECIAL), "12a", "q"], name="master", roles={"bos": [3]})


@pytest.fixture(scope="module")
def mapping() -> Mapping:
    return build(student=STUDENT, teacher=TEACHER)


def test_w_is_float32_csr_of_the_logit_widths(mapping: Mapping) -> None:
    assert (mapping.W.format, mapping.W.dtype, mapping.W.shape) == ("csr", np.float32, (8, 6))
    assert mapping.W[1].toarray().tolist() == [[0, 0, 1, 0, 0, 0]]


def test_every_row_has_a_rule(mapping: Mapping) -> None:
    assert mapping.rules == ["digits", "exact", "space", "special", "exact", "none", "none", "none"]


def test_the_version_is_the_start_of_the_content_hash(mapping: Mapping) -> None:
    assert len(mapping.content_hash) == 64
    assert mapping.version == mapping.content_hash[:12]


def test_a_row_is_found_by_id_surface_bytes_and_raw_string(mapping: Mapping) -> None:
    assert [mapping.row(token).id for token in (2, np.int64(2), " a", b" a", "Ġa", "▁a")] == [2] * 6


def test_all_tokens_of_one_surface_are_given_and_the_lowest_is_the_row(mapping: Mapping) -> None:
    assert [row.id for row in mapping.rows("a")] == [1, 4]
    assert mapping.row("a").id == 1


@pytest.mark.parametrize("token", [-1, 8, 10**12])
def test_an_id_beyond_the_vocabulary_is_refused_with_the_range(mapping: Mapping, token: int) -> None:
    with pytest.raises(MappingError, match="its ids run from 0 to 7"):
        mapping.row(token)


def test_an_unknown_token_is_refused_and_the_spaced_one_suggested(mapping: Mapping) -> None:
    with pytest.raises(MappingError, match=r"pupil has no token 'zz', neither as a surface nor as a raw string$"):
        mapping.row("zz")
    with pytest.raises(MappingError, match="' b' is one"):
        mapping.row("b")
    with pytest.raises(MappingError, match="b' b' is one"):
        mapping.row(b"b")


def test_links_come_in_the_order_of_their_positions(mapping: Mapping) -> None:
    assert [(link.surface, link.position) for link in mapping.row("12").links] == [(b"1", 0), (b"2", 1)]


def test_first_pieces_are_the_first_of_each_decomposition_and_matched_specials_each_others(mapping: Mapping) -> None:
    assert mapping.first_pieces("student").tolist() == [0, 2, 2, 3, 2, -1, -1, -1]
    assert mapping.first_pieces("teacher").tolist() == [-1, -1, 1, 3, 0, -1]


def test_an_exact_match_is_its_own_first_piece(mapping: Mapping) -> None:
    student, teacher = mapping.first_pieces("student"), mapping.first_pieces("teacher")
    assert teacher[student[1]] == 1


@pytest.mark.parametrize("side", ["pupil", "", "Student"])
def test_a_side_is_student_or_teacher(mapping: Mapping, side: str) -> None:
    for ask in (mapping.decompositions, mapping.first_pieces):
        with pytest.raises(MappingError, match="'student' and 'teacher'"):
            ask(side)  # type: ignore[arg-type]


def test_unmatched_tokens_come_numerals_first_with_their_reason(mapping: Mapping) -> None:
    assert [(entry.id, entry.reason) for entry in mapping.unmatched()] == [
        (0, "split by digits"),
        (5, "teacher cannot spell it"),
        (7, "teacher cannot spell it"),
        (6, "reserved"),
    ]
    assert [entry.id for entry in mapping.unmatched(limit=1)] == [0]
    assert mapping.unmatched(limit=0) == []


def test_the_report_has_exactly_the_keys_that_programs_rely_on(mapping: Mapping) -> None:
    report = mapping.to_dict()
    assert report.keys() == {
        *("schema", "version", "student", "teacher", "nnz", "rules", "empty", "lossy", "classes"),
        *("recommendation", "bins"),
    }
    assert report["student"].keys() == {"name", "fingerprint", "size", "logits"}
    assert report["rules"].keys() == set(RULES) - {"none"}
    assert report["empty"] == {
        "reserved": 1,
        "padding": 0,
        "hole": 0,
        "special without counterpart": 0,
        "teacher cannot spell it": 2,
    }
    assert report["recommendation"].keys() == {"loss", "default", "because"}
    assert report["bins"].keys() == {"count", "largest_student", "largest_teacher"}
    for row in report["classes"].values():
        assert row.keys() == {"total", "exact", "near", "split", "empty", "common_strict", "common_relaxed"}
    assert report["nnz"] == mapping.W.nnz


@given(vocabs("student"), vocabs("teacher"))
@settings(max_examples=60, deadline=None)
def test_counts_agree_with_the_rows(student: Vocab, teacher: Vocab) -> None:
    mapping = build(student=student, teacher=teacher)
    coverage = mapping.coverage()
    assert sum(coverage.rules.values()) + sum(coverage.empty.values()) == len(student)
    assert sum(row.total for row in coverage.classes.values()) == len(student)
    for rule, rows in coverage.rules.items():
        assert mapping.rules.count(rule) == rows
    whole = [i for i, rule in enumerate(mapping.rules) if rule in ("identity", "exact", "special")]
    # One student token per teacher token.
    assert sum(row.common_strict for row in coverage.classes.values()) == len({column_of(mapping, i) for i in whole})
    listed = {entry.id for entry in mapping.unmatched()}
    near = {"identity", "exact", "special", "space", "override"}
    assert listed == {i for i in range(len(student)) if mapping.rules[i] not in near}


def column_of(mapping: Mapping, token_id: int) -> int:
    return mapping.row(token_id).links[0].teacher_id
