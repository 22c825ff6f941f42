"""What C-KL needs of a mapping beyond the bins, and the levels of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..mapping.mapping import Mapping
from ..rules.pieces import Pieces
from ..spans.spans import Predictions
from .chain_plan import Levels, find_levels
from .prefix_tree import PrefixTree, make_tree
from .recipes import live_tokens


@dataclass(frozen=True, eq=False)
class ChainTables:
    """Both sides' decompositions with their prefixes.

    Attributes:
        student: the student's tokens by the teacher's pieces.
        teacher: the teacher's tokens by the student's pieces.
        student_pieces: the student's decompositions.
        teacher_pieces: the teacher's.
    """

    student: PrefixTree
    teacher: PrefixTree
    student_pieces: Pieces
    teacher_pieces: Pieces


def chain_tables(mapping: Mapping) -> ChainTables:
    """The tables of a mapping."""
    pieces = mapping.decompositions("student"), mapping.decompositions("teacher")
    return ChainTables(
        make_tree(pieces[0], live_tokens(mapping, "student"), len(pieces[1])),
        make_tree(pieces[1], live_tokens(mapping, "teacher"), len(pieces[0])),
        *pieces,
    )


def chain_levels(
    tables: ChainTables, predictions: Predictions, fits: NDArray[np.bool_]
) -> Sequence[tuple[Levels, PrefixTree, bool]]:
    """The levels of a batch below level one, with the tree of the restricted side and whether that is the student's.

    Args:
        tables: of the mapping.
        predictions: numpy arrays.
        fits: bool (N,), False for misfit chunks, which have no levels.
    """
    return [
        (
            find_levels(tree, pieces, predictions, restricted=side, fits=fits),
            tree,
            side == "student",
        )
        for side, tree, pieces in (
            ("student", tables.student, tables.student_pieces),
            ("teacher", tables.teacher, tables.teacher_pieces),
        )
    ]
