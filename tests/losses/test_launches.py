"""How much a loss by the kernels asks of a device: launches and copies, counted without one by what the host calls."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

pytest.importorskip("triton", minversion="3.3")

from loss_calls import case_of, name_of, possible_labels

from xtoken_align.losses import XTokenLoss, partition_kl

pytestmark = [
    pytest.mark.skipif(not os.environ.get("TRITON_INTERPRET"), reason="on a GPU the profiler counts them"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

VIEWS = {
    "view",
    "select",
    "slice",
    "unbind",
    "detach",
    "expand",
    "squeeze",
    "unsqueeze",
    "alias",
    "_unsafe_view",
    "lift_fresh",
}
MEMORY = {"empty", "new_empty", "empty_like", "empty_strided"}
"""What starts nothing on a device: other looks at the same numbers, and memory that is handed out."""


class Operations(TorchDispatchMode):
    """Counts torch's operations by name."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for each."""
        name = func._schema.name.partition("::")[2]
        if name not in VIEWS | MEMORY:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Kernels, copies from the host and torch's operations, by name."""
    counts: Counter[str] = Counter()
    executor = importlib.import_module("triton.runtime.interpreter").GridExecutor
    executes, from_numpy = executor.__call__, torch.from_numpy

    def execute(self: Any, *args: Any, **options: Any) -> Any:
        counts[self.fn.__name__] += 1
        # What the interpreter does in the kernel's place is not the host's.
        with _disable_current_modes():
            return executes(self, *args, **options)

    def copy(array: np.ndarray[Any, Any]) -> torch.Tensor:
        counts["copy to the device"] += 1
        return from_numpy(array)

    with monkeypatch.context() as patch, Operations(counts):
        patch.setattr(executor, "__call__", execute)
        patch.setattr(torch, "from_numpy", copy)
        yield counts


def launches_of(work: Callable[[], torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Those of a forward and backward; the first call tries the kernels and makes what is kept."""
    work().backward()
    with counted(monkeypatch) as counts:
        work().backward()
    # Reading a number that is on a device waits for it. The processor's way reads the gradient of the loss, to see if
    # it is 1; on a GPU a kernel does, which multiplies by it.
    assert counts["_local_scalar_dense"] == 1, counts
    assert not counts["nonzero"], counts
    counts["multiplied"] += counts.pop("_local_scalar_dense")
    return counts


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "partition-kl"},
        {"kind": "p-kl"},
        {"kind": "strict"},
        {"kind": "partition-kl", "divergence": "reverse", "temperature": 2.0},
        {"kind": "partition-kl", "divergence": "jsd"},
        {"kind": "p-kl", "top_k": 2},
        {"kind": "c-kl"},
    ],
    ids=name_of,
)
def test_a_loss_takes_few_launches(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # Two copies, zeros, five kernels, the gradient of the loss, and what multiplies the gradient by it.
    most = 10 + ("top_k" in options) + 2 * ("divergence" in options and options["divergence"] == "jsd")
    if options["kind"] == "c-kl":
        # Two kernels for rows that leave something out, and for levels a copy and four kernels.
        most += 7
    case = case_of(3, dtype=torch.float32)
    loss = XTokenLoss(case.mapping, implementation="triton", **options)
    logits, labels = case.student_logits.clone().requires_grad_(), possible_labels(case)
    # Logits come from a model, so that their gradient is handed on and not added to another.
    counts = launches_of(
        lambda: loss(logits.view_as(logits), case.teacher_logits, case.spans, labels=labels).loss, monkeypatch
    )
    del counts["add_"]
    assert counts.total() <= most, counts


def test_a_function_takes_few_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    bins = torch.tensor([0, 1, 1, 2, -1, 3, 0]), torch.tensor([2, 0, 1, 1, -1, 3])
    student, teacher = torch.randn(4, 7, requires_grad=True), torch.randn(4, 6)
    # On a GPU the tables of bins that do not change are kept.
    monkeypatch.setattr("xtoken_align.losses.functional._REMEMBERS", ("cpu",))
    work = lambda: partition_kl(student.view_as(student), teacher, *bins, implementation="triton")  # noqa: E731
    counts = launches_of(work, monkeypatch)
    del counts["add_"]
    assert counts.total() <= 10, counts
