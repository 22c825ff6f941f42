"""The mapping: W with both vocabularies and both directions' decompositions, a value that knows its own hash."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping as Table
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._version import __version__
from ..cards import card
from ..coverage.classes import classify
from ..coverage.coverage import Coverage, measure
from ..errors import ArtifactError, MappingError
from ..matrix import Matrix
from ..rules.links import RULE_NUMBER, RULES
from ..rules.pieces import Pieces
from ..visible import printable
from ..vocab.byte_strings import ByteStrings
from ..vocab.fingerprint import Parts
from ..vocab.kinds import Kind
from ..vocab.vocab import Sizes, Vocab
from .bins import BinSizes, measure_bins, split_into_bins
from .file import SCHEMA, content_hash, damaged, read_archive, write_archive
from .find import REASON_OF_KIND, Link, Row, UnmatchedTokens, find_tokens, unmatched_tokens
from .formats import Exported, FormatName, Layout, export_mapping
from .validate import validate

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SideName = Literal["student", "teacher"]
Arrays = dict[str, NDArray[Any]]

VERSION_DIGITS = 12
"""How many digits of the content hash are the version."""

VERSIONED_NAME = re.compile(rf"[0-9a-f]{{{VERSION_DIGITS}}}\.npz")
"""The name of a file that is called by its version, as all files of a store are."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Side:
    """The student or the teacher of a mapping: what a mapping keeps of its vocabulary.

    Attributes:
        name: short name.
        source: what was read to build it.
        revision: commit hash of a Hub repository, else None.
        sizes: the four sizes.
        roles: role -> ids.
        fingerprint: hash of the text vocabulary.
        parts: what the tokenizer is made of, part by part; None in a mapping that was written before files had them.
        kinds: uint8 (logits,), values of `Kind`.
        surfaces: the bytes of each id.
    """

    name: str
    source: str
    revision: str | None
    sizes: Sizes
    roles: Table[str, tuple[int, ...]]
    fingerprint: str
    parts: Parts | None
    kinds: NDArray[np.uint8]
    surfaces: ByteStrings

    def __repr__(self) -> str:
        return printable(f"Side({self.name!r} from {self.source!r}: {self.sizes.logits:,} ids)", one_line=True)

    @classmethod
    def of(cls, vocab: Vocab) -> Side:
        """What a mapping keeps of `vocab`: its fields of the same names."""
        return cls(**{attribute.name: getattr(vocab, attribute.name) for attribute in fields(cls)})

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether a fingerprint is the one that the mapping was built with."""
        return fingerprint == self.fingerprint

    def metadata(self) -> dict[str, Any]:
        """The part that stands in a file's metadata: all but the two arrays."""
        sizes = self.sizes
        return {
            "name": self.name,
            "source": self.source,
            "revision": self.revision,
            "sizes": {"base": sizes.base, "with_added": sizes.with_added, "ids": sizes.ids, "logits": sizes.logits},
            "roles": {role: list(ids) for role, ids in self.roles.items()},
            "fingerprint": self.fingerprint,
            "parts": None if self.parts is None else self.parts.to_metadata(),
        }

    def summary(self) -> dict[str, Any]:
        """What the JSON of the commands says of a side."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "size": self.sizes.with_added,
            "logits": self.sizes.logits,
        }


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Mapping:
    """A student-to-teacher vocabulary mapping.

    Attributes:
        student: the student's side.
        teacher: the teacher's side.
        matrix: W as arrays.
        options: what decided the links, as plain values.
        student_pieces: every student token as the teacher writes it, all its pieces.
        teacher_pieces: every teacher token as the student writes it, all its pieces.
        measured: rows counted by class, rule and reason; by default they are counted when they are asked for. The
            counts in a file are never shown: whoever wrote it may have written others.
        provenance: `built`, `learned` or `imported`.
        created: ISO date, where SOURCE_DATE_EPOCH asked for one.
        notes: what a reader may want to know and no result depends on.
    """

    student: Side
    teacher: Side
    matrix: Matrix
    options: Table[str, Any]
    student_pieces: Pieces = field(repr=False)
    teacher_pieces: Pieces = field(repr=False)
    measured: Coverage | None = field(default=None, repr=False)
    provenance: str = "built"
    created: str | None = None
    notes: Table[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        rows = self.coverage().ways()
        counts = ", ".join(f"{count:,} {way}" for way, count in rows.items())
        title = f"student {self.student.name} learns from teacher {self.teacher.name}"
        return printable(f"Mapping({self.version}: {title}, {counts} rows)", one_line=True)

    def _repr_html_(self) -> str:
        sides = {
            role: f"{side.name}, {side.sizes.logits:,} logits, from {side.source}"
            for role, side in (("student", self.student), ("teacher", self.teacher))
        }
        advice = self.coverage().recommendation
        facts = {**sides, "links": len(self.matrix.data), "bins": self.bin_sizes.count, "version": self.version}
        facts["train with"] = f"{advice.loss}: {advice.reason}"
        title = f"Student {self.student.name} learns from teacher {self.teacher.name}"
        return card(title, facts, self.coverage().ways())

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over all that decides the mapping, as 64 hexadecimal digits."""
        return content_hash(self.arrays, self.metadata())

    @property
    def version(self) -> str:
        """The first 12 digits of the content hash."""
        return self.content_hash[:VERSION_DIGITS]

    @cached_property
    def W(self) -> csr_matrix:  # noqa: N802 - the method's paper calls the matrix W
        """W as a scipy CSR matrix, float32 (student logits, teacher logits)."""
        from scipy.sparse import csr_matrix

        matrix = self.matrix
        return csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)

    @property
    def rules(self) -> list[str]:
        """The name of the rule that owns each row, `none` for an empty one."""
        return [RULES[number] for number in self.matrix.owner.tolist()]

    def decompositions(self, side: SideName) -> Pieces:
        """Each token of one side as the other writes it; a token that the other cannot write has no pieces."""
        if side not in ("student", "teacher"):
            raise MappingError(f"a mapping has the sides 'student' and 'teacher', got {side!r}")
        return self.student_pieces if side == "student" else self.teacher_pieces

    def first_pieces(self, side: SideName) -> NDArray[np.int32]:
        """int32 (logits of the side,): each token's first piece on the other side, -1 for none.

        Special tokens are never encoded, so they have no decomposition; those that W matches are each other's first
        pieces.
        """
        first = self.decompositions(side).first.copy()
        matrix = self.matrix
        # The links of the student's special and reserved tokens: say rows 3 3 5 with columns 8 9 9.
        special = self.student.kinds[matrix.rows] >= Kind.SPECIAL
        special &= matrix.rule != RULE_NUMBER["reverse"]
        rows, columns = matrix.rows[special], matrix.indices[special]
        if side == "student":
            # An override may give a special token several links: that at position 0 is its first piece.
            leading = matrix.position[special] == 0
            first[rows[leading]] = columns[leading]
            return first
        unset = (first[columns] < 0) & (self.teacher.kinds[columns] >= Kind.SPECIAL)
        # Rows 3 and 5 both lead to column 9. The last assignment to an id stays, so going down from 5 to 3 keeps 3.
        first[columns[unset][::-1]] = rows[unset][::-1]
        return first

    def bins(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The bin of each student and of each teacher token, -1 for a token in none; see `split_into_bins`."""
        return split_into_bins(self.first_pieces("student"), self.first_pieces("teacher"))

    @cached_property
    def bin_sizes(self) -> BinSizes:
        """How many bins there are, and how many tokens of each side the largest hold."""
        return measure_bins(*self.bins())

    def row(self, token: str | bytes | int) -> Row:
        """The row of a token, which is an id, a surface or a raw string; the lowest id where several tokens fit.

        Raises:
            MappingError: there is no such token.
        """
        return self.rows(token)[0]

    def rows(self, token: str | bytes | int) -> list[Row]:
        """The rows of all student tokens with a surface, or of one id.

        Raises:
            MappingError: there is no such token.
        """
        kinds, surfaces = self.student.kinds, self.student.surfaces
        if isinstance(token, int | np.integer):
            if not 0 <= token < self.student.sizes.logits:
                raise MappingError(
                    f"{self.student.name} has no id {token}: its ids run from 0 to {self.student.sizes.logits - 1}"
                )
            return [self._row(int(token))]
        ids = find_tokens(kinds, surfaces, token)
        if not ids:
            # Most words are tokens with their space: whoever asks for a word that is none is told of ` word`.
            spaced = (b" " if isinstance(token, bytes) else " ") + token  # type: ignore[operator]
            hint = (
                f"{spaced!r} is one"
                if find_tokens(kinds, surfaces, spaced)
                else "`xtoken-align align` shows how it is cut"
            )
            raise MappingError(
                f"{self.student.name} has no token {token!r}, neither as a surface nor as a raw string; {hint}"
            )
        return [self._row(token_id) for token_id in ids]

    def _row(self, token_id: int) -> Row:
        matrix = self.matrix
        # The links stand by ascending column, and are shown in the order of the pieces.
        span = slice(int(matrix.indptr[token_id]), int(matrix.indptr[token_id + 1]))
        order = np.argsort(matrix.position[span], kind="stable") + span.start
        links = tuple(
            Link(
                int(matrix.indices[at]),
                self.teacher.surfaces[int(matrix.indices[at])],
                float(matrix.data[at]),
                int(matrix.position[at]),
                RULES[matrix.rule[at]],
            )
            for at in order.tolist()
        )
        kind = Kind(self.student.kinds[token_id])
        return Row(
            id=token_id,
            surface=self.student.surfaces[token_id],
            kind=kind.name.lower(),
            rule=RULES[matrix.owner[token_id]],
            links=links,
            reason=None if links else REASON_OF_KIND[kind],
            lossy=token_id in self.lossy_rows,
        )

    @cached_property
    def lossy_rows(self) -> frozenset[int]:
        """Student ids whose pieces spell another text than the token."""
        return frozenset(self.student_pieces.lossy.tolist())

    def coverage(self) -> Coverage:
        """Rows counted by class, rule and reason, with the recommended loss."""
        return self.measured or self._counted

    @cached_property
    def _counted(self) -> Coverage:
        return measure(
            self.matrix,
            kinds=self.student.kinds,
            classes=classify(self.student.kinds, self.student.surfaces.list),
            lossy=len(self.student_pieces.lossy),
            identical=self.student.fingerprint == self.teacher.fingerprint,
        )

    def unmatched(
        self,
        *,
        classes: Sequence[str] = (),
        reasons: Sequence[str] = (),
        pattern: str | None = None,
        limit: int | None = None,
    ) -> UnmatchedTokens:
        """The tokens that are neither exact nor near, numerals first, each class by id.

        Args:
            classes: keep these classes of token; all, if none is named.
            reasons: keep these reasons, `split by RULE` or why a row is empty; a part of the words is enough.
            pattern: keep surfaces in which this regular expression is found.
            limit: how many at most.

        Raises:
            OptionError: there is no such class, or the pattern is no regular expression.
        """
        return unmatched_tokens(
            self.student.kinds,
            self.student.surfaces.list,
            self.matrix,
            classes=classes,
            reasons=reasons,
            pattern=pattern,
            limit=limit,
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `inspect`."""
        coverage = self.coverage()
        return {
            "schema": 1,
            "version": self.version,
            "student": self.student.summary(),
            "teacher": self.teacher.summary(),
            "nnz": len(self.matrix.data),
            "rules": dict(coverage.rules),
            "empty": dict(coverage.empty),
            "lossy": coverage.lossy,
            "classes": coverage.to_dict()["classes"],
            "recommendation": coverage.to_dict()["recommendation"],
            "bins": asdict(self.bin_sizes),
        }

    @cached_property
    def arrays(self) -> Arrays:
        """The arrays of the mapping's file, by name.

        Of the decompositions the file holds only those that W does not tell: a row whose links are its whole
        decomposition needs no second copy.
        """
        matrix = self.matrix
        arrays: Arrays = {
            "format": np.array(b"csr"),
            "shape": np.array(matrix.shape, dtype=np.int64),
            "data": matrix.data,
            "indices": matrix.indices,
            "indptr": matrix.indptr,
            "position": matrix.position,
            "rule": matrix.rule,
        }
        # Llama-3 x Qwen3: W tells the pieces of 97% of the student's and 72% of the teacher's tokens; the file holds
        # the rest.
        in_w = student_pieces_in_w(matrix, self.student.kinds), teacher_pieces_in_w(matrix, self.student.kinds)
        for name, side, pieces, known in (
            ("student", self.student, self.student_pieces, in_w[0]),
            ("teacher", self.teacher, self.teacher_pieces, in_w[1]),
        ):
            stored = pieces.differing_from(known)
            arrays[f"{name}_kind"] = side.kinds
            arrays[f"{name}_surface_bytes"] = side.surfaces.blob
            arrays[f"{name}_surface_lengths"] = side.surfaces.lengths
            arrays[f"{name}_piece_lengths"] = stored.lengths
            arrays[f"{name}_piece_ids"] = stored.ids
            arrays[f"{name}_lossy"] = stored.lossy
        return arrays

    def metadata(self) -> dict[str, Any]:
        """The metadata of the mapping's file, all but the content hash; of a loaded mapping, as its file has it."""
        return dict(self._metadata)

    @cached_property
    def _metadata(self) -> Table[str, Any]:
        metadata: dict[str, Any] = {
            "schema": SCHEMA,
            "package_version": __version__,
            "student": self.student.metadata(),
            "teacher": self.teacher.metadata(),
            "options": dict(self.options),
            "rules": list(RULES),
            "coverage": self.coverage().to_metadata(),
            "bins": asdict(self.bin_sizes),
            "provenance": self.provenance,
        }
        if self.created is not None:
            metadata["created"] = self.created
        if self.notes:
            metadata["notes"] = dict(self.notes)
        return metadata

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
        """Writes the mapping; a file is there whole or not at all.

        Args:
            path: the file; its folder must exist.
            overwrite: whether an existing file is replaced.

        Returns:
            The path.

        Raises:
            StoreError: it cannot be written, or exists and must not be replaced.
        """
        metadata = {**self.metadata(), "content_hash": self.content_hash}
        write_archive(Path(path), self.arrays, metadata, overwrite=overwrite)
        return Path(path)

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: FormatName,  # noqa: A002 - the word of pandas, datasets and the command line
        layout: Layout = "csr",
        top_k: int | None = None,
        overwrite: bool = True,
    ) -> Exported:
        """Writes the mapping for another program; a file is there whole or not at all.

        Args:
            path: the file; its folder must exist.
            format: `nemo-rl`, `safetensors`, `torch`, `json`, `parquet`, or for speculative decoding `tli`, `d2t` or
                `token-map`.
            layout: of `torch`: a CSR or a COO tensor.
            top_k: of `nemo-rl`: the most links of a row that are kept, and normalised again. None keeps all.
            overwrite: whether an existing file is replaced.

        Returns:
            What the file holds.

        Raises:
            OptionError: an option is unknown or belongs to another format, or there is nothing to write.
            MissingExtraError: the format needs a library that is not installed.
            StoreError: it cannot be written, or exists and must not be replaced.
        """
        return export_mapping(self, path, format=format, layout=layout, top_k=top_k, overwrite=overwrite)


def load_mapping(path: Path) -> Mapping:
    """Reads and checks a mapping file.

    Args:
        path: the file.

    Raises:
        ArtifactError: it is damaged, foreign or from a newer schema.
        StoreError: there is no readable file at `path`.
    """
    arrays, stored = read_archive(path)
    metadata: dict[str, Any] = dict(stored)
    try:
        validate(arrays, metadata)
        # Both are checked for their form alone: `verify` compares them with the rows, and everything else counts anew.
        Coverage.from_metadata(metadata["coverage"])
        BinSizes.from_dict(metadata["bins"])
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    check_version(path, metadata["content_hash"])
    shape = (int(arrays["shape"][0]), int(arrays["shape"][1]))
    matrix = Matrix(shape, *(arrays[name] for name in ("indptr", "indices", "data", "position", "rule")))
    sides: dict[str, Side] = {}
    pieces: dict[str, Pieces] = {}
    for name, known_in_w in (("student", student_pieces_in_w), ("teacher", teacher_pieces_in_w)):
        # A file has surfaces as their bytes one after another, and lengths: `a`, ` the` is 61 20 74 68 65 with 1 4.
        surfaces = ByteStrings(arrays[f"{name}_surface_bytes"], arrays[f"{name}_surface_lengths"])
        facts = metadata[name]
        sides[name] = Side(
            name=facts["name"],
            source=facts["source"],
            revision=facts["revision"],
            sizes=Sizes(**facts["sizes"]),
            roles={role: tuple(ids) for role, ids in facts["roles"].items()},
            fingerprint=facts["fingerprint"],
            parts=None if facts.get("parts") is None else Parts.from_metadata(facts["parts"]),
            kinds=arrays[f"{name}_kind"],
            surfaces=surfaces,
        )
        written = Pieces(arrays[f"{name}_piece_lengths"], arrays[f"{name}_piece_ids"], arrays[f"{name}_lossy"])
        pieces[name] = written.completed_by(known_in_w(matrix, arrays["student_kind"]))
    mapping = Mapping(
        student=sides["student"],
        teacher=sides["teacher"],
        matrix=matrix,
        options=metadata["options"],
        student_pieces=pieces["student"],
        teacher_pieces=pieces["teacher"],
        provenance=metadata["provenance"],
        created=metadata.get("created"),
        notes=metadata.get("notes") or {},
    )
    # What these properties would compute stands in the file, whose hash was checked.
    content_hash = metadata.pop("content_hash")
    mapping.__dict__.update(arrays=arrays, content_hash=content_hash, _metadata=metadata)
    return mapping


def check_counts(mapping: Mapping) -> None:
    """Refuses a loaded mapping whose file states other counts, another recommendation or other bins than its rows give.

    Raises:
        ArtifactError: names the first that differs.
    """
    stated, counted = mapping.metadata(), replace(mapping).metadata()
    for part in ("coverage", "bins"):
        for key, value in counted[part].items():
            if stated[part].get(key) != value:
                raise damaged(f"metadata.{part}.{key}", "what the rows give", "something else")


def check_version(path: Path, content_hash: str) -> None:
    """Refuses a file that is called by a version and holds another: whoever pinned that version asked for this one.

    Args:
        path: the file; any name is right that is not of the form of a version.
        content_hash: of what is in it.

    Raises:
        ArtifactError: the two differ.
    """
    if VERSIONED_NAME.fullmatch(path.name) and path.stem != content_hash[:VERSION_DIGITS]:
        raise ArtifactError(
            f"{path}: expected version {path.stem} by its name, found {content_hash[:VERSION_DIGITS]}; build or "
            "download the mapping again"
        )


_DECOMPOSING_RULES = ("override", "identity", "exact", "digits", "decompose", "bytes")
"""Rules whose links are a row's whole decomposition, where nothing was cut or summed."""


def student_pieces_in_w(matrix: Matrix, student_kinds: NDArray[np.uint8]) -> Pieces:
    """The student's decompositions as W tells them: the links of a row in the order of their positions.

    `201` under `digits` has the links 2, 0, 1 at positions 0, 1, 2: the pieces 2, 0, 1. A special token has links and
    no decomposition, unless an override gave it one.
    """
    # `200` has the links 0 and 2 at positions 1 and 0, one for two zeros: W tells 2, 0, and the file adds 2, 0, 0.
    telling = np.isin(matrix.rule, [RULE_NUMBER[rule] for rule in _DECOMPOSING_RULES])
    telling &= (student_kinds[matrix.rows] <= Kind.BYTE) | (matrix.rule == RULE_NUMBER["override"])
    links = np.flatnonzero(telling)
    rows = matrix.rows[links]
    in_order = links[np.lexsort((matrix.position[links], rows))]
    lengths = np.bincount(rows, minlength=matrix.shape[0]).astype(np.int32)
    return Pieces(lengths, matrix.indices[in_order], np.zeros(0, dtype=np.int32))


def teacher_pieces_in_w(matrix: Matrix, student_kinds: NDArray[np.uint8]) -> Pieces:
    """The teacher's decompositions as W tells them: a token that is exactly a student token is that one piece.

    If student ids 5 and 9 both have the surface of teacher id 2, the piece of 2 is 5, the lower.
    """
    # Links ascend by row, and `unique` gives the first place of a column: its lowest row.
    exact = np.isin(matrix.rule, [RULE_NUMBER[rule] for rule in ("identity", "exact")])
    exact &= student_kinds[matrix.rows] <= Kind.BYTE
    rows, columns = matrix.rows[exact], matrix.indices[exact]
    matched, first = np.unique(columns, return_index=True)
    lengths = np.zeros(matrix.shape[1], dtype=np.int32)
    lengths[matched] = 1
    return Pieces(lengths, rows[first], np.zeros(0, dtype=np.int32))
