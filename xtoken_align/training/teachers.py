"""Teachers: models that run beside the student, or caches of what one has said; and what has to fit before a run."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import MismatchError, OptionError, VocabularyError
from ..losses import FusedHead, Teacher, TopK, average_logits, fuse_head
from ..losses.fuse import captured
from ..losses.heads import Head
from ..losses.kinds import KINDS
from ..mapping.mapping import Mapping as VocabMapping
from ..read import read_vocab
from ..spans.batch import block_mask
from ..store.load import check_fits, get_or_build, load
from ..vocab.vocab import Vocab
from .cache.read import TeacherCache
from .served import ServedTeacher

CACHED_KINDS = tuple(name for name, kind in KINDS.items() if kind.partial_teachers)
"""Losses for which a teacher's best tokens are enough; hidden states are enough for all."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TeacherSpec:
    """A teacher as a user names it.

    Attributes:
        model: a causal language model of transformers, a `TeacherCache`, a cache's folder, or a `ServedTeacher`.
        tokenizer: its `Vocab`, or what `read_vocab` takes; by default the folder or Hub id that the model came from.
        mapping: a `Mapping`, its file or its name in the store; by default found in the store, or built and kept.
        weight: its share of the distillation loss; 1 divided by the number of teachers by default.
        loss: options of `XTokenLoss` for this teacher, over those that all teachers share.
        chat_template: for chats, a Jinja template or a function from messages to text; by default its tokenizer's own.
    """

    model: Any
    tokenizer: Any = None
    mapping: Any = None
    weight: float | None = None
    loss: Mapping[str, Any] = field(default_factory=dict)
    chat_template: Any = None

    @property
    def source(self) -> Any:
        """Where the teacher's vocabulary is read from."""
        return self.tokenizer or getattr(self.model, "name_or_path", None)

    def vocab(self) -> Vocab:
        """The teacher's vocabulary, as wide as its logits.

        Raises:
            MismatchError: the cache was made with another tokenizer.
            OptionError: there is no tokenizer, or a `Vocab` has another width.
        """
        if not isinstance(self.model, (TeacherCache, ServedTeacher)):
            return vocab_of(self.tokenizer, self.model, logit_width(self.model), "teacher")
        width = self.model.width if isinstance(self.model, ServedTeacher) else self.model.settings.logits
        vocab = vocab_of(self.tokenizer, None, width, "teacher")
        self.model.check(vocab)
        return vocab


def teacher_specs(given: Any) -> list[TeacherSpec]:
    """The teachers that a user names, in one form.

    Args:
        given: a model, a `TeacherCache`, a cache's folder, a `ServedTeacher` or a dict of its arguments, a
            `TeacherSpec`, or a list of such.

    Raises:
        OptionError: there is none, or a cache has no tokenizer with it.
        StoreError: there is no cache in a folder.
    """
    specs = []
    for each in given if isinstance(given, (list, tuple)) else [given]:
        spec = each if isinstance(each, TeacherSpec) else TeacherSpec(model=each)
        if isinstance(spec.model, (str, Path)):
            spec = replace(spec, model=TeacherCache(spec.model))
        if isinstance(spec.model, Mapping):
            spec = replace(spec, model=served_teacher(spec.model))
        if isinstance(spec.model, ServedTeacher) and spec.tokenizer is None:
            spec = replace(spec, tokenizer=spec.model.source)
        if isinstance(spec.model, TeacherCache) and spec.tokenizer is None:
            if spec.model.teacher is None:
                raise OptionError(
                    f"the teacher cached in {spec.model.folder} has no tokenizer: give its folder, alias or Hub id as "
                    "`tokenizer`, or open the cache with its vocabulary"
                )
            spec = replace(spec, tokenizer=spec.model.teacher)
        specs.append(spec)
    if not specs or specs[0].model is None:
        raise OptionError("expected at least one teacher, got none: give a model, a TeacherSpec, a cache, or a list")
    return specs


class LiveTeacher:
    """A model that runs beside the student, without gradients and dropout.

    Args:
        model: the model.
        fused: whether its logits may be left for the loss to make, block by block.
    """

    def __init__(self, model: Any, *, fused: bool = True) -> None:
        self.model = model.eval().requires_grad_(False)  # noqa: FBT003 - torch's own signature
        sharded = any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
        # On several devices, or in parts: where its parameters are is nobody else's business.
        self._spread = sharded or getattr(model, "hf_device_map", None) is not None
        self._head = try_fuse_head(model) if fused and not self._spread else None

    def to(self, device: torch.device) -> None:
        """Moves the model, unless it has been spread over devices already."""
        if not self._spread:
            self.model.to(device)

    @torch.no_grad()
    def answer(self, side: Mapping[str, Any], segments: Any = None) -> Teacher:
        """What the teacher says of its side of a batch: logits (B, T, V), or hidden states (B, T, D) with the head."""
        inputs = model_inputs(self.model, side, segments)
        if self._head is None:
            logits: torch.Tensor = self.model(**inputs).logits
            return logits.to(side["input_ids"].device)
        return captured(self._head, lambda: self.model(**inputs))


class CachedTeacher:
    """A cache or a server; the collator has looked the batch's rows up, or asked about them.

    Args:
        head: the output head, of a cache of hidden states.
        fused: whether logits may be left for the loss to make, block by block.
    """

    def __init__(self, head: Head | None = None, *, fused: bool = True) -> None:
        self._head, self._fused = head, fused

    def to(self, device: torch.device) -> None:
        """Moves the head."""
        self._head = None if self._head is None else self._head.to(device)

    @torch.no_grad()
    def answer(self, side: Mapping[str, Any], segments: Any = None) -> Teacher:  # noqa: ARG002 - as for models
        """What the teacher said of its side of a batch: best tokens, or what a model that runs gives."""
        device = side["input_ids"].device
        if self._head is not None:
            hidden = self._head.hidden(side["states"].to(device))
            return hidden if self._fused else average_logits([hidden]).logits
        top_k: TopK = side["top_k"]
        return replace(
            top_k, ids=top_k.ids.to(device), log_probs=top_k.log_probs.to(device), rest=top_k.rest.to(device)
        )


def served_teacher(given: Mapping[str, Any]) -> ServedTeacher:
    """A served teacher from `{url: ..., tokenizer: ..., ...}`.

    Raises:
        OptionError: url or tokenizer is missing, or an option makes no sense.
    """
    missing = [name for name in ("url", "tokenizer") if not given.get(name)]
    if missing:
        raise OptionError(f"a served teacher has a url and the tokenizer of its model: {' and '.join(missing)} missing")
    options = {name: value for name, value in given.items() if name not in ("url", "tokenizer")}
    return ServedTeacher(given["url"], given["tokenizer"], **options)


def plain(model: Any) -> Any:
    """The model as transformers made it, under what trainers and adapters wrap around it."""
    inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
    if inner is None and hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        inner = model.get_base_model()
    return model if inner is None or inner is model else plain(inner)


def model_inputs(model: Any, side: Mapping[str, Any], segments: Any = None) -> dict[str, Any]:
    """What a model is called with.

    Args:
        model: the model, wrapped or not.
        side: a side of a batch: `input_ids`, `attention_mask` and `position_ids`, each (B, T).
        segments: int (B, T), the number of each token's document in packed rows; None where rows are documents.
    """
    inner = plain(model)
    inputs = {"input_ids": side["input_ids"], "attention_mask": side["attention_mask"], "use_cache": False}
    if segments is not None:
        # Documents [0 0 1] in a row: the third token may look at itself alone, so its row of the mask is [-big -big 0].
        allowed = block_mask(segments).to(side["input_ids"].device)
        dtype = next(inner.parameters()).dtype
        zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        inputs["attention_mask"] = zeros.masked_fill(~allowed, torch.finfo(dtype).min)
    if "position_ids" in inspect.signature(inner.forward).parameters:
        inputs["position_ids"] = side["position_ids"]
    return inputs


def try_fuse_head(model: Any) -> FusedHead | None:
    """The model's head, made to compute losses, or None where it is no matrix with a bias and adapters."""
    if hasattr(model, "_orig_mod"):
        # A compiled model has its head's class compiled in.
        return None
    try:
        return fuse_head(model)
    except OptionError:
        return None


def logit_width(model: Any) -> int:
    """How many logits a causal language model has.

    Raises:
        OptionError: it has no head.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None or getattr(head, "weight", None) is None:
        raise OptionError(
            f"expected a causal language model with a head, got {type(model).__name__}: load it with "
            "AutoModelForCausalLM"
        )
    return int(head.weight.shape[0])


def vocab_of(tokenizer: Any, model: Any, width: int, role: str) -> Vocab:
    """The vocabulary of a side, as wide as its logits.

    Args:
        tokenizer: a `Vocab`, what `read_vocab` takes, or None for the model's own folder or Hub id.
        model: the model, if there is one.
        width: its logit width.
        role: `student` or `teacher`, for messages.

    Raises:
        OptionError: there is no tokenizer, or a `Vocab` has another width.
        VocabularyError: the tokenizer has more ids than the model has logits.
    """
    source = tokenizer or getattr(model, "name_or_path", None)
    if not source:
        raise OptionError(f"the {role}'s tokenizer is missing: give its folder, alias or Hub id as `tokenizer`")
    if not isinstance(source, Vocab):
        # A width that the files state and the model does not have is only seen with both in hand.
        vocab = read_vocab(source)
        source = vocab if len(vocab) == width else read_vocab(source, logits=width)
    if source.sizes.base > width:
        raise VocabularyError(
            f"the {role}'s tokenizer {source.name} has {source.sizes.base} tokens, but its model has {width} logits: "
            "text would be spelled as the model has never read it, so give the tokenizer of this model"
        )
    if len(source) != width:
        raise OptionError(
            f"the {role} {source.name} has {len(source)} logits by its vocabulary, but the model has {width}: read the "
            f"vocabulary with logits={width}, or give the tokenizer of this model"
        )
    return source


def weights_of(given: Sequence[float | None]) -> list[float]:
    """The teachers' weights: those that are given, or equal ones.

    >>> weights_of([None, None])
    [0.5, 0.5]
    """
    known = [float(weight) for weight in given if weight is not None]
    return known or [1 / len(given)] * len(given)


def fitting_mapping(
    given: VocabMapping | str | os.PathLike[str] | None,
    *,
    student: Vocab,
    teacher: Vocab,
    store: str | os.PathLike[str] | None = None,
    first: Callable[[Callable[[], VocabMapping]], VocabMapping] = lambda make: make(),
) -> VocabMapping:
    """The mapping of two tokenizers: the one that is given, if it is theirs, else from the store, else built and kept.

    Args:
        given: a mapping, its file, its name in the store, or None.
        student: the student's vocabulary.
        teacher: the teacher's.
        store: the store's folder.
        first: calls a function in one process of each machine before the others.

    Raises:
        MismatchError: the mapping is of other tokenizers; says what differs.
    """
    if given is None:
        return first(lambda: get_or_build(student=student, teacher=teacher, store=store))
    mapping = given if isinstance(given, VocabMapping) else load(given, store=store)
    for side, vocab, role in ((mapping.student, student, "student"), (mapping.teacher, teacher, "teacher")):
        check_fits(side, vocab, role)
        if side.sizes.logits != len(vocab):
            raise MismatchError(
                f"the mapping's {role} has {side.sizes.logits} logits, but the model has {len(vocab)}: build a mapping "
                f"with --{role}-logits {len(vocab)}"
            )
    return mapping
