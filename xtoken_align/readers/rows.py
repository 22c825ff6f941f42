"""Encoding rows for training where the encoder knows nothing of added tokens: rank files and SentencePiece."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from .parsed import Encoder, Part, RowTokens, Run


@lru_cache(maxsize=64)
def pattern_of(strings: frozenset[str]) -> re.Pattern[str]:
    """Finds strings in a text, of several at one place the longest.

    >>> pattern_of(frozenset(("<a>", "<a>b"))).findall("x<a>b<a>")
    ['<a>b', '<a>']
    """
    longest_first = sorted(strings, key=lambda string: (-len(string), string))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def cut(text: str, ids: Mapping[str, int], others: Iterable[str] = ()) -> Iterator[Part]:
    """Cuts a text at tokens: text with None, and a token's string with its id.

    Args:
        text: the text.
        ids: the tokens to cut at.
        others: strings of further tokens, which are looked for too and left in the text: one that holds a token of
            `ids` inside of it goes first.

    >>> list(cut("a<s>b", {"<s>": 1}))
    [('a', None), ('<s>', 1), ('b', None)]
    """
    done = 0
    for match in pattern_of(frozenset((*ids, *others))).finditer(text):
        if match[0] in ids:
            if match.start() > done:
                yield text[done : match.start()], None
            yield match[0], ids[match[0]]
            done = match.end()
    if done < len(text):
        yield text[done:], None


class SegmentEncoder:
    """Cuts rows at their added tokens and encodes the stretches between.

    Args:
        encoder: encodes a stretch as the tokenizer itself does at the beginning of a text.
        tokens: the added tokens.
        later: encodes a stretch behind an added token; by default as at the beginning.
    """

    def __init__(self, encoder: Encoder, tokens: RowTokens, *, later: Encoder | None = None) -> None:
        self._encoder = encoder
        self._later = later or encoder
        self._literal = dict(tokens.literal)
        self._found = pattern_of(frozenset(self._literal))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns one list of ids per text."""
        if not self._literal:
            return self._encoder.encode_batch(texts)
        has_token = [self._found.search(text) is not None for text in texts]
        if not any(has_token):
            return self._encoder.encode_batch(texts)
        return [
            [token for run in row for token in run.ids] for row in self.encode_parts([[(text, None)] for text in texts])
        ]

    def encode_parts(self, rows: Sequence[Sequence[Part]]) -> list[list[Run]]:
        """Returns the runs of every row, without offsets."""
        pieces: list[list[Part]] = [
            [piece for text, token in row for piece in (cut(text, self._literal) if token is None else [(text, token)])]
            for row in rows
        ]
        first = [row[0][0] for row in pieces if row and row[0][1] is None]
        later = [text for row in pieces for text, token in row[1:] if token is None]
        encoded_first, encoded_later = iter(self._encoder.encode_batch(first)), iter(self._later.encode_batch(later))
        runs: list[list[Run]] = []
        for row in pieces:
            runs.append([])
            for at, (text, token) in enumerate(row):
                ids = [token] if token is not None else next(encoded_later if at else encoded_first)
                runs[-1].append(Run(text, ids))
        return runs
