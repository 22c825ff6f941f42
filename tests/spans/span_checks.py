"""What any spans must fulfil, by sets of sums and plain loops that share nothing with the code they check."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from hypothesis import strategies as st
from small_vocabs import LongestMatch, make_vocab

from xtoken_align import Vocab
from xtoken_align.readers.parsed import Part, Run, SegmentEncoder
from xtoken_align.spans.spans import Spans
from xtoken_align.vocab.kinds import Kind

Rows = tuple[list[int], list[int]]

LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
)
"""Templates of chats as models have them, without what asks for an answer."""
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)

_SAMPLES = (
    *("hello", "World", " the", "12345", "1234567890" * 9, "x = f(y):", "\n", "\n\n", "\r\n", "\t", "  ", " " * 70),
    *("naïve", "e\u0301", "\u0301\u0323", "ﬁ", "Ａ①½", "İ", "ẞſ", "Σς", "привет", "你好世界", "日本語", "한국어", "각"),
    *("مرحبا بالعالم", "שלום", "क्षि", "😊", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪🇫🇷", "🏳️‍🌈", "𒀀", "𝔘𝔫𝔦", "\u202eabc\u202c"),
    *("\x00", "\x07\x1b", "\x7f", "\x85", "\u200b", "\ufeff", "\u2028", "\ue000", "\ufffe", "\U000f0000", "\U0010ffff"),
    *("<|endoftext|>", "<s>", "</s>", "<unk>", "<|im_start|>", "[INST]", "<0x41>", "[PAD]", "aaaa" * 20, "don't"),
)


def any_text(*, surrogates: bool = True) -> st.SearchStrategy[str]:
    """Texts of every plane of Unicode, of samples known to be hard, and of lone surrogates on demand."""
    anything = st.text(st.characters() if surrogates else st.characters(exclude_categories=["Cs"]), max_size=5)
    return st.lists(st.one_of(st.sampled_from(_SAMPLES), st.sampled_from(_SAMPLES), anything), max_size=7).map("".join)


class Encoder(LongestMatch):
    """The small vocabularies' encoder with a dummy prefix and a normaliser on demand."""

    dummy_prefix = False
    change: Callable[[str], str] = staticmethod(str)

    def normalize(self, text: str) -> str:
        return self.change(text)

    def _normalised(self, text: str) -> str:
        return self.change(text)


class PlacingEncoder(Encoder):
    """The same for a normaliser that changes single characters: knows the characters that a token stands for."""

    def encode_offsets(self, text: str) -> list[tuple[int, int, int]]:
        source = [at for at, character in enumerate(text) for _ in self.change(character).encode()]
        placed, at = [], 0
        lengths = {token_id: len(surface) for surface, token_id in self.table.items()}
        for token_id in self.encode_batch([text])[0]:
            placed.append((token_id, source[at], source[at + lengths[token_id] - 1] + 1))
            at += lengths[token_id]
        return placed


class PlacingRows(SegmentEncoder):
    """Encodes rows with the places that a `PlacingEncoder` knows."""

    def encode_parts(self, rows: Sequence[Sequence[Part]]) -> list[list[Run]]:
        return [[self._placed(run) for run in row] for row in super().encode_parts(rows)]

    def _placed(self, run: Run) -> Run:
        placed = self._encoder.encode_offsets(run.text)
        return Run(run.text, run.ids, [(begin, end) for _, begin, end in placed]) if placed else run


def vocab(
    tokens: Sequence[Any],
    *,
    roles: Mapping[str, Sequence[int]] | None = None,
    dummy_prefix: bool = False,
    change: Callable[[str], str] = str,
    places: bool = False,
    **options: Any,
) -> Vocab:
    """A small vocabulary; a token in angle brackets is special."""
    pairs = [(token, Kind.SPECIAL) if isinstance(token, str) and token[0] == "<" else token for token in tokens]
    plain = [(token, Kind.TEXT) if not isinstance(token, tuple) else token for token in pairs]
    made = make_vocab(
        [(surface.encode() if isinstance(surface, str) else surface, kind) for surface, kind in plain],
        roles=roles,
        **options,
    )
    encoder = (PlacingEncoder if places else Encoder)(made.encoder.table)
    encoder.__dict__.update(dummy_prefix=dummy_prefix, change=change)
    make_row_encoder = (lambda tokens: PlacingRows(encoder, tokens)) if places else None
    return dataclasses.replace(made, make_encoder=lambda: encoder, make_row_encoder=make_row_encoder)


def chunk_rows(spans: Spans, row: int = 0) -> Rows:
    """The chunk ids of a row without padding."""
    spans = spans.numpy()
    return tuple(
        getattr(spans, side)[row][getattr(spans, f"{side}_mask")[row]].tolist() for side in ("student", "teacher")
    )


def id_rows(spans: Spans, row: int = 0) -> Rows:
    """The ids of a row without padding."""
    return tuple(
        getattr(spans, f"{side}_ids")[row][getattr(spans, f"{side}_mask")[row]].tolist()
        for side in ("student", "teacher")
    )


def expected_rows(student: Sequence[bytes], teacher: Sequence[bytes]) -> Rows:
    """The chunks of surfaces that spell one text: runs between neighbouring members of the intersection of sums."""
    ends = [list(accumulate(map(len, side))) for side in (student, teacher)]
    common = sorted(set(ends[0]) & set(ends[1]))
    return tuple([bisect_left(common, end) for end in side] for side in ends)


def without_prefix(said: Sequence[bytes], other: Sequence[bytes]) -> list[bytes]:
    """What tokens say, without a space at the beginning that the other side's text does not have."""
    text, its_text = b"".join(said), b"".join(other)
    if not text.startswith(b" ") or its_text.startswith(b" ") or not its_text:
        return list(said)
    first = next(at for at, surface in enumerate(said) if surface)
    return [surface[1:] if at == first else surface for at, surface in enumerate(said)]


def surfaces_of(vocab: Vocab, ids: Sequence[int]) -> list[bytes]:
    """What tokens say: nothing where they are no text."""
    return [vocab.surfaces[token_id] if vocab.kinds[token_id] <= Kind.BYTE else b"" for token_id in ids]


def check(
    ids: Rows, chunks: Rows, student: Vocab, teacher: Vocab, fold: Callable[[bytes], bytes] | None = None
) -> None:
    """Asserts what holds for the chunks of any two rows of ids."""
    pieces = []
    for side_ids, side_chunks, side in zip(ids, chunks, (student, teacher), strict=True):
        assert len(side_ids) == len(side_chunks)
        numbers = [number for number in side_chunks if number >= 0]
        assert numbers == sorted(numbers)
        assert set(numbers) == set(range(len(set(numbers))))
        assert all(number >= -1 for number in side_chunks)
        by_chunk: dict[int, list[bytes]] = {}
        for said, number in zip(surfaces_of(side, side_ids), side_chunks, strict=True):
            by_chunk.setdefault(number, []).append(said)
        by_chunk.pop(-1, None)
        pieces.append(by_chunk)
    assert pieces[0].keys() == pieces[1].keys()
    for number, ours in pieces[0].items():
        _check_chunk(ours, pieces[1][number], student, teacher, fold)


def _check_chunk(
    ours: list[bytes], theirs: list[bytes], student: Vocab, teacher: Vocab, fold: Callable[[bytes], bytes] | None
) -> None:
    one, other = b"".join(ours), b"".join(theirs)
    if not one and not other:
        assert (len(ours), len(theirs)) == (1, 1)
        return
    if one != other:
        # A dummy prefix is no text.
        trimmed = {
            (one[1:], other) if one[:1] == b" " and student.encoder.dummy_prefix else (one, other),
            (one, other[1:]) if other[:1] == b" " and teacher.encoder.dummy_prefix else (one, other),
        }
        trimmed |= {(one, other)}
        assert any(left == right or (fold is not None and fold(left) == fold(right)) for left, right in trimmed)
        return
    inner = [set(accumulate(map(len, side[:-1]))) for side in (ours, theirs)]
    if fold is None:
        assert not inner[0] & inner[1] - {0}
