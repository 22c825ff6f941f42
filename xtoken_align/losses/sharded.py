"""Logits whose vocabulary is spread over ranks (DTensor): each rank gets whole rows of its share of the chunks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import OptionError
from ..spans.spans import IGNORED, Predictions
from .inputs import Logits, TopK
from .plan import Batch


@dataclass(frozen=True, eq=False)
class Shares:
    """The ranks among which a batch is divided."""

    mesh: Any
    rank: int
    ranks: int

    def bounds(self, count: int, rank: int) -> tuple[int, int]:
        """One rank's range of so many chunks or positions."""
        return count * rank // self.ranks, count * (rank + 1) // self.ranks

    def chunks(self, predictions: Predictions, rank: int) -> Predictions:
        """One rank's chunks: a range of them."""
        first, last = self.bounds(len(predictions), rank)
        sides = {}
        for side in ("student", "teacher"):
            offsets = getattr(predictions, f"{side}_offsets")
            rows = slice(int(offsets[first]), int(offsets[last]))
            sides[side] = getattr(predictions, side)[rows]
            sides[f"{side}_tokens"] = getattr(predictions, f"{side}_tokens")[rows]
            sides[f"{side}_offsets"] = offsets[first : last + 1] - offsets[first]
        return Predictions(weight=predictions.weight[first:last], **sides)

    def labels(self, labels: NDArray[np.int64] | None, rank: int) -> NDArray[np.int64] | None:
        """One rank's labels: a range of positions, -100 elsewhere."""
        if labels is None:
            return None
        first, last = self.bounds(len(labels), rank)
        own = np.full_like(labels, IGNORED)
        own[first:last] = labels[first:last]
        return own

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Values summed over the ranks, without a graph."""
        total = values.detach().clone()
        torch.distributed.all_reduce(total, group=self.mesh.get_group())
        return total

    def replicated(self, values: torch.Tensor) -> torch.Tensor:
        """The same values; their gradient is summed over the ranks, of which each reads only some of them."""
        same: torch.Tensor = _SumOfGradients.apply(values, self)  # type: ignore[no-untyped-call]
        return same


class _SumOfGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, shares: Shares) -> torch.Tensor:
        ctx.shares = shares
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return ctx.shares.sum(gradient), None


def shares_of(*sides: object) -> Shares | None:
    """The ranks over which a side's vocabulary is spread; None where all is on this rank.

    Raises:
        OptionError: logits are spread in another way than by their last dimension.
    """
    found = None
    for side in sides:
        logits: Any = side.logits if isinstance(side, Logits) else side
        if not _is_spread(logits):
            continue
        if len(logits.placements) != 1 or not logits.placements[0].is_shard(logits.dim() - 1):
            raise OptionError(
                "distributed logits must be sharded by their last dimension, the vocabulary, over one mesh dimension, "
                f"but their placements are {logits.placements}; take the local part of the others first"
            )
        mesh = logits.device_mesh
        found = Shares(mesh, mesh.get_local_rank(), mesh.size())
    return found


def take_rows(side: Any, shares: Shares, rows: list[NDArray[np.int64]]) -> Any:
    """Logits (1, rows, V), or a cached teacher's tokens, of this rank's rows.

    Args:
        side: logits, spread over the ranks or whole on each, or a cached teacher, whole on each.
        shares: the ranks.
        rows: every rank's rows.
    """
    own = torch.from_numpy(rows[shares.rank])
    if isinstance(side, TopK):
        own = own.to(side.ids.device)
        ids, log_probs, rest = (
            values.flatten(0, 1).index_select(0, own).unsqueeze(0) for values in (side.ids, side.log_probs, side.rest)
        )
        return TopK(ids, log_probs, rest, side.width)
    logits = side.logits if isinstance(side, Logits) else side
    if not isinstance(logits, torch.Tensor):
        raise OptionError("beside distributed logits the other side must be logits or a TopK, not hidden states")
    if not _is_spread(logits):
        whole = shares.replicated(logits)
        return Logits(whole.flatten(0, 1).index_select(0, own.to(logits.device)).unsqueeze(0))
    return Logits(_exchanged(logits, rows)[: len(own)].unsqueeze(0))


def _exchanged(logits: Any, rows: list[NDArray[np.int64]]) -> torch.Tensor:
    """Floats (rows, V): this rank's rows, and others after them."""
    from torch.distributed.tensor import DTensor, Shard

    # Every rank sends the same number of rows to each other one; what is missing is filled up with row 0.
    most = max(1, *map(len, rows))
    order = np.concatenate([np.pad(part, (0, most - len(part))) for part in rows])
    local = logits.to_local().flatten(0, 1)
    picked = local.index_select(0, torch.from_numpy(order).to(local.device))
    spread = DTensor.from_local(
        picked,
        logits.device_mesh,
        [Shard(1)],
        run_check=False,
        shape=torch.Size((len(order), logits.shape[-1])),
        stride=(logits.shape[-1], 1),
    )
    whole: torch.Tensor = spread.redistribute(placements=[Shard(0)]).to_local()
    return whole


def _is_spread(side: object) -> bool:
    """Whether it is a DTensor; the module that has the class is not imported for an ordinary tensor."""
    if type(side) is torch.Tensor or not isinstance(side, torch.Tensor) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(side, DTensor)


def shared_out(student: Any, teacher: Any, plans: list[Batch], shares: Shares) -> tuple[Any, Any, Batch]:
    """Both sides' rows that this rank's plan reads, and the plan with rows counted among them.

    Args:
        student: as for `take_rows`.
        teacher: as for `take_rows`.
        plans: every rank's plan.
        shares: the ranks.
    """
    sides, own = [], plans[shares.rank]
    blocks = list(own.blocks)
    for side, name in ((student, "student_rows"), (teacher, "teacher_rows")):
        rows = [
            np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(getattr(block, name) for block in plan.blocks)]))
            for plan in plans
        ]
        sides.append(take_rows(side, shares, rows))
        blocks = [
            replace(block, **{name: np.searchsorted(rows[shares.rank], getattr(block, name))}) for block in blocks
        ]
    return sides[0], sides[1], replace(own, blocks=tuple(blocks))
