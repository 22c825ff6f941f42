"""Small teachers, corpora and vocabularies for tests of caches; also run by processes that tests start and kill."""

from __future__ import annotations

import string
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_vocabs import make_vocab

from xtoken_align.vocab.kinds import Kind
from xtoken_align.vocab.vocab import Vocab

WIDTH = 64
DEAD = [5, 60, 61, 62, 63]


def small_vocab(**options: Any) -> Vocab:
    """64 logits: letters and pairs of them, a begin and an end, a hole in the middle and padding at the end."""
    letters = [*string.ascii_lowercase, " "]
    tokens: list[Any] = [*letters, *(a + b for a, b in pairwise(letters))]
    tokens += [f"{letter}x" for letter in letters]
    tokens = tokens[: WIDTH - 6]
    tokens[DEAD[0]] = (b"", Kind.HOLE)
    tokens += [(b"<s>", Kind.SPECIAL), (b"</s>", Kind.SPECIAL), *[(b"", Kind.PADDING)] * 4]
    return make_vocab(tokens, roles={"bos": [58], "eos": [59]}, **options)


class Causal(torch.nn.Module):
    """Logits from the mean of all tokens up to a position: a causal model that is quick, and no two are alike."""

    def __init__(self, width: int = WIDTH, *, seed: int = 0, scale: float = 3.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(torch.randn(width, 16, generator=generator))
        self.head = torch.nn.Parameter(torch.randn(16, width, generator=generator) * scale)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        self.calls.append(tuple(input_ids.shape))
        states = self.table[input_ids] * attention_mask[..., None]
        steps = torch.arange(1, input_ids.shape[1] + 1, device=states.device)[:, None]
        return (states.cumsum(1) / steps) @ self.head


def tiny(family: str, width: int = WIDTH, *, seed: int = 0, **changes: Any) -> Any:
    """A small causal language model of a family of transformers, with random weights."""
    import transformers

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(vocab_size=width, **{**sizes, **changes})
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def corpus(rows: int = 23, *, seed: int = 0, longest: int = 19) -> list[dict[str, Any]]:
    """Rows of ids of many lengths, one of them empty."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, rows)
    lengths[min(3, rows - 1)] = 0
    return [{"teacher_ids": random.integers(6, 58, length).tolist()} for length in lengths]


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden files too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
