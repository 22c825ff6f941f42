"""Dynamic scaling of the distillation loss to the cross-entropy, from running averages."""

from __future__ import annotations

import torch

LOWEST, HIGHEST = 0.1, 10.0
"""The factor stays between these: else a distillation loss near 0 is blown up until nothing but its noise counts."""
MOMENTUM = 0.9
"""What a running average keeps of itself at each optimiser step."""


class DynamicScale(torch.nn.Module):
    """The factor sg(CE / KD) of running averages, updated once per optimiser step.

    CE and KD are sums over all that was seen since the last step, on all ranks, divided by their counts; the averages
    of these decay by 0.9 a step. The factor is clipped to [0.1, 10] and is 1 until the first step. All of it is saved
    in the state.

    Source: X-Token (arXiv:2605.21699, 2026), whose form takes each batch by itself; see `peers.nemo_rl.total`.
    """

    sums: torch.Tensor
    averages: torch.Tensor
    factor: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        # KD and its count, CE and its count.
        self.register_buffer("sums", torch.zeros(4, dtype=torch.float64))
        # Of KD and CE, and how much of an average that began at 0 has been filled.
        self.register_buffer("averages", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("factor", torch.ones((), dtype=torch.float64))

    def add(self, kd: tuple[torch.Tensor, torch.Tensor], ce: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Adds a call's sums and counts."""
        self.sums += torch.stack([part.to(self.sums) for part in (*kd, *ce)])

    @torch.no_grad()
    def step(self) -> None:
        """Takes what was added since the last step into the averages; on several ranks all must call it."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.sums)
        kd, chunks, ce, labels = self.sums
        seen = (chunks > 0) & (labels > 0)
        fresh = torch.stack([kd / chunks.clamp_min(1), ce / labels.clamp_min(1), torch.ones_like(kd)])
        self.averages.copy_(torch.where(seen, MOMENTUM * self.averages + (1 - MOMENTUM) * fresh, self.averages))
        average_kd, average_ce, filled = self.averages
        ready = (filled > 0) & (average_kd > 0)
        ratio = (average_ce / torch.where(ready, average_kd, 1.0)).clamp(LOWEST, HIGHEST)
        self.factor.copy_(torch.where(ready, ratio, self.factor))
        self.sums.zero_()
