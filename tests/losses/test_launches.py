"""How much a loss by the kernels asks of a device: launches and copies, counted without one by what the host calls."""

from __future__ import annotations

import gc
import importlib
import os
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton", minversion="3.3")

from loss_calls import case_of, name_of, possible_labels
from tiny import Tiny

from xtoken_align.losses import Hidden, XTokenLoss, blocks, lines, partition_kl, plan
from xtoken_align.losses import loss as loss_module

pytestmark = [
    pytest.mark.skipif(not os.environ.get("TRITON_INTERPRET"), reason="on a GPU the profiler counts them"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.usefixtures("quick_interpreter"),
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


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts kernels by name; what the interpreter does in their place, and leaves behind, is not the host's."""
    launched: Counter[str] = Counter()
    executor = importlib.import_module("triton.runtime.interpreter").GridExecutor
    executes = executor.__call__

    def execute(self: Any, *args: Any, **options: Any) -> Any:
        launched[self.fn.__name__] += 1
        with _disable_current_modes():
            executes(self, *args, **options)
        gc.collect()

    monkeypatch.setattr(executor, "__call__", execute)
    # What was there before need not be looked through each time.
    gc.freeze()
    yield launched
    gc.unfreeze()


def launches_of(
    work: Callable[[], torch.Tensor], kernels: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> Counter[str]:
    """Kernels, copies from the host and torch's operations of a forward and backward, by name.

    The call before tries the kernels and makes what is kept.
    """
    counts: Counter[str] = Counter()
    from_numpy = torch.from_numpy

    def copy(array: np.ndarray[Any, Any]) -> torch.Tensor:
        counts["copy to the device"] += 1
        return from_numpy(array)

    work().backward()
    kernels.clear()
    with monkeypatch.context() as patch, Operations(counts):
        patch.setattr(torch, "from_numpy", copy)
        work().backward()
    # Reading a number that is on a device waits for it. The processor's way reads the gradient of the loss, to see if
    # it is 1; on a GPU a kernel does, which multiplies by it.
    assert counts["_local_scalar_dense"] == 1, counts
    assert not counts["nonzero"], counts
    counts["multiplied"] += counts.pop("_local_scalar_dense")
    # The gradient of logits is handed on to the model.
    del counts["add_"]
    return counts + kernels


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
def test_a_loss_takes_few_launches(
    options: dict[str, Any], kernels: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two copies, zeros, five kernels, the gradient of the loss, and what multiplies the gradient by it.
    most = 10 + ("top_k" in options) + 2 * ("divergence" in options and options["divergence"] == "jsd")
    if options["kind"] == "c-kl":
        # Two kernels for rows that leave something out, and for levels a copy and four kernels.
        most += 7
    case = case_of(3, dtype=torch.float32)
    loss = XTokenLoss(case.mapping, implementation="triton", **options)
    logits, labels = case.student_logits.clone().requires_grad_(), possible_labels(case)
    counts = launches_of(
        lambda: loss(logits.view_as(logits), case.teacher_logits, case.spans, labels=labels).loss, kernels, monkeypatch
    )
    assert counts.total() <= most, counts


def test_a_function_takes_few_launches(kernels: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bins = torch.tensor([0, 1, 1, 2, -1, 3, 0]), torch.tensor([2, 0, 1, 1, -1, 3])
    student, teacher = torch.randn(4, 7, requires_grad=True), torch.randn(4, 6)
    # On a GPU the tables of bins that do not change are kept.
    monkeypatch.setattr("xtoken_align.losses.functional._REMEMBERS", ("cpu",))
    work = lambda: partition_kl(student.view_as(student), teacher, *bins, implementation="triton")  # noqa: E731
    counts = launches_of(work, kernels, monkeypatch)
    # Nothing of the host's is read, as a CUDA graph must not.
    assert not counts["copy to the device"], counts
    assert counts.total() <= 9, counts


class Memory(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, as an allocator would."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for each operation."""
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor):
                self._note(one.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        # Two looks at one memory have one address.
        address, size = storage.data_ptr(), storage.nbytes()
        if not size or address in self.known:
            return
        self.known.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.now -= size


def peak_of(work: Callable[[], torch.Tensor], *inputs: torch.Tensor) -> int:
    """The most bytes that a forward and backward takes beside its inputs and their gradients."""
    with Memory() as memory:
        memory.known.update(one.untyped_storage().data_ptr() for one in inputs)
        work().backward()
    return memory.peak - sum(one.grad.nbytes for one in inputs if one.grad is not None)


ROWS, STATES = 80, 2


def test_hidden_states_take_an_eighth_of_the_memory_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    # 80 rows of 600 and 700 tokens, in blocks of 8 and memory for 4 at once, as 2,048 rows of real vocabularies are in
    # blocks of 192 with memory for 128.
    monkeypatch.setattr(loss_module, "rows_of_states", lambda *_: plan.share_of_batch(ROWS, 64, 2))
    monkeypatch.setattr(blocks, "AT_ONCE_OF_STATES", 4)
    monkeypatch.setattr(lines, "_INTERPRETER", replace(lines._INTERPRETER, columns=1024, lanes=512))
    shared = [bytes([97 + first, 97 + second]) for first in range(22) for second in range(26)]
    own = [str(number).encode() for number in range(10, 38)], [str(number).encode() for number in range(1000, 1128)]
    tokens = [shared + side for side in own]
    world = Tiny(*([*(bytes([one]) for one in range(48, 58)), *side] for side in tokens))
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(12, 500, (ROWS,), generator=source).tolist()
    spans = world.spans(ids, ids)
    loss = XTokenLoss(world.mapping, "c-kl", implementation="triton")
    made = []
    for vocabulary in (world.student, world.teacher):
        states = torch.randn(1, ROWS + 1, STATES, generator=source)
        made.append(Hidden(states.requires_grad_(), torch.randn(len(vocabulary), STATES, generator=source)))
    logits = [(side.states @ side.weight.T).detach() for side in made]
    logits[0].requires_grad_()
    inputs = [part for side in made for part in (side.states, side.weight)]
    # The first call makes what is kept.
    loss(*logits, spans)
    whole = peak_of(lambda: loss(*logits, spans).loss, *logits)
    fused = peak_of(lambda: loss(*made, spans).loss, *inputs)
    assert len(spans.predictions()) == ROWS
    # What is made of hidden states is handed in there: the logits of both sides and a gradient.
    assert fused <= (whole + 2 * logits[0].nbytes + logits[1].nbytes) / 8, (fused, whole)
