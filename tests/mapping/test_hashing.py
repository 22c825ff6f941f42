"""Tests of the content hash."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xtoken_align.errors import ArtifactError
from xtoken_align.mapping.hashing import (
    MAX_NESTING,
    UNHASHED_KEYS,
    UNHASHED_SIDE_KEYS,
    canonical_json,
    content_hash,
    version_of,
)

Arrays = dict[str, NDArray[Any]]
Metadata = dict[str, Any]


def test_known_contents_have_the_same_hash_on_every_machine() -> None:
    arrays = {"b": np.array([1, 2], dtype=np.int32), "a": np.array(b"csr")}
    # printf '["a","|S3",[]]\ncsr["b","<i4",[2]]\n\1\0\0\0\2\0\0\0{"schema":1}' | sha256sum
    assert content_hash(arrays, {"schema": 1}) == "d605efdc2da649571aab81fb75babf860a6e994a999412f4e26650b9a0252bc9"


def test_the_order_of_arrays_and_keys_does_not_matter(arrays: Arrays, metadata: Metadata) -> None:
    backwards = content_hash(dict(reversed(arrays.items())), dict(reversed(metadata.items())))
    assert backwards == content_hash(arrays, metadata)


def test_byte_order_and_memory_layout_do_not_matter(arrays: Arrays, metadata: Metadata) -> None:
    spread = np.repeat(arrays["data"], 2)[::2]
    foreign = arrays | {"data": spread, "indices": arrays["indices"].astype(">i4")}
    assert content_hash(foreign, metadata) == content_hash(arrays, metadata)


def test_every_array_counts(arrays: Arrays, metadata: Metadata) -> None:
    digests = {content_hash(arrays, metadata)}
    for name, array in arrays.items():
        changed = np.array(b"csc") if name == "format" else np.append(array, np.ones(1, dtype=array.dtype))
        digests.add(content_hash(arrays | {name: changed}, metadata))
    assert len(digests) == len(arrays) + 1


def test_dtype_and_shape_count_beside_the_bytes(metadata: Metadata) -> None:
    forms: list[NDArray[Any]] = [
        np.zeros(8, np.uint8),
        np.zeros((2, 4), np.uint8),
        np.zeros(2, np.int32),
        np.zeros(2, np.float32),
    ]
    assert len({content_hash({"a": form}, metadata) for form in forms}) == len(forms)


@pytest.mark.parametrize("key", sorted(UNHASHED_KEYS))
def test_provenance_and_dates_do_not_count(arrays: Arrays, metadata: Metadata, key: str) -> None:
    assert content_hash(arrays, metadata | {key: "another"}) == content_hash(arrays, metadata)


@pytest.mark.parametrize("key", sorted(UNHASHED_SIDE_KEYS))
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_names_and_sources_do_not_count(arrays: Arrays, metadata: Metadata, side: str, key: str) -> None:
    renamed = copy.deepcopy(metadata)
    renamed[side][key] = "another"
    assert content_hash(arrays, renamed) == content_hash(arrays, metadata)


@pytest.mark.parametrize("key", ["schema", "options", "rules", "coverage", "bins"])
def test_what_decides_the_mapping_counts(arrays: Arrays, metadata: Metadata, key: str) -> None:
    assert content_hash(arrays, metadata | {key: "another"}) != content_hash(arrays, metadata)


@pytest.mark.parametrize("key", ["fingerprint", "sizes", "roles"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_what_decides_a_side_counts(arrays: Arrays, metadata: Metadata, side: str, key: str) -> None:
    changed = copy.deepcopy(metadata)
    changed[side][key] = "another"
    assert content_hash(arrays, changed) != content_hash(arrays, metadata)


def test_the_sides_are_not_interchangeable(arrays: Arrays, metadata: Metadata) -> None:
    swapped = metadata | {"student": metadata["teacher"], "teacher": metadata["student"]}
    assert content_hash(arrays, swapped) != content_hash(arrays, metadata)


def test_a_version_is_the_first_twelve_digits() -> None:
    assert version_of("0123456789abcdef" * 4) == "0123456789ab"


def test_canonical_json_is_sorted_compact_and_plain_utf8() -> None:
    assert canonical_json({"b": (1, 2.5), "a": "é"}) == '{"a":"é","b":[1,2.5]}'.encode()


def test_number_keys_sort_as_the_strings_that_they_become() -> None:
    assert canonical_json({2: 0, 10: 0}) == canonical_json({"10": 0, "2": 0})


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_canonical_json_takes_the_deepest_nesting_that_is_allowed() -> None:
    assert canonical_json(nested(MAX_NESTING)) == b"[" * MAX_NESTING + b"]" * MAX_NESTING


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "\ud800", b"bytes", {1, 2}, nested(MAX_NESTING + 1), nested(100_000)]
)
def test_canonical_json_refuses_what_has_no_plain_text(value: object) -> None:
    with pytest.raises(ArtifactError, match=r"^metadata: "):
        canonical_json({"notes": value} if not isinstance(value, list) else value)
