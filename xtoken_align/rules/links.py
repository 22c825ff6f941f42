"""The rules' names in their order, the links that they make, and the weights by which pieces fade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError
from .pieces import Pieces

RULES = (
    "none",
    "override",
    "identity",
    "exact",
    "special",
    "space",
    "case",
    "nfkc",
    "digits",
    "decompose",
    "bytes",
    "reverse",
)
"""A rule's number in a mapping file is its position here. Number 0 marks a row without links; `reverse` owns a row only
if no other rule has linked it."""

RULE_NUMBER = {name: number for number, name in enumerate(RULES)}

EXACT_RULES = ("identity", "exact", "special")
NEAR_RULES = ("space", "case", "nfkc")
SPLIT_RULES = ("digits", "decompose", "bytes", "reverse")
OPTIONAL_RULES = ("case", "nfkc")

WAYS = ("exact", "near", "split", "empty")
"""How a row is mapped, the columns of every report: by the rules above, an override being near with one link and split
with more."""


_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Decay:
    """Weights of a decomposition's pieces: the i-th gets `lead * decay**i`, the first `top_k` are kept and normalised.

    Source: X-Token (arXiv:2605.21699, 2026), section 3, with lead 0.9, decay 0.1 and top_k 4.

    >>> [round(weight, 4) for weight in Decay().weights(3).tolist()]
    [0.9009, 0.0901, 0.009]
    """

    lead: float = 0.9
    decay: float = 0.1
    top_k: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.lead <= 1:
            raise OptionError(f"lead is a weight above 0 and up to 1, got {self.lead}")
        if not 0 <= self.decay <= 1:
            raise OptionError(f"decay is a factor from 0 to 1, got {self.decay}")
        if not (1 <= self.top_k <= 255 and self.top_k == int(self.top_k)):
            raise OptionError(f"top_k is a whole number of pieces from 1 to 255, got {self.top_k}")

    def weights(self, pieces: int) -> NDArray[np.float64]:
        """float64 (min(pieces, top_k),), summing to 1; weights that are 0 stand at the end and make no links."""
        return normalised(self.lead * np.power(float(self.decay), np.arange(min(pieces, self.top_k))))


def normalised(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights as shares of their sum; shares too small for float32, in which W stores them, become 0.

    Args:
        weights: float64, at least 0, one above 0.
    """
    # Divided by the largest first: two weights of 1e308 would have an infinite sum.
    shares: NDArray[np.float64] = weights / weights.max()
    shares /= shares.sum()
    shares[shares < _SMALLEST] = 0
    return shares


@dataclass(frozen=True, eq=False)
class Links:
    """Links of one rule, one entry per link.

    Attributes:
        rule: the rule's number.
        rows: int32, student ids.
        columns: int32, teacher ids.
        positions: uint8, which piece of the row's decomposition the column is.
        weights: float64, shares that sum to 1 for each token that a rule splits.
    """

    rule: int
    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    positions: NDArray[np.uint8]
    weights: NDArray[np.float64]


def one_to_one(rule: str, rows: Sequence[int] | NDArray[np.int32], columns: Sequence[int] | NDArray[np.int32]) -> Links:
    """Links of weight 1 from each row to one column."""
    count = len(rows)
    return Links(
        RULE_NUMBER[rule],
        np.asarray(rows, dtype=np.int32),
        np.asarray(columns, dtype=np.int32),
        np.zeros(count, dtype=np.uint8),
        np.ones(count, dtype=np.float64),
    )


def from_pieces(rule: str, tokens: Sequence[int] | NDArray[np.int64], pieces: Pieces, decay: Decay) -> Links:
    """Links from each token to the first `top_k` of its pieces; tokens without pieces give none.

    Args:
        rule: the rule's name.
        tokens: ids, which become the rows.
        pieces: their decompositions.
        decay: the weights.
    """
    rows = np.asarray(tokens, dtype=np.int64)
    # `201` in three pieces and ` ab` in two: counts 3 2, positions 0 1 2 0 1, and the rows of `weights_of` for 3 and 2
    # pieces give 0.9009 0.0901 0.009 0.9091 0.0909.
    counts = np.minimum(pieces.lengths[rows], decay.top_k).astype(np.int64)
    positions = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = pieces.ids[np.repeat(pieces.offsets[:-1][rows], counts) + positions]
    weights_of = np.zeros((decay.top_k + 1, decay.top_k))
    for count in range(1, int(counts.max(initial=0)) + 1):
        weights_of[count, :count] = decay.weights(count)
    weights = weights_of[np.repeat(counts, counts), positions]
    weighted = weights > 0
    # With decay 0 all pieces but the first weigh 0: such links are not made.
    return Links(
        RULE_NUMBER[rule],
        np.repeat(rows, counts)[weighted].astype(np.int32),
        columns[weighted].astype(np.int32),
        positions[weighted].astype(np.uint8),
        weights[weighted],
    )
