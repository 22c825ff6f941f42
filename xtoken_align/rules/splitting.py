"""The rules that split a token into several: digits, decompose and bytes, all from the teacher's own encoder."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from ..vocab.kinds import Kind
from .links import Decay, Links, from_pieces
from .pieces import Pair, is_utf8

_NUMERAL = re.compile(rb" ?[0-9]+")

Open = NDArray[np.bool_]


def digits(pair: Pair, open_rows: Open, decay: Decay) -> Links:
    """A numeral (at most one leading space, then ASCII digits only), split as the teacher splits it."""
    surfaces = pair.student.surfaces.list
    rows = [row for row in pair.open_text(open_rows) if _NUMERAL.fullmatch(surfaces[row])]
    return from_pieces("digits", np.array(rows, dtype=np.int64), pair.student_pieces, decay)


def decompose_text(pair: Pair, open_rows: Open, decay: Decay) -> Links:
    """Any other valid UTF-8 text, as the teacher tokenises it."""
    surfaces = pair.student.surfaces.list
    rows = [row for row in pair.open_text(open_rows) if is_utf8(surfaces[row])]
    return from_pieces("decompose", np.array(rows, dtype=np.int64), pair.student_pieces, decay)


def byte_tokens(pair: Pair, open_rows: Open, decay: Decay) -> Links:
    """Byte tokens, and surfaces that are not UTF-8."""
    surfaces = pair.student.surfaces.list
    rows = [row for row in pair.open_text(open_rows) if not is_utf8(surfaces[row])]
    rows += np.flatnonzero(open_rows & (pair.student.kinds == Kind.BYTE)).tolist()
    return from_pieces("bytes", np.array(sorted(rows), dtype=np.int64), pair.student_pieces, decay)


def reverse(pair: Pair, columns: NDArray[np.bool_], decay: Decay) -> Links:
    """For each teacher token that no row reaches, its student tokens gain a link to it with its decay weights.

    Args:
        pair: student and teacher.
        columns: bool (teacher width,), the columns that have an entry already.
        decay: the weights.

    Returns:
        Links of rule `reverse`; the touched rows are to be normalised again.
    """
    teacher_ids = np.flatnonzero(~columns & (pair.teacher_pieces.lengths > 0))
    links = from_pieces("reverse", teacher_ids, pair.teacher_pieces, decay)
    return Links(links.rule, links.columns, links.rows, links.positions, links.weights)
