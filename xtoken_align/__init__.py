"""Maps a student tokenizer's vocabulary onto a teacher's, and keeps, audits and loads the mapping.

Names are imported when first used, so `import xtoken_align` costs nothing; `XTokenLoss` and its kin need the extra
`torch`, `XTokenTrainer` and `distill` the extra `train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazy_names
from ._version import __version__

if TYPE_CHECKING:
    from .builder import build
    from .compare.compat import Compat, compat
    from .compare.diff import Diff, diff
    from .coverage.coverage import Coverage
    from .errors import XTokenError, XTokenWarning
    from .export.hub_repository import Pushed, push_mapping
    from .export.imported import Imported, import_mapping
    from .export.transplant import Transplant, transplant
    from .losses import Hidden, MultiTeacherLoss, TopK, XTokenLoss, fuse_head
    from .mapping.mapping import Mapping
    from .read import read_vocab
    from .spans.aligner import Aligner, TokenFields, align_chats, align_ids, align_texts
    from .spans.batch import SpanCollator
    from .spans.dataset import AlignColumns
    from .spans.ray_data import align_ray
    from .spans.spans import Spans
    from .store.load import get_or_build, load
    from .store.store import Store
    from .training import Distillation, TeacherSpec, XTokenConfig, XTokenTrainer, distill
    from .vocab.vocab import Vocab

_HOMES = {
    "AlignColumns": "spans.dataset",
    "Aligner": "spans.aligner",
    "Compat": "compare.compat",
    "Coverage": "coverage.coverage",
    "Diff": "compare.diff",
    "Distillation": "training",
    "Hidden": "losses",
    "Imported": "export.imported",
    "Mapping": "mapping.mapping",
    "MultiTeacherLoss": "losses",
    "Pushed": "export.hub_repository",
    "SpanCollator": "spans.batch",
    "Spans": "spans.spans",
    "Store": "store.store",
    "TeacherSpec": "training",
    "TokenFields": "spans.aligner",
    "TopK": "losses",
    "Transplant": "export.transplant",
    "Vocab": "vocab.vocab",
    "XTokenConfig": "training",
    "XTokenError": "errors",
    "XTokenLoss": "losses",
    "XTokenTrainer": "training",
    "XTokenWarning": "errors",
    "align_chats": "spans.aligner",
    "align_ids": "spans.aligner",
    "align_ray": "spans.ray_data",
    "align_texts": "spans.aligner",
    "build": "builder",
    "compat": "compare.compat",
    "diff": "compare.diff",
    "distill": "training",
    "fuse_head": "losses",
    "get_or_build": "store.load",
    "import_mapping": "export.imported",
    "load": "store.load",
    "push_mapping": "export.hub_repository",
    "read_vocab": "read",
    "transplant": "export.transplant",
}

__all__ = [
    "AlignColumns",
    "Aligner",
    "Compat",
    "Coverage",
    "Diff",
    "Distillation",
    "Hidden",
    "Imported",
    "Mapping",
    "MultiTeacherLoss",
    "Pushed",
    "SpanCollator",
    "Spans",
    "Store",
    "TeacherSpec",
    "TokenFields",
    "TopK",
    "Transplant",
    "Vocab",
    "XTokenConfig",
    "XTokenError",
    "XTokenLoss",
    "XTokenTrainer",
    "XTokenWarning",
    "__version__",
    "align_chats",
    "align_ids",
    "align_ray",
    "align_texts",
    "build",
    "compat",
    "diff",
    "distill",
    "fuse_head",
    "get_or_build",
    "import_mapping",
    "load",
    "push_mapping",
    "read_vocab",
    "transplant",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
