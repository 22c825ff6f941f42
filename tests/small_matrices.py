"""Small matrices for tests, made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xtoken_align.matrix import Matrix


def matrix_of(rows: Sequence[tuple[int, int]]) -> Matrix:
    """W with rows of (number of the owning rule, links); every link has a column of its own, rule 0 has no links."""
    links = np.array([count if rule else 0 for rule, count in rows], np.int32)
    weights = np.repeat(1 / np.maximum(links, 1), links).astype(np.float32)
    return Matrix(
        shape=(len(rows), max(1, int(links.sum()))),
        indptr=np.concatenate([[0], np.cumsum(links)]).astype(np.int32),
        indices=np.arange(links.sum(), dtype=np.int32),
        data=weights,
        position=np.concatenate([np.arange(count) for count in links] or [[]]).astype(np.uint8),
        rule=np.repeat(np.array([rule for rule, _ in rows], np.uint8), links),
    )
