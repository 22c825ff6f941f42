"""Reading a JSON file that a user named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import SourceError, VocabularyError


def load_json(path: Path, *, unique: bool = False) -> Any:
    """The parsed file.

    Args:
        path: the file.
        unique: whether a key that stands twice in one table is refused; else its last value counts.

    Raises:
        SourceError: it cannot be read, or is not whole JSON.
        VocabularyError: a key stands twice, under `unique`.
    """
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_unique if unique else None)
    except OSError as error:
        raise SourceError(f"cannot read {path.name}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path.name} is not whole JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise VocabularyError(f"the key {twice!r:.80} stands twice in one table: which of its values holds is unclear")
    return table
