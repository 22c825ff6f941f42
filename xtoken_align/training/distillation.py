"""`Distillation`: all that a training loop needs beside the student's model; and the batches that it reads."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from typing import Any, TypeGuard, cast

import numpy as np
import torch

from ..errors import MismatchError, OptionError, XTokenWarning
from ..losses import FusedHead, LossOutput, Metric, MultiTeacherLoss, Student, Teacher, TopK, XTokenLoss
from ..losses.inputs import logits_at
from ..mapping.audit import unpaired_ends
from ..mapping.mapping import Mapping as VocabMapping
from ..read import read_vocab
from ..spans.batch import SpanCollator
from ..spans.spans import IGNORED, Spans
from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab
from .cache.read import TeacherCache
from .config import mistakes_of_combining, mistakes_of_loss, mistakes_of_weights, refuse
from .served import ServedTeacher
from .spelling import unknown_settings
from .teachers import (
    CACHED_KINDS,
    CachedTeacher,
    LiveTeacher,
    fitting_mapping,
    logit_width,
    model_inputs,
    teacher_specs,
    try_fuse_head,
    vocab_of,
    weights_of,
)

TEACHER_BITS = "teacher_bits_per_byte"
"""The metric of what a teacher itself spends on the labels."""

Batch = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Counts:
    """What the losses of an optimiser step's batches are divided by.

    Attributes:
        items: scalar, labels.
        chunks: int (teachers,), each teacher's chunks.
    """

    items: torch.Tensor
    chunks: torch.Tensor


class Distillation:
    """The teachers, their mappings and losses, and the collator, made to fit a student.

        distillation = Distillation(student, teacher=teacher)
        for batch in DataLoader(rows, batch_size=8, collate_fn=distillation.collate):
            distillation(student, batch).loss.backward()

    Args:
        model: the student, before it is wrapped for distributed training; a PEFT model too.
        teacher: a model, a `TeacherCache`, a `TeacherSpec` with either, or a list of such.
        tokenizer: the student's `Vocab`, or what `read_vocab` takes; by default the folder or Hub id of the model.
        loss: options of `XTokenLoss` for all teachers.
        collate: options of `SpanCollator`.
        combine: how several teachers are weighed by row: options of `MultiTeacherLoss`, such as `weigh_by`.
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
        teacher: Any,
        tokenizer: Any = None,
        loss: Mapping[str, Any] | None = None,
        collate: Mapping[str, Any] | None = None,
        combine: Mapping[str, Any] | None = None,
        store: str | os.PathLike[str] | None = None,
        fused: bool = True,
        first: Callable[[Callable[[], VocabMapping]], VocabMapping] = lambda make: make(),
    ) -> None:
        specs = teacher_specs(teacher)
        options = [{**(loss or {}), **spec.loss} for spec in specs]
        refuse(mistake for each in options for mistake in mistakes_of_loss(each, "loss"))
        refuse(mistakes_of_weights([spec.weight for spec in specs]))
        self.vocab = vocab_of(tokenizer, model, logit_width(model), "student")
        self.teacher_vocabs = [spec.vocab() for spec in specs]
        self.mappings = [
            fitting_mapping(spec.mapping, student=self.vocab, teacher=vocab, store=store, first=first)
            for spec, vocab in zip(specs, self.teacher_vocabs, strict=True)
        ]
        for mapping in self.mappings:
            if (sentence := unpaired_ends(mapping.student, mapping.teacher, mapping.matrix)) is not None:
                warnings.warn(sentence, XTokenWarning, stacklevel=2)
        losses = [
            XTokenLoss(mapping, **each, vocabs=(self.vocab, vocab) if each.get("kind") == "exact" else None)
            for mapping, vocab, each in zip(self.mappings, self.teacher_vocabs, options, strict=True)
        ]
        answering = (TeacherCache, ServedTeacher)
        caches = tuple(spec.model if isinstance(spec.model, answering) else None for spec in specs)
        _check_losses(losses, caches)
        # The peers' forms read logits, and divide by the counts of each batch alone.
        self.per_batch = any(each.options.compat is not None for each in losses)
        fused = fused and not self.per_batch
        self.weights = weights_of([spec.weight for spec in specs])
        alone = len(losses) == 1 and self.weights == [1.0]
        refuse(mistakes_of_combining(combine or {}, len(losses), "combine"))
        several = MultiTeacherLoss(losses, self.weights, **(combine or {})) if not alone else None
        self.loss: XTokenLoss | MultiTeacherLoss = losses[0] if several is None else several
        self.collate = DistillationCollator(
            student=SourcedVocab(self.vocab, tokenizer or getattr(model, "name_or_path", None)),
            teachers=tuple(map(SourcedVocab, self.teacher_vocabs, (spec.source for spec in specs))),
            caches=caches,
            options=dict(collate or {}),
            templates=tuple(spec.chat_template for spec in specs),
        )
        self.teachers: list[LiveTeacher | CachedTeacher] = [
            LiveTeacher(spec.model, fused=fused)
            if cache is None
            else CachedTeacher(cache.head() if _is_whole(cache) else None, fused=not self.per_batch)
            for spec, cache in zip(specs, caches, strict=True)
        ]
        self._bytes = bytes_of_text(self.vocab)
        self._teacher_bytes = list(map(bytes_of_text, self.teacher_vocabs))
        self._head: FusedHead | None = try_fuse_head(model) if fused else None

    def to(self, device: torch.device | str) -> Distillation:
        """Moves losses and teachers; batches and the student are moved by whoever owns them."""
        self.loss.to(device)
        self._bytes = self._bytes.to(device)
        self._teacher_bytes = [each.to(device) for each in self._teacher_bytes]
        for teacher in self.teachers:
            teacher.to(torch.device(device))
        return self

    def count(self, batches: Sequence[Batch]) -> Counts:
        """What the losses of some batches are divided by, so that it does not matter how rows are cut into batches.

        Two batches with 5 and 3 labels, and 4 and 2 chunks of one teacher: items 8, chunks [6].
        """
        device = batches[0]["labels"].device
        items = torch.zeros((), dtype=torch.int64, device=device)
        chunks = [0] * len(self.teachers)
        for batch in batches:
            items += (batch["labels"][:, 1:] != IGNORED).sum()
            for number, side in enumerate(batch["teachers"]):
                chunks[number] += len(side["spans"].spans.predictions())
        return Counts(items, torch.tensor(chunks, device=device))

    def __call__(self, model: Any, batch: Batch, counts: Counts | None = None) -> LossOutput:
        """The loss of a batch.

        Args:
            model: the student, wrapped or not.
            batch: of `collate`.
            counts: of all batches of an optimiser step, on all ranks; by default those of this batch.

        Raises:
            OptionError: shapes do not fit, or the model does to its logits what its config does not say.
        """
        if "teachers" not in batch:
            raise OptionError("rows with nothing but a prompt have no answer to learn from: give texts or chats")
        packed = bool(self.collate.options.get("pack"))
        spans, answers = [], []
        for teacher, side in zip(self.teachers, batch["teachers"], strict=True):
            spans.append(side["spans"].spans)
            if isinstance(self.loss, XTokenLoss):
                # The models have not been asked yet: their work and the plan's are done at the same time.
                self.loss.plan_ahead(spans[-1], batch["labels"], fused=self._head is not None)
            answers.append(teacher.answer(side, spans[-1].teacher_segments if packed else None))
        inputs = model_inputs(model, batch, spans[0].student_segments if packed else None)

        def compare(student: Student) -> LossOutput:
            whole, device = counts or self.count([batch]), batch["labels"].device.type
            named: dict[str, Any] = {"labels": batch["labels"], "num_items_in_batch": whole.items}
            # Inside of the model's forward, autocast would take what is computed in float32 down to half precision.
            with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
                output: LossOutput
                if isinstance(self.loss, MultiTeacherLoss):
                    named |= {"num_chunks_in_batch": list(whole.chunks), "routes": batch.get("routes")}
                    output = self.loss(student, answers, spans, **named)
                else:
                    output = self.loss(student, answers[0], spans[0], num_chunks_in_batch=whole.chunks[0], **named)
                return output

        if self._head is None:
            output = compare(model(**inputs).logits)
        else:
            with self._head.computing(compare):
                model(**inputs)
            output = self._head.output
        if (bits := self._bits(output.metrics["ce"], batch["labels"])) is not None:
            output.metrics["bits_per_byte"] = bits
        if not self.loss.training:
            output.metrics.update(self._bits_of_teachers(answers, batch["teachers"]))
        return output

    def _bits(self, cross_entropy: Metric, labels: torch.Tensor) -> Metric | None:
        """Bits of the labels, and the bytes of text in them; None where the loss has no cross-entropy.

        Of the labels `The` (1.0 nats), ` sea` (2.0) and the end of the text (0.5): 3.5 nats are 5.05 bits, and 7 bytes.
        """
        losses = self.loss.losses if isinstance(self.loss, MultiTeacherLoss) else [self.loss]
        if not cast("XTokenLoss", losses[0]).options.ce_weight:
            return None
        nats, count = cross_entropy
        ids = labels[:, 1:][labels[:, 1:] != IGNORED]
        # A peer's form gives the mean of its batch, with 1 as its count.
        total = torch.where(count > 0, nats / count, torch.zeros_like(nats)) * len(ids)
        return total / math.log(2), self._bytes.to(ids.device)[ids].sum().to(nats)

    @torch.no_grad()
    def _bits_of_teachers(self, answers: Sequence[Teacher], sides: Sequence[Batch]) -> dict[str, Metric]:
        """Bits of the labels by each teacher that runs, and the bytes of text in them: how far a student may come.

        Those of a cache of best tokens are left out: it knows the text's tokens only where they are among the best.
        """
        several, measured = len(answers) > 1, {}
        for number, (answer, side, lengths) in enumerate(zip(answers, sides, self._teacher_bytes, strict=True)):
            if isinstance(answer, TopK):
                continue
            ids = side["input_ids"]
            counted = torch.as_tensor(side["spans"].spans.teacher_loss_mask, device=ids.device)
            nats = torch.zeros((), device=ids.device)
            for row in range(len(ids)):
                # One row at a time, as in `measured_bits`.
                positions = row * ids.shape[1] + counted[row, 1:].nonzero().squeeze(1)
                logits = logits_at(answer, positions).float()
                nats += torch.nn.functional.cross_entropy(logits, ids.flatten()[positions + 1], reduction="sum")
            name = f"{TEACHER_BITS}/{number}" if several else TEACHER_BITS
            measured[name] = nats / math.log(2), lengths.to(ids.device)[ids[:, 1:][counted[:, 1:]]].sum().to(nats)
        return measured

    @torch.no_grad()
    def measured_bits(self, model: Any, batch: Batch) -> Metric:
        """Bits of a batch's labels, and the bytes of text in them, from whole logits: for losses without the labels."""
        packed = bool(self.collate.options.get("pack"))
        segments = batch["teachers"][0]["spans"].spans.student_segments if packed else None
        inputs, labels = model_inputs(model, batch, segments), batch["labels"]
        nats = torch.zeros((), device=labels.device)
        for row in range(len(labels)):
            # One row at a time: 512 positions of 128 thousand logits are 262 MB.
            own = {
                name: each[row : row + 1] if isinstance(each, torch.Tensor) else each for name, each in inputs.items()
            }
            logits = model(**own).logits[0, :-1].float()
            nats += torch.nn.functional.cross_entropy(logits, labels[row, 1:], ignore_index=IGNORED, reduction="sum")
        ids = labels[:, 1:][labels[:, 1:] != IGNORED]
        return nats / math.log(2), self._bytes.to(ids.device)[ids].sum().to(nats)

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


def bytes_of_text(vocab: Vocab) -> torch.Tensor:
    """How many bytes of text each token says, int64 (V,); control tokens say none."""
    texts = np.isin(vocab.kinds, (Kind.TEXT, Kind.BYTE))
    return torch.tensor([len(surface) if says else 0 for surface, says in zip(vocab.surfaces, texts, strict=True)])


def _check_losses(losses: Sequence[XTokenLoss], caches: Sequence[TeacherCache | ServedTeacher | None]) -> None:
    """Refuses losses that cannot be learnt from their teachers, or that are counted in two ways.

    Raises:
        OptionError: a loss needs more than best tokens, or is of a peer's form and others are not.
    """
    for loss, cache in zip(losses, caches, strict=True):
        if cache is not None and not _is_whole(cache) and loss.kind not in CACHED_KINDS:
            raise OptionError(
                f"{loss.kind} needs the teacher's whole distribution, but the teacher is {cache}: use "
                f"{', '.join(CACHED_KINDS)}, a cache of hidden states (keep='hidden'), or the model itself"
            )
    if len({loss.options.compat is None for loss in losses}) > 1:
        raise OptionError("losses of a peer's form count otherwise than others: give compat to all teachers or to none")


def _is_whole(cache: TeacherCache | ServedTeacher) -> TypeGuard[TeacherCache]:
    """Whether a teacher that does not run is known by more than its best tokens."""
    return isinstance(cache, TeacherCache) and cache.settings.keep == "hidden"


@dataclass(frozen=True, eq=False)
class HostRows:
    """The rows of a batch as the data set has them, which stay in the processor's memory as `OnHost` does.

    Attributes:
        rows: the rows.
    """

    rows: Rows


@dataclass(frozen=True, eq=False)
class OnHost:
    """Spans that stay in the processor's memory, where the losses plan: what moves a batch to a device moves whatever
    has a method `to`, and this has none.

    Attributes:
        spans: the spans.
    """

    spans: Spans


class SourcedVocab:
    """A vocabulary that travels to another process as the source that it was read from.

    Args:
        vocab: the vocabulary.
        source: what `read_vocab` takes; a `Vocab` itself can travel only to processes that are forked.
    """

    def __init__(self, vocab: Vocab, source: Any) -> None:
        self.vocab, self.source = vocab, source

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "logits": len(self.vocab)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.source = state["source"]
        self.vocab = read_vocab(self.source, logits=state["logits"])


@dataclass(frozen=True, eq=False, kw_only=True)
class DistillationCollator:
    """A `SpanCollator` for every teacher, in one batch.

    A batch has the student's `input_ids`, `attention_mask`, `position_ids` and `labels`, and under `teachers` for each
    teacher the same without labels, its `spans` as `OnHost`, and `top_k` or `states` where it is a cache. Where some
    batches are on-policy, it has its `rows` too.

    Args:
        student: the student's vocabulary.
        teachers: the teachers', in order.
        caches: each teacher's cache or server, None where it is a model.
        options: further arguments of `SpanCollator`, the same for all.
        templates: each teacher's chat template, None where it is that of `options` or the tokenizer's own.
        lmbda: the share of the batches that are on-policy. If all are, rows need no more than a `prompt`, and a batch
            of such rows has nothing but them.

    Raises:
        OptionError: an option has a value that makes no sense, or rows of several teachers are to be packed.
        MismatchError: a cache was made with other tokens around its texts, or cut to another length.
    """

    student: SourcedVocab
    teachers: tuple[SourcedVocab, ...]
    caches: tuple[TeacherCache | ServedTeacher | None, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    templates: tuple[Any, ...] = ()
    lmbda: float = 0.0

    def __post_init__(self) -> None:
        known = [name for name in signature(SpanCollator).parameters if name not in ("student", "teacher")]
        refuse(unknown_settings(self.options, known, "collate"))
        if self.options.get("pack") and len(self.teachers) > 1:
            raise OptionError(
                "pack=True fills rows by the tokens of both sides, so several teachers would need several students: "
                "leave it out, or train from one teacher"
            )
        for collate, cache in zip(self.collators, self.caches, strict=True):
            if not isinstance(cache, TeacherCache):
                continue
            differing = [
                f"{name} is {getattr(cache.settings, name)} there, {getattr(collate, name)} here"
                for name in ("bos", "eos", "max_teacher_tokens", "truncation_side")
                if getattr(cache.settings, name) != getattr(collate, name)
            ]
            if differing:
                raise MismatchError(
                    f"{cache.folder} holds texts as other ids than this run makes of them ({'; '.join(differing)}): "
                    "train with the options that the cache was written with, or write it anew"
                )

    @cached_property
    def collators(self) -> tuple[SpanCollator, ...]:
        """One per teacher."""
        templates = self.templates or (None,) * len(self.teachers)
        own = [{} if template is None else {"teacher_template": template} for template in templates]
        return tuple(
            SpanCollator(student=self.student.vocab, teacher=side.vocab, **{**self.options, **template})
            for side, template in zip(self.teachers, own, strict=True)
        )

    def __getstate__(self) -> dict[str, Any]:
        # Made again from the vocabularies in another process.
        return {name: value for name, value in vars(self).items() if name != "collators"}

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Makes a batch; rows have a `text`, `messages`, or ids of both sides, see `SpanCollator`.

        Raises:
            OptionError: rows are of no such form, or have ids of one teacher where there are several.
        """
        if len(self.teachers) > 1 and rows and "student_ids" in rows[0]:
            raise OptionError(
                f"rows with `teacher_ids` are of one teacher, but there are {len(self.teachers)}: give texts or chats"
            )
        if self.lmbda == 1 and rows and not any(name in rows[0] for name in ("student_ids", "messages", "text")):
            return {"rows": HostRows(rows)}
        batch = self.batch([rows] * len(self.teachers))
        if rows and "ends" in rows[0] and not self.options.get("pack"):
            self._forget_false_ends(rows, batch)
        return {**batch, "rows": HostRows(rows)} if self.lmbda else batch

    def _forget_false_ends(self, rows: Rows, batch: Mapping[str, Any]) -> None:
        """Takes the label from the token that ends a text where a row says that its text goes on (`ends` is False)."""
        eos = self.student.vocab.roles.get("eos", (None,))[0]
        for number, row in enumerate(rows):
            if eos is not None and not row.get("ends", True):
                last = int(batch["attention_mask"][number].nonzero()[-1])
                if int(batch["input_ids"][number, last]) == eos:
                    batch["labels"][number, last] = IGNORED

    def batch(self, rows: Sequence[Rows]) -> dict[str, Any]:
        """A batch from each teacher's own rows, whose student sides are the same."""
        student: dict[str, Any] = {}
        teachers = []
        for collate, cache, each in zip(self.collators, self.caches, rows, strict=True):
            both = collate(each)
            if student and not torch.equal(both["student_input_ids"], student["input_ids"]):
                raise OptionError("the teachers' rows say different things of the student: give them all the same rows")
            names = ("input_ids", "attention_mask", "position_ids")
            student = student or {name: both[f"student_{name}"] for name in names} | {"labels": both["labels"]}
            side = {name: both[f"teacher_{name}"] for name in names} | {"spans": OnHost(both["spans"])}
            if cache is not None:
                asked = {"ids": side["input_ids"], "mask": side["attention_mask"]}
                asked["segments"] = both["spans"].teacher_segments
                # The head of hidden states stays with the losses: batches travel between processes.
                side |= {"states": cache.states(**asked)} if _is_whole(cache) else {"top_k": cache.top_k(**asked)}
            teachers.append(side)
        routes = _routes(rows[0]) if len(self.teachers) > 1 else {}
        return {**student, "teachers": teachers, **routes}


def _routes(rows: Rows) -> dict[str, torch.Tensor]:
    """The teachers that rows name in a column `teacher`, by their numbers; -1 where a row names none.

    Rows of teachers 1, none and 0: routes [1 -1 0].
    """
    named = [row.get("teacher") for row in rows]
    if all(one is None for one in named):
        return {}
    for one in named:
        if one is not None and type(one) is not int:
            raise OptionError(
                f"a row's `teacher` is the number of the one that it learns from, 0 for the first: {one!r}"
            )
    return {"routes": torch.tensor([-1 if one is None else one for one in named])}
