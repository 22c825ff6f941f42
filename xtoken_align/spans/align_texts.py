"""Spans from texts: both sides encode them, and where a normaliser changed one, offsets into the text itself serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import OptionError
from ..read import as_vocab
from .align import SaidPair, aligned
from .encode import Edges, Encoded, encode
from .make import Aligned, make_spans
from .offsets import said_in
from .resync import Said
from .spans import Spans
from .tables import PairTables, pair_tables
from .units import End, check_side, padded


def align_texts(
    texts: Sequence[str],
    *,
    student: Any,
    teacher: Any,
    bos: bool = False,
    eos: bool = False,
    max_student_tokens: int | None = None,
    max_teacher_tokens: int | None = None,
    truncation_side: End = "right",
    padding_side: End = "right",
) -> Spans:
    """Tokenises texts with both sides and aligns the two.

    Args:
        texts: the texts; what looks like a special token in them is text.
        student: the student's `Vocab`, or a source of it, read anew at every call.
        teacher: the teacher's.
        bos: put the token that begins a text before each, on the sides that have one. Without a token before it nothing
            predicts a text's first chunk, and the chunk has no weight.
        eos: put the token that ends a text after each, on the sides that have one; a text cut on the right has none.
        max_student_tokens: cut to so many tokens.
        max_teacher_tokens: the same of the teacher. What only one side keeps is in no chunk.
        truncation_side: where to cut, `left` or `right`.
        padding_side: where shorter rows are padded, `left` or `right`.

    Returns:
        The spans; they hold the ids of both sides.

    Raises:
        OptionError: an option has a value that makes no sense.

    >>> import xtoken_align
    >>> student, teacher = xtoken_align.read_vocab("llama-3"), xtoken_align.read_vocab("qwen3")
    >>> spans = align_texts(["x = 123"], student=student, teacher=teacher)
    >>> spans.student.tolist(), spans.teacher.tolist()
    ([[0, 1, 2, 3]], [[0, 1, 2, 3, 3, 3]])
    """
    if isinstance(texts, str):
        raise OptionError("texts are a sequence of strings, got one string: put it into a list")
    check_side("padding_side", padding_side)
    tables = pair_tables(as_vocab(student), as_vocab(teacher))
    edges = Edges(bos=bos, eos=eos, truncation_side=truncation_side)
    limits = (max_student_tokens, max_teacher_tokens)
    return make_spans(aligned_texts(texts, tables, edges, limits, padding_side))


def aligned_texts(
    texts: Sequence[str],
    tables: PairTables,
    edges: Edges,
    limits: tuple[int | None, int | None],
    padding_side: End = "right",
) -> Aligned:
    """Encodes and aligns texts, a unit per text.

    Args:
        texts: the texts.
        tables: the pair's tables.
        edges: what happens at the texts' edges.
        limits: tokens to cut to, the student's and the teacher's.
        padding_side: where shorter rows are padded.
    """
    ours = encode(texts, tables.student, edges, max_tokens=limits[0])
    theirs = encode(texts, tables.teacher, edges, max_tokens=limits[1])
    units = padded(ours.ids, ours.counts, padding_side), padded(theirs.ids, theirs.counts, padding_side)

    def said(unit: int) -> SaidPair | None:
        one = _said(texts[unit], unit, ours, tables, of_student=True)
        other = _said(texts[unit], unit, theirs, tables, of_student=False)
        return None if one is None or other is None else (one, other)

    # What is left of "abab" may begin as "abab" does.
    doubtful = (ours.first > 0) | (theirs.first > 0)
    return Aligned(*units, aligned(*units, tables, said, doubtful))


def _said(text: str, unit: int, encoded: Encoded, tables: PairTables, *, of_student: bool) -> Said | None:
    """What a side says of a text, with the tokens around it."""
    vocab, first_id = (tables.student, 0) if of_student else (tables.teacher, len(tables.student))
    begin = int(encoded.whole_counts[:unit].sum())
    ids = encoded.whole[begin : begin + int(encoded.whole_counts[unit])]
    said = said_in(text, ids, vocab, tables, first_id=first_id)
    if said is None:
        return None
    first, kept = int(encoded.first[unit]), int(encoded.kept[unit])
    chosen = slice(first, first + kept)
    has_end = int(encoded.counts[unit]) - kept - (encoded.begin is not None) > 0
    edges = np.append(said.begin, said.end[-1:])
    return Said(
        text=said.text,
        **{
            name: np.concatenate(
                [
                    [before] * (encoded.begin is not None),
                    getattr(said, name)[chosen],
                    [after] * has_end,
                ]
            ).astype(getattr(said, name).dtype)
            for name, before, after in (
                ("begin", edges[first] if len(edges) else 0, edges[first + kept] if len(edges) else 0),
                ("end", edges[first] if len(edges) else 0, edges[first + kept] if len(edges) else 0),
                ("sharp_begin", True, True),
                ("sharp_end", True, True),
                ("speaks", False, False),
                ("specials", _special(encoded.begin, first_id, tables), _special(encoded.end, first_id, tables)),
            )
        },
    )


def _special(token: int | None, first_id: int, tables: PairTables) -> int:
    return -1 if token is None else int(tables.special[token + first_id])
