"""`import_mapping`: another program's file as a mapping, what is odd about that file, and what `build` makes instead.

The file gives links and weights. What they mean comes from the two tokenizers, which the user names: both are read, W
is built as `build` does it, and each link of the file is given the rule that makes the same link here.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..builder import mapping_of
from ..compare.diff import Diff, diff
from ..errors import ArtifactError, MismatchError, XTokenWarning
from ..mapping.mapping import Mapping
from ..mapping.validate import ROW_SUM_TOLERANCE
from ..matrix import Matrix, assemble_matrix
from ..read import as_vocab
from ..rules.links import RULE_NUMBER
from ..rules.pieces import Pair, Pieces
from ..rules.rules import rule_options, run_rules
from ..vocab.vocab import Vocab
from .foreign import ForeignLinks, read_foreign

SCALE = 0.2
"""What NeMo-RL's builder writes over the last column before it normalises rows (`--enable-scale-trick`, 2026)."""

_SCALE_SHARE = SCALE / (1 + SCALE)
_ROUNDING = 2**-6
"""bfloat16, in which that builder computes, has eight bits: shares come out up to a hundredth off."""

_LEAST_COMPARED = 100
_LEAST_AGREEING = 0.5
"""A file whose rows lead elsewhere than ours in more than half of the tokens that both sides have is another pair's."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a file that its user should know.

    Attributes:
        name: what it is, in a word or two.
        count: how many entries or rows.
        sentence: what it means.
    """

    name: str
    count: int
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """An entry of the JSON of `import`."""
        return {"name": self.name, "count": self.count, "sentence": self.sentence}


@dataclass(frozen=True, eq=False)
class Imported:
    """A mapping from another program's file.

    Attributes:
        mapping: the mapping, of provenance `imported`.
        built: the mapping that `build` makes of the same tokenizers.
        file: the links of the file as they stand there.
        findings: what is odd about the file.
    """

    mapping: Mapping
    built: Mapping
    file: ForeignLinks
    findings: tuple[Finding, ...]

    @cached_property
    def diff(self) -> Diff:
        """What the file says otherwise than `build`: the built mapping is the old one, the imported the new one."""
        return diff(self.built, self.mapping)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `import`."""
        rows = self.diff.rows
        compared = {name: getattr(rows, name) for name in ("same", "weights", "rule", "added", "removed")}
        return {
            **self.mapping.to_dict(),
            "file": {
                "name": self.file.name,
                "sha256": self.file.sha256,
                "form": self.file.form,
                "student": self.file.sides[0],
                "teacher": self.file.sides[1],
            },
            "findings": [finding.to_dict() for finding in self.findings],
            "against": {"version": self.built.version, "rows": compared, "l1": round(self.diff.l1, 6)},
        }


def import_mapping(
    path: str | os.PathLike[str],
    *,
    student: Vocab | str | os.PathLike[str] | Any,
    teacher: Vocab | str | os.PathLike[str] | Any,
    drop_scale_trick: bool = False,
) -> Imported:
    """Reads another program's file as a mapping.

    It reads NeMo-RL's two `.pt` files (`indices` and `likelihoods`, or a dict of pairs) and safetensors, and runs
    nothing that stands in them. A link that `build` makes too has the same rule here; one from the reverse pass has
    `reverse`; every other counts as an override. Rows are normalised, and decompositions come from the tokenizers.

    Args:
        path: the file.
        student: the student's vocabulary, or what `read_vocab` takes.
        teacher: the same.
        drop_scale_trick: leave out the links that NeMo-RL's scale trick wrote.

    Returns:
        The mapping, what is odd about the file, and what `build` makes of the same tokenizers.

    Raises:
        StoreError: the file cannot be read.
        ArtifactError: it holds no mapping of these tokenizers; all reasons are named.
        MismatchError: its links fit other tokenizers.
        SourceError, VocabularyError: a tokenizer cannot be read.
    """
    file = read_foreign(Path(path))
    pair = Pair.of(as_vocab(student), as_vocab(teacher))
    _check_ids(file, pair)
    findings = _findings(file, pair)
    trick = scale_links(file)
    if trick.any():
        findings.append(_scale_finding(file, trick, dropped=drop_scale_trick))
    if drop_scale_trick and trick.any():
        kept = ~trick
        file = replace(
            file, rows=file.rows[kept], columns=file.columns[kept], weights=file.weights[kept], last=file.last[kept]
        )
    cells, weights = _normalised(file, len(pair.teacher))
    options = rule_options()
    ours = assemble_matrix(run_rules(pair, options), (len(pair.student), len(pair.teacher)))
    matrix = classified(cells, weights, ours, pair)
    _check_agreement(matrix, ours, pair, file)
    built = mapping_of(pair, ours, options=options.to_dict(), student_pieces=pair.student_pieces)
    mapping = mapping_of(
        pair,
        matrix,
        options={"imported": True},
        student_pieces=_pieces(matrix, pair),
        provenance="imported",
        notes={"imported": [f"from {file.name}: {file.form}", *(finding.sentence for finding in findings)]},
    )
    for sentence in mapping.notes.get("warnings", ()):
        warnings.warn(sentence, XTokenWarning, stacklevel=2)
    return Imported(mapping, built, file, tuple(findings))


def _check_ids(file: ForeignLinks, pair: Pair) -> None:
    """Refuses links of tokens that the tokenizers do not have."""
    wrong = []
    for what, ids, vocab, other in (
        ("student", file.rows, pair.student, pair.teacher),
        ("teacher", file.columns, pair.teacher, pair.student),
    ):
        beyond = ids[ids >= len(vocab)]
        if len(beyond):
            exchanged = int(ids.max()) < len(other)
            wrong.append(
                f"{len(beyond):,} of {len(ids):,} {what} ids are too large, the largest {beyond.max():,}, for the "
                f"{len(vocab):,} logits of {vocab.name}"
                + ("; are student and teacher exchanged?" if exchanged else f"; is --{what}-logits larger?")
            )
    if wrong:
        raise ArtifactError(f"{file.name}: {'; '.join(wrong)}")


def _findings(file: ForeignLinks, pair: Pair) -> list[Finding]:
    """What is odd about the file beside the scale trick."""
    cells = file.rows * len(pair.teacher) + file.columns
    totals = np.bincount(file.rows, file.weights)
    off = totals[(totals > 0) & (np.abs(totals - 1) > _ROUNDING)]
    sums = f"from {off.min():.3g} to {off.max():.3g}" if len(off) else ""
    counted = (
        ("sentinel", file.filled, "-1 fills short rows, in places"),
        ("lost weight", file.filled_with_weight, "places that -1 fills and that have a weight, which is dropped"),
        ("zeros", file.zeros, "places with a teacher token and weight 0, which make no links"),
        ("duplicates", len(cells) - len(np.unique(cells)), "links twice in their row, whose weights are added"),
        ("row sums", len(off), f"rows that sum to something else than 1, {sums}, and are normalised"),
    )
    findings = [Finding(name, count, f"{what}: {count:,}") for name, count, what in counted if count]
    for what, stated, vocab in zip(("student", "teacher"), file.shape, (pair.student, pair.teacher), strict=True):
        if stated is not None and stated != len(vocab):
            sentence = f"the file is for {stated:,} {what} ids, and {vocab.name} has {len(vocab):,} logits"
            findings.append(Finding(f"{what} width", stated, sentence))
    return findings


def scale_links(file: ForeignLinks) -> NDArray[np.bool_]:
    """Marks the links that the scale trick wrote: bool (links,).

    NeMo-RL's builder takes the heaviest 32 of each row, writes 0.2 over the last of them, whatever teacher token that
    happens to be, and normalises again. A row of one piece becomes

        weights 1 0 0 ... 0    ->    1 0 0 ... 0.2    ->    .833 0 0 ... .167

    so one sixth of its mass leads to a token that has nothing to do with it, and all of it in a row without pieces. The
    links are known by the last column and that share. Where the file does not say that it was made so, half of the last
    column must look like it.
    """
    totals = np.bincount(file.rows, file.weights)
    share = file.weights / totals[file.rows]
    alone = np.bincount(file.rows)[file.rows] == 1
    close = np.abs(share - _SCALE_SHARE) <= _ROUNDING * _SCALE_SHARE
    # Files that were trimmed keep the last column and lose others, so that its share is a little larger.
    if file.scale_trick:
        close |= share >= _SCALE_SHARE * (1 - _ROUNDING)
    marked: NDArray[np.bool_] = file.last & (close | alone | (np.abs(file.weights - SCALE) <= _ROUNDING * SCALE))
    in_last = int(file.last.sum())
    if not in_last or (file.scale_trick is not True and 2 * int(marked.sum()) < in_last):
        return np.zeros(len(marked), dtype=np.bool_)
    return marked


def _scale_finding(file: ForeignLinks, marked: NDArray[np.bool_], *, dropped: bool) -> Finding:
    totals = np.bincount(file.rows, file.weights)
    share = float((file.weights[marked] / totals[file.rows[marked]]).mean())
    alone = int((marked & (np.bincount(file.rows)[file.rows] == 1)).sum())
    count = int(marked.sum())
    sentence = (
        f"the scale trick gives {count:,} rows a link in the last column, to whatever token stands there, with "
        f"{share:.1%} of the row's mass on average; {alone:,} of them have no other link"
    )
    done = "left out" if dropped else "kept, and left out with --drop-scale-trick"
    return Finding("scale trick", count, f"{sentence}; {done}")


def _normalised(file: ForeignLinks, width: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Links as cells of W, ascending, each once, with weights that sum to 1 in each row.

    Weights of rows that sum to 1 already stay as they are, bit for bit.
    """
    # As in `assemble_matrix`: a cell is one number, row * width + column.
    cells, place = np.unique(file.rows * width + file.columns, return_inverse=True)
    weights = np.bincount(place, file.weights, minlength=len(cells))
    rows = cells // width
    totals = np.bincount(rows, weights)
    scale = np.where(np.abs(totals - 1) > ROW_SUM_TOLERANCE, totals, 1.0)
    weights = weights / scale[rows]
    # What float32 would make 0 is no link.
    kept = weights >= np.finfo(np.float32).tiny
    return cells[kept], weights[kept]


def classified(cells: NDArray[np.int64], weights: NDArray[np.float64], ours: Matrix, pair: Pair) -> Matrix:
    """W of the file's links, each with a rule and a position.

    A link that our row has too keeps our rule and position. A link from s to a teacher token that the student writes
    with s is one of the reverse pass. What is left makes the row an override: its links then stand by falling weight.

    Say our row of `201` leads to 2, 0 and 1, the file's to 2, 0 and `x`, and `201` is a piece of teacher token `2010`.
    A file's row of 2 and 0 is cut and still one of `digits`; one of 2, 0 and `2010` has a link `reverse` beside them;
    one of 2, 0 and `x` is an override.

    Args:
        cells: int64 (links,), row * teacher width + column, ascending.
        weights: float64 (links,), summing to 1 in each row.
        ours: W as `build` makes it.
        pair: the two tokenizers.
    """
    height, width = ours.shape
    rows, columns = cells // width, cells % width
    our_cells = ours.rows.astype(np.int64) * width + ours.indices
    place = np.minimum(np.searchsorted(our_cells, cells), max(len(our_cells) - 1, 0))
    known = our_cells[place] == cells if len(our_cells) else np.zeros(len(cells), dtype=np.bool_)
    rule = np.where(known, ours.rule[place] if len(our_cells) else 0, 0).astype(np.uint8)
    position = np.where(known, ours.position[place] if len(our_cells) else 0, 0).astype(np.int64)
    backward, at = _backward(cells, pair)
    backward &= ~known
    rule[backward] = RULE_NUMBER["reverse"]
    position[backward] = at[backward]
    # A row that has links beside the reverse pass's is ours if they all are, and our first piece is among them.
    forward = rule != RULE_NUMBER["reverse"]
    unknown = np.bincount(rows[forward & ~known], minlength=height) > 0
    begun = np.bincount(rows[known & (position == 0)], minlength=height) > 0
    override = forward & (unknown | ~begun)[rows]
    rule[override] = RULE_NUMBER["override"]
    # By row and falling weight; rows 3 3 5 have the ranks 0 1 0.
    chosen = np.flatnonzero(override)
    chosen = chosen[np.lexsort((columns[chosen], -weights[chosen], rows[chosen]))]
    starts = np.flatnonzero(np.diff(rows[chosen], prepend=-1))
    ranks = np.arange(len(chosen)) - np.repeat(starts, np.diff(np.append(starts, len(chosen))))
    position[chosen] = ranks
    indptr = np.zeros(height + 1, dtype=np.int32)
    np.cumsum(np.bincount(rows, minlength=height), out=indptr[1:])
    return Matrix(
        shape=ours.shape,
        indptr=indptr,
        indices=columns.astype(np.int32),
        data=weights.astype(np.float32),
        position=np.minimum(position, 255).astype(np.uint8),
        rule=rule,
    )


def _backward(cells: NDArray[np.int64], pair: Pair) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which cells (s, t) have an s among the pieces by which the student writes t, and which piece it is first."""
    pieces = pair.teacher_pieces
    owners = np.repeat(np.arange(len(pieces), dtype=np.int64), pieces.lengths)
    # Pieces 4 9 | 4 of the tokens 0 and 1 are the pieces 0 1 | 0 of theirs.
    which = np.arange(len(owners)) - np.repeat(pieces.offsets[:-1], pieces.lengths)
    reverse_cells, first = np.unique(pieces.ids.astype(np.int64) * len(pieces) + owners, return_index=True)
    if not len(reverse_cells):
        return np.zeros(len(cells), dtype=np.bool_), np.zeros(len(cells), dtype=np.int64)
    place = np.minimum(np.searchsorted(reverse_cells, cells), len(reverse_cells) - 1)
    return reverse_cells[place] == cells, which[first[place]]


def _check_agreement(matrix: Matrix, ours: Matrix, pair: Pair, file: ForeignLinks) -> None:
    """Refuses a file whose rows do not lead where equal tokens stand.

    Raises:
        MismatchError: its tokenizers are others.
    """
    theirs, our_top = matrix.top[0], ours.top[0]
    compared = (ours.owner == RULE_NUMBER["exact"]) | (ours.owner == RULE_NUMBER["identity"])
    compared &= theirs >= 0
    count, agreeing = int(compared.sum()), int((theirs == our_top)[compared].sum())
    if count >= _LEAST_COMPARED and agreeing < _LEAST_AGREEING * count:
        named = [name for name in file.sides if name]
        raise MismatchError(
            f"{file.name} is not of these tokenizers: of {count:,} tokens that {pair.student.name} and "
            f"{pair.teacher.name} both have, it maps {agreeing:,} to the equal one"
            + (f"; it names {' and '.join(named)}" if named else "; give the two that it was made from")
        )


def _pieces(matrix: Matrix, pair: Pair) -> Pieces:
    """The student's decompositions. A token that the teacher cannot write, and the file maps, is its heaviest link."""
    owned = (matrix.rule == RULE_NUMBER["override"]) & (matrix.position == 0)
    rows, columns = matrix.rows[owned], matrix.indices[owned]
    without = pair.student_pieces.lengths[rows] == 0
    first = Pieces.of(matrix.shape[0], rows[without].astype(np.int64), columns[without])
    return pair.student_pieces.completed_by(first)
