"""Two processes on loopback: the same losses and the same student as one process with batches twice as large."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_world import World, far, losses, make_trainer, texts, weights

import xtoken_align
from xtoken_align.training import DistillConfig, TeacherSpec, distill
from xtoken_align.training.config_file import from_values


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def in_two_processes(run: Callable[[int], Any], folder: Path) -> list[Any]:
    """What a function returns in each of two processes of one group; forked, since importing takes longer than all."""
    port, children = str(free_port()), []
    for rank in range(2):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            group = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "OMP_NUM_THREADS": "1",
            }
            os.environ.update({**group, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
            torch.save(run(rank), folder / f"rank-{rank}.pt")
            code = 0
        finally:
            os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0]
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


def outcome(trainer: Any) -> dict[str, Any]:
    names = ("loss", "kd", "ce", "agreement", "scale")
    return {
        **{name: losses(trainer, name) for name in names},
        "weights": weights(trainer.accelerator.unwrap_model(trainer.model)),
        "links": [parameter.detach() for parameter in trainer.distillation.loss.parameters()],
        "eval": trainer.evaluate(texts(8, seed=3)),
    }


CASES: dict[str, dict[str, Any]] = {
    "dynamic scale": {"loss": {"kind": "c-kl", "scale": "dynamic"}},
    "accumulation and learnt links": {
        "loss": {"kind": "p-kl", "merge": "mean", "learn_w": True},
        "gradient_accumulation_steps": 2,
    },
    "whole logits": {"fused": False, "loss": {"kind": "partition-kl"}},
}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one_with_batches_twice_as_large(world: World, tmp_path: Path, name: str) -> None:
    steps = 20 if name == "dynamic scale" else 5

    def run(size: int, folder: Path) -> dict[str, Any]:
        changes = {"max_steps": steps, "rows": texts(64), "per_device_train_batch_size": size, **CASES[name]}
        trainer = make_trainer(world, folder, **changes)
        trainer.train()
        return outcome(trainer)

    two = in_two_processes(lambda rank: run(2, tmp_path / str(rank)), tmp_path)
    one = run(4, tmp_path / "one")
    for name_ in ("loss", "kd", "ce", "agreement", "scale"):
        assert two[0][name_] == pytest.approx(one[name_], abs=1e-4)
    assert len(one["loss"]) == steps
    assert far(two[0]["weights"], one["weights"]) < 1e-3
    assert far(two[0]["weights"], two[1]["weights"]) == 0
    for left, right, alone in zip(two[0]["links"], two[1]["links"], one["links"], strict=True):
        assert torch.equal(left, right)
        assert torch.allclose(left, alone, atol=1e-4)
    for measure in ("eval_kd", "eval_ce", "eval_agreement"):
        assert two[0]["eval"][measure] == pytest.approx(one["eval"][measure], abs=1e-4)


def test_measuring_before_training_leaves_the_processes_together(world: World, tmp_path: Path) -> None:
    def run(size: int, folder: Path) -> dict[str, Any]:
        trainer = make_trainer(world, folder, per_device_train_batch_size=size, eval_rows=texts(4), max_steps=3)
        trainer.evaluate()
        trainer.train()
        return outcome(trainer)

    two = in_two_processes(lambda rank: run(2, tmp_path / str(rank)), tmp_path)
    one = run(4, tmp_path / "one")
    assert far(two[0]["weights"], two[1]["weights"]) == 0
    assert two[0]["loss"] == pytest.approx(one["loss"], abs=1e-4)


def test_a_distilled_student_is_measured_alike_by_any_number_of_processes(world: World, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "corpus.txt").write_text("\n".join(row["text"] for row in texts(70)))

    def run(name: str, size: int) -> Any:
        rows = {"texts": [str(tmp_path / "corpus.txt")], "longest_text": 30, "holdout": 6}
        room = {"max_student_tokens": 24, "max_teacher_tokens": 24}
        training = {"max_steps": 4, "per_device_train_batch_size": size, "logging_steps": 1, "use_cpu": True, **room}
        models = {"student": {"model": str(world.student)}, "teachers": [{"model": str(world.teacher)}]}
        values = {**models, **rows, "training": training, "output": str(tmp_path / name)}
        return distill(from_values(DistillConfig, values), store=world.store).to_dict()

    two = in_two_processes(lambda _: run("two", 2), tmp_path)
    one = run("one", 4)
    assert two[0]["held_out"] == one["held_out"] == 6
    for when in ("before", "after", "training"):
        assert two[0][when] == pytest.approx(one[when], abs=1e-4)
    assert xtoken_align.read_vocab(two[0]["student"]).fingerprint == xtoken_align.read_vocab(world.student).fingerprint


def test_ranks_that_do_not_share_their_counts_have_a_mean_each(world: World, tmp_path: Path) -> None:
    def run(rank: int) -> dict[str, Any]:
        specs = [TeacherSpec(model=world.load(folder)) for folder in (world.teacher, world.other)]
        trainer = make_trainer(
            world, tmp_path / str(rank), teacher=specs, average_tokens_across_devices=False, max_steps=3
        )
        trainer.train()
        return {"loss": losses(trainer), "weights": weights(trainer.accelerator.unwrap_model(trainer.model))}

    two = in_two_processes(run, tmp_path)
    assert far(two[0]["weights"], two[1]["weights"]) == 0
    assert all(1 < value < 12 for value in two[0]["loss"])


def sharded(trainer: Any) -> Any:
    """A trainer under FSDP2, which accelerate itself takes up only where it finds accelerators."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        cpu_ram_efficient_loading=False,
    )
    state = trainer.accelerator.state
    for values in (state._shared_state, vars(state)):
        values.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
    trainer.is_fsdp_enabled = True
    return trainer


def test_a_student_in_shards_learns_the_same(world: World, tmp_path: Path) -> None:
    changes = {"max_steps": 5, "gradient_accumulation_steps": 2, "loss": {"kind": "c-kl", "scale": "dynamic"}}

    def run(rank: int) -> dict[str, Any]:
        trainer = sharded(make_trainer(world, tmp_path / str(rank), per_device_train_batch_size=2, **changes))
        trainer.train()
        kinds = {type(parameter).__name__ for parameter in trainer.model.parameters()}
        return {"loss": losses(trainer), "kd": losses(trainer, "kd"), "kinds": sorted(kinds)}

    two = in_two_processes(run, tmp_path)
    one = make_trainer(world, tmp_path / "one", **changes)
    one.train()
    assert two[0]["kinds"] == ["DTensor"]
    for name in ("loss", "kd"):
        assert two[0][name] == pytest.approx(losses(one, name), abs=1e-4)


ON: dict[str, Any] = {"lmbda": 0.7, "max_new_tokens": 12, "prompt_tokens": 3, "generation_batch_size": 1}


@pytest.mark.parametrize("in_shards", [False, True])
def test_processes_write_different_answers_and_learn_one_student(world: World, tmp_path: Path, in_shards: bool) -> None:
    def run(rank: int) -> dict[str, Any]:
        # Of one batch more or less of like lengths, ends at different places: each process writes as long as it takes.
        trainer = make_trainer(world, tmp_path / str(rank), per_device_train_batch_size=2 + rank, max_steps=4, **ON)
        trainer.model.generation_config.eos_token_id = list(range(2 + 60 * rank, 40 + 60 * rank))
        if in_shards:
            sharded(trainer)
        written: list[Any] = []
        make = trainer._on_policy.batches

        def noted(*arguments: Any) -> Any:
            batches = make(*arguments)
            written.extend(batch["input_ids"].tolist() for batch in batches)
            return batches

        object.__setattr__(trainer._on_policy, "batches", noted)
        trainer.train()
        full = [getattr(one, "full_tensor", lambda one=one: one)() for one in trainer.model.parameters()]
        return {"loss": losses(trainer), "written": written, "weights": [one.detach() for one in full]}

    two = in_two_processes(run, tmp_path)
    assert two[0]["loss"] == two[1]["loss"]
    assert all(0 < value < 30 for value in two[0]["loss"])
    assert len(two[0]["written"]) == len(two[1]["written"]) > 0
    assert all(one != other for one, other in zip(two[0]["written"], two[1]["written"], strict=True))
    assert all(torch.equal(one, other) for one, other in zip(two[0]["weights"], two[1]["weights"], strict=True))
