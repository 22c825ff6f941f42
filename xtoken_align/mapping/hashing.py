"""The content hash: what two mapping files must share to be the same mapping."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError

SCHEMA = 1
"""The layout that this package writes, and the newest that it reads."""

SIDES = ("student", "teacher")

UNHASHED_KEYS = frozenset({"content_hash", "created", "notes", "package_version", "provenance"})
"""Top-level metadata that says where, when and by what a mapping was made; everything else decides what it is."""

UNHASHED_SIDE_KEYS = frozenset({"name", "revision", "source"})
"""The same for `student` and `teacher`: two copies of one tokenizer under two names make one mapping."""

VERSION_DIGITS = 12

MAX_NESTING = 16
"""Levels of lists and objects in metadata, which needs six: a hostile thousand would exhaust its readers' stack."""


def canonical_json(value: object) -> bytes:
    """Writes a JSON value as the one text it has: keys sorted, no spaces, UTF-8.

    Args:
        value: strings, finite numbers, booleans, None, and lists and dicts of them.

    Returns:
        The UTF-8 bytes.

    Raises:
        ArtifactError: the value has no such text (NaN, an infinity, a lone surrogate, an object of another type), or
            is nested more than `MAX_NESTING` levels deep.
    """
    try:
        # There and back once: a key 10 sorts after 2 as a number and before it as the string that a file holds.
        plain = json.loads(json.dumps(value, allow_nan=False))
        _check_nesting(plain)
        text = json.dumps(plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"metadata: expected what JSON in UTF-8 can hold, found {error}; replace the value"
        ) from error


def _check_nesting(value: object) -> None:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(f"more than {MAX_NESTING} levels of lists and objects")


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def hashed_metadata(metadata: Mapping[str, object]) -> dict[str, object]:
    """Returns the part of a mapping's metadata that its content hash covers.

    Args:
        metadata: the whole metadata of a mapping.

    Returns:
        A copy without `UNHASHED_KEYS`, its two sides without `UNHASHED_SIDE_KEYS`.
    """
    kept = {key: value for key, value in metadata.items() if key not in UNHASHED_KEYS}
    for side in SIDES:
        facts = kept.get(side)
        if isinstance(facts, Mapping):
            kept[side] = {key: value for key, value in facts.items() if key not in UNHASHED_SIDE_KEYS}
    return kept


def content_hash(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, object]) -> str:
    """Computes the SHA-256 of a mapping's arrays and of the metadata that decides them.

    For each array, in the order of their names, the digest takes the name, the dtype, the shape and the elements as
    little-endian bytes in C order; then the canonical JSON of `hashed_metadata`. Equal inputs have equal hashes on
    every machine.

    Args:
        arrays: the artifact's arrays by member name, of plain (not object) dtypes.
        metadata: the artifact's metadata.

    Returns:
        64 hexadecimal digits.

    Raises:
        ArtifactError: the metadata is nothing that JSON can hold.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        # The dtype and the shape fix the number of bytes that follow, so no two sets of arrays share one stream.
        digest.update(canonical_json([name, little.dtype.str, list(array.shape)]) + b"\n")
        digest.update(little.reshape(-1).view(np.uint8).data)
    digest.update(canonical_json(hashed_metadata(metadata)))
    return digest.hexdigest()


def version_of(content_hash: str) -> str:
    """Returns the mapping version that a content hash stands for: its first 12 digits.

    Args:
        content_hash: 64 hexadecimal digits.

    Returns:
        The version, as in `<store>/<student>--<teacher>/<version>.npz`.
    """
    return content_hash[:VERSION_DIGITS]
