"""What a mapping file gives back: everything, from half the arrays."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabs import make_vocab, vocabs

from xtoken_align import Mapping, Vocab, build, load
from xtoken_align.errors import ArtifactError, StoreError
from xtoken_align.mapping.archive import read_archive, write_archive
from xtoken_align.mapping.hashing import content_hash
from xtoken_align.mapping.storage import arrays_of, hash_of, load_mapping, metadata_of


def assert_same(one: Mapping, other: Mapping) -> None:
    assert one.content_hash == other.content_hash == hash_of(one) == hash_of(other)
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
@settings(max_examples=120, deadline=None)
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
    arrays = arrays_of(llama_qwen)
    assert len(arrays["student_piece_ids"]) < len(llama_qwen.decompositions("student").ids) / 10


def test_saving_a_loaded_mapping_gives_the_same_bytes(tmp_path: Path) -> None:
    first = small().save(tmp_path / "first.npz")
    assert load(first).save(tmp_path / "second.npz").read_bytes() == first.read_bytes()


def test_metadata_says_what_the_mapping_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(small().save(tmp_path / "mapping.npz")) as archive:
        content = archive.read("metadata.npy")
    metadata = json.loads(content[content.index(b"\n") + 1 :])
    assert metadata["schema"] == 1
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
    metadata = {**metadata_of(mapping), **changes}
    arrays = arrays_of(mapping)
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
        ({"schema": 2}, "upgrade xtoken-align"),
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


def test_what_says_who_and_when_is_outside_the_hash(tmp_path: Path) -> None:
    mapping = small()
    other = replace(mapping, provenance="imported", created="2026-01-01T00:00:00+00:00", notes={"by": "me"})
    assert hash_of(other) == mapping.content_hash
    assert load(other.save(tmp_path / "other.npz")).provenance == "imported"


def test_a_changed_weight_is_another_mapping() -> None:
    mapping = small()
    changed = mapping.matrix.data.copy()
    changed[0] = np.nextafter(changed[0], 2)
    assert hash_of(replace(mapping, matrix=replace(mapping.matrix, data=changed))) != mapping.content_hash


def test_the_archive_holds_what_the_mapping_gave(tmp_path: Path) -> None:
    mapping = small()
    arrays, metadata = read_archive(mapping.save(tmp_path / "mapping.npz"))
    assert metadata == json.loads(json.dumps(metadata_of(mapping)))
    assert arrays.keys() == arrays_of(mapping).keys()
