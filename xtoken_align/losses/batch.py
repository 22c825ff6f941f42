"""One loss over a batch: the plan, the pass, the graph, and the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import OptionError
from ..spans.spans import Predictions
from .block_sizes import block_sizes
from .chain import ChainTables, chain_levels
from .index import make_index
from .inputs import Hidden, Logits, Student, Teacher, TopK

if TYPE_CHECKING:
    from .loss import Metric
from .operator import attach, compare_batch, gradients_of
from .passes import Pass, Recipe, Wanted, Weights
from .plan import IGNORED, Plan, make_plan
from .rows import compute_dtype, student_source, teacher_source


@dataclass(frozen=True, eq=False)
class Batch:
    """What of a batch is compared.

    Attributes:
        plan: rows and chunks.
        weight: float32 (N,), each chunk's weight, 0 for misfits.
        misfits: how many chunks cannot be compared.
    """

    plan: Plan
    weight: NDArray[np.float32]
    misfits: int


@dataclass(frozen=True, eq=False)
class Planner:
    """How batches of one loss are planned.

    Attributes:
        merge: "first" or "mean".
        bins: the number of each token's bin on both sides, where chunks that begin in two bins cannot be compared.
        chain: the tables of C-KL.
    """

    merge: str
    bins: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    chain: ChainTables | None = None

    def plan(self, predictions: Predictions, labels: NDArray[np.int64] | None, *, block_rows: int) -> Batch:
        """Plans the blocks of a batch.

        Args:
            predictions: the chunks, as numpy arrays.
            labels: int64 (B * T_s,), what the logits at each position are to predict, -100 for nothing.
            block_rows: rows of a block.
        """
        fits = self._fits(predictions)
        plan = make_plan(
            predictions,
            merge=self.merge,
            block_rows=block_rows,
            levels=() if self.chain is None else chain_levels(self.chain, predictions, fits),
            labels=labels,
        )
        return Batch(plan, np.where(fits, predictions.weight, 0).astype(np.float32), int((~fits).sum()))

    def _fits(self, predictions: Predictions) -> NDArray[np.bool_]:
        if self.bins is None:
            return np.ones(len(predictions), dtype=np.bool_)
        firsts = [
            side[tokens[offsets[:-1]]]
            for side, tokens, offsets in (
                (self.bins[0], predictions.student_tokens, predictions.student_offsets),
                (self.bins[1], predictions.teacher_tokens, predictions.teacher_offsets),
            )
        ]
        fits: NDArray[np.bool_] = (firsts[0] == firsts[1]) & (firsts[0] >= 0)
        return fits


def block_rows(student: Student, teacher: Teacher) -> int:
    """How many of the student's rows are a block; the teacher's are read beside them."""
    device = student.states.device if isinstance(student, Hidden) else _logits(student).device
    sizes = block_sizes(device, *_widths(student), *_widths(teacher))
    return sizes.hidden if isinstance(student, Hidden) else sizes.logits


def _logits(side: torch.Tensor | Logits) -> torch.Tensor:
    return side.logits if isinstance(side, Logits) else side


def _widths(side: Student | Teacher) -> tuple[int, ...]:
    """How wide the rows are that one side's blocks are made of."""
    if isinstance(side, Hidden):
        return tuple(side.weight.shape)
    return (side.width if isinstance(side, TopK) else _logits(side).shape[-1],)


def next_labels(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """What the logits at each position are to predict: the next position's label."""
    shifted = np.full(labels.shape, IGNORED, dtype=np.int64)
    shifted[:, :-1] = labels[:, 1:]
    return shifted.ravel()


@dataclass(frozen=True, eq=False)
class Result:
    """A pass with its graph.

    Attributes:
        loss: scalar with the graph of the student and, where they are learnt, of the links' weights.
        found: the pass.
        weight: floats (N,), each chunk's weight, 0 for misfits.
    """

    loss: torch.Tensor
    found: Pass
    weight: torch.Tensor


def run_batch(
    student: Student,
    teacher: Teacher,
    recipe: Recipe,
    batch: Batch,
    *,
    chunk_factor: torch.Tensor,
    label_factor: torch.Tensor,
    link_log_weight: torch.Tensor | None = None,
) -> Result:
    """chunk_factor * sum of the chunks' weighted values + label_factor * sum of the labels' cross-entropies.

    Args:
        student: the student.
        teacher: the teacher; gets no gradient.
        recipe: what is compared.
        batch: the plan.
        chunk_factor: scalar, detached.
        label_factor: scalar, detached.
        link_log_weight: floats (links,), with a graph, where W is learnt.
    """
    source, inputs, read = student_source(student), _inputs(student), teacher_source(teacher)
    check_widths(source.width, read.width, recipe)
    dtype, device = compute_dtype(source.states), source.states.device
    if recipe.student_silent.device != device:
        raise OptionError(
            f"the loss is on {recipe.student_silent.device}, but what the student hands in is on {device}: "
            f"move it there once, loss_fn.to({str(device)!r})"
        )
    weight = torch.from_numpy(batch.weight).to(device, dtype)
    graph = torch.is_grad_enabled()
    wanted = Wanted(*(graph and one is not None and one.requires_grad for one in (*inputs, link_log_weight)))
    arguments = (
        source,
        read,
        recipe,
        make_index(batch.plan, device),
        Weights(weight * chunk_factor.to(device, dtype), label_factor.to(device, dtype)),
        wanted,
    )
    found = compare_batch(*arguments)
    value = (found.value * weight).sum() * chunk_factor.to(device, dtype)
    value = value + found.cross_entropy * label_factor.to(device, dtype)
    if not wanted.any:
        return Result(value, found, weight)
    made = attach(
        value, [*inputs, link_log_weight], gradients_of(found), lambda: gradients_of(compare_batch(*arguments))
    )
    return Result(made, found, weight)


def _inputs(student: Student) -> list[torch.Tensor | None]:
    if isinstance(student, Hidden):
        return [student.states, student.weight, student.bias]
    return [_logits(student), None, None]


def check_widths(student: int, teacher: int, recipe: Recipe) -> None:
    """Refuses logits of other vocabularies, which would be compared token by wrong token.

    Raises:
        OptionError: a width is not the mapping's.
    """
    for side, width, expected in zip(
        ("student", "teacher"), (student, teacher), recipe.widths or (student, teacher), strict=True
    ):
        if width != expected:
            raise OptionError(
                f"the {side}'s logits must have the mapping's width of {expected}, but they have {width}: the mapping "
                "is of another tokenizer or another size of the model's head"
            )


def metrics_of(result: Result, misfits: int) -> dict[str, Metric]:
    """What a pass could compare, as numerators and denominators."""
    found = result.found
    used, count = result.weight.sum(), result.weight.new_tensor(len(result.weight))
    return {
        "agreement": ((found.agrees * result.weight).sum(), (found.compared * result.weight).sum()),
        "chunks_used": ((found.compared * (result.weight > 0)).sum(), count),
        "misfits": (count.new_tensor(misfits), count),
        "dropped_mass": ((found.dropped * result.weight).sum(), used),
        "empty_mass": ((found.empty * result.weight).sum(), used),
    }
