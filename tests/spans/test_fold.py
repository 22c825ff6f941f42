"""Folded texts: both sides' normalisers at once, with the places of the original in them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from families import FAMILIES_AND_WORDY
from hypothesis import given
from hypothesis import strategies as st
from span_checks import any_text, vocab
from test_row_ids import byte_level, folder_with

from xtoken_align import align_ids, align_texts, read_vocab
from xtoken_align.spans.fold import Folding


def lower_nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


PLAIN = vocab(["a"])
LOWER = Folding(vocab(["a"], change=lower_nfkc), PLAIN)
FOLDINGS = {
    "plain": Folding(PLAIN, PLAIN),
    "lower": LOWER,
    **{
        name: Folding(FAMILIES_AND_WORDY["llama3"].vocab(), FAMILIES_AND_WORDY[name].vocab())
        for name in ("qwen", "bert-uncased", "clip", "albert", "deberta", "t5", "unigram-bytes", "byte-normaliser")
    },
}


@given(text=any_text(), junk=st.binary(max_size=3), cut=st.integers(0, 9), name=st.sampled_from(sorted(FOLDINGS)))
def test_places_ascend_from_the_beginning_to_the_end(text: str, junk: bytes, cut: int, name: str) -> None:
    said = text.encode("utf-8", "surrogatepass")[cut:] + junk + text[:3].encode("utf-8", "surrogatepass")
    folded = FOLDINGS[name].fold(said)
    assert folded.at.shape == folded.sharp.shape == (len(said) + 1,)
    assert folded.at[0] == 0
    assert folded.at[-1] == len(folded.text)
    assert (np.diff(folded.at) >= 0).all()
    assert folded.sharp[0]
    assert folded.sharp[-1]


@given(text=any_text(surrogates=False))
def test_without_normalisers_nothing_changes(text: str) -> None:
    assert not FOLDINGS["plain"].changes
    folded = FOLDINGS["plain"].fold(text.encode())
    assert folded.text.tobytes() == text.encode()
    assert folded.at.tolist() == list(range(len(text.encode()) + 1))
    assert folded.sharp.all()


@given(
    parts=st.lists(st.sampled_from(["ab", "Ab", "é", "É", "ﬁ", "e\u0301", " ", "Я", "中", "İ", "a", "½"]), max_size=8)
)
def test_what_is_folded_is_the_normal_form_of_each_part(parts: list[str]) -> None:
    folded = LOWER.fold("".join(parts).encode())
    assert folded.text.tobytes() == "".join(map(lower_nfkc, parts)).encode()
    at = place = 0
    for part in parts:
        assert folded.at[at] == place
        assert folded.sharp[at]
        at += len(part.encode())
        place += len(lower_nfkc(part).encode())


def test_inside_a_changed_character_no_boundary_compares_and_its_first_byte_has_all_of_it() -> None:
    folded = LOWER.fold("xﬁy".encode())
    assert folded.text.tobytes() == b"xfiy"
    assert folded.at.tolist() == [0, 1, 3, 3, 3, 4]
    assert folded.sharp.tolist() == [True, True, False, False, True, True]


def test_half_a_character_stays_and_does_not_keep_its_neighbours_from_folding() -> None:
    said = "ЯЖ".encode() + b"\xf0\x9f" + "Я".encode()
    assert LOWER.fold(said).text.tobytes() == "яж".encode() + b"\xf0\x9f" + "я".encode()


@pytest.mark.parametrize("name", ["bert-uncased", "clip"])
def test_spaces_go_where_surfaces_invent_them(name: str) -> None:
    assert FOLDINGS[name].fold(" The  caf\u00e9\n".encode()).text.tobytes().startswith(b"thecaf")
    assert b" " not in FOLDINGS[name].fold(" The\u3000cat\t,".encode()).text.tobytes()


def test_a_line_feed_becomes_what_the_normaliser_makes_of_it_inside_a_text() -> None:
    assert FOLDINGS["t5"].fold(b"a\nb").text.tobytes() == b"a b"
    assert FOLDINGS["qwen"].fold(b"a\nb").text.tobytes() == b"a\nb"


@pytest.mark.parametrize("name", ["albert", "deberta"])
def test_what_a_normaliser_replaces_at_once_is_folded_as_a_whole(name: str) -> None:
    said = b"a ``b'' c   d" if name == "albert" else b"a   b"
    folded = FOLDINGS[name].fold(said)
    assert folded.text.tobytes() == (b'a "b" c   d' if name == "albert" else b"a b")
    # No boundary inside of what is replaced compares, and both of its ends do.
    begin, end = (2, 4) if name == "albert" else (1, 4)
    assert folded.sharp[[begin, end]].all()
    assert not folded.sharp[begin + 1 : end].any()


REWRITES = [
    ({"String": "``"}, '"', "he said ``no`` 12"),
    ({"Regex": r"\d{2,}"}, "0", "in 1984 he had 7 or 12"),
    ({"Regex": " {2,}"}, " ", "a   b  c d"),
    ({"String": "..."}, "…", "well... so.."),
]


@pytest.mark.parametrize(("pattern", "content", "text"), REWRITES)
def test_ids_whose_normaliser_replaces_several_characters_align_as_their_texts(
    pattern: dict[str, str], content: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    data = {**byte_level(), "normalizer": {"type": "Replace", "pattern": pattern, "content": content}}
    student, teacher = (
        read_vocab(folder_with(tmp_path, data)),
        read_vocab(folder_with(tmp_path / "other", byte_level())),
    )
    for first, second in ((student, teacher), (teacher, student)):
        texts = align_texts([text], student=first, teacher=second)
        ids = align_ids(first.encode_batch([text]), second.encode_batch([text]), student=first, teacher=second)
        assert ids.count.tolist() == texts.count.tolist()
        # By ids all of what is replaced is in the chunk; by texts a run of spaces is its last space.
        for side in ("student", "teacher"):
            by_ids, by_texts = getattr(ids, side), getattr(texts, side)
            assert (by_ids == by_texts)[by_texts >= 0].all()
            assert (by_ids >= 0).all()
