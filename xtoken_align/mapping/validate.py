"""Every check that is made before a mapping file is trusted: arrays and metadata are well formed and fit each other.

All checks are vectorised; a Llama-3 x Qwen3 mapping takes a few milliseconds, and its hash a few more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..rules.links import RULE_NUMBER, RULES
from ..vocab.kinds import Kind
from .file import SIDES, check_arrays, check_schema, content_hash, damaged

PROVENANCES = ("built", "learned", "imported")
SIZES = ("base", "with_added", "ids", "logits")
ROW_SUM_TOLERANCE = 1e-5
"""float32 weights of up to 255 links, summed in float64: their rounding stays ten times below."""

_SHA256 = re.compile(r"[0-9a-f]{64}")

Arrays = Mapping[str, NDArray[Any]]


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
    _check_matrix(arrays)
    for side, other in zip(SIDES, reversed(SIDES), strict=True):
        _check_side(arrays, side, other)
    computed = content_hash(arrays, metadata)
    if metadata["content_hash"] != computed:
        raise damaged("metadata.content_hash", f"{computed} for these contents", metadata["content_hash"])


_REQUIRED = {"package_version": str, "content_hash": str} | dict.fromkeys(
    ("options", "coverage", "bins", *SIDES), Mapping
)
_OPTIONAL = {"notes": Mapping, "created": str}
_NOTES = {"duplicates": int, "decoder_disagrees": list}
"""What a reader is told of each side, where it is known; other notes are nobody's business here."""
_REQUIRED_OF_SIDE = {"name": str, "source": str, "fingerprint": str, "sizes": Mapping, "roles": Mapping}


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    _check_fields(metadata, _REQUIRED, "metadata")
    _check_fields(metadata, {key: kind for key, kind in _OPTIONAL.items() if metadata.get(key) is not None}, "metadata")
    for side, (note, kind) in product(SIDES, _NOTES.items()):
        if (stated := (metadata.get("notes") or {}).get(f"{side}_{note}")) is not None and type(stated) is not kind:
            raise damaged(f"metadata.notes.{side}_{note}", "a count" if kind is int else "a list", f"{stated!r:.60}")
    rules, provenance = metadata.get("rules"), metadata.get("provenance")
    if not isinstance(rules, list | tuple) or tuple(rules) != RULES:
        raise damaged("metadata.rules", f"the list {', '.join(RULES)}", f"{rules!r:.200}")
    if provenance not in PROVENANCES:
        raise damaged("metadata.provenance", f"one of {', '.join(PROVENANCES)}", f"{provenance!r:.60}")
    for side in SIDES:
        _check_side_metadata(metadata[side], f"metadata.{side}")


def _check_fields(parent: Mapping[str, Any], kinds: Mapping[str, type[Any]], field: str) -> None:
    """Checks that the values of some keys are strings, objects, or the SHA-256 that some strings must be."""
    for key, kind in kinds.items():
        value: Any = parent.get(key)
        if not isinstance(value, kind):
            raise damaged(f"{field}.{key}", "a string" if kind is str else "a JSON object", f"{value!r:.60}")
        if key in ("content_hash", "fingerprint") and not _SHA256.fullmatch(value):
            raise damaged(f"{field}.{key}", "64 lower-case hexadecimal digits", f"{value!r:.80}")


def _check_side_metadata(side: Mapping[str, Any], field: str) -> None:
    _check_fields(side, _REQUIRED_OF_SIDE, field)
    if "revision" not in side or not isinstance(side["revision"], str | None):
        raise damaged(f"{field}.revision", "a string or null", f"{side.get('revision', 'nothing')!r:.60}")
    if side.get("parts") is not None:
        _check_parts(side["parts"], f"{field}.parts")
    sizes = side["sizes"]
    if sizes.keys() != set(SIZES):
        raise damaged(f"{field}.sizes", f"exactly {', '.join(SIZES)}", f"{', '.join(sizes):.80}")
    for key in SIZES:
        if type(sizes[key]) is not int or sizes[key] < 0:  # the type itself: True would be an int
            raise damaged(f"{field}.sizes.{key}", "a whole number from 0", f"{sizes[key]!r:.60}")
    for role, ids in side["roles"].items():
        if not isinstance(ids, list | tuple) or any(type(token_id) is not int or token_id < 0 for token_id in ids):
            raise damaged(f"{field}.roles.{role:.60}", "a list of ids", f"{ids!r:.60}")
        if ids and max(ids) >= sizes["logits"]:
            raise damaged(f"{field}.roles.{role:.60}", f"ids below {sizes['logits']}, the logit width", max(ids))


_SHA256_OF_PARTS = ("text", "encoding")
_STATED = re.compile(r"[a-z]{1,20}:[0-9a-f]{64}")
_MOST_STATED = 64
_LINES = re.compile(r"(?:[0-9a-f]{4}){0,100000}+")


def _check_parts(parts: object, field: str) -> None:
    """Checks the form of a side's parts; a part of a name that is not known here is passed over."""
    if not isinstance(parts, Mapping):
        raise damaged(field, "a JSON object or null", f"{parts!r:.60}")
    for key in _SHA256_OF_PARTS:
        if not isinstance(parts.get(key), str) or not _SHA256.fullmatch(parts[key]):
            raise damaged(f"{field}.{key}", "64 lower-case hexadecimal digits", f"{parts.get(key)!r:.80}")
    lines, stated = parts.get("lines"), parts.get("stated")
    if not isinstance(lines, str) or not _LINES.fullmatch(lines):
        raise damaged(f"{field}.lines", "four hexadecimal digits for each line", f"{lines!r:.60}")
    if not isinstance(stated, Mapping) or len(stated) > _MOST_STATED:
        raise damaged(f"{field}.stated", f"a JSON object of at most {_MOST_STATED} parts", f"{stated!r:.60}")
    for name, value in stated.items():
        if not isinstance(value, str) or not _STATED.fullmatch(value):
            raise damaged(f"{field}.stated.{name:.40}", "a form, a colon and 64 hexadecimal digits", f"{value!r:.80}")


def _check_sizes(arrays: Arrays, metadata: Mapping[str, Any]) -> None:
    """Checks that the arrays are as long as the logit widths and the number of links say."""
    if arrays["format"].item() != b"csr":
        raise damaged("format", "csr", f"{arrays['format'].item()!r}")
    # W has a row per student logit and a column per teacher logit, and each side a kind and two lengths per logit.
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


def _check_matrix(arrays: Arrays) -> None:
    """Checks that W is canonical CSR, and that each row's links share a weight of 1 and begin with a first piece."""
    indptr, indices = arrays["indptr"], arrays["indices"]
    # Compared, not subtracted: differences of hostile int32 boundaries would wrap around.
    if indptr[0] != 0 or indptr[-1] != indices.size or np.any(indptr[1:] < indptr[:-1]):
        raise damaged("indptr", f"row boundaries that rise from 0 to {indices.size:,}", "others")
    _check_ids("indices", indices, arrays["shape"][1])
    if not indices.size:
        return
    # Columns 4 7 | 2 9 in two rows: the step from 7 to 2 falls, and may, since it leads into another row.
    ascends = indices[1:] > indices[:-1]
    row_starts = indptr[1:-1]
    ascends[row_starts[(row_starts > 0) & (row_starts < indices.size)] - 1] = True
    if not ascends.all():
        raise damaged("indices", "ascending columns without duplicates in each row", "others")
    data, rule = arrays["data"], arrays["rule"]
    if not np.all(np.isfinite(data) & (data > 0)):
        raise damaged("data", "finite weights above 0", "others")
    # Boundaries 0 2 2 3 leave row 1 empty. `reduceat` would give it the value of row 2, so it sums from 0 and 2 alone.
    filled = np.flatnonzero(indptr[1:] > indptr[:-1])
    starts = indptr[filled]
    deviations = np.abs(np.add.reduceat(data, starts, dtype=np.float64) - 1.0)
    if np.any(deviations > ROW_SUM_TOLERANCE):
        raise damaged("data", "rows that sum to 1", f"another sum in row {filled[np.argmax(deviations)]}")
    if not 1 <= int(rule.min()) <= int(rule.max()) < len(RULES):
        raise damaged("rule", f"numbers from 1 to {len(RULES) - 1}", "others")
    # The link of position 0 is the row's first piece, by which tokens are put into bins.
    # Links of the reverse pass count positions from the teacher's side, and a row with such links alone has no piece 0.
    owned = rule != RULE_NUMBER["reverse"]
    links, firsts = (
        np.add.reduceat(counted, starts, dtype=np.int64) for counted in (owned, owned & (arrays["position"] == 0))
    )
    if np.any(firsts != (links > 0)):
        raise damaged("position", "one link of position 0 in each row that a rule other than reverse fills", "others")


def _check_side(arrays: Arrays, side: str, other: str) -> None:
    kind = arrays[f"{side}_kind"]
    if int(kind.max()) > max(Kind):
        raise damaged(f"{side}_kind", f"kinds from 0 to {max(Kind):d}", int(kind.max()))
    # Lists as one array and lengths: lengths 2 0 1 need 3 values. A negative one would make others overlap.
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
