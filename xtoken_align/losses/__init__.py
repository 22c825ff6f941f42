"""Losses that distil a teacher through a mapping, and the forms in which both sides are handed in.

Names are imported when first used, so `import xtoken_align.losses` does not load torch; using a name needs the extra
`torch`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .functional import alm, gold, h_kl, p_kl, partition_kl, uld
    from .fuse import FusedHead, fuse_head, unfuse_head
    from .inputs import Hidden, Logits, Student, Teacher, TopK
    from .loss import LossOptions, LossOutput, Metric, XTokenLoss
    from .multi import MultiTeacherLoss
    from .scale import DynamicScale

_HOMES = {
    "DynamicScale": "scale",
    "FusedHead": "fuse",
    "Hidden": "inputs",
    "Logits": "inputs",
    "LossOptions": "loss",
    "LossOutput": "loss",
    "Metric": "loss",
    "MultiTeacherLoss": "multi",
    "Student": "inputs",
    "Teacher": "inputs",
    "TopK": "inputs",
    "XTokenLoss": "loss",
    "alm": "functional",
    "fuse_head": "fuse",
    "gold": "functional",
    "h_kl": "functional",
    "p_kl": "functional",
    "partition_kl": "functional",
    "uld": "functional",
    "unfuse_head": "fuse",
}

__all__ = [
    "DynamicScale",
    "FusedHead",
    "Hidden",
    "Logits",
    "LossOptions",
    "LossOutput",
    "Metric",
    "MultiTeacherLoss",
    "Student",
    "Teacher",
    "TopK",
    "XTokenLoss",
    "alm",
    "fuse_head",
    "gold",
    "h_kl",
    "p_kl",
    "partition_kl",
    "uld",
    "unfuse_head",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
