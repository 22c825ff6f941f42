"""How much of a student's vocabulary a mapping covers, and which loss that suggests."""

from .classes import CLASSES, classify
from .common import relaxed_common, strict_common
from .recommend import DEFAULT_CRITICAL, Recommendation, recommend
from .rows import ClassRow
from .table import EMPTY_REASONS, Coverage, measure

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
