"""Models that are only asked, not trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def at_rest(model: Any) -> Iterator[None]:
    """Without gradients, dropout or checkpointing of activations; every module is left in the mode that it was in.

    Args:
        model: a module; of another callable nothing but gradients can be switched off.
    """
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
