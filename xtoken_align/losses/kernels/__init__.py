"""Triton kernels that compare the outcomes of two sides' rows, or their ranks, for `triton` and `sorting`."""

from .close import TOTALS, close_mixtures, close_rows, totals
from .levels import LEVEL, level_masses, level_values, restricted_gradients, spoken_gradients
from .prepare import copies, impossible, joint_masses, thresholds
from .read import LISTED
from .sorting import (
    BINS,
    LOWEST_BIN,
    SHIFT,
    SILENT,
    SORTED,
    UNCLEAR,
    counted_bins,
    normalisers,
    probabilities,
    rank_gradients,
    signs_of_bins,
    signs_of_values,
)
from .sweep import KEPT, SUMS, gradients, mixtures, multiplied, sums

__all__ = [
    "BINS",
    "KEPT",
    "LEVEL",
    "LISTED",
    "LOWEST_BIN",
    "SHIFT",
    "SILENT",
    "SORTED",
    "SUMS",
    "TOTALS",
    "UNCLEAR",
    "close_mixtures",
    "close_rows",
    "copies",
    "counted_bins",
    "gradients",
    "impossible",
    "joint_masses",
    "level_masses",
    "level_values",
    "mixtures",
    "multiplied",
    "normalisers",
    "probabilities",
    "rank_gradients",
    "restricted_gradients",
    "signs_of_bins",
    "signs_of_values",
    "spoken_gradients",
    "sums",
    "thresholds",
    "totals",
]
