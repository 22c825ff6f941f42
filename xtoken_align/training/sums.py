"""Sums of metrics over batches, steps and processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ..losses import Metric


class MetricSums:
    """Numerators and denominators, added up where they are, so that no batch waits for the processor."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, metrics: Mapping[str, Metric]) -> None:
        """Adds those of a batch."""
        for name, (numerator, denominator) in metrics.items():
            # Counts of a long stretch pass what float32 holds exactly; Apple's devices have no more.
            dtype = torch.float32 if numerator.device.type == "mps" else torch.float64
            pair = torch.stack([numerator.detach().to(dtype), denominator.detach().to(dtype)])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def take(self, reduce: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums) -> dict[str, float]:
        """The quotients by name, and starts anew.

        Args:
            reduce: adds a tensor up over all processes; every one of them has to call this.

        Returns:
            Those whose denominator is not 0.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        sums = reduce(torch.stack([self._sums[name] for name in names])).tolist()
        self._sums = {}
        return {
            name: numerator / denominator
            for name, (numerator, denominator) in zip(names, sums, strict=True)
            if denominator
        }
