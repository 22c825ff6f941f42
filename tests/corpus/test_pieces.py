"""Long texts are cut where a tokenizer's split would cut anyway."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtoken_align import Vocab
from xtoken_align.corpus.texts import LONGEST_PIECE, pieces


@given(st.text(st.sampled_from("ab \n三😀\u3000"), max_size=200), st.integers(2, 40))
def test_pieces_join_to_the_text_and_none_is_too_long(text: str, longest: int) -> None:
    cut = list(pieces(text, longest))
    assert "".join(cut) == text
    assert all(0 < len(piece) <= longest for piece in cut)


@given(st.lists(st.text(st.sampled_from("ab "), min_size=1, max_size=9), max_size=20))
def test_where_lines_are_short_pieces_begin_where_lines_begin(lines: list[str]) -> None:
    text = "".join(f"x{line}\n" for line in lines)
    for before, after in pairwise(pieces(text, 40)):
        assert before.endswith("\n")
        assert after.startswith("x")


def test_tokens_are_those_of_the_whole_text(real: Callable[[str], Vocab]) -> None:
    vocab = real("llama-3")
    text = "A line of text, 1234 5678.\n\n    indented\n" * 40
    parts = vocab.encode_batch(list(pieces(text, 300)))
    assert len(parts) > 4
    assert [token for part in parts for token in part] == vocab.encode_batch([text])[0]


@pytest.mark.parametrize("name", ["llama-3", "qwen3", "o200k"])
def test_a_million_spaces_are_encoded(name: str, real: Callable[[str], Vocab]) -> None:
    vocab = real(name)
    text = "x" + " " * 1_000_000 + "x"
    ids = [token for part in vocab.encode_batch(list(pieces(text))) for token in part]
    assert b"".join(vocab.surfaces[token] for token in ids) == text.encode()
    assert len(text) > 3 * LONGEST_PIECE
