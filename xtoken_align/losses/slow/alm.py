"""ALM: how likely both models find a chunk's text, compared as if it were the toss of a coin."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import OptionError
from ...mapping.mapping import Mapping
from .batch import Batch, Chunk
from .numbers import zero
from .options import SlowOptions
from .value import Value

_TAU = 100.0
_OFFSET = 1e-6
"""tokenkit's `binary_ce`: likelihoods are raised to 1/100, and kept away from 1."""


class ALM:
    """-(e^a b + (1 - e^a) log(1 - e^b)), a = l_T / 100 - 1e-6, b = l_S / 100 - 1e-6; the temperature has no part.

    l is the log-likelihood of the chunk's own tokens, at most 0. This is a cross-entropy: at equal likelihoods it has
    no slope, but is not 0.

    Args:
        mapping: says which ids are tokens.
        options: none is read.
    """

    def __init__(self, mapping: Mapping, options: SlowOptions) -> None:
        self.options = options
        self.mapping = mapping

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value; 0 where the student cannot write the chunk, or the teacher nothing.

        Raises:
            OptionError: the teacher is a `TopK`, which may not list the chunk's tokens.
        """
        if not batch.knows_all:
            raise OptionError("alm needs the teacher's probability of every token in the text: give its logits")
        teacher = [batch.teacher(at).log_probs for at in chunk.teacher]
        student = likelihood([batch.student(at) for at in chunk.student], chunk.student_tokens)
        if student == -torch.inf or not all((row > -torch.inf).any() for row in teacher):
            return Value()
        a = likelihood(teacher, chunk.teacher_tokens) / _TAU - _OFFSET
        b = student / _TAU - _OFFSET
        return Value(-(a.exp() * b + (1 - a.exp()) * torch.log(-torch.expm1(b))))


def likelihood(rows: list[Tensor], tokens: list[int]) -> Tensor:
    """The log-likelihood of tokens, each in its row; at most 0."""
    total = sum((row[token] for row, token in zip(rows, tokens, strict=True)), zero())
    return torch.clamp(total, max=0.0)
