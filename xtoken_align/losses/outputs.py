"""What a loss returns: the value to differentiate, its parts, and what it could not compare."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

Metric = tuple[torch.Tensor, torch.Tensor]
"""Numerator and denominator, detached scalars: add both over steps and ranks, then divide."""


@dataclass(frozen=True, eq=False)
class LossOutput:
    """A loss and its parts.

    Attributes:
        loss: scalar with the student's graph, kd_weight * scale * kd + ce_weight * ce.
        kd: scalar, the distillation loss, detached.
        ce: scalar, the cross-entropy, detached; 0 where it is not computed.
        metrics: detached (numerator, denominator) pairs, by name: `kd`, `ce`, `scale`, `agreement` (the two sides' top
            choices in the common space are one), `chunks_used` (of all chunks with a weight), `misfits`,
            `dropped_mass` (the teacher's mass that was not compared), `empty_mass` (the student's mass on tokens
            without a counterpart). With several teachers the names carry the teacher's number: `agreement/0`.
    """

    loss: torch.Tensor
    kd: torch.Tensor
    ce: torch.Tensor
    metrics: dict[str, Metric] = field(default_factory=dict)
