"""The configuration of `distill`: what a YAML file may say, checked before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import OptionError
from .config_values import from_values

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The student.

    Attributes:
        model: a folder, or a Hub id, for `from_pretrained`; code that comes with a model is not run.
        tokenizer: what `read_vocab` takes, where it is not in the model's place.
        revision: of a Hub id.
        dtype: of the weights; as trained in mixed precision they stay float32.
    """

    model: str
    tokenizer: str | None = None
    revision: str | None = None
    dtype: Precision = "float32"


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A teacher: a model, or a cache with the teacher's tokenizer.

    Attributes:
        model: a folder or a Hub id.
        cache: the folder of a teacher cache.
        tokenizer: what `read_vocab` takes; needed beside a cache.
        revision: of a Hub id.
        dtype: of the weights; null for that of its files.
        mapping: a mapping's file or name; by default found in the store, or built and kept.
        weight: its share of the distillation loss.
        loss: options of the loss for this teacher, over those that all share.
    """

    model: str | None = None
    cache: str | None = None
    tokenizer: str | None = None
    revision: str | None = None
    dtype: Precision | None = None
    mapping: str | None = None
    weight: float | None = None
    loss: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.model is None) == (self.cache is None):
            raise OptionError("a teacher has either a model or a cache: name one of the two")
        if self.cache is not None and self.tokenizer is None:
            raise OptionError(f"the teacher cached in {self.cache} needs its tokenizer: name it as tokenizer")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters of low rank, trained in place of the weights and merged into them at the end.

    Attributes:
        rank: of the adapters.
        alpha: their scale, times the rank.
        dropout: of their inputs.
        targets: names of the modules that get one; all linear ones but the head by default.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the student is trained.

    Attributes:
        steps: optimiser steps; null for as many as `epochs` have.
        epochs: passes over the texts.
        batch_size: rows of a batch, per process.
        accumulation: batches of a step.
        learning_rate: the highest.
        schedule: how it falls.
        warmup_steps: over which it rises first.
        weight_decay: of AdamW.
        max_grad_norm: to which gradients are clipped; 0 for none.
        max_student_tokens: of a row.
        max_teacher_tokens: of a row.
        bos: put the token that begins a text before each row.
        eos: put the token that ends a text after each row.
        save_every: steps between checkpoints.
        keep: checkpoints that stay.
        log_every: steps between lines of progress.
        seed: of all that is drawn.
        precision: of the computation; float32 is full, the others are mixed precision.
        gradient_checkpointing: trade time for memory.
        workers: processes that prepare batches.
        device: null for a GPU where there is one, or cpu.
        lmbda: the probability that a batch is on-policy.
        max_new_tokens: on-policy, the most tokens that the student writes.
        prompt_tokens: on-policy, how many tokens of a row it goes on from.
        generation_temperature: on-policy, at which it writes.
    """

    steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 1e-4
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_student_tokens: int = 512
    max_teacher_tokens: int = 640
    bos: bool = True
    eos: bool = True
    save_every: int = 100
    keep: int = 2
    log_every: int = 10
    seed: int = 0
    precision: Precision = "float32"
    gradient_checkpointing: bool = False
    workers: int = 0
    device: Literal["cpu"] | None = None
    lmbda: float = 0.0
    max_new_tokens: int = 128
    prompt_tokens: int = 32
    generation_temperature: float = 1.0

    def __post_init__(self) -> None:
        names = (
            *("batch_size", "accumulation", "max_student_tokens", "max_teacher_tokens"),
            *("save_every", "keep", "log_every", "max_new_tokens", "prompt_tokens"),
        )
        for name in names:
            _least(f"training.{name}", getattr(self, name), 1)
        if self.steps is not None:
            _least("training.steps", self.steps, 1)
        for name in ("epochs", "learning_rate", "generation_temperature"):
            if not getattr(self, name) > 0:
                raise OptionError(f"training.{name} must be above 0, but it is {getattr(self, name)}")
        for name in ("warmup_steps", "workers", "seed", "weight_decay", "max_grad_norm"):
            _least(f"training.{name}", getattr(self, name), 0)
        if not 0 <= self.lmbda <= 1:
            raise OptionError(f"training.lmbda is a probability, 0 to 1, but it is {self.lmbda}")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """All that decides a run.

    Attributes:
        student: the model that learns.
        teachers: the models that it learns from.
        texts: files, as `inspect --corpus` reads them.
        output: the run's folder; made if need be.
        text_field: the field, or column, that holds a text.
        longest_text: characters; longer texts are cut into several rows, where a line begins or a word ends. By default
            three for every token of a row.
        holdout: rows that are not trained on but measured before and after; a tenth of all at most.
        loss: options of `XTokenLoss`.
        training: how.
        lora: adapters instead of all weights.
    """

    student: StudentConfig
    teachers: tuple[TeacherConfig, ...]
    texts: tuple[str, ...]
    output: str
    text_field: str = "text"
    longest_text: int | None = None
    holdout: int = 32
    loss: dict[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        for name in ("teachers", "texts"):
            if not getattr(self, name):
                raise OptionError(f"{name} must name at least one, but the list is empty")
        _least("holdout", self.holdout, 0)
        if self.longest_text is not None:
            _least("longest_text", self.longest_text, 2)
        if self.training.lmbda and any(teacher.cache for teacher in self.teachers):
            raise OptionError(
                "a cached teacher knows nothing of what the student writes: set training.lmbda to 0, or name the "
                "teacher's model"
            )

    @property
    def characters(self) -> int:
        """The most characters of a row."""
        return self.longest_text or 3 * self.training.max_student_tokens

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a file has them."""
        return asdict(self)


def read_config(path: str | os.PathLike[str], change: Callable[[dict[str, Any]], None] | None = None) -> DistillConfig:
    """Reads a YAML file.

    Args:
        path: the file.
        change: changes its values before they are checked.

    Raises:
        OptionError: the file cannot be read, is no YAML, or has a setting that makes no sense.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise OptionError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if values is None:
        raise OptionError(f"{path} is empty: it needs student, teachers, texts and output at least")
    if isinstance(values, dict) and change is not None:
        change(values)
    try:
        return from_values(DistillConfig, values)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error


def _least(name: str, value: float, least: int) -> None:
    if value < least:
        raise OptionError(f"{name} must be at least {least}, but it is {value}")
