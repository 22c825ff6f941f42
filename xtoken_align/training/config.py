"""What a run is told: `XTokenConfig`, the trainer's options, and the YAML file of `distill` around them.

Whatever can be seen to be wrong in a file is found before anything is loaded, and all of it is reported together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..errors import OptionError, XTokenError
from ..losses import LossOptions
from ..losses.divergence import DIVERGENCES
from ..losses.kinds import KINDS, PEERS, PRESETS
from ..losses.options import IMPLEMENTATIONS
from ..spans.batch import SpanCollator
from ..spans.chats import ChatOptions
from .served import mistakes_of_serving
from .spelling import Mistake, inside, nearest, unknown_settings

Precision = Literal["float32", "bfloat16", "float16"]

_MOST = {"seed": 2**32 - 1, "data_seed": 2**32 - 1, "lmbda": 1, "top_p": 1}
"""numpy's generator, which transformers seeds too, takes 32 bits (`numpy.random.seed`); `lmbda`, `top_p` are shares."""

_LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("max_student_tokens", "max_teacher_tokens", "max_new_tokens", "prompt_tokens"), 1),
    **dict.fromkeys(("generation_batch_size", "batch_size"), 1),
    **dict.fromkeys(
        ("warmup_steps", "dataloader_num_workers", "seed", "data_seed", "weight_decay", "max_grad_norm"), 0
    ),
    **dict.fromkeys(("save_total_limit", "eval_steps", "label_smoothing_factor", "lmbda"), 0),
}

_ABOVE_0 = (
    *("learning_rate", "link_learning_rate", "num_train_epochs", "generation_temperature", "temperature", "top_p"),
    *("save_steps", "logging_steps"),
)


@dataclass
class XTokenConfig(TrainingArguments):
    """`transformers.TrainingArguments` with defaults that suit distillation, and a few options more.

    The `training:` section of `distill`'s YAML file has these fields and no others.

    Attributes:
        output_dir: where checkpoints go.
        num_train_epochs: passes over the rows, where `max_steps` does not say when to stop.
        per_device_eval_batch_size: rows of a batch that is measured; by default as many as of one that is trained on.
        learning_rate: the highest that the schedule reaches.
        lr_scheduler_type: how the learning rate falls.
        logging_steps: optimiser steps between two logged lines.
        logging_first_step: also log the first step.
        save_steps: optimiser steps between two checkpoints.
        save_total_limit: how many checkpoints stay; the oldest go first.
        eval_steps: optimiser steps between two evaluations. Given alone, it also sets `eval_strategy` to `steps`.
        report_to: where to log: `none`, `all`, `tensorboard`, `wandb`, ...
        gradient_checkpointing: recompute activations in the backward pass, which takes time and saves memory.
        remove_unused_columns: False, since the collator reads columns that the model does not know.
        max_student_tokens: rows are cut to so many of the student's tokens; None for whole rows.
        max_teacher_tokens: the same of the teacher's.
        bos: put the token that begins a text before each text.
        eos: put the token that ends a text after each text.
        lmbda: the probability that a batch is on-policy, as in TRL's GKD and GOLD trainers: the student continues the
            beginnings of the batch's rows, and the teachers score what it wrote. Such a batch has no cross-entropy.
        max_new_tokens: on-policy, the most tokens that the student writes.
        prompt_tokens: on-policy, how many tokens of a text the student continues, at most half of the text. Of a chat
            it continues all that stands before the last answer, of a row with a `prompt` that.
        generation_temperature: on-policy, the temperature at which the student samples.
        top_p: on-policy, the student samples from the likeliest tokens that have this probability together.
        generation_batch_size: on-policy, how many rows of a step the student continues at a time; by default as many
            as a batch has. Rows of like lengths are continued together.
        link_learning_rate: the learning rate of W's weights, where a loss learns them (`learn_w`).
        fused: compute the loss from hidden states block by block, where the student's head allows it.

    Raises:
        OptionError: options have values that make no sense; the message names all of them.

    >>> XTokenConfig(output_dir="run", learning_rate=float("nan"), lmbda=2, use_cpu=True)
    Traceback (most recent call last):
    ...
    xtoken_align.errors.OptionError: 2 mistakes:
      learning_rate must be a finite number, but it is nan
      lmbda must be at most 1, but it is 2
    """

    num_train_epochs: float = 1.0
    per_device_eval_batch_size: int | None = None  # type: ignore[assignment]
    learning_rate: float = 1e-4
    lr_scheduler_type: SchedulerType | str = "cosine"
    logging_steps: float = 10
    logging_first_step: bool = True
    save_steps: float = 100
    save_total_limit: int | None = 2
    report_to: str | list[str] | None = "none"
    gradient_checkpointing: bool | None = None
    remove_unused_columns: bool = False
    max_student_tokens: int | None = 512
    max_teacher_tokens: int | None = 640
    bos: bool = True
    eos: bool = True
    lmbda: float = 0.0
    max_new_tokens: int = 128
    prompt_tokens: int = 32
    generation_temperature: float = 1.0
    top_p: float = 1.0
    generation_batch_size: int | None = None
    link_learning_rate: float = 1e-2
    fused: bool = True

    def __post_init__(self) -> None:
        refuse(self.mistakes_in(vars(self)))
        if self.per_device_eval_batch_size is None:
            self.per_device_eval_batch_size = self.per_device_train_batch_size
        if self.generation_batch_size is None:
            self.generation_batch_size = self.per_device_train_batch_size
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.eval_steps and self.eval_strategy == "no":
            self.eval_strategy = "steps"
        # transformers 5 renamed the option, and warns of the old name, which TRL and most people know.
        if self.gradient_checkpointing is not None and hasattr(self, "activation_checkpointing"):
            self.activation_checkpointing, self.gradient_checkpointing = self.gradient_checkpointing, None
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise OptionError(f"transformers refuses these options: {error}") from error

    @staticmethod
    def mistakes_in(values: Mapping[str, Any], where: str = "") -> Iterator[Mistake]:
        """What is wrong with some of the options."""
        for name, value in values.items():
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                continue
            if not math.isfinite(value):
                expected = "must be a finite number"
            elif name in _ABOVE_0 and not value > 0:
                expected = "must be above 0"
            elif value < _LEAST.get(name, value):
                expected = f"must be at least {_LEAST[name]}"
            elif value > _MOST.get(name, value):
                expected = f"must be at most {_MOST[name]}"
            elif name == "max_steps" and value < 1 and value != -1:
                expected = "must be at least 1, or -1 for as many as the epochs have"
            else:
                continue
            yield inside(where, name), f"{inside(where, name)} {expected}, but it is {value}"
        yield from _unknown_reports(values.get("report_to"), inside(where, "report_to"))
        if values.get("fp16") and not torch.accelerator.is_available():
            place = inside(where, "fp16")
            yield place, f"{place} needs a GPU, and this run is on a CPU: leave it out, or take bf16"

    def settings(self) -> dict[str, Any]:
        """The options as plain values: those that are declared here, and of transformers' those that were changed."""
        own, known = vars(XTokenConfig)["__annotations__"], {each.name: each for each in fields(self) if each.init}
        settings = {}
        for name in known.keys() - {"output_dir", "local_rank", "disable_tqdm"}:
            value, usual = _plain_option(getattr(self, name)), known[name].default
            if name in own or (value != _plain_option(usual) and (value or usual not in (MISSING, None, ""))):
                settings[name] = value
        return dict(sorted(settings.items()))


def _unknown_reports(given: str | Sequence[str] | None, place: str) -> Iterator[Mistake]:
    """What a run is to report to and transformers does not know."""
    known = ("none", "all", *sorted(INTEGRATION_TO_CALLBACK))
    for name in [given] if isinstance(given, str) else given or ():
        if name not in known:
            close = nearest(name, known)
            meant = f": did you mean {close}?" if close else ""
            yield place, f"{place} must be one or several of {', '.join(known)}, but it is {name!r}{meant}"


def _plain_option(value: Any) -> Any:
    """An option of transformers as JSON has it; nothing for an object that was made from no option at all."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list):
        return [_plain_option(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return None if value == type(value)() else asdict(value)
    return value


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The student.

    Attributes:
        model: a folder, or a Hub id, for `from_pretrained`; code that comes with a model is not run.
        tokenizer: what `read_vocab` takes, where the tokenizer is not beside the model.
        revision: of a Hub id.
        dtype: of the weights. Mixed precision (`bf16`) trains weights that stay float32.
        chat_template: for chats, a file with a Jinja template; by default that of the tokenizer.
    """

    model: str
    tokenizer: str | None = None
    revision: str | None = None
    dtype: Precision = "float32"
    chat_template: str | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A teacher: a model, or a cache or a server with the teacher's tokenizer.

    Attributes:
        model: a folder or a Hub id.
        cache: the folder that `xtoken-align cache` wrote: of best tokens for most losses, of hidden states (`--keep
            hidden`) for every loss.
        url: the address of a server that runs the teacher.
        served: how the server is asked: options of `ServedTeacher`, such as `server` and `top_k`.
        tokenizer: what `read_vocab` takes; needed beside a cache or a server.
        revision: of a Hub id.
        dtype: of the weights; null for the one of the model's files.
        mapping: a mapping's file or name; by default found in the store, or built and kept.
        weight: the teacher's share of the distillation loss.
        loss: options of the loss for this teacher, over those that all teachers share.
        chat_template: for chats, a file with a Jinja template; by default that of the tokenizer.
    """

    model: str | None = None
    cache: str | None = None
    url: str | None = None
    served: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    revision: str | None = None
    dtype: Precision | None = None
    mapping: str | None = None
    weight: float | None = None
    loss: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None

    def __post_init__(self) -> None:
        refuse(self.mistakes_in(vars(self)))

    @staticmethod
    def mistakes_in(values: Mapping[str, Any], where: str = "") -> Iterator[Mistake]:
        """What is wrong with a teacher by itself."""
        name = where or "a teacher"
        if sum(values.get(each) is not None for each in ("model", "cache", "url")) != 1:
            yield where, f"{name} has either a model or a cache or a url: name one of them"
        elif values.get("model") is None and values.get("tokenizer") is None:
            place = f"cached in {values['cache']}" if values.get("cache") is not None else f"served at {values['url']}"
            yield where, f"{name} is {place} and needs its tokenizer: name it as tokenizer"
        yield from mistakes_of_serving(values.get("url"), values.get("served", {}), inside(where, "served"))
        if (values.get("weight") or 0) < 0:
            place = inside(where, "weight")
            yield place, f"{place} must be a number from 0 on, but it is {values['weight']}"
        yield from mistakes_of_loss(values.get("loss", {}), inside(where, "loss"))


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters of low rank, trained in place of the weights and merged into them at the end; peft's names.

    Attributes:
        r: the adapters' rank.
        lora_alpha: updates are scaled by lora_alpha / r.
        lora_dropout: dropout before the adapters.
        target_modules: names of the modules that get an adapter; by default all linear ones but the head.
    """

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        refuse(self.mistakes_in(vars(self)))

    @staticmethod
    def mistakes_in(values: Mapping[str, Any], where: str = "") -> Iterator[Mistake]:
        """What is wrong with the adapters."""
        for name in ("r", "lora_alpha"):
            if values.get(name, 1) < 1:
                yield inside(where, name), f"{inside(where, name)} must be at least 1, but it is {values[name]}"
        dropout, place = values.get("lora_dropout", 0), inside(where, "lora_dropout")
        if not 0 <= dropout < 1:
            yield place, f"{place} is a probability below 1, but it is {dropout}"


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """All that decides a run of `distill`.

    Attributes:
        student: the model that learns.
        teachers: the models that it learns from; in a file, one teacher needs no list.
        texts: files with texts or chats, folders, patterns (`corpus/*.jsonl`), or data sets of the Hub
            (`hf://OWNER/NAME`, with `@REVISION`, `/CONFIG` and `/SPLIT` behind it if need be); one needs no list.
        output: the run's folder; made if need be.
        text_field: the field, or column, that holds a text or a chat; chats stand under `messages` too.
        longest_text: characters; longer texts are cut into several rows, where a line or a word ends. By default three
            for every token of a student's row.
        holdout: rows that are not trained on but measured before and after; at most a tenth of all.
        loss: options of `XTokenLoss`.
        collate: further options of `SpanCollator`, for chats such as `loss_on: [content, end]`.
        training: the trainer's options.
        lora: adapters instead of all weights.
        combine: how several teachers are weighed by row: `weigh_by`, `select`, `weight_temperature`, `average`, as in
            `MultiTeacherLoss`.

    Raises:
        OptionError: options make no sense, by themselves or together; the message names all of them.
    """

    student: StudentConfig
    teachers: tuple[TeacherConfig, ...]
    texts: tuple[str, ...]
    output: str
    text_field: str = "text"
    longest_text: int | None = None
    holdout: int = 32
    loss: dict[str, Any] = field(default_factory=dict)
    collate: dict[str, Any] = field(default_factory=dict)
    training: XTokenConfig = field(default_factory=XTokenConfig)
    lora: LoraConfig | None = None
    combine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse(self.mistakes_in(vars(self)))

    @staticmethod
    def mistakes_in(values: Mapping[str, Any], where: str = "") -> Iterator[Mistake]:  # noqa: ARG004 - as for parts
        """What is wrong with the parts of a configuration together; parts that could not be read are not looked at."""
        for name in ("teachers", "texts"):
            if name in values and not values[name]:
                yield name, f"{name} must name at least one, but the list is empty"
        for name, least in (("holdout", 0), ("longest_text", 2)):
            if values.get(name) is not None and values[name] < least:
                yield name, f"{name} must be at least {least}, but it is {values[name]}"
        yield from mistakes_of_collate(values.get("collate", {}), "collate")
        teachers, shared = values.get("teachers", ()), values.get("loss", {})
        wrong = list(mistakes_of_loss(shared, "loss"))
        yield from wrong
        for number, teacher in enumerate(teachers):
            # A mistake in what all teachers share is not said once for each of them.
            if teacher.loss and not wrong:
                yield from mistakes_of_loss({**shared, **teacher.loss}, f"teachers[{number}].loss")
        yield from mistakes_of_weights([teacher.weight for teacher in teachers])
        yield from mistakes_of_combining(values.get("combine", {}), len(teachers), "combine")
        training = values.get("training")
        if training is not None and training.lmbda and any(teacher.cache for teacher in teachers):
            advice = "set training.lmbda to 0, or name the teacher's model"
            yield "training.lmbda", f"a cached teacher knows nothing of what the student writes: {advice}"
        if training is not None and training.eval_strategy != "no" and values.get("holdout") == 0:
            yield (
                "holdout",
                "holdout is 0, so that there is nothing to evaluate: hold rows out, or leave out eval_steps",
            )
        if training is not None and training.push_to_hub and not training.hub_model_id:
            yield "training.push_to_hub", "training.push_to_hub needs training.hub_model_id, the repository's name"

    @property
    def characters(self) -> int:
        """The most characters of a row."""
        return self.longest_text or 3 * (self.training.max_student_tokens or 512)

    @property
    def sentence(self) -> str:
        """Who learns from whom."""
        teachers = [str(teacher.model or teacher.url or f"the cache {teacher.cache}") for teacher in self.teachers]
        several = "teachers" if len(teachers) > 1 else "teacher"
        return f"student {self.student.model} learns from {several} {' and '.join(teachers)}"

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.output).expanduser()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a file has them."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            **values,
            "student": asdict(self.student),
            "teachers": [asdict(teacher) for teacher in self.teachers],
            "texts": list(self.texts),
            "training": self.training.settings(),
            "lora": None if self.lora is None else asdict(self.lora),
        }


def model_source(part: StudentConfig | TeacherConfig) -> str:
    """Where the model of a student or a teacher is loaded from."""
    return f"{part.model}@{part.revision}" if part.revision else str(part.model)


def tokenizer_source(part: StudentConfig | TeacherConfig) -> str:
    """Where the tokenizer of a student or a teacher is read from."""
    return model_source(part) if part.tokenizer is None else part.tokenizer


def template_of(part: StudentConfig | TeacherConfig) -> str | None:
    """The chat template that a student or a teacher is given; None for its tokenizer's own.

    Raises:
        OptionError: its file cannot be read.
    """
    if part.chat_template is None:
        return None
    try:
        return Path(part.chat_template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read the chat template {part.chat_template}: {error}") from error


def refuse(mistakes: Iterable[Mistake], error: type[XTokenError] = OptionError) -> None:
    """Raises one error that names all of some mistakes, if there are any."""
    said = [sentence for _, sentence in mistakes]
    if said:
        raise error(said[0] if len(said) == 1 else "\n  ".join([f"{len(said)} mistakes:", *said]))


def mistakes_of_loss(options: Mapping[str, Any], where: str) -> Iterator[Mistake]:
    """What is wrong with a loss's options by themselves, before there is a mapping.

    Args:
        options: of `XTokenLoss`.
        where: the place that they are given in, for messages: `loss`.
    """
    known = list(LossOptions.__dataclass_fields__)
    yield from unknown_settings(options, known, where)
    usable = {name: value for name, value in options.items() if name in known}
    for name, value in usable.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{where}.{name}", f"{where}.{name} must be a finite number, but it is {value}"
            return
    try:
        LossOptions(**{"kind": "auto", **usable})
    except TypeError as error:
        yield where, f"an option of {where} is of another type than it should be: {error}"
    except OptionError as error:
        yield where, f"{where}: {error}"


COMBINE = ("weigh_by", "select", "weight_temperature", "average")
"""How several teachers are weighed by row: options of `MultiTeacherLoss`."""


def mistakes_of_combining(options: Mapping[str, Any], teachers: int, where: str) -> Iterator[Mistake]:
    """What is wrong with how several teachers are combined."""
    yield from unknown_settings(options, COMBINE, where)
    if options and teachers < 2:
        yield where, f"{where} says how several teachers are weighed, but there is {teachers}: leave it out"


LOSS_WORDS: dict[str, tuple[str, ...]] = {
    "kind": ("auto", *KINDS),
    "merge": ("first", "mean"),
    "scale": ("fixed", "dynamic"),
    "unreached": ("reroute", "drop"),
    "normalize": ("rest", "none"),
    "level_weight": ("plausible", "teacher", "text"),
    "units": ("text", "path"),
    "compat": tuple(PEERS),
    "implementation": IMPLEMENTATIONS,
    "divergence": DIVERGENCES,
    "preset": tuple(PRESETS),
}
"""The words that an option of the loss may be."""

COLLATE = tuple(
    name
    for name in SpanCollator.__dataclass_fields__
    if name not in {"student", "teacher", "student_template", "teacher_template", "bos", "eos"}
    and not name.startswith("max_")
)
"""Options of `SpanCollator` that a file may have; the others have places of their own."""


def mistakes_of_collate(options: Mapping[str, Any], where: str) -> Iterator[Mistake]:
    """What is wrong with options of the collator by themselves."""
    yield from unknown_settings(options, COLLATE, where)
    of_chats = {name: options[name] for name in ("loss_roles", "loss_on", "unplaced") if name in options}
    try:
        ChatOptions(**of_chats)
    except OptionError as error:
        yield where, f"{where}: {error}"
    except TypeError:
        yield where, f"{where}: loss_roles and loss_on are lists of names"


def mistakes_of_weights(given: Sequence[float | None]) -> Iterator[Mistake]:
    """What is wrong with the teachers' weights together, and with those that are no numbers from 0 on."""
    known = [weight for weight in given if weight is not None]
    if known and len(known) != len(given):
        place = f"teachers[{given.index(None)}]"
        said = f"{place}.weight is missing: either all teachers have a weight or none has"
        yield place, f"{said}, but {len(known)} of {len(given)} have one"
    for number, weight in enumerate(given):
        if weight is not None and not 0 <= weight < math.inf:
            place = f"teachers[{number}].weight"
            yield place, f"{place} must be a number from 0 on, but it is {weight}"
