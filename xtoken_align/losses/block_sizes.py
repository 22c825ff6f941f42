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
        part: chunks of a block that are compared at a time where that takes memory.
        levels: whole rows that are copied at a time for C-KL's sums over "everything else".
    """

    logits: int
    hidden: int
    rows: int
    part: int
    levels: int


WIDTH = 1 << 17
"""The width of the rows that the sizes below are for; of narrower ones proportionally more are taken."""
MOST = 64
"""But no more times as many: a GPU's grid has at most 65,535 rows."""
CPU = BlockSizes(logits=16, hidden=128, rows=8, part=8, levels=16)
"""What is made for a few rows stays in the processor's cache. With fewer rows of hidden states the head's products are
slow; more take memory and no less time."""
ACCELERATOR = BlockSizes(logits=512, hidden=256, rows=512, part=512, levels=512)
"""Every operation has to keep a whole device busy for longer than it takes to start the next one."""


def block_sizes(device: torch.device, *widths: int) -> BlockSizes:
    """The sizes on a device for rows of these widths: those of both sides' logits, and of hidden states."""
    sizes = CPU if device.type == "cpu" else ACCELERATOR
    factor = min(max(WIDTH // max(1, *widths), 1), MOST)
    return BlockSizes(
        logits=factor * sizes.logits,
        hidden=factor * sizes.hidden,
        rows=factor * sizes.rows,
        part=factor * sizes.part,
        levels=factor * sizes.levels,
    )
