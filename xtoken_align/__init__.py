"""Maps a student tokenizer's vocabulary onto a teacher's, and keeps, audits and loads the mapping.

Names are imported when first used, so `import xtoken_align` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .builder import build
    from .compare.compat import Compat, compat
    from .compare.diff import Diff, diff
    from .errors import XTokenError, XTokenWarning
    from .mapping.mapping import Mapping
    from .read import read_vocab
    from .spans.aligner import align_chats, align_ids, align_texts
    from .spans.batch import SpanCollator
    from .spans.dataset import AlignColumns
    from .spans.spans import Spans
    from .store.load import get_or_build, load
    from .store.store import Store
    from .vocab.vocab import Vocab

_HOMES = {
    "AlignColumns": "spans.dataset",
    "Compat": "compare.compat",
    "Diff": "compare.diff",
    "Mapping": "mapping.mapping",
    "SpanCollator": "spans.batch",
    "Spans": "spans.spans",
    "Store": "store.store",
    "Vocab": "vocab.vocab",
    "XTokenError": "errors",
    "XTokenWarning": "errors",
    "align_chats": "spans.aligner",
    "align_ids": "spans.aligner",
    "align_texts": "spans.aligner",
    "build": "builder",
    "compat": "compare.compat",
    "diff": "compare.diff",
    "get_or_build": "store.load",
    "load": "store.load",
    "read_vocab": "read",
}

__all__ = [
    "AlignColumns",
    "Compat",
    "Diff",
    "Mapping",
    "SpanCollator",
    "Spans",
    "Store",
    "Vocab",
    "XTokenError",
    "XTokenWarning",
    "__version__",
    "align_chats",
    "align_ids",
    "align_texts",
    "build",
    "compat",
    "diff",
    "get_or_build",
    "load",
    "read_vocab",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
