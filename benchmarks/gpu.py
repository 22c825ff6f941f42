"""Measures the losses on a GPU: milliseconds, share of the memory's speed, launches, waits, memory.

    python benchmarks/gpu.py [--seconds 240] [--mapping NAME ...] [--out FILE] [--tiny]

Prints a line of JSON for each figure as soon as it is there, the most important ones first, and stops when the time is
over. Nothing is fetched: mappings are those that ship or files, logits and chunks are drawn with a fixed seed. Of the
chunks 4% are a student token that the teacher writes in pieces, 1% the other way round; sequences end at 70 to 100% of
the batch's length. `--tiny` runs the same on a processor, on a toy mapping in Triton's interpreter: its times say
nothing, but the script is known to work.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

if "--tiny" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from torch.nn.functional import cross_entropy, kl_div

from xtoken_align import Mapping, build, load
from xtoken_align.losses import Hidden, XTokenLoss, partition_kl
from xtoken_align.losses.tables import mapping_pairs
from xtoken_align.spans.spans import Spans

LENGTH = 512
"""Of a sequence."""
SPLIT, JOINED = 0.04, 0.01
"""The shares of chunks in which one student token is several of the teacher's, and the other way round."""
RUNS = 7
"""Of each contender; the first two, which compile and warm up, do not count."""

Work = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Contender:
    """Something to measure: forward and backward."""

    work: Work
    inputs: list[torch.Tensor]


@dataclass
class Measured:
    """What a contender took."""

    milliseconds: float
    least: float
    megabytes: float
    launches: int | None = None
    waits: int | None = None


@dataclass
class Clock:
    """The device's clock, its allocator, and the time that is left."""

    device: torch.device
    ends: float
    copies: float = 0.0
    runs: int = RUNS
    skipped: list[str] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether no figure is to be begun any more."""
        return monotonic() > self.ends

    def once(self, contender: Contender) -> tuple[float, float]:
        """Milliseconds and megabytes beyond inputs and gradients of one forward and backward."""
        for tensor in contender.inputs:
            tensor.grad = None
        if self.device.type != "cuda":
            started = perf_counter()
            contender.work().backward()
            return 1e3 * (perf_counter() - started), 0.0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        contender.work().backward()
        events[1].record()
        torch.cuda.synchronize()
        kept = sum(tensor.grad.nbytes for tensor in contender.inputs if tensor.grad is not None)
        peak = (torch.cuda.max_memory_allocated() - before - kept) / 1e6
        return events[0].elapsed_time(events[1]), peak

    def measure(self, contender: Contender, *, counts: bool = False) -> Measured:
        """The median of some runs; with `counts` also what one run launches and waits for."""
        costs = [self.once(contender) for _ in range(self.runs)][2 if self.runs > 2 else 0 :]
        times = [cost[0] for cost in costs]
        found = Measured(statistics.median(times), min(times), max(cost[1] for cost in costs))
        if counts and self.device.type == "cuda":
            found.launches, found.waits = launches_of(contender), waits_of(contender)
        return found


def launches_of(contender: Contender) -> int:
    """How many kernels and copies one forward and backward starts."""
    from torch.autograd.profiler_util import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        contender.work().backward()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in seen.events())


def waits_of(contender: Contender) -> int:
    """How often the processor waits for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            contender.work().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in seen)


def copy_speed(device: torch.device) -> float:
    """Bytes per second of a copy, read and written."""
    source = torch.empty(1 << (28 if device.type == "cuda" else 16), device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - started)
    return 2 * source.nbytes / min(times)


def toy_mapping() -> Mapping:
    """A student with bytes and numbers of two digits, and a teacher with bytes and some pairs of letters."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        pairs = ([b"%02d" % number for number in range(24)], [b"ab", b"ac", b"abc", b"th", b"he", b"the"])
        for name, more in zip(("toy-student", "toy-teacher"), pairs, strict=True):
            tokens = [*(bytes([byte]) for byte in range(256)), *more]
            path = Path(folder) / f"{name}.tiktoken"
            path.write_text(
                "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
            )
            paths.append(path)
        return build(student=str(paths[0]), teacher=str(paths[1]))


def drawn_spans(mapping: Mapping, chunks: int, length: int) -> Spans:
    """About so many chunks in sequences of up to `length` chunks, padded to the longest."""
    numbers = np.random.default_rng(0)
    pairs = mapping_pairs(mapping, threshold=None).numpy()
    longer = [
        (sides, np.flatnonzero(sides.lengths > 1))
        for sides in (mapping.decompositions("student"), mapping.decompositions("teacher"))
    ]
    sequences = []
    while (missing := chunks - sum(len(one) for one in sequences)) > 0:
        sequence = []
        for draw in numbers.random(min(int(length * numbers.uniform(0.7, 1.0)), missing) + 1):
            side = 0 if draw < SPLIT else 1 if draw < SPLIT + JOINED else 2
            if side < 2 and len(longer[side][1]):
                pieces, tokens = longer[side]
                token = int(numbers.choice(tokens))
                begin = int(pieces.offsets[token])
                made = [token], pieces.ids[begin : begin + int(pieces.lengths[token])].tolist()
                sequence.append(made[::-1] if side else made)
            else:
                ours, theirs = pairs[numbers.integers(len(pairs))].tolist()
                sequence.append(([ours], [theirs]))
        sequences.append(sequence)
    return spans_of(sequences)


def spans_of(sequences: list[list[tuple[list[int], list[int]]]]) -> Spans:
    """The spans of sequences of chunks, each the tokens of both sides."""
    arrays: list[Any] = []
    for side in (0, 1):
        rows = [[token for chunk in sequence for token in chunk[side]] for sequence in sequences]
        numbers = [[number for number, chunk in enumerate(one) for _ in chunk[side]] for one in sequences]
        width = max(map(len, rows))
        ids, chunk = np.zeros((len(rows), width), dtype=np.int64), np.full((len(rows), width), -1, dtype=np.int32)
        for row, (tokens, own) in enumerate(zip(rows, numbers, strict=True)):
            ids[row, : len(tokens)], chunk[row, : len(tokens)] = tokens, own
        arrays.append((chunk, ids, np.where(chunk >= 0, 0, -1).astype(np.int32), chunk >= 0))
    count = np.array([len(one) for one in sequences], dtype=np.int32)
    weight = (np.arange(count.max()) < count[:, None]).astype(np.float32)
    weight[:, 0] = 0  # nothing predicts the first chunk
    (student, our_ids, our_segments, ours), (teacher, their_ids, their_segments, theirs) = arrays
    return Spans(
        student=student,
        teacher=teacher,
        count=count,
        weight=weight,
        student_ids=our_ids,
        teacher_ids=their_ids,
        student_segments=our_segments,
        teacher_segments=their_segments,
        student_loss_mask=ours,
        teacher_loss_mask=theirs,
    )


@dataclass(frozen=True)
class Batch:
    """Logits of a batch on the device, and what is measured on them."""

    name: str
    mapping: Mapping
    spans: Spans
    device: torch.device
    dtype: torch.dtype
    rows: int

    def logits(self, side: int, *, width: int | None = None) -> torch.Tensor:
        """Floats (B, T, V); the student's want a gradient."""
        shape = (self.spans.student if side == 0 else self.spans.teacher).shape
        torch.manual_seed(side)
        made = torch.randn(*shape, width or self.mapping.matrix.shape[side], device=self.device, dtype=self.dtype) * 3
        return made.requires_grad_(side == 0)

    @property
    def least_bytes(self) -> int:
        """Of reading both sides' rows and writing a gradient."""
        ours, theirs = self.mapping.matrix.shape
        return self.rows * (2 * ours + theirs) * torch.empty(0, dtype=self.dtype).element_size()

    @property
    def labels(self) -> torch.Tensor:
        """The student's ids, -100 at padding."""
        return torch.from_numpy(np.where(self.spans.student >= 0, self.spans.student_ids, -100))


def eager(batch: Batch, *, labels: bool = False) -> Contender:
    """An ordinary KL of two models of the student's vocabulary, with an ordinary cross-entropy or without."""
    width, rows = batch.mapping.matrix.shape[0], batch.rows
    torch.manual_seed(0)
    student, teacher = (3 * torch.randn(rows, width, device=batch.device, dtype=batch.dtype) for _ in range(2))
    student.requires_grad_()
    targets = torch.randint(0, width, (rows,), device=batch.device)

    def work() -> torch.Tensor:
        ours = student.log_softmax(1)
        value = kl_div(ours, teacher.log_softmax(1), log_target=True, reduction="batchmean")
        return value + cross_entropy(student, targets) if labels else value

    return Contender(work, [student])


def loss_of(batch: Batch, kind: str, *, labels: bool = False, **options: Any) -> Contender:
    """A loss over the batch's chunks."""
    loss, student, teacher = module_of(batch, kind, **options), batch.logits(0), batch.logits(1)
    given = {"labels": batch.labels} if labels else {}
    return Contender(lambda: loss(student, teacher, batch.spans, **given).loss, [student])


IMPLEMENTATION = {"cuda": "auto", "cpu": "triton"}
_modules: dict[tuple[str, str, str], XTokenLoss] = {}


def module_of(batch: Batch, kind: str, **options: Any) -> XTokenLoss:
    """The loss on the device; its tables are made once for all batches."""
    key = (batch.name, kind, str(options))
    if key not in _modules:
        made = XTokenLoss(batch.mapping, kind, implementation=IMPLEMENTATION[batch.device.type], **options)
        _modules[key] = made.to(batch.device)
    return _modules[key]


def same_tokenizer(batch: Batch) -> Contender:
    """Two models of the student's vocabulary, compared by our function."""
    width = batch.mapping.matrix.shape[0]
    student, teacher = batch.logits(0).detach().flatten(0, 1)[: batch.rows].requires_grad_(), None
    torch.manual_seed(1)
    teacher = 3 * torch.randn(len(student), width, device=batch.device, dtype=batch.dtype)
    own = torch.arange(width, device=batch.device)
    how = IMPLEMENTATION[batch.device.type]
    return Contender(lambda: partition_kl(student, teacher, own, own, implementation=how), [student])


def liger(batch: Batch, form: str) -> Contender:
    """Liger's KL and JSD of log-probabilities of one vocabulary."""
    transformers: Any = __import__("liger_kernel.transformers", fromlist=["LigerKLDIVLoss", "LigerJSD"])
    loss = transformers.LigerJSD(beta=0.5) if form == "jsd" else transformers.LigerKLDIVLoss(log_target=True)
    base = eager(batch)
    (student,) = base.inputs
    teacher = 3 * torch.randn_like(student).detach()
    return Contender(lambda: loss(student.log_softmax(1), teacher.log_softmax(1)), [student])


LOSSES: list[tuple[str, bool, Callable[[Batch], Contender]]] = [
    # What, whether it is compared with a KL and a cross-entropy, and what is run.
    ("Partition-KL", False, lambda batch: loss_of(batch, "partition-kl")),
    ("C-KL with labels", True, lambda batch: loss_of(batch, "c-kl", labels=True)),
    ("P-KL, all columns", False, lambda batch: loss_of(batch, "p-kl")),
    ("Partition-KL, reverse", False, lambda batch: loss_of(batch, "partition-kl", divergence="reverse")),
    ("same tokenizer, rows of a function", False, same_tokenizer),
    ("strict", False, lambda batch: loss_of(batch, "strict")),
    ("C-KL", False, lambda batch: loss_of(batch, "c-kl")),
    ("H-KL", False, lambda batch: loss_of(batch, "h-kl")),
    ("P-KL, top 8192", False, lambda batch: loss_of(batch, "p-kl", top_k=8192)),
    ("ULD", False, lambda batch: loss_of(batch, "uld")),
    ("TRL's ULD", False, lambda batch: loss_of(batch, "uld", compat="trl")),
    ("Partition-KL, JSD", False, lambda batch: loss_of(batch, "partition-kl", divergence="jsd")),
    ("Liger's KL, same tokenizer", False, lambda batch: liger(batch, "kl")),
    ("Liger's JSD, same tokenizer", False, lambda batch: liger(batch, "jsd")),
    ("GOLD", False, lambda batch: loss_of(batch, "gold")),
    ("BPM", False, lambda batch: loss_of(batch, "bpm")),
    ("NeMo-RL's P-KL, top 8192", False, lambda batch: loss_of(batch, "p-kl", compat="nemo-rl", top_k=8192)),
]


def from_logits(batch: Batch, clock: Clock) -> Iterator[dict[str, Any]]:
    """The losses from logits, against an ordinary KL of as many rows."""
    bases: dict[bool, Measured] = {}
    for what, labels, make in LOSSES:
        if what.startswith("Liger") and find_spec("liger_kernel") is None:
            continue
        if clock.is_over:
            clock.skipped.append(f"{batch.name} {batch.rows} {what}")
            continue
        if labels not in bases:
            name = "eager KL" + " and cross-entropy" * labels
            bases[labels] = clock.measure(eager(batch, labels=labels), counts=True)
            yield figure(batch, name, bases[labels], clock)
        found = clock.measure(make(batch), counts=True)
        yield figure(batch, what, found, clock) | {"against eager": found.milliseconds / bases[labels].milliseconds}


def fused_loss(loss: XTokenLoss, sources: tuple[Hidden, Hidden], spans: Spans) -> torch.Tensor:
    """A loss from hidden states."""
    return loss(*sources, spans).loss  # type: ignore[no-any-return]


def fused(batch: Batch, clock: Clock, width: int) -> Iterator[dict[str, Any]]:
    """From hidden states of a width, against the heads' products alone and against the form from logits."""
    torch.manual_seed(0)
    sides = []
    for side, shape in enumerate((batch.spans.student.shape, batch.spans.teacher.shape)):
        states, head = torch.randn(*shape, width), torch.randn(batch.mapping.matrix.shape[side], width) / width**0.5
        sides.append([one.to(batch.device, batch.dtype) for one in (states, head)])
    (states, head), (their_states, their_head) = sides
    inputs = [states.requires_grad_(), head.requires_grad_()]

    def products() -> torch.Tensor:
        """Three products of the student's, one of the teacher's, in pieces: only the gradients are kept."""
        total = states.new_zeros(())
        for ours, theirs in zip(states.flatten(0, 1).split(512), their_states.flatten(0, 1).split(512), strict=False):
            total = total + ((ours @ head.t()) * 1e-3).sum() + (theirs @ their_head.t()).detach()[0, 0] * 0
        return total

    base = clock.measure(Contender(products, inputs))
    name = f"D {width}"
    yield figure(batch, f"products of the heads alone, {name}", base, clock)
    sources = Hidden(states, head), Hidden(their_states, their_head)
    for kind in ("partition-kl", "c-kl", "p-kl"):
        if clock.is_over:
            clock.skipped.append(f"{batch.name} fused {kind}")
            continue
        loss = module_of(batch, kind)
        whole = clock.measure(loss_of(batch, kind))
        work = partial(fused_loss, loss, sources, batch.spans)
        found = clock.measure(Contender(work, inputs), counts=True)
        made = figure(batch, f"{kind} fused, {name}", found, clock)
        logits_bytes = sum(one.nbytes for one in (batch.logits(0), batch.logits(0), batch.logits(1)))
        yield made | {
            "against products": found.milliseconds / base.milliseconds,
            "memory against logits": found.megabytes / (whole.megabytes + logits_bytes / 1e6),
        }
    if find_spec("liger_kernel") is not None and not clock.is_over:
        transformers: Any = __import__("liger_kernel.transformers", fromlist=["LigerFusedLinearJSD"])
        jsd, teacher = transformers.LigerFusedLinearJSD(jsd_beta=0.5), torch.randn_like(head).detach()
        flat = states.flatten(0, 1)
        work = lambda: jsd(flat, head, flat.detach(), teacher)  # noqa: E731 - handed on
        yield figure(batch, f"Liger's fused JSD, same tokenizer, {name}", clock.measure(Contender(work, inputs)), clock)


def figure(batch: Batch, what: str, found: Measured, clock: Clock) -> dict[str, Any]:
    """A line of the result."""
    speed = batch.least_bytes / (found.milliseconds / 1e3)
    return {
        "what": what,
        "mapping": batch.name,
        "rows": batch.rows,
        "dtype": str(batch.dtype).removeprefix("torch."),
        "ms": round(found.milliseconds, 4),
        "least ms": round(found.least, 4),
        "GB/s of the least traffic": round(speed / 1e9, 1),
        "share of a copy's speed": round(speed / clock.copies, 4),
        "MB": round(found.megabytes, 1),
        "launches": found.launches,
        "waits": found.waits,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """The card, its driver, the libraries, the commit."""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    commit = os.environ.get("COMMIT") or output_of(["git", "rev-parse", "HEAD"])
    libraries = {}
    for name in ("torch", "triton", "liger-kernel", "xtoken-align"):
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            libraries[name] = None
    card = output_of(asked) if device.type == "cuda" else "processor, interpreted"
    return {"card": card, "commit": commit, "date": datetime.now(UTC).date().isoformat(), **libraries}


def output_of(command: list[str]) -> str | None:
    """What a command prints; None where it does not run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def figures(options: argparse.Namespace, clock: Clock) -> Iterator[dict[str, Any]]:
    """All figures, the most important ones first."""
    tiny = options.tiny
    mappings = {"toy": toy_mapping()} if tiny else {name: load(name) for name in options.mapping}
    clock.copies = copy_speed(clock.device)
    yield environment(clock.device) | {"GB/s of a copy": round(clock.copies / 1e9, 1)}
    rows = (6,) if tiny else (2048, 512, 8192)
    for count, dtype, (name, mapping) in product(rows, (torch.bfloat16, torch.float32), mappings.items()):
        if tiny and dtype == torch.float32:
            continue
        spans = drawn_spans(mapping, count, 4 if tiny else LENGTH)
        used = int((spans.weight > 0).sum())
        batch = Batch(name, mapping, spans, clock.device, dtype, used)
        if options.only in {"all", "logits"}:
            yield from from_logits(batch, clock)
        if options.only in {"all", "fused"} and dtype == torch.bfloat16 and count == rows[0]:
            for width in (16,) if tiny else (2048, 2560):
                yield from fused(batch, clock, width)


def main() -> int:
    """Measures and prints; returns 1 without a GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=240, help="no figure is begun after so many")
    parser.add_argument("--mapping", nargs="+", default=["llama-3--qwen3"], help="names or files of mappings")
    parser.add_argument("--only", choices=("all", "logits", "fused"), default="all", help="one part of the figures")
    parser.add_argument("--out", type=Path, help="also write the lines to this file")
    parser.add_argument("--tiny", action="store_true", help="toy sizes on a processor, in Triton's interpreter")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        print("there is no GPU here; --tiny runs the script without one", file=sys.stderr)
        return 1
    clock = Clock(torch.device("cpu" if options.tiny else "cuda"), monotonic() + options.seconds)
    clock.runs = 1 if options.tiny else RUNS
    lines = options.out.open("w", encoding="utf-8") if options.out else None
    for made in figures(options, clock):
        line = json.dumps(made)
        print(line, flush=True)
        if lines is not None:
            lines.write(line + "\n")
            lines.flush()
    if clock.skipped:
        print(json.dumps({"skipped, the time was over": clock.skipped}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
