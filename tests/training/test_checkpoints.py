"""Runs that are cut off: what is left, and what comes of going on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_world import World, far, losses, make_llama, make_trainer, weights
from transformers import TrainerCallback

from xtoken_align.errors import OptionError, StoreError, XTokenWarning
from xtoken_align.training.trainer import (
    STATE,
    checkpoints_in,
    damage_of,
    finish_checkpoint,
    last_checkpoint,
    load_loss,
    remove_checkpoint,
    rotate,
    sound_checkpoint,
)

RUN: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}


class CutOffError(Exception):
    """A run ends here."""


class Cut(TrainerCallback):
    """Cuts a run off at the beginning of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise CutOffError


def trainer_of(world: World, folder: Path, **changes: Any) -> Any:
    """A trainer whose student draws random numbers at every step."""
    student = make_llama(world.load(world.student).config.vocab_size, seed=1, attention_dropout=0.3)
    return make_trainer(world, folder, model=student, **{**RUN, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {"kind": "c-kl", "scale": "dynamic"}},
        {"loss": {"kind": "p-kl", "merge": "mean", "learn_w": True}, "gradient_accumulation_steps": 2},
        {"lmbda": 0.5, "max_new_tokens": 4, "prompt_tokens": 4},
    ],
    ids=["dynamic scale", "learnt links", "on-policy"],
)
def test_going_on_is_as_if_nothing_had_happened(world: World, tmp_path: Path, changes: dict[str, Any]) -> None:
    quiet = trainer_of(world, tmp_path / "quiet", **changes)
    quiet.train()
    cut = trainer_of(world, tmp_path / "cut", **changes)
    cut.add_callback(Cut(5))
    with pytest.raises(CutOffError):
        cut.train()
    again = trainer_of(world, tmp_path / "cut", **changes)
    again.train(resume_from_checkpoint=True)
    assert losses(again) == losses(quiet)
    assert far(weights(again.model), weights(quiet.model)) == 0
    states = [trainer.distillation.loss.state_dict() for trainer in (quiet, again)]
    assert far(*states) == 0 if states[0] else not states[1]


def test_going_on_after_the_last_step_makes_no_further_one(world: World, tmp_path: Path) -> None:
    first = trainer_of(world, tmp_path)
    first.train()
    again = trainer_of(world, tmp_path)
    assert far(weights(again.model), weights(first.model)) > 0
    assert again.train(resume_from_checkpoint=True).global_step == 6
    assert far(weights(again.model), weights(first.model)) == 0
    assert losses(again) == losses(first)


@pytest.mark.parametrize("moment", ["_save_optimizer_and_scheduler", "_save_rng_state", "finish"])
def test_a_checkpoint_that_was_cut_short_is_passed_over(
    world: World, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(world, tmp_path, save_total_limit=1)
    calls = []

    def dies(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise CutOffError

    if moment == "finish":
        monkeypatch.setattr("xtoken_align.training.trainer.finish_checkpoint", lambda *all_: dies() or finish(*all_))
        finish = finish_checkpoint
    else:
        own = getattr(trainer, moment)
        monkeypatch.setattr(trainer, moment, lambda folder: dies() or own(folder))
    with pytest.raises(CutOffError):
        trainer.train()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    monkeypatch.undo()
    quiet = trainer_of(world, tmp_path / "quiet")
    quiet.train()
    again = trainer_of(world, tmp_path, save_total_limit=1)
    again.train(resume_from_checkpoint=True)
    assert far(weights(again.model), weights(quiet.model)) == 0
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-6"]


@pytest.mark.parametrize("room", [1_000, 100_000], ids=["for no file", "for the weights"])
def test_a_checkpoint_that_the_disk_has_no_room_for_is_one_sentence(world: World, tmp_path: Path, room: int) -> None:
    resource = pytest.importorskip("resource")
    cut = trainer_of(world, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(StoreError, match=r"cannot write .*checkpoint-2 \(.*\): choose another place or make room"):
            cut.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert last_checkpoint(tmp_path) is None


def test_without_a_whole_checkpoint_there_is_nothing_to_go_on_from(world: World, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(StoreError, match="no whole checkpoint"):
        trainer_of(world, tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(StoreError, match="is no whole checkpoint of a distillation"):
        trainer_of(world, tmp_path).train(resume_from_checkpoint=tmp_path / "checkpoint-2")


def test_a_checkpoint_of_other_losses_is_refused(tmp_path: Path) -> None:
    finish_checkpoint(tmp_path, torch.nn.BatchNorm1d(3))
    with pytest.raises(StoreError, match="other losses"):
        load_loss(tmp_path, torch.nn.Linear(2, 2))


def test_the_oldest_checkpoints_go_and_the_best_stays(tmp_path: Path) -> None:
    for step in (2, 10, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / STATE).touch()
    (tmp_path / "notes").mkdir()
    rotate(tmp_path, limit=None, best=None)
    assert len(checkpoints_in(tmp_path)) == 4
    rotate(tmp_path, limit=2, best=str(tmp_path / "checkpoint-2"))
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-2", "checkpoint-10"]
    rotate(tmp_path, limit=1, best=None)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-10"]
    assert (tmp_path / "notes").is_dir()


def test_a_checkpoint_that_is_half_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    finish_checkpoint(checkpoint, torch.nn.Linear(2, 2))
    assert last_checkpoint(tmp_path) == checkpoint
    monkeypatch.setattr("shutil.rmtree", lambda _: (_ for _ in ()).throw(CutOffError))
    with pytest.raises(CutOffError):
        remove_checkpoint(checkpoint)
    assert last_checkpoint(tmp_path) is None


def test_where_all_checkpoints_are_damaged_a_sentence_says_so(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "weights").write_bytes(b"1234")
    finish_checkpoint(checkpoint, torch.nn.Linear(2, 2))
    assert damage_of(checkpoint) is None
    assert sound_checkpoint(tmp_path) == checkpoint
    (checkpoint / "weights").write_bytes(b"1235")
    assert damage_of(checkpoint) == "weights is not what was written"
    (checkpoint / "weights").unlink()
    with (
        pytest.warns(XTokenWarning),
        pytest.raises(StoreError, match=r"checkpoint-2 is damaged \(weights is missing\)"),
    ):
        sound_checkpoint(tmp_path)


class Broken(TrainerCallback):
    """Makes a weight no number before a step."""

    def on_step_begin(self, _args: Any, state: Any, _control: Any, model: Any, **_: Any) -> None:
        if state.global_step == 3:
            next(model.parameters()).data.fill_(float("nan"))


def test_a_run_whose_loss_is_no_number_is_given_up(world: World, tmp_path: Path) -> None:
    trainer = trainer_of(world, tmp_path, max_steps=20, save_steps=3)
    trainer.add_callback(Broken())
    with pytest.raises(OptionError, match=r"the loss was not finite in the last 5 batches, up to step 8: take a lower"):
        trainer.train()
    # Nothing was written after the last step whose loss was a number.
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-3"]
