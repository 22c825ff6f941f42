"""The device of the tests that need a GPU; XTOKEN_ALIGN_TEST_DEVICE=cpu runs them without one, to try the tests."""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch

DEVICE = torch.device(os.environ.get("XTOKEN_ALIGN_TEST_DEVICE", "cuda"))

needs_gpu = pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="there is no GPU")


def on_device(made: Any, device: torch.device = DEVICE) -> Any:
    """A tensor, or what holds tensors, on the device; a leaf stays a leaf."""
    if isinstance(made, torch.Tensor):
        return made.detach().to(device).requires_grad_(made.requires_grad)
    if is_dataclass(made) and not isinstance(made, type):
        values = {field.name: getattr(made, field.name) for field in fields(made)}
        return replace(made, **{name: on_device(value, device) for name, value in values.items()})
    return made
