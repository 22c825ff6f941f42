"""Numbers that the peers' own code returned: `tests/data/peer_losses.json.gz`, whose `readme` explains them."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).parents[2] / "data" / "peer_losses.json.gz"

# Relative and absolute. The peers' epsilons show below the first; the second is what single precision leaves.
TOLERANCE = {torch.float64: (1e-8, 1e-9), torch.float32: (2e-5, 2e-6)}


@cache
def peer_losses() -> dict[str, Any]:
    return json.loads(gzip.decompress(FILE.read_bytes()))


def cases(*families: str) -> list[Any]:
    """The cases of some families, or all."""
    return [case for case in peer_losses()["cases"] if not families or case["family"] in families]


def given(name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """An input of all cases as a tensor."""
    return torch.tensor(peer_losses()["inputs"][name], dtype=dtype)


def links(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The mapping's links."""
    rows, columns, weights = zip(*peer_losses()["inputs"]["W"], strict=True)
    return {"rows": torch.tensor(rows), "columns": torch.tensor(columns), "weights": torch.tensor(weights, dtype=dtype)}


def student(dtype: torch.dtype) -> torch.Tensor:
    return given("student_logits", dtype).requires_grad_()


def agrees(found: object, expected: object, dtype: torch.dtype) -> bool:
    """Whether numbers agree to the tolerance of the type they were computed in."""
    relative, absolute = TOLERANCE[dtype]
    found, expected = (torch.as_tensor(one, dtype=torch.float64) for one in (found, expected))
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=relative, atol=absolute)
