"""TRL's trainers distil through the mixin."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_world import COLLATE, World, far, losses, make_trainer, texts, weights

from xtoken_align.training import Distillation, DistillationMixin, OnPolicy

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")


def test_trls_sft_trainer_distils_as_ours(world: World, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    class DistillingSFTTrainer(DistillationMixin, trl.SFTTrainer):
        pass

    student = world.load(world.student)
    distillation = Distillation(student, teacher=world.load(world.teacher), collate=COLLATE, store=world.store)
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "sft"),
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = DistillingSFTTrainer(
        model=student,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(texts(48)),
        processing_class=PreTrainedTokenizerFast.from_pretrained(world.student),
        distillation=distillation,
    )
    trainer.train()
    ours = make_trainer(world, tmp_path / "ours", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    ours.train()
    assert losses(trainer) == pytest.approx(losses(ours), abs=1e-5)
    assert losses(trainer, "agreement") == pytest.approx(losses(ours, "agreement"))
    assert far(weights(trainer.model), weights(ours.model)) < 1e-4


@pytest.mark.parametrize("trainer", ["gkd", "gold"])
def test_trls_words_for_on_policy_batches_are_read(world: World, tmp_path: Path, trainer: str) -> None:
    module = pytest.importorskip(f"trl.experimental.{trainer}")
    longest = {"gkd": "max_new_tokens", "gold": "max_completion_length"}[trainer]
    options = {"lmbda": 0.25, "temperature": 0.7, longest: 9, "seed": 3}
    config = getattr(module, f"{trainer.upper()}Config")
    args = config(output_dir=str(tmp_path), use_cpu=True, bf16=False, activation_checkpointing=False, **options)
    student = world.load(world.student)
    collate = Distillation(student, teacher=world.load(world.teacher), collate=COLLATE, store=world.store).collate
    on_policy = OnPolicy.of(args, collate)
    assert on_policy is not None
    assert (on_policy.lmbda, on_policy.temperature, on_policy.max_new_tokens, on_policy.seed) == (0.25, 0.7, 9, 3)
    assert on_policy.top_p == getattr(args, "top_p", 1.0)
