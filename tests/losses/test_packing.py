"""What an operator gets as tensors and text comes back as it was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from xtoken_align.losses.packing import field_names, pack, unpack


@dataclass(frozen=True, eq=False)
class _Inner:
    values: torch.Tensor
    limit: int | None


@dataclass(frozen=True, eq=False)
class _Outer:
    inner: _Inner | None
    parts: tuple[_Inner, ...]
    name: str
    scale: float
    flag: bool
    again: torch.Tensor


CLASSES = field_names(_Inner, _Outer)


def test_nested_values_come_back() -> None:
    one, two = torch.arange(3), torch.ones(2)
    parts = (_Inner(two, 7), _Inner(one, -1))
    given = _Outer(_Inner(one, None), parts, 'it\'s {odd} "text"\n', 0.1, flag=True, again=two)
    tensors, text = pack(given, CLASSES)
    assert [id(tensor) for tensor in tensors] == [id(one), id(two), id(one), id(two)]
    made = unpack(tensors, text, CLASSES)
    assert made.inner.values is one
    assert made.inner.limit is None
    assert [part.limit for part in made.parts] == [7, -1]
    assert made.parts[1].values is one
    assert (made.name, made.scale, made.flag) == (given.name, 0.1, True)
    assert made.again is two
    assert pack(made, CLASSES)[1] == text


def test_nothing_and_numpys_numbers_come_back() -> None:
    # A model's configuration may hold numpy's numbers, whose text is no literal of Python.
    for scale in (np.float32(0.5), np.float64(0.5), 0.5):
        given = _Outer(None, (), "", scale, flag=False, again=torch.ones(1))
        made = unpack(*pack(given, CLASSES), CLASSES)
        assert made.inner is None
        assert made.parts == ()
        assert made.scale == 0.5
        assert made.flag is False


def test_the_text_says_nothing_of_the_tensors() -> None:
    # It decides which graph is used: other tensors must not make another.
    texts = {pack(_Inner(torch.randn(size), 3), CLASSES)[1] for size in (1, 5)}
    assert len(texts) == 1
