"""The scripts of an experiment under `benchmarks/`, which lie beside each other and import each other by bare names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest


@contextmanager
def scripts_of(folder: Path) -> Iterator[SimpleNamespace]:
    """The modules of a folder by name; afterwards neither they, nor the folder on the path, nor their threads stay."""
    for package in ("torch", "transformers", "tokenizers"):
        pytest.importorskip(package)
    import torch

    names = sorted(file.stem for file in folder.glob("*.py"))
    threads, others = torch.get_num_threads(), {name: sys.modules.pop(name, None) for name in names}
    sys.path.insert(0, str(folder))
    try:
        yield SimpleNamespace(**{name: __import__(name) for name in names})
    finally:
        sys.path.remove(str(folder))
        torch.set_num_threads(threads)
        for name, module in others.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
