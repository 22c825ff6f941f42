"""Sums of probabilities over groups of tokens, in log space, and their gradients: what bins and projections have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which group each of V tokens is in, as index arrays. Every group has a token.

    Most groups have one token, so each group has a *head* and only the other members are summed.

    Attributes:
        group: int64 (V,), the group of each token, K for tokens in none.
        head: int64 (K,), one token of each group.
        member: int64 (M,), the other tokens that are in a group.
        shared: int64 (G,), the groups that have other members.
        slot: int64 (M,), the place in `shared` of each member's group.
        outside: int64, the tokens that have a probability but no group.
        leading: the groups are the first K tokens, in order; nothing is moved then.
    """

    group: torch.Tensor
    head: torch.Tensor
    member: torch.Tensor
    shared: torch.Tensor
    slot: torch.Tensor
    outside: torch.Tensor
    leading: bool

    @property
    def count(self) -> int:
        """K, the number of groups."""
        return len(self.head)


def make_grouping(group: torch.Tensor, count: int, outside: torch.Tensor | None = None) -> Grouping:
    """Makes the index arrays.

    Args:
        group: integers (V,), the group of each token, 0 to count - 1, or negative for none. Every group has a token.
        count: K.
        outside: bool (V,), tokens in no group that have a probability all the same; none by default.

    Example:
        >>> made = make_grouping(torch.tensor([0, 1, -1, 0]), 2)
        >>> made.head.tolist(), made.member.tolist(), made.shared.tolist(), made.slot.tolist()
        ([0, 1], [3], [0], [0])
    """
    group = group.long()
    tokens = (group >= 0).nonzero().squeeze(1)
    head = group.new_full((count,), len(group)).scatter_reduce(0, group[tokens], tokens, "amin")
    member = tokens[head[group[tokens]] != tokens]
    shared, slot = torch.unique(group[member], return_inverse=True)
    none = group.new_zeros(0)
    return Grouping(
        group=torch.where(group < 0, count, group),
        head=head,
        member=member,
        shared=shared,
        slot=slot,
        outside=none if outside is None else (outside & (group < 0)).nonzero().squeeze(1),
        leading=bool(torch.equal(head, torch.arange(count, device=head.device))),
    )


def log_masses(scores: torch.Tensor, grouping: Grouping) -> torch.Tensor:
    """Log of the sums of exp(scores) over each group: floats (n, V) to (n, K), -inf where every score is.

    Each shared group is summed relative to its own largest score, so that none underflows beside a distant one.
    """
    masses = scores[:, : grouping.count] if grouping.leading else scores.index_select(1, grouping.head)
    if not len(grouping.member):
        return masses
    heads = masses.index_select(1, grouping.shared)
    members = scores.index_select(1, grouping.member)
    slot = grouping.slot.expand(members.shape)
    top = heads.scatter_reduce(1, slot, members, "amax").clamp_min(torch.finfo(scores.dtype).min)
    total = (heads - top).exp_().scatter_add_(1, slot, members.sub_(top.gather(1, slot)).exp_())
    masses = masses.clone() if grouping.leading else masses
    return masses.index_copy_(1, grouping.shared, top.add_(total.log_()))


def scores_gradient(
    gradient: torch.Tensor, scores: torch.Tensor, masses: torch.Tensor, grouping: Grouping
) -> torch.Tensor:
    """The gradient of scores from that of the groups' log masses: each member gets its share of its group's.

    Args:
        gradient: floats (n, K + 1), in the last column 0; finite, 0 where a mass is -inf.
        scores: floats (n, V).
        masses: floats (n, K), from `log_masses`.
        grouping: the groups.

    Returns:
        Floats (n, V), 0 for tokens in no group.
    """
    if grouping.leading and not len(grouping.member):
        spread = gradient.new_zeros(scores.shape)
        spread[:, : grouping.count] = gradient[:, :-1]
        return spread
    spread = gradient.index_select(1, grouping.group)
    if not len(grouping.member):
        return spread
    sharing = torch.cat([grouping.head[grouping.shared], grouping.member])
    shared_by = torch.cat([grouping.shared, grouping.shared[grouping.slot]])
    share = scores.index_select(1, sharing) - masses.index_select(1, shared_by).clamp_min_(
        torch.finfo(scores.dtype).min
    )
    return spread.index_copy_(1, sharing, share.exp_().mul_(gradient.index_select(1, shared_by)))
