"""Without the trainer: the loop of the README, and `Distillation` in a loop of one's own."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from training_world import COLLATE, World, far, make_trainer, texts, weights

from xtoken_align import build, read_vocab
from xtoken_align.errors import XTokenWarning
from xtoken_align.training import Distillation, TeacherSpec

LOOP = (Path(__file__).parent / "plain_loop.py").read_text(encoding="utf-8")


def test_the_loop_of_the_readme_trains(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.root)
    assert len([line for line in LOOP.splitlines() if line]) <= 30
    (world.root / "corpus.txt").write_text("\n".join(row["text"] for row in texts(32)))
    names: dict[str, Any] = {}
    exec(compile(LOOP, "plain_loop.py", "exec"), names)
    assert far(weights(names["student"]), weights(world.load(world.student))) > 1e-3
    assert all(parameter.grad is None for parameter in names["student"].parameters())
    assert names["out"].loss.item() > 0


def test_a_loop_of_ones_own_does_what_the_trainer_does(world: World, tmp_path: Path) -> None:
    model = world.load(world.student)
    distillation = Distillation(model, teacher=world.load(world.teacher), collate=COLLATE, store=world.store)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    trainer = make_trainer(world, tmp_path, max_grad_norm=0.0)
    order = list(trainer.get_train_dataloader().batch_sampler)[:4]
    for batch in DataLoader(texts(48), batch_sampler=order, collate_fn=distillation.collate):
        distillation(model, batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    make = make_trainer(world, tmp_path, max_grad_norm=0.0)
    make.train()
    assert far(weights(make.model), weights(model)) < 1e-5


def test_processes_that_prepare_batches_make_the_same_ones(world: World) -> None:
    spec = TeacherSpec(model=world.load(world.teacher))
    distillation = Distillation(world.load(world.student), teacher=[spec], collate=COLLATE, store=world.store)
    rows = texts(8)
    here, there = (
        list(DataLoader(rows, batch_size=4, collate_fn=distillation.collate, num_workers=workers)) for workers in (0, 1)
    )
    # What a process that is spawned gets.
    travelled = pickle.loads(pickle.dumps(distillation.collate))
    for left, right in [*zip(here, there, strict=True), (here[0], travelled(rows[:4]))]:
        assert torch.equal(left["input_ids"], right["input_ids"])
        spans = [one["teachers"][0]["spans"].spans for one in (left, right)]
        assert torch.equal(spans[0].teacher, spans[1].teacher)


def test_a_side_without_an_end_of_turn_is_a_warning_at_the_start(world: World) -> None:
    model = world.load(world.student)
    vocab = read_vocab(world.student, logits=model.config.vocab_size)
    endless = replace(vocab, roles={role: ids for role, ids in vocab.roles.items() if role != "eos"})
    said = "the teacher .* has a token that ends a turn, and the student .* has none by role"
    mapping = build(student=endless, teacher=read_vocab(world.teacher))
    spec = TeacherSpec(model=world.load(world.teacher), mapping=mapping)
    with pytest.warns(XTokenWarning, match=said):
        Distillation(model, teacher=spec, tokenizer=endless)
