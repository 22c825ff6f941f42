"""One run of `distill`: the parts of it that need the models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from ..errors import OptionError
from .arguments import XTokenTrainingArguments
from .cache.read import TeacherCache
from .config import DistillConfig, TeacherConfig
from .distill import Report
from .models import load_model, with_lora, write_student
from .run_folder import RunFolder
from .teachers import TeacherSpec
from .texts import hashes_of, make_rows
from .trainer import XTokenTrainer

_SHOWN = ("loss", "kd", "ce", "agreement", "misfits", "dropped_mass", "empty_mass", "chunks_used")


class Run:
    """The models, the rows and the trainer of a run.

    Args:
        config: the run's.
        folder: the run's.
        store: the store's folder.
        report: is told how training goes.
        say: is told what is being done.

    Raises:
        Whatever makes no sense in the configuration, or does not fit together.
    """

    def __init__(self, config: DistillConfig, folder: RunFolder, *, store: Any, report: Report, say: Any) -> None:
        _silence(transformers.logging)
        self._config, self._folder, self._say = config, folder, say
        self._args = arguments(config, folder.checkpoints)
        transformers.set_seed(config.training.seed)
        student = load_model(config.student.model, revision=config.student.revision, dtype=config.student.dtype)
        if config.lora is not None:
            student = with_lora(student, config.lora)
        teachers = [_teacher(teacher) for teacher in config.teachers]
        say("finding or building the mappings")
        self._trainer = XTokenTrainer(
            student,
            self._args,
            teachers=teachers,
            tokenizer=self._tokenizer,
            loss=config.loss,
            collate=_collate(config),
            store=store,
            callbacks=[_Reporting(report)],
        )
        self._trainer.remove_callback(transformers.PrinterCallback)

    @property
    def _tokenizer(self) -> str:
        given = self._config.student
        if given.tokenizer is not None:
            return given.tokenizer
        return f"{given.model}@{given.revision}" if given.revision else given.model

    def claim(self) -> None:
        """Makes the folder this run's, or checks that it is."""
        distillation = self._trainer.distillation
        facts = {
            "texts": hashes_of(self._config.texts),
            "student": distillation.vocab.fingerprint,
            "mappings": [mapping.version for mapping in distillation.mappings],
            "processes": self._args.world_size,
        }
        with self._args.main_process_first(desc="the run's folder"):
            self._folder.claim(self._config, facts)

    def finish(self, checkpoint: Path | None) -> dict[str, Any]:
        """Trains to the end, writes the student and says what was made.

        Args:
            checkpoint: where to go on from.
        """
        self._say("reading the texts")
        with self._args.main_process_first(desc="the texts"):
            rows, held_out = make_rows(self._config, self._folder.texts, self._args.world_size)
        trainer = self._trainer
        trainer.train_dataset = rows
        before = self._measured("before.json", held_out)
        self._say("training")
        # Measuring draws from the generators, and a run that goes on does not measure again.
        transformers.set_seed(self._config.training.seed)
        trainer.train(checkpoint)
        after = self._measured(None, held_out)
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        result = {
            "steps": trainer.state.global_step,
            "rows": len(rows),
            "held_out": len(held_out),
            "teachers": self._teachers(),
            "before": before,
            "after": after,
            "training": _shown(logged[-1], "") if logged else {},
        }
        self._say("writing the student")
        self._write(result)
        return result

    def _measured(self, name: str | None, rows: Any) -> dict[str, float]:
        """The metrics on rows that are held out; those that a file keeps are taken from there."""
        kept = None if name is None else self._folder.read(name)
        if kept is not None or not len(rows):
            return kept or {}
        self._say("measuring")
        # Batches that do not come out even are filled up with rows that were measured already.
        self._args.per_device_eval_batch_size = even_batch(
            len(rows) // self._args.world_size, self._config.training.batch_size
        )
        found = _shown(self._trainer.evaluate(rows), "eval_")
        if name is not None and self._args.should_save:
            self._folder.write(name, found)
        return found

    def _write(self, result: dict[str, Any]) -> None:
        trainer = self._trainer
        trainer.accelerator.wait_for_everyone()
        if self._args.should_save:
            model = trainer.accelerator.unwrap_model(trainer.model)
            write_student(model, self._folder.student, self._tokenizer, None)
            self._folder.write("result.json", result)
        trainer.accelerator.wait_for_everyone()

    def _teachers(self) -> list[dict[str, Any]]:
        distillation = self._trainer.distillation
        losses = getattr(distillation.loss, "losses", [distillation.loss])
        parts = zip(distillation.mappings, losses, distillation.weights, strict=True)
        return [
            {"name": mapping.teacher.name, "loss": loss.kind, "mapping": mapping.version, "weight": weight}
            for mapping, loss, weight in parts
        ]


def arguments(config: DistillConfig, folder: Path) -> XTokenTrainingArguments:
    """The trainer's arguments for a configuration."""
    training = config.training
    on_cpu = training.device == "cpu" or not torch.accelerator.is_available()
    if on_cpu and training.precision == "float16":
        raise OptionError("training.precision float16 needs a GPU, and this run is on a CPU: take float32 or bfloat16")
    names = XTokenTrainingArguments.__dataclass_fields__
    # Renamed in transformers 5; the old name warns.
    recompute = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    more: dict[str, Any] = {recompute: True} if training.gradient_checkpointing else {}
    return XTokenTrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps or -1,
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        save_strategy="steps",
        save_steps=training.save_every,
        save_total_limit=training.keep,
        logging_steps=training.log_every,
        logging_first_step=True,
        seed=training.seed,
        data_seed=training.seed,
        bf16=training.precision == "bfloat16",
        fp16=training.precision == "float16",
        dataloader_num_workers=training.workers,
        use_cpu=on_cpu,
        disable_tqdm=True,
        report_to="none",
        lmbda=training.lmbda,
        max_new_tokens=training.max_new_tokens,
        prompt_tokens=training.prompt_tokens,
        generation_temperature=training.generation_temperature,
        **more,
    )


def even_batch(rows: int, most: int) -> int:
    """The largest size of batches, `most` or less, that some rows can be cut into.

    >>> even_batch(32, 8), even_batch(9, 4), even_batch(7, 4), even_batch(3, 8)
    (8, 3, 1, 3)
    """
    return max(size for size in range(1, most + 1) if rows % size == 0)


def _collate(config: DistillConfig) -> dict[str, Any]:
    names = ("bos", "eos", "max_student_tokens", "max_teacher_tokens")
    return {name: getattr(config.training, name) for name in names}


def _teacher(config: TeacherConfig) -> TeacherSpec:
    if config.cache is not None:
        model: Any = TeacherCache(config.cache)
        tokenizer = config.tokenizer
    else:
        assert config.model is not None
        model = load_model(config.model, revision=config.revision, dtype=config.dtype)
        place = f"{config.model}@{config.revision}" if config.revision else config.model
        tokenizer = config.tokenizer or place
    return TeacherSpec(model=model, tokenizer=tokenizer, mapping=config.mapping, weight=config.weight, loss=config.loss)


def _shown(found: dict[str, float], prefix: str) -> dict[str, float]:
    """The metrics that say how good a student is, several teachers' too."""
    names = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    return {name: float(value) for name, value in names.items() if name.partition("/")[0] in _SHOWN}


def _silence(logging: Any) -> None:
    """Has transformers say nothing but errors: this run's progress is shown by its caller."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


class _Reporting(TrainerCallback):
    """Tells how training goes."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        logs = kwargs.get("logs") or {}
        if "loss" in logs and state.is_world_process_zero:
            self._report(state.global_step, state.max_steps, logs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            self._report(state.global_step, state.max_steps, {})
