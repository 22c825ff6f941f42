"""On a GPU training is what it is on the processor, up to the digits in which their arithmetic differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu import DEVICE, needs_gpu
from training_world import World, losses, make_trainer, texts

import xtoken_align
from xtoken_align.training import DistillConfig, TeacherCache, TeacherSpec, distill, write_teacher_cache
from xtoken_align.training.config_file import from_values

pytestmark = needs_gpu

LOSSES: dict[str, dict[str, Any]] = {
    "c-kl": {"kind": "c-kl"},
    "p-kl, every position": {"kind": "p-kl", "merge": "mean", "temperature": 2.0},
    "h-kl": {"kind": "h-kl"},
    "alm": {"kind": "alm"},
    "scaled": {"kind": "partition-kl", "scale": "dynamic"},
}


def trained(world: World, folder: Path, *, on_gpu: bool, **changes: Any) -> Any:
    trainer = make_trainer(world, folder, use_cpu=not on_gpu or DEVICE.type == "cpu", max_steps=6, **changes)
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fused", [True, False])
def test_training_is_the_processors(name: str, fused: bool, world: World, tmp_path: Path) -> None:
    both = [
        trained(world, tmp_path / str(on_gpu), on_gpu=on_gpu, loss=LOSSES[name], fused=fused)
        for on_gpu in (True, False)
    ]
    assert next(both[0].model.parameters()).device.type == DEVICE.type
    assert losses(both[0]) == pytest.approx(losses(both[1]), abs=2e-3)
    for logged in ("kd", "ce"):
        assert losses(both[0], logged) == pytest.approx(losses(both[1], logged), abs=2e-3)


def test_mixed_precision_and_accumulation(world: World, tmp_path: Path) -> None:
    options = {"loss": {"kind": "c-kl"}, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    full = trained(world, tmp_path / "full", on_gpu=True, **options)
    half = trained(world, tmp_path / "half", on_gpu=True, bf16=True, **options)
    assert losses(half) == pytest.approx(losses(full), rel=0.05)


def test_a_student_learns_from_what_it_writes(world: World, tmp_path: Path) -> None:
    trainer = trained(world, tmp_path, on_gpu=True, lmbda=1.0, max_new_tokens=6, prompt_tokens=3)
    assert len(losses(trainer)) == 6
    assert all(value > 0 for value in losses(trainer, "kd"))


@pytest.mark.parametrize("kept", [{"top_k": 64}, {"keep": "hidden"}], ids=["top_k", "hidden"])
def test_a_cache_is_the_processors_and_trains_there(world: World, tmp_path: Path, kept: dict[str, Any]) -> None:
    pytest.importorskip("pyarrow")
    vocab = xtoken_align.read_vocab(world.teacher)
    options: dict[str, Any] = {"teacher": vocab, "dtype": "float32", "max_teacher_tokens": 24, **kept}
    for name, device in (("gpu", DEVICE), ("cpu", "cpu")):
        write_teacher_cache(world.load(world.teacher).to(device), texts(48), tmp_path / name, **options)
    caches = [TeacherCache(tmp_path / name) for name in ("gpu", "cpu")]
    rests = [cache.truncation().mean_rest for cache in caches]
    assert rests[0] == pytest.approx(rests[1], abs=1e-5)
    both = [
        trained(
            world,
            tmp_path / f"run {name}",
            on_gpu=True,
            teacher=[TeacherSpec(model=tmp_path / name, tokenizer=world.teacher)],
        )
        for name in ("gpu", "cpu")
    ]
    assert losses(both[0]) == pytest.approx(losses(both[1]), abs=1e-4)
    assert np.isfinite(losses(both[0])).all()


def test_distill_takes_the_device_that_is_there(world: World, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in texts(60)))
    training = {
        "max_steps": 20,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.02,
        "max_student_tokens": 24,
        "max_teacher_tokens": 24,
        "bf16": True,
        **({"use_cpu": True} if DEVICE.type == "cpu" else {}),
    }
    values = {
        "student": {"model": str(world.student)},
        "teachers": [{"model": str(world.teacher), "dtype": "bfloat16"}],
        "texts": [str(corpus)],
        "output": str(tmp_path / "run"),
        "holdout": 4,
        "training": training,
    }
    result = distill(from_values(DistillConfig, values), store=world.store)
    assert result.after["kd"] < 0.9 * result.before["kd"]
