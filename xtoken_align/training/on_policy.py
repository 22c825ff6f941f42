"""On-policy batches: the student continues the beginnings of rows, and the teachers score what it wrote.

From top to bottom this file follows a batch: which ones are the student's own, what it continues, how it writes, and
the batch that is made of it. What is written depends on the seed, the step, the row and the weights alone, not on how
rows are cut into batches, on the device, or on what was drawn before: a run that was cut off goes on as it would have.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from itertools import groupby
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ..errors import OptionError, XTokenWarning
from ..losses import Metric
from ..spans.answers import Answer, Prompt, prompts_of, rows_of_answers
from ..spans.batch import SpanCollator
from ..spans.spans import IGNORED
from ..vocab.kinds import Kind
from ..vocab.roles import stop_ids
from ..vocab.vocab import Vocab
from .cache.model import at_rest
from .cache.read import TeacherCache
from .config import XTokenConfig, refuse
from .distillation import DistillationCollator
from .teachers import plain

Ids = NDArray[np.int64]

_WORDS = {
    "max_new_tokens": ("max_new_tokens", "max_completion_length"),
    "temperature": ("generation_temperature", "temperature"),
    "batch_size": ("generation_batch_size",),
}
"""What trainers' arguments call an option: `XTokenConfig`, and TRL's GKD and GOLD trainers."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """Makes batches of what a student writes itself; `XTokenTrainer` does so with `lmbda`, and so can any loop.

        on_policy = OnPolicy(collate=distillation.collate, max_new_tokens=64)
        for step, rows in enumerate(DataLoader(dataset, batch_size=8, collate_fn=list)):
            distillation(student, on_policy(student, rows, step)).loss.backward()

    A row has a `prompt` (a text or messages), `messages` whose last one is the answer that the student replaces, a
    `text` whose first tokens it continues, or ids. Only what the student wrote counts in the distillation loss, and
    nothing of it in the cross-entropy.

    Args:
        collate: a distillation's collator, or a `SpanCollator` where the loop is all its own.
        lmbda: the share of the batches that the student writes, drawn by chance; the others are the data's.
        max_new_tokens: the most tokens that the student writes after a prompt.
        prompt_tokens: how many tokens of a `text` the student continues, at most half of them.
        temperature: the temperature at which it samples.
        top_p: it samples from the likeliest tokens that have this probability together.
        batch_size: the most prompts that are continued at a time; all of a call by default.
        seed: of all that is drawn.

    Raises:
        OptionError: options have values that make no sense, rows are packed, or a teacher is a cache.

    Source: generalised knowledge distillation (Agarwal et al., 2024), whose lambda this is, by TRL's name.
    """

    collate: DistillationCollator | SpanCollator
    lmbda: float = 1.0
    max_new_tokens: int = 128
    prompt_tokens: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        refuse(XTokenConfig.mistakes_in(vars(self)))
        if isinstance(self.collate, DistillationCollator) and any(
            isinstance(cache, TeacherCache) for cache in self.collate.caches
        ):
            raise OptionError(
                "a cached teacher knows nothing of what the student writes: set lmbda=0, or give the model itself"
            )
        if self._collators[0].pack:
            raise OptionError("packed rows have no single beginning to go on from: set lmbda=0, or leave pack out")

    @classmethod
    def of(cls, args: Any, collate: DistillationCollator) -> OnPolicy | None:
        """From a trainer's arguments, ours or TRL's; None where no batch is on-policy."""
        if not getattr(args, "lmbda", 0.0):
            return None
        given = {}
        for name in ("lmbda", "max_new_tokens", "prompt_tokens", "temperature", "top_p", "batch_size", "seed"):
            stated = (word for word in _WORDS.get(name, (name,)) if hasattr(args, word))
            if (word := next(stated, None)) is not None:
                given[name] = getattr(args, word)
        return cls(collate=collate, **given)

    def __call__(self, model: Any, rows: Rows, step: int, batch: int = 0, rank: int = 0) -> dict[str, Any]:
        """A batch of the rows: as the data has them, or as the student continues them.

        Args:
            model: the student; left in the mode that it was in.
            rows: rows of a data set.
            step: the number of the optimiser's step.
            batch: the number of the batch in the step.
            rank: the process's; all processes decide alike which batches are the student's, but write different things.

        Returns:
            The collator's batch. One that the student wrote has `truncated` too, bool (B,): the answers that no token
            ended; their `labels` are -100 throughout.
        """
        if not self.writes(step, batch):
            return self.collate(rows)
        (made,) = self.batches(model, [rows], step, [batch], rank)
        return made

    def writes(self, step: int, batch: int = 0) -> bool:
        """Whether the student writes a batch, on all ranks."""
        # A generator per place: what is drawn here must not depend on how often was drawn before.
        return random.Random(f"{self.seed} {(step, batch)}").random() < self.lmbda  # noqa: S311 - no secret

    def batches(
        self, model: Any, rows: Sequence[Rows], step: int, numbers: Sequence[int], rank: int = 0
    ) -> list[dict[str, Any]]:
        """Batches of a step that the student writes, all at once, so that prompts of like lengths go together.

        Args:
            model: the student.
            rows: of each batch.
            step: the number of the step.
            numbers: those of the batches in it.
            rank: the process's.
        """
        prompts = [self.prompts(each) for each in rows]
        draws = [
            np.random.default_rng([self.seed, step, number, rank]).random((len(each), self.max_new_tokens))
            for number, each in zip(numbers, rows, strict=True)
        ]
        flat = [prompt.ids for each in prompts for prompt in each[0]]
        answers = iter(self.write(model, flat, np.concatenate(draws)))
        device = _device_of(model)
        return [self.batch(each, [next(answers) for _ in each[0]], device) for each in prompts]

    def prompts(self, rows: Rows) -> list[list[Prompt]]:
        """What the student continues, and what stands there for each teacher: a list per teacher, a prompt per row."""
        return [prompts_of(collate, rows, prompt_tokens=self.prompt_tokens) for collate in self._collators]

    def batch(
        self, prompts: Sequence[Sequence[Prompt]], answers: Sequence[Answer], device: torch.device | None = None
    ) -> dict[str, Any]:
        """The collator's batch of prompts and what was written after them.

        Args:
            prompts: of `prompts`.
            answers: one for each row, of `write` or of another engine (vLLM, SGLang): the ids that it sampled.
            device: where its tensors go.
        """
        rows = [rows_of_answers(*each, answers) for each in zip(self._collators, prompts, strict=True)]
        collate = self.collate
        made = collate.batch(rows) if isinstance(collate, DistillationCollator) else collate(rows[0])
        # What the student wrote is no label: a cross-entropy on it would make it surer of whatever it does.
        made["labels"] = torch.full_like(made["labels"], IGNORED)
        made["truncated"] = torch.tensor([not answer.ended for answer in answers])
        moved: dict[str, Any] = made if device is None else send_to_device(made, device)
        return moved

    def write(self, model: Any, prompts: Sequence[Ids], draws: NDArray[np.float64]) -> list[Answer]:
        """What the student writes after each prompt.

        Args:
            model: the student; it writes without dropout, with a cache of keys and values.
            prompts: int64 (tokens,) each, of any lengths.
            draws: (prompts, max_new_tokens) from 0 to below 1, which decide what is sampled.
        """
        inner, stops = plain(model), self.stops(model)
        lengths, limit = [len(prompt) for prompt in prompts], self._limit(inner)
        if full := sum(length >= limit for length in lengths):
            warnings.warn(
                f"{full} of {len(prompts)} prompts fill the {limit} tokens that a row may have and leave no room "
                "for an answer: raise max_student_tokens, or leave such rows out",
                XTokenWarning,
                stacklevel=4,
            )
        answers = [Answer(np.zeros(0, dtype=np.int64), ended=False)] * len(prompts)
        # Activation checkpointing would have no use for the keys of past positions.
        with at_rest(inner), _own_generation_config(inner):
            groups = list(self._groups(inner, lengths))
            calls = _most_of_all(len(groups), inner)
            for group, room in groups:
                written = self._write_group(inner, [prompts[row] for row in group], draws[group], room, stops)
                for row, answer in zip(group, written, strict=True):
                    answers[row] = answer
            # A process that has fewer groups still has its part of the weights to give to the others.
            for _ in range(calls - len(groups)):
                self._write_group(inner, [np.zeros(1, dtype=np.int64)], np.zeros((1, 1)), 1, stops)
        return answers

    @property
    def _collators(self) -> tuple[SpanCollator, ...]:
        return (self.collate,) if isinstance(self.collate, SpanCollator) else self.collate.collators

    @property
    def _vocab(self) -> Vocab:
        return self._collators[0].tables.student

    def _limit(self, model: Any) -> float:
        """How many tokens a row may have: as many as the collator leaves, and as the model has positions."""
        most = self._collators[0].max_student_tokens, getattr(model.config, "max_position_embeddings", None)
        return min((limit for limit in most if limit), default=math.inf)

    def _groups(self, model: Any, lengths: Sequence[int]) -> Iterator[tuple[list[int], int]]:
        """Rows that are continued together, shortest first, and how many tokens each of them may get.

        Lengths 3, 9, 4 and 5, two rows at a time, at most 8 new tokens, and room for 12 in all: rows 0 and 2 with 8
        tokens, row 3 with 7, row 1 with 3.
        """
        limit = self._limit(model)
        # Without positions that are told, padding on the left would count.
        alike = "position_ids" not in signature(model.forward).parameters

        def key(row: int) -> tuple[int, int]:
            return -int(min(self.max_new_tokens, limit - lengths[row])), lengths[row] if alike else 0

        order = sorted((row for row, length in enumerate(lengths) if length), key=lambda row: (key(row), lengths[row]))
        for (negative, _), same in groupby(order, key):
            rows = list(same)
            size = self.batch_size or len(rows)
            if negative < 0:
                yield from ((rows[at : at + size], -negative) for at in range(0, len(rows), size))

    def _write_group(
        self, model: Any, prompts: Sequence[Ids], draws: NDArray[np.float64], room: int, stops: Sequence[int]
    ) -> list[Answer]:
        pad = (self._vocab.roles.get("pad") or tuple(stops) or (0,))[0]
        longest = max(map(len, prompts))
        # Padded on the left, so that all rows go on from the last column.
        ids = np.full((len(prompts), longest), pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        device = _device_of(model)
        sampler = _Sampler(
            draws=torch.from_numpy(draws).to(device, torch.float32 if device.type == "mps" else torch.float64),
            begin=longest,
            dead=torch.from_numpy(np.flatnonzero(self._vocab.kinds >= Kind.PADDING)).to(device),
            temperature=self.temperature,
            top_p=self.top_p,
        )
        sequences = model.generate(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            logits_processor=LogitsProcessorList([sampler]),
            synced_gpus=True if _is_in_shards(model) else None,
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                # The sampler leaves one token.
                do_sample=False,
                max_new_tokens=room,
                eos_token_id=list(stops) or None,
                pad_token_id=pad,
                use_cache=True,
            ),
        )
        answers = []
        for row in sequences[:, longest:].cpu().numpy():
            ends = np.flatnonzero(np.isin(row, stops))
            # After the first token that ends a row there is only padding.
            answers.append(Answer(row[: ends[0] + 1] if len(ends) else row, ended=bool(len(ends))))
        return answers

    def stops(self, model: Any) -> list[int]:
        """The tokens that end an answer: those that end a turn or a text by their role or the `generation_config`."""
        named = getattr(getattr(plain(model), "generation_config", None), "eos_token_id", None)
        listed: Iterable[int] = [named] if isinstance(named, int) else named or ()
        return sorted({*stop_ids(self._vocab), *(int(token) for token in listed if 0 <= token < len(self._vocab))})


class _Sampler(LogitsProcessor):
    """Leaves one token of each row: the one at which the running sum of the probabilities passes a number.

    Probabilities 0.5, 0.2 and 0.3 and the number 0.6: the sums are 0.5, 0.7 and 1, so that the second token is taken.
    One number per row and token makes what a row samples independent of the rows beside it.

    Args:
        draws: floats (B, tokens), from 0 to below 1.
        begin: the prompts' length.
        dead: int64, ids that are no tokens, which the losses leave out too.
        temperature: logits are divided by it.
        top_p: the likeliest tokens with this probability together are sampled from.
    """

    def __init__(
        self, *, draws: torch.Tensor, begin: int, dead: torch.Tensor, temperature: float, top_p: float
    ) -> None:
        self._draws, self._begin, self._dead = draws, begin, dead
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores of 0 for the token that is taken and -inf for all others."""
        logits = scores.to(self._draws.dtype).index_fill(1, self._dead, -torch.inf)
        mass, order = (logits / self._temperature).softmax(dim=1), None
        if self._top_p < 1:
            mass, order = mass.sort(dim=1, descending=True, stable=True)
            # A token stays if those before it have less than top_p: the first one always.
            mass = mass.masked_fill(mass.cumsum(dim=1) - mass >= self._top_p, 0)
        sums = mass.cumsum(dim=1)
        total = sums[:, -1:]
        drawn = self._draws[:, input_ids.shape[1] - self._begin, None] * total
        # Rounding must not lead past the last token that has a probability.
        drawn = torch.minimum(drawn, torch.nextafter(total, torch.zeros_like(total)))
        # A model whose logits are no numbers takes the last token; its loss will say so.
        chosen = torch.searchsorted(sums, drawn, right=True).clamp_max(sums.shape[1] - 1)
        if order is not None:
            chosen = order.gather(1, chosen)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


def metrics_of_answers(batch: Mapping[str, Any]) -> dict[str, Metric]:
    """How long the answers of an on-policy batch are, and the share that was cut off, by TRL's names; else nothing."""
    if "truncated" not in batch:
        return {}
    truncated = batch["truncated"]
    rows = torch.tensor(len(truncated), device=truncated.device)
    tokens = batch["teachers"][0]["spans"].spans.student_loss_mask.sum().to(truncated.device)
    return {"completions/mean_length": (tokens, rows), "completions/clipped_ratio": (truncated.sum(), rows)}


def _is_in_shards(model: Any) -> bool:
    """Whether each process has a part of the weights, so that all of them have to call the model equally often."""
    names = ("device_mesh", "ds_id")
    return any(hasattr(parameter, name) for parameter in model.parameters() for name in names)


def _most_of_all(calls: int, model: Any) -> int:
    """The most calls that a process makes, where all have to make as many."""
    if not (_is_in_shards(model) and torch.distributed.is_initialized()):
        return calls
    most = torch.tensor(calls, device=_device_of(model))
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)


def _device_of(model: Any) -> torch.device:
    device: torch.device = next(plain(model).parameters()).device
    return device


@contextmanager
def _own_generation_config(model: Any) -> Iterator[None]:
    """Keeps what a model's files say of generation (penalties, `top_k`) out of what it samples.

    `generate` fills in from there whatever a call leaves open.
    """
    before = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = before
