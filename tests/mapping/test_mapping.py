"""The mapping as training code and people use it, and what its file gives back."""

from __future__ import annotations

import json
import os
import re
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from small_vocabs import make_vocab, vocabs

from xtoken_align import Mapping, Vocab, build, diff, load
from xtoken_align.errors import ArtifactError, MappingError, StoreError
from xtoken_align.losses import XTokenLoss
from xtoken_align.mapping.file import content_hash, read_archive, write_archive
from xtoken_align.mapping.mapping import Side, load_mapping
from xtoken_align.rules.links import RULES
from xtoken_align.store.load import verify
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
    with pytest.raises(MappingError, match="neither as a surface nor as a raw string; `xtoken-align align`"):
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
    assert report["recommendation"].keys() == {"loss", "reason", "paper_rule"}
    assert report["bins"].keys() == {"count", "largest_student", "largest_teacher"}
    for row in report["classes"].values():
        assert row.keys() == {"total", "exact", "near", "split", "empty", "common_strict", "common_relaxed"}
    assert report["nnz"] == mapping.W.nnz


@given(vocabs("student"), vocabs("teacher"))
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


def test_the_summary_counts_tokens_with_the_added_ones() -> None:
    side = Side.of(make_vocab(["a", (b"<s>", Kind.SPECIAL), (b"", Kind.PADDING)], name="x"))
    assert side.summary() == {"name": "x", "fingerprint": side.fingerprint, "size": 2, "logits": 3}


def assert_same(one: Mapping, other: Mapping) -> None:
    # `replace` makes a mapping of the same parts, which computes its hash anew.
    assert one.content_hash == other.content_hash == replace(one).content_hash == replace(other).content_hash
    assert one.to_dict() == other.to_dict()
    assert one.coverage() == other.coverage()
    assert (one.bin_sizes, one.provenance, one.created) == (other.bin_sizes, other.provenance, other.created)
    assert (dict(one.options), dict(one.notes)) == (dict(other.options), dict(other.notes))
    for name in ("indptr", "indices", "data", "position", "rule", "owner"):
        np.testing.assert_array_equal(getattr(one.matrix, name), getattr(other.matrix, name), strict=True)
    for side in ("student", "teacher"):
        assert getattr(one, side).metadata() == getattr(other, side).metadata()
        np.testing.assert_array_equal(getattr(one, side).kinds, getattr(other, side).kinds, strict=True)
        assert list(getattr(one, side).surfaces) == list(getattr(other, side).surfaces)
        for name in ("lengths", "ids", "lossy"):
            ours, theirs = (getattr(mapping.decompositions(side), name) for mapping in (one, other))
            np.testing.assert_array_equal(ours, theirs, strict=True)
        np.testing.assert_array_equal(one.first_pieces(side), other.first_pieces(side), strict=True)
    for ours, theirs in zip(one.bins(), other.bins(), strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


@given(
    vocabs("student"),
    vocabs("teacher"),
    st.fixed_dictionaries(
        {"reverse_pass": st.booleans(), "case": st.booleans()},
        optional={"rules": st.just(["exact", "digits"]), "decay": st.just(0), "top_k": st.integers(1, 3)},
    ),
    st.data(),
)
def test_a_loaded_mapping_is_the_one_saved(
    tmp_path_factory: pytest.TempPathFactory,
    student: Vocab,
    teacher: Vocab,
    options: dict[str, Any],
    data: st.DataObject,
) -> None:
    rows = data.draw(st.lists(st.sampled_from(student.speakable_ids.tolist()), unique=True, max_size=3))
    columns = st.lists(st.sampled_from(teacher.speakable_ids.tolist()), min_size=1, max_size=3)
    overrides = [{"student": {"id": row}, "teacher": [{"id": c} for c in data.draw(columns)]} for row in rows]
    mapping = build(student=student, teacher=teacher, overrides=overrides, **options)
    path = mapping.save(tmp_path_factory.mktemp("saved") / "mapping.npz")
    assert_same(mapping, load_mapping(path))


def test_a_real_mapping_is_the_one_saved(llama_qwen: Mapping, tmp_path: Path) -> None:
    path = llama_qwen.save(tmp_path / "mapping.npz")
    assert_same(llama_qwen, load_mapping(path))
    assert (scipy.sparse.load_npz(path) != llama_qwen.W).nnz == 0


def small(**options: Any) -> Mapping:
    return build(student=make_vocab(["12", "a", "é"]), teacher=make_vocab(["1", "2", "a"], name="teacher"), **options)


def test_decompositions_that_w_tells_are_not_stored_twice(llama_qwen: Mapping) -> None:
    arrays = llama_qwen.arrays
    assert len(arrays["student_piece_ids"]) < len(llama_qwen.decompositions("student").ids) / 10


def test_saving_a_loaded_mapping_gives_the_same_bytes(tmp_path: Path) -> None:
    first = small().save(tmp_path / "first.npz")
    assert load(first).save(tmp_path / "second.npz").read_bytes() == first.read_bytes()


def test_metadata_says_what_the_mapping_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(small().save(tmp_path / "mapping.npz")) as archive:
        content = archive.read("metadata.npy")
    metadata = json.loads(content[content.index(b"\n") + 1 :])
    assert metadata["schema"] == 2
    assert metadata["student"]["name"] == "small"
    assert metadata["provenance"] == "built"
    assert metadata["options"]["top_k"] == 4
    assert {"bins", "content_hash", "coverage", "package_version", "rules", "teacher"} <= metadata.keys()
    assert "created" not in metadata


def test_an_existing_file_is_replaced_unless_told_otherwise(tmp_path: Path) -> None:
    path = small().save(tmp_path / "mapping.npz")
    assert load(small(decay=0).save(path)).options["decay"] == 0
    with pytest.raises(StoreError, match="found one"):
        small().save(path, overwrite=False)
    assert load(path).options["decay"] == 0


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    path = small().save(os.fspath(tmp_path / "mapping.npz"))
    assert path.is_file()


def forged(mapping: Mapping, path: Path, **changes: Any) -> Path:
    """A file with a right hash over wrong metadata."""
    metadata = {**mapping.metadata(), **changes}
    arrays = mapping.arrays
    metadata["content_hash"] = content_hash(arrays, metadata)
    write_archive(path, arrays, metadata)
    return path


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"bins": {}}, "bins"),
        ({"bins": {"count": "1", "largest_student": 1, "largest_teacher": 1}}, "bins"),
        ({"bins": {"count": -1, "largest_student": 1, "largest_teacher": 1}}, "bins"),
        ({"coverage": {}}, "classes"),
        ({"coverage": {"classes": []}}, "classes"),
        ({"schema": 3}, "upgrade xtoken-align"),
        ({"provenance": "found"}, "provenance"),
        ({"rules": ["exact"]}, "rules"),
    ],
)
def test_metadata_with_a_right_hash_and_wrong_contents_is_refused_by_field(
    changes: dict[str, Any], field: str, tmp_path: Path
) -> None:
    path = forged(small(), tmp_path / "forged.npz", **changes)
    with pytest.raises(ArtifactError) as caught:
        load_mapping(path)
    assert field in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_decides_is_counted_anew_and_never_taken_from_a_file(tmp_path: Path) -> None:
    honest = small()
    stated = json.loads(json.dumps(honest.coverage().to_metadata()))
    stated["recommendation"] = {"loss": "h-kl", "default": "h-kl", "because": "all is exact"}
    stated["rules"]["exact"] = 10**400
    stated["classes"].clear()
    stated["by_class_and_rule"] = {"no class": {"no rule": 7}}
    path = forged(
        honest, tmp_path / "forged.npz", coverage=stated, bins={"count": 9, "largest_student": 9, "largest_teacher": 9}
    )
    loaded = load(path)
    assert loaded.coverage() == honest.coverage()
    assert loaded.bin_sizes == honest.bin_sizes
    assert XTokenLoss(loaded, kind="auto").kind == XTokenLoss(honest, kind="auto").kind == "c-kl"
    assert diff(loaded, honest).to_dict()["classes"] == {}
    with pytest.raises(ArtifactError, match=re.escape(f"{path}: metadata.coverage.classes: expected what the rows")):
        verify(path)


def test_verify_compares_the_counts_of_a_file_with_its_rows(tmp_path: Path) -> None:
    honest = small()
    assert verify(honest.save(tmp_path / "honest.npz")).content_hash == honest.content_hash
    sizes = {**asdict(honest.bin_sizes), "count": 77}
    with pytest.raises(ArtifactError, match=r"metadata\.bins\.count: expected what the rows give"):
        verify(forged(honest, tmp_path / "forged.npz", bins=sizes))


@pytest.mark.parametrize(("note", "value"), [("student_duplicates", "x"), ("teacher_duplicates", True),
                                            ("student_decoder_disagrees", 3)])  # fmt: skip
def test_a_note_of_the_wrong_type_is_named(tmp_path: Path, note: str, value: object) -> None:
    with pytest.raises(ArtifactError, match=rf"metadata\.notes\.{note}: expected a"):
        load(forged(small(), tmp_path / "forged.npz", notes={note: value}))


def test_what_says_who_and_when_is_outside_the_hash(tmp_path: Path) -> None:
    mapping = small()
    other = replace(mapping, provenance="imported", created="2026-01-01T00:00:00+00:00", notes={"by": "me"})
    assert other.content_hash == mapping.content_hash
    assert load(other.save(tmp_path / "other.npz")).provenance == "imported"


def test_a_changed_weight_is_another_mapping() -> None:
    mapping = small()
    changed = mapping.matrix.data.copy()
    changed[0] = np.nextafter(changed[0], 2)
    assert replace(mapping, matrix=replace(mapping.matrix, data=changed)).content_hash != mapping.content_hash


def test_the_archive_holds_what_the_mapping_gave(tmp_path: Path) -> None:
    mapping = small()
    arrays, metadata = read_archive(mapping.save(tmp_path / "mapping.npz"))
    assert metadata == json.loads(json.dumps(mapping.metadata() | {"content_hash": mapping.content_hash}))
    assert arrays.keys() == mapping.arrays.keys()
