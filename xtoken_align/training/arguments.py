"""The trainer's arguments: those of transformers with what distillation adds."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..errors import OptionError


@dataclass
class XTokenTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with a few more.

    Attributes:
        remove_unused_columns: False, since the collator reads columns that the model does not know.
        lmbda: the probability that a batch is on-policy: the student goes on from the beginnings of the batch's rows,
            and the teachers say what they think of it. On such a batch there is no cross-entropy.
        max_new_tokens: on-policy, the most tokens that the student writes.
        prompt_tokens: on-policy, how many tokens of a text the student goes on from, half of it at most. Of a chat it
            is what stands before the first message that counts.
        generation_temperature: on-policy, the temperature at which the student writes.
        link_learning_rate: the learning rate of W's weights, where a loss learns them (`learn_w`).
        fused: whether the student's logits are made block by block where its head allows it.

    Raises:
        OptionError: a value makes no sense.
    """

    remove_unused_columns: bool = field(default=False)
    lmbda: float = field(default=0.0)
    max_new_tokens: int = field(default=128)
    prompt_tokens: int = field(default=32)
    generation_temperature: float = field(default=1.0)
    link_learning_rate: float = field(default=1e-2)
    fused: bool = field(default=True)

    def __post_init__(self) -> None:
        if not 0 <= self.lmbda <= 1:
            raise OptionError(f"lmbda is a probability, 0 to 1, but it is {self.lmbda!r}")
        for name in ("max_new_tokens", "prompt_tokens"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, but it is {getattr(self, name)!r}")
        for name in ("generation_temperature", "link_learning_rate"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name} must be above 0, but it is {getattr(self, name)!r}")
        super().__post_init__()  # type: ignore[no-untyped-call]
