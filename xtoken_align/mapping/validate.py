"""Every check that is made before a mapping file is trusted: arrays and metadata are well formed and fit each other.

All checks are vectorised; a Llama-3 x Qwen3 mapping takes a few milliseconds, and its hash a few more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError
from ..rules.links import RULE_NUMBER, RULES
from ..vocab.kinds import Kind
from .file import SIDES, check_arrays, check_schema, content_hash, damaged, read_archive

PROVENANCES = ("built", "learned", "imported")
SIZES = ("base", "with_added", "ids", "logits")
ROW_SUM_TOLERANCE = 1e-5
"""float32 weights of up to 255 links, summed in float64: their rounding stays ten times below."""

_SHA256 = re.compile(r"[0-9a-f]{64}")

Arrays = Mapping[str, NDArray[Any]]


def load_checked(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, object]]:
    """Reads a mapping file and checks everything that can be checked without its tokenizers.

    Args:
        path: the file.

    Returns:
        Its arrays by name and its metadata.

    Raises:
        ArtifactError: the file is damaged, foreign or from a newer schema; the message names the field that is wrong.
        StoreError: there is no readable file at `path`.
    """
    arrays, metadata = read_archive(path)
    try:
        validate(arrays, metadata)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    return arrays, metadata


def validate(arrays: Arrays, metadata: Mapping[str, object]) -> None:
    """Checks that a mapping's arrays and metadata are well formed, agree with each other and have the stated hash.

    Args:
        arrays: the arrays by member name.
        metadata: the metadata.

    Raises:
        ArtifactError: something is wrong; the message names the field.
    """
    check_schema(metadata)
    _check_metadata(metadata)
    check_arrays(arrays)
    _check_sizes(arrays, metadata)
    _check_pattern(arrays)
    _check_links(arrays)
    for side, other in zip(SIDES, reversed(SIDES), strict=True):
        _check_side(arrays, side, other)
    computed = content_hash(arrays, metadata)
    if metadata["content_hash"] != computed:
        raise damaged("metadata.content_hash", f"{computed} for these contents", metadata["content_hash"])


def _check_metadata(metadata: Mapping[str, object]) -> None:
    _field(metadata, "package_version", str, "metadata")
    _check_sha256(metadata, "content_hash", "metadata")
    for key in ("options", "coverage", "bins"):
        _field(metadata, key, Mapping, "metadata")
    for key, kind in (("notes", Mapping), ("created", str)):
        if metadata.get(key) is not None:
            _field(metadata, key, kind, "metadata")
    for side in SIDES:
        _check_side_metadata(_field(metadata, side, Mapping, "metadata"), f"metadata.{side}")
    rules = metadata.get("rules")
    if not isinstance(rules, list | tuple) or tuple(rules) != RULES:
        raise damaged("metadata.rules", f"the list {', '.join(RULES)}", f"{rules!r:.200}")
    if metadata.get("provenance") not in PROVENANCES:
        raise damaged("metadata.provenance", f"one of {', '.join(PROVENANCES)}", f"{metadata.get('provenance')!r:.60}")


def _check_side_metadata(side: Mapping[str, Any], field: str) -> None:
    for key in ("name", "source"):
        _field(side, key, str, field)
    if "revision" not in side or not isinstance(side["revision"], str | None):
        raise damaged(f"{field}.revision", "a string or null", f"{side.get('revision', 'nothing')!r:.60}")
    _check_sha256(side, "fingerprint", field)
    sizes = _field(side, "sizes", Mapping, field)
    if sizes.keys() != set(SIZES):
        raise damaged(f"{field}.sizes", f"exactly {', '.join(SIZES)}", f"{', '.join(sizes):.80}")
    for key in SIZES:
        if not _is_whole(sizes[key]):
            raise damaged(f"{field}.sizes.{key}", "a whole number from 0", f"{sizes[key]!r:.60}")
    for role, ids in _field(side, "roles", Mapping, field).items():
        if not isinstance(ids, list | tuple) or not all(map(_is_whole, ids)):
            raise damaged(f"{field}.roles.{role:.60}", "a list of ids", f"{ids!r:.60}")
        if ids and max(ids) >= sizes["logits"]:
            raise damaged(f"{field}.roles.{role:.60}", f"ids below {sizes['logits']}, the logit width", max(ids))


def _field(parent: Mapping[str, Any], key: str, kind: type, field: str) -> Any:
    """Returns the value of a key of a JSON object, if it is a string or an object as it must be."""
    value = parent.get(key)
    if not isinstance(value, kind):
        raise damaged(f"{field}.{key}", "a string" if kind is str else "a JSON object", f"{value!r:.60}")
    return value


def _check_sha256(parent: Mapping[str, Any], key: str, field: str) -> None:
    if not _SHA256.fullmatch(_field(parent, key, str, field)):
        raise damaged(f"{field}.{key}", "64 lower-case hexadecimal digits", f"{parent[key]!r:.80}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_sizes(arrays: Arrays, metadata: Mapping[str, Any]) -> None:
    """Checks that the arrays are as long as the logit widths and the number of links say."""
    if arrays["format"].item() != b"csr":
        raise damaged("format", "csr", f"{arrays['format'].item()!r}")
    widths = [metadata[side]["sizes"]["logits"] for side in SIDES]
    if arrays["shape"].tolist() != widths:
        raise damaged("shape", f"{widths}, the logit widths of the metadata", arrays["shape"].tolist())
    if min(widths) < 1:
        raise damaged("shape", "two vocabularies with at least one id", widths)
    expected = {"indptr": widths[0] + 1} | dict.fromkeys(("indices", "position", "rule"), arrays["data"].size)
    for side, width in zip(SIDES, widths, strict=True):
        expected |= {f"{side}_{name}": width for name in ("kind", "surface_lengths", "piece_lengths")}
    for name, size in expected.items():
        if arrays[name].size != size:
            raise damaged(name, f"{size:,} elements", f"{arrays[name].size:,}")


def _check_pattern(arrays: Arrays) -> None:
    """Checks that the rows are canonical CSR: boundaries never fall, and columns ascend in each row."""
    indptr, indices = arrays["indptr"], arrays["indices"]
    # Compared, not subtracted: differences of hostile int32 boundaries would wrap around.
    if indptr[0] != 0 or indptr[-1] != indices.size or np.any(indptr[1:] < indptr[:-1]):
        raise damaged("indptr", f"row boundaries that rise from 0 to {indices.size:,}", "others")
    _check_ids("indices", indices, arrays["shape"][1])
    if indices.size:
        # Columns 4 7 | 2 9 in two rows: the step from 7 to 2 falls, and may, since it leads into another row.
        ascends = indices[1:] > indices[:-1]
        row_starts = indptr[1:-1]
        ascends[row_starts[(row_starts > 0) & (row_starts < indices.size)] - 1] = True
        if not ascends.all():
            raise damaged("indices", "ascending columns without duplicates in each row", "others")


def _check_links(arrays: Arrays) -> None:
    data, rule, indptr = arrays["data"], arrays["rule"], arrays["indptr"]
    if not np.all(np.isfinite(data) & (data > 0)):
        raise damaged("data", "finite weights above 0", "others")
    # Rows without links are left out: `reduceat` would give them the value of the next row.
    filled = indptr[1:] > indptr[:-1]
    sums = _row_sums(data, indptr, filled)
    if np.any(np.abs(sums - 1.0) > ROW_SUM_TOLERANCE):
        row = int(np.flatnonzero(filled)[np.argmax(np.abs(sums - 1.0))])
        raise damaged("data", "rows that sum to 1", f"another sum in row {row}")
    if rule.size and not 1 <= int(rule.min()) <= int(rule.max()) < len(RULES):
        raise damaged("rule", f"numbers from 1 to {len(RULES) - 1}", "others")
    # The link of position 0 is the row's first piece, by which tokens are put into bins.
    # Links of the reverse pass count positions from the teacher's side, and a row with such links alone has no piece 0.
    owned = rule != RULE_NUMBER["reverse"]
    firsts = _row_sums(owned & (arrays["position"] == 0), indptr, filled)
    if np.any(firsts != (_row_sums(owned, indptr, filled) > 0)):
        raise damaged("position", "one link of position 0 in each row that a rule other than reverse fills", "others")


def _row_sums(values: NDArray[Any], indptr: NDArray[np.int32], filled: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Sums the links' values over each row that has links, in float64."""
    if not values.size:
        return np.zeros(0)
    return np.add.reduceat(values, indptr[:-1][filled], dtype=np.float64)


def _check_side(arrays: Arrays, side: str, other: str) -> None:
    kind = arrays[f"{side}_kind"]
    if int(kind.max()) > max(Kind):
        raise damaged(f"{side}_kind", f"kinds from 0 to {max(Kind):d}", int(kind.max()))
    for lengths_name, values_name in (("surface_lengths", "surface_bytes"), ("piece_lengths", "piece_ids")):
        lengths, values = arrays[f"{side}_{lengths_name}"], arrays[f"{side}_{values_name}"]
        total = int(lengths.sum(dtype=np.int64))
        if np.any(lengths < 0) or total != values.size:
            expected = f"lengths from 0 that sum to the {values.size:,} elements of {side}_{values_name}"
            came = f"a sum of {total:,}" if np.all(lengths >= 0) else "negative ones"
            raise damaged(f"{side}_{lengths_name}", expected, came)
    _check_ids(f"{side}_piece_ids", arrays[f"{side}_piece_ids"], arrays[f"{other}_kind"].size)
    lossy = arrays[f"{side}_lossy"]
    _check_ids(f"{side}_lossy", lossy, kind.size)
    if np.any(lossy[1:] <= lossy[:-1]):
        raise damaged(f"{side}_lossy", "ascending ids without duplicates", "others")


def _check_ids(name: str, ids: NDArray[np.int32], bound: int) -> None:
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < bound:
        raise damaged(name, f"ids from 0 to {bound - 1:,}", f"ids from {ids.min():,} to {ids.max():,}")
