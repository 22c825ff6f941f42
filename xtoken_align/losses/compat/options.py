"""Checks of the options that the compatibility forms share: each returns the value or refuses it in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...errors import OptionError


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
