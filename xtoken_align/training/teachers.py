"""Teachers: a model that runs beside the student, or a cache of what one has said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import OptionError
from ..losses import Teacher, TopK
from ..vocab.vocab import Vocab
from .cache.read import TeacherCache
from .fit import logit_width, vocab_of
from .forward import model_inputs, run_to_hidden, run_whole, try_fuse_head

CACHED_KINDS = ("partition-kl", "c-kl", "p-kl")
"""Losses that a teacher's best tokens are enough for."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TeacherSpec:
    """A teacher as a user names it.

    Attributes:
        model: a causal language model of transformers, a `TeacherCache`, or a cache's folder.
        tokenizer: its `Vocab`, or what `read_vocab` takes; by default the folder or Hub id that the model came from.
        mapping: a `Mapping`, its file or its name in the store; by default found in the store, or built and kept.
        weight: its share of the distillation loss; 1 divided by the number of teachers by default.
        loss: options of `XTokenLoss` for this teacher, over those that all teachers share.
    """

    model: Any
    tokenizer: Any = None
    mapping: Any = None
    weight: float | None = None
    loss: Mapping[str, Any] = field(default_factory=dict)

    def opened(self) -> TeacherSpec:
        """The same with the cache read, if its folder was named.

        Raises:
            StoreError: there is no cache in the folder.
            OptionError: a cache has no tokenizer with it.
        """
        made = self
        if isinstance(self.model, (str, Path)):
            made = replace(self, model=TeacherCache(self.model))
        if not isinstance(made.model, TeacherCache) or made.tokenizer is not None:
            return made
        if made.model.teacher is None:
            raise OptionError(
                f"the teacher cached in {made.model.folder} has no tokenizer: give its folder, alias or Hub id as "
                "`tokenizer`, or open the cache with its vocabulary"
            )
        return replace(made, tokenizer=made.model.teacher)

    @property
    def source(self) -> Any:
        """Where its vocabulary is read from."""
        return self.tokenizer or getattr(self.model, "name_or_path", None)

    def vocab(self) -> Vocab:
        """The teacher's vocabulary, as wide as its logits.

        Raises:
            MismatchError: the cache was made with another tokenizer.
            OptionError: there is no tokenizer, or a `Vocab` has another width.
        """
        if not isinstance(self.model, TeacherCache):
            return vocab_of(self.tokenizer, self.model, logit_width(self.model), "teacher")
        vocab = vocab_of(self.tokenizer, None, self.model.settings.logits, "teacher")
        # Opened anew with the vocabulary in hand: that is what checks it.
        assert TeacherCache(self.model.folder, teacher=vocab)
        return vocab


class LiveTeacher:
    """A model that runs beside the student, without gradients and dropout.

    Args:
        model: the model.
        fused: whether its logits may be left for the loss to make, block by block.
    """

    def __init__(self, model: Any, *, fused: bool = True) -> None:
        self.model = model.eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature
        self._head = try_fuse_head(model) if fused and not _spread(model) else None

    def to(self, device: torch.device) -> None:
        """Moves the model, unless it has been spread over devices already."""
        if not _spread(self.model):
            self.model.to(device)

    @torch.no_grad()
    def answer(self, side: Mapping[str, Any], segments: Any = None) -> Teacher:
        """What the teacher says of its side of a batch."""
        inputs = model_inputs(self.model, side, segments)
        if self._head is not None:
            return run_to_hidden(self.model, inputs, self._head)
        return run_whole(self.model, inputs).to(side["input_ids"].device)


class CachedTeacher:
    """A cache; the collator has looked the batch's rows up."""

    def to(self, device: torch.device) -> None:
        """Has nothing to move."""

    def answer(self, side: Mapping[str, Any], segments: Any = None) -> Teacher:  # noqa: ARG002 - as for models
        """What the teacher said of its side of a batch."""
        found: TopK = side["top_k"]
        device = side["input_ids"].device
        return replace(
            found, ids=found.ids.to(device), log_probs=found.log_probs.to(device), rest=found.rest.to(device)
        )


def _spread(model: Any) -> bool:
    """Whether the model's parameters are on several devices, or in parts."""
    sharded = any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
    return sharded or getattr(model, "hf_device_map", None) is not None
