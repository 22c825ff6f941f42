"""C-KL below level one: the chain rule along the pieces of a token that one side writes whole and the other in pieces.

Say the student has `12` as one token, and the teacher writes `1` `2`. The student's tokens that begin with `1`, which
are `1`, `12`, `13`, `123`, ..., are a distribution over what follows the piece `1`: the end, `2`, `3`, ... The
teacher's logits after `1` are one too. A *level* compares the two: one side is *restricted* to its tokens that begin
with a prefix, the other has *spoken* the prefix and says the next piece. The level after `12` follows, at which a
student that never says `123` learns how often the number goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..mapping.mapping import Mapping
from ..rules.pieces import Pieces
from ..spans.spans import Predictions
from ..spans.units import offsets_of
from .divergence import never_negative
from .tables import live_tokens, log_of, log_sum

Ids = NDArray[np.int64]


Array = Any
"""A numpy array of int64, or a tensor."""


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

    def levels(self, predictions: Predictions, fits: NDArray[np.bool_]) -> tuple[Levels, Levels]:
        """The levels of a batch at which the student is restricted, and those at which the teacher is.

        Args:
            predictions: numpy arrays.
            fits: bool (N,), False for misfit chunks, which have no levels.
        """
        return (
            find_levels(self.student, self.student_pieces, predictions, fits, of_student=True),
            find_levels(self.teacher, self.teacher_pieces, predictions, fits, of_student=False),
        )


def chain_tables(mapping: Mapping) -> ChainTables:
    """The tables of a mapping."""
    pieces = mapping.decompositions("student"), mapping.decompositions("teacher")
    return ChainTables(
        make_tree(pieces[0], live_tokens(mapping, "student"), len(pieces[1])),
        make_tree(pieces[1], live_tokens(mapping, "teacher"), len(pieces[0])),
        *pieces,
    )


@dataclass(frozen=True, eq=False)
class Levels:
    """Comparisons of two conditional distributions over next pieces, chunk by chunk; numpy arrays, or tensors.

    A level's outcomes are the end of the prefix's token and each next piece. Restricted to the tokens `1`, `12`, `13`,
    `134` after the prefix `1`, a level has the outcomes end, `2`, `3`: piece = [-1, id of 2, id of 3], token = the four
    ids, outcome = [0, 1, 2, 2].

    Attributes:
        restricted_student: whether the restricted side is the student.
        chunk: int64 (m,), ascending.
        restricted: int64 (m,), the restricted side's row: a flattened position, or after `in_block` a place in a block.
        spoken: int64 (m,), the other side's.
        level: int64 (outcomes,), the level of each outcome; a level's first one is its end.
        piece: int64 (outcomes,), the spoken token, -1 for the end.
        token: int64 (tokens,), the restricted side's tokens.
        outcome: int64 (tokens,), the outcome of each.
    """

    restricted_student: bool
    chunk: Array
    restricted: Array
    spoken: Array
    level: Array
    piece: Array
    token: Array
    outcome: Array

    def __len__(self) -> int:
        return len(self.chunk)

    def rows(self, *, of_student: bool) -> Ids:
        """The rows that these levels read on one side."""
        rows: Ids = self.restricted if of_student == self.restricted_student else self.spoken
        return rows

    def of_chunks(self, first: int, last: int) -> Levels:
        """The levels of chunks first to last."""
        begin, end = np.searchsorted(self.chunk, [first, last])
        return self._cut(int(begin), int(end))

    def in_block(self, student: Ids, teacher: Ids) -> Levels:
        """The same with places among a block's rows in place of flattened positions."""
        restricted, spoken = (student, teacher) if self.restricted_student else (teacher, student)
        places = []
        for rows, wanted in ((restricted, self.restricted), (spoken, self.spoken)):
            order = np.argsort(rows)
            places.append(order[np.searchsorted(rows, wanted, sorter=order)])
        return replace(self, restricted=places[0], spoken=places[1])

    def parts(self, count: int) -> Iterator[Levels]:
        """At most so many levels at a time."""
        for first in range(0, len(self), count):
            yield self._cut(first, min(first + count, len(self)))

    def tensors(self, device: torch.device) -> Levels:
        """The same as tensors."""
        arrays: dict[str, Any] = {
            name: torch.from_numpy(np.ascontiguousarray(value)).to(device, non_blocking=True)
            for name, value in vars(self).items()
            if name != "restricted_student"
        }
        return replace(self, **arrays)

    def _cut(self, first: int, last: int) -> Levels:
        """Levels first to last, with outcomes and tokens that count from their own first ones."""
        begin, end = np.searchsorted(self.level, [first, last])
        of_tokens = slice(*np.searchsorted(self.outcome, [begin, end]))
        of_level, of_outcome = slice(first, last), slice(begin, end)
        return replace(
            self,
            chunk=self.chunk[of_level],
            restricted=self.restricted[of_level],
            spoken=self.spoken[of_level],
            level=self.level[of_outcome] - first,
            piece=self.piece[of_outcome],
            token=self.token[of_tokens],
            outcome=self.outcome[of_tokens] - begin,
        )


def find_levels(
    tree: PrefixTree, pieces: Pieces, predictions: Predictions, fits: NDArray[np.bool_], *, of_student: bool
) -> Levels:
    """The levels at which one side is restricted, for chunks in which that side has one token and the other its pieces.

    Args:
        tree: of the restricted side's decompositions.
        pieces: those decompositions.
        predictions: numpy arrays.
        fits: bool (N,), False for chunks that have no levels.
        of_student: whether the student is restricted, else the teacher.
    """
    student = predictions.student_offsets, predictions.student, predictions.student_tokens
    teacher = predictions.teacher_offsets, predictions.teacher, predictions.teacher_tokens
    whole, part = (student, teacher) if of_student else (teacher, student)
    whole_at, whole_rows, whole_tokens = whole
    part_at, part_rows, part_tokens = part
    sizes = np.diff(part_at)
    chunks = np.flatnonzero(fits & (np.diff(whole_at) == 1))
    token = whole_tokens[whole_at[chunks]]
    chunks = chunks[pieces.lengths[token] == sizes[chunks]]
    token = whole_tokens[whole_at[chunks]]
    nodes = np.zeros(len(chunks), dtype=np.int64)
    empty = np.zeros(0, dtype=np.int64)
    found: list[tuple[Ids, Ids, Ids]] = [(empty, empty, empty)]
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
    at, node, row = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    kept = exact[at] & tree.has_children(node)
    at, node, row = at[kept], node[kept], row[kept]
    order = np.argsort(at, kind="stable")
    chunk = chunks[at[order]]
    level, piece, token, outcome = _spell_out(tree, node[order])
    return Levels(of_student, chunk, whole_rows[whole_at[chunk]], row[order], level, piece, token, outcome)


def _spell_out(tree: PrefixTree, node: Ids) -> tuple[Ids, Ids, Ids, Ids]:
    """The `level`, `piece`, `token` and `outcome` of levels at these nodes."""
    children = tree.child[node + 1] - tree.child[node]
    outcome_at = offsets_of(children + 1)
    level = np.repeat(np.arange(len(node)), children + 1)
    place = np.arange(len(level)) - outcome_at[level]
    child = tree.child[node[level]] + place - 1
    is_end = place == 0
    child = np.where(is_end, node[level], child)
    sizes = np.where(is_end, tree.own_end[child], tree.end[child]) - tree.begin[child]
    outcome = np.repeat(np.arange(len(level)), sizes)
    token_at = offsets_of(tree.end[node] - tree.begin[node])
    of_token = level[outcome]
    token = tree.tokens[tree.begin[node[of_token]] + np.arange(len(outcome)) - token_at[of_token]]
    return level, np.where(is_end, -1, tree.piece[child]), token, outcome


@dataclass(frozen=True, eq=False)
class Reads:
    """One side's rows of a block, of which levels read some numbers.

    What is read is a leaf of the graph, so that the gradient costs as much as was read, not as much as the block holds;
    `add_gradient` then adds each leaf's gradient where it was read.

    Attributes:
        scores: floats (r, V), logits; of a cached teacher log-probabilities, -inf where unknown.
        silent: int64, the tokens that have no probability.
        log_rest: floats (r,), a cached teacher's mass on the unknown tokens, or None.
        wanted: whether the gradient is.
    """

    scores: torch.Tensor
    silent: torch.Tensor
    log_rest: torch.Tensor | None = None
    wanted: bool = False
    _picked: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    _whole: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def at(self, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """The numbers of some rows and tokens."""
        place = row * self.scores.shape[1] + token
        values = self.scores.detach()[row, token].requires_grad_(self.wanted)
        self._picked.append((values, place))
        return values

    def all_but(self, rows: torch.Tensor, number: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """Log of the sum over whole rows, without the silent tokens and without `token` in row `rows[number]`."""
        others = self.scores.detach().index_select(0, rows).index_fill_(1, self.silent, -math.inf)
        others[number, token] = -math.inf
        others.requires_grad_(self.wanted)
        self._whole.append((others, rows))
        return log_sum(others)

    def add_gradient(self, total: torch.Tensor, gradient: torch.Tensor) -> None:
        """Adds the gradient of a scalar that was made of what was read."""
        leaves = [leaf for leaf, _ in (*self._picked, *self._whole)]
        slopes = iter(torch.autograd.grad(total, leaves, allow_unused=True))
        for _, place in self._picked:
            slope = next(slopes)
            if slope is not None:
                gradient.view(-1).scatter_add_(0, place, slope)
        for _, rows in self._whole:
            slope = next(slopes)
            if slope is not None:
                gradient.index_add_(0, rows, slope)


def level_values(student: Reads, teacher: Reads, levels: Levels, *, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || student) of each level's outcomes: floats (m,).

    The restricted side's mass of an outcome is the sum over its tokens that go on with that piece, or that are equal to
    the prefix for the end. The speaking side's is the piece's own logit, and for the end the sum over all other tokens
    (not 1 less the pieces, which would lose its digits). Both are normalised over the level's outcomes.

    Args:
        student: the student's rows.
        teacher: the teacher's.
        levels: tensors.
        temperature: T.

    Source: this library, 2026.
    """
    restricted, spoken = (student, teacher) if levels.restricted_student else (teacher, student)
    count, outcome = len(levels), levels.outcome
    ends = (levels.piece < 0).nonzero().squeeze(1)
    inner = (levels.piece >= 0).nonzero().squeeze(1)
    level, piece = levels.level[inner], levels.piece[inner]
    log_end = spoken.all_but(levels.spoken, level, piece)
    if spoken.log_rest is not None:
        log_end = torch.logaddexp(log_end, spoken.log_rest.to(log_end.dtype)[levels.spoken])
    log_pieces = spoken.at(levels.spoken[level], piece)
    log_spoken = log_pieces.new_empty(len(levels.level)).index_copy(0, inner, log_pieces).index_copy(0, ends, log_end)
    if spoken.log_rest is not None:
        # A next piece that is not among a cached teacher's best is part of "anything else", on both sides.
        unknown = (log_spoken == -math.inf) & (levels.piece >= 0)
        outcome = torch.where(unknown[outcome], ends[levels.level[outcome]], outcome)
    tokens = restricted.at(levels.restricted[levels.level[levels.outcome]], levels.token)
    log_restricted = _log_sums(tokens, outcome, len(levels.level))
    log_student, log_teacher = (
        (log_restricted, log_spoken) if levels.restricted_student else (log_spoken, log_restricted)
    )
    log_student = _normalised(log_student, levels.level, count)
    log_teacher = log_teacher.detach().masked_fill(log_student == -math.inf, -math.inf)
    log_teacher = _normalised(log_teacher, levels.level, count)
    if temperature != 1:
        log_student = _normalised(log_student / temperature, levels.level, count)
        log_teacher = _normalised(log_teacher / temperature, levels.level, count)
    # Where the teacher has no mass on any outcome there is no comparison and must be no gradient.
    lowest = torch.finfo(log_student.dtype).min / 4
    terms = log_teacher.exp() * (log_teacher.clamp_min(lowest) - log_student.clamp_min(lowest))
    value = terms.new_zeros(count).index_add(0, levels.level, terms)
    return never_negative(value * temperature**2)


def _log_sums(values: torch.Tensor, segment: torch.Tensor, count: int) -> torch.Tensor:
    """(count,), log of the sum of exp(values) over each segment, -inf where it has none."""
    top = _tops(values, segment, count)
    return top + log_of(values.new_zeros(count).index_add(0, segment, (values - top[segment]).exp()))


def _normalised(values: torch.Tensor, segment: torch.Tensor, count: int) -> torch.Tensor:
    """Normalised within each segment; a segment at -inf stays there."""
    above = values - _tops(values, segment, count)[segment]
    total = values.new_zeros(count).index_add(0, segment, above.exp())
    return above - total.masked_fill(total == 0, 1).log()[segment]


def _tops(values: torch.Tensor, segment: torch.Tensor, count: int) -> torch.Tensor:
    """(count,), each segment's largest value, so that none underflows beside a distant one."""
    top = values.detach().new_full((count,), -math.inf).scatter_reduce(0, segment, values.detach(), "amax")
    return top.clamp_min_(torch.finfo(values.dtype).min)
