"""`XTokenTrainer` and `DistillationMixin`: trainers of transformers and TRL that distil, and their checkpoints."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from ..errors import OptionError, StoreError, XTokenWarning
from ..files import disk_refusals, write_atomically
from ..losses import Metric, MultiTeacherLoss
from .config import XTokenConfig
from .distillation import Counts, Distillation
from .on_policy import OnPolicy, metrics_of_answers

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

T = TypeVar("T")

STATE = "distillation.pt"
"""The losses' state. Written after everything else and removed before it, it says that a checkpoint is whole."""

CHECKSUMS = "checksums.json"
"""Sizes and CRC-32s of a checkpoint's other files: fast enough for a disk, and enough to find damage, if not deceit."""

LOST_AFTER = 5
"""Batches in a row whose loss is no finite number, after which a run is given up. One alone may come from its texts."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class DistillationMixin(_Base):
    """Put before a trainer's class, it replaces the loss, and with it what a step's loss is divided by.

        class DistillingSFTTrainer(DistillationMixin, trl.SFTTrainer):
            pass

    Everything else is the trainer's own: optimisers, distributed training, precision, evaluation, logging. It takes
    `distillation=` beside the trainer's arguments, whose `remove_unused_columns` has to be False; `data_collator` is
    the distillation's unless another is given.

    Args:
        *args: the trainer's.
        distillation: the teachers, made for this model.
        **kwargs: the trainer's.

    Raises:
        OptionError: columns are to be removed that the collator reads, or a cached teacher would have to answer what
            the student writes.
    """

    def __init__(self, *args: Any, distillation: Distillation, **kwargs: Any) -> None:
        self.distillation = distillation
        given = args[1] if len(args) > 1 else kwargs.get("args")
        _check_arguments(given)
        self._on_policy = OnPolicy.of(given, distillation.collate)
        if self._on_policy is not None:
            distillation.collate = replace(distillation.collate, lmbda=self._on_policy.lmbda)
        kwargs["data_collator"] = kwargs.get("data_collator") or distillation.collate
        super().__init__(*args, **kwargs)
        # The loss is divided by what a whole step has; the trainer need not divide again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        # Whether a step's loss is one sum over all ranks; else each rank has its own mean.
        averaged = bool(getattr(self.args, "average_tokens_across_devices", False))
        self._sums_ranks = averaged and self.args.world_size > 1
        self._counts: Counts | None = None
        self._lost = torch.zeros((), dtype=torch.int64, device=self.args.device)
        self._sums, self._evaluated = MetricSums(), MetricSums()
        self._tokens = torch.zeros((), dtype=torch.int64, device=self.args.device)
        distillation.to(self.args.device)
        distillation.loss.train()
        self.add_callback(_AfterSteps(self))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *rest: Any) -> tuple[list[Any], Any]:
        """The batches of an optimiser step, some of them on-policy, with the number of their labels on all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, *rest)
        if not batches:
            return batches, None
        if self._on_policy is not None:
            batches = self._with_own_answers(batches, self._on_policy)
        counts = self.distillation.count(batches)
        if self._sums_ranks:
            items, *chunks = self.accelerator.reduce(torch.cat([counts.items[None], counts.chunks]), "sum").unbind()
            counts = Counts(items, torch.stack(chunks))
        self._counts = counts
        return batches, counts.items

    def _with_own_answers(self, batches: list[Any], on_policy: OnPolicy) -> list[Any]:
        """The batches of a step, some of them written by the student in place of the data's."""
        step = self.state.global_step
        chosen = [number for number in range(len(batches)) if on_policy.writes(step, number)]
        if any("rows" not in batches[number] for number in chosen):
            raise OptionError(
                "on-policy batches need their rows, which this data_collator does not keep: leave data_collator out, "
                "or set lmbda=0"
            )
        rows = [batches[number]["rows"].rows for number in chosen]
        with self.compute_loss_context_manager():
            own = on_policy.batches(self.model, rows, step, chosen, self.args.process_index) if chosen else []
        written = dict(zip(chosen, own, strict=True))
        return [written.get(number, batch) for number, batch in enumerate(batches)]

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,  # noqa: FBT002 - the trainer's signature
        num_items_in_batch: Any = None,  # noqa: ARG002 - `_counts` has it
    ) -> Any:
        """The distillation loss; divided by the counts of the step, and multiplied by the ranks that average it."""
        output = self.distillation(model, inputs, self._counts)
        self._sums.add({**output.metrics, **metrics_of_answers(inputs)})
        self._tokens += inputs["attention_mask"].sum()
        # Counts batches since the last finite loss without waiting for the device: 0 0 1 2 0 for "1.2 1.1 nan inf 1.3".
        self._lost = torch.where(output.loss.detach().isfinite(), 0, self._lost + 1)
        if self.distillation.per_batch:
            loss = output.loss / self.current_gradient_accumulation_steps
        else:
            # Ranks' gradients are averaged, and this is a sum over ranks already divided.
            loss = output.loss * (self.accelerator.num_processes if self._sums_ranks and self._counts else 1)
        return (loss, {"loss": loss}) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, None, None]:
        """The loss of a batch by itself."""
        inputs = self._prepare_inputs(inputs)
        losses = self.distillation.loss
        losses.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            output = self.distillation(model, inputs)
            if "bits_per_byte" not in output.metrics:
                output.metrics["bits_per_byte"] = self.distillation.measured_bits(model, inputs)
        losses.train()
        self._evaluated.add(output.metrics)
        return output.loss.detach(), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Adds the distillation's metrics to those of the trainer; the loss is over all rows, however they are cut."""
        output: Any = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        means = self._means(self._evaluated)
        means |= {} if (total := self.distillation.total(means)) is None else {"loss": total}
        output.metrics.update({f"{prefix}_{name}": value for name, value in means.items()})
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the means over the steps since the last logging, of all ranks."""
        if "loss" in logs:
            self._refuse_lost()
            logs = {**logs, **self._means(self._sums)}
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """With the weights of W as a group of its own, where a loss learns them."""
        fresh = self.optimizer is None
        optimizer: Any = super().create_optimizer(*args, **kwargs)
        links = list(self.distillation.loss.parameters())
        if fresh and links:
            if self.is_fsdp_enabled:
                raise OptionError("learn_w trains weights beside the model, which FSDP does not take: use DDP")
            rate = getattr(self.args, "link_learning_rate", 1e-2)
            optimizer.add_param_group({"params": links, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trains; True goes on from the last whole checkpoint in the output folder.

        Raises:
            StoreError: there is no whole checkpoint.
        """
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = sound_checkpoint(Path(str(self.args.output_dir)))
            if checkpoint is None:
                raise StoreError(f"there is no whole checkpoint in {self.args.output_dir}: train from the beginning")
        elif checkpoint is not None and (damage := damage_of(Path(checkpoint))):
            raise StoreError(f"{checkpoint} is damaged ({damage}): name another checkpoint")
        if checkpoint is not None:
            load_loss(Path(checkpoint), self.distillation.loss)
            checkpoint = str(checkpoint)
            state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
            if state.global_step >= self._planned_steps(state):
                # The run was cut off after its last step; the trainer itself would make one step more.
                self._load_from_checkpoint(checkpoint)
                self.state = state
                return TrainOutput(state.global_step, float("nan"), {})
        if self.args.world_size > 1 and not self.is_fsdp_enabled and self.model_wrapped is self.model:
            # A model that was measured first counts as prepared: each process would train it by itself, unnoticed.
            vars(self.model).pop("_is_accelerate_prepared", None)
            self.accelerator._models.clear()  # noqa: SLF001 - accelerate has no way to take one back
        output = super().train(checkpoint, *args, **kwargs)
        self._refuse_lost(after=1)
        return output

    def _planned_steps(self, state: TrainerState) -> int:
        """How many steps this run is to have, which may be more than the one that wrote a checkpoint was to have."""
        if self.args.max_steps > 0 or not state.epoch:
            return max(self.args.max_steps, 0) or state.max_steps
        # 8 steps in 0.533 epochs: half an epoch has 7.5, rounded up, whatever the last digit of the quotient is.
        return math.ceil(self.args.num_train_epochs * state.global_step / state.epoch - 1e-6)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Saves; older checkpoints are removed when the new one is known to be whole."""
        if self._lost_batches():
            # Weights that made no number are not written over those that did.
            return
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        folder = Path(str(self.args.output_dir))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        with disk_refusals(checkpoint):
            try:
                super()._save_checkpoint(*args, **kwargs)
            finally:
                self.args.save_total_limit = limit
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                finish_checkpoint(checkpoint, self.distillation.loss)
                rotate(folder, limit=limit, best=self.state.best_model_checkpoint)

    def tokens_trained_on(self) -> int:
        """How many tokens of the student this process and its like have trained on since they began."""
        return int(self.accelerator.reduce(self._tokens, "sum"))

    def _lost_batches(self) -> float:
        """How many batches in a row had a loss that is no finite number, on average over the ranks."""
        return float(self.accelerator.reduce(self._lost.float(), "mean"))

    def _refuse_lost(self, after: int = LOST_AFTER) -> None:
        """Gives a run up whose losses are no numbers."""
        lost = self._lost_batches()
        if lost >= after:
            raise OptionError(
                f"the loss was not finite in the last {lost:.0f} batches, up to step {self.state.global_step}: take a "
                "lower learning_rate, or bf16 or float32 in place of fp16, and go on from the last checkpoint"
            )

    def _means(self, sums: MetricSums) -> dict[str, float]:
        means = sums.take(self.accelerator)
        if isinstance(self.distillation.loss, MultiTeacherLoss):
            # Those of batches are divided by the counts of their step.
            parts = enumerate(self.distillation.weights)
            means["kd"] = sum(weight * means.get(f"kd/{number}", 0.0) for number, weight in parts)
        return means


class XTokenTrainer(DistillationMixin, Trainer):
    """`transformers.Trainer` in which a student learns from teachers with other tokenizers.

        trainer = XTokenTrainer(student, teacher=teacher, train_dataset=[{"text": "..."}, ...])
        trainer.train()

    Mappings are found in the store, or built and kept, or given; what does not fit a tokenizer in hand is refused
    before the first step. Distributed training, accumulation, precision, checkpoints and resuming are those of
    transformers and accelerate. At every logging step the means since the last one are logged: `kd`, `ce`, `agreement`,
    `misfits`, `dropped_mass` and what else the loss measures, with several teachers per teacher as `agreement/0`.

    Args:
        model: the student; a PEFT model too.
        args: the options; those of `XTokenConfig()` by default.
        teacher: a model, a `TeacherCache`, a cache's folder, a `TeacherSpec` with one of these, or a list of such.
        tokenizer: the student's `Vocab`, or what `read_vocab` takes; by default the folder or Hub id of the model.
        loss: options of `XTokenLoss` for all teachers.
        collate: further options of `SpanCollator`: padding, packing, chat templates. Lengths, `bos` and `eos` are those
            of `args` unless they are given here.
        combine: how several teachers are weighed by row: options of `MultiTeacherLoss`, such as `weigh_by`. Rows may
            name the teacher that they learn from, by its number, in a column `teacher`.
        store: the store's folder.
        **kwargs: further arguments of `transformers.Trainer`.

    Raises:
        MismatchError: a mapping or a cache is of another tokenizer than the model in hand; says what differs.
        OptionError: an option makes no sense.
    """

    def __init__(
        self,
        model: Any,
        args: XTokenConfig | None = None,
        *,
        teacher: Any,
        tokenizer: Any = None,
        loss: Mapping[str, Any] | None = None,
        collate: Mapping[str, Any] | None = None,
        combine: Mapping[str, Any] | None = None,
        store: Any = None,
        **kwargs: Any,
    ) -> None:
        options = XTokenConfig() if args is None else args
        if not isinstance(options, XTokenConfig):
            raise OptionError(f"expected an XTokenConfig as args, got {type(options).__name__}")

        def first(make: Callable[[], T]) -> T:
            with options.main_process_first(desc="the mapping"):
                return make()

        names = ("bos", "eos", "max_student_tokens", "max_teacher_tokens")
        distillation = Distillation(
            model,
            teacher=teacher,
            tokenizer=tokenizer,
            loss=loss,
            collate={name: getattr(options, name) for name in names} | dict(collate or {}),
            combine=combine,
            store=store,
            fused=options.fused and not options.torch_compile,
            first=first,
        )
        super().__init__(model, args=options, distillation=distillation, **kwargs)


class MetricSums:
    """Numerators and denominators, added up where they are, so that no batch waits for the processor."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, metrics: Mapping[str, Metric]) -> None:
        """Adds those of a batch."""
        for name, (numerator, denominator) in metrics.items():
            # Counts of a long stretch pass what float32 holds exactly; Apple's devices have no more.
            dtype = torch.float32 if numerator.device.type == "mps" else torch.float64
            pair = torch.stack([numerator.detach().to(dtype), denominator.detach().to(dtype)])
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def take(self, accelerator: Any = None) -> dict[str, float]:
        """The quotients by name, without those whose denominator is 0; then starts anew.

        Args:
            accelerator: adds the sums up over all processes, every one of which has to call this; None for one process.
        """
        if not self._sums:
            return {}
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        self._sums = {}
        if accelerator is not None:
            sums = accelerator.reduce(sums, "sum")
        pairs = zip(names, sums.tolist(), strict=True)
        return {name: numerator / denominator for name, (numerator, denominator) in pairs if denominator}


class _AfterSteps(TrainerCallback):
    """What is due once per optimiser step, not per batch."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        if self._trainer.args.world_size > 1:
            for parameter in self._trainer.distillation.loss.parameters():
                gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                parameter.grad = self._trainer.accelerator.reduce(gradient, "mean")

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        loss = self._trainer.distillation.loss
        loss.step_scale()
        loss.zero_grad()


def _check_arguments(args: Any) -> None:
    if args is None or args.remove_unused_columns:
        raise OptionError("the collator reads columns that the model does not know: set remove_unused_columns=False")
    if args.n_gpu > 1:
        warnings.warn(
            f"one process trains on one device, not on {args.n_gpu}: start it with torchrun to use them all",
            XTokenWarning,
            stacklevel=4,
        )
        args._n_gpu = 1  # noqa: SLF001 - transformers has no option for it


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, the oldest first."""
    if not folder.is_dir():
        return []
    steps = [(int(match[1]), path) for path in folder.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(steps)]


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint in a folder, None where there is none. A process may be killed at any moment."""
    whole = [path for path in checkpoints_in(folder) if (path / STATE).is_file()]
    return whole[-1] if whole else None


def sound_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint in a folder that is whole and holds what was written, None where there is no whole one.

    Raises:
        StoreError: there are whole ones, and all of them are damaged.
    """
    damages = []
    for checkpoint in reversed(checkpoints_in(folder)):
        if (checkpoint / STATE).is_file():
            damage = damage_of(checkpoint)
            if damage is None:
                return checkpoint
            damages.append(f"{checkpoint} is damaged ({damage})")
            warnings.warn(f"{damages[-1]}: the one before it is tried", XTokenWarning, stacklevel=2)
    if damages:
        raise StoreError(f"{'; '.join(damages)}: restore one of them, or remove {folder} to begin anew")
    return None


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a whole checkpoint, None if its files are those that were written."""
    try:
        written = json.loads((checkpoint / CHECKSUMS).read_bytes())
        for name, (size, checksum) in written.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size or _checksum(path) != checksum:
                return f"{name} is not what was written"
    except FileNotFoundError:
        # Checkpoints of earlier versions have no checksums.
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{CHECKSUMS} cannot be read: {error}"
    return None


def _checksum(path: Path) -> int:
    """CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum


def finish_checkpoint(checkpoint: Path, loss: torch.nn.Module) -> None:
    """Adds checksums and the losses' state, and with it declares a checkpoint whole."""
    buffer = io.BytesIO()
    torch.save(loss.state_dict(), buffer)
    state = buffer.getvalue()
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name not in {STATE, CHECKSUMS}]
    sums = {path.relative_to(checkpoint).as_posix(): (path.stat().st_size, _checksum(path)) for path in files}
    sums[STATE] = (len(state), zlib.crc32(state))
    write_atomically(checkpoint / CHECKSUMS, json.dumps(sums, indent=1).encode() + b"\n")
    write_atomically(checkpoint / STATE, state)


def load_loss(checkpoint: Path, loss: torch.nn.Module) -> None:
    """Gives the losses the state that they had.

    Raises:
        StoreError: the checkpoint is not whole, or of other losses.
    """
    path = checkpoint / STATE
    if not path.is_file():
        raise StoreError(f"{checkpoint} is no whole checkpoint of a distillation: it has no {STATE}; name another")
    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    try:
        loss.load_state_dict(state)
    except RuntimeError as error:
        raise StoreError(f"{path} is of other losses than this run's: go on with the options it began with") from error


def remove_checkpoint(checkpoint: Path) -> None:
    """Removes a checkpoint; if that is cut short, what is left does not count as one."""
    (checkpoint / STATE).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def rotate(folder: Path, *, limit: int | None, best: str | None) -> None:
    """Removes the oldest checkpoints.

    Args:
        folder: where they are.
        limit: how many stay; all for None or 0.
        best: one that stays in any case.
    """
    # Checkpoints 2, 4, 6 with limit 2 and best 2: 2 and 6 stay, and one is in excess: 4.
    checkpoints = checkpoints_in(folder)
    staying = {path.resolve() for path in checkpoints[-1:] + ([Path(best)] if best else [])}
    excess = len(checkpoints) - max(limit, len(staying)) if limit else 0
    for checkpoint in checkpoints:
        if excess > 0 and checkpoint.resolve() not in staying:
            remove_checkpoint(checkpoint)
            excess -= 1
