"""A teacher that runs: its best tokens or its hidden states for rows of ids, with its output head."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from ...errors import OptionError
from ...losses import FusedHead, Hidden, average_logits, fuse_head, unfuse_head
from ...losses.fuse import captured
from ...losses.heads import Head, output_head
from ...vocab.vocab import Vocab
from .format import CachedRow, HiddenRow, Ids, Keep, Precision, Row, live_ids

_WINDOW = 8
"""Batches whose rows are sorted by length together."""

_PROBE_TOKENS = 16

_TOGETHER = {"cpu": 1 << 21, "cuda": 1 << 27}
"""Logits that are looked at together: 8 MB as float32 where a cache of the processor has to hold them."""

_LEAST = -65504.0
"""The least finite number of float16 (IEEE 754 binary16)."""

_SAME = 1e-3
"""The share of the largest logit by which a model's logits may differ between two runs that add up in other orders; in
half precision four steps of it."""


@runtime_checkable
class AnswersRows(Protocol):
    """A teacher that says itself which its best tokens are, as one behind a server does."""

    @property
    def usual_top_k(self) -> int:
        """How many it says unless it is asked for a number."""

    def check(self, teacher: Vocab) -> None:
        """Refuses another vocabulary than its own."""

    def answer_rows(self, rows: Sequence[Ids], top_k: int) -> list[CachedRow]:
        """What it says of rows, in their order."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TeacherModel:
    """A teacher's model with what running it needs.

    Attributes:
        model: called with `input_ids` and `attention_mask`, gives logits (B, T, V) or something that has them; or one
            that answers rows itself.
        vocab: its vocabulary.
        batch_size: rows per call.
        keep: what is taken from it.
        top_k: tokens to keep per position.
        dtype: how hidden states are kept.
        device: where the ids go; None for where the model's parameters are.
    """

    model: Any
    vocab: Vocab
    batch_size: int
    keep: Keep = "top_k"
    top_k: int = 0
    dtype: Precision = "float16"
    device: Any = None

    def rows(self, rows: Sequence[Ids]) -> Iterator[Row]:
        """Runs over rows, in their order; rows of like lengths share a batch, which saves padding.

        Raises:
            OptionError: the model's logits have another width than the vocabulary, or are no numbers.
        """
        # Rows of 9 2 8 3 tokens in batches of 2: the batches are (9 8) and (3 2), the order of what is given stays.
        window = self.batch_size * _WINDOW
        with at_rest(self.model):
            for begin in range(0, len(rows), window):
                part = rows[begin : begin + window]
                if isinstance(self.model, AnswersRows):
                    yield from self.model.answer_rows(part, self.top_k)
                    continue
                cached: dict[int, Row] = {}
                longest_first = sorted(range(len(part)), key=lambda row: -len(part[row]))
                for first in range(0, len(part), self.batch_size):
                    batch = longest_first[first : first + self.batch_size]
                    cached |= zip(batch, self._batch([part[row] for row in batch]), strict=True)
                yield from (cached[row] for row in range(len(part)))

    def first_look(self) -> tuple[tuple[float, ...], Head | None]:
        """What tells two models of one vocabulary apart, and the output head where hidden states are kept.

        Returns:
            The log-probabilities of the best tokens in a fixed row; the head, on the processor.

        Raises:
            OptionError: the model's logits are not what its head makes of its hidden states.
        """
        row = self.vocab.speakable_ids[:_PROBE_TOKENS].astype(np.int32)
        (said,) = replace(self, keep="top_k", top_k=self.top_k or 1).rows([row])
        assert isinstance(said, CachedRow)
        probe = tuple(round(float(value), 4) for value in said.log_probs[:, 0])
        return probe, self._checked_head(row) if self.keep == "hidden" else None

    def _checked_head(self, row: Ids) -> Head:
        """The head, when it is known that it makes the model's logits of a row."""
        ids = torch.from_numpy(row.astype(np.int64))[None].to(self._device)
        mask = torch.ones_like(ids)
        with at_rest(self.model):
            hidden, logits = self._hidden(ids, mask), self._logits(ids, mask)
        alive = torch.from_numpy(np.flatnonzero(live_ids(self.vocab))).to(logits.device)
        rebuilt, logits = average_logits([hidden]).logits[..., alive].float(), logits[..., alive].float()
        away = torch.where(rebuilt == logits, 0.0, rebuilt - logits).abs().max()
        # The largest of those from the head: what a model sets to -inf is no measure.
        if not away <= max(_SAME, 4 * torch.finfo(hidden.states.dtype).eps) * rebuilt.abs().max():
            raise self._unkept(f"its head makes logits of them that are {float(away):.3g} away from the model's")
        bias = None if hidden.bias is None else hidden.bias.cpu()
        return Head(hidden.weight.cpu(), bias, hidden.scale, hidden.softcap)

    def _batch(self, rows: Sequence[Ids]) -> Sequence[Row]:
        counts = [len(row) for row in rows]
        # Anything may stand at padding: the mask hides it, and no earlier position looks at it.
        ids = np.zeros((len(rows), max(*counts, 1)), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, given in enumerate(rows):
            ids[row, : len(given)] = given
            mask[row, : len(given)] = 1
        read = self._states if self.keep == "hidden" else self._best
        return read(rows, torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device))

    def _best(self, rows: Sequence[Ids], ids: torch.Tensor, mask: torch.Tensor) -> list[CachedRow]:
        """The best tokens of a batch."""
        counts = [len(row) for row in rows]
        if not max(counts):
            nothing = np.zeros((0, self.top_k), dtype=np.float32)
            return [CachedRow(row, nothing.astype(np.int32), nothing, nothing[:, 0]) for row in rows]
        logits = self._logits(ids, mask)
        dead = torch.from_numpy(np.flatnonzero(~live_ids(self.vocab))).to(logits.device)
        # Row by row, since taking the rows out of their padding at once would copy all logits.
        best = [best_tokens(row[:count], self.top_k, dead=dead) for row, count in zip(logits, counts, strict=True)]
        top_ids, log_probs, rest = (torch.cat(parts).cpu().numpy() for parts in zip(*best, strict=True))
        if not np.isfinite(rest).all():
            raise self._no_numbers("logits")
        bounds = np.cumsum(counts)[:-1]
        split = (np.split(array, bounds) for array in (top_ids, log_probs, rest))
        return [CachedRow(*parts) for parts in zip(rows, *split, strict=True)]

    def _states(self, rows: Sequence[Ids], ids: torch.Tensor, mask: torch.Tensor) -> list[HiddenRow]:
        """The hidden states of a batch."""
        states = self._hidden(ids, mask).states.to(getattr(torch, self.dtype)).cpu()
        kept = [part[: len(row)].clone() for row, part in zip(rows, states, strict=True)]
        if not all(bool(part.isfinite().all()) for part in kept):
            raise self._no_numbers("hidden states")
        bits = torch.int16 if self.dtype == "bfloat16" else torch.float32
        return [
            HiddenRow(row, part.view(bits).numpy().view(np.uint16 if self.dtype == "bfloat16" else np.float32))
            for row, part in zip(rows, kept, strict=True)
        ]

    def _no_numbers(self, what: str) -> OptionError:
        return OptionError(
            f"{self.vocab.name} gives {what} that are no numbers: run it in another precision, or check its weights"
        )

    def _hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> Hidden:
        """The hidden states that the model hands to its head, with the head; the model is left as it was."""
        if hasattr(self.model, "_orig_mod"):
            raise self._unkept("it is compiled, and its head with it; give the model from before torch.compile")
        try:
            was_fused = isinstance(output_head(self.model), FusedHead)
            head = fuse_head(self.model)
            try:
                return captured(head, lambda: self.model(**self._inputs(ids, mask)))
            finally:
                if not was_fused:
                    unfuse_head(self.model)
        except OptionError as error:
            # Behind the semicolon, the advice is about losses.
            raise self._unkept(str(error).partition(";")[0]) from error

    def _unkept(self, reason: str) -> OptionError:
        return OptionError(
            f"hidden states of {self.vocab.name} cannot stand for its logits: {reason}. Keep its best tokens "
            "(keep='top_k')"
        )

    def _inputs(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        # Keys and values of past positions are of no use here, and take as much memory as the states.
        forward = inspect.signature(getattr(self.model, "forward", self.model)).parameters
        options = {"use_cache": False} if "use_cache" in forward else {}
        return {"input_ids": ids, "attention_mask": mask, **options}

    def _logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits = self.model(**self._inputs(ids, mask))
        if not isinstance(logits, torch.Tensor):
            logits = logits["logits"] if isinstance(logits, Mapping) else getattr(logits, "logits", None)
        if not isinstance(logits, torch.Tensor) or logits.shape[:2] != ids.shape:
            came = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise OptionError(
                "a teacher gives logits (B, T, V), or something that has them as `logits`, for ids of shape "
                f"{tuple(ids.shape)}, got {came}"
            )
        if logits.shape[-1] != len(self.vocab):
            raise OptionError(
                f"the model has {logits.shape[-1]} logits, but {self.vocab.name} has {len(self.vocab)}: read the "
                f"vocabulary with logits={logits.shape[-1]}, or give the tokenizer of this model"
            )
        return logits

    @property
    def _device(self) -> Any:
        if self.device is not None:
            return self.device
        parameters = getattr(self.model, "parameters", None)
        first = next(iter(parameters()), None) if callable(parameters) else None
        return torch.device("cpu") if first is None else first.device


@contextmanager
def at_rest(model: Any) -> Iterator[None]:
    """Without gradients, dropout or checkpointing of activations; every module is left in the mode that it was in.

    Args:
        model: a module; of another callable nothing but gradients can be switched off.
    """
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def best_tokens(
    logits: torch.Tensor, top_k: int, *, dead: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `top_k` most probable tokens at every position, and the probability of all others together.

        log p = z - m - log(S + R), z = -inf at dead tokens, m = max z;  rest = R / (S + R)

    S sums exp(z - m) over the best tokens, R over the others: 1 - sum would keep nothing of a rest below 6e-8. All is
    computed in float32.

    Equals `logits.float().log_softmax(-1).topk(top_k)`, block by block.

    Args:
        logits: floats (N, V).
        top_k: how many, at most V.
        dead: int64 (D,), tokens without probability: padding and holes of the vocabulary.

    Returns:
        int32 (N, K), the tokens, the best first, -1 where a token has no probability; float32 (N, K), their
        log-probabilities, -inf there; float32 (N,), the rest, 0 to 1.

    >>> ids, log_probs, rest = best_tokens(torch.tensor([[0.0, 2.0, 1.0, 9.0]]), 2, dead=torch.tensor([3]))
    >>> ids.tolist(), [round(float(value), 4) for value in (*log_probs[0].exp(), rest[0])]
    ([[1, 2]], [0.6652, 0.2447, 0.09])
    """
    width = logits.shape[-1]
    step = max(_TOGETHER.get(logits.device.type, _TOGETHER["cuda"]) // max(width, 1), 1)
    space = logits.new_empty((min(step, len(logits)), width), dtype=torch.float32)
    parts = torch.split(logits, step) if len(logits) else (logits,)
    blocks = [_block(space[: len(part)].copy_(part), top_k, dead) for part in parts]
    ids, log_probs, rest = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return ids, log_probs, rest


def _block(z: torch.Tensor, top_k: int, dead: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """The same of a few rows; their logits are overwritten."""
    if dead is not None:
        z.index_fill_(-1, dead, -torch.inf)
    # Logits [0 2 1 -inf], top 2: m = 2; own = [0 -1], S = 1 + 0.368; R = exp(-2) = 0.135; rest = 0.135 / 1.503 = 0.09.
    best = z.topk(top_k)
    highest = best.values[:, :1]
    others = z.sub_(highest).exp_().scatter_(-1, best.indices, 0.0).sum(-1)
    own = best.values - highest
    total = own.exp().sum(-1) + others
    impossible = best.values == -torch.inf
    ids = best.indices.int().masked_fill_(impossible, -1)
    # Half precision would make a token impossible that is not.
    log_probs = (own - total.log()[:, None]).clamp_(min=_LEAST).masked_fill_(impossible, -torch.inf)
    return ids, log_probs, others / total
