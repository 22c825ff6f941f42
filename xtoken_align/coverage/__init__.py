"""How much of a student's vocabulary a mapping covers, and which loss that suggests."""

from ..matrix import relaxed_common, strict_common
from .classes import CLASSES, ClassRow, classify
from .coverage import EMPTY_REASONS, Coverage, measure
from .recommend import DEFAULT_CRITICAL, Recommendation, recommend

__all__ = [
    "CLASSES",
    "DEFAULT_CRITICAL",
    "EMPTY_REASONS",
    "ClassRow",
    "Coverage",
    "Recommendation",
    "classify",
    "measure",
    "recommend",
    "relaxed_common",
    "strict_common",
]
