"""The store's tests begin with no mapping at all: not even those that ship."""

from __future__ import annotations

import pytest

from xtoken_align.store import store


@pytest.fixture(autouse=True)
def _nothing_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "shipped_root", lambda: None)
