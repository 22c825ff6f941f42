"""W as parameters: its links stay, their weights are trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..errors import OptionError
from ..mapping.mapping import Mapping
from .comparison import Comparison
from .passes import Recipe


class LinkWeights(torch.nn.Module):
    """One parameter per link; a softmax over each row's links makes weights of them.

    Rows with one link have nothing to learn: their weight is 1 whatever the parameter says.

    Args:
        mapping: whose W is the start.
        recipe: the projection's index arrays.

    Raises:
        OptionError: no row has several links, or W has links that a loss cannot read, to tokens without a probability.

    Source: X-Token (arXiv:2605.21699, 2026), which trains them at a learning rate of 1e-2.
    """

    row: torch.Tensor

    def __init__(self, mapping: Mapping, recipe: Recipe) -> None:
        super().__init__()
        if not isinstance(recipe.comparison, Comparison) or recipe.comparison.links is None:
            raise OptionError(
                "learn_w needs a mapping with a row of several links, but each row has one at most, whose weight is 1; "
                "leave learn_w out"
            )
        links = recipe.comparison.links
        if len(links.token) != len(mapping.matrix.data):
            raise OptionError(
                "W has links to padding, which cannot be learnt; build the mapping without those overrides"
            )
        self.mapping = mapping
        self.scores = torch.nn.Parameter(links.log_weight.float())
        self.register_buffer("row", links.token.clone(), persistent=False)

    def forward(self) -> torch.Tensor:
        """Floats (links,): log weights, each row's weights sum to 1."""
        rows = self.mapping.matrix.shape[0]
        top = (
            self.scores.detach().new_full((rows,), -torch.inf).scatter_reduce(0, self.row, self.scores.detach(), "amax")
        )
        above = self.scores - top[self.row]
        return above - above.new_zeros(rows).index_add(0, self.row, above.exp()).log()[self.row]

    def export(self) -> Mapping:
        """The mapping with the weights as they are now, of provenance `learned`."""
        weights = self().detach().double().exp().cpu().numpy()
        sums = np.bincount(self.mapping.matrix.rows, weights, minlength=self.mapping.matrix.shape[0])
        # A weight that was trained down to nothing still is a link: W holds weights above 0.
        data = np.maximum((weights / sums[self.mapping.matrix.rows]).astype(np.float32), np.finfo(np.float32).tiny)
        return replace(self.mapping, matrix=replace(self.mapping.matrix, data=data), provenance="learned")
