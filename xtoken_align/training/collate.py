"""Rows of a data set to a batch for a student and its teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from typing import Any

import torch

from ..errors import MismatchError, OptionError
from ..read import read_vocab
from ..spans.batch import SpanCollator
from ..spans.spans import Spans
from ..vocab.vocab import Vocab
from .cache.read import TeacherCache
from .config_values import refuse_unknown

Rows = Sequence[Mapping[str, Any]]


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
    teacher the same without labels, its `spans` as `OnHost`, and `top_k` where it is a cache.

    Args:
        student: the student's vocabulary.
        teachers: the teachers', in order.
        caches: each teacher's cache, None where it is a model.
        options: further arguments of `SpanCollator`, the same for all.

    Raises:
        OptionError: an option has a value that makes no sense, or rows of several teachers are to be packed.
        MismatchError: a cache was made with other tokens around its texts, or cut to another length.
    """

    student: SourcedVocab
    teachers: tuple[SourcedVocab, ...]
    caches: tuple[TeacherCache | None, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = [name for name in signature(SpanCollator).parameters if name not in ("student", "teacher")]
        refuse_unknown(self.options, known, "collate.")
        if self.options.get("pack") and len(self.teachers) > 1:
            raise OptionError(
                "pack=True fills rows by the tokens of both sides, so several teachers would need several students: "
                "leave it out, or train from one teacher"
            )
        for collate, cache in zip(self.collators, self.caches, strict=True):
            if cache is not None:
                _check_cache(collate, cache)

    @cached_property
    def collators(self) -> tuple[SpanCollator, ...]:
        """One per teacher."""
        student = self.student.vocab
        return tuple(SpanCollator(student=student, teacher=side.vocab, **self.options) for side in self.teachers)

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
        return self.batch([rows] * len(self.teachers))

    def batch(self, rows: Sequence[Rows]) -> dict[str, Any]:
        """A batch from each teacher's own rows, whose student sides are the same."""
        made = [collate(each) for collate, each in zip(self.collators, rows, strict=True)]
        ids = made[0]["student_input_ids"]
        if not all(torch.equal(one["student_input_ids"], ids) for one in made):
            raise OptionError("the teachers' rows say different things of the student: give all of them the same rows")
        student = {name: made[0][f"student_{name}"] for name in ("input_ids", "attention_mask", "position_ids")}
        teachers = [_teacher_side(one, cache) for one, cache in zip(made, self.caches, strict=True)]
        return {**student, "labels": made[0]["labels"], "teachers": teachers}


def _teacher_side(made: dict[str, Any], cache: TeacherCache | None) -> dict[str, Any]:
    side = {name: made[f"teacher_{name}"] for name in ("input_ids", "attention_mask", "position_ids")}
    side["spans"] = OnHost(made["spans"])
    if cache is not None:
        segments = made["spans"].teacher_segments
        side["top_k"] = cache.top_k(ids=side["input_ids"], mask=side["attention_mask"], segments=segments)
    return side


def _check_cache(collate: SpanCollator, cache: TeacherCache) -> None:
    """Refuses a cache whose texts have other ids than a batch's would have."""
    names = ("bos", "eos", "max_teacher_tokens", "truncation_side")
    differing = [
        f"{name} is {getattr(cache.settings, name)} there, {getattr(collate, name)} here"
        for name in names
        if getattr(cache.settings, name) != getattr(collate, name)
    ]
    if differing:
        raise MismatchError(
            f"{cache.folder} holds texts as other ids than this run makes of them ({'; '.join(differing)}): train with "
            "the options that the cache was written with, or write it anew"
        )
