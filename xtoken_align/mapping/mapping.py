"""The mapping: W with both vocabularies, both directions' decompositions, and what was measured on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Table
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..coverage.coverage import Coverage
from ..errors import MappingError
from ..matrix import Matrix
from ..rules.links import RULE_NUMBER, RULES
from ..rules.pieces import Pieces
from ..vocab.kinds import Kind
from .bins import BinSizes, split_into_bins
from .find import Link, Row, find_tokens
from .hashing import version_of
from .side import Side
from .unmatched import REASON_OF_KIND, Unmatched, unmatched_tokens

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SideName = Literal["student", "teacher"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Mapping:
    """A student-to-teacher vocabulary mapping.

    Attributes:
        student: the student's side.
        teacher: the teacher's side.
        matrix: W as arrays.
        options: what decided the links, as plain values.
        make_pieces: gives the decompositions of one side's tokens; reports do without them.
        measured: rows counted by class, rule and reason.
        content_hash: SHA-256 over all that decides the mapping.
        bin_sizes: the bins' count and largest sizes.
        provenance: `built`, `learned` or `imported`.
        created: ISO date, where SOURCE_DATE_EPOCH asked for one.
        notes: what a reader may want to know and no result depends on.
    """

    student: Side
    teacher: Side
    matrix: Matrix
    options: Table[str, Any]
    make_pieces: Callable[[SideName], Pieces] = field(repr=False)
    measured: Coverage = field(repr=False)
    bin_sizes: BinSizes
    content_hash: str
    provenance: str = "built"
    created: str | None = None
    notes: Table[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The first 12 hexadecimal digits of the content hash."""
        return version_of(self.content_hash)

    @cached_property
    def W(self) -> csr_matrix:  # noqa: N802 - the method's paper calls the matrix W
        """W as a scipy CSR matrix, float32 (student logits, teacher logits)."""
        from scipy.sparse import csr_matrix

        matrix = self.matrix
        return csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)

    @cached_property
    def student_pieces(self) -> Pieces:
        """Every student token as the teacher writes it, uncut."""
        return self.make_pieces("student")

    @cached_property
    def teacher_pieces(self) -> Pieces:
        """Every teacher token as the student writes it, uncut."""
        return self.make_pieces("teacher")

    @property
    def rules(self) -> list[str]:
        """The name of the rule that owns each row, `none` for an empty one."""
        return [RULES[number] for number in self.matrix.owner.tolist()]

    def decompositions(self, side: SideName) -> Pieces:
        """Each token of one side as the other writes it, uncut; tokens that it cannot write have no pieces."""
        return self.student_pieces if _checked(side) == "student" else self.teacher_pieces

    def first_pieces(self, side: SideName) -> NDArray[np.int32]:
        """int32 (logits of the side,): each token's first piece on the other side, -1 for none.

        Matched special tokens are each other's first pieces.
        """
        return first_pieces(self.matrix, self.student, self.teacher, self.decompositions(side), _checked(side))

    def bins(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The bin of each student and of each teacher token, -1 for tokens in none; see `mapping.bins`."""
        return split_into_bins(self.first_pieces("student"), self.first_pieces("teacher"))

    def row(self, token: str | bytes | int) -> Row:
        """The row of a token: an id, or a surface, or else a raw string; of several the lowest id.

        Raises:
            MappingError: there is no such token.
        """
        return self.rows(token)[0]

    def rows(self, token: str | bytes | int) -> list[Row]:
        """The rows of all student tokens with a surface, or of one id.

        Raises:
            MappingError: there is no such token.
        """
        if isinstance(token, int | np.integer):
            if not 0 <= token < self.student.sizes.logits:
                raise MappingError(
                    f"{self.student.name} has no id {token}: its ids run from 0 to {self.student.sizes.logits - 1}"
                )
            return [self._row(int(token))]
        found = find_tokens(self.student, token)
        if not found:
            spaced = (b" " if isinstance(token, bytes) else " ") + token  # type: ignore[operator]
            hint = f"; {spaced!r} is one" if find_tokens(self.student, spaced) else ""
            raise MappingError(
                f"{self.student.name} has no token {token!r}, neither as a surface nor as a raw string{hint}"
            )
        return [self._row(token_id) for token_id in found]

    def _row(self, token_id: int) -> Row:
        matrix = self.matrix
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
        """Student ids whose decomposition spells another text."""
        return frozenset(self.student_pieces.lossy.tolist())

    def coverage(self) -> Coverage:
        """Rows counted by class, rule and reason, with the recommended loss."""
        return self.measured

    def unmatched(
        self,
        *,
        classes: Sequence[str] = (),
        reasons: Sequence[str] = (),
        pattern: str | None = None,
        limit: int | None = None,
    ) -> list[Unmatched]:
        """The tokens that are neither exact nor near, numerals first, each class by id.

        Args:
            classes: keep these classes of token; all, if none is named.
            reasons: keep these reasons, `split by RULE` or why a row is empty; a part of the words is enough.
            pattern: keep surfaces in which this regular expression is found.
            limit: how many at most.

        Raises:
            OptionError: there is no such class, or the pattern is no regular expression.
        """
        return unmatched_tokens(self.student, self.matrix, classes, reasons, pattern, limit)

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
            "bins": self.bin_sizes.to_dict(),
        }

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
        from .storage import write_mapping

        return write_mapping(self, Path(path), overwrite=overwrite)


def _checked(side: str) -> SideName:
    if side not in ("student", "teacher"):
        raise MappingError(f"a mapping has the sides 'student' and 'teacher', got {side!r}")
    return side  # type: ignore[return-value]


def first_pieces(matrix: Matrix, student: Side, teacher: Side, pieces: Pieces, side: SideName) -> NDArray[np.int32]:
    """First pieces of one side: of its decompositions, and of matched special tokens by their links."""
    first = pieces.first.copy()
    special = student.kinds[matrix.rows] >= Kind.SPECIAL
    special &= matrix.rule != RULE_NUMBER["reverse"]
    rows, columns = matrix.rows[special], matrix.indices[special]
    if side == "student":
        leading = matrix.position[special] == 0
        first[rows[leading]] = columns[leading]
        return first
    unset = (first[columns] < 0) & (teacher.kinds[columns] >= Kind.SPECIAL)
    # Written from the highest student id down, so that the lowest stays.
    first[columns[unset][::-1]] = rows[unset][::-1]
    return first
