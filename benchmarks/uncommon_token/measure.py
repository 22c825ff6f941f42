"""What is measured of a student: exact answers, digits, perplexity, and where its probability lies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from models import IGNORED, Coder
from texts import Text
from torch.nn.functional import cross_entropy

LONGEST = 4  # tokens of a continuation: three digits one by one, and what ends them
ANSWER = re.compile(r" ?(\d+)(?!\d)")


@dataclass(frozen=True)
class Answers:
    """How a model answers.

    Attributes:
        exact: share of right answers.
        first_digit: share of answers whose first digit is right.
        later_digits: of the answers of several digits that have the right first digit, the share that is right.
        packed: of the answers of several digits, the share that the model writes as one token.
    """

    exact: float
    first_digit: float
    later_digits: float
    packed: float


@torch.no_grad()
def continued(model: Any, coder: Coder, prompts: Sequence[str], count: int = LONGEST) -> list[list[int]]:
    """The likeliest continuations, token by token."""
    coded = coder.prompts(prompts)
    lengths = torch.tensor([len(row) for row in coded])
    ids = torch.full((len(coded), int(lengths.max()) + count), coder.edges[1])
    for row, one in enumerate(coded):
        ids[row, : len(one)] = torch.tensor(one)
    rows = torch.arange(len(coded))
    for number in range(count):
        ids[rows, lengths + number] = model(ids).logits[rows, lengths + number - 1].argmax(-1)
    return [ids[row, length : length + count].tolist() for row, length in enumerate(lengths.tolist())]


def answers(model: Any, coder: Coder, texts: Sequence[Text]) -> Answers:
    """Compares the model's answers with the right ones."""
    exact = first = several = begun = finished = packed = 0
    for text, ids in zip(texts, continued(model, coder, [text.prompt for text in texts]), strict=True):
        right = str(text.answer)
        match = ANSWER.match(coder.tokenizer.decode(ids))
        said = match[1] if match else ""
        exact += said == right
        first += said[:1] == right[0]
        if len(right) > 1:
            several += 1
            begun += said[:1] == right[0]
            finished += said == right
            packed += len(said) > 1 and coder.surfaces[ids[0]] == said
    return Answers(exact / len(texts), first / len(texts), finished / max(begun, 1), packed / max(several, 1))


@torch.no_grad()
def perplexity(model: Any, coder: Coder, texts: Sequence[Text]) -> float:
    """The exponential of the negative log-likelihood per byte of text."""
    ids, labels, _ = coder.batch(texts)
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    total = cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")
    return float(torch.exp(total / sum(len(text.text.encode()) for text in texts)))


@dataclass(frozen=True)
class Probe:
    """Where a model's probability lies, at fixed places of held-out texts.

    Attributes:
        ids: int64 (B, T), the texts.
        token_sets: bool (V,) by name, sets of tokens.
        places: bool (B, T - 1) by name: where the next token of the text is in the set.
    """

    ids: torch.Tensor
    token_sets: dict[str, torch.Tensor]
    places: dict[str, torch.Tensor]

    @classmethod
    def of(cls, coder: Coder, texts: Sequence[Text], token_sets: dict[str, torch.Tensor]) -> Probe:
        """Finds the places."""
        ids, labels, _ = coder.batch(texts)
        following = labels[:, 1:]
        spoken = following != IGNORED
        places = {name: chosen[following.clamp(min=0)] & spoken for name, chosen in token_sets.items()}
        return cls(ids, {name: chosen for name, chosen in token_sets.items() if places[name].any()}, places)

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, float]:
        """The mean mass on each set where the next token is one of it."""
        shares = model(self.ids).logits[:, :-1].softmax(-1)
        return {
            name: float(shares[self.places[name]][:, chosen].sum(-1).mean()) for name, chosen in self.token_sets.items()
        }


def numerals(coder: Coder) -> torch.Tensor:
    """Marks the tokens of two or three digits, bool (V,)."""
    return torch.tensor([len(text) in (2, 3) and text.isdigit() for text in coder.surfaces])
