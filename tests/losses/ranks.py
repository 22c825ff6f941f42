"""What several processes compute of one batch, each its part: `run` starts them and gives back what each found.

Every scenario is a function of a rank that returns tensors; the tests compare them with those of one process.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.multiprocessing
from random_batches import Case, random_case, top_k_of
from torch import distributed

from xtoken_align import Spans
from xtoken_align.errors import OptionError
from xtoken_align.losses import Hidden, Logits, XTokenLoss, fuse_head

LOSSES: dict[str, dict[str, Any]] = {
    "partition-kl": {"kind": "partition-kl"},
    "c-kl": {"kind": "c-kl"},
    "c-kl by jsd": {"kind": "c-kl", "divergence": "jsd", "beta": 0.3, "student_top_k": 3},
    "p-kl": {"kind": "p-kl", "top_k": 5},
    "h-kl": {"kind": "h-kl"},
    "partition-kl, mean": {"kind": "partition-kl", "merge": "mean", "temperature": 2.0},
    "h-kl, mean": {"kind": "h-kl", "merge": "mean"},
    "strict": {"kind": "strict"},
    "bpm": {"kind": "bpm", "stop_bridge": True},
    "escd": {"kind": "escd", "skip_white_space": True},
    "simct": {"kind": "simct", "units": "path"},
    "uld": {"kind": "uld"},
}

Found = dict[str, torch.Tensor]


def rows_of(spans: Spans, rows: Any) -> Spans:
    """Some rows of a batch."""
    parts = {one.name: getattr(spans, one.name) for one in fields(spans)}
    arrays = {name: part[rows] for name, part in parts.items() if not name.startswith("_")}
    return replace(spans, **arrays)


@cache
def batch() -> Case:
    """Six rows: those of a random batch twice, with logits of their own."""
    case = random_case(75)
    rows = np.array([0, 1, 2, 0, 1, 2])
    draw = torch.Generator().manual_seed(1)
    student, teacher = (
        3 * torch.randn((6, *logits.shape[1:]), generator=draw, dtype=torch.float64)
        for logits in (case.student_logits, case.teacher_logits)
    )
    return replace(
        case,
        student_logits=student,
        teacher_logits=teacher,
        spans=rows_of(case.spans, rows),
        labels=case.labels[torch.from_numpy(rows)],
    )


def loss_of(name: str, **changes: Any) -> XTokenLoss:
    """A loss by its name in `LOSSES`."""
    return XTokenLoss(batch().mapping, kd_weight=0.7, ce_weight=0.4, **{**LOSSES[name], **changes})


def numbers(output: Any, *gradients: torch.Tensor | None) -> Found:
    """A loss's values and gradients by name."""
    parts = {"loss": output.loss.detach(), "kd": output.kd, "ce": output.ce}
    parts |= {name: torch.stack([part.double() for part in pair]) for name, pair in output.metrics.items()}
    return parts | {f"gradient {number}": one for number, one in enumerate(gradients) if one is not None}


def of_one_process(name: str, teacher: Any = None, **changes: Any) -> Found:
    """What all must agree with."""
    case = batch()
    student = case.student_logits.clone().requires_grad_()
    output = loss_of(name, **changes)(
        student, case.teacher_logits if teacher is None else teacher, case.spans, labels=case.labels
    )
    output.loss.backward()
    return numbers(output, student.grad)


def counts() -> dict[str, int]:
    """Chunks and labels of the whole batch."""
    case = batch()
    return {
        "num_chunks_in_batch": len(case.spans.predictions()),
        "num_items_in_batch": int((case.labels[:, 1:] != -100).sum()),
    }


def part(rank: int, ranks: int) -> Case:
    """A rank's rows."""
    case = batch()
    rows = np.array_split(np.arange(len(case.labels)), ranks)[rank]
    own = torch.from_numpy(rows)
    return replace(
        case,
        student_logits=case.student_logits[own],
        teacher_logits=case.teacher_logits[own],
        spans=rows_of(case.spans, rows),
        labels=case.labels[own],
    )


def data_parallel(rank: int, ranks: int, name: str) -> Found:
    """Each rank its rows, with the batch's counts."""
    case = part(rank, ranks)
    student = case.student_logits.clone().requires_grad_()
    output = loss_of(name)(student, case.teacher_logits, case.spans, labels=case.labels, **counts())
    output.loss.backward()
    return numbers(output, student.grad)


def spread(logits: torch.Tensor, rank: int, ranks: int) -> tuple[Any, torch.Tensor]:
    """Logits sharded by the vocabulary, and this rank's part, whose gradient is made."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    local = logits.chunk(ranks, dim=-1)[rank].clone().requires_grad_()
    made = DTensor.from_local(
        local,
        init_device_mesh("cpu", (ranks,)),
        [Shard(2)],
        run_check=False,
        shape=logits.shape,
        stride=logits.stride(),
    )
    return made, local


def vocabulary(rank: int, ranks: int, name: str, teacher_is: str) -> Found:
    """The student's vocabulary over the ranks; the teacher's too, or whole on each, or a cache."""
    case = batch()
    student, local = spread(case.student_logits, rank, ranks)
    teacher = {
        "spread": lambda: Logits(spread(case.teacher_logits, rank, ranks)[0]),
        "whole": lambda: case.teacher_logits,
        "a cache": lambda: top_k_of(case, 4),
    }[teacher_is]()
    output = loss_of(name)(student, teacher, case.spans, labels=case.labels)
    output.loss.backward()
    return numbers(output, local.grad)


def whole_student(rank: int, ranks: int) -> Found:
    """The teacher's vocabulary over the ranks, the student whole on each."""
    case = batch()
    student = case.student_logits.clone().requires_grad_()
    teacher, _ = spread(case.teacher_logits, rank, ranks)
    output = loss_of("c-kl")(student, teacher, case.spans, labels=case.labels)
    output.loss.backward()
    return numbers(output, student.grad)


def small_batch(rank: int, ranks: int) -> Found:
    """Fewer chunks than ranks."""
    case = of_one_chunk()
    student, local = spread(case.student_logits, rank, ranks)
    output = XTokenLoss(case.mapping, kind="c-kl")(student, case.teacher_logits, case.spans)
    output.loss.backward()
    return numbers(output, local.grad)


def of_one_chunk() -> Case:
    """A batch of one chunk."""
    return random_case(1)


def refusals(rank: int, ranks: int) -> Found:
    """The sentences for what is spread otherwise, as bytes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    case = batch()
    student, _ = spread(case.student_logits, rank, ranks)
    by_row = DTensor.from_local(
        part(rank, ranks).student_logits,
        init_device_mesh("cpu", (ranks,)),
        [Shard(0)],
        run_check=False,
        shape=case.student_logits.shape,
        stride=case.student_logits.stride(),
    )
    states = Hidden(torch.zeros(6, case.teacher_logits.shape[1], 2), torch.zeros(case.teacher_logits.shape[2], 2))
    model = Toy(tied=False)
    model.head.weight = torch.nn.Parameter(
        distribute_tensor(model.head.weight, init_device_mesh("cpu", (ranks,)), [Shard(0)])
    )
    attempts = (
        lambda: loss_of("c-kl")(by_row, case.teacher_logits, case.spans, labels=case.labels),
        lambda: loss_of("c-kl")(student, states, case.spans, labels=case.labels),
        lambda: train(model, fuse_head(model), case),
        lambda: XTokenLoss(case.mapping, kind="alm")(student, case.teacher_logits, case.spans),
        lambda: XTokenLoss(case.mapping, kind="p-kl", compat="nemo-rl")(student, case.teacher_logits, case.spans),
    )
    said = []
    for attempt in attempts:
        try:
            attempt()
        except OptionError as error:
            said.append(str(error))
    return {"said": torch.tensor(list("\n".join(said).encode()))}


def learnt(rank: int, ranks: int) -> Found:
    """The gradient of W's weights, which are whole on each rank."""
    case = batch()
    loss = learning()
    student, _ = spread(case.student_logits, rank, ranks)
    loss(student, case.teacher_logits, case.spans, labels=case.labels).loss.backward()
    return {name: one.grad for name, one in loss.named_parameters() if one.grad is not None}


def learning() -> XTokenLoss:
    """A loss that trains W."""
    return XTokenLoss(batch().mapping, kind="p-kl", merge="mean", learn_w=True)


def dynamic(rank: int, ranks: int) -> Found:
    """Two optimiser steps of two calls; the factors after each, and a loss with the last."""
    loss, case = loss_of("partition-kl", scale="dynamic"), part(rank, ranks)
    factors = []
    for step in range(2):
        for call in range(2):
            loss(case.student_logits * (1 + step + call), case.teacher_logits, case.spans, labels=case.labels)
        loss.step_scale()
        factors.append(loss.scale.factor.clone())
    output = loss(case.student_logits, case.teacher_logits, case.spans, labels=case.labels, **counts())
    return numbers(output) | {"factors": torch.stack(factors)}


def dynamic_vocabulary(rank: int, ranks: int) -> Found:
    """The same with the student's vocabulary over the ranks, of the whole batch."""
    loss, case = loss_of("partition-kl", scale="dynamic"), batch()
    factors = []
    for step in range(2):
        for call in range(2):
            student, _ = spread(case.student_logits * (1 + step + call), rank, ranks)
            loss(student, case.teacher_logits, case.spans, labels=case.labels)
        loss.step_scale()
        factors.append(loss.scale.factor.clone())
    return {"factors": torch.stack(factors)}


class Output(NamedTuple):
    """What a model returns, in a form in which FSDP2 finds the tensors."""

    logits: torch.Tensor


class Toy(torch.nn.Module):
    """Two layers and a head, tied or not, whose logits are halved."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(5)
        width = batch().student_logits.shape[-1]
        self.config = SimpleNamespace(logits_scaling=2.0)
        self.embedding = torch.nn.Embedding(width, 8, dtype=torch.float64)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8, dtype=torch.float64) for _ in range(2)])
        self.head = torch.nn.Linear(8, width, bias=False, dtype=torch.float64)
        with torch.no_grad():
            for one in self.parameters():
                one.copy_(torch.randn(one.shape, generator=draw, dtype=torch.float64))
        if tied:
            self.head.weight = self.embedding.weight

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> Output:
        states = self.embedding(ids)
        for layer in self.layers:
            states = states + torch.tanh(layer(states))
        return Output(self.head(states) / self.config.logits_scaling)


def train(model: torch.nn.Module, head: Any, case: Case, **given: Any) -> Any:
    """Forward and backward by the head; the output."""
    loss = loss_of("c-kl")
    with head.computing(lambda hidden: loss(hidden, case.teacher_logits, case.spans, labels=case.labels, **given)):
        model(torch.from_numpy(case.spans.student_ids))
    head.output.loss.backward()
    return head.output


def wrapped(rank: int, ranks: int, how: str, *, tied: bool) -> Found:
    """A model whose head is fused, under DDP or FSDP2, each rank with its rows; gradients as these make them."""
    model = Toy(tied=tied)
    head, outer = fuse_head(model), model
    if how == "ddp":
        outer = torch.nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard

        parts = {"fsdp": [*model.layers], "fsdp, the head too": [*model.layers, head], "fsdp, the whole alone": []}
        for layer in parts[how]:
            fully_shard(layer)
        fully_shard(model)
    output = train(outer, head, part(rank, ranks), **counts())
    gradients = [one.grad.full_tensor() if hasattr(one.grad, "full_tensor") else one.grad for one in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    return numbers(output) | dict(zip(names, gradients, strict=True))


SCENARIOS: dict[str, Callable[[int, int], Found]] = {
    **{f"data parallel, {name}": partial(data_parallel, name=name) for name in LOSSES},
    **{
        f"vocabulary, {name}, the teacher {teacher_is}": partial(vocabulary, name=name, teacher_is=teacher_is)
        for name in LOSSES
        for teacher_is in ("spread", "whole")
    },
    "vocabulary, c-kl, the teacher a cache": partial(vocabulary, name="c-kl", teacher_is="a cache"),
    "whole student": whole_student,
    "small batch": small_batch,
    "refusals": refusals,
    "learnt": learnt,
    "dynamic": dynamic,
    "dynamic, vocabulary": dynamic_vocabulary,
    "ddp": partial(wrapped, how="ddp", tied=False),
    "ddp, tied": partial(wrapped, how="ddp", tied=True),
    "fsdp": partial(wrapped, how="fsdp", tied=False),
    "fsdp, tied": partial(wrapped, how="fsdp", tied=True),
    "fsdp, the head too": partial(wrapped, how="fsdp, the head too", tied=False),
    "fsdp, the whole alone": partial(wrapped, how="fsdp, the whole alone", tied=False),
}


def run(ranks: int, folder: Path) -> list[dict[str, Found | str]]:
    """What each rank found in every scenario; a traceback where it failed."""
    method = "spawn"
    if "forkserver" in torch.multiprocessing.get_all_start_methods():
        # torch is imported once, before the processes are parted; nothing else has run there.
        torch.multiprocessing.set_forkserver_preload([__name__])
        method = "forkserver"
    torch.multiprocessing.start_processes(_work, args=(ranks, str(folder)), nprocs=ranks, start_method=method)
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def _work(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        store=distributed.FileStore(str(Path(folder) / "store"), ranks),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=30),
    )
    found: dict[str, Found | str] = {}
    for name, scenario in SCENARIOS.items():
        try:
            found[name] = scenario(rank, ranks)
        except Exception:  # noqa: BLE001 - it is raised in the test
            found[name] = traceback.format_exc()
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
