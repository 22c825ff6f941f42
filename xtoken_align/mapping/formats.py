"""Files of a mapping for other programs: NeMo-RL, sparse tensors, tables, and the draft maps of speculative decoding.

A format is a function here that makes the bytes of a file, and a line in `FORMATS`. Those of speculative decoding take
the student for the draft model and the teacher for the target, and hold pairs of equal tokens alone.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..errors import MissingExtraError, OptionError
from ..files import write_atomically
from ..limits import MAX_PLACES
from ..matrix import Matrix
from ..rules.links import EXACT_RULES, RULE_NUMBER, RULES
from ..rules.pieces import Pieces
from ..vocab.byte_strings import ByteStrings
from ..vocab.kinds import Kind
from .find import json_surface

FormatName = Literal["nemo-rl", "safetensors", "torch", "json", "parquet", "tli", "d2t", "token-map"]
Layout = Literal["csr", "coo"]
Arrays = dict[str, NDArray[Any]]


class SideFacts(Protocol):
    """What is written of a mapping's student or teacher."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def kinds(self) -> NDArray[np.uint8]: ...  # noqa: D102
    @property
    def surfaces(self) -> ByteStrings: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102


class Exportable(Protocol):
    """What is written of a mapping; `Mapping`, which imports this module, is one."""

    @property
    def student(self) -> SideFacts: ...  # noqa: D102
    @property
    def teacher(self) -> SideFacts: ...  # noqa: D102
    @property
    def matrix(self) -> Matrix: ...  # noqa: D102
    @property
    def teacher_pieces(self) -> Pieces: ...  # noqa: D102
    @property
    def content_hash(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> str: ...  # noqa: D102
    def metadata(self) -> dict[str, Any]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was written for another program.

    Attributes:
        path: the file.
        format: its format.
        version: the version of the mapping that it was made from.
        bytes: its size.
        holds: what is in it: name -> dtype and shape of an array, or how many rows or links.
        notes: sentences about what differs from the mapping, or must be known to use the file.
    """

    path: Path
    format: FormatName
    version: str
    bytes: int
    holds: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `export`."""
        return {
            "schema": 1,
            "path": str(self.path),
            "format": self.format,
            "version": self.version,
            "bytes": self.bytes,
            "holds": dict(self.holds),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a file, what they hold, and sentences for whoever uses it."""

    data: bytes
    holds: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FormatOptions:
    """The options of single formats.

    Attributes:
        layout: of `torch`.
        top_k: of `nemo-rl`: the most links of a row that are kept; None keeps all.
    """

    layout: Layout = "csr"
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise OptionError(f"layout is one of {', '.join(get_args(Layout))}, got {self.layout!r}")
        if self.top_k is not None and not (self.top_k == int(self.top_k) and 1 <= self.top_k <= _MOST_COLUMNS):
            raise OptionError(f"top_k is a whole number of links from 1 to {_MOST_COLUMNS}, got {self.top_k!r}")


_MOST_COLUMNS = 1 << 10
"""Columns of a NeMo-RL file. Its own builder writes 32 at most."""


def export_mapping(
    mapping: Exportable,
    path: str | os.PathLike[str],
    *,
    format: FormatName,  # noqa: A002 - the word of pandas, datasets and the command line
    layout: Layout = "csr",
    top_k: int | None = None,
    overwrite: bool = True,
) -> Exported:
    """Writes a mapping for another program; see `Mapping.export`."""
    if format not in FORMATS:
        raise OptionError(f"there is no format {format!r}: choose one of {', '.join(FORMATS)}")
    for name, given, belongs_to in (("layout", layout != "csr", "torch"), ("top_k", top_k is not None, "nemo-rl")):
        if given and format != belongs_to:
            raise OptionError(f"{name} is an option of the format {belongs_to}, and {format} was asked for")
    content = FORMATS[format].make(mapping, FormatOptions(layout, top_k))
    write_atomically(Path(path), content.data, overwrite=overwrite)
    return Exported(Path(path), format, mapping.version, len(content.data), content.holds, content.notes)


def _described(arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    return {name: f"{array.dtype} ({', '.join(f'{size:,}' for size in array.shape)})" for name, array in arrays.items()}


def _facts(mapping: Exportable) -> dict[str, str]:
    """What every file says of its origin, as strings."""
    return {
        "made_by": f"xtoken-align {__version__}",
        "mapping": mapping.content_hash,
        "student": mapping.student.name,
        "student_fingerprint": mapping.student.fingerprint,
        "teacher": mapping.teacher.name,
        "teacher_fingerprint": mapping.teacher.fingerprint,
    }


# NeMo-RL.


def top_links(matrix: Matrix, top_k: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
    """W as a table of each row's links, the heaviest first, as NeMo-RL holds it.

    The row {2: 0.9009, 0: 0.0901, 1: 0.009} of `201`, a row of one link and an empty row become, with the teacher ids
    17, 15, 16 and 279:

        indices   17  15  16      likelihoods  .9009 .0901 .0090
                 279  -1  -1                   1     0     0
                  -1  -1  -1                   0     0     0

    Args:
        matrix: W.
        top_k: the most links of a row that are kept; what is kept is normalised again. None keeps all.

    Returns:
        Teacher ids, int64 (rows, columns), -1 behind a row's last link; weights, float32, 0 there; and how many rows
        lost links. There are two columns at least: NeMo-RL knows an exact pair by the -1 in the second.

    Raises:
        OptionError: the table would be too large.
    """
    counts = np.diff(matrix.indptr)
    widest = int(counts.max(initial=0))
    columns = max(2, widest if top_k is None else min(widest, top_k))
    if matrix.shape[0] * columns > MAX_PLACES:
        raise OptionError(
            f"a row has {widest:,} links, and a table of {matrix.shape[0]:,} x {columns:,} is too large: keep the "
            "heaviest with --top-k 32"
        )
    kept_columns = columns if top_k is None else min(columns, top_k)
    order = np.lexsort((matrix.position, -matrix.data, matrix.rows))
    rank = np.arange(len(order)) - np.repeat(matrix.indptr[:-1], counts)
    kept = rank < kept_columns
    rows, rank, order = matrix.rows[kept], rank[kept], order[kept]
    indices = np.full((matrix.shape[0], columns), -1, dtype=np.int64)
    likelihoods = np.zeros((matrix.shape[0], columns), dtype=np.float32)
    indices[rows, rank] = matrix.indices[order]
    likelihoods[rows, rank] = matrix.data[order]
    cut = np.flatnonzero(counts > kept_columns)
    # Weights of whole rows stay as they are, bit for bit.
    likelihoods[cut] /= likelihoods[cut].sum(axis=1, keepdims=True)
    return indices, likelihoods, len(cut)


def _nemo_rl(mapping: Exportable, options: FormatOptions) -> Content:
    torch = _torch()
    indices, likelihoods, cut = top_links(mapping.matrix, options.top_k)
    # NeMo-RL's scripts compare the two ids with their models', and look for `enable_scale_trick` when they trim a file.
    contents = {
        "indices": torch.from_numpy(indices),
        "likelihoods": torch.from_numpy(likelihoods),
        "student_model_id": mapping.student.name,
        "teacher_model_id": mapping.teacher.name,
        "enable_scale_trick": False,
        "xtoken_align": json.dumps(_facts(mapping)),
    }
    notes = ["-1 fills short rows, and NeMo-RL drops it."]
    if cut:
        notes.append(f"{cut:,} rows have more than {options.top_k} links: the heaviest are kept, and normalised again.")
    return Content(_saved(contents), _described({"indices": indices, "likelihoods": likelihoods}), tuple(notes))


# Sparse tensors.


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("A file of PyTorch", "torch") from error
    return torch


def _saved(contents: Any) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    _torch().save(contents, buffer)
    return buffer.getvalue()


def _sparse(mapping: Exportable, options: FormatOptions) -> Content:
    import warnings

    torch, matrix = _torch(), mapping.matrix
    values, columns = torch.from_numpy(matrix.data), torch.from_numpy(matrix.indices.astype(np.int64))
    with warnings.catch_warnings():
        # PyTorch calls its CSR tensors a beta, once in every process.
        warnings.simplefilter("ignore", UserWarning)
        if options.layout == "csr":
            starts = torch.from_numpy(matrix.indptr.astype(np.int64))
            tensor = torch.sparse_csr_tensor(starts, columns, values, matrix.shape, check_invariants=True)
        else:
            cells = torch.stack([torch.from_numpy(matrix.rows.astype(np.int64)), columns])
            # The links stand by row and column, each once: coalesced already.
            tensor = torch.sparse_coo_tensor(cells, values, matrix.shape, check_invariants=True, is_coalesced=True)
        data = _saved(tensor)
    shape = " x ".join(f"{size:,}" for size in matrix.shape)
    return Content(data, {"tensor": f"float32 ({shape}), {options.layout.upper()}, {len(matrix.data):,} values"})


def _safetensors(mapping: Exportable, _: FormatOptions) -> Content:
    matrix = mapping.matrix
    arrays: Arrays = {
        "shape": np.array(matrix.shape, dtype=np.int64),
        "indptr": matrix.indptr,
        "indices": matrix.indices,
        "data": matrix.data,
        "position": matrix.position,
        "rule": matrix.rule,
    }
    metadata = {"layout": "csr", "rules": json.dumps(RULES), "metadata": json.dumps(mapping.metadata())}
    return Content(_as_safetensors(arrays, {**_facts(mapping), **metadata}), _described(arrays))


def _as_safetensors(arrays: Arrays, metadata: dict[str, str]) -> bytes:
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise MissingExtraError("A safetensors file", "export") from error
    data: bytes = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata)
    return data


# Tables.


def _json(mapping: Exportable, _: FormatOptions) -> Content:
    """One object; its rows are those of `show --json`, one to a line."""
    matrix = mapping.matrix
    sides = [(side.surfaces.list, side.kinds.tolist()) for side in (mapping.student, mapping.teacher)]
    (student_surfaces, kinds), (teacher_surfaces, _kinds) = sides
    names = {int(kind): json.dumps(kind.name.lower()) for kind in Kind}
    # By row and position: the order of the pieces.
    order = np.lexsort((matrix.position, matrix.rows))
    links = [
        f'{{"teacher_id": {column}, "surface": {_surface(teacher_surfaces[column])}, '
        f'"weight": {round(weight, 7)!r}, "position": {position}}}'
        for column, weight, position in zip(
            matrix.indices[order].tolist(), matrix.data[order].tolist(), matrix.position[order].tolist(), strict=True
        )
    ]
    starts, owner = matrix.indptr.tolist(), matrix.owner.tolist()
    rows = [
        f'{{"id": {row}, "surface": {_surface(student_surfaces[row])}, "kind": {names[kinds[row]]}, '
        f'"rule": "{RULES[owner[row]]}", "row": [{", ".join(links[starts[row] : starts[row + 1]])}]}}'
        for row in range(matrix.shape[0])
    ]
    head = json.dumps({"schema": 1, **_facts(mapping), "shape": list(matrix.shape)}, ensure_ascii=False)
    text = f'{head[:-1]}, "rows": [\n' + ",\n".join(rows) + "\n]}\n"
    return Content(text.encode(), {"rows": f"{len(rows):,}", "links": f"{len(links):,}"})


def _surface(surface: bytes) -> str:
    return json.dumps(json_surface(surface), ensure_ascii=False)


def _parquet(mapping: Exportable, _: FormatOptions) -> Content:
    """One row a link. Surfaces are bytes; beside them stands their text, null where they are no whole characters."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("A Parquet file", "export") from error
    matrix = mapping.matrix
    columns: dict[str, Any] = {}
    for name, side, ids in (("student", mapping.student, matrix.rows), ("teacher", mapping.teacher, matrix.indices)):
        at = pa.array(ids)
        surfaces = side.surfaces.list
        columns[f"{name}_id"] = at
        columns[f"{name}_surface"] = pa.array(surfaces, pa.binary()).take(at)
        columns[f"{name}_text"] = pa.array([_text(surface) for surface in surfaces], pa.string()).take(at)
    columns["weight"] = pa.array(matrix.data)
    columns["position"] = pa.array(matrix.position)
    columns["rule"] = pa.DictionaryArray.from_arrays(pa.array(matrix.rule), pa.array(RULES))
    table = pa.table(columns).replace_schema_metadata(_facts(mapping))
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    holds = {field.name: str(getattr(field.type, "value_type", field.type)) for field in table.schema}
    return Content(buffer.getvalue(), {"links": f"{len(matrix.data):,}", **holds})


def _text(surface: bytes) -> str | None:
    try:
        return surface.decode()
    except UnicodeDecodeError:
        return None


# Speculative decoding.


def common_pairs(mapping: Exportable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of tokens that are the same on both sides: equal surfaces, each token in one pair, by teacher id.

    Rows of the rules `identity`, `exact` and `special` count, but not a special token whose counterpart has the same
    role and another name: a draft model's `<|eot_id|>` is no `<|im_end|>` to those who compare tokens. Where several
    student tokens have one surface, the pair is that of the id which the student's encoder writes, else the lowest.

    Returns:
        int64 (pairs,) student ids, and int64 (pairs,) teacher ids, ascending.
    """
    matrix = mapping.matrix
    links = np.flatnonzero(np.isin(matrix.rule, [RULE_NUMBER[rule] for rule in EXACT_RULES]))
    student, teacher = mapping.student.surfaces.list, mapping.teacher.surfaces.list
    cells = zip(matrix.rows[links].tolist(), matrix.indices[links].tolist(), strict=True)
    links = links[np.array([student[row] == teacher[column] for row, column in cells], dtype=np.bool_)]
    rows, columns = matrix.rows[links].astype(np.int64), matrix.indices[links].astype(np.int64)
    # Student ids 5 and 9 are both ` the`, which is teacher id 2, and the student writes 9: (9, 2) comes before (5, 2).
    written = mapping.teacher_pieces.first[columns] == rows
    order = np.lexsort((rows, ~written, columns))
    order = order[np.unique(columns[order], return_index=True)[1]]
    return rows[order], columns[order]


def _pairs_of(mapping: Exportable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    draft, target = common_pairs(mapping)
    if not len(draft):
        raise OptionError(
            f"{mapping.student.name} and {mapping.teacher.name} have no token in common: a draft model has nothing to "
            "propose"
        )
    return draft, target


def _tli(mapping: Exportable, _: FormatOptions) -> Content:
    """Token-level intersection: whole vocabularies, absolute ids, -1 for a token outside."""
    draft, target = _pairs_of(mapping)
    width_of_draft, width_of_target = mapping.matrix.shape
    arrays: Arrays = {
        "draft_to_target_ids": np.full(width_of_draft, -1, dtype=np.int64),
        "target_to_draft_ids": np.full(width_of_target, -1, dtype=np.int64),
        "intersection_mask_draft": np.zeros(width_of_draft, dtype=np.bool_),
    }
    arrays["draft_to_target_ids"][draft] = target
    arrays["target_to_draft_ids"][target] = draft
    arrays["intersection_mask_draft"][draft] = True
    facts = {**_facts(mapping), "ids": "absolute", "pairs": str(len(draft))}
    return Content(
        _as_safetensors(arrays, facts),
        {"pairs": f"{len(draft):,}", **_described(arrays)},
        ("Ids are absolute: draft token i is target token draft_to_target_ids[i], and -1 is none.",),
    )


def _d2t(mapping: Exportable, _: FormatOptions) -> Content:
    """The maps of an EAGLE-3 checkpoint, for a draft model whose head keeps the common tokens alone.

    Draft token i of the smaller head is the student's token `draft_ids[i]` and the target's token `i + d2t[i]`. They
    ascend by target id, in the order in which `t2d` marks them.
    """
    draft, target = _pairs_of(mapping)
    marked = np.zeros(mapping.matrix.shape[1], dtype=np.bool_)
    marked[target] = True
    arrays: Arrays = {"d2t": target - np.arange(len(target)), "t2d": marked, "draft_ids": draft}
    facts = {**_facts(mapping), "ids": "offsets", "draft_vocab_size": str(len(draft))}
    return Content(
        _as_safetensors(arrays, facts),
        {"pairs": f"{len(draft):,}", **_described(arrays)},
        (
            "d2t holds offsets: draft token i is target token i + d2t[i].",
            f"The draft model's head keeps the rows draft_ids, and its draft_vocab_size is {len(draft):,}.",
        ),
    )


def _token_map(mapping: Exportable, _: FormatOptions) -> Content:
    """The target ids of the common tokens, as SGLang's `--speculative-token-map` reads them."""
    target = _pairs_of(mapping)[1]
    return Content(
        _saved(_torch().from_numpy(target)),
        {"target ids": f"int64 ({len(target):,})"},
        ("Ids are absolute: draft token i is the target token that stands at place i.",),
    )


@dataclass(frozen=True, slots=True)
class Format:
    """A format: what it is, in a line, and the function that makes a file of it."""

    about: str
    make: Callable[[Exportable, FormatOptions], Content]


FORMATS: dict[str, Format] = {
    "nemo-rl": Format("NeMo-RL's projection matrix: indices and likelihoods", _nemo_rl),
    "safetensors": Format("W as CSR arrays, with positions, rules and metadata", _safetensors),
    "torch": Format("W as one sparse tensor, CSR or COO (--layout)", _sparse),
    "json": Format("the rows with surfaces and rules, one to a line", _json),
    "parquet": Format("a row for each link, with surfaces and rules", _parquet),
    "tli": Format("common tokens of a draft model and its target, absolute ids", _tli),
    "d2t": Format("d2t and t2d of an EAGLE-3 draft model, offsets", _d2t),
    "token-map": Format("SGLang's --speculative-token-map, absolute ids", _token_map),
}
"""Every format by name, in the order of help texts and pages."""
