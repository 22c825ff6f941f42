"""Sums of probabilities over groups of tokens, in log space, and their gradients: what bins and projections share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

VOID = -1e30
"""The log mass of a column that stands for nothing. It is finite, so that it is told from an impossible token, and so
that the difference of two is no NaN."""
SMALL = 32
"""Columns with more other members than this are large."""


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which of K columns each of V tokens is in, as index arrays.

    Most columns hold one token, so each has a *head* and only the other members are summed. Where the columns are the
    tokens themselves (each group stands at its head's own place) nothing has to be gathered.

    Attributes:
        group: int64 (V,), the column of each token, K for tokens in none.
        head: int64 (K,), one token of each column, any for void ones; None where column k's head is token k.
        void: int64, the columns without a token.
        member: int64 (M,), the other tokens that are in a column, column by column.
        shared: int64 (G,), the columns that have other members.
        shared_head: int64 (G,), their heads.
        slot: int64 (M,), the place in `shared` of each member's column.
        offsets: int64 (G + 1,), where each shared column's members begin.
        large: int64, the places in `shared` of columns with more than `SMALL` members.
        source: int32 (K,), where a column's mass is found: in its only token, or at V + its place in `shared`; -1 for
            void ones.
        outside: int64, the tokens that have a probability but no column.
        alone: int64, the tokens in no column, `outside` included.
        count: K.
    """

    group: torch.Tensor
    head: torch.Tensor | None
    void: torch.Tensor
    member: torch.Tensor
    shared: torch.Tensor
    shared_head: torch.Tensor
    slot: torch.Tensor
    offsets: torch.Tensor
    large: torch.Tensor
    source: torch.Tensor
    outside: torch.Tensor
    alone: torch.Tensor
    count: int


def make_grouping(group: torch.Tensor, count: int, outside: torch.Tensor | None = None) -> Grouping:
    """Makes the index arrays.

    Args:
        group: integers (V,), the column of each token, 0 to count - 1, or negative for none.
        count: K.
        outside: bool (V,), tokens in no column that have a probability all the same; none by default.

    Example:
        >>> made = make_grouping(torch.tensor([0, 1, -1, 0]), 3)
        >>> made.head.tolist(), made.void.tolist(), made.member.tolist(), made.shared.tolist(), made.slot.tolist()
        ([0, 1, 0], [2], [3], [0], [0])
    """
    group = group.long()
    tokens = (group >= 0).nonzero().squeeze(1)
    head = lowest_tokens(group, count)
    void = (head == len(group)).nonzero().squeeze(1)
    member = tokens[head[group[tokens]] != tokens]
    member = member[group[member].argsort(stable=True)]
    sizes = torch.bincount(group[member], minlength=count)
    shared = sizes.nonzero().squeeze(1)
    sizes = sizes[shared]
    places = torch.arange(len(shared), device=group.device)
    own = torch.arange(count, device=group.device)
    placed = count == len(group) and bool(((head == own) | (head == len(group))).all())
    source = head.index_fill(0, void, -1).index_copy(0, shared, places + len(group))
    return Grouping(
        group=torch.where(group < 0, count, group),
        head=None if placed else head.index_fill(0, void, 0),
        void=void,
        member=member,
        shared=shared,
        shared_head=head[shared],
        slot=places.repeat_interleave(sizes, output_size=len(member)),
        offsets=torch.nn.functional.pad(sizes.cumsum(0), (1, 0)),
        large=(sizes > SMALL).nonzero().squeeze(1),
        source=source.int(),
        outside=group.new_zeros(0) if outside is None else (outside & (group < 0)).nonzero().squeeze(1),
        alone=(group < 0).nonzero().squeeze(1),
        count=count,
    )


def lowest_tokens(group: torch.Tensor, count: int) -> torch.Tensor:
    """int64 (count,): the lowest token of each group, V for a group without one."""
    tokens = (group >= 0).nonzero().squeeze(1)
    return group.new_full((count,), len(group)).scatter_reduce(0, group[tokens], tokens, "amin")


def in_place(student: torch.Tensor, teacher: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Groups of both sides renumbered so that each stands at its lowest student token's place, where that is cheaper.

    Columns are then as many as the student's tokens: worth it where most of them are a group's head, since neither the
    student's logits nor their gradient need to be gathered.

    Args:
        student: int64 (V_s,), negative for none.
        teacher: int64 (V_t,).
        count: how many groups there are; each has a student token.
    """
    if 2 * count < len(student):
        return student, teacher, count
    head = lowest_tokens(student, count)
    moved = [torch.where(side >= 0, head[side.clamp_min(0)], side) if count else side for side in (student, teacher)]
    return moved[0], moved[1], len(student)


def log_masses(scores: torch.Tensor, grouping: Grouping, out: torch.Tensor | None = None) -> torch.Tensor:
    """Logarithms of the sums of exp(scores) over each column: floats (n, V) to (n, K), a new tensor or `out`.

    It is -inf where every score of a column is, `VOID` where there is none. Each shared column is summed relative to
    its own largest score, so that none underflows beside a distant one.
    """
    if grouping.head is not None:
        masses = torch.index_select(scores, 1, grouping.head, out=out)
    else:
        masses = scores.clone() if out is None else out.copy_(scores)
    if len(grouping.void):
        masses.index_fill_(1, grouping.void, VOID)
    if not len(grouping.member):
        return masses
    heads = masses.index_select(1, grouping.shared)
    members = scores.index_select(1, grouping.member)
    slot = grouping.slot.expand(members.shape)
    top = heads.scatter_reduce(1, slot, members, "amax").clamp_min_(torch.finfo(scores.dtype).min)
    total = (heads - top).exp_().scatter_add_(1, slot, members.sub_(top.gather(1, slot)).exp_())
    return masses.index_copy_(1, grouping.shared, top.add_(total.log_()))


def log_outside(logits: torch.Tensor, grouping: Grouping) -> torch.Tensor | None:
    """(n,), log of the sum over the tokens outside of every column, None where there are none."""
    if not len(grouping.outside):
        return None
    return logits.index_select(1, grouping.outside).logsumexp(dim=1)


def share_inside(logits: torch.Tensor, grouping: Grouping, whole: torch.Tensor) -> torch.Tensor:
    """(n,), how much of the mass of all tokens is in a column; `whole` (n,) is the log of what is."""
    outside = log_outside(logits, grouping)
    return logits.new_ones(len(logits)) if outside is None else torch.sigmoid(whole - outside)


def scores_gradient(
    gradient: torch.Tensor, scores: torch.Tensor, shared: torch.Tensor, grouping: Grouping
) -> torch.Tensor:
    """The gradient of scores from that of the columns' log masses: each member gets its share of its column's.

    Args:
        gradient: floats (n, K), finite, 0 where a mass is -inf or void; may be overwritten.
        scores: floats (n, V).
        shared: floats (n, G), the log masses of the shared columns.
        grouping: the columns.

    Returns:
        Floats (n, V), 0 for tokens in no column.
    """
    shares = None
    if len(grouping.member):
        shared_by = torch.cat([grouping.shared, grouping.shared[grouping.slot]])
        sharing = torch.cat([grouping.shared_head, grouping.member])
        whole = torch.cat([shared, shared.index_select(1, grouping.slot)], dim=1)
        whole.clamp_min_(torch.finfo(scores.dtype).min)
        shares = (scores.index_select(1, sharing) - whole).exp_().mul_(gradient.index_select(1, shared_by))
    if grouping.head is None:
        spread = gradient
    else:
        spread = torch.cat([gradient, gradient.new_zeros(len(gradient), 1)], dim=1).index_select(1, grouping.group)
    return spread if shares is None else spread.index_copy_(1, sharing, shares)
