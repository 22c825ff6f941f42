"""One small teacher with its vocabulary, and a cache that it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("pyarrow")

from cache_models import Causal, corpus, small_vocab

from xtoken_align.training import write_teacher_cache
from xtoken_align.vocab.vocab import Vocab


@pytest.fixture(scope="session")
def vocab() -> Vocab:
    return small_vocab()


@pytest.fixture
def model() -> Causal:
    return Causal()


@pytest.fixture
def written(tmp_path: Path, model: Causal, vocab: Vocab) -> Path:
    """A cache of the small corpus: six shards of four rows."""
    folder = tmp_path / "written"
    write_teacher_cache(model, corpus(), folder, teacher=vocab, top_k=8, batch_size=3, rows_per_shard=4)
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
