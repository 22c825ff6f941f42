"""Decompositions under the user's overrides: an overridden token is what the user says it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import numpy as np

from .links import Decay
from .override import Override, find_overridden
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
    for entry, (row, found) in zip(overrides, find_overridden(pair, overrides), strict=True):
        # By decay all of them are its pieces, whatever is cut from W; a weight of 0 says that one is not.
        used = [True] * len(found) if entry.weights is None else (entry.shares(Decay()) > 0).tolist()
        table[row] = list(compress(found, used))
        lossy.discard(row)
        if not speller.equals(table[row], pair.student.surfaces[row]):
            lossy.add(row)
    return Pieces.of_table(len(pair.student), table, lossy)
