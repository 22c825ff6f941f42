"""Where C-KL's chain rule goes on below level one: which chunks have further levels, and what is compared there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..rules.pieces import Pieces
from ..spans.spans import Predictions
from ..spans.units import offsets_of
from .prefix_tree import Ids, PrefixTree


@dataclass(frozen=True, eq=False)
class Levels:
    """Comparisons of two conditional distributions, chunk by chunk.

    A level is about the pieces that may follow a prefix: one side is restricted to its tokens that begin with the
    prefix, the other has written the prefix and says the next piece. Its outcomes are the end of the prefix's token and
    each next piece.

    Attributes:
        chunk: int64 (m,), ascending.
        node: int64 (m,), the prefix in the restricted side's tree.
        restricted_row: int64 (m,), flattened position of the restricted side's logits.
        spoken_row: int64 (m,), of the other side's.
    """

    chunk: Ids
    node: Ids
    restricted_row: Ids
    spoken_row: Ids


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What levels compare, spelled out.

    Attributes:
        level: int64 (outcomes,), the level of each outcome; a level's first one is its end.
        piece: int64 (outcomes,), the spoken token, -1 for the end.
        token: int64 (tokens,), the restricted side's tokens.
        outcome: int64 (tokens,), the outcome of each.
        outcome_offsets: int64 (m + 1,), where each level's outcomes begin.
        token_offsets: int64 (m + 1,), where each level's tokens begin.
    """

    level: Ids
    piece: Ids
    token: Ids
    outcome: Ids
    outcome_offsets: Ids
    token_offsets: Ids


def find_levels(
    tree: PrefixTree, pieces: Pieces, predictions: Predictions, *, restricted: str, fits: NDArray[np.bool_]
) -> Levels:
    """The levels at which one side is restricted, for chunks in which that side has one token and the other its pieces.

    Args:
        tree: of the restricted side's decompositions.
        pieces: those decompositions.
        predictions: numpy arrays.
        restricted: "student" or "teacher".
        fits: bool (N,), False for chunks that have no levels.
    """
    spoken = "teacher" if restricted == "student" else "student"
    whole_at, whole_rows, whole_tokens = _side(predictions, restricted)
    part_at, part_rows, part_tokens = _side(predictions, spoken)
    sizes = np.diff(part_at)
    chunks = np.flatnonzero(fits & (np.diff(whole_at) == 1))
    token = whole_tokens[whole_at[chunks]]
    chunks = chunks[pieces.lengths[token] == sizes[chunks]]
    token = whole_tokens[whole_at[chunks]]
    nodes = np.zeros(len(chunks), dtype=np.int64)
    found: list[tuple[Ids, Ids, Ids]] = []
    open_ = np.arange(len(chunks))
    depth = 0
    while len(open_):
        first = part_at[chunks[open_]]
        nodes[open_] = tree.step(nodes[open_], part_tokens[first + depth])
        depth += 1
        goes_on = sizes[chunks[open_]] > depth
        # The row that predicts the next piece; after the last one the row of that piece itself.
        row = np.where(goes_on, part_rows[first + np.where(goes_on, depth, 0)], part_rows[first + depth - 1] + 1)
        found.append((open_, nodes[open_].copy(), row))
        open_ = open_[goes_on]
    exact = nodes == tree.node_of[token]
    at, node, row = (np.concatenate(arrays) for arrays in zip(*found, strict=True)) if found else _nothing()
    kept = exact[at] & tree.has_children(node)
    at, node, row = at[kept], node[kept], row[kept]
    order = np.argsort(at, kind="stable")
    chunk = chunks[at[order]]
    return Levels(chunk=chunk, node=node[order], restricted_row=whole_rows[whole_at[chunk]], spoken_row=row[order])


def spell_out(tree: PrefixTree, node: Ids) -> Outcomes:
    """The outcomes of levels at these nodes."""
    children = tree.child[node + 1] - tree.child[node]
    outcome_offsets = offsets_of(children + 1)
    level = np.repeat(np.arange(len(node)), children + 1)
    place = np.arange(len(level)) - outcome_offsets[level]
    child = tree.child[node[level]] + place - 1
    is_end = place == 0
    child = np.where(is_end, node[level], child)
    sizes = np.where(is_end, tree.own_end[child], tree.end[child]) - tree.begin[child]
    outcome = np.repeat(np.arange(len(level)), sizes)
    token_offsets = offsets_of(tree.end[node] - tree.begin[node])
    of_token = level[outcome]
    token = tree.tokens[tree.begin[node[of_token]] + np.arange(len(outcome)) - token_offsets[of_token]]
    return Outcomes(level, np.where(is_end, -1, tree.piece[child]), token, outcome, outcome_offsets, token_offsets)


def _side(predictions: Predictions, side: str) -> tuple[Ids, Ids, Ids]:
    """Offsets, rows and tokens of a side."""
    return getattr(predictions, f"{side}_offsets"), getattr(predictions, side), getattr(predictions, f"{side}_tokens")


def _nothing() -> tuple[Ids, Ids, Ids]:
    empty = np.zeros(0, dtype=np.int64)
    return empty, empty, empty
