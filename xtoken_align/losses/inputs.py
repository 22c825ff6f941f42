"""What a loss takes: logits, hidden states with a head, or a teacher's best tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import OptionError


@dataclass(frozen=True, eq=False)
class Logits:
    """Logits of a batch; a bare tensor means the same.

    Attributes:
        logits: floats (B, T, V).
    """

    logits: torch.Tensor

    def __post_init__(self) -> None:
        _three_dimensional("logits", self.logits, "(B, T, V)")


@dataclass(frozen=True, eq=False)
class Hidden:
    """The last hidden states with the head that makes logits of them: z = cap * tanh(scale * (h W^T + b) / cap).

    From these the loss is *fused*: logits exist for a block of rows at a time.

    Attributes:
        states: floats (B, T, D), what the model hands to its head.
        weight: floats (V, D), the head's matrix; frozen where it needs no gradient.
        bias: floats (V,), or None.
        scale: what the model multiplies its logits by (Cohere's `logit_scale`).
        softcap: the bound of the logits (Gemma's `final_logit_softcapping`), or None.
    """

    states: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        _three_dimensional("states", self.states, "(B, T, D)")
        if self.weight.dim() != 2 or self.weight.shape[1] != self.states.shape[-1]:
            raise OptionError(
                f"the head's weight must have shape (V, D) with D = {self.states.shape[-1]}, that of the hidden "
                f"states, but it has shape {tuple(self.weight.shape)}"
            )
        if self.bias is not None and tuple(self.bias.shape) != (len(self.weight),):
            raise OptionError(
                f"the head's bias must have shape (V,) = ({len(self.weight)},), but it has shape "
                f"{tuple(self.bias.shape)}"
            )
        if self.softcap is not None and not self.softcap > 0:
            raise OptionError(f"softcap must be above 0 or None, but it is {self.softcap!r}")


@dataclass(frozen=True, eq=False)
class TopK:
    """A teacher's best tokens per position, as caches and servers keep them.

    Attributes:
        ids: integers (B, T, K), token ids, no id twice at a position; -1 at unused places.
        log_probs: floats (B, T, K), their log-probabilities in the whole vocabulary; -inf at unused places.
        rest: floats (B, T), the probability of all other tokens together, 0 to 1.
        width: the teacher's logit width V_t.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor
    rest: torch.Tensor
    width: int

    def __post_init__(self) -> None:
        _three_dimensional("ids", self.ids, "(B, T, K)")
        if self.log_probs.shape != self.ids.shape or self.rest.shape != self.ids.shape[:2]:
            raise OptionError(
                f"log_probs must have the shape of ids (B, T, K) = {tuple(self.ids.shape)} and rest (B, T), but they "
                f"have shapes {tuple(self.log_probs.shape)} and {tuple(self.rest.shape)}"
            )


Student = torch.Tensor | Logits | Hidden
"""What a student may hand in."""

Teacher = torch.Tensor | Logits | Hidden | TopK
"""What a teacher may hand in."""


def check_positions(name: str, side: Student | Teacher, expected: Sequence[int]) -> None:
    """Refuses a side of another batch size or length than the spans': its rows would be read at wrong places.

    Args:
        name: of the side.
        side: what it hands in; tensors without three dimensions are left to other checks.
        expected: B and T of the spans.

    Raises:
        OptionError: the positions are others.
    """
    tensor = side
    if isinstance(side, Hidden):
        tensor = side.states
    elif isinstance(side, Logits):
        tensor = side.logits
    elif isinstance(side, TopK):
        tensor = side.ids
    assert isinstance(tensor, torch.Tensor)
    found = tuple(tensor.shape[:2])
    if tensor.dim() == 3 and found != tuple(expected):
        raise OptionError(
            f"{name} must have the spans' positions (B, T) = {tuple(expected)}, but has {found}; give every position "
            "of the sequences that were aligned, padding included"
        )


def _three_dimensional(name: str, tensor: torch.Tensor, meaning: str) -> None:
    if tensor.dim() != 3:
        raise OptionError(f"{name} must have shape {meaning}, but it has shape {tuple(tensor.shape)}")
