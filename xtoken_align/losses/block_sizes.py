"""How many rows are worked on at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BlockSizes:
    """Rows taken at a time; results do not depend on them.

    Attributes:
        logits: of a block of logits.
        hidden: of a block of hidden states, for which a head makes logits.
        rows: of a block where plain functions compare row with row.
        part: chunks of a block that are compared at a time.
        levels: whole rows that are copied at a time for C-KL's sums over "everything else".
    """

    logits: int
    hidden: int
    rows: int
    part: int
    levels: int


CPU = BlockSizes(logits=16, hidden=128, rows=8, part=8, levels=16)
"""What is made for a few rows stays in the processor's cache. With fewer rows of hidden states the head's products are
slow; more take memory and no less time."""
ACCELERATOR = BlockSizes(logits=512, hidden=256, rows=512, part=512, levels=512)
"""Every operation has to keep a whole device busy for longer than it takes to start the next one."""


def block_sizes(device: torch.device) -> BlockSizes:
    """The sizes for tensors on a device."""
    return CPU if device.type == "cpu" else ACCELERATOR
