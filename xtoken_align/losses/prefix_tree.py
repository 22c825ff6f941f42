"""All prefixes of one vocabulary's decompositions, with the tokens below each as a range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..rules.pieces import Pieces
from ..spans.units import offsets_of

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """A tree whose nodes are the piece sequences with which some token's decomposition begins; node 0 is the empty one.

    Nodes are numbered level by level, the children of one node side by side.

    Attributes:
        tokens: int64 (tokens,), the tokens that have a decomposition, so ordered that those below a node are a range.
        begin: int64 (nodes,), where the tokens whose decomposition begins with a node's pieces begin in `tokens`.
        end: int64 (nodes,), where they end; those that are equal to it come first.
        own_end: int64 (nodes,), where the equal ones end.
        child: int64 (nodes + 1,), the first child of each node; node n's children are child[n] to child[n + 1] - 1.
        piece: int64 (nodes,), the last piece of each node, -1 for the root.
        keys: int64 (nodes,), parent * width + piece, ascending.
        node_of: int64, the node of each token's whole decomposition, -1 for tokens without one.
        width: the pieces' vocabulary's width.
    """

    tokens: Ids
    begin: Ids
    end: Ids
    own_end: Ids
    child: Ids
    piece: Ids
    keys: Ids
    node_of: Ids
    width: int

    def step(self, nodes: Ids, pieces: Ids) -> Ids:
        """The child of each node by each piece, -1 where there is none or the node is -1."""
        keys = nodes * self.width + pieces
        at = np.searchsorted(self.keys, keys)
        inside = at < len(self.keys)
        found = (nodes >= 0) & (pieces >= 0) & inside
        found[found] = self.keys[at[found]] == keys[found]
        return np.where(found, at, -1)

    def has_children(self, nodes: Ids) -> NDArray[np.bool_]:
        """Which nodes are prefixes of longer decompositions; -1 is not."""
        safe = np.maximum(nodes, 0)
        branching: NDArray[np.bool_] = (nodes >= 0) & (self.child[safe + 1] > self.child[safe])
        return branching


def make_tree(pieces: Pieces, live: NDArray[np.bool_], width: int) -> PrefixTree:
    """Builds the tree of the live tokens' decompositions.

    Args:
        pieces: every token as the other side writes it.
        live: bool (tokens,), which tokens have a probability.
        width: the other side's logit width.
    """
    tokens = np.flatnonzero((pieces.lengths > 0) & live)
    starts, lengths = pieces.offsets[tokens], pieces.lengths[tokens].astype(np.int64)
    at = np.zeros(len(tokens), dtype=np.int64)  # the node of each token's pieces so far
    levels = [np.full(1, -1, dtype=np.int64)]
    count, depth = 1, 0
    open_ = np.arange(len(tokens))
    while len(open_):
        keys = at[open_] * width + pieces.ids[starts[open_] + depth]
        level, place = np.unique(keys, return_inverse=True)
        at[open_] = count + place
        levels.append(level)
        count, depth = count + len(level), depth + 1
        open_ = open_[lengths[open_] > depth]
    node_of = np.full(len(pieces), -1, dtype=np.int64)
    node_of[tokens] = at
    return _ranges(tokens, node_of, levels, width)


def _ranges(tokens: Ids, node_of: Ids, levels: list[Ids], width: int) -> PrefixTree:
    """Orders the tokens: a node's own ones first, then child by child."""
    at, keys = node_of[tokens], np.concatenate(levels)
    nodes = len(keys)
    parent = np.where(keys >= 0, keys // width, -1)
    own = np.bincount(at, minlength=nodes)
    below = own.copy()
    edges = offsets_of(np.array([len(level) for level in levels]))
    for first, last in zip(edges[-2:0:-1].tolist(), edges[:1:-1].tolist(), strict=True):
        below += np.bincount(parent[first:last], below[first:last], minlength=nodes).astype(np.int64)
    begin = np.zeros(nodes, dtype=np.int64)
    for first, last in zip(edges[1:-1].tolist(), edges[2:].tolist(), strict=True):
        level = slice(first, last)
        before = offsets_of(below[level])[:-1]
        # Siblings stand side by side: what of the level comes before a node, less what comes before the first sibling.
        eldest = np.searchsorted(parent[level], parent[level])
        begin[level] = begin[parent[level]] + own[parent[level]] + before - before[eldest]
    order = np.argsort(begin[at], kind="stable")
    child = np.searchsorted(parent, np.arange(nodes + 1))
    return PrefixTree(
        tokens=tokens[order],
        begin=begin,
        end=begin + below,
        own_end=begin + own,
        child=child,
        piece=np.where(keys >= 0, keys % width, -1),
        keys=keys,
        node_of=node_of,
        width=width,
    )
