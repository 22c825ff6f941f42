"""The best tokens of logits, and the mass of the rest, without a full table of probabilities."""

from __future__ import annotations

import torch

_TOGETHER = {"cpu": 1 << 21, "cuda": 1 << 27}
"""Logits that are looked at together: 8 MB as float32 where a cache of the processor has to hold them."""

_LEAST = -65504.0
"""The least finite number of float16 (IEEE 754 binary16)."""


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
