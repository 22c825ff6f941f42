"""What BPM, ESCD and SimCT compare beside whole rows by a table.

Most chunks are one token on each side, which both wrote at once; a table says their outcomes. The others have *further
comparisons*, each with rows and outcomes of its own: at positions inside of chunks (BPM), of what completes a token
(ESCD), of whole chunks (SimCT). They are found while a batch is planned: `find_positions`, `find_children`,
`find_units`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from ..mapping.mapping import Mapping
from ..spans.spans import Predictions
from ..spans.units import offsets_of, runs
from ..vocab.byte_strings import ByteStrings
from .chain import Reads
from .divergence import Divergence, Measure, compare, compare_segments, normalised, normalised_segments
from .plan import Further, begin_alike, one_to_one
from .prefixes import ByteTree, Groups, Ids, Prefixes, written_alike
from .tables import Grouping, Outcomes, Stops, log_masses, log_sum, outcomes_of

Which = slice | NDArray[np.bool_]
Found = tuple[NDArray[np.bool_], tuple[Further, ...]]
"""Whether a table says the outcomes of each chunk's first position, bool (N,), and all else that is compared."""
Finder = Callable[[Predictions], Found]


@dataclass(frozen=True, eq=False)
class Bounds:
    """What is known of the teacher's probability of student tokens that go beyond the end of the teacher's token.

    The student writes `12`, the teacher `1` and then `2`: of the teacher's probability of 1, which is phi(1), so much
    begins with 12 as q(1) q(2, 22, 23, ... | 1) says.

    Attributes:
        target: int64 (m,), the node of the student's token; -1 where it does not go beyond.
        source: int64 (m,), the outcome's node from which the mass is taken, -1 for the rest.
        token: int64 (m,), the teacher's token at the position itself.
        size: int64 (m,), how many teacher tokens follow that lie wholly in the student's token.
        way: int64, those tokens.
        way_row: int64, their rows.
        last_row: int64 (m,), the row of the teacher's token in which the student's ends.
        last: int64 (m,), the teacher's node of the bytes of it that the student's token has; -1 for none.
    """

    target: Ids
    source: Ids
    token: Ids
    size: Ids
    way: Ids
    way_row: Ids
    last_row: Ids
    last: Ids

    def take(self, which: Which) -> Bounds:
        """Those of some positions."""
        own = np.arange(len(self.target))[which]
        place = runs(offsets_of(self.size)[own], self.size[own])
        per_position = {name: getattr(self, name)[own] for name in ("target", "source", "token", "size", "last_row")}
        return Bounds(**per_position, last=self.last[own], way=self.way[place], way_row=self.way_row[place])

    def values(self, teacher: Reads, row: Ids, tree: ByteTree) -> tuple[Ids, torch.Tensor]:
        """The positions that have a bound, and floats of its logarithm, on the scale of the scores of their rows.

        Args:
            teacher: the teacher's rows.
            row: int64 (m,), each position's row.
            tree: the teacher's.
        """
        own = np.flatnonzero(self.target >= 0)
        known = self.take(self.target >= 0)
        count, device = len(own), teacher.scores.device
        token, below = tree.tokens(np.maximum(known.last, 0), own=False)
        kept = known.last[below] >= 0
        token, below = token[kept], below[kept]
        arrays = row[own], known.token, known.way_row, known.way, known.last_row, token, below
        at, first, way_row, way, last_row, token_, below_, way_of = (
            torch.from_numpy(one).to(device) for one in (*arrays, np.arange(count).repeat(known.size))
        )
        log_way = teacher.at(way_row, way) - teacher.log_whole(way_row)
        value = teacher.at(at, first).index_add(0, way_of, log_way)
        _, ends = normalised_segments(teacher.at(last_row[below_], token_), below_, count)
        return own, (value + ends - teacher.log_whole(last_row)).nan_to_num(nan=-math.inf, neginf=-math.inf)


@dataclass(frozen=True, eq=False)
class Positions:
    """BPM: student positions in chunks, with what the student has written of the teacher's next token.

    Attributes:
        prefixes: both sides' tokens.
        chunk: int64 (m,), ascending.
        student: int64 (m,), the student's row.
        teacher: int64 (m,), the teacher's, which predicts the token in which the position lies.
        node: int64 (m,), the teacher's node of the bytes that are written; -1 where no token begins with them.
        depth: int64 (m,), how many these are.
        bounds: what is known of tokens that go beyond the teacher's.
    """

    prefixes: Prefixes
    chunk: Ids
    student: Ids
    teacher: Ids
    node: Ids
    depth: Ids
    bounds: Bounds

    def take(self, which: Which) -> Self:
        """Some of the positions."""
        arrays = {name: getattr(self, name)[which] for name in ("chunk", "student", "teacher", "node", "depth")}
        return replace(self, **arrays, bounds=self.bounds.take(which))

    def rows(self) -> tuple[Ids, Ids]:
        """The rows that are read."""
        bounds = self.bounds
        return self.student, np.concatenate([self.teacher, bounds.way_row, bounds.last_row])

    def placed(self, student: Callable[[Ids], Ids], teacher: Callable[[Ids], Ids]) -> Self:
        """The same with rows renumbered."""
        bounds = replace(self.bounds, way_row=teacher(self.bounds.way_row), last_row=teacher(self.bounds.last_row))
        return replace(self, student=student(self.student), teacher=teacher(self.teacher), bounds=bounds)


@dataclass(frozen=True, eq=False)
class _Outcomes:
    """The outcomes of some positions, one position after another; the first of each is the rest.

    Attributes:
        position: int64 (k,), the position of each outcome.
        rest: int64 (m,), each position's rest.
        named: bool (k,), whether some teacher token has the outcome for its phi.
        theirs: int64, teacher tokens.
        their: int64, the outcome of each.
        ours: int64, student tokens.
        our: int64, the outcome of each; none is in a rest.
        source: int64 (b,), of positions with a bound, the outcome from which mass is taken.
        target: int64 (b,), the outcome to which it goes.
    """

    position: Ids
    rest: Ids
    named: NDArray[np.bool_]
    theirs: Ids
    their: Ids
    ours: Ids
    our: Ids
    source: Ids
    target: Ids


class Insides(Positions):
    """Positions inside of a teacher's token."""

    def values(self, student: Reads, teacher: Reads, outcomes: Outcomes, measure: Measure) -> tuple[torch.Tensor, None]:
        """D(t || s) of each position: floats (m,).

        The teacher's tokens that begin with what is written are told over the student's by phi of what is left of them,
        and renormalised; the rest is what has no phi against all other student tokens.

        Args:
            student: the student's rows.
            teacher: the teacher's.
            outcomes: not read: the outcomes are each position's own.
            measure: D.
        """
        del outcomes
        count, made = len(self.chunk), self._spell_out()
        position, rest, named, theirs, their, ours, our, source, target, our_row, their_row = (
            torch.from_numpy(array).to(student.scores.device, non_blocking=True)
            for array in (*vars(made).values(), self.student, self.teacher)
        )
        _, log_teacher = normalised_segments(teacher.at(their_row[position[their]], theirs), their, len(position))
        # Of a cached teacher an outcome of which no token is listed cannot be told from the rest.
        there = named if teacher.log_rest is None else named & (log_teacher > -math.inf)
        if len(source):
            _, bound = self.bounds.values(teacher, self.teacher, self.prefixes.teacher)
            log_teacher = log_teacher.index_copy(0, source, log_less(log_teacher[source], bound))
            log_teacher = log_teacher.index_copy(0, target, torch.logaddexp(log_teacher[target], bound))
            there = there.index_copy(0, target, there[target] | (bound > -math.inf))
        own = torch.arange(len(position), device=position.device)
        joined = torch.where(there, own, rest[position])
        values = torch.cat([student.at(our_row[position[our]], ours), student.all_but(our_row, position[our], ours)])
        _, log_student = normalised_segments(values, torch.cat([joined[our], rest]), len(position))
        return compare_segments(log_teacher, log_student, position, count, measure), None

    def _spell_out(self) -> _Outcomes:
        student, teacher = self.prefixes.student, self.prefixes.teacher
        inside = np.flatnonzero(self.node >= 0)
        token, owner = teacher.tokens(self.node[inside], own=False)
        position = inside[owner]
        # phi of what is left; of a token that is all written nothing is.
        pieces, depth = teacher.tree.pieces, self.depth[position]
        goes_on = pieces.lengths[token] > depth
        phi = np.where(goes_on, self.prefixes.phi_inside[np.where(goes_on, pieces.offsets[token] + depth, 0)], -1)
        # An outcome is numbered by its position and its node, -1 for the rest, which is always there.
        width, count = len(student.tree.piece) + 1, len(self.chunk)
        their = position * width + phi + 1
        bound = np.flatnonzero(self.bounds.target >= 0)
        source, target = (bound * width + side[bound] + 1 for side in (self.bounds.source, self.bounds.target))
        rest = np.arange(count) * width
        key = np.unique(np.concatenate([their, rest, target]))
        named = np.isin(key, their)
        named[np.searchsorted(key, rest)] = True
        node = key % width - 1
        some = np.flatnonzero(node >= 0)
        ours, of = student.tokens(node[some], own=True)
        # A special token of the teacher has no phi here, whatever its bytes are.
        source = np.where(np.isin(source, key), source, bound * width)
        places = [np.searchsorted(key, one) for one in (rest, their, source, target)]
        return _Outcomes(key // width, places[0], named, token, places[1], ours, some[of], places[2], places[3])


class Roots(Positions):
    """Positions where both sides have read the same text, but that a table does not say: the first ones of chunks in
    which a student token goes beyond the teacher's, and later ones.
    """

    def values(
        self, student: Reads, teacher: Reads, outcomes: Outcomes, measure: Measure
    ) -> tuple[torch.Tensor, Divergence]:
        """D(t || s) of each position's outcomes: those of the table, and the token that goes beyond the teacher's.

        Args:
            student: the student's rows.
            teacher: the teacher's.
            outcomes: those of phi.
            measure: D.

        Returns:
            Floats (m,), and the comparisons.
        """
        own, bound = self.bounds.values(teacher, self.teacher, self.prefixes.teacher)
        source, target = self.bounds.source[own], self.bounds.target[own]
        tree, group, width = self.prefixes.student, outcomes.student.group, outcomes.student.count
        beyond, of = tree.tokens(target, own=True)
        arrays = own, source >= 0, tree.first(np.maximum(source, 0)), tree.first(target), beyond, own[of], of
        at, has_phi, source_token, target_token, beyond_token, beyond_at, of_ = (
            torch.from_numpy(one).to(student.scores.device) for one in arrays
        )
        our_row, their_row = (torch.from_numpy(one).to(at.device) for one in (self.student, self.teacher))
        # Two columns are added: one of a token that is no teacher token's phi and so would be in the rest, and one of
        # what a cached teacher does not list, in which the rest is then.
        rest = -1 if outcomes.rest is None else outcomes.rest.column
        target_column = group[target_token]
        is_new = (target_column == rest) & (bound > -math.inf)
        target_column = torch.where(is_new, width, target_column)
        partial = teacher.log_rest is not None
        source_column = torch.where(has_phi, group[source_token], width + 1 if partial or rest < 0 else rest)
        ours = student.whole(our_row)
        new_at, new_token = beyond_at[is_new[of_]], beyond_token[is_new[of_]]
        _, log_new = normalised_segments(ours[new_at, new_token], new_at, len(ours))
        ours = ours.index_put((new_at, new_token), ours.new_tensor(-math.inf))
        log_student = normalised(torch.cat([log_masses(ours, outcomes.student), log_new.unsqueeze(1)], dim=1))
        their_rest = None if teacher.log_rest is None else teacher.log_rest.index_select(0, their_row)
        masses, log_rest = outcomes.teacher_masses(teacher.scores.index_select(0, their_row), their_rest)
        nothing = masses.new_full((len(masses), 1), -math.inf)
        masses = torch.cat([masses, nothing, nothing if log_rest is None else log_rest.unsqueeze(1)], dim=1)
        masses[at, source_column] = log_less(masses[at, source_column], bound)
        masses[at, target_column] = torch.logaddexp(masses[at, target_column], bound)
        log_teacher = normalised(masses)
        log_rest = log_teacher[:, -1].contiguous() if partial else None
        made = compare(log_teacher[:, :-1].contiguous(), log_student, measure=measure, log_rest=log_rest)
        return made.value, made


def log_less(whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """log(exp(whole) - exp(part)), -inf where the part is the whole.

    >>> log_less(torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.5, 0.0]).log()).exp()
    tensor([0.2500, 0.0000, 0.0000])
    """
    share = (part - whole).exp()
    left = whole + torch.log1p(-share.clamp_max(1))
    return torch.where(share < 1, left, -math.inf)


def find_positions(mapping: Mapping, prefixes: Prefixes, predictions: Predictions) -> Found:
    """BPM's positions inside of a teacher's token, and others that no table says.

    Args:
        mapping: whose surfaces the chunks' tokens have.
        prefixes: its tokens by their bytes.
        predictions: the chunks, as numpy arrays.
    """
    sizes = [np.diff(offsets) for offsets in (predictions.student_offsets, predictions.teacher_offsets)]
    chunks = np.flatnonzero(np.maximum(*sizes) > 1)
    chunks, ours, theirs = written_alike(mapping, prefixes, predictions, chunks)
    data = ours.data(mapping.student)
    # The teacher's token in which each of the student's begins, and the one in which it ends. With ours 3 bytes and 1,
    # theirs 2 and 2, the first begins in the first and ends in the second, which is also that of the second.
    begins = np.searchsorted(theirs.begin, ours.begin, side="right") - 1
    ends = np.maximum(np.searchsorted(theirs.end, ours.end), begins)
    token, edge = theirs.token[begins], theirs.end[begins]
    student, teacher = prefixes.student, prefixes.teacher
    beyond = ours.end > edge
    size = ends - begins - 1
    way = runs(begins[beyond] + 1, size[beyond])
    bounds = Bounds(
        target=np.where(beyond, student.node[ours.token], -1),
        source=student.walk(data, ours.begin, edge)[0],
        token=token,
        size=np.where(beyond, size, 0),
        way=theirs.token[way],
        way_row=theirs.row[way],
        last_row=theirs.row[ends],
        last=teacher.walk(data, theirs.begin[ends], ours.end)[1],
    )
    depth = ours.begin - theirs.begin[begins]
    positions = Insides(
        prefixes=prefixes,
        chunk=chunks[ours.chunk],
        student=ours.row,
        teacher=theirs.row[begins],
        node=teacher.walk(data, theirs.begin[begins], ours.begin)[1],
        depth=depth,
        bounds=bounds,
    )
    root = (depth == 0) & (beyond | ~ours.first | ~theirs.first[begins])
    by_table = np.ones(len(predictions), dtype=np.bool_)
    by_table[positions.chunk[root & ours.first]] = False
    return by_table, (positions.take(depth > 0), Roots(**vars(positions)).take(root))


@dataclass(frozen=True, eq=False)
class Children:
    """ESCD: chunks after whose first student token some groups of teacher tokens can be completed.

    Attributes:
        groups: of the teacher's tokens.
        tree: the student's tokens.
        chunk: int64 (m,), ascending.
        student: int64 (m,), the row after the chunk's first student token.
        teacher: int64 (m,), the chunk's first row.
        node: int64 (m,), that token's node.
    """

    groups: Groups
    tree: ByteTree
    chunk: Ids
    student: Ids
    teacher: Ids
    node: Ids

    def take(self, which: Which) -> Self:
        """Those of some chunks."""
        return replace(self, **{name: getattr(self, name)[which] for name in ("chunk", "student", "teacher", "node")})

    def rows(self) -> tuple[Ids, Ids]:
        """The rows that are read."""
        return self.student, self.teacher

    def placed(self, student: Callable[[Ids], Ids], teacher: Callable[[Ids], Ids]) -> Self:
        """The same with rows renumbered."""
        return replace(self, student=student(self.student), teacher=teacher(self.teacher))

    def values(self, student: Reads, teacher: Reads, outcomes: Outcomes, measure: Measure) -> tuple[torch.Tensor, None]:
        """Sum over groups g of -M_g log sum of p_S(u): floats (m,).

        M_g is the teacher's probability of the group's tokens, u the student's tokens that complete it; both are at
        T = 1 over the whole vocabulary. A group that the student cannot complete gives nothing.

        Args:
            student: the student's rows.
            teacher: the teacher's.
            outcomes: not read.
            measure: not read: it is a cross-entropy whatever the divergence.
        """
        del outcomes, measure
        groups, count = self.groups, len(self.chunk)
        size = groups.entries[self.node + 1] - groups.entries[self.node]
        entry, of = runs(groups.entries[self.node], size), np.arange(count).repeat(size)
        begin = groups.offsets[groups.group[entry]]
        members = groups.offsets[groups.group[entry] + 1] - begin
        theirs, their = groups.token[runs(begin, members)], np.arange(len(entry)).repeat(members)
        ours, our = self.tree.tokens(groups.rest[entry], own=False)
        arrays = of, theirs, their, of[their], ours, our, of[our], self.student, self.teacher
        of_, theirs_, their_, their_of, ours_, our_, our_of, our_row, their_row = (
            torch.from_numpy(one).to(student.scores.device, non_blocking=True) for one in arrays
        )
        _, mass = normalised_segments(teacher.at(their_row[their_of], theirs_), their_, len(entry))
        mass = (mass - teacher.log_whole(their_row)[of_]).exp().nan_to_num(nan=0.0)
        _, log_student = normalised_segments(student.at(our_row[our_of], ours_), our_, len(entry))
        can = log_student.detach() > -math.inf
        log_student = torch.where(can, log_student - student.log_whole(our_row)[of_], 0.0)
        return log_student.new_zeros(count).index_add(0, of_, -mass * log_student), None


def find_children(prefixes: Prefixes, predictions: Predictions) -> Found:
    """ESCD's chunks in which something can be completed.

    Args:
        prefixes: both sides' tokens.
        predictions: the chunks, as numpy arrays.
    """
    begin = predictions.student_offsets[:-1]
    node = prefixes.student.node[predictions.student_tokens[begin]]
    entries = prefixes.groups.entries
    chunk = np.flatnonzero((node >= 0) & (entries[node + 1] > entries[node]))
    rows = predictions.student[begin][chunk] + 1, predictions.teacher[predictions.teacher_offsets[:-1]][chunk]
    children = Children(prefixes.groups, prefixes.student, chunk, *rows, node[chunk])
    return np.ones(len(predictions), dtype=np.bool_), (children,)


@dataclass(frozen=True, eq=False)
class Run:
    """One side's tokens of some chunks.

    Attributes:
        size: int64 (m,), how many tokens each chunk has.
        row: int64, the row that predicts each.
        token: int64, the tokens.
    """

    size: Ids
    row: Ids
    token: Ids

    @property
    def last(self) -> Ids:
        """Each chunk's last token."""
        return np.asarray(self.token[self.size.cumsum() - 1])

    def take(self, own: Ids) -> Run:
        """Those of some chunks."""
        place = runs(offsets_of(self.size)[own], self.size[own])
        return Run(self.size[own], self.row[place], self.token[place])

    def scores(self, side: Reads, shared: Grouping, units: Ids, last: Ids, stops: Ids | None) -> torch.Tensor:
        """The scores of the shared tokens and of the chunks' units: floats (m, K + most units), -inf for none.

        Args:
            side: its rows.
            shared: the columns of the shared tokens.
            units: int64 (m,), how many each chunk has.
            last: int64 (units,), the last token of each.
            stops: the tokens that are compared as one, or None.
        """
        count, ends = len(self.size), self.size.cumsum()
        before = np.ones(len(self.token), dtype=np.bool_)
        before[ends - 1] = False
        unit_of = np.arange(count).repeat(units)
        # The tokens whose scores are added: those before the last of each chunk, then the last one of each unit.
        place = np.concatenate([np.flatnonzero(before), (ends - 1)[unit_of]])
        token, of = _with_stops(np.concatenate([self.token[before], last]), stops)
        arrays = self.row, place[of], token, of, np.arange(count).repeat(self.size - 1), unit_of
        row, place_, token_, of_, chunk, unit_of_ = (torch.from_numpy(one).to(side.scores.device) for one in arrays)
        whole = side.whole(row)
        # Scores of a cached teacher are log-probabilities. A row without any says nothing.
        log_whole = whole.new_zeros(len(row))
        if side.log_rest is None:
            log_whole = log_sum(whole if side.wanted else whole.clone())
        log_whole = log_whole.masked_fill(log_whole == -math.inf, math.inf)
        _, scores = normalised_segments(whole[place_, token_] - log_whole[place_], of_, len(place))
        spoken, ends_with = scores[: len(chunk)], scores[len(chunk) :]
        spoken = spoken.new_zeros(count).index_add(0, chunk, spoken)
        size, first, column = (
            torch.from_numpy(one).to(row.device)
            for one in (self.size, offsets_of(self.size)[:-1], np.arange(len(last)) - offsets_of(units)[unit_of])
        )
        made = whole.new_full((count, int(units.max(initial=0))), -math.inf)
        made = made.index_put((unit_of_, column), (spoken[unit_of_] + ends_with) / size[unit_of_])
        return torch.cat([log_masses(whole[first], shared) - log_whole[first].unsqueeze(1), made], dim=1)


@dataclass(frozen=True, eq=False)
class Units:
    """SimCT: chunks that are no shared token, with the units that are candidates beside the shared tokens.

    A unit is written in as many tokens as the chunk on each side, and differs from it in the last ones alone.

    Attributes:
        stops: both sides' stops, where they are compared as one, or None.
        chunk: int64 (m,), ascending.
        ours: the student's tokens and rows, chunk by chunk.
        theirs: the teacher's.
        size: int64 (m,), how many units each chunk has.
        our_last: int64 (units,), the student's last token of each.
        their_last: int64 (units,), the teacher's.
    """

    stops: Stops | None
    chunk: Ids
    ours: Run
    theirs: Run
    size: Ids
    our_last: Ids
    their_last: Ids

    def take(self, which: Which) -> Self:
        """Those of some chunks."""
        own = np.arange(len(self.chunk))[which]
        units = runs(offsets_of(self.size)[own], self.size[own])
        return replace(
            self,
            chunk=self.chunk[own],
            ours=self.ours.take(own),
            theirs=self.theirs.take(own),
            size=self.size[own],
            our_last=self.our_last[units],
            their_last=self.their_last[units],
        )

    def rows(self) -> tuple[Ids, Ids]:
        """The rows that are read."""
        return self.ours.row, self.theirs.row

    def placed(self, student: Callable[[Ids], Ids], teacher: Callable[[Ids], Ids]) -> Self:
        """The same with rows renumbered."""
        ours, theirs = (
            replace(self.ours, row=student(self.ours.row)),
            replace(self.theirs, row=teacher(self.theirs.row)),
        )
        return replace(self, ours=ours, theirs=theirs)

    def values(
        self, student: Reads, teacher: Reads, outcomes: Outcomes, measure: Measure
    ) -> tuple[torch.Tensor, Divergence]:
        """D of each chunk's candidates (m,), by the softmax of their scores.

        A candidate's score is the mean over its tokens of their log-probabilities; candidates that either side cannot
        give are dropped.

        Args:
            student: the student's rows.
            teacher: the teacher's.
            outcomes: a column per shared token.
            measure: D.
        """
        stops = (None, None) if self.stops is None else (self.stops.student, self.stops.teacher)
        log_student = self.ours.scores(student, outcomes.student, self.size, self.our_last, stops[0])
        log_teacher = self.theirs.scores(teacher, outcomes.teacher, self.size, self.their_last, stops[1])
        impossible = (log_student.detach() == -math.inf) | (log_teacher == -math.inf)
        log_student, log_teacher = (side.masked_fill(impossible, -math.inf) for side in (log_student, log_teacher))
        made = compare(normalised(log_teacher), normalised(log_student), measure=measure)
        return made.value, made


def _with_stops(token: Ids, stops: Ids | None) -> tuple[Ids, Ids]:
    """The tokens, all stops in place of one, and the place of each among those that were given.

    >>> _with_stops(np.array([5, 9]), np.array([9, 8]))
    (array([5, 9, 8]), array([0, 1, 1]))
    """
    place = np.arange(len(token))
    if stops is None:
        return token, place
    is_stop = np.isin(token, stops)
    size = np.where(is_stop, len(stops), 1)
    of = place.repeat(size)
    number = np.arange(len(of)) - offsets_of(size)[of]
    return np.where(is_stop[of], stops[number], token[of]), of


def find_units(
    mapping: Mapping, prefixes: Prefixes | None, shared: tuple[Ids, Ids], stops: Stops | None, predictions: Predictions
) -> Found:
    """SimCT's candidates of the chunks that are no shared token.

    Args:
        mapping: whose surfaces the chunks' tokens have.
        prefixes: its tokens by their bytes, for units="path"; None for units="text".
        shared: the number of each shared token on both sides, -1 for others.
        stops: both sides' stops, where they are compared as one.
        predictions: the chunks, as numpy arrays.
    """
    is_shared = begin_alike(predictions, shared) & one_to_one(predictions)
    chunk = np.flatnonzero(~is_shared)
    ours, theirs = (
        Run(np.diff(offsets), rows, tokens).take(chunk)
        for offsets, rows, tokens in (
            (predictions.student_offsets, predictions.student, predictions.student_tokens),
            (predictions.teacher_offsets, predictions.teacher, predictions.teacher_tokens),
        )
    )
    # The chunk itself is a unit.
    of, our_last, their_last = np.arange(len(chunk)), ours.last, theirs.last
    if prefixes is not None:
        split = np.flatnonzero(np.maximum(ours.size, theirs.size) > 1)
        found = _other_units(mapping, prefixes, ours.take(split), theirs.take(split))
        own = (our_last[split][found[0]] == found[1]) & (their_last[split][found[0]] == found[2])
        of = np.concatenate([of, split[found[0]][~own]])
        our_last, their_last = (
            np.concatenate([side, more[~own]]) for side, more in ((our_last, found[1]), (their_last, found[2]))
        )
    order = np.argsort(of, kind="stable")
    size = np.bincount(of, minlength=len(chunk))
    return is_shared, (Units(stops, chunk, ours, theirs, size, our_last[order], their_last[order]),)


def _other_units(mapping: Mapping, prefixes: Prefixes, ours: Run, theirs: Run) -> tuple[Ids, Ids, Ids]:
    """All last tokens of chunks with which both sides spell the same bytes: the chunk of each, ours, theirs.

    The text is Br ead for the student and Bread for the teacher: before its last token the student has written 2 bytes
    more than the teacher, so that a teacher token that begins with Br and a student token that is the rest of it fit.
    """
    sides = (mapping.student, prefixes.student, ours), (mapping.teacher, prefixes.teacher, theirs)
    written = [_before_last(side.surfaces, run) for side, _, run in sides]
    made: list[tuple[Ids, Ids, Ids]] = []
    for behind, ahead in ((0, 1), (1, 0)):
        # The bytes that one side has written more than the other: with these the other's last token begins.
        more = written[ahead].lengths - written[behind].lengths
        same = np.array([one.startswith(other) for one, other in zip(written[ahead], written[behind], strict=True)])
        chunk = np.flatnonzero((more > 0 if ahead else more >= 0) & same) if len(same) else np.zeros(0, dtype=np.int64)
        end = written[ahead].offsets[1:][chunk]
        node = sides[behind][1].walk(written[ahead].blob, end - more[chunk], end)[1]
        chunk, gap, node = chunk[node >= 0], more[chunk[node >= 0]], node[node >= 0]
        token, of = sides[behind][1].tokens(node, own=False)
        pieces, other = sides[behind][1].tree.pieces, sides[ahead][1]
        rest = other.walk(pieces.ids.astype(np.uint8), pieces.offsets[:-1][token] + gap[of], pieces.offsets[1:][token])[
            1
        ]
        # Of equal tokens the first stands for all; nothing is left of a token that is the gap itself.
        fits = (rest > 0) & (other.tree.own_end[rest] > other.tree.begin[rest])
        fits &= sides[behind][1].first(sides[behind][1].node[token]) == token
        last = token[fits], other.first(rest[fits])
        made.append((chunk[of[fits]], *(last[::-1] if behind else last)))
    return tuple(np.concatenate(part) for part in zip(*made, strict=True))


def _before_last(surfaces: ByteStrings, run: Run) -> ByteStrings:
    """The bytes of each chunk's tokens but the last."""
    size = run.size - 1
    token = run.token[runs(offsets_of(run.size)[:-1], size)]
    lengths = surfaces.lengths[token]
    data = surfaces.blob[runs(surfaces.offsets[:-1][token], lengths)]
    return ByteStrings(
        data, np.bincount(np.arange(len(size)).repeat(size), lengths, minlength=len(size)).astype(np.int32)
    )


def prefix_outcomes(mapping: Mapping, *, stops: Stops | None = None, indexed: bool = True) -> Outcomes:
    """The outcomes of `phi` where both sides have read the same text, and the rest: BPM's and ESCD's root."""
    return outcomes_of(mapping, Prefixes.of(mapping).bins, stops, rest="always", indexed=indexed)
