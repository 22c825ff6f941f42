"""Checks of options and shapes: each returns the value or refuses it in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch

from ..errors import OptionError


def shown(value: object) -> str:
    """What an argument is, for a sentence that refuses it: "a dict", "None", "a tensor of int64 (2, 3)"."""
    if value is None:
        return "None"
    if isinstance(value, torch.Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _number(name: str, value: object, meaning: str) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise OptionError(f"{name} must be {meaning}, but it is {shown(value)}: {value!r}")
    return float(value)


def check_positive(name: str, value: float) -> float:
    """A temperature or a like divisor: finite and above 0."""
    number = _number(name, value, "a finite number above 0")
    if not (math.isfinite(number) and number > 0):
        raise OptionError(f"{name} must be a finite number above 0, but it is {value!r}")
    return number


def check_finite(name: str, value: float) -> float:
    """A factor that may be negative."""
    number = _number(name, value, "a finite number")
    if not math.isfinite(number):
        raise OptionError(f"{name} must be a finite number, but it is {value!r}")
    return number


def check_weight(name: str, value: float) -> float:
    """A factor of a loss: finite and not negative."""
    number = _number(name, value, "a finite number of at least 0")
    if not (math.isfinite(number) and number >= 0):
        raise OptionError(f"{name} must be a finite number of at least 0, but it is {value!r}")
    return number


def check_share(name: str, value: float) -> float:
    """A number from 0 to 1."""
    number = _number(name, value, "a number between 0 and 1")
    if not 0 <= number <= 1:
        raise OptionError(f"{name} must lie between 0 and 1, but it is {value!r}")
    return number


def check_size(name: str, value: int) -> int:
    """How many of something to keep: an integer, 0 included."""
    if type(value) is not int or value < 0:
        raise OptionError(f"{name} must be an integer of at least 0, but it is {value!r}")
    return value


def check_switch(name: str, value: bool) -> bool:
    """True or False, not what Python takes for such."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, but it is {value!r}")
    return value


def check_count(name: str, value: float | torch.Tensor | None) -> None:
    """What a sum is divided by: a number of at least 0, or a tensor with one; None for the call's own."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1 or value.is_complex():
            raise OptionError(f"{name} must be one number, but it is {shown(value)}")
        if value.device.type == "cpu":
            check_weight(name, value.item())
    elif value is not None:
        check_weight(name, value)


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    """A tensor."""
    if not isinstance(tensor, torch.Tensor):
        raise OptionError(f"{name} must be a tensor, but it is {shown(tensor)}")


def check_integers(name: str, tensor: torch.Tensor) -> None:
    """A tensor of integers: ids, labels."""
    check_tensor(name, tensor)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise OptionError(f"{name} must be integers, but it is {shown(tensor)}")


def check_floats(name: str, tensor: torch.Tensor) -> None:
    """A tensor of real numbers: logits, hidden states, weights."""
    check_tensor(name, tensor)
    if not tensor.is_floating_point():
        raise OptionError(f"{name} must be floats, but it is {shown(tensor)}")


def check_top_k(top_k: int | None, name: str = "top_k") -> int | None:
    """A `top_k`: an integer of at least 1, or None for all columns."""
    if top_k is not None and check_size(name, top_k) == 0:
        raise OptionError(f"{name} must be at least 1, or None for all columns, but it is 0")
    return top_k


def check_one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """One of a few words."""
    if value not in allowed:
        raise OptionError(f"{name} must be one of {', '.join(allowed)}, but it is {value!r}")
    return value


def check_shape(name: str, tensor: Any, expected: Sequence[int], meaning: str) -> None:
    """Refuses a tensor of another shape, which broadcasting would take without a word."""
    if tuple(tensor.shape) != tuple(expected):
        raise OptionError(
            f"{name} must have shape {meaning} = {tuple(expected)}, but it has shape {tuple(tensor.shape)}"
        )


def check_batches(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> None:
    """Refuses logits that are not two batches (B, T, V) of one B."""
    if student_logits.dim() != 3 or teacher_logits.dim() != 3 or len(student_logits) != len(teacher_logits):
        raise OptionError(
            "student_logits and teacher_logits must have shapes (B, T_s, V_s) and (B, T_t, V_t), but they have "
            f"shapes {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )


IMPLEMENTATIONS = ("auto", "reference", "cpu", "triton")
"""The ways in which outcomes are compared: what suits the device, plain autograd, in place, or by kernels."""


def check_rows(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> None:
    """Refuses logits that are not two matrices of N rows."""
    if student_logits.dim() != 2 or teacher_logits.dim() != 2 or len(student_logits) != len(teacher_logits):
        raise OptionError(
            "student_logits and teacher_logits must have shapes (N, V_s) and (N, V_t), but they have shapes "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )


def check_width(name: str, values: torch.Tensor, logits: torch.Tensor, meaning: str) -> None:
    """Refuses an array over a vocabulary of another width than the logits'."""
    if tuple(values.shape) != (logits.shape[-1],):
        raise OptionError(
            f"{name} must have shape {meaning} = ({logits.shape[-1]},), the width of the logits, but it has shape "
            f"{tuple(values.shape)}"
        )


def check_links(rows: torch.Tensor, columns: torch.Tensor, weights: torch.Tensor, shape: tuple[int, int]) -> None:
    """Refuses links that do not fit each other or the vocabularies."""
    check_shape("columns", columns, rows.shape, "that of rows")
    check_shape("weights", weights, rows.shape, "that of rows")
    if torch.compiler.is_compiling():
        # While a graph is made there are no ids to look at.
        return
    for name, ids, width in (("rows", rows, shape[0]), ("columns", columns, shape[1])):
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < width:
            raise OptionError(
                f"{name} must lie between 0 and {width - 1}, one less than the width of the logits, but they run from "
                f"{int(ids.min())} to {int(ids.max())}"
            )


def check_pairs(pairs: torch.Tensor, *live: torch.Tensor) -> None:
    """Refuses pairs that are not one to one, or of tokens that are none."""
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        raise OptionError(f"pairs must have shape (M, 2), but they have shape {tuple(pairs.shape)}")
    if torch.compiler.is_compiling():
        return
    for column, (name, mask) in enumerate(zip(("student", "teacher"), live, strict=True)):
        ids = pairs[:, column].long()
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(mask):
            raise OptionError(
                f"the {name} ids of pairs must lie between 0 and {len(mask) - 1}, but they run from {int(ids.min())} "
                f"to {int(ids.max())}"
            )
        if len(torch.unique(ids)) != len(ids):
            raise OptionError(f"a {name} id stands in several pairs; pairs must be one to one")
        if not bool(mask[ids].all()):
            raise OptionError(f"a {name} id of the pairs has no probability according to the mask of live tokens")
