"""Index arrays of a loss: which of two vocabularies' tokens are compared with which.

A loss reads one of two kinds of table. `Outcomes` puts tokens of both sides into common outcomes: the bins of
Partition-KL, the columns of P-KL, the pairs of H-KL and GOLD. `Ranks` says which tokens are compared in sorted order.

A table depends on the mapping alone, so a module makes it once. Each has a plain form of fixed shapes, which
`torch.compile` can trace and which `implementation="reference"` reads, and an indexed form, which is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import register_pytree_node

from ..mapping.mapping import Mapping
from ..matrix import relaxed_common, strict_common
from ..vocab.kinds import Kind
from ..vocab.roles import STOPS

MASKED = -2
"""The bin of a token that has no probability: padding and holes."""
VOID = -1e30
"""The log mass of a column that stands for no outcome. It is finite, so that it is told from an impossible outcome, and
so that the difference of two is no NaN."""
LEFT = -1e20
"""The score of a token that a row leaves out. It is finite too, so that the fast ways can compute with it: nothing is
left of its probability, nor of any power of it. A row whose best mass is no more has no distribution."""
SMALL = 32
"""Shared columns with more members than this are large; one program of the GPU's kernels sums each of these."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """A set of tokens of a vocabulary of width V.

    Attributes:
        mask: bool (V,).
        ids: int64, ascending; None in the plain form.
    """

    mask: torch.Tensor
    ids: torch.Tensor | None

    def removed_from(self, scores: torch.Tensor) -> torch.Tensor:
        """Rows (n, V) in which these tokens are impossible, as a copy."""
        if self.ids is None:
            return scores.masked_fill(self.mask, -torch.inf)
        return scores.index_fill(1, self.ids, -torch.inf)


def tokens_of(mask: torch.Tensor, *, indexed: bool = True) -> Tokens:
    """The tokens at which a mask is True."""
    return Tokens(mask, mask.nonzero().squeeze(1) if indexed else None)


@dataclass(frozen=True, eq=False)
class GroupIndex:
    """Where the tokens of each column stand, so that only columns of several tokens need be summed.

    Most columns hold one token. Each column has a *head*, its lowest token; the other tokens of a column are *members*.

    Seven tokens in columns [0, 1, -1, 0, 3, 3, 3] of K = 4: the heads are [0, 1, -, 4], column 2 is void, the members
    are tokens [3, 5, 6], the shared columns [0, 3]. Column masses are the heads' scores, those of columns 0 and 3
    exchanged for log(exp(z0) + exp(z3)) and log(exp(z4) + exp(z5) + exp(z6)).

    Attributes:
        head: int64 (K,), the head of each column, any token for void ones; None where column k's head is token k.
        void: int64, the columns without a token.
        member: int64 (M,), the members, column by column.
        shared: int64 (G,), the columns that have members.
        shared_head: int64 (G,), their heads.
        slot: int64 (M,), the place in `shared` of each member's column.
        offsets: int64 (G + 1,), where each shared column's members begin.
        large: int64, the places in `shared` of columns with more than `SMALL` members.
        source: int32 (K,), where a column's mass is found: at its only token, or at V + its place in `shared`; -1 for
            void ones.
        alone: int64, the tokens in no column.
        place: int64 (V,), where each token's score goes: to its column if it is the head, to K + its place in `member`
            if it is a member; -1 for tokens in no column.
    """

    head: torch.Tensor | None
    void: torch.Tensor
    member: torch.Tensor
    shared: torch.Tensor
    shared_head: torch.Tensor
    slot: torch.Tensor
    offsets: torch.Tensor
    large: torch.Tensor
    source: torch.Tensor
    alone: torch.Tensor
    place: torch.Tensor


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which of K columns each of V tokens is in.

    Attributes:
        group: int64 (V,), the column of each token, K for tokens in none.
        outside: the tokens that have a probability but no column.
        count: K.
        index: the same as places; None in the plain form.
    """

    group: torch.Tensor
    outside: Tokens
    count: int
    index: GroupIndex | None


def make_grouping(
    group: torch.Tensor, count: int, outside: torch.Tensor | None = None, *, indexed: bool = True
) -> Grouping:
    """Groups tokens by columns.

    Args:
        group: integers (V,), the column of each token, 0 to count - 1, or negative for none.
        count: K.
        outside: bool, tokens in no column that have a probability all the same; none by default.
        indexed: whether places are looked up, which takes shapes that depend on the values.

    Example:
        >>> index = make_grouping(torch.tensor([0, 1, -1, 0]), 3).index
        >>> index.head.tolist(), index.void.tolist(), index.member.tolist(), index.shared.tolist(), index.slot.tolist()
        ([0, 1, 0], [2], [3], [0], [0])
    """
    group = group.long()
    if outside is None:
        outside = torch.zeros_like(group, dtype=torch.bool)
    elif len(outside) == len(group):
        outside = outside & (group < 0)
    made = Grouping(torch.where(group < 0, count, group), tokens_of(outside, indexed=indexed), count, None)
    return replace(made, index=_indexed(group, count)) if indexed else made


def _indexed(group: torch.Tensor, count: int) -> GroupIndex:
    width, device = len(group), group.device
    # `index_select` and `nonzero` take a third of the time of an index in brackets, and functions make this every call.
    tokens = (group >= 0).nonzero().squeeze(1)
    column = group.index_select(0, tokens)
    # The lowest token of each column; a column without one keeps the number `width`.
    head = group.new_full((count,), width).scatter_reduce_(0, column, tokens, "amin")
    void = (head == width).nonzero().squeeze(1)
    # Members are few, so they alone are sorted.
    is_member = (head.index_select(0, column) != tokens).nonzero().squeeze(1)
    member, column = tokens.index_select(0, is_member), column.index_select(0, is_member)
    member = member.index_select(0, column.argsort(stable=True))
    # In the class's example the four columns have [1, 0, 0, 2] members, so that the first and the last are shared.
    sizes = torch.bincount(column, minlength=count)
    shared = sizes.nonzero().squeeze(1)
    sizes = sizes[shared]
    places = torch.arange(len(shared), device=device)
    own = torch.arange(count, device=device)
    placed = count == width and bool(((head == own) | (head == width)).all())
    return GroupIndex(
        head=None if placed else head.index_fill(0, void, 0),
        void=void,
        member=member,
        shared=shared,
        shared_head=head[shared],
        slot=places.repeat_interleave(sizes, output_size=len(member)),
        offsets=torch.nn.functional.pad(sizes.cumsum(0), (1, 0)),
        large=(sizes > SMALL).nonzero().squeeze(1),
        source=head.index_fill(0, void, -1).index_copy(0, shared, places + width).int(),
        alone=(group < 0).nonzero().squeeze(1),
        place=group.index_copy(0, member, torch.arange(count, count + len(member), device=device)),
    )


Cells = tuple[torch.Tensor, torch.Tensor]
"""Some tokens of some rows: int64 (m,) rows and int64 (m,) tokens."""


def without(scores: torch.Tensor, left: Cells) -> torch.Tensor:
    """Rows (n, V) that leave some tokens out, as a copy; what has no probability has none as before."""
    return scores.index_put(left, scores.detach()[left].clamp_max(LEFT))


def log_masses(
    scores: torch.Tensor, grouping: Grouping, out: torch.Tensor | None = None, left: Cells | None = None
) -> torch.Tensor:
    """Logarithms of the sums of exp(scores) over each column: floats (n, V) to (n, K).

    It is -inf where every score of a column is, `VOID` where the column has no token. Each column is summed relative to
    its own largest score, so that none underflows beside a distant one.

    Args:
        scores: floats (n, V).
        grouping: the columns.
        out: floats (n, K), memory for the result where no gradient is wanted.
        left: tokens that the rows leave out; a column of which nothing else is there has a mass of about `LEFT`.
    """
    lowest = torch.finfo(scores.dtype).min
    index = grouping.index
    if index is None:
        scores = scores if left is None else without(scores, left)
        shape = (len(scores), grouping.count + 1)
        column = grouping.group.expand(scores.shape)
        top = scores.new_full(shape, -torch.inf).scatter_reduce(1, column, scores.detach(), "amax").clamp_min(lowest)
        total = scores.new_zeros(shape).scatter_add(1, column, (scores - top.gather(1, column)).exp())
        held = torch.zeros(shape[1], dtype=torch.bool, device=scores.device).index_fill(0, grouping.group, value=True)
        return (top + log_of(total)).masked_fill(~held, VOID)[:, :-1]
    if index.head is not None:
        masses = torch.index_select(scores, 1, index.head, out=out)
    else:
        masses = scores.clone() if out is None else out.copy_(scores)
    if len(index.void):
        masses = masses.index_fill_(1, index.void, VOID)
    own = None
    if left is not None:
        place = index.place[left[1]]
        heads, own = (place >= 0) & (place < grouping.count), place >= grouping.count
        _leave_out(masses, left[0][heads], place[heads])
    if not len(index.member):
        return masses
    # Shared columns alone: log(exp(head) + sum of exp(members)), each relative to the largest of its own scores.
    heads = masses.index_select(1, index.shared)
    members = scores.index_select(1, index.member)
    if left is not None and own is not None:
        _leave_out(members, left[0][own], index.place[left[1][own]] - grouping.count)
    slot = index.slot.expand(members.shape)
    top = heads.detach().scatter_reduce(1, slot, members.detach(), "amax").clamp_min_(lowest)
    if not torch.is_grad_enabled():
        # The same in place: on a CPU new memory costs more than the arithmetic.
        total = heads.sub_(top).exp_().scatter_add_(1, slot, members.sub_(top.gather(1, slot)).exp_())
        return masses.index_copy_(1, index.shared, top.add_(total.log_()))
    total = (heads - top).exp().scatter_add(1, slot, (members - top.gather(1, slot)).exp())
    return masses.index_copy_(1, index.shared, top + log_of(total))


def _leave_out(scores: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> None:
    scores[row, column] = scores.detach()[row, column].clamp_max(LEFT)


def log_of(total: torch.Tensor) -> torch.Tensor:
    """The logarithm; of 0 it is -inf with a gradient of 0, where torch has one of infinity. NaN stays NaN."""
    nothing = total == 0
    return total.masked_fill(nothing, 1).log().masked_fill(nothing, -torch.inf)


def log_sum(values: torch.Tensor) -> torch.Tensor:
    """Logsumexp of each row (n, V) to (n,), -inf with a gradient of 0 where every value is.

    Three plain passes are faster than torch's own on a CPU. Values without a graph are overwritten: on a CPU new memory
    costs more than the arithmetic.
    """
    if not values.shape[1]:
        return values.new_full((len(values),), -torch.inf)
    top = values.detach().amax(dim=1, keepdim=True).clamp_min(torch.finfo(values.dtype).min)
    parts = (values - top).exp() if values.requires_grad else values.sub_(top).exp_()
    return log_of(parts.sum(dim=1)) + top.squeeze(1)


def share_of(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """exp(part - whole), 0 of nothing.

    >>> share_of(torch.tensor([0.2, 0.0, 0.0]).log(), torch.tensor([0.5, 0.5, 0.0]).log())
    tensor([0.4000, 0.0000, 0.0000])
    """
    return (part - whole).exp().masked_fill(whole <= LEFT / 2, 0)


def log_outside(scores: torch.Tensor, grouping: Grouping) -> torch.Tensor | None:
    """Floats (n,), log of the mass outside of every column, without a graph; None where no token is outside."""
    outside = grouping.outside
    if outside.ids is None:
        return log_sum(scores.detach().masked_fill(~outside.mask, -torch.inf))
    if not len(outside.ids):
        return None
    return scores.detach().index_select(1, outside.ids).logsumexp(dim=1)


def share_inside(scores: torch.Tensor, grouping: Grouping, whole: torch.Tensor) -> torch.Tensor:
    """(n,), how much of the mass of all tokens is in a column; `whole` (n,) is the log of what is."""
    outside = log_outside(scores, grouping)
    return scores.new_ones(len(scores)) if outside is None else torch.sigmoid(whole - outside)


@dataclass(frozen=True, eq=False)
class Links:
    """Weighted links from student tokens to columns, for projections that are no partition.

    Attributes:
        token: int64 (L,), the student token of each link.
        log_weight: floats (L,), float64 unless they are learnt.
    """

    token: torch.Tensor
    log_weight: torch.Tensor


@dataclass(frozen=True)
class Rest:
    """All tokens without an outcome of their own, as an outcome whether or not the teacher has any such token.

    Attributes:
        column: its column.
        of_teacher: whether the teacher has such tokens; else it gives the outcome nothing.
    """

    column: int
    of_teacher: bool


@dataclass(frozen=True, eq=False)
class Outcomes:
    """How two vocabularies are made comparable: K columns that both have, each an outcome.

    Attributes:
        student: columns of the student's tokens, or of `links` where there are any.
        teacher: columns of the teacher's tokens; as many.
        links: weighted links, None where every token has weight 1 in its column.
        weigh_by_kept: multiply a chunk's value by the teacher's mass that has a column.
        rest: the outcome that holds all other tokens, and what a cached teacher does not list; None where a rest is an
            outcome like others or none.
    """

    student: Grouping
    teacher: Grouping
    links: Links | None
    weigh_by_kept: bool
    rest: Rest | None = None

    @property
    def in_place(self) -> bool:
        """Whether rows can be compared without links or an outcome that the teacher never gives anything."""
        never = self.rest is not None and not self.rest.of_teacher
        return self.links is None and self.student.count > 0 and not never

    def teacher_masses(
        self, scores: torch.Tensor, log_rest: torch.Tensor | None, *, left: Cells | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The teacher's log masses (n, K), and log of what is in no column because it is not listed (n,).

        Args:
            scores: floats (n, V_t), without a graph.
            log_rest: floats (n,), of a cached teacher, or None.
            left: as for `log_masses`.
        """
        masses = log_masses(scores, self.teacher, left=left)
        if self.rest is None:
            return masses, log_rest
        own = masses[:, self.rest.column]
        own = own.masked_fill(own < VOID / 2, -torch.inf)
        if log_rest is not None:
            # The rest holds what is not listed; an outcome at -inf is not listed and joins it.
            log_rest, own = torch.logaddexp(own, log_rest.to(own.dtype)), torch.full_like(own, -torch.inf)
        masses[:, self.rest.column] = own
        return masses, log_rest


@dataclass(frozen=True, eq=False)
class Ranks:
    """What of two distributions is compared in sorted order.

    Attributes:
        student_silent: the student's tokens without a probability.
        teacher_silent: the teacher's.
        student_rest: the student's tokens whose probabilities are sorted and compared.
        teacher_rest: the teacher's.
        limit: how many ranks are compared at most; None for all, filled up with zeros.
        common: int64 (M, 2), the pairs of the paper's common part; None without it.
        student_stops: int64, the student's stops, where they count as one token, the first of them; else None.
        teacher_stops: int64, the teacher's, or None.
    """

    student_silent: Tokens
    teacher_silent: Tokens
    student_rest: Tokens
    teacher_rest: Tokens
    limit: int | None
    common: torch.Tensor | None
    student_stops: torch.Tensor | None = None
    teacher_stops: torch.Tensor | None = None

    @property
    def most(self) -> int:
        """How many ranks are compared; the sets of tokens are indexed."""
        if self.limit is None:
            return max(len(self.student_rest.mask), len(self.teacher_rest.mask))
        assert self.student_rest.ids is not None
        assert self.teacher_rest.ids is not None
        return min(len(self.student_rest.ids), len(self.teacher_rest.ids), self.limit)


Table = Outcomes | Ranks

for _class in (Tokens, GroupIndex, Grouping, Links, Outcomes, Ranks):
    # torch's trees then find the tensors, so that a module can hold them as buffers.
    register_pytree_node(
        _class,
        lambda table: (list(vars(table).values()), type(table)),
        lambda values, kind: cast("Callable[..., Any]", kind)(*values),
    )


def outcomes_of_bins(
    student_bin: torch.Tensor, teacher_bin: torch.Tensor, *, rest: str = "shared", indexed: bool = True
) -> Outcomes:
    """The bins that both sides have tokens in, and what becomes of all other tokens.

    Args:
        student_bin: integers (V_s,), -1 for tokens in no bin, -2 for tokens without a probability.
        teacher_bin: integers (V_t,).
        rest: "shared": all other tokens are one more outcome where both sides have some; "always": where the student
            has some, see `Rest`; "none": they are left out.
        indexed: see `make_grouping`.

    Example, with student bins [0, 1, 1, 2, -1] and teacher bins [1, 0, 3]: bins 0 and 1 are shared, and student tokens
    3 and 4 and teacher token 2 are the rest. Outcomes stand at the place of their lowest student token:
        >>> made = outcomes_of_bins(torch.tensor([0, 1, 1, 2, -1]), torch.tensor([1, 0, 3]))
        >>> made.student.group.tolist(), made.teacher.group.tolist()
        ([0, 1, 1, 3, 3], [1, 0, 3])
    """
    bins = [side.long() for side in (student_bin, teacher_bin)]
    if indexed:
        width = max(0, 1 + max((int(side.max()) for side in bins if len(side)), default=-1))
    else:
        bins, width = _dense(*bins)
    has = [_flags(side, width) for side in bins]
    shared = has[0] & has[1]
    # The rest has number `width`, a masked token `width + 1`.
    numbers = []
    for side in bins:
        counts = (
            (side >= 0) & shared.index_select(0, side.clamp_min(0))
            if width
            else torch.zeros_like(side, dtype=torch.bool)
        )
        numbers.append(torch.where(counts, side, torch.where(side == MASKED, width + 1, width)))
    # The rest is an outcome where both sides have some of it; a masked token's number never is.
    ours, theirs = ((side == width).any() for side in numbers)
    is_outcome = {"shared": ours & theirs, "always": ours, "none": torch.zeros_like(ours)}[rest]
    counts = torch.cat([shared, is_outcome[None], torch.zeros_like(is_outcome)[None]])
    masked = [side == MASKED for side in bins]
    made = _outcomes(numbers, masked, counts, indexed=indexed)
    if rest != "always" or not bool(ours):
        return made
    (first, *_) = (numbers[0] == width).nonzero()
    return replace(made, rest=Rest(int(made.student.group[first]), bool(theirs)))


def _flags(numbers: torch.Tensor, width: int) -> torch.Tensor:
    """Bool (width,), which numbers occur."""
    flags = torch.zeros(width + 1, dtype=torch.bool, device=numbers.device)
    return flags.index_fill(0, torch.where(numbers < 0, width, numbers), value=True)[:-1]


def _dense(student: torch.Tensor, teacher: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """Bins renumbered below the number of tokens, so that nothing's shape depends on a value; negative ones stay."""
    # Bins 7 | 3 7 are 3 7 7 in order, of which the numbers are 0 1 1, so they become 1 | 0 1.
    both = torch.cat([student, teacher])
    order = both.argsort()
    ordered = both[order]
    steps = torch.nn.functional.pad((ordered[1:] != ordered[:-1]).long().cumsum(0), (1, 0))
    dense = torch.where(both < 0, both, torch.zeros_like(both).index_copy(0, order, steps))
    return [dense[: len(student)], dense[len(student) :]], len(both)


def _outcomes(
    numbers: list[torch.Tensor], masked: list[torch.Tensor], counts: torch.Tensor, *, indexed: bool
) -> Outcomes:
    """Outcomes from numbers that both sides' tokens have; `counts` says which numbers are outcomes.

    Where most student tokens are the lowest of their outcome, each outcome's column is that token, so that neither the
    student's logits nor their gradient need be gathered; else columns are counted through.
    """
    # Student numbers [0, 1, 1, 2] of outcomes 0, 1, 2 have the lowest tokens 0, 1, 3, which become the columns: the
    # student's groups are [0, 1, 1, 3], and a teacher's token of outcome 2 is in column 3.
    width = len(numbers[0])
    tokens = torch.arange(width, device=counts.device)
    column = torch.full_like(counts, width, dtype=torch.int64).scatter_reduce(0, numbers[0], tokens, "amin")
    if indexed and 2 * (size := int(counts.sum())) < width:
        column, width = counts.cumsum(0) - 1, size
    column = torch.where(counts, column, -1)
    sides = [
        make_grouping(column.index_select(0, number), width, ~mask, indexed=indexed)
        for number, mask in zip(numbers, masked, strict=True)
    ]
    return Outcomes(sides[0], sides[1], None, weigh_by_kept=False)


def outcomes_of_links(
    rows: torch.Tensor,
    columns: torch.Tensor,
    weights: torch.Tensor,
    target: torch.Tensor,
    student_live: torch.Tensor,
    *,
    indexed: bool = True,
) -> Outcomes:
    """The columns of W that some link reaches, and where the teacher's mass on other columns goes.

    Args:
        rows: integers (links,), student ids.
        columns: integers (links,), teacher ids.
        weights: floats (links,), above 0; those of a row sum to 1.
        target: integers (V_t,): for a column that no link reaches the column to which the teacher's mass there moves;
            -1 where it is dropped, -2 for tokens without a probability. Reached columns keep theirs.
        student_live: bool (V_s,), False for the student's tokens without a probability.
        indexed: see `make_grouping`.
    """
    rows, columns, target = rows.long(), columns.long(), target.long()
    usable = (target[columns] != MASKED) & student_live[rows]
    if indexed:
        rows, columns, weights = rows[usable], columns[usable], weights[usable]
        usable = torch.ones_like(rows, dtype=torch.bool)
    # A reached column keeps the teacher's mass; that of another goes to its target, or is dropped if none reaches that.
    width = len(target)
    reached = _flags(torch.where(usable, columns, -1), width)
    teacher = torch.where(reached, torch.arange(width, device=target.device), target)
    teacher = torch.where((teacher >= 0) & reached[teacher.clamp_min(0)], teacher, width)
    linked = _flags(torch.where(usable, rows, -1), len(student_live))
    # A row with one link of weight 1 is a token in a column, so that W is a partition and needs no links.
    if indexed and bool((torch.bincount(rows) <= 1).all()) and bool((weights == 1).all()):
        student = torch.full_like(student_live, width, dtype=torch.int64).index_copy(0, rows, columns)
        # Tokens without a link have the number `width`, which is no outcome.
        counts = torch.cat([reached, reached.new_zeros(1)])
        made = _outcomes([student, teacher], [~student_live, target == MASKED], counts, indexed=True)
        return replace(made, weigh_by_kept=True)
    group = torch.where(usable, columns, -1)
    teacher = torch.where(teacher == width, -1, teacher)
    if indexed:
        # W's columns are sparse among the teacher's tokens where the student's vocabulary is small.
        number = torch.where(reached, reached.cumsum(0) - 1, -1)
        width = int(reached.sum())
        group, teacher = number[group], torch.where(teacher >= 0, number[teacher.clamp_min(0)], -1)
    links = make_grouping(group, width, indexed=indexed)
    # `outside` counts tokens, all else of this grouping counts links.
    links = replace(links, outside=tokens_of(student_live & ~linked, indexed=indexed))
    theirs = make_grouping(teacher, width, target != MASKED, indexed=indexed)
    return Outcomes(links, theirs, Links(rows, weights.double().log()), weigh_by_kept=True)


def outcomes_of_pairs(
    pairs: torch.Tensor, student_live: torch.Tensor, teacher_live: torch.Tensor, *, indexed: bool = True
) -> Outcomes:
    """One outcome per pair and one for all other tokens.

    Args:
        pairs: integers (M, 2), student and teacher ids; no id twice on one side.
        student_live: bool (V_s,), False for tokens without a probability.
        teacher_live: bool (V_t,).
        indexed: see `make_grouping`.
    """
    places = torch.arange(len(pairs), device=pairs.device)
    bins = [
        torch.where(live, -1, MASKED).index_copy(0, pairs[:, column].long(), places)
        for column, live in enumerate((student_live, teacher_live))
    ]
    return outcomes_of_bins(bins[0], bins[1], indexed=indexed)


def ranks_of_pairs(
    pairs: torch.Tensor,
    student_live: torch.Tensor,
    teacher_live: torch.Tensor,
    *,
    limit: int | None,
    with_common: bool,
    stops: Stops | None = None,
    indexed: bool = True,
) -> Ranks:
    """The tokens in no pair, to be compared in sorted order; with the pairs themselves for the paper's form."""
    rest = [
        live & ~_flags(pairs[:, column].long(), len(live)) for column, live in enumerate((student_live, teacher_live))
    ]
    sets = [tokens_of(mask, indexed=indexed) for mask in (~student_live, ~teacher_live, *rest)]
    bridged = () if stops is None else (torch.from_numpy(stops.student), torch.from_numpy(stops.teacher))
    return Ranks(sets[0], sets[1], sets[2], sets[3], limit, pairs.long() if with_common else None, *bridged)


def ranks_of_all(student_live: torch.Tensor, teacher_live: torch.Tensor, *, indexed: bool = True) -> Ranks:
    """Whole vocabularies in sorted order, the shorter filled up with zeros: ULD."""
    sets = [tokens_of(mask, indexed=indexed) for mask in (~student_live, ~teacher_live, student_live, teacher_live)]
    return Ranks(sets[0], sets[1], sets[2], sets[3], None, None)


def live_tokens(mapping: Mapping) -> list[torch.Tensor]:
    """Which tokens of the student and of the teacher have a probability, bool (V,) each: all but padding and holes."""
    sides = mapping.student.kinds, mapping.teacher.kinds
    return [torch.from_numpy(~np.isin(kinds, [Kind.PADDING, Kind.HOLE])) for kinds in sides]


@dataclass(frozen=True, eq=False)
class Stops:
    """The tokens with which a turn can end, which `stop_bridge` compares as one outcome.

    Attributes:
        student: int64, the student's, the first of which stands for all.
        teacher: int64, the teacher's.
    """

    student: NDArray[np.int64]
    teacher: NDArray[np.int64]

    @classmethod
    def of(cls, mapping: Mapping) -> Stops | None:
        """The tokens of the roles that end a turn or a text; None where a side has none, so that nothing changes."""
        sides = [
            list(dict.fromkeys(token for role in STOPS for token in side.roles.get(role, ())))
            for side in (mapping.student, mapping.teacher)
        ]
        return cls(*(np.array(side, dtype=np.int64) for side in sides)) if all(sides) else None

    def joined(self, *bins: NDArray[np.signedinteger]) -> list[NDArray[np.int64]]:
        """Bins of the student's and the teacher's tokens in which the stops of both sides have one of their own."""
        number = 1 + max(int(side.max(initial=-1)) for side in bins)
        made = [side.astype(np.int64) for side in bins]
        made[0][self.student], made[1][self.teacher] = number, number
        return made


def mapping_bins(mapping: Mapping, *, stops: Stops | None = None, indexed: bool = True) -> Outcomes:
    """The mapping's bins: tokens that stand for each other by their first pieces."""
    return outcomes_of(mapping, mapping.bins(), stops, indexed=indexed)


def outcomes_of(
    mapping: Mapping,
    bins: Sequence[NDArray[np.signedinteger]],
    stops: Stops | None,
    *,
    rest: str = "shared",
    indexed: bool = True,
) -> Outcomes:
    """`outcomes_of_bins` of a mapping's tokens, -1 for none, where stops may be one outcome."""
    bins = bins if stops is None else stops.joined(*bins)
    parts = (torch.from_numpy(part.astype(np.int64)) for part in bins)
    masked = [torch.where(live, part, MASKED) for part, live in zip(parts, live_tokens(mapping), strict=True)]
    return outcomes_of_bins(masked[0], masked[1], rest=rest, indexed=indexed)


def pair_outcomes(
    mapping: Mapping, pairs: torch.Tensor, *, stops: Stops | None = None, rest: str = "shared", indexed: bool = True
) -> Outcomes:
    """One outcome per pair of a mapping's tokens.

    Args:
        mapping: the tokens.
        pairs: integers (M, 2), student and teacher ids; no id twice on one side.
        stops: both sides' stops, where they are one outcome.
        rest: what becomes of all other tokens, see `outcomes_of_bins`.
        indexed: see `make_grouping`.
    """
    bins = [np.full(width, -1, dtype=np.int64) for width in mapping.matrix.shape]
    for side, column in zip(bins, pairs.numpy().T, strict=True):
        side[column] = np.arange(len(pairs))
    return outcomes_of(mapping, bins, stops, rest=rest, indexed=indexed)


def mapping_links(
    mapping: Mapping, *, merge: str, unreached: str, stops: Stops | None = None, indexed: bool = True
) -> Outcomes:
    """P-KL's projection: W's first pieces with weight 1 for merge="first", all of W for merge="mean".

    The teacher's mass on a column t that it does not reach moves to f(g(t)), the first piece of the first piece, or is
    dropped. Stops that are one outcome are all linked to the teacher's first, which has the mass of all.
    """
    live = live_tokens(mapping)
    first = mapping.first_pieces("student")
    first = np.where((np.diff(mapping.matrix.indptr) > 0) & live[0].numpy(), first, -1)
    if merge == "mean":
        rows, columns, weights = mapping.matrix.rows, mapping.matrix.indices, mapping.matrix.data
    else:
        rows = np.flatnonzero(first >= 0).astype(np.int32)
        columns, weights = first[rows], np.ones(len(rows), dtype=np.float32)
    target = np.full(len(live[1]), -1, dtype=np.int64)
    if unreached == "reroute":
        back = mapping.first_pieces("teacher")
        target = np.where(back >= 0, first[np.maximum(back, 0)], -1).astype(np.int64)
    if stops is not None:
        others = ~np.isin(rows, stops.student)
        rows = np.concatenate([rows[others], stops.student])
        columns = np.concatenate([columns[others], np.full(len(stops.student), stops.teacher[0])])
        weights = np.concatenate([weights[others], np.ones(len(stops.student), dtype=np.float32)])
        columns[np.isin(columns, stops.teacher)] = stops.teacher[0]
        target[np.isin(target, stops.teacher)] = stops.teacher[0]
        target[stops.teacher] = stops.teacher[0]
    target[~live[1].numpy()] = MASKED
    return outcomes_of_links(
        torch.from_numpy(rows.astype(np.int64)),
        torch.from_numpy(columns.astype(np.int64)),
        torch.from_numpy(weights.copy()),
        torch.from_numpy(target),
        live[0],
        indexed=indexed,
    )


def mapping_pairs(mapping: Mapping, *, threshold: float | None, stops: Stops | None = None) -> torch.Tensor:
    """int64 (M, 2): the strict common set for GOLD, the relaxed one for H-KL where a threshold is given.

    Stops that are one outcome are one pair, of the first of each side.
    """
    column, weight = mapping.matrix.top
    if threshold is None:
        marked = strict_common(mapping.matrix.owner, column)
    else:
        marked = relaxed_common(column, weight, threshold)
    rows = np.flatnonzero(marked)
    pairs = np.stack([rows, column[rows].astype(np.int64)], axis=1)
    if stops is not None:
        pairs = pairs[~np.isin(pairs[:, 0], stops.student) & ~np.isin(pairs[:, 1], stops.teacher)]
        pairs = np.concatenate([pairs, [[stops.student[0], stops.teacher[0]]]])
        pairs = pairs[np.argsort(pairs[:, 0])]
    return torch.from_numpy(pairs)
