"""The models of the experiment: Llama-style ones of width 128, and their training on text alone."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from settings import Course
from texts import Pool, Text, draw
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from vocabularies import BEGIN, END

IGNORED = -100
BUCKET = 16  # batches whose texts are sorted by length together, so that little is padding
GRADIENT = 1.0  # where the gradient's norm is clipped


def model(vocabulary: int, layers: int, seed: int) -> Any:
    """A Llama-style model with fresh weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


def load(file: Path, vocabulary: int, layers: int) -> Any:
    """A model from its weights."""
    made = model(vocabulary, layers, seed=0)
    made.load_state_dict(torch.load(file, weights_only=True))
    return made


@dataclass(frozen=True)
class Coder:
    """Texts to ids, with one tokenizer.

    Attributes:
        file: its `tokenizer.json`.
    """

    file: Path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return Tokenizer.from_file(str(self.file))

    @cached_property
    def size(self) -> int:
        """How many tokens it has."""
        return int(self.tokenizer.get_vocab_size())

    @cached_property
    def surfaces(self) -> list[str]:
        """Every token's text."""
        return [self.tokenizer.decode([token]) for token in range(self.size)]

    @cached_property
    def edges(self) -> tuple[int, int]:
        """The tokens that begin and end a text."""
        return self.tokenizer.token_to_id(BEGIN), self.tokenizer.token_to_id(END)

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts that are to go on."""
        return [[self.edges[0], *coded.ids] for coded in self.tokenizer.encode_batch(list(texts))]

    def batch(self, texts: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Texts as training needs them.

        Returns:
            int64 (B, T) ids; int64 (B, T) labels, `IGNORED` at padding and at the beginning; bool (B, T), whether a
            token belongs to an answer.
        """
        begin, end = self.edges
        coded = self.tokenizer.encode_batch([text.text for text in texts])
        width = max(len(one) for one in coded) + 2
        ids = torch.full((len(texts), width), end)
        labels = torch.full((len(texts), width), IGNORED)
        answers = torch.zeros((len(texts), width), dtype=torch.bool)
        for row, (one, text) in enumerate(zip(coded, texts, strict=True)):
            whole = torch.tensor([begin, *one.ids, end])
            ids[row, : len(whole)] = whole
            labels[row, 1 : len(whole)] = whole[1:]
            spoken = [
                place
                for start, (_, said) in zip(text.places, text.sums, strict=True)
                for place in range(start, start + len(str(said)))
            ]
            inside = set(spoken)
            answers[row, 1 : len(whole) - 1] = torch.tensor([first in inside for first, _ in one.offsets])
        return ids, labels, answers


def batches(coder: Coder, texts: Sequence[Text], rows: int, seed: int) -> list[list[Text]]:
    """Texts in batches of `rows` of about equal lengths, in an order drawn with the seed."""
    order = random.Random(seed)  # noqa: S311 - an order, no secret
    made: list[list[Text]] = []
    for start in range(0, len(texts), rows * BUCKET):
        some = list(texts[start : start + rows * BUCKET])
        lengths = [len(one) for one in coder.tokenizer.encode_batch([text.text for text in some])]
        by_length = [some[at] for at in sorted(range(len(some)), key=lengths.__getitem__)]
        group = [by_length[at : at + rows] for at in range(0, len(by_length), rows)]
        order.shuffle(group)
        made += group
    return made


def endless(coder: Coder, pool: Pool, rows: int, seed: int, wrong: float = 0.0) -> Iterator[list[Text]]:
    """Batches of ever new texts."""
    number = 0
    while True:
        begin = seed * 100_000 + number
        yield from batches(coder, draw(pool, rows * BUCKET, begin, wrong=wrong), rows, begin)
        number += 1


def optimiser(trained: Any, rate: float, steps: int, *, warm: int, last: float) -> tuple[Any, Any]:
    """AdamW with a linear warm-up and a cosine down to a share `last` of the rate."""
    made = torch.optim.AdamW(trained.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05)

    def factor(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        return min(1.0, (step + 1) / warm) * (last + (1 - last) * cosine)

    return made, torch.optim.lr_scheduler.LambdaLR(made, factor)


def step(trained: Any, loss: torch.Tensor, made: Any, schedule: Any) -> None:
    """One step of the optimiser."""
    made.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained.parameters(), GRADIENT)
    made.step()
    schedule.step()


@torch.no_grad()
def written(trained: Any, prompts: Sequence[Sequence[int]], count: int, end: int, seed: int) -> list[list[int]]:
    """What a model writes after each prompt by sampling: at most `count` tokens, up to and including `end`."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[end] * (longest - len(one)) + list(one) for one in prompts])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = trained.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=count, do_sample=True, top_k=0, pad_token_id=end
        )
    rows = made[:, longest:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def teach(coder: Coder, pool: Pool, course: Course, seed: int) -> Any:
    """Trains a model on text: cross-entropy in which answers count more."""
    trained = model(coder.size, course.layers, seed)
    made, schedule = optimiser(trained, course.rate, course.steps, warm=50, last=course.last)
    for texts in islice(endless(coder, pool, course.rows, seed), course.steps):
        ids, labels, answers = coder.batch(texts)
        goal = labels[:, 1:].flatten()
        losses = cross_entropy(trained(ids).logits[:, :-1].flatten(0, 1), goal, ignore_index=IGNORED, reduction="none")
        weight = torch.where(answers[:, 1:].flatten(), course.weight, 1.0) * (goal != IGNORED)
        step(trained, (losses * weight).sum() / weight.sum(), made, schedule)
    return trained
