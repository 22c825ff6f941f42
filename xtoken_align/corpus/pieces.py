"""Cutting long texts into pieces that an encoder takes without trouble, where its split would cut anyway."""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST_PIECE = 1 << 18
"""Characters. The regular expressions of rank files give up at a million pending branches (fancy-regex), which about
as many spaces in a row are: tiktoken then panics, and no exception of Python's own comes of it."""

# After a line's end and before text, and after a word and before a space: no tokenizer's split reaches across.
_CUTS = (re.compile(r"\n(?=\S)"), re.compile(r"(?<=\S)(?=\s)"))


def pieces(text: str, longest: int = LONGEST_PIECE) -> Iterator[str]:
    r"""Yields a text in pieces that begin where a line begins, else where a word ends, else anywhere.

    Args:
        text: the text.
        longest: characters in a piece at most, at least 2.

    Yields:
        Pieces that join to the text; nothing for an empty one.

    >>> list(pieces("one\ntwo three", 6))
    ['one\n', 'two', ' three']
    """
    start = 0
    while len(text) - start > longest:
        end = _last_cut(text, start + longest // 2, start + longest)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _last_cut(text: str, earliest: int, latest: int) -> int:
    for pattern in _CUTS:
        found = 0
        for match in pattern.finditer(text, earliest, latest):
            found = match.end()
        if found:
            return found
    return latest
