"""The vocabulary value: sizes, look-ups by surface and their answers to duplicates."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from small_vocabs import make_vocab, vocabs

from xtoken_align import Vocab
from xtoken_align.vocab.byte_strings import ByteStrings
from xtoken_align.vocab.kinds import Kind


@pytest.fixture
def doubled() -> Vocab:
    tokens = [("a", Kind.TEXT), (b"a", Kind.BYTE), ("b", Kind.TEXT), ("a", Kind.TEXT), ("<s>", Kind.SPECIAL)]
    return make_vocab([*tokens, (b"", Kind.TEXT), (b"", Kind.HOLE), (b"", Kind.PADDING)])


def test_a_vocabulary_is_as_long_as_the_models_output(doubled: Vocab) -> None:
    assert len(doubled) == doubled.sizes.logits == 8


def test_a_surface_with_several_ids_is_found_by_its_lowest_and_highest(doubled: Vocab) -> None:
    assert doubled.lowest_text_id[b"a"] == 0
    assert doubled.highest_text_id[b"a"] == 3
    assert doubled.lowest_byte_id == {b"a": 1}
    assert doubled.repeated_surfaces == 3


def test_empty_surfaces_and_special_tokens_are_found_by_no_surface(doubled: Vocab) -> None:
    assert b"" not in doubled.lowest_text_id
    assert b"" not in doubled.highest_text_id
    assert b"<s>" not in doubled.lowest_text_id


def test_ids_of_a_kind_are_ascending_and_every_id_has_one_kind(doubled: Vocab) -> None:
    assert doubled.ids_of(Kind.TEXT).tolist() == [0, 2, 3, 5]
    assert doubled.speakable_ids.tolist() == [0, 1, 2, 3, 5]
    assert sorted(token for kind in Kind for token in doubled.ids_of(kind).tolist()) == list(range(8))


def test_a_vocabulary_does_not_change(doubled: Vocab) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        doubled.name = "other"  # type: ignore[misc]


@given(vocab=vocabs())
def test_lowest_and_highest_ids_agree_with_a_plain_search(vocab: Vocab) -> None:
    for table, choose in ((vocab.lowest_text_id, min), (vocab.highest_text_id, max)):
        texts = vocab.ids_of(Kind.TEXT).tolist()
        surfaces = {vocab.surfaces[token] for token in texts} - {b""}
        assert table == {
            surface: choose(token for token in texts if vocab.surfaces[token] == surface) for surface in surfaces
        }


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_four_sizes_are_what_the_file_holds(name: str) -> None:
    data = FAMILIES[name].data()
    vocab, base = FAMILIES[name].vocab(), data["model"]["vocab"]
    base_ids = set(range(len(base)) if isinstance(base, list) else base.values())
    ids = base_ids | {entry["id"] for entry in data["added_tokens"]}
    assert vocab.sizes.base == len(base_ids)
    assert vocab.sizes.with_added == len(ids)
    assert vocab.sizes.ids == vocab.sizes.logits == max(ids) + 1


@given(strings=st.lists(st.binary(max_size=6), max_size=12))
def test_packed_strings_read_back_one_by_one_in_slices_and_from_the_end(strings: list[bytes]) -> None:
    packed = ByteStrings.of(strings)
    stored = ByteStrings(packed.blob, packed.lengths)
    assert [stored[index] for index in range(len(strings))] == strings
    assert list(stored[1:]) == strings[1:]
    assert list(stored) == list(packed) == strings
    if strings:
        assert ByteStrings(packed.blob, packed.lengths)[-1] == strings[-1]
    with pytest.raises(IndexError):
        ByteStrings(packed.blob, packed.lengths)[len(strings)]


@given(strings=st.lists(st.binary(max_size=6), min_size=1, max_size=12))
def test_equal_strings_have_equal_codes_and_others_differ(strings: list[bytes]) -> None:
    codes = ByteStrings.of(strings).codes
    for code, string in zip(codes, strings, strict=True):
        assert np.flatnonzero(codes == code).tolist() == [
            position for position, other in enumerate(strings) if other == string
        ]
