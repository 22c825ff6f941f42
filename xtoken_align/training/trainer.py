"""`XTokenTrainer`: `transformers.Trainer` that distils from teachers with other tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from transformers import Trainer

from ..errors import OptionError
from .arguments import XTokenTrainingArguments
from .distillation import Distillation
from .mixin import DistillationMixin
from .teachers import TeacherSpec

T = TypeVar("T")


class XTokenTrainer(DistillationMixin, Trainer):
    """Distils one or several teachers into a student.

        trainer = XTokenTrainer(
            student,
            XTokenTrainingArguments(output_dir="run", max_steps=1000),
            teachers=[TeacherSpec(model=teacher)],
            train_dataset=[{"text": "..."}, ...],
        )
        trainer.train()

    Mappings are found in the store, or built and kept, or given; what does not fit a tokenizer in hand is refused
    before the first step. Distributed training, accumulation, precision, checkpoints and resuming are those of
    transformers and accelerate. At every logging step the means since the last one are logged: `kd`, `ce`, `agreement`,
    `misfits`, `dropped_mass` and what else the loss measures, with several teachers per teacher as `agreement/0`.

    Args:
        model: the student; a PEFT model too.
        args: the arguments.
        teachers: the teachers.
        tokenizer: the student's `Vocab`, or what `read_vocab` takes; by default the folder or Hub id of the model.
        loss: options of `XTokenLoss` for all teachers.
        collate: options of `SpanCollator`: lengths, padding, packing, chat templates.
        store: the store's folder.
        **kwargs: further arguments of `transformers.Trainer`.

    Raises:
        MismatchError: a mapping or a cache is of another tokenizer than the model in hand; says what differs.
        OptionError: an option makes no sense.
    """

    def __init__(
        self,
        model: Any,
        args: XTokenTrainingArguments,
        *,
        teachers: Sequence[TeacherSpec],
        tokenizer: Any = None,
        loss: Mapping[str, Any] | None = None,
        collate: Mapping[str, Any] | None = None,
        store: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, XTokenTrainingArguments):
            raise OptionError(f"expected XTokenTrainingArguments as args, got {type(args).__name__}")

        def first(make: Callable[[], T]) -> T:
            with args.main_process_first(desc="the mapping"):
                return make()

        distillation = Distillation(
            model,
            student=tokenizer,
            teachers=teachers,
            loss=loss,
            collate=collate,
            store=store,
            fused=args.fused and not args.torch_compile,
            first=first,
        )
        super().__init__(model, args=args, distillation=distillation, **kwargs)
