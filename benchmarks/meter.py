"""Time and memory of a forward and a backward, on a processor by what the system says of this process, on a GPU by its
own clock and allocator.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import torch


@dataclass(frozen=True)
class Cost:
    """What one forward and backward took: seconds, and bytes beyond inputs and their gradients."""

    seconds: float
    memory: int


class Meter:
    """Times work and watches its memory on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def run(self, work: Callable[[], torch.Tensor], inputs: list[torch.Tensor]) -> Cost:
        """One forward and backward."""
        for tensor in inputs:
            tensor.grad = None
        gc.collect()
        _release()
        before = self._reset()
        started = self._now()
        work().backward()
        seconds = self._now() - started
        kept = sum(tensor.grad.nbytes for tensor in inputs if tensor.grad is not None)
        return Cost(seconds, max(self._peak() - before - kept, 1))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return perf_counter()
        return process_time()

    def _reset(self) -> int:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _status("VmRSS")

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else _status("VmHWM")


def _release() -> None:
    """Gives freed memory back, so that what a run takes is seen."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status(field: str) -> int:
    """Bytes of one field of this process's status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@dataclass(frozen=True)
class Contender:
    """Something to measure."""

    work: Callable[[], torch.Tensor]
    inputs: list[torch.Tensor]


@dataclass(frozen=True)
class Ratio:
    """How two contenders compare: the median of the runs' ratios, and the least and the largest."""

    median: float
    least: float
    largest: float


def compare(meter: Meter, ours: Contender, theirs: Contender, runs: int) -> tuple[Ratio, Ratio]:
    """Ratios of time and of memory, run by run in turn, after one run of each that does not count."""
    pairs = [(meter.run(ours.work, ours.inputs), meter.run(theirs.work, theirs.inputs)) for _ in range(runs + 1)][1:]
    return (
        _ratio([one.seconds / other.seconds for one, other in pairs]),
        _ratio([one.memory / other.memory for one, other in pairs]),
    )


def _ratio(ratios: list[float]) -> Ratio:
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
