"""Losses that distil a teacher through a mapping, and the forms in which both sides are handed in.

Names are imported when first used, so `import xtoken_align.losses` does not load torch; using a name needs the extra
`torch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .advantages import chunk_advantages
    from .functional import alm, gold, h_kl, p_kl, partition_kl, uld
    from .fuse import FusedHead, fuse_head, unfuse_head
    from .inputs import Hidden, Logits, Student, Teacher, TopK
    from .kinds import LossOptions
    from .loss import LossOutput, Metric, XTokenLoss
    from .multi import MultiTeacherLoss, average_logits
    from .scale import DynamicScale

_HOMES = {
    "DynamicScale": "scale",
    "FusedHead": "fuse",
    "Hidden": "inputs",
    "Logits": "inputs",
    "LossOptions": "kinds",
    "LossOutput": "loss",
    "Metric": "loss",
    "MultiTeacherLoss": "multi",
    "Student": "inputs",
    "Teacher": "inputs",
    "TopK": "inputs",
    "XTokenLoss": "loss",
    "alm": "functional",
    "average_logits": "multi",
    "chunk_advantages": "advantages",
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
    "average_logits",
    "chunk_advantages",
    "fuse_head",
    "gold",
    "h_kl",
    "p_kl",
    "partition_kl",
    "uld",
    "unfuse_head",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
