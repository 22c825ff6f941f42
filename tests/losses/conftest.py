"""The losses' tests work on tensors so small that a second thread only gets in the way."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from xtoken_align.losses import triton


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter prepares the language anew for each function that a kernel calls, which takes half of the
    time and changes nothing.
    """
    kernels = triton.loaded()
    # Interpreters before Triton 3.9 prepare it for one function alone.
    old = tuple(map(int, importlib.import_module("triton").__version__.split(".")[:2])) < (3, 9) if kernels else True
    if torch.cuda.is_available() or kernels is None or old:
        return
    function = importlib.import_module("triton.runtime.interpreter").InterpretedFunction
    prepares = function.__call__

    def call(self: Any, *args: Any, **options: Any) -> Any:
        own = self.fn.__module__.startswith((kernels.__name__, "triton.language"))
        return self.rewrite()(*args, **options) if own else prepares(self, *args, **options)

    monkeypatch.setattr(function, "__call__", call)
