"""On-policy batches: what the student writes, and what the teacher is told of it."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Any

import pytest
import torch
from training_world import World, far, losses, make_trainer, texts, weights

from xtoken_align.errors import OptionError
from xtoken_align.training import TeacherSpec, write_teacher_cache

ON: dict[str, Any] = {"lmbda": 1.0, "max_new_tokens": 6, "prompt_tokens": 3}

CHAT = """{% for message in messages %}<s>{{ message.role }}: {{ message.content }}</s>{% endfor %}"""


def drawn(trainer: Any, rows: list[dict[str, Any]], step: int = 0, rank: int = 0) -> dict[str, Any]:
    batch: dict[str, Any] = trainer._on_policy(trainer.model, rows, step, rank=rank)
    return batch


def test_without_lambda_nothing_changes(world: World, tmp_path: Path) -> None:
    off = make_trainer(world, tmp_path)
    zero = make_trainer(world, tmp_path, **{**ON, "lmbda": 0.0})
    off.train()
    zero.train()
    assert losses(off) == losses(zero)
    assert far(weights(off.model), weights(zero.model)) == 0


def test_a_student_learns_from_what_it_writes(world: World, tmp_path: Path) -> None:
    trainer = make_trainer(world, tmp_path, **ON, max_steps=16, learning_rate=2e-2, per_device_train_batch_size=8)
    batch = drawn(trainer, texts(16, seed=4), 99)
    before = trainer.distillation(trainer.model, batch).kd
    trainer.train()
    assert trainer.distillation(trainer.model, batch).kd < 0.8 * before
    assert losses(trainer) == pytest.approx(losses(trainer, "kd"))
    assert not losses(trainer, "ce")
    assert trainer.model.training


def test_both_sides_of_what_was_written_are_one_text(world: World, tmp_path: Path) -> None:
    trainer = make_trainer(world, tmp_path, **ON)
    student, teacher = trainer.distillation.vocab, trainer.distillation.teacher_vocabs[0]
    rows = texts(4)
    batch = drawn(trainer, rows)
    spans = batch["teachers"][0]["spans"].spans.numpy()
    given = trainer.distillation.collate(rows)["input_ids"].numpy()
    for row in range(4):
        ids = spans.student_ids[row][spans.student_mask[row]]
        assert ids[:4].tolist() == given[row][:4].tolist()
        assert len(ids) <= 4 + 6
        said = b"".join(student.surfaces[token] for token in ids if student.kinds[token] < 2)
        theirs = spans.teacher_ids[row][spans.teacher_mask[row]]
        heard = b"".join(teacher.surfaces[token] for token in theirs if teacher.kinds[token] < 2)
        # What the cut left of a character is not read.
        assert heard.decode() == codecs.getincrementaldecoder("utf-8")("replace").decode(said)
        assert theirs[0] == teacher.roles["bos"][0]
        assert (theirs[-1] == teacher.roles["eos"][0]) == (ids[-1] == student.roles["eos"][0])
        assert not spans.student_loss_mask[row][:4].any()
    used = spans.predictions()
    assert len(used) > 0
    assert set((used.student % spans.student.shape[1]).tolist()) <= set(range(3, 10))
    assert (batch["labels"] == -100).all()


def test_of_a_chat_the_student_writes_the_answer(world: World, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    room = {"max_student_tokens": 60, "max_teacher_tokens": 60}
    collate = {"student_template": CHAT, "teacher_template": CHAT, **room}
    trainer = make_trainer(world, tmp_path, **ON, collate=collate)
    messages = [{"role": "user", "content": "the sum of 12"}, {"role": "assistant", "content": "is 42"}]
    batch = drawn(trainer, [{"messages": messages}])
    spans = batch["teachers"][0]["spans"].spans.numpy()
    student, teacher = trainer.distillation.vocab, trainer.distillation.teacher_vocabs[0]
    for vocab, ids in ((student, spans.student_ids[0]), (teacher, spans.teacher_ids[0])):
        said = b"".join(vocab.surfaces[token] for token in ids).decode(errors="ignore")
        assert said.startswith("<s>user: the sum of 12</s><s>assistant:")
        assert "42" not in said[:45]


def test_what_is_drawn_depends_on_the_step_and_the_process_alone(world: World, tmp_path: Path) -> None:
    trainer, other = (make_trainer(world, tmp_path, **ON) for _ in range(2))
    rows = texts(3)
    state = torch.random.get_rng_state()
    first = drawn(trainer, rows, 5)["input_ids"]
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(7)
    assert torch.equal(first, drawn(other, rows, 5)["input_ids"])
    for step, rank in ((6, 0), (5, 1)):
        again = drawn(trainer, rows, step, rank)["input_ids"]
        assert again.shape != first.shape or not torch.equal(first, again)


def test_lambda_is_the_share_of_batches(world: World, tmp_path: Path) -> None:
    trainer = make_trainer(world, tmp_path, **{**ON, "lmbda": 0.3, "max_new_tokens": 1})
    drawn_ones = ["truncated" in drawn(trainer, texts(1), step) for step in range(200)]
    assert 40 < sum(drawn_ones) < 80


def test_a_cached_teacher_cannot_answer_what_the_student_writes(world: World, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import xtoken_align

    vocab = xtoken_align.read_vocab(world.teacher)
    model = world.load(world.teacher)
    write_teacher_cache(model, texts(4), tmp_path / "c", teacher=vocab, top_k=4, max_teacher_tokens=24)
    spec = TeacherSpec(model=tmp_path / "c", tokenizer=world.teacher)
    with pytest.raises(OptionError, match="lmbda=0"):
        make_trainer(world, tmp_path, **ON, teacher=[spec], loss={"kind": "p-kl"})


def test_packed_rows_have_no_single_beginning(world: World, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="leave pack out"):
        make_trainer(world, tmp_path, **ON, collate={"pack": True})
