"""TRL's `SFTTrainer`, with a teacher that has another tokenizer.

    python examples/trl_sft.py STUDENT TEACHER corpus.jsonl run

STUDENT and TEACHER are model folders or Hub ids; each line of the corpus is a row: {"text": ...} or {"messages": ...}.
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

from xtoken_align.training import Distillation, DistillationMixin


class DistillingSFTTrainer(DistillationMixin, trl.SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with the loss of a distillation; all else is TRL's."""


def make_trainer(
    student: str, teacher: str, rows: Sequence[Mapping[str, Any]], output: str, **settings: Any
) -> DistillingSFTTrainer:
    """A trainer that teaches the student.

    Args:
        student: a model's folder or Hub id.
        teacher: the same of the teacher.
        rows: the data.
        output: where checkpoints go.
        **settings: of `trl.SFTConfig`.
    """
    model = AutoModelForCausalLM.from_pretrained(student)
    distillation = Distillation(
        model,
        teacher=AutoModelForCausalLM.from_pretrained(teacher),
        loss={"kind": "auto"},  # options of XTokenLoss
        collate={"max_student_tokens": 512, "max_teacher_tokens": 640},  # options of SpanCollator
    )
    arguments = trl.SFTConfig(
        output_dir=output,
        # The distillation's collator reads the rows as they are: both tokenizers' ids are made there.
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **settings,
    )
    return DistillingSFTTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list([*rows]), distillation=distillation
    )


def main(student: str, teacher: str, corpus: str, output: str) -> None:
    """Trains, and writes the student."""
    rows = [json.loads(line) for line in Path(corpus).read_text(encoding="utf-8").splitlines()]
    settings = {"per_device_train_batch_size": 4, "learning_rate": 1e-4, "use_cpu": not torch.cuda.is_available()}
    trainer = make_trainer(student, teacher, rows, output, **settings)
    trainer.train()
    trainer.save_model(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
