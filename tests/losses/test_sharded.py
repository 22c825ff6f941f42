"""How a batch is divided among ranks, and that one process pays nothing for it. `test_distributed` runs the ranks."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from random_batches import random_case

from xtoken_align.losses import Logits
from xtoken_align.losses.sharded import Shares, shares_of


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_every_chunk_and_label_belongs_to_one_rank(count: int) -> None:
    case = random_case(75)
    whole = case.spans.predictions()
    shares = [Shares(None, rank, count) for rank in range(count)]
    parts = [one.chunks(whole, one.rank) for one in shares]
    for name in ("student", "teacher", "weight", "student_tokens", "teacher_tokens"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    for side in ("student", "teacher"):
        sizes = [np.diff(getattr(part, f"{side}_offsets")) for part in parts]
        assert np.array_equal(np.concatenate(sizes), np.diff(getattr(whole, f"{side}_offsets")))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    labels = case.labels.numpy().ravel()
    of_ranks = np.stack([one.labels(labels, one.rank) for one in shares])
    assert np.array_equal(of_ranks.max(axis=0), labels)
    assert np.array_equal((of_ranks != -100).sum(axis=0), labels != -100)


def test_whole_tensors_are_not_shared_out() -> None:
    logits = torch.zeros(1, 2, 3)
    assert shares_of(logits, Logits(logits), torch.nn.Parameter(logits), None) is None
    assert Shares(None, 0, 2).labels(None, 0) is None


def test_a_torch_without_a_distributed_package_has_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "torch.distributed.tensor", None)

    class Other(torch.Tensor):
        pass

    tensor: Any = torch.zeros(1, 2, 3).as_subclass(Other)
    assert shares_of(tensor) is None


def test_ordinary_tensors_do_not_import_distributed_ones() -> None:
    code = (
        "import sys, torch; from xtoken_align.losses.sharded import shares_of; before = set(sys.modules);"
        "shares_of(torch.zeros(1, 2, 3), None); assert not set(sys.modules) - before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
