"""Triton kernels that compare the outcomes of two sides' rows; `losses.triton` calls them."""

from .close import TOTALS, close_mixtures, close_rows, totals
from .prepare import copies, impossible, joint_masses, thresholds
from .read import LISTED
from .sweep import KEPT, SUMS, gradients, mixtures, multiplied, sums

__all__ = [
    "KEPT",
    "LISTED",
    "SUMS",
    "TOTALS",
    "close_mixtures",
    "close_rows",
    "copies",
    "gradients",
    "impossible",
    "joint_masses",
    "mixtures",
    "multiplied",
    "sums",
    "thresholds",
    "totals",
]
