from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

# It reads the environment once, when it is imported: not while a test has it offline.
import huggingface_hub.constants  # noqa: F401
import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """An empty Hub cache and no network; the value adds a repository to the cache."""
    cache = tmp_path / "hub-cache"
    cache.mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def add(repo_id: str, *files: str, commit: str = COMMIT, branch: str = "main") -> Path:
        repository = cache / f"models--{repo_id.replace('/', '--')}"
        directory = repository / "snapshots" / commit
        directory.mkdir(parents=True, exist_ok=True)
        reference = repository / "refs" / branch
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)
        for name in files:
            (directory / name).write_text("{}")
        return directory

    return add
