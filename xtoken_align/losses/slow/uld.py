"""ULD: sorted probabilities compared rank by rank; no word about which token is which."""

from __future__ import annotations

import torch

from ...errors import OptionError
from ...mapping.mapping import Mapping
from .batch import Batch, Chunk
from .options import SlowOptions
from .sorted_l1 import sorted_l1, tempered
from .value import Value, positions


class ULD:
    """T^2 * sum_i |i-th largest of softmax(z_S / T) - i-th largest of softmax(z_T / T)|, over all tokens.

    The shorter list is padded with zeros. Of a `TopK` teacher no more ranks are compared than it lists tokens.

    Args:
        mapping: says which ids are tokens.
        options: `temperature` and `merge` are read.
    """

    def __init__(self, mapping: Mapping, options: SlowOptions) -> None:
        self.options = options
        self.mapping = mapping

    def __call__(self, batch: Batch, chunk: Chunk) -> Value:
        """The chunk's value.

        Raises:
            OptionError: the teacher is a `TopK` and T is not 1.
        """
        temperature = self.options.temperature
        check_top_k(batch, temperature)
        rows = [batch.teacher(at) for at in positions(chunk.teacher, self.options.merge)]
        listed = frozenset[int]().union(*(row.listed for row in rows))
        student = tempered([batch.student(at) for at in positions(chunk.student, self.options.merge)], temperature)
        log_probs = [row.log_probs for row in rows]
        teacher = tempered(log_probs, temperature) if batch.knows_all else as_listed(log_probs)
        # Where every token is listed, the teacher's further ranks are known: they are zeros.
        ranks = len(listed) + (len(student) if listed.issuperset(batch.teacher_live) else 0)
        if not ((student > -torch.inf).any() and (teacher > -torch.inf).any()):
            return Value()
        return Value(temperature**2 * sorted_l1(student, batch.student_live, teacher, listed, ranks))


def as_listed(rows: list[torch.Tensor]) -> torch.Tensor:
    """The mean of the listed probabilities as they are, as logarithms."""
    return torch.stack(rows).exp().mean(0).log()


def check_top_k(batch: Batch, temperature: float) -> None:
    """Refuses to temper a distribution of which only the best tokens are known.

    Raises:
        OptionError: it is to be tempered.
    """
    if not batch.knows_all and temperature != 1:
        raise OptionError(
            "sorted probabilities of a TopK teacher are known at temperature=1 alone, but the temperature is "
            f"{temperature!r}: give the teacher's logits, or another kind"
        )
