"""Comparing tokenizers, and mappings, by what their tokens say rather than by their ids."""

from .compat import Compat, compat
from .diff import Diff, diff

__all__ = ["Compat", "Diff", "compat", "diff"]
