"""Bounds that no real tokenizer reaches: a file beyond them is damaged or hostile, and is refused at once."""

from __future__ import annotations

MAX_ID = (1 << 24) - 1
"""Largest token id; the largest vocabularies of 2026 hold some 262 thousand."""

MAX_RANK_FILE_BYTES = 1 << 29
"""Largest decompressed rank file."""
