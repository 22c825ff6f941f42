"""Running a teacher over rows: batches of like lengths, and what is kept of their logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import OptionError
from ...vocab.vocab import Vocab
from ..at_rest import at_rest
from .best import best_tokens
from .rows import Ids
from .settings import live_ids

_WINDOW = 8
"""Batches whose rows are sorted by length together."""

_PROBE_TOKENS = 16


@dataclass(frozen=True, eq=False)
class CachedRow:
    """What a teacher said of a row: at each position, of the token that comes next.

    Attributes:
        ids: int32 (T,), the row.
        top_ids: int32 (T, K), the best tokens, the best first; -1 where a token has no probability.
        log_probs: float32 (T, K), their log-probabilities; -inf there.
        rest: float32 (T,), the probability of all other tokens together.
    """

    ids: Ids
    top_ids: Ids
    log_probs: NDArray[np.float32]
    rest: NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class Teacher:
    """A model with what running it needs.

    Attributes:
        model: called with `input_ids` and `attention_mask`, gives logits (B, T, V) or something that has them.
        vocab: its vocabulary.
        top_k: tokens to keep per position.
        batch_size: rows per call.
        device: where the ids go; None for where the model's parameters are.
    """

    model: Callable[..., Any]
    vocab: Vocab
    top_k: int
    batch_size: int
    device: Any = None

    def rows(self, rows: Sequence[Ids]) -> Iterator[CachedRow]:
        """Runs over rows, in their order; rows of like lengths share a batch, which saves padding.

        Raises:
            OptionError: the model's logits have another width than the vocabulary, or are no numbers.
        """
        window = self.batch_size * _WINDOW
        with at_rest(self.model):
            for begin in range(0, len(rows), window):
                part = rows[begin : begin + window]
                made: dict[int, CachedRow] = {}
                order = sorted(range(len(part)), key=lambda row: -len(part[row]))
                for first in range(0, len(order), self.batch_size):
                    batch = order[first : first + self.batch_size]
                    made |= zip(batch, self._batch([part[row] for row in batch]), strict=True)
                yield from (made[row] for row in range(len(part)))

    def probe(self) -> tuple[float, ...]:
        """The log-probabilities of the best tokens in a fixed row: what tells two models of one vocabulary apart."""
        with at_rest(self.model):
            (row,) = self._batch([self.vocab.speakable_ids[:_PROBE_TOKENS].astype(np.int32)])
        return tuple(round(float(value), 4) for value in row.log_probs[:, 0])

    def _batch(self, rows: Sequence[Ids]) -> list[CachedRow]:
        counts = [len(row) for row in rows]
        if not max(counts):
            nothing = np.zeros((0, self.top_k), dtype=np.float32)
            return [CachedRow(row, nothing.astype(np.int32), nothing, nothing[:, 0]) for row in rows]
        # Anything may stand at padding: the mask hides it, and no earlier position looks at it.
        ids = np.zeros((len(rows), max(counts)), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, given in enumerate(rows):
            ids[row, : len(given)] = given
            mask[row, : len(given)] = 1
        logits = self._logits(torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device))
        dead = torch.from_numpy(np.flatnonzero(~live_ids(self.vocab))).to(logits.device)
        # Row by row, since taking the rows out of their padding at once would copy all logits.
        found = [best_tokens(row[:count], self.top_k, dead=dead) for row, count in zip(logits, counts, strict=True)]
        top_ids, log_probs, rest = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
        if not np.isfinite(rest).all():
            raise OptionError(
                f"{self.vocab.name} gives logits that are no numbers: run it in another precision, or check its weights"
            )
        bounds = np.cumsum(counts)[:-1]
        split = (np.split(array, bounds) for array in (top_ids, log_probs, rest))
        return [CachedRow(*parts) for parts in zip(rows, *split, strict=True)]

    def _logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        made = self.model(input_ids=ids, attention_mask=mask, **self._options)
        if not isinstance(made, torch.Tensor):
            made = made["logits"] if isinstance(made, Mapping) else getattr(made, "logits", None)
        if not isinstance(made, torch.Tensor) or made.shape[:2] != ids.shape:
            found = tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
            raise OptionError(
                "a teacher gives logits (B, T, V), or something that has them as `logits`, for ids of shape "
                f"{tuple(ids.shape)}, got {found}"
            )
        if made.shape[-1] != len(self.vocab):
            raise OptionError(
                f"the model has {made.shape[-1]} logits, but {self.vocab.name} has {len(self.vocab)}: read the "
                f"vocabulary with logits={made.shape[-1]}, or give the tokenizer of this model"
            )
        return made

    @property
    def _options(self) -> dict[str, bool]:
        # Keys and values of past positions are of no use here, and take as much memory as the states.
        forward = getattr(self.model, "forward", self.model)
        return {"use_cache": False} if "use_cache" in inspect.signature(forward).parameters else {}

    @property
    def _device(self) -> Any:
        if self.device is not None:
            return self.device
        parameters = getattr(self.model, "parameters", None)
        first = next(iter(parameters()), None) if callable(parameters) else None
        return torch.device("cpu") if first is None else first.device
