"""Decompositions under the user's overrides: an overridden token is what the user says it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .override import Override, resolve
from .pair import Pair
from .pieces import Pieces, Speller


def with_overrides(pair: Pair, overrides: Sequence[Override]) -> Pieces:
    """The student's decompositions with overridden tokens replaced by their teacher tokens, in the order given.

    An override that spells another text than its token counts as lossy, like any decomposition that does.

    Raises:
        OverrideError: a token is unknown.
    """
    pieces = pair.student_pieces
    if not overrides:
        return pieces
    speller = Speller(pair.teacher)
    table = {token_id: pieces[token_id] for token_id in np.flatnonzero(pieces.lengths).tolist()}
    lossy = set(pieces.lossy.tolist())
    for entry in overrides:
        row = resolve(pair.student, entry.student, "student")
        weights = entry.weights if entry.weights is not None else (1.0,) * len(entry.teacher)
        table[row] = [
            resolve(pair.teacher, ref, "teacher") for ref, weight in zip(entry.teacher, weights, strict=True) if weight
        ]
        lossy.discard(row)
        if not speller.equals(table[row], pair.student.surfaces[row]):
            lossy.add(row)
    return Pieces.of_table(len(pair.student), table, lossy)
