"""Triton kernels that compare the outcomes of two sides' rows; `losses.triton` calls them."""

from .close import TOTALS, close_mixtures, close_rows, totals
from .levels import LEVEL, level_masses, level_values, restricted_gradients, spoken_gradients
from .prepare import copies, impossible, joint_masses, thresholds
from .read import LISTED
from .sweep import KEPT, SUMS, gradients, mixtures, multiplied, sums

__all__ = [
    "KEPT",
    "LEVEL",
    "LISTED",
    "SUMS",
    "TOTALS",
    "close_mixtures",
    "close_rows",
    "copies",
    "gradients",
    "impossible",
    "joint_masses",
    "level_masses",
    "level_values",
    "mixtures",
    "multiplied",
    "restricted_gradients",
    "spoken_gradients",
    "sums",
    "thresholds",
    "totals",
]
