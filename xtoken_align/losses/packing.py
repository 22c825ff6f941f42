"""Frozen dataclasses as a list of tensors and a string, which are arguments that an operator can take."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any

import torch

Classes = Sequence[tuple[type, tuple[str, ...]]]
"""Dataclasses with the names of their fields."""


def field_names(*classes: type) -> Classes:
    """Classes that can be packed. The names are looked up here: not every `torch.compile` can follow that."""
    return tuple((one, tuple(entry.name for entry in fields(one))) for one in classes)


def pack(value: Any, classes: Classes) -> tuple[list[torch.Tensor], str]:
    """The tensors in a dataclass, and all else as text.

    Example:
        >>> from xtoken_align.losses.merging import Owners
        >>> classes = field_names(Owners)
        >>> tensors, text = pack(Owners(torch.tensor([0, 0]), torch.tensor([2])), classes)
        >>> unpack(tensors, text, classes).size
        tensor([2])
    """
    tensors: list[torch.Tensor] = []
    return tensors, _written(value, tensors, classes)


def unpack(tensors: Sequence[torch.Tensor], text: str, classes: Classes) -> Any:
    """What was packed; `classes` are the dataclasses that may occur."""
    return _rebuilt(_parsed(text), tensors, {one.__name__: one for one, _ in classes})


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    return ast.literal_eval(text)


def _written(value: Any, tensors: list[torch.Tensor], classes: Classes) -> str:
    """A Python literal, put together in a way that `torch.compile` can follow."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return f"{{'tensor': {len(tensors) - 1}}}"
    if value is None or isinstance(value, str | int):
        return f"{{'value': {value!r}}}"
    if isinstance(value, tuple):
        return f"{{'tuple': [{', '.join([_written(part, tensors, classes) for part in value])}]}}"
    for one, names in classes:
        if isinstance(value, one):
            parts = [f"'{name}': {_written(getattr(value, name), tensors, classes)}" for name in names]
            return f"{{'class': '{one.__name__}', 'fields': {{{', '.join(parts)}}}}}"
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
