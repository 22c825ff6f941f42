"""What a loss was asked for, and the checks of options: each returns the value or refuses it in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import OptionError


def positive(name: str, value: float) -> float:
    """A temperature or a like divisor: finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise OptionError(f"{name} must be a finite number above 0, but it is {value!r}")
    return float(value)


def weight(name: str, value: float) -> float:
    """A factor of a loss: finite and not negative."""
    if not (math.isfinite(value) and value >= 0):
        raise OptionError(f"{name} must be a finite number of at least 0, but it is {value!r}")
    return float(value)


def share(name: str, value: float) -> float:
    """A number from 0 to 1."""
    if not 0 <= value <= 1:
        raise OptionError(f"{name} must lie between 0 and 1, but it is {value!r}")
    return float(value)


def size(name: str, value: int) -> int:
    """How many of something to keep: an integer, 0 included."""
    if type(value) is not int or value < 0:
        raise OptionError(f"{name} must be an integer of at least 0, but it is {value!r}")
    return value


def columns_kept(top_k: int | None) -> int | None:
    """A `top_k`: an integer of at least 1, or None for all columns."""
    if top_k is not None and size("top_k", top_k) == 0:
        raise OptionError("top_k must be at least 1, or None for all columns, but it is 0")
    return top_k


def one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """One of a few words."""
    if value not in allowed:
        raise OptionError(f"{name} must be one of {', '.join(allowed)}, but it is {value!r}")
    return value


def same_shape(name: str, tensor: torch.Tensor, expected: Sequence[int], meaning: str) -> None:
    """Refuses a tensor of another shape, which broadcasting would take without a word."""
    if tuple(tensor.shape) != tuple(expected):
        raise OptionError(
            f"{name} must have shape {meaning} = {tuple(expected)}, but it has shape {tuple(tensor.shape)}"
        )


def batch_of_logits(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> None:
    """Refuses logits that are not two batches (B, T, V) of one B."""
    if student_logits.dim() != 3 or teacher_logits.dim() != 3 or len(student_logits) != len(teacher_logits):
        raise OptionError(
            "student_logits and teacher_logits must have shapes (B, T_s, V_s) and (B, T_t, V_t), but they have "
            f"shapes {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )


KINDS = ("auto", "p-kl", "h-kl", "partition-kl", "c-kl", "gold", "uld", "alm")
PEERS = {"nemo-rl": ("p-kl", "h-kl", "gold"), "trl": ("uld", "gold"), "tokenkit": ("alm",)}
"""The peers whose numbers can be reproduced, and the kinds of loss that each has."""

_READ_BY = {
    "top_k": ("p-kl",),
    "unreached": ("p-kl",),
    "normalize": ("h-kl", "gold"),
    "threshold": ("h-kl",),
    "uncommon_top_k": ("h-kl", "gold"),
}
"""The options that some kinds alone have a use for."""


@dataclass(frozen=True)
class LossOptions:
    """What `XTokenLoss` was asked for; see there."""

    kind: str
    temperature: float = 1.0
    merge: str = "first"
    kd_weight: float = 1.0
    ce_weight: float = 1.0
    scale: str = "fixed"
    top_k: int | None = None
    unreached: str = "reroute"
    normalize: str = "rest"
    threshold: float = 0.6
    uncommon_top_k: int = 8192
    learn_w: bool = False
    compat: str | None = None

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        positive("temperature", self.temperature)
        one_of("merge", self.merge, ("first", "mean"))
        weight("kd_weight", self.kd_weight)
        weight("ce_weight", self.ce_weight)
        one_of("scale", self.scale, ("fixed", "dynamic"))
        one_of("unreached", self.unreached, ("reroute", "drop"))
        one_of("normalize", self.normalize, ("rest", "none"))
        share("threshold", self.threshold)
        size("uncommon_top_k", self.uncommon_top_k)
        columns_kept(self.top_k)
        if self.compat is not None:
            one_of("compat", self.compat, tuple(PEERS))

    def check_together(self) -> None:
        """Refuses options that the kind has no use for, once `auto` is decided.

        Raises:
            OptionError: for an option that would be ignored or has no meaning.
        """
        if self.compat is not None and self.kind not in PEERS[self.compat]:
            theirs = " or ".join(PEERS[self.compat])
            raise OptionError(f"compat={self.compat!r} needs kind {theirs}, but the kind is {self.kind!r}")
        if self.merge == "mean" and self.kind in ("c-kl", "alm") and self.compat is None:
            raise OptionError(
                f"{self.kind} reads every position of a chunk by itself, so merge must be 'first', but it is 'mean'"
            )
        for name, kinds in _READ_BY.items():
            if self.kind not in kinds and getattr(self, name) != getattr(LossOptions, name):
                raise OptionError(
                    f"{name} belongs to {' and '.join(kinds)}, but the kind is {self.kind!r}; leave it out"
                )
        if self.learn_w and (self.kind != "p-kl" or self.merge != "mean" or self.compat is not None):
            raise OptionError(
                "learn_w needs kind='p-kl' with merge='mean', since no other loss reads W's weights, but the kind is "
                f"{self.kind!r} and merge {self.merge!r}"
            )
