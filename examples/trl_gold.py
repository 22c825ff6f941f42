"""In the place of TRL's `GOLDTrainer`: its configuration, with every loss of this library.

    python examples/trl_gold.py STUDENT TEACHER prompts.jsonl run

A run that is written for `GOLDTrainer` keeps its `GOLDConfig`. What the words mean stays: `lmbda` is the share of the
batches that the student writes itself, at `temperature` and `top_p`, `max_completion_length` tokens at most; `beta`
goes from the forward to the reverse divergence; `uld_crossentropy_weight` and `uld_distillation_weight` are the loss's
two factors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl.experimental.gold import GOLDConfig

from xtoken_align.training import Distillation, DistillationMixin


class DistillingTrainer(DistillationMixin, trl.SFTTrainer):  # type: ignore[misc]
    """`GOLDTrainer` is an `SFTTrainer` too; what it adds for distilling is the mixin's here."""


def loss_of(config: GOLDConfig) -> dict[str, Any]:
    """What a `GOLDConfig` says of the loss, as options of `XTokenLoss`."""
    return {
        "divergence": "jsd",
        "beta": config.beta,  # 0 is the forward divergence and 1 the reverse one, in TRL and here
        "kd_weight": config.uld_distillation_weight,
        "ce_weight": config.uld_crossentropy_weight,
    }


def make_trainer(student: str, rows: Sequence[Mapping[str, Any]], config: GOLDConfig) -> DistillingTrainer:
    """A trainer of the student, with the teacher that the configuration names.

    Args:
        student: a model's folder or Hub id.
        rows: `messages`, whose last answer the student writes anew, or a `prompt`, or a `text` that it continues.
        config: for `GOLDTrainer`.
    """
    model = AutoModelForCausalLM.from_pretrained(student)
    distillation = Distillation(
        model,
        teacher=AutoModelForCausalLM.from_pretrained(config.teacher_model_name_or_path),
        loss=loss_of(config),
        collate={"max_student_tokens": config.max_length, "max_teacher_tokens": config.max_length},
    )
    config.remove_unused_columns = False
    config.dataset_kwargs = {"skip_prepare_dataset": True}
    return DistillingTrainer(
        model=model, args=config, train_dataset=Dataset.from_list([*rows]), distillation=distillation
    )


def main(student: str, teacher: str, prompts: str, output: str) -> None:
    """Trains with half of the batches on-policy, and writes the student."""
    rows = [json.loads(line) for line in Path(prompts).read_text(encoding="utf-8").splitlines()]
    config = GOLDConfig(
        output_dir=output,
        teacher_model_name_or_path=teacher,
        lmbda=0.5,
        beta=1.0,
        learning_rate=1e-5,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = make_trainer(student, rows, config)
    trainer.train()
    trainer.save_model(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
