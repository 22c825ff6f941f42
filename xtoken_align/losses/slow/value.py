"""What a family gives for a chunk."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .numbers import zero


@dataclass(frozen=True, eq=False)
class Value:
    """A chunk's value.

    Attributes:
        kd: float64 scalar with the student's graph, where anything was compared.
        misfit: whether the chunk cannot be compared; then `kd` is 0.
        kept: the share of the teacher's probability that has a place in the common space, before the temperature.
    """

    kd: Tensor = field(default_factory=zero)
    misfit: bool = False
    kept: float = 1.0


def positions(side: list[int], merge: str) -> list[int]:
    """The positions of a chunk that are read: its first one, or all that are averaged."""
    return side if merge == "mean" else side[:1]
