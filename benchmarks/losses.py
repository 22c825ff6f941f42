"""Measures the losses, forward and backward, against an ordinary KL, plain PyTorch forms and TRL's ULD loss.

    python benchmarks/losses.py [--quick] [--only logits small plain fused peers] [--device cuda] [--threads N]

Vocabularies are real (Llama-3 and Qwen3), logits drawn with a fixed seed, C-KL's chunks those of real text. On the CPU
a figure counts processor time and memory beyond what was there before; on a GPU its own clock and allocator. Every
ratio is of runs that took turns: the median, with the least and the largest in brackets. Exits with 1 where a budget is
missed; `--quick` measures small sizes without budgets.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from align import Figure, texts_of
from meter import Contender, Meter, Ratio, compare
from torch.nn.functional import kl_div

from xtoken_align import Mapping, align_ids, align_texts, build, read_vocab
from xtoken_align.losses import Hidden, Logits, XTokenLoss, p_kl, partition_kl, uld
from xtoken_align.spans.spans import Spans

WIDTH = 256
"""Of the hidden states."""
ROWS = {
    "cpu": {"logits": 512, "small": 128, "plain": 128, "fused": 2048, "peers": 128},
    "cuda": {"logits": 2048, "small": 512, "plain": 2048, "fused": 2048, "peers": 2048},
}
"""How many rows each part compares: on a GPU so many that starting its work is no part of the figure."""


@dataclass(frozen=True)
class Measured(Figure):
    """A figure with the least and the largest of the runs whose median it is."""

    least: float | None = None
    largest: float | None = None

    def line(self) -> str:
        """The figure's line in the table."""
        spread = "" if self.least is None else f"  ({self.least:.2f} to {self.largest:.2f})"
        return super().line() + spread


def measured(what: str, ratio: Ratio, budget: float | None = None, *, at_least: bool = False) -> Measured:
    """The figure of a ratio."""
    return Measured(what, ratio.median, "times", budget, at_least, least=ratio.least, largest=ratio.largest)


@dataclass(frozen=True)
class Pair:
    """The two vocabularies with logits of both, as leaves."""

    mapping: Mapping
    device: torch.device

    def logits(self, rows: int, side: str, *, width: int | None = None) -> torch.Tensor:
        """Floats (rows, V), drawn with a seed; the student's want a gradient."""
        width = self.mapping.matrix.shape[side == "teacher"] if width is None else width
        torch.manual_seed(len(side))
        made = torch.randn(rows, width, device=self.device) * 3
        return made.requires_grad_(side == "student")

    def bins(self) -> list[torch.Tensor]:
        """The student's and the teacher's."""
        return [torch.from_numpy(part).long().to(self.device) for part in self.mapping.bins()]


def ordinary(pair: Pair, rows: int) -> Contender:
    """An ordinary KL between two models of the student's vocabulary."""
    student, width = pair.logits(rows, "student"), pair.mapping.matrix.shape[0]
    teacher = pair.logits(rows, "teacher", width=width)
    return Contender(
        lambda: kl_div(student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean"),
        [student],
    )


def naive_partition(pair: Pair, student: torch.Tensor, teacher: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Partition-KL as plain PyTorch writes it."""
    student_bin, teacher_bin = pair.bins()
    count = int(student_bin.max()) + 1

    def binned(logits: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
        inside = (bins >= 0).nonzero().squeeze(1)
        masses = logits[:, inside].softmax(1)
        return masses.new_zeros(len(masses), count).index_add(1, bins[inside], masses)

    def work() -> torch.Tensor:
        return kl_div(binned(student, student_bin).log(), binned(teacher, teacher_bin), reduction="batchmean")

    return work


def naive_projection(pair: Pair, student: torch.Tensor, teacher: torch.Tensor) -> Callable[[], torch.Tensor]:
    """P-KL as plain PyTorch writes it: the whole vocabulary projected."""
    matrix = pair.mapping.matrix
    rows, columns = (torch.from_numpy(ids).long().to(pair.device) for ids in (matrix.rows, matrix.indices))
    weights = torch.from_numpy(matrix.data).to(pair.device)

    def work() -> torch.Tensor:
        masses = student.softmax(1)
        projected = masses.new_zeros(len(masses), matrix.shape[1]).index_add(1, columns, masses[:, rows] * weights)
        return kl_div((projected + 1e-10).log(), teacher.softmax(1), reduction="batchmean")

    return work


def links_of(mapping: Mapping, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """First pieces with weight 1."""
    first = mapping.first_pieces("student")
    rows = np.flatnonzero(first >= 0)
    arrays = (rows.astype(np.int64), first[rows].astype(np.int64), np.ones(len(rows), dtype=np.float32))
    rows_, columns, weights = (torch.from_numpy(array).to(device) for array in arrays)
    return rows_, columns, weights


def batch_of(pair: Pair, spans: Spans, loss: XTokenLoss) -> Contender:
    """A loss over real text from logits of whole sequences."""
    student = pair.logits(spans.student.shape[1], "student").detach().unsqueeze(0).requires_grad_()
    teacher = pair.logits(spans.teacher.shape[1], "teacher").unsqueeze(0)
    return Contender(lambda: loss(student, teacher, spans).loss, [student])


def text_of(chunks: int) -> Spans:
    """About so many chunks of real text in one row."""
    text = "\n".join(texts_of(40_000))
    student, teacher = read_vocab("llama-3"), read_vocab("qwen3")
    whole = align_texts([text], student=student, teacher=teacher)
    ends = [np.flatnonzero(side[0] == chunks)[0] for side in (whole.student, whole.teacher)]
    cut = [side[:, :end] for side, end in zip((whole.student_ids, whole.teacher_ids), ends, strict=True)]
    return align_ids(*cut, student=student, teacher=teacher)


def contenders(pair: Pair, rows: int) -> dict[str, tuple[Contender, float | None]]:
    """The losses from logits, with their budgets against an ordinary KL."""
    student, teacher = pair.logits(rows, "student"), pair.logits(rows, "teacher")
    bins, links, spans = pair.bins(), links_of(pair.mapping, pair.device), text_of(rows)
    functions: dict[str, tuple[Contender, float | None]] = {
        "Partition-KL": (Contender(lambda: partition_kl(student, teacher, *bins), [student]), 1.2),
        "P-KL, top 8192": (Contender(lambda: p_kl(student, teacher, *links, top_k=8192), [student]), 1.0),
        "P-KL, all columns": (Contender(lambda: p_kl(student, teacher, *links), [student]), 1.6),
    }
    kinds = {
        "C-KL on text": ("c-kl", 1.3),
        "Partition-KL on text": ("partition-kl", None),
        "H-KL on text": ("h-kl", None),
        "Strict on text": ("strict", 0.9),
        "BPM on text": ("bpm", 1.4),
        "ESCD on text": ("escd", 1.4),
        "SimCT on text": ("simct", None),
    }
    for name, (kind, budget) in kinds.items():
        loss = XTokenLoss(pair.mapping, kind).to(pair.device)
        functions[name] = (batch_of(pair, spans, loss), budget)
    own = torch.arange(student.shape[1], device=pair.device)
    same = pair.logits(rows, "teacher", width=student.shape[1])
    functions["a same-tokenizer teacher"] = (Contender(lambda: partition_kl(student, same, own, own), [student]), 1.1)
    return functions


def logits_figures(pair: Pair, meter: Meter, runs: int, rows: int) -> Iterator[Figure]:
    """From logits, against an ordinary KL."""
    base = ordinary(pair, rows)
    for name, (contender, budget) in contenders(pair, rows).items():
        time, memory = compare(meter, contender, base, runs)
        yield measured(f"{name}, {rows} rows: time against an ordinary KL", time, budget)
        yield measured(f"{name}, {rows} rows: memory against an ordinary KL", memory)
    student, teacher, bins = pair.logits(rows, "student"), pair.logits(rows, "teacher"), pair.bins()
    forward = Contender(lambda: partition_kl(student, teacher, *bins), [student])
    others: dict[str, dict[str, Any]] = {
        "reverse": {"divergence": "reverse"},
        "JSD": {"divergence": "jsd"},
        "reverse, the student's best 16": {"divergence": "reverse", "student_top_k": 16},
    }
    for name, options in others.items():
        work = partial(partition_kl, student, teacher, *bins, **options)
        time, _ = compare(meter, Contender(work, [student]), forward, runs)
        yield measured(f"Partition-KL by {name}, {rows} rows: time against the forward KL", time, 1.3)


def small_figures(pair: Pair, meter: Meter, runs: int, rows: int) -> Iterator[Figure]:
    """A small batch against an ordinary KL of its size, and how far that is from the figure of four times the rows."""
    names = ("Partition-KL", "P-KL, top 8192", "C-KL on text", "H-KL on text")
    few, many = contenders(pair, rows), contenders(pair, 4 * rows)
    bases = ordinary(pair, rows), ordinary(pair, 4 * rows)
    for name in names:
        small, _ = compare(meter, few[name][0], bases[0], runs)
        large, _ = compare(meter, many[name][0], bases[1], runs)
        yield measured(f"{name}, {rows} rows: time against an ordinary KL", small)
        share = Ratio(*(one / large.median for one in (small.median, small.least, small.largest)))
        yield measured(f"{name}, {rows} rows: that against {4 * rows} rows'", share, 1.15)


def plain_figures(pair: Pair, meter: Meter, runs: int, rows: int) -> Iterator[Figure]:
    """Against plain PyTorch forms of the same losses."""
    student, teacher = pair.logits(rows, "student"), pair.logits(rows, "teacher")
    bins = pair.bins()
    for name, ours, plain in (
        ("Partition-KL", lambda: partition_kl(student, teacher, *bins), naive_partition(pair, student, teacher)),
        (
            "P-KL",
            lambda: p_kl(student, teacher, *links_of(pair.mapping, pair.device)),
            naive_projection(pair, student, teacher),
        ),
    ):
        time, memory = compare(meter, Contender(plain, [student]), Contender(ours, [student]), runs)
        yield measured(f"{name}, {rows} rows: the plain form's time against ours", time, 1.0, at_least=True)
        yield measured(f"{name}, {rows} rows: the plain form's memory against ours", memory, 1.0, at_least=True)


def fused_figures(pair: Pair, meter: Meter, runs: int, rows: int) -> Iterator[Figure]:
    """From hidden states and heads, against our own form from logits."""
    spans = text_of(rows)
    torch.manual_seed(0)
    shapes = (
        (spans.student.shape[1], pair.mapping.matrix.shape[0]),
        (spans.teacher.shape[1], pair.mapping.matrix.shape[1]),
    )
    (hidden, head), (teacher_hidden, teacher_head) = (
        ((torch.randn(1, length, WIDTH) / 4).to(pair.device), torch.randn(width, WIDTH).to(pair.device) / 4)
        for length, width in shapes
    )
    hidden.requires_grad_()
    head.requires_grad_()
    for kind in ("p-kl", "partition-kl", "c-kl"):
        loss = XTokenLoss(pair.mapping, kind).to(pair.device)

        def fused(loss: XTokenLoss = loss) -> torch.Tensor:
            return loss(Hidden(hidden, head), Hidden(teacher_hidden, teacher_head), spans).loss

        def plain(loss: XTokenLoss = loss) -> torch.Tensor:
            return loss(Logits(hidden @ head.t()), Logits((teacher_hidden @ teacher_head.t()).detach()), spans).loss

        inputs = [hidden, head]
        time, memory = compare(meter, Contender(fused, inputs), Contender(plain, inputs), runs)
        yield measured(f"{kind} fused, {rows} chunks: time against logits", time, 1.1)
        yield measured(f"{kind} fused, {rows} chunks: memory against logits", memory, 1 / 8)
        cost = meter.run(fused, inputs)
        yield Figure(f"{kind} fused, {rows} chunks: memory beyond inputs and gradients", cost.memory / 1e6, "MB")
        if meter.device.type == "cuda":
            yield Figure(f"{kind} fused, {rows} chunks: seconds", cost.seconds, "s")


def peers_figures(pair: Pair, meter: Meter, runs: int, rows: int) -> Iterator[Figure]:
    """TRL's ULD loss on the same rows."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    theirs = trl_uld(pair, rows)
    student, teacher = pair.logits(rows, "student"), pair.logits(rows, "teacher")
    ours = {"ULD": lambda: uld(student, teacher)}
    bins = pair.bins()
    ours["Partition-KL"] = lambda: partition_kl(student, teacher, *bins)
    for name, work in ours.items():
        time, memory = compare(meter, theirs, Contender(work, [student]), runs)
        yield measured(f"TRL's ULD loss against our {name}, {rows} rows: time", time, 3.0, at_least=True)
        yield measured(f"TRL's ULD loss against our {name}, {rows} rows: memory", memory, 2.0, at_least=True)


def trl_uld(pair: Pair, rows: int) -> Contender:
    """TRL's loss over one answer of so many tokens, grouped by position, so that it has no aligning to do."""
    from types import SimpleNamespace

    from trl.experimental.gold.gold_trainer import ULDLoss

    settings = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=False,
        uld_skip_teacher_eos=False,
        use_extended_uld=False,
        uld_token_merge_strategy="observed",  # noqa: S106 - no password
        uld_use_hybrid_loss=False,
        uld_hybrid_matched_weight=None,
        uld_hybrid_unmatched_weight=None,
        beta=0.5,
    )
    loss = ULDLoss(settings)
    student = pair.logits(rows + 1, "student").detach().unsqueeze(0).requires_grad_()
    teacher = pair.logits(rows + 1, "teacher").unsqueeze(0)
    ids = torch.arange(rows + 1, device=pair.device).unsqueeze(0)
    labels = ids.clone()
    labels[:, 0] = -100
    return Contender(
        lambda: loss(
            student_logits=student,
            teacher_logits=teacher,
            student_labels=labels,
            teacher_labels=labels,
            student_input_ids=ids,
            teacher_input_ids=ids,
        ),
        [student],
    )


def bandwidth(device: torch.device) -> float:
    """Bytes per second of copying within the device's memory."""
    source = torch.empty(1 << 28, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        started = perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        times.append(perf_counter() - started)
    return 2 * source.nbytes / min(times)


def bandwidth_figures(pair: Pair, meter: Meter, runs: int, rows: int) -> Iterator[Figure]:
    """How near Partition-KL comes to reading both logits and writing a gradient once."""
    student, teacher = pair.logits(rows, "student"), pair.logits(rows, "teacher")
    bins = pair.bins()
    costs = [meter.run(lambda: partition_kl(student, teacher, *bins), [student]) for _ in range(runs + 1)][1:]
    least = (2 * student.nbytes + teacher.nbytes) / bandwidth(pair.device)
    taken = statistics.median(cost.seconds for cost in costs)
    yield Figure(f"Partition-KL, {rows} rows: share of the memory bandwidth's limit", least / taken, "")


PARTS = {
    "logits": logits_figures,
    "small": small_figures,
    "plain": plain_figures,
    "fused": fused_figures,
    "peers": peers_figures,
}


def main() -> int:
    """Measures, prints, and says whether every budget is kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="measure only these parts")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--out", type=Path, help="also write them to this file, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pair = Pair(build(student="llama-3", teacher="qwen3"), torch.device(options.device))
    meter = Meter(pair.device)
    rows = ROWS[pair.device.type]
    figures: list[Figure] = []
    for name in options.only:
        size = rows[name] // 4 if options.quick else rows[name]
        for made in PARTS[name](pair, meter, 2 if options.quick else 5, size):
            # The budgets are about one core of a processor and these sizes; others have other ratios.
            figure = replace(made, budget=None) if options.quick or pair.device.type != "cpu" else made
            figures.append(figure)
            if not options.json:
                print(figure.line(), flush=True)
    if pair.device.type == "cuda":
        figures += bandwidth_figures(pair, meter, 5, rows["logits"])
        print(figures[-1].line())
    found = {
        "device": torch.cuda.get_device_name() if pair.device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
        "figures": [{**asdict(figure), "holds": figure.holds} for figure in figures],
    }
    if options.json:
        print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
