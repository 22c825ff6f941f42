"""`Distillation`: all that a training loop needs beside the student's model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import OptionError
from ..losses import FusedHead, LossOutput, MultiTeacherLoss, Student, Teacher, XTokenLoss
from ..mapping.mapping import Mapping as VocabMapping
from ..spans.batch import IGNORED
from .cache.read import TeacherCache
from .collate import DistillationCollator, SourcedVocab
from .fit import fitting_mapping, logit_width, vocab_of
from .forward import model_inputs, run_whole, try_fuse_head
from .loss_options import check_loss_options, weights_of
from .teachers import CACHED_KINDS, CachedTeacher, LiveTeacher, TeacherSpec

Batch = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Counts:
    """What the sums of a step's batches are divided by.

    Attributes:
        items: scalar, labels.
        chunks: scalars, each teacher's chunks.
    """

    items: torch.Tensor
    chunks: tuple[torch.Tensor, ...]

    def stacked(self) -> torch.Tensor:
        """Integers (1 + teachers,)."""
        return torch.stack([self.items, *self.chunks])

    @classmethod
    def of(cls, stacked: torch.Tensor) -> Counts:
        """The reverse of `stacked`."""
        items, *chunks = stacked.unbind()
        return cls(items, tuple(chunks))


class Distillation:
    """The teachers, their mappings and losses, and the collator, made to fit a student.

        distillation = Distillation(model, student="./student", teachers=[TeacherSpec(model=teacher)])
        for batch in DataLoader(rows, batch_size=8, collate_fn=distillation.collate):
            distillation(model, batch).loss.backward()

    Args:
        model: the student, before it is wrapped for distributed training; a PEFT model too.
        student: the student's `Vocab`, or what `read_vocab` takes; by default the folder or Hub id of the model.
        teachers: one or several.
        loss: options of `XTokenLoss` for all teachers.
        collate: options of `SpanCollator`.
        store: the store's folder.
        fused: whether logits are made block by block where a head allows it; without it they are whole.
        first: calls a function in one process of each machine before the others.

    Attributes:
        vocab: the student's vocabulary.
        teachers: the teachers as they answer.
        teacher_vocabs: their vocabularies.
        mappings: theirs.
        loss: `XTokenLoss`, or `MultiTeacherLoss` of several teachers.
        weights: of the teachers.
        per_batch: whether each batch's loss is a mean by itself, as the compatibility forms make it.
        collate: makes batches of rows.

    Raises:
        MismatchError: a mapping or a cache is of another tokenizer than the model in hand; says what differs.
        OptionError: an option makes no sense, or a cached teacher is to be compared as a whole.
    """

    def __init__(
        self,
        model: Any,
        *,
        student: Any = None,
        teachers: Sequence[TeacherSpec],
        loss: Mapping[str, Any] | None = None,
        collate: Mapping[str, Any] | None = None,
        store: str | os.PathLike[str] | None = None,
        fused: bool = True,
        first: Callable[[Callable[[], VocabMapping]], VocabMapping] = lambda make: make(),
    ) -> None:
        if not teachers:
            raise OptionError("expected at least one teacher, got none")
        specs = [spec.opened() for spec in teachers]
        self.vocab = vocab_of(student, model, logit_width(model), "student")
        self.teacher_vocabs = [spec.vocab() for spec in specs]
        self.mappings = [
            fitting_mapping(spec.mapping, student=self.vocab, teacher=vocab, store=store, first=first)
            for spec, vocab in zip(specs, self.teacher_vocabs, strict=True)
        ]
        losses = [
            _loss(mapping, {**(loss or {}), **spec.loss}, spec)
            for mapping, spec in zip(self.mappings, specs, strict=True)
        ]
        # The peers' forms read logits, and divide by the counts of each batch alone.
        self.per_batch = _all_or_none([made.options.compat is not None for made in losses])
        fused = fused and not self.per_batch
        self.weights = weights_of([spec.weight for spec in specs])
        single = len(losses) == 1 and self.weights == [1.0]
        self.loss: XTokenLoss | MultiTeacherLoss = losses[0] if single else MultiTeacherLoss(losses, self.weights)
        caches = tuple(spec.model if isinstance(spec.model, TeacherCache) else None for spec in specs)
        self.collate = DistillationCollator(
            student=SourcedVocab(self.vocab, student or getattr(model, "name_or_path", None)),
            teachers=tuple(map(SourcedVocab, self.teacher_vocabs, (spec.source for spec in specs))),
            caches=caches,
            options=dict(collate or {}),
        )
        self.teachers: list[LiveTeacher | CachedTeacher] = [
            LiveTeacher(spec.model, fused=fused) if cache is None else CachedTeacher()
            for spec, cache in zip(specs, caches, strict=True)
        ]
        self._head: FusedHead | None = try_fuse_head(model) if fused else None

    def to(self, device: torch.device | str) -> Distillation:
        """Moves losses and teachers; batches and the student are moved by whoever owns them."""
        self.loss.to(device)
        for teacher in self.teachers:
            teacher.to(torch.device(device))
        return self

    def count(self, batches: Sequence[Batch]) -> Counts:
        """What the losses of some batches are divided by, so that it does not matter how they are cut."""
        device = batches[0]["labels"].device
        items = sum((batch["labels"][:, 1:] != IGNORED).sum() for batch in batches)
        chunks = [
            sum(len(batch["teachers"][number]["spans"].spans.predictions()) for batch in batches)
            for number in range(len(self.teachers))
        ]
        return Counts(
            torch.as_tensor(items, device=device), tuple(torch.tensor(each, device=device) for each in chunks)
        )

    def __call__(self, model: Any, batch: Batch, counts: Counts | None = None) -> LossOutput:
        """The loss of a batch.

        Args:
            model: the student, wrapped or not.
            batch: of `collate`.
            counts: of all batches of an optimiser step, on all ranks; by default those of this batch.

        Raises:
            OptionError: shapes do not fit, or the model does to its logits what its config does not say.
        """
        packed = bool(self.collate.options.get("pack"))
        spans = [side["spans"].spans for side in batch["teachers"]]
        answers = [
            teacher.answer(side, each.teacher_segments if packed else None)
            for teacher, side, each in zip(self.teachers, batch["teachers"], spans, strict=True)
        ]
        inputs = model_inputs(model, batch, spans[0].student_segments if packed else None)

        def compare(student: Student) -> LossOutput:
            return self._compare(student, answers, batch, counts or self.count([batch]))

        if self._head is None:
            return compare(run_whole(model, inputs))
        with self._head.computing(compare):
            model(**inputs)
        return self._head.output

    def total(self, means: Mapping[str, float]) -> float | None:
        """The loss that means of its parts come to; None where they are another project's, which add up otherwise.

        Args:
            means: `kd`, `ce` and `scale`, with several teachers per teacher.
        """
        several = isinstance(self.loss, MultiTeacherLoss)
        losses: list[Any] = list(self.loss.losses) if isinstance(self.loss, MultiTeacherLoss) else [self.loss]
        if self.per_batch:
            return None
        value = losses[0].options.ce_weight * means.get("ce", 0.0)
        for number, (loss, weight) in enumerate(zip(losses, self.weights, strict=True)):
            end = f"/{number}" if several else ""
            value += weight * loss.options.kd_weight * means.get(f"scale{end}", 1.0) * means.get(f"kd{end}", 0.0)
        return float(value)

    def _compare(self, student: Student, answers: list[Teacher], batch: Batch, counts: Counts) -> LossOutput:
        spans = [side["spans"].spans for side in batch["teachers"]]
        named: dict[str, Any] = {"labels": batch["labels"], "num_items_in_batch": counts.items}
        # Inside of the model's forward, autocast would take what is computed in float32 down to half precision.
        device = batch["labels"].device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            if isinstance(self.loss, MultiTeacherLoss):
                found: LossOutput = self.loss(student, answers, spans, num_chunks_in_batch=list(counts.chunks), **named)
            else:
                found = self.loss(student, answers[0], spans[0], num_chunks_in_batch=counts.chunks[0], **named)
        return found


def _loss(mapping: VocabMapping, options: Mapping[str, Any], spec: TeacherSpec) -> XTokenLoss:
    check_loss_options(options, "loss")
    made = XTokenLoss(mapping, **options)
    if isinstance(spec.model, TeacherCache) and made.kind not in CACHED_KINDS:
        raise OptionError(
            f"{made.kind} needs the teacher's whole distribution, but the teacher is the cache {spec.model.folder}: "
            f"use {', '.join(CACHED_KINDS)}, or the model itself"
        )
    return made


def _all_or_none(peers: Sequence[bool]) -> bool:
    if any(peers) and not all(peers):
        raise OptionError("losses of a peer's form count otherwise than others: give compat to all teachers or to none")
    return any(peers)
