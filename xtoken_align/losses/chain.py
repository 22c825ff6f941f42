"""C-KL below level one: the chain rule along the pieces of a token that one side writes whole and the other in pieces.

Say the student has `12` as one token, and the teacher writes `1` `2`. The student's tokens that begin with `1`, which
are `1`, `12`, `13`, `123`, ..., are a distribution over what follows the piece `1`: the end, `2`, `3`, ... The
teacher's logits after `1` are one too. A *level* compares the two: one side is *restricted* to its tokens that begin
with a prefix, the other has *spoken* the prefix and says the next piece. The level after `12` follows, at which a
student that never says `123` learns how often the number goes on.

A level counts as much as the teacher holds the way to it plausible: what a teacher that would write 36 says after the 7
of 78 is worth nothing.

And level one of the next chunk knows how this one ended: a student that wrote `12` will not write `3` now, for else it
had written `123`. The teacher may, so that the tokens with which the chunk before could have gone on are *left out*.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from ..mapping.mapping import Mapping
from ..rules.pieces import Pieces
from ..spans.spans import Predictions, Spans
from ..spans.units import offsets_of
from .divergence import Measure, compare_segments, normalised_segments
from .inputs import compute_dtype
from .tables import Cells, live_tokens, log_sum, share_of

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """A tree whose nodes are the piece sequences with which some token's decomposition begins; node 0 is the empty one.

    Nodes are numbered level by level, the children of one node side by side. The tokens `1`, `12`, `13`, `123` with
    their digits as pieces have the nodes

        0 -- 1: `1` -- 2: `1` `2` -- 4: `1` `2` `3`
                 |---- 3: `1` `3`

    `tokens` has them in the order `1`, `12`, `123`, `13`. Those below node 2 are `12` and `123`, of which `12` is its
    own: begin[2], own_end[2], end[2] = 1, 2, 3. `path` has 1 for `1`, then 1, 2 for `12`, and 1, 2, 4 for `123`.

    Attributes:
        pieces: every token as the other side writes it.
        path: int64, the node after each of `pieces.ids`; -1 at tokens without a probability.
        tokens: int64 (tokens,), the tokens that have a decomposition, so ordered that those below a node are a range.
        begin: int64 (nodes,), where the tokens whose decomposition begins with a node's pieces begin in `tokens`.
        end: int64 (nodes,), where they end; those that are equal to it come first.
        own_end: int64 (nodes,), where the equal ones end.
        child: int64 (nodes + 1,), the first child of each node; node n's children are child[n] to child[n + 1] - 1.
        piece: int64 (nodes,), the last piece of each node, -1 for the root.
        closed: int64, the nodes that are a whole decomposition, ascending: of the four tokens all but the root.
        closed_child: int64 (nodes + 1,), where each node's children among `closed` begin; those of node n are the
            places closed_child[n] to closed_child[n + 1] - 1.
    """

    pieces: Pieces
    path: Ids
    tokens: Ids
    begin: Ids
    end: Ids
    own_end: Ids
    child: Ids
    piece: Ids
    closed: Ids
    closed_child: Ids

    def node_of(self, token: Ids) -> Ids:
        """The node of each token's whole decomposition, -1 for tokens without one or without a probability."""
        length = self.pieces.lengths[token]
        last = np.where(length > 0, self.pieces.offsets[token] + length - 1, -1)
        return np.where(length > 0, self.path[last], -1) if len(self.path) else np.full(len(token), -1)


def make_tree(pieces: Pieces, live: NDArray[np.bool_], width: int) -> PrefixTree:
    """Builds the tree of the live tokens' decompositions.

    Args:
        pieces: every token as the other side writes it.
        live: bool (tokens,), which tokens have a probability.
        width: the other side's logit width.
    """
    tokens = np.flatnonzero((pieces.lengths > 0) & live)
    starts, lengths = pieces.offsets[tokens], pieces.lengths[tokens].astype(np.int64)
    path = np.full(len(pieces.ids), -1, dtype=np.int64)
    node = np.zeros(len(tokens), dtype=np.int64)  # of each token's pieces so far
    levels = [np.full(1, -1, dtype=np.int64)]
    count, depth = 1, 0
    open_ = np.arange(len(tokens))
    while len(open_):
        # A node is its parent and one more piece. Equal ones get one number; in their order siblings stand together.
        keys = node[open_] * width + pieces.ids[starts[open_] + depth]
        level, place = np.unique(keys, return_inverse=True)
        node[open_] = path[starts[open_] + depth] = count + place
        levels.append(level)
        count, depth = count + len(level), depth + 1
        open_ = open_[lengths[open_] > depth]
    keys = np.concatenate(levels)
    parent = np.where(keys >= 0, keys // width, -1)
    begin, end, own_end = _ranges(node, parent, [len(level) for level in levels])
    child = np.searchsorted(parent, np.arange(count + 1))
    closed = np.flatnonzero(own_end > begin)
    return PrefixTree(
        pieces=pieces,
        path=path,
        tokens=tokens[np.argsort(begin[node], kind="stable")],
        begin=begin,
        end=end,
        own_end=own_end,
        child=child,
        piece=np.where(keys >= 0, keys % width, -1),
        closed=closed,
        closed_child=np.searchsorted(closed, child),
    )


def _ranges(node: Ids, parent: Ids, sizes: list[int]) -> tuple[Ids, Ids, Ids]:
    """Where each node's tokens begin, where they end, and where its own ones end: own ones first, then child by child.

    Args:
        node: int64 (tokens,), the node of each token's whole decomposition.
        parent: int64 (nodes,), -1 for the root.
        sizes: how many nodes each level has.
    """
    own = np.bincount(node, minlength=len(parent))
    # Upwards, the deepest level first: what is below a node is its own and what is below its children. Of the class's
    # four tokens, own = [0, 1, 1, 1, 1] and below = [4, 4, 2, 1, 1].
    below = own.copy()
    edges = offsets_of(np.array(sizes)).tolist()
    for first, last in zip(edges[-2:0:-1], edges[:1:-1], strict=True):
        below += np.bincount(parent[first:last], below[first:last], minlength=len(parent)).astype(np.int64)
    # Downwards: a node begins after its parent's own tokens and what is below its elder siblings: [0, 0, 1, 3, 2].
    begin = np.zeros(len(parent), dtype=np.int64)
    for first, last in pairwise(edges[1:]):
        level = slice(first, last)
        before = offsets_of(below[level])[:-1]
        # Siblings stand side by side: what of the level comes before a node, less what comes before the first sibling.
        eldest = np.searchsorted(parent[level], parent[level])
        begin[level] = begin[parent[level]] + own[parent[level]] + before - before[eldest]
    return begin, begin + below, begin + own


def chain_trees(mapping: Mapping) -> tuple[PrefixTree, PrefixTree]:
    """The student's tokens by the teacher's pieces, and the teacher's by the student's."""
    student, teacher = mapping.decompositions("student"), mapping.decompositions("teacher")
    live = [mask.numpy() for mask in live_tokens(mapping)]
    return make_tree(student, live[0], len(teacher)), make_tree(teacher, live[1], len(student))


@dataclass(frozen=True, eq=False)
class Entries:
    """Tokens of some chunks.

    Attributes:
        chunk: int64 (m,), ascending.
        token: int64 (m,).
    """

    chunk: Ids
    token: Ids

    def between(self, first: int, last: int) -> Entries:
        """Those of chunks first to last - 1, as they are numbered there."""
        own = slice(*np.searchsorted(self.chunk, [first, last]))
        return Entries(self.chunk[own], self.token[own])

    def among(self, chunks: Ids) -> Entries:
        """Those of some chunks, ascending, numbered by their place among these."""
        place = np.searchsorted(chunks, self.chunk)
        own = np.flatnonzero(np.append(chunks, -1)[place] == self.chunk)
        return Entries(place[own], self.token[own])

    def cells(self, device: torch.device) -> Cells | None:
        """The same on a device; None where there is nothing."""
        if not len(self.chunk):
            return None
        row, token = (torch.from_numpy(one).to(device, non_blocking=True) for one in (self.chunk, self.token))
        return row, token


@dataclass(frozen=True, eq=False)
class Left:
    """What level one of some chunks leaves out, because the chunk before would have gone on with it.

    Attributes:
        student: the student's tokens.
        teacher: the teacher's.
        unmatched: further teacher's tokens: those of outcomes of which the student has no token any more, which cannot
            be compared.
    """

    student: Entries
    teacher: Entries
    unmatched: Entries

    def between(self, first: int, last: int, *, moved: int = 0) -> Left:
        """Those of chunks first to last - 1, whose numbers become lower by `moved`."""
        sides = (entries.between(first, last) for entries in (self.student, self.teacher, self.unmatched))
        return Left(*(Entries(side.chunk - moved, side.token) for side in sides))

    def cells(self, device: torch.device) -> tuple[Cells | None, Cells | None]:
        """What level one leaves out of the student's rows and of the teacher's, of which the chunks are the rows."""
        teacher = Entries(
            np.concatenate([self.teacher.chunk, self.unmatched.chunk]),
            np.concatenate([self.teacher.token, self.unmatched.token]),
        )
        return self.student.cells(device), teacher.cells(device)

    def __bool__(self) -> bool:
        return len(self.student.chunk) + len(self.teacher.chunk) > 0


class LevelOne:
    """Finds what level one leaves out.

    Let the chunk before be (s, t), written as the mapping says. If s is one student token, the teacher's tokens y are
    left out for which decomposition(s) + y is a student token's whole decomposition; if t is one teacher token, the
    student's tokens u for which decomposition(t) + u is a teacher token's. Two guards: only what *ends* a longer token
    is left out (a student with `1`, `2`, `122` and no `12` may well write 2 after 1); and if the text goes on with such
    a token all the same, on either side, nothing is.

    Args:
        trees: of the student's decompositions and of the teacher's.
        bins: each token's outcome on both sides, -1 for none.
    """

    def __init__(self, trees: tuple[PrefixTree, PrefixTree], bins: tuple[Ids, Ids]) -> None:
        self.trees, self.student_bin = trees, bins[0]
        count = int(max(side.max(initial=-1) for side in bins)) + 1
        self._members = np.bincount(bins[0][bins[0] >= 0], minlength=count)
        # The teacher's tokens outcome by outcome, those in none first.
        self._teachers = np.argsort(bins[1], kind="stable")
        self._teacher_begin = np.searchsorted(bins[1][self._teachers], np.arange(count + 1))

    def left(self, spans: Spans, predictions: Predictions) -> Left:
        """What is left out of each chunk in use.

        Args:
            spans: numpy arrays.
            predictions: their chunks in use.
        """
        student = _Before.of(
            spans.student,
            spans.student_ids,
            spans.student_segments,
            predictions.student[predictions.student_offsets[:-1]],
        )
        teacher = _Before.of(
            spans.teacher,
            spans.teacher_ids,
            spans.teacher_segments,
            predictions.teacher[predictions.teacher_offsets[:-1]],
        )
        follows = student.follows & teacher.follows
        theirs = _continuing(self.trees[0], student, teacher, follows)
        ours = _continuing(self.trees[1], teacher, student, follows)
        goes_on = np.zeros(len(follows), dtype=np.bool_)
        for entries, tokens, offsets in (
            (ours, predictions.student_tokens, predictions.student_offsets),
            (theirs, predictions.teacher_tokens, predictions.teacher_offsets),
        ):
            goes_on[entries.chunk[tokens[offsets[entries.chunk]] == entries.token]] = True
        ours, theirs = (
            Entries(entries.chunk[kept], entries.token[kept])
            for entries in (ours, theirs)
            for kept in (~goes_on[entries.chunk],)
        )
        return Left(ours, theirs, self._unmatched(ours))

    def _unmatched(self, student: Entries) -> Entries:
        """The teacher's tokens of outcomes that lose all of the student's."""
        outcome = self.student_bin[student.token]
        inside = outcome >= 0
        key, count = np.unique(student.chunk[inside] * len(self._members) + outcome[inside], return_counts=True)
        chunk, outcome = np.divmod(key, max(len(self._members), 1))
        lost = count == self._members[outcome]
        chunk, outcome = chunk[lost], outcome[lost]
        begin = self._teacher_begin[outcome]
        size = self._teacher_begin[outcome + 1] - begin
        own = np.arange(len(size)).repeat(size)
        return Entries(chunk[own], self._teachers[begin[own] + np.arange(len(own)) - offsets_of(size)[own]])


@dataclass(frozen=True, eq=False)
class _Before:
    """One side's chunks before those in use.

    Attributes:
        follows: bool (N,), whether a chunk in use directly follows another, in one document.
        begin: int64 (N,), where the tokens of that other one begin in `tokens`; anywhere if there is none.
        size: int64 (N,), how many it has.
        tokens: int64, the tokens of all chunks.
    """

    follows: NDArray[np.bool_]
    begin: Ids
    size: Ids
    tokens: Ids

    @classmethod
    def of(cls, numbers: Ids, ids: Ids, segments: Ids, row: Ids) -> _Before:
        """Looks at the token before each chunk.

        Args:
            numbers: int32 (B, T), the chunk of each token.
            ids: int64 (B, T).
            segments: int32 (B, T).
            row: int64 (N,), the row of logits that predicts each chunk's first token: the place of the token before.
        """
        # The chunks 0 0 1 -1 2: chunk 1, predicted at place 1, follows chunk 0; chunk 2, predicted at place 3, follows
        # a token in no chunk. `tokens` are those at 0, 1, 2, 4, so chunk 0's begin at 0 and are two.
        flat, document = numbers.ravel(), segments.ravel()
        own = flat[row + 1]
        follows = (own > 0) & (flat[row] == own - 1) & (document[row] == document[row + 1])
        follows &= (row >= 0) & ((row + 1) % numbers.shape[1] > 0)
        inside = flat >= 0
        place = inside.cumsum()  # one more than that of the last token of a chunk so far
        tokens = ids.ravel()[inside]
        # Where a chunk begins: the first of the tokens in chunks that has another number than the one before.
        chunk = flat[inside]
        is_first = np.append(
            True, (chunk[1:] != chunk[:-1]) | (np.diff(np.flatnonzero(inside) // numbers.shape[1]) > 0)
        )
        begins = np.maximum.accumulate(np.where(is_first[: len(chunk)], np.arange(len(chunk)), 0))
        last = np.where(follows, place[row] - 1, 0)
        begin = begins[last] if len(begins) else last
        return cls(follows, begin, last + 1 - begin, tokens)


def _continuing(tree: PrefixTree, whole: _Before, spoken: _Before, follows: NDArray[np.bool_]) -> Entries:
    """The pieces with which the chunk before would have ended a longer token, where it was one token in its pieces.

    With the tokens `1`, `12`, `122` and their digits as pieces, a chunk before of `1` and `1` is continued by `2`.

    Args:
        tree: of the side that wrote one token.
        whole: that side.
        spoken: the other, which wrote pieces.
        follows: bool (N,), where there is a chunk before on both sides.
    """
    chunk = np.flatnonzero(follows & (whole.size == 1))
    token = whole.tokens[whole.begin[chunk]]
    node = tree.node_of(token)
    counts = (node >= 0) & (tree.closed_child[node + 1] > tree.closed_child[node])
    counts &= tree.pieces.lengths[token] == spoken.size[chunk]
    chunk, token, node = chunk[counts], token[counts], node[counts]
    # One entry per piece of the chunk before.
    size = spoken.size[chunk]
    own = np.arange(len(chunk)).repeat(size)
    depth = np.arange(len(own)) - offsets_of(size)[own]
    differs = (
        spoken.tokens[spoken.begin[chunk[own]] + depth] != tree.pieces.ids[tree.pieces.offsets[token[own]] + depth]
    )
    same = np.bincount(own, differs, minlength=len(chunk)) == 0
    chunk, node = chunk[same], node[same]
    # One entry per piece that could have followed.
    begin = tree.closed_child[node]
    size = tree.closed_child[node + 1] - begin
    own = np.arange(len(chunk)).repeat(size)
    ends = tree.closed[begin[own] + np.arange(len(own)) - offsets_of(size)[own]]
    return Entries(chunk[own], tree.piece[ends])


@dataclass(frozen=True, eq=False)
class Levels:
    """Comparisons of two conditional distributions over next pieces, chunk by chunk.

    Attributes:
        tree: of the restricted side.
        of_student: whether the student is restricted and the teacher speaks, or the other way round.
        chunk: int64 (m,), the chunk of each level, ascending.
        node: int64 (m,), the prefix; those of one chunk get longer by a piece each, from one piece on.
        following: int64 (m,), the outcome of the level that the text has: 1 for the first child of the node and so on;
            0 at a chunk's last level, after which no level of the chunk depends on it.
        student: int64 (m,), the student's row: a flattened position, or in a block its place there.
        teacher: int64 (m,), the teacher's.
    """

    tree: PrefixTree
    of_student: bool
    chunk: Ids
    node: Ids
    following: Ids
    student: Ids
    teacher: Ids

    def take(self, which: slice | NDArray[np.bool_]) -> Levels:
        """Some of the levels."""
        return replace(
            self,
            chunk=self.chunk[which],
            node=self.node[which],
            following=self.following[which],
            student=self.student[which],
            teacher=self.teacher[which],
        )

    def rows(self) -> tuple[Ids, Ids]:
        """The student's and the teacher's rows that they read."""
        return self.student, self.teacher

    def placed(self, student: Callable[[Ids], Ids], teacher: Callable[[Ids], Ids]) -> Levels:
        """The same with rows numbered anew."""
        return replace(self, student=student(self.student), teacher=teacher(self.teacher))


def find_levels(tree: PrefixTree, predictions: Predictions, fits: NDArray[np.bool_], *, of_student: bool) -> Levels:
    """The levels of chunks in which one side, the restricted one, has one token and the other that token's pieces.

    A chunk has one level after each of its pieces with which a longer token goes on. If the student has `12` at row 4
    and the teacher `1` `2` at rows 6 and 7, the levels are those after `1`, which the teacher's row 7 goes on from, and
    after `12`, which its row 8 does; the student's row is 4 for both.

    Args:
        tree: of the restricted side's decompositions.
        predictions: numpy arrays.
        fits: bool (N,), False for chunks that have no levels.
        of_student: whether the student is restricted, else the teacher.
    """
    student = predictions.student_offsets, predictions.student, predictions.student_tokens
    teacher = predictions.teacher_offsets, predictions.teacher, predictions.teacher_tokens
    whole_at, whole_rows, whole_tokens = student if of_student else teacher
    spoken_at, spoken_rows, spoken_tokens = teacher if of_student else student
    sizes = np.diff(spoken_at)
    chunk = np.flatnonzero(fits & (np.diff(whole_at) == 1))
    token = whole_tokens[whole_at[chunk]]
    # Only a token that was spoken in as many pieces as it has can have been spoken in these pieces.
    as_many = tree.pieces.lengths[token] == sizes[chunk]
    chunk, token = chunk[as_many], token[as_many]
    # From here on one entry per piece: its chunk's place in `chunk`, how many pieces come before, where it was spoken.
    size = sizes[chunk]
    own = np.arange(len(chunk)).repeat(size)
    depth = np.arange(len(own)) - offsets_of(size)[own]
    spoken = spoken_at[chunk[own]] + depth
    place = tree.pieces.offsets[token[own]] + depth
    differs = np.bincount(own, spoken_tokens[spoken] != tree.pieces.ids[place], minlength=len(chunk)) > 0
    node = tree.path[place]
    kept = np.flatnonzero(~differs[own] & (node >= 0) & (tree.child[node + 1] > tree.child[node]))
    own, node, spoken, place = own[kept], node[kept], spoken[kept], place[kept]
    # The row that predicts the next piece; after the last one, the row of that piece itself.
    goes_on = depth[kept] + 1 < size[own]
    row = np.where(goes_on, spoken_rows[np.where(goes_on, spoken + 1, spoken)], spoken_rows[spoken] + 1)
    following = np.where(goes_on, tree.path[np.where(goes_on, place + 1, place)] - tree.child[node] + 1, 0)
    chunk = chunk[own]
    rows = whole_rows[whole_at[chunk]], row
    return Levels(tree, of_student, chunk, node, following, *(rows if of_student else rows[::-1]))


def spell_out(tree: PrefixTree, node: Ids) -> tuple[Ids, Ids, Ids, Ids]:
    """The outcomes of levels at these nodes, and the restricted side's tokens of each outcome.

    A level's outcomes are the end of the prefix's token and each next piece. After the prefix `1`, of the tokens `1`,
    `12`, `13`, `123` the outcomes are end, `2`, `3`: piece = [-1, id of `2`, id of `3`], token = the ids of `1`, `12`,
    `123`, `13`, outcome = [0, 1, 1, 2].

    Returns:
        level: int64 (outcomes,), the level of each outcome; a level's first one is its end.
        piece: int64 (outcomes,), the spoken token, -1 for the end.
        token: int64 (tokens,), the restricted side's tokens.
        outcome: int64 (tokens,), the outcome of each, ascending.
    """
    # One entry per outcome: place 0 is the end, places 1, 2, ... are the children, which are numbered side by side.
    children = tree.child[node + 1] - tree.child[node]
    level = np.arange(len(node)).repeat(children + 1)
    place = np.arange(len(level)) - offsets_of(children + 1)[level]
    parent, is_end = node[level], place == 0
    child = np.where(is_end, parent, tree.child[parent] + place - 1)
    # The end has the node's own tokens, which come first in its range; a piece has the whole range of its child.
    begin = tree.begin[child]
    sizes = np.where(is_end, tree.own_end[child], tree.end[child]) - begin
    outcome = np.arange(len(level)).repeat(sizes)
    token = tree.tokens[begin[outcome] + np.arange(len(outcome)) - offsets_of(sizes)[outcome]]
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
        # Where it stands in the flattened gradient, which is shaped like the scores.
        place = row * self.scores.shape[1] + token
        values = self.scores.detach()[row, token].to(compute_dtype(self.scores)).requires_grad_(self.wanted)
        self._picked.append((values, place))
        return values

    def all_but(self, rows: torch.Tensor, number: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """Log of the sum over whole rows, without the silent tokens and without `token` in row `rows[number]`."""
        others = (
            self.scores.detach()
            .index_select(0, rows)
            .to(compute_dtype(self.scores))
            .index_fill_(1, self.silent, -math.inf)
        )
        others[number, token] = -math.inf
        others.requires_grad_(self.wanted)
        self._whole.append((others, rows))
        return log_sum(others)

    def whole(self, rows: torch.Tensor) -> torch.Tensor:
        """Whole rows (n, V), the silent tokens at -inf."""
        values = (
            self.scores.detach()
            .index_select(0, rows)
            .to(compute_dtype(self.scores))
            .index_fill_(1, self.silent, -math.inf)
        )
        values.requires_grad_(self.wanted)
        self._whole.append((values, rows))
        return values

    def log_whole(self, rows: torch.Tensor) -> torch.Tensor:
        """Log of the sum over whole rows (n,), which makes log-probabilities of scores; a cached teacher's are such."""
        if self.log_rest is not None:
            return self.scores.new_zeros(len(rows), dtype=compute_dtype(self.scores))
        own, place = torch.unique(rows, return_inverse=True)
        return log_sum(self.whole(own))[place]

    def add_gradient(self, total: torch.Tensor, gradient: torch.Tensor) -> None:
        """Adds the gradient of a scalar that was made of what was read."""
        leaves = [leaf for leaf, _ in (*self._picked, *self._whole)]
        slopes = iter(torch.autograd.grad(total, leaves, allow_unused=True))
        targets = [(gradient.view(-1), place) for _, place in self._picked]
        for target, place in [*targets, *((gradient, rows) for _, rows in self._whole)]:
            slope = next(slopes)
            if slope is None:
                continue
            slope = slope.to(gradient.dtype)
            if gradient.device.type == "cpu":
                target.index_add_(0, place, slope)
            else:
                # It sorts places of which some are one; `index_add_` adds in whatever order the device comes to them.
                target.index_put_((place,), slope, accumulate=True)


def level_values(
    student: Reads, teacher: Reads, levels: Levels, *, measure: Measure, level_weight: str = "text"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The divergence of each level's outcomes, and what the text's outcome has of the teacher's best one.

    The restricted side's mass of an outcome is the sum over its tokens that go on with that piece, or that are equal to
    the prefix for the end. The speaking side's is the piece's own logit, and for the end the sum over all other tokens
    (not 1 less the pieces, which would lose its digits). Both are normalised over the level's outcomes.

    Args:
        student: the student's rows.
        teacher: the teacher's.
        levels: the levels, whose rows count among these.
        measure: how they are compared.
        level_weight: with "teacher" the share is of all outcomes, not of the best; with "text" it is 1.

    Returns:
        The values, floats (m,), and the shares at T = 1, floats (m,) without a graph.

    Source: this library, 2026.
    """
    count = len(levels.node)
    arrays = spell_out(levels.tree, levels.node)
    rows = (levels.student, levels.teacher) if levels.of_student else (levels.teacher, levels.student)
    text = np.searchsorted(arrays[0], np.arange(count)) + levels.following
    level, piece, token, outcome, inner, followed, restricted_row, spoken_row = (
        torch.from_numpy(array).to(student.scores.device, non_blocking=True)
        for array in (*arrays, np.flatnonzero(arrays[1] >= 0), text, *rows)
    )
    restricted, spoken = (student, teacher) if levels.of_student else (teacher, student)
    # What was spoken, as it stands: after `1` the logits of `2` and `3`, and for the end the sum over all but these.
    log_end = spoken.all_but(spoken_row, level[inner], piece[inner])
    if spoken.log_rest is not None:
        log_end = torch.logaddexp(log_end, spoken.log_rest.to(log_end.dtype)[spoken_row])
    log_pieces = spoken.at(spoken_row[level[inner]], piece[inner])
    # Every outcome that is no end is overwritten by its piece.
    log_spoken = log_end[level].index_copy(0, inner, log_pieces)
    if spoken.log_rest is not None:
        # A next piece that is not among a cached teacher's best is part of "anything else", on both sides.
        unknown = (log_spoken == -math.inf) & (piece >= 0)
        ends = (piece < 0).nonzero().squeeze(1)
        joined = torch.where(unknown[outcome], ends[level[outcome]], outcome)
    else:
        joined = outcome
    # The restricted side's: after `1` the end has the logit of `1`, `2` the sum over `12` and `123`, `3` that of `13`.
    tokens = restricted.at(restricted_row[level[outcome]], token)
    _, log_restricted = normalised_segments(tokens, joined, len(level))
    log_student, log_teacher = (log_restricted, log_spoken) if levels.of_student else (log_spoken, log_restricted)
    log_teacher = log_teacher.detach()
    shares = log_teacher.new_ones(count)
    if level_weight != "text":
        whole = _whole(log_teacher, level, count, best=level_weight == "plausible")
        shares = share_of(log_teacher[followed], whole)
    return compare_segments(log_teacher, log_student, level, count, measure), shares


def level_weights(levels: Levels, first: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """How much each level counts: floats (m,).

    plausible: w_2 = P_1(o_1) / max P_1 and w_(d+1) = w_d P_d(o_d) / max P_d. P_d are the teacher's probabilities of
    level d's outcomes, o_d is the text's outcome. teacher: the probability of the way, which is that of the pieces
    before, or of all of the teacher's tokens that begin with them.

    Args:
        levels: whole chunks' levels.
        first: floats (c,), w_2 of each chunk that has levels.
        shares: floats (m,), of each level, as `level_values` gives them.

    Source: this library, 2026.
    """
    # The weights of a chunk with the first weight w and the levels' shares a, b, c are w, w a, w a b.
    _, begin, number = np.unique(levels.chunk, return_index=True, return_inverse=True)
    depth = np.arange(len(number)) - begin[number]
    places, depths = (torch.from_numpy(one).to(first.device, non_blocking=True) for one in (number, depth))
    factors = shares.new_ones(len(begin), int(depth.max(initial=0)) + 2)
    factors[:, 0] = first
    factors[places, depths + 1] = shares
    return factors.cumprod(dim=1)[places, depths]


def first_shares(
    levels: Levels, scores: torch.Tensor, log_rest: torch.Tensor | None, silent: torch.Tensor
) -> torch.Tensor:
    """The teacher's probability of each chunk's first way, floats (c,): of the first piece, or of all of its tokens
    that begin with it.

    Args:
        levels: whole chunks' levels.
        scores: floats (c, V_t), the teacher's rows of level one of the chunks that have levels; overwritten.
        log_rest: floats (c,), of a cached teacher.
        silent: int64, the teacher's tokens without a probability.
    """
    tree, node = levels.tree, levels.node[np.unique(levels.chunk, return_index=True)[1]]
    scores.index_fill_(1, silent, -math.inf)
    if levels.of_student:
        own, token = np.arange(len(node)), tree.piece[node]
    else:
        sizes = tree.end[node] - tree.begin[node]
        own = np.arange(len(node)).repeat(sizes)
        token = tree.tokens[tree.begin[node][own] + np.arange(len(own)) - offsets_of(sizes)[own]]
    row, tokens = (torch.from_numpy(one).to(scores.device, non_blocking=True) for one in (own, token))
    way = normalised_segments(scores[row, tokens], row, len(node))[1]
    whole = log_sum(scores)
    return share_of(way, whole if log_rest is None else torch.logaddexp(whole, log_rest.to(whole.dtype)))


def _whole(values: torch.Tensor, segment: torch.Tensor, count: int, *, best: bool) -> torch.Tensor:
    """Floats (count,), each segment's largest value, or log of its sum."""
    if not best:
        return normalised_segments(values, segment, count)[1]
    return values.new_full((count,), -math.inf).scatter_reduce(0, segment, values, "amax")
