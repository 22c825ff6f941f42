"""Sets of token ids as arrays."""

from __future__ import annotations

import torch


def other_ids(ids: torch.Tensor, width: int) -> torch.Tensor:
    """The ids below `width` that are not in `ids`, int64, ascending.

    Example:
        >>> import torch
        >>> other_ids(torch.tensor([3, 0]), 5).tolist()
        [1, 2, 4]
    """
    rest = torch.ones(width, dtype=torch.bool, device=ids.device)
    rest[ids.long()] = False
    return rest.nonzero().squeeze(1)
