"""`DistillationMixin`: makes any trainer that is built on `transformers.Trainer` distil."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from ..errors import OptionError, StoreError, XTokenWarning
from ..losses import MultiTeacherLoss
from .checkpoints import finish_checkpoint, last_checkpoint, load_loss, rotate
from .distillation import Counts, Distillation
from .on_policy import OnPolicy
from .sums import MetricSums

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


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
        kwargs["data_collator"] = kwargs.get("data_collator") or distillation.collate
        _check_arguments(args[1] if len(args) > 1 else kwargs.get("args"))
        super().__init__(*args, **kwargs)
        # The loss is divided by what a whole step has; the trainer need not divide again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._on_policy = OnPolicy.of(self.args, distillation)
        self._counts: Counts | None = None
        self._sums, self._evaluated = MetricSums(), MetricSums()
        distillation.to(self.args.device)
        distillation.loss.train()
        self.add_callback(_AfterSteps(self))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *rest: Any) -> tuple[list[Any], Any]:
        """The batches of an optimiser step, some of them on-policy, with the number of their labels on all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, *rest)
        if not batches:
            return batches, None
        if self._on_policy is not None:
            step, rank = self.state.global_step, self.args.process_index
            batches = [self._on_policy(self.model, each, (step, at), rank) for at, each in enumerate(batches)]
        counts = self.distillation.count(batches)
        if self._sums_tokens:
            counts = Counts.of(self.accelerator.reduce(counts.stacked(), "sum"))
        self._counts = counts
        return batches, counts.items

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,  # noqa: FBT002 - the trainer's signature
        num_items_in_batch: Any = None,  # noqa: ARG002 - `_counts` has it
    ) -> Any:
        """The distillation loss; divided by the counts of the step, and multiplied by the ranks that average it."""
        found = self.distillation(model, inputs, self._counts)
        self._sums.add(found.metrics)
        if self.distillation.per_batch:
            loss = found.loss / self.current_gradient_accumulation_steps
        else:
            # Ranks' gradients are averaged, and this is a sum over ranks already divided.
            loss = found.loss * (self.accelerator.num_processes if self._sums_tokens and self._counts else 1)
        return (loss, {"loss": loss}) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, None, None]:
        """The loss of a batch by itself."""
        inputs = self._prepare_inputs(inputs)
        losses = self.distillation.loss
        losses.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            found = self.distillation(model, inputs)
        losses.train()
        self._evaluated.add(found.metrics)
        return found.loss.detach(), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Adds the distillation's metrics to those of the trainer; the loss is over all rows, however they are cut."""
        output: Any = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        found = self._means(self._evaluated)
        found |= {} if (total := self.distillation.total(found)) is None else {"loss": total}
        output.metrics.update({f"{prefix}_{name}": value for name, value in found.items()})
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the means over the steps since the last logging, of all ranks."""
        if "loss" in logs:
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
            checkpoint = last_checkpoint(Path(str(self.args.output_dir)))
            if checkpoint is None:
                raise StoreError(f"there is no whole checkpoint in {self.args.output_dir}: train from the beginning")
        if checkpoint is not None:
            load_loss(Path(checkpoint), self.distillation.loss)
            checkpoint = str(checkpoint)
            state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
            if state.global_step >= (self.args.max_steps if self.args.max_steps > 0 else state.max_steps):
                return self._at_end(checkpoint, state)
        if self.args.world_size > 1 and not self.is_fsdp_enabled and self.model_wrapped is self.model:
            # A model that was measured first counts as prepared: each process would train it by itself, unnoticed.
            vars(self.model).pop("_is_accelerate_prepared", None)
            self.accelerator._models.clear()  # noqa: SLF001 - accelerate has no way to take one back
        return super().train(checkpoint, *args, **kwargs)

    def _at_end(self, checkpoint: str, state: TrainerState) -> TrainOutput:
        """What a run that was cut off after its last step has made; the trainer itself would make one step more."""
        self._load_from_checkpoint(checkpoint)
        self.state = state
        return TrainOutput(state.global_step, float("nan"), {})

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Saves; older checkpoints are removed when the new one is known to be whole."""
        with _keeping_all(self.args) as limit:
            super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(str(self.args.output_dir))
            finish_checkpoint(folder / f"checkpoint-{self.state.global_step}", self.distillation.loss)
            rotate(folder, limit=limit, best=self.state.best_model_checkpoint)

    @property
    def _sums_tokens(self) -> bool:
        """Whether a step's loss is one sum over all ranks; else each rank has its own mean."""
        return bool(getattr(self.args, "average_tokens_across_devices", False)) and self.args.world_size > 1

    def _means(self, sums: MetricSums) -> dict[str, float]:
        found = sums.take(lambda values: self.accelerator.reduce(values, "sum"))
        if isinstance(self.distillation.loss, MultiTeacherLoss):
            # Those of batches are divided by the counts of their step.
            parts = enumerate(self.distillation.weights)
            found["kd"] = sum(weight * found.get(f"kd/{number}", 0.0) for number, weight in parts)
        return found


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


@contextmanager
def _keeping_all(args: Any) -> Iterator[int | None]:
    """Has the trainer remove no checkpoint; yields how many were to stay."""
    limit: int | None = args.save_total_limit
    args.save_total_limit = None
    try:
        yield limit
    finally:
        args.save_total_limit = limit


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
