"""Sorted distances in both precisions are what two plain sorts give, ties and zeros included."""

from __future__ import annotations

import pytest
import torch

from xtoken_align.losses.divergence import masked_sorted_distance, sorted_distance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("limit", [None, 0, 1, 7, 8192])
@pytest.mark.parametrize(("ours", "theirs"), [(40, 30), (30, 40), (1, 1), (0, 5), (5, 0), (2000, 3000)])
def test_the_distance_is_that_of_two_sorts(ours: int, theirs: int, limit: int | None, dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(ours)
    sides = [torch.rand(3, width, generator=source).to(dtype) for width in (ours, theirs)]
    for side in sides:
        side[1] = (side[1] * 4).round() / 4
        side[2, ::2] = 0.0
    before = [side.clone() for side in sides]
    sides[0].requires_grad_()
    distance = sorted_distance(*sides, limit)
    (slope,) = torch.autograd.grad(distance.sum(), sides[0], materialize_grads=True, allow_unused=True)
    sides[0] = sides[0].detach()
    masks = torch.ones(ours, dtype=torch.bool), torch.ones(theirs, dtype=torch.bool)
    torch.testing.assert_close(masked_sorted_distance(*sides, masks, limit), distance.detach())
    width = max(ours, theirs)
    shared = width if limit is None else min(ours, theirs, limit)
    padded = [
        torch.nn.functional.pad(side.sort(dim=1, descending=True).values, (0, width - side.shape[1])) for side in sides
    ]
    difference = (padded[0] - padded[1])[:, :shared]
    torch.testing.assert_close(distance.detach(), difference.abs().sum(dim=1))
    # Tokens of equal probability have a slope between them, whichever of them stands first.
    assert slope.shape == sides[0].shape
    for row in range(3 if ours < 100 else 0):
        ranked = sides[0][row].sort(descending=True).values
        for value in ranked.unique().tolist():
            at_ranks = [rank for rank, one in enumerate(ranked.tolist()) if one == value and rank < shared]
            signs = difference[row, at_ranks].sign().sum() if at_ranks else torch.zeros(())
            assert slope[row][sides[0][row] == value].sum() == signs
    assert all(torch.equal(side, kept) for side, kept in zip(sides, before, strict=True))
