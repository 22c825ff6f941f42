"""The kinds of token ids, and which kind an id is: decided once, from what its file declares."""

from __future__ import annotations

from enum import IntEnum


class Kind(IntEnum):
    """What an id is. The values are stored in mapping files and never change."""

    TEXT = 0
    BYTE = 1
    SPECIAL = 2
    RESERVED = 3
    PADDING = 4
    HOLE = 5
