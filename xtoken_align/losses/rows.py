"""Rows of logits, a block at a time, from whatever a side hands in, and the way back for the student's gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import OptionError
from .inputs import Hidden, Logits, Student, Teacher, TopK


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float64 stays float64, all else is computed in float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class Source:
    """One side, flattened to rows.

    Attributes:
        states: floats (rows, V) logits, (rows, D) hidden states, or (rows, K) log-probabilities beside `ids`.
        weight: floats (V, D), of hidden states.
        bias: floats (V,), or None.
        ids: integers (rows, K), of a cached teacher.
        rest: floats (rows,), of a cached teacher.
        scale: of the logits.
        softcap: of the logits.
        width: V.
    """

    states: torch.Tensor
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    ids: torch.Tensor | None = None
    rest: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    width: int = 0

    def read(self, rows: torch.Tensor, dtype: torch.dtype, first: int = -1) -> torch.Tensor:
        """Floats (n, V): the logits of these rows; of a cached teacher log-probabilities, -inf where unknown.

        Args:
            rows: int64 (n,).
            dtype: of the result.
            first: the first row where they follow each other, so that nothing need be copied; else -1. What is
                returned is then not to be changed.
        """
        states = _select(self.states, rows, first)
        if self.ids is not None:
            return _spread(_select(self.ids, rows, first), states.to(dtype), self.width)
        if self.weight is None:
            return states.to(dtype)
        logits = torch.nn.functional.linear(states, self.weight, self.bias).to(dtype)
        if self.scale != 1:
            logits.mul_(self.scale)
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def log_rest(self, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """Floats (n,): log of the mass on unknown tokens, None where all are known."""
        return None if self.rest is None else _select(self.rest, rows, -1).to(dtype).log()


@dataclass(frozen=True, eq=False)
class Gradients:
    """The student's gradients as they grow, in float32 or float64 (2e-9 kept in half precision would be 0).

    Attributes:
        source: the student.
        states: of the logits or hidden states, shaped like them.
        weight: of the head, None where frozen.
        bias: of the head's bias.
    """

    source: Source
    states: torch.Tensor
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    def place(self, count: int, first: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Where the gradient of the logits of rows that follow each other can be written at once, else None."""
        if first < 0 or self.source.weight is not None or self.states.dtype != dtype:
            return None
        return self.states[first : first + count]

    def add(self, rows: torch.Tensor, logits: torch.Tensor, gradient: torch.Tensor) -> None:
        """Adds the gradient of the logits (n, V) of some rows, which `read` returned; overwrites it."""
        source = self.source
        if source.weight is None:
            self.states.index_add_(0, rows, gradient.to(self.states.dtype))
            return
        if source.softcap is not None:
            gradient.mul_(1 - (logits / source.softcap) ** 2)
        if source.scale != 1:
            gradient.mul_(source.scale)
        # The products run in the inputs' dtype, as in an ordinary head; what is added up is float32.
        inputs = gradient.to(source.states.dtype)
        self.states.index_add_(0, rows, (inputs @ source.weight).to(self.states.dtype))
        if self.weight is not None:
            hidden = source.states.index_select(0, rows)
            if inputs.dtype == self.weight.dtype:
                self.weight.addmm_(inputs.t(), hidden)
            else:
                self.weight.add_(inputs.t() @ hidden)
        if self.bias is not None:
            self.bias.add_(gradient.sum(dim=0))


def student_source(student: Student) -> Source:
    """The student as rows, without its graph."""
    if isinstance(student, Hidden):
        return _hidden(student)
    return _logits(student.logits if isinstance(student, Logits) else student, "the student")


def teacher_source(teacher: Teacher) -> Source:
    """The teacher as rows, without its graph: teachers get no gradient."""
    if isinstance(teacher, Hidden):
        return _hidden(teacher)
    if isinstance(teacher, TopK):
        return Source(
            states=teacher.log_probs.detach().flatten(0, 1),
            ids=teacher.ids.flatten(0, 1),
            rest=teacher.rest.detach().flatten(),
            width=teacher.width,
        )
    return _logits(teacher.logits if isinstance(teacher, Logits) else teacher, "the teacher")


def states_gradient_dtype(source: Source) -> torch.dtype:
    """What the gradient of logits or hidden states grows in."""
    # Of logits the gradient is as large as they are; bfloat16 has the range of float32, so nothing of it becomes 0.
    if source.weight is None and source.states.dtype == torch.bfloat16:
        return torch.bfloat16
    return compute_dtype(source.states)


def new_gradients(source: Source, *, weight: bool, bias: bool, covered: bool) -> Gradients:
    """Zeros to add to; the head's where it is trained. Where a `place` covers every row nothing is set to 0."""
    dtype, kept = compute_dtype(source.states), states_gradient_dtype(source)
    written = covered and source.weight is None and kept == dtype
    return Gradients(
        source,
        (torch.empty_like if written else torch.zeros_like)(source.states, dtype=kept),
        torch.zeros_like(source.weight, dtype=dtype) if weight and source.weight is not None else None,
        torch.zeros_like(source.bias, dtype=dtype) if bias and source.bias is not None else None,
    )


def _hidden(side: Hidden) -> Source:
    return Source(
        states=side.states.detach().flatten(0, 1),
        # Once and not block by block: a head in float32 under autocast is copied here, as autocast itself does.
        weight=side.weight.detach().to(side.states.dtype),
        bias=None if side.bias is None else side.bias.detach().to(side.states.dtype),
        scale=side.scale,
        softcap=side.softcap,
        width=len(side.weight),
    )


def _logits(logits: torch.Tensor, who: str) -> Source:
    if logits.dim() != 3:
        raise OptionError(f"{who}'s logits must have shape (B, T, V), but they have shape {tuple(logits.shape)}")
    return Source(states=logits.detach().flatten(0, 1), width=logits.shape[-1])


def _select(values: torch.Tensor, rows: torch.Tensor, first: int) -> torch.Tensor:
    return values.index_select(0, rows) if first < 0 else values[first : first + len(rows)]


def _spread(ids: torch.Tensor, log_probs: torch.Tensor, width: int) -> torch.Tensor:
    """(n, K) of ids to (n, V). An unused place, id -1, goes to a column that is cut off."""
    spread = log_probs.new_full((len(ids), width + 1), float("-inf"))
    return spread.scatter_(1, torch.where(ids < 0, width, ids.long()), log_probs)[:, :width]
