"""Frozen dataclasses as a list of tensors and a string, which are arguments that an operator can take."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

import torch


def pack(value: Any) -> tuple[list[torch.Tensor], str]:
    """The tensors in a dataclass, and all else as text.

    Example:
        >>> from xtoken_align.losses.merging import Owners
        >>> tensors, text = pack(Owners(torch.tensor([0, 0]), torch.tensor([2])))
        >>> unpack(tensors, text, (Owners,)).size
        tensor([2])
    """
    tensors: list[torch.Tensor] = []
    return tensors, _written(value, tensors)


def unpack(tensors: Sequence[torch.Tensor], text: str, classes: Sequence[type]) -> Any:
    """What was packed; `classes` are the dataclasses that may occur."""
    return _rebuilt(_parsed(text), tensors, {one.__name__: one for one in classes})


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    return ast.literal_eval(text)


def _written(value: Any, tensors: list[torch.Tensor]) -> str:
    """A Python literal, put together in a way that `torch.compile` can follow."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return f"{{'tensor': {len(tensors) - 1}}}"
    if is_dataclass(value) and not isinstance(value, type):
        parts = [f"'{entry.name}': {_written(getattr(value, entry.name), tensors)}" for entry in fields(value)]
        return f"{{'class': '{type(value).__name__}', 'fields': {{{', '.join(parts)}}}}}"
    if isinstance(value, tuple):
        return f"{{'tuple': [{', '.join([_written(part, tensors) for part in value])}]}}"
    if isinstance(value, str | int | None):
        return f"{{'value': {value!r}}}"
    # numpy's floats are written in another way, which is no literal.
    return f"{{'value': {float(value)!r}}}"


def _rebuilt(shape: Any, tensors: Sequence[torch.Tensor], classes: dict[str, type]) -> Any:
    if "tensor" in shape:
        return tensors[shape["tensor"]]
    if "class" in shape:
        parts = {name: _rebuilt(part, tensors, classes) for name, part in shape["fields"].items()}
        return classes[shape["class"]](**parts)
    if "tuple" in shape:
        return tuple(_rebuilt(part, tensors, classes) for part in shape["tuple"])
    return shape["value"]
