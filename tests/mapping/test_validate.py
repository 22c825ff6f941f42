"""Tests of what is believed of a file: each array against the others, the metadata and the hash."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import mutate
from numpy.typing import NDArray

from xtoken_align.errors import ArtifactError
from xtoken_align.mapping.file import content_hash, read_archive, write_archive
from xtoken_align.mapping.mapping import load_mapping
from xtoken_align.mapping.validate import validate
from xtoken_align.rules.links import RULE_NUMBER, RULES
from xtoken_align.vocab.kinds import Kind

Arrays = dict[str, NDArray[Any]]
Metadata = dict[str, Any]
Seal = Callable[[Metadata], Metadata]

MUTATIONS = 2_000
REVERSE = RULE_NUMBER["reverse"]


def replaced(array: NDArray[Any], index: int, value: float) -> NDArray[Any]:
    """A copy with one element changed."""
    copy = array.copy()
    copy[index] = value
    return copy


def read_and_validate(path: Path) -> tuple[Arrays, Metadata]:
    arrays, metadata = read_archive(path)
    validate(arrays, metadata)
    return arrays, metadata


def test_a_sound_mapping_is_accepted(arrays: Arrays, metadata: Metadata) -> None:
    validate(arrays, metadata)


def test_a_sound_file_is_loaded(saved: Path, arrays: Arrays, metadata: Metadata) -> None:
    loaded_arrays, loaded_metadata = read_and_validate(saved)
    assert loaded_metadata == metadata
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded_arrays[name], array, strict=True)


def test_a_mapping_without_links_is_accepted(arrays: Arrays, metadata: Metadata, seal: Seal) -> None:
    for name in ("data", "indices", "position", "rule"):
        arrays[name] = arrays[name][:0]
    arrays["indptr"] = np.zeros_like(arrays["indptr"])
    validate(arrays, seal(metadata))


def test_empty_rows_at_both_ends_are_accepted(arrays: Arrays, metadata: Metadata, seal: Seal) -> None:
    arrays["indptr"] = np.array([0, 0, 0, 2, 2, 2, 2], dtype=np.int32)
    for name in ("data", "indices", "position", "rule"):
        arrays[name] = arrays[name][2:4]
    validate(arrays, seal(metadata))


def test_reverse_links_need_no_first_piece(arrays: Arrays, metadata: Metadata, seal: Seal) -> None:
    arrays["rule"] = replaced(arrays["rule"], 0, REVERSE)
    arrays["position"] = replaced(arrays["position"], 0, 1)
    validate(arrays, seal(metadata))


def test_optional_metadata_is_accepted(arrays: Arrays, metadata: Metadata, seal: Seal) -> None:
    metadata |= {"created": "2026-11-02T10:00:00Z", "notes": {"by": "hand"}, "later": [1]}
    metadata["student"]["revision"] = "0f3a"
    validate(arrays, seal(metadata))


ARRAY_FAULTS: list[tuple[str, str, Callable[[NDArray[Any]], NDArray[Any]]]] = [
    ("format", "format", lambda _: np.array(b"csc")),
    ("shape", "shape", lambda a: a[::-1].copy()),
    ("shape", "shape", lambda a: a[:1]),
    ("shape", "shape", lambda a: a + 1),
    ("indptr", "indptr", lambda a: a[:-1]),
    ("indptr", "indptr", lambda a: replaced(a, 0, 1)),
    ("indptr", "indptr", lambda a: replaced(a, -1, 4)),
    ("indptr", "indptr", lambda a: replaced(a, 1, 3)),
    ("indptr", "indptr", lambda a: replaced(a, 3, np.iinfo(np.int32).max)),
    ("indptr", "indptr", lambda a: replaced(a, 3, np.iinfo(np.int32).min)),
    ("indices", "indices", lambda a: replaced(a, 0, 7)),
    ("indices", "indices", lambda a: replaced(a, 0, -1)),
    ("indices", "indices", lambda a: replaced(a, 3, 2)),
    ("indices", "indices", lambda a: replaced(a, 3, 1)),
    ("indices", "indices", lambda a: a[:-1]),
    ("data", "data", lambda a: replaced(a, 0, np.nan)),
    ("data", "data", lambda a: replaced(a, 0, np.inf)),
    ("data", "data", lambda a: replaced(a, 0, -1)),
    ("data", "data", lambda a: replaced(a, 3, 0)),
    ("data", "data", lambda a: replaced(a, 4, 0.9999)),
    ("data", "indices", lambda a: a[:-1]),
    ("position", "position", lambda a: a[:-1]),
    ("position", "position", lambda a: replaced(a, 0, 1)),
    ("position", "position", lambda a: replaced(a, 3, 0)),
    ("rule", "rule", lambda a: replaced(a, 0, 0)),
    ("rule", "rule", lambda a: replaced(a, 0, len(RULES))),
    ("rule", "rule", lambda a: np.append(a, a[:1])),
]
SIDE_FAULTS: list[tuple[str, str, Callable[[NDArray[Any]], NDArray[Any]]]] = [
    ("kind", "kind", lambda a: replaced(a, 0, max(Kind) + 1)),
    ("kind", "kind", lambda a: a[:-1]),
    ("surface_lengths", "surface_lengths", lambda a: replaced(a, 0, 2)),
    ("surface_lengths", "surface_lengths", lambda a: replaced(replaced(a, 0, -1), 1, a[0] + a[1] + 1)),
    ("surface_lengths", "surface_lengths", lambda a: np.append(a, np.int32(0))),
    ("surface_bytes", "surface_lengths", lambda a: a[:-1]),
    ("piece_lengths", "piece_lengths", lambda a: replaced(a, 0, 1)),
    ("piece_lengths", "piece_lengths", lambda a: a[:-1]),
    ("piece_ids", "piece_lengths", lambda a: np.append(a, np.int32(0))),
    ("lossy", "lossy", lambda _: np.array([1, 1], dtype=np.int32)),
    ("lossy", "lossy", lambda _: np.array([2, 1], dtype=np.int32)),
    ("lossy", "lossy", lambda _: np.array([-1], dtype=np.int32)),
    ("lossy", "lossy", lambda _: np.array([7], dtype=np.int32)),
]
FAULTS = ARRAY_FAULTS + [
    (f"{side}_{name}", f"{side}_{field}", fault)
    for side in ("student", "teacher")
    for name, field, fault in SIDE_FAULTS
]


@pytest.mark.parametrize(("name", "field", "fault"), FAULTS)
def test_a_faulty_array_is_named_although_its_hash_fits(
    arrays: Arrays, metadata: Metadata, seal: Seal, name: str, field: str, fault: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    arrays[name] = fault(arrays[name])
    with pytest.raises(ArtifactError, match=rf"^{field}: expected "):
        validate(arrays, seal(metadata))


def test_pieces_are_ids_of_the_other_side(arrays: Arrays, metadata: Metadata, seal: Seal) -> None:
    arrays["student_piece_ids"] = np.array([2, 6], dtype=np.int32)
    validate(arrays, seal(metadata))
    arrays["teacher_piece_lengths"] = replaced(arrays["teacher_piece_lengths"], 0, 1)
    arrays["teacher_piece_ids"] = np.array([6], dtype=np.int32)
    with pytest.raises(ArtifactError, match=r"^teacher_piece_ids: expected ids from 0 to 5"):
        validate(arrays, seal(metadata))


def test_lengths_beyond_what_int32_sums_hold_are_refused(arrays: Arrays, metadata: Metadata, seal: Seal) -> None:
    half = np.int32(1 << 30)
    arrays["student_surface_lengths"] = np.array([half, half, half, half, 6, 0], dtype=np.int32)
    with pytest.raises(ArtifactError, match=r"^student_surface_lengths: .*4,294,967,302"):
        validate(arrays, seal(metadata))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("package_version", 1),
        ("content_hash", "0" * 63),
        ("content_hash", "X" * 64),
        ("student", []),
        ("student.name", None),
        ("student.source", 3),
        ("student.revision", 3),
        ("student.fingerprint", "abc"),
        ("student.sizes", 6),
        ("student.sizes", {"logits": 6}),
        ("student.sizes", {"base": 4, "with_added": 5, "ids": 5, "logits": 6, "more": 7}),
        ("student.sizes.base", "6"),
        ("student.sizes.ids", True),
        ("student.sizes.with_added", -1),
        ("teacher.sizes.logits", 7.0),
        ("teacher.roles", []),
        ("teacher.roles.eos", 5),
        ("teacher.roles.eos", [5.0]),
        ("teacher.roles.eos", [-1]),
        ("teacher.roles.eos", [7]),
        ("options", None),
        ("coverage", []),
        ("bins", "none"),
        ("notes", []),
        ("created", 1793613600),
        ("rules", list(RULES[:-1])),
        ("rules", list(reversed(RULES))),
        ("rules", ",".join(RULES)),
        ("provenance", "guessed"),
        ("provenance", []),
        ("schema", 0),
        ("schema", None),
    ],
)
def test_faulty_metadata_is_named(arrays: Arrays, metadata: Metadata, seal: Seal, path: str, value: object) -> None:
    *parents, key = path.split(".")
    target = metadata
    for parent in parents:
        target = target[parent]
    target[key] = value
    if path != "content_hash":
        seal(metadata)
    with pytest.raises(ArtifactError, match=rf"^metadata\.{path}: expected "):
        validate(arrays, metadata)


SOUND_PARTS = {"text": "0" * 64, "encoding": "1" * 64, "lines": "00ff" * 3, "stated": {"merges": f"bpe:{'2' * 64}"}}


@pytest.mark.parametrize("parts", [None, SOUND_PARTS, {**SOUND_PARTS, "stated": {"later": f"any:{'3' * 64}"}}])
def test_a_side_may_know_its_parts_or_not(arrays: Arrays, metadata: Metadata, seal: Seal, parts: object) -> None:
    metadata["student"]["parts"] = parts
    validate(arrays, seal(metadata))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text", "0" * 63),
        ("encoding", 5),
        ("lines", "00f"),
        ("lines", "zzzz"),
        ("lines", None),
        ("stated", []),
        ("stated", {"merges": "2" * 64}),
        ("stated", {"merges": 1}),
        ("stated", {str(number): f"bpe:{'2' * 64}" for number in range(65)}),
    ],
)
def test_a_faulty_part_is_named(arrays: Arrays, metadata: Metadata, seal: Seal, key: str, value: object) -> None:
    metadata["teacher"]["parts"] = {**SOUND_PARTS, key: value}
    with pytest.raises(ArtifactError, match=rf"^metadata\.teacher\.parts\.{key}"):
        validate(arrays, seal(metadata))


def test_parts_that_are_no_object_are_named(arrays: Arrays, metadata: Metadata, seal: Seal) -> None:
    metadata["teacher"]["parts"] = "none"
    with pytest.raises(ArtifactError, match=r"^metadata\.teacher\.parts: expected "):
        validate(arrays, seal(metadata))


@pytest.mark.parametrize("key", ["package_version", "content_hash", "student", "options", "rules", "provenance"])
def test_missing_metadata_is_named(arrays: Arrays, metadata: Metadata, key: str) -> None:
    del metadata[key]
    with pytest.raises(ArtifactError, match=rf"^metadata\.{key}: expected "):
        validate(arrays, metadata)


@pytest.mark.parametrize("key", ["name", "source", "revision", "sizes", "roles", "fingerprint"])
def test_a_missing_fact_of_a_side_is_named(arrays: Arrays, metadata: Metadata, seal: Seal, key: str) -> None:
    del metadata["teacher"][key]
    with pytest.raises(ArtifactError, match=rf"^metadata\.teacher\.{key}: expected "):
        validate(arrays, seal(metadata))


def test_a_newer_schema_asks_for_an_upgrade_before_anything_else(arrays: Arrays) -> None:
    with pytest.raises(ArtifactError, match=r"has schema 3, this version reads up to 2: upgrade xtoken-align"):
        validate(arrays, {"schema": 3})


def test_another_width_in_the_metadata_is_refused(arrays: Arrays, metadata: Metadata, seal: Seal) -> None:
    metadata["teacher"]["sizes"]["logits"] = 8
    with pytest.raises(ArtifactError, match=r"^shape: "):
        validate(arrays, seal(metadata))


def test_contents_that_are_sound_but_changed_fail_the_hash(arrays: Arrays, metadata: Metadata) -> None:
    arrays["indices"] = replaced(arrays["indices"], 4, 5)
    with pytest.raises(ArtifactError, match=r"^metadata.content_hash: "):
        validate(arrays, metadata)


def test_a_name_may_change_without_breaking_the_hash(arrays: Arrays, metadata: Metadata) -> None:
    metadata["student"]["name"] = "renamed"
    validate(arrays, metadata)


def test_an_error_in_a_file_names_the_file(tmp_path: Path, arrays: Arrays, metadata: Metadata, seal: Seal) -> None:
    arrays["data"] = replaced(arrays["data"], 0, -1)
    write_archive(tmp_path / "a.npz", arrays, seal(metadata))
    with pytest.raises(ArtifactError) as caught:
        load_mapping(tmp_path / "a.npz")
    assert str(caught.value).startswith(f"{tmp_path / 'a.npz'}: data: ")


@pytest.mark.parametrize("has_seal", [True, False])
def test_a_mutated_file_loads_as_it_was_or_is_refused(
    saved: Path, retouch: Callable[..., Path], has_seal: bool
) -> None:
    rng = random.Random(20260521)
    if not has_seal:
        retouch({})
    content = saved.read_bytes()
    arrays, metadata = read_archive(saved)
    refused = 0
    for _ in range(MUTATIONS):
        saved.write_bytes(mutate(content, rng))
        try:
            loaded_arrays, loaded_metadata = read_and_validate(saved)
        except ArtifactError:
            refused += 1
            continue
        assert content_hash(loaded_arrays, loaded_metadata) == metadata["content_hash"]
        for name, array in arrays.items():
            np.testing.assert_array_equal(loaded_arrays[name], array, strict=True)
    assert MUTATIONS * 0.7 < refused < MUTATIONS
