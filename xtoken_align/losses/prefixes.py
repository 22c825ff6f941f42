"""Tokens by their bytes: the tables of BPM and ESCD.

`phi(v)` is the longest student token with which the bytes of a teacher token v begin. Both losses give the teacher's
probability of v to phi(v), wherever both sides have read the same text; what has no phi is one outcome. Where the
student has written a part c of the teacher's next token, the teacher's tokens that begin with c are left, and phi is
that of their bytes after c: if the student has `Br`, `ead`, `eads` and the teacher `Bread`, `Breads`, phi of both is
`Br` at first, and after `Br` it is `ead` and `eads`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..mapping.mapping import Mapping, Side
from ..rules.pieces import Pieces
from ..spans.spans import Predictions
from ..spans.units import offsets_of, runs
from ..vocab.kinds import Kind
from .chain import PrefixTree, make_tree

Ids = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ByteTree:
    """The tokens of kinds text and byte of one side, by their bytes.

    Attributes:
        tree: a node for every byte string with which some token begins; its pieces are bytes.
        keys: int64, 256 * parent + last byte of each node from node 1 on, ascending.
        node: int64 (V,), the node of each token's surface; -1 for other kinds and for tokens without bytes.
    """

    tree: PrefixTree
    keys: Ids
    node: Ids

    @classmethod
    def of(cls, side: Side) -> ByteTree:
        """Builds the tree of a side."""
        content = np.isin(side.kinds, [Kind.TEXT, Kind.BYTE])
        lengths = np.where(content, side.surfaces.lengths, 0).astype(np.int32)
        data = side.surfaces.blob[content.repeat(side.surfaces.lengths)]
        pieces = Pieces(lengths, data.astype(np.int32), np.zeros(0, dtype=np.int32))
        tree = make_tree(pieces, content, 256)
        parent = np.arange(len(tree.piece)).repeat(np.diff(tree.child))
        node = np.full(len(lengths), -1, dtype=np.int64)
        some = lengths > 0
        node[some] = tree.path[pieces.offsets[1:][some] - 1]
        return cls(tree, 256 * parent + tree.piece[1:], node)

    def walk(self, data: Bytes, begin: Ids, end: Ids) -> tuple[Ids, Ids]:
        """Follows some byte strings from the root.

        Args:
            data: uint8, in which the strings are.
            begin: int64 (n,), where each begins.
            end: int64 (n,), where it ends.

        Returns:
            longest: int64 (n,), the node of the longest token with which the string begins, -1 without one.
            whole: int64 (n,), the node of the whole string, -1 where no token begins with it.
        """
        is_token = self.tree.own_end > self.tree.begin
        node, longest = np.zeros(len(begin), dtype=np.int64), np.full(len(begin), -1, dtype=np.int64)
        at = begin.copy()
        open_ = np.flatnonzero(at < end)
        while len(open_):
            key = 256 * node[open_] + data[at[open_]]
            place = np.searchsorted(self.keys, key)
            child = np.where(self.keys[np.minimum(place, len(self.keys) - 1)] == key, place + 1, -1)
            node[open_] = child
            open_, child = open_[child >= 0], child[child >= 0]
            told = is_token[child]
            longest[open_[told]] = child[told]
            at[open_] += 1
            open_ = open_[at[open_] < end[open_]]
        return longest, node

    def first(self, node: Ids) -> Ids:
        """The first token that is equal to each node's bytes, or else the first that begins with them."""
        return self.tree.tokens[self.tree.begin[node]]

    def tokens(self, node: Ids, *, own: bool) -> tuple[Ids, Ids]:
        """The tokens that begin with each node's bytes, or that are equal to them, and which node each belongs to."""
        begin = self.tree.begin[node]
        size = (self.tree.own_end if own else self.tree.end)[node] - begin
        return self.tree.tokens[runs(begin, size)], np.arange(len(node)).repeat(size)


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Both sides' tokens by their bytes.

    Attributes:
        student: the student's tokens.
        teacher: the teacher's.
    """

    student: ByteTree
    teacher: ByteTree

    @classmethod
    def of(cls, mapping: Mapping) -> Prefixes:
        """Reads both sides' surfaces; once for a mapping, since it takes a second."""
        if mapping not in _MADE:
            _MADE[mapping] = cls(ByteTree.of(mapping.student), ByteTree.of(mapping.teacher))
        return _MADE[mapping]

    @cached_property
    def teacher_bytes(self) -> tuple[Bytes, Ids, Ids]:
        """The teacher's surfaces one after another, and where each begins and ends."""
        pieces = self.teacher.tree.pieces
        return pieces.ids.astype(np.uint8), pieces.offsets[:-1], pieces.offsets[1:]

    @cached_property
    def phi(self) -> Ids:
        """int64 (V_t,), phi of each teacher token as a node of the student's tree, -1 without one."""
        return self.student.walk(*self.teacher_bytes)[0]

    @cached_property
    def phi_inside(self) -> Ids:
        """int64 (bytes,), the same of what is left of each teacher token from each of its bytes on."""
        data, _, end = self.teacher_bytes
        return self.student.walk(data, np.arange(len(data)), end.repeat(self.teacher.tree.pieces.lengths))[0]

    @cached_property
    def groups(self) -> Groups:
        """ESCD's groups of teacher tokens."""
        return Groups.of(self)

    @property
    def bins(self) -> tuple[Ids, Ids]:
        """The root's outcomes as bins of the student's and of the teacher's tokens; -1 for the rest.

        With the example Br, ead, eads and Bread, Breads, Dog: 0 -1 -1 and 0 0 -1. No token's phi is `ead`.
        """
        is_phi = np.zeros(len(self.student.tree.piece) + 1, dtype=np.bool_)
        is_phi[self.phi] = True
        # A number of -1 marks the last place.
        is_phi[-1] = False
        return np.where(is_phi[self.student.node], self.student.node, -1), self.phi


_MADE: WeakKeyDictionary[Mapping, Prefixes] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Groups:
    """The teacher's tokens that no student token equals, in groups, and how the student's text may complete them.

    A group is a shortest token y and all that begin with it. If the teacher has `Bread`, `Breads` and `Break`, and the
    student none of them but `Br`, `ead`, `eads` and `eak`, the groups are Bread, Breads | Break. After `Br` the first
    is completed by `ead` and `eads`, the second by `eak`.

    Attributes:
        token: int64, the tokens, group by group.
        offsets: int64 (groups + 1,), where each group's begin.
        entries: int64 (student nodes + 1,), where the completions after each student token begin.
        group: int64 (completions,), the group of each.
        rest: int64 (completions,), the node of what is left of y: all student tokens below it complete the group.
    """

    token: Ids
    offsets: Ids
    entries: Ids
    group: Ids
    rest: Ids

    @classmethod
    def of(cls, prefixes: Prefixes) -> Groups:
        """Finds the groups and their completions."""
        student, teacher = prefixes.student, prefixes.teacher
        data, begin, end = prefixes.teacher_bytes
        token = teacher.tree.tokens
        node = student.walk(data, begin[token], end[token])[1]
        shared = (node >= 0) & (student.tree.own_end[node] > student.tree.begin[node])
        token = token[~shared]
        # In the tree's order a token follows its prefixes, so a group begins where no group that is open goes on: one
        # whose node's range ends later.
        reach = np.maximum.accumulate(teacher.tree.end[teacher.node[token]])
        place = teacher.tree.begin[teacher.node[token]]
        first = np.ones(len(token), dtype=np.bool_)
        first[1:] = place[1:] >= reach[:-1]
        # Equal surfaces have one place, the first of which begins the group.
        offsets = np.append(np.flatnonzero(first), len(token))
        shortest = token[first]
        # Every way to cut a shortest token in two: the first part is a student token, and some begin with the second.
        size = end[shortest] - begin[shortest]
        group = np.arange(len(shortest)).repeat(size - 1)
        cut = runs(begin[shortest] + 1, size - 1)
        written = student.walk(data, begin[shortest][group], cut)[1]
        rest = student.walk(data, cut, end[shortest][group])[1]
        fits = (written >= 0) & (rest >= 0) & (student.tree.own_end[written] > student.tree.begin[written])
        order = np.flatnonzero(fits)[np.argsort(written[fits], kind="stable")]
        entries = np.searchsorted(written[order], np.arange(len(student.tree.piece) + 1))
        return cls(token, offsets, entries, group[order], rest[order])


@dataclass(frozen=True, eq=False)
class Written:
    """One side's tokens of some chunks, one after another, with their bytes.

    Attributes:
        chunk: int64, the place of each token's chunk among these.
        row: int64, the row that predicts it.
        token: int64, its id.
        begin: int64, where its bytes begin, counted through all chunks.
        end: int64, where they end.
        first: bool, whether it is its chunk's first.
    """

    chunk: Ids
    row: Ids
    token: Ids
    begin: Ids
    end: Ids
    first: NDArray[np.bool_]

    @classmethod
    def of(cls, side: Side, chunks: Ids, rows: Ids, tokens: Ids, offsets: Ids) -> Written:
        """One side of some chunks of a batch."""
        size = np.diff(offsets)[chunks]
        place = runs(offsets[chunks], size)
        token = tokens[place]
        edges = offsets_of(side.surfaces.lengths[token])
        owner = np.arange(len(chunks)).repeat(size)
        return cls(owner, rows[place], token, edges[:-1], edges[1:], np.diff(owner, prepend=-1) > 0)

    def data(self, side: Side) -> Bytes:
        """The bytes."""
        lengths = side.surfaces.lengths[self.token]
        return side.surfaces.blob[runs(side.surfaces.offsets[:-1][self.token], lengths)]


def written_alike(
    mapping: Mapping, prefixes: Prefixes, predictions: Predictions, chunks: Ids
) -> tuple[Ids, Written, Written]:
    """Those chunks that both sides spell alike and the student with content tokens alone, and both sides' tokens."""
    student = predictions.student, predictions.student_tokens, predictions.student_offsets
    teacher = predictions.teacher, predictions.teacher_tokens, predictions.teacher_offsets
    # Once for the lengths, then, where these agree, so that the bytes stand side by side, for the bytes.
    for _ in range(2):
        ours, theirs = Written.of(mapping.student, chunks, *student), Written.of(mapping.teacher, chunks, *teacher)
        sizes = [np.bincount(one.chunk, one.end - one.begin, minlength=len(chunks)) for one in (ours, theirs)]
        alike = sizes[0] == sizes[1]
        alike &= np.bincount(ours.chunk, prefixes.student.node[ours.token] < 0, minlength=len(chunks)) == 0
        if alike.all():
            differs = ours.data(mapping.student) != theirs.data(mapping.teacher)
            owner = np.arange(len(chunks)).repeat(sizes[0].astype(np.int64))
            alike = np.bincount(owner, differs, minlength=len(chunks)) == 0
        chunks = chunks[alike]
    ours, theirs = Written.of(mapping.student, chunks, *student), Written.of(mapping.teacher, chunks, *teacher)
    return chunks, ours, theirs
