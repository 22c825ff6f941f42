"""P-KL: the student projected onto the teacher's vocabulary, compared on the columns that some row reaches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import OptionError
from ...mapping.mapping import Mapping
from .batch import Batch, Chunk, live_ids
from .common import Masses, stack, teacher_masses
from .numbers import log_mean, log_sum
from .options import SlowOptions
from .value import Value, positions

Link = tuple[int, Tensor]
"""A student token and the logarithm of its weight on a column."""


class PKL:
    """kept * T^2 KL(p_T || W^T p_S) on the reached columns, each tempered and renormalised.

    Args:
        mapping: its W, or its first pieces with weight 1 under `merge="first"`.
        options: `temperature`, `merge`, `unreached` and `top_k` are read.
        link_weights: float (links of W,), in place of the stored weights; with a graph, if wanted.

    Raises:
        OptionError: weights are given for W, but `merge="first"` does not use W.
    """

    def __init__(self, mapping: Mapping, options: SlowOptions, link_weights: Tensor | None = None) -> None:
        if link_weights is not None and options.merge == "first":
            raise OptionError(
                "link_weights take the place of W's weights, which merge='first' does not use: give 'mean'"
            )
        self.options = options
        teacher = live_ids(mapping.teacher)
        linked = set(mapping.matrix.rows.tolist())
        self.rows = [token for token in live_ids(mapping.student) if token in linked]
        first = mapping.first_pieces("student").tolist()
        found = self._first_links(first) if options.merge == "first" else self._links(mapping, link_weights)
        self.columns = sorted(column for column in found if column in set(teacher))
        self.links = [found[column] for column in self.columns]
        self.members: list[list[int]] = [[] for _ in self.columns]
        back = mapping.first_pieces("teacher").tolist()
        for token in teacher:
            column = token
            if token not in self.columns and options.unreached == "reroute":
                column = first[back[token]] if back[token] >= 0 else -1
            if column in self.columns:
                self.members[self.columns.index(column)].append(token)

    def _first_links(self, first: list[int]) -> dict[int, list[Link]]:
        found: dict[int, list[Link]] = {}
        for token in self.rows:
            if first[token] >= 0:
                found.setdefault(first[token], []).append((token, torch.zeros((), dtype=torch.float64)))
        return found

    def _links(self, mapping: Mapping, link_weights: Tensor | None) -> dict[int, list[Link]]:
        matrix = mapping.matrix
        weights = torch.from_numpy(matrix.data) if link_weights is None else link_weights
        found: dict[int, list[Link]] = {}
        for number, (token, column) in enumerate(zip(matrix.rows.tolist(), matrix.indices.tolist(), strict=True)):
            if token in self.rows:
                found.setdefault(column, []).append((token, weights[number].double().log()))
        return found

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value."""
        student = [batch.student(at, self.rows) for at in positions(chunk.student, self.options.merge)]
        made = teacher_masses(
            self.members,
            [batch.teacher(at) for at in positions(chunk.teacher, self.options.merge)],
            stack(log_mean([projected(row, links) for row in student]) for links in self.links),
        )
        kept = made.kept
        if self.options.top_k is not None:
            made = best_columns(made, self.options.top_k)
        return Value(kept * made.divergence(self.options.temperature), kept=kept)


def projected(log_probs: Tensor, links: Sequence[Link]) -> Tensor:
    """The logarithm of a column's mass, sum over its links of weight * probability."""
    return log_sum(log_probs[token] + log_weight for token, log_weight in links)


def best_columns(made: Masses, count: int) -> Masses:
    """The teacher's best columns of a chunk; all others fall to the rest, with what the teacher does not list.

    Args:
        made: masses per column, columns ascending.
        count: how many columns stay; of equal ones the lower.
    """
    listed = [column for column in range(len(made.teacher)) if made.touched[column]]
    best = sorted(listed, key=lambda column: (-float(made.teacher[column]), column))[:count]
    stays = torch.tensor([column in best for column in range(len(made.teacher))], dtype=torch.bool)
    rest = log_sum([made.rest, *made.teacher[~stays]])
    return Masses(teacher=made.teacher, touched=stays, rest=rest, student=made.student)
