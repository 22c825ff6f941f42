"""Bounds that no real tokenizer reaches: beyond them a file is damaged or hostile, and is refused before it costs memory."""

from __future__ import annotations

MAX_ID = (1 << 24) - 1
"""Largest token id; the largest vocabularies of 2026 hold some 262 thousand."""

MAX_RANK_FILE_BYTES = 1 << 29
"""Largest decompressed rank file."""
