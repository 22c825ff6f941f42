"""What a pass over a batch gives, what its numbers are multiplied by, and what they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from .inputs import compute_dtype
from .lines import sent


@dataclass(eq=False)
class Result:
    """What a pass over the blocks gave; numbers per chunk are floats (N,).

    Attributes:
        value: each chunk's divergence.
        agrees: 1 where both sides' likeliest outcome is one.
        dropped: the teacher's mass that was not compared.
        empty: the student's mass on tokens without a counterpart.
        compared: 1 where there was a common space.
        plausible: the teacher's mass on the text's outcome over that on its likeliest, where that is asked.
        cross_entropy: scalar, summed over the labels.
        gradients: of the logits or hidden states, the head, its bias and the links' log weights; None where not wanted.
        totals: what all of this adds up to, where the kernels made it.
    """

    value: torch.Tensor
    agrees: torch.Tensor
    dropped: torch.Tensor
    empty: torch.Tensor
    compared: torch.Tensor
    plausible: torch.Tensor
    cross_entropy: torch.Tensor
    gradients: list[torch.Tensor | None]
    totals: Totals | None = None


@dataclass(frozen=True, eq=False)
class Weights:
    """What the numbers of a batch are multiplied by, on its device.

    Attributes:
        chunk: floats (N,), each chunk's weight.
        factors: floats (4,): of the chunks' weighted values in the loss, of the labels' cross-entropies there, and of
            both in the means that are reported.
        labels: whether there are labels.
    """

    chunk: torch.Tensor
    factors: torch.Tensor
    labels: bool = False

    @cached_property
    def of_values(self) -> torch.Tensor:
        """Floats (N,), what each chunk's value is multiplied by in the loss."""
        return self.chunk * self.factors[0]


Number = float | torch.Tensor


def weights_of(
    chunk: NDArray[np.float32],
    factors: Sequence[Number],
    constants: Sequence[Number],
    like: torch.Tensor,
    *,
    labels: bool = True,
) -> tuple[Weights, torch.Tensor]:
    """The weights and some further numbers, sent to a device in one copy as far as they are on the host.

    Args:
        chunk: float32 (N,).
        factors: four.
        constants: the further numbers.
        like: says on which device, and in which dtype what is made of it is computed.
        labels: whether there are labels.
    """
    dtype, device = compute_dtype(like), like.device
    values = [*factors, *constants]
    if any(isinstance(one, torch.Tensor) and one.device.type != "cpu" for one in values):
        there = [torch.as_tensor(one).to(device, dtype, non_blocking=True) for one in values]
        own, heads = torch.from_numpy(chunk).to(device, dtype, non_blocking=True), torch.stack(there)
        return Weights(own, heads[: len(factors)], labels), heads[len(factors) :]
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    parts = [np.array([float(one) for one in part], dtype=kind) for part in (factors, constants)]
    made = sent([*parts, chunk.astype(kind)], device)
    return Weights(made[2], made[0], labels), made[1]


@dataclass(frozen=True, eq=False)
class Totals:
    """Sums over a pass's chunks, weighted, and over its labels: scalars in the order of the kernel that makes them.

    Attributes:
        loss: both, times their factors.
        kd: of the values.
        ce: of the labels' cross-entropies.
        kd_mean: the first times the third factor.
        ce_mean: the second times the fourth.
        used: of the weights.
        agrees: of `Result.agrees`; and so on.
        dropped: see there.
        empty: see there.
        compared: see there.
        chunks_used: how many chunks with a weight were compared.
    """

    loss: torch.Tensor
    kd: torch.Tensor
    ce: torch.Tensor
    kd_mean: torch.Tensor
    ce_mean: torch.Tensor
    used: torch.Tensor
    agrees: torch.Tensor
    dropped: torch.Tensor
    empty: torch.Tensor
    compared: torch.Tensor
    chunks_used: torch.Tensor


def totals_of(result: Result, weights: Weights) -> Totals:
    """What a pass's numbers add up to, by plain operations."""
    chunk, factors = weights.chunk, weights.factors
    kd, ce = (result.value * chunk).sum(), result.cross_entropy
    parts = torch.stack([result.agrees, result.dropped, result.empty, result.compared])
    loss, used = kd * factors[0] + ce * factors[1], chunk.sum()
    counted = (result.compared * (chunk > 0)).sum()
    agrees, dropped, empty, compared = (parts * chunk).sum(dim=1)
    return Totals(
        loss, kd, ce, kd * factors[2], ce * factors[3], used, agrees, dropped, empty, compared, chunks_used=counted
    )
