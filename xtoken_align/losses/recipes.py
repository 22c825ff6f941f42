"""From a mapping and options to what a pass compares."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ..mapping.mapping import Mapping
from ..matrix import relaxed_common, strict_common
from ..vocab.kinds import Kind
from .bins import MASKED
from .functional import recipe_of_bins, recipe_of_everything, recipe_of_pairs, recipe_of_projection
from .pairs import Pairs, everything
from .passes import Recipe, resolved
from .projection import Projection

if TYPE_CHECKING:
    from .loss import LossOptions


def make_recipe(mapping: Mapping, options: LossOptions) -> Recipe:
    """What a loss of this kind compares, with its index arrays."""
    live = [torch.from_numpy(live_tokens(mapping, side)) for side in ("student", "teacher")]
    if options.kind in ("partition-kl", "c-kl"):
        bins = (torch.from_numpy(part.astype(np.int64)) for part in mapping.bins())
        masked = [torch.where(mask, part, MASKED) for part, mask in zip(bins, live, strict=True)]
        made = recipe_of_bins(masked[0], masked[1], options.temperature)
    elif options.kind == "p-kl":
        made = recipe_of_projection(_projection(mapping, options, *live), options.temperature, options.top_k)
    elif options.kind in ("h-kl", "gold"):
        made = recipe_of_pairs(
            Pairs(_pairs(mapping, options), *live),
            options.temperature,
            normalize=options.normalize,
            limit=options.uncommon_top_k,
        )
    else:
        made = recipe_of_everything(everything(*live), options.temperature)
    silent = [(~mask).nonzero().squeeze(1) for mask in live]
    return resolved(
        replace(made, student_silent=silent[0], teacher_silent=silent[1], widths=(len(live[0]), len(live[1])))
    )


def live_tokens(mapping: Mapping, side: str) -> NDArray[np.bool_]:
    """Which tokens have a probability: all but padding and holes."""
    kinds = (mapping.student if side == "student" else mapping.teacher).kinds
    return ~np.isin(kinds, [Kind.PADDING, Kind.HOLE])


def _projection(
    mapping: Mapping, options: LossOptions, student_live: torch.Tensor, teacher_live: torch.Tensor
) -> Projection:
    """W's first pieces with weight 1, or all of it, and f(g(t)) for the columns that it does not reach."""
    first = mapping.first_pieces("student")
    filled = np.diff(mapping.matrix.indptr) > 0
    first = np.where(filled & student_live.numpy(), first, -1)
    weighted = options.merge == "mean"
    if weighted:
        rows, columns, weights = mapping.matrix.rows, mapping.matrix.indices, mapping.matrix.data
    else:
        rows = np.flatnonzero(first >= 0).astype(np.int32)
        columns, weights = first[rows], np.ones(len(rows), dtype=np.float32)
    target = np.full(len(teacher_live), -1, dtype=np.int64)
    if options.unreached == "reroute":
        back = mapping.first_pieces("teacher")
        target = np.where(back >= 0, first[np.maximum(back, 0)], -1).astype(np.int64)
    target[~teacher_live.numpy()] = MASKED
    return Projection(
        torch.from_numpy(rows.astype(np.int64)),
        torch.from_numpy(columns.astype(np.int64)),
        torch.from_numpy(weights.copy()),
        torch.from_numpy(target),
        student_live,
        weighted=weighted,
    )


def _pairs(mapping: Mapping, options: LossOptions) -> torch.Tensor:
    """int64 (M, 2): the strict common set for GOLD, the relaxed one for H-KL."""
    column, weight = mapping.matrix.top
    if options.kind == "gold":
        marked = strict_common(mapping.matrix.owner, column)
    else:
        marked = relaxed_common(column, weight, options.threshold)
    rows = np.flatnonzero(marked)
    return torch.from_numpy(np.stack([rows, column[rows].astype(np.int64)], axis=1))
