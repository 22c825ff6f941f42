"""`compat`: each relation, on vocabularies made by hand and on real ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_vocabs import make_vocab

from xtoken_align import Vocab, compat
from xtoken_align.vocab.kinds import Kind

EOS = (b"<eos>", Kind.SPECIAL)
HOLE = (b"", Kind.HOLE)
SPARE = (b"<unused0>", Kind.RESERVED)


@pytest.mark.parametrize(
    ("a", "b", "relation"),
    [
        (["a", "b", EOS], ["a", "b", EOS], "identical"),
        (["a", "b", EOS], ["b", "a", EOS], "permuted"),
        (["a", "b"], ["a", "b", "ab"], "extended"),
        (["a", "b", "ab"], ["a", "b"], "extended"),
        (["a", "b", SPARE], ["a", "b", EOS], "extended"),
        (["a", HOLE, "b"], ["a", "c", "b"], "extended"),
        (["a", "b", "c", EOS], ["a", "b", "c", (b"<end>", Kind.SPECIAL)], "repurposed"),
        (["a", "b", "c", "d"], ["a", "b", "c", "e"], "repurposed"),
        (["a", "b"], ["b", "c"], "partial"),
        (["a", "b"], ["c", "d"], "disjoint"),
        (["a"], [(b"a", Kind.BYTE)], "disjoint"),
        (["a", "a", "b"], ["a", "b", "a"], "permuted"),
    ],
)
def test_two_vocabularies_have_the_relation_of_their_tokens(a: list, b: list, relation: str) -> None:
    assert compat(make_vocab(a, name="a"), make_vocab(b, name="b")).relation == relation


def test_a_token_that_moves_is_told_from_one_whose_id_means_another_and_from_one_that_was_renamed() -> None:
    a = make_vocab(["stays", "moves", "goes", (b"<old>", Kind.SPECIAL)], name="a")
    b = make_vocab(["stays", "comes", "moves", (b"<new>", Kind.SPECIAL)], name="b")
    found = compat(a, b)
    assert (found.same, found.moved, found.repurposed, found.renamed) == (1, 1, 2, 1)


def test_equal_tokens_that_encode_otherwise_are_the_same_ids_and_not_identical() -> None:
    a = make_vocab(["a", "b", "A"], name="a")
    b = make_vocab(["a", "b", "A"], name="b", normalise={"T": "a", "A": "a"})
    found = compat(a, b)
    assert found.relation == "same ids"
    assert not found.same_text
    assert not found.serves
    assert "encoded otherwise" in found.because
    assert "identical" not in str(found)


def test_the_sentence_shows_the_first_id_that_stands_for_another_token() -> None:
    found = compat(make_vocab(["x", "y"], name="old"), make_vocab(["x", "z"], name="new"))
    assert "id 1 is 'y' in old and 'z' in new" in found.because


def test_one_string_that_is_text_in_one_and_special_in_the_other_is_told_with_its_kinds() -> None:
    found = compat(
        make_vocab(["x", "y", "[DOC]"], name="old"), make_vocab(["x", "y", ("[DOC]", Kind.SPECIAL)], name="new")
    )
    assert "id 2 is '[DOC]', text, in old and '[DOC]', special, in new" in found.because


@pytest.mark.parametrize(
    ("a", "b", "relation", "same_text"),
    [
        ("llama-3", "llama-3.1", "extended", True),
        ("o200k", "gpt-oss", "extended", True),
        ("mistral-tekken-240718", "mistral-tekken-240911", "identical", True),
        ("qwen3", "qwen3.6", "partial", False),
        ("mistral-v1", "mistral-v3", "partial", False),
    ],
)
def test_real_generations_relate_as_their_makers_say(
    real: Callable[[str], Vocab], a: str, b: str, relation: str, same_text: bool
) -> None:
    found = compat(real(a), real(b))
    assert (found.relation, found.same_text) == (relation, same_text)


def test_qwen_3_6_shares_the_counted_tokens_with_qwen_3_and_keeps_281_ids(real: Callable[[str], Vocab]) -> None:
    found = compat(real("qwen3"), real("qwen3.6"))
    assert found.same == 281
    # 131,586 equal text surfaces and the 26 special tokens, all of which qwen3.6 has too.
    assert found.same + found.moved == 131_586 + 26


tokens = st.lists(
    st.tuples(st.binary(max_size=3), st.sampled_from([Kind.TEXT, Kind.BYTE, Kind.SPECIAL, Kind.RESERVED, Kind.HOLE])),
    min_size=1,
    max_size=12,
)


def slow_match(a: list, b: list) -> dict[str, int]:
    """The counts by their definition: k-th occurrences of equal (kind, surface), those in place first."""
    used = (Kind.TEXT, Kind.BYTE, Kind.SPECIAL)
    in_place = [i for i in range(min(len(a), len(b))) if a[i] == b[i] and a[i][1] in used]
    left = [i for i, (_, kind) in enumerate(a) if kind in used and i not in in_place]
    free = [i for i, (_, kind) in enumerate(b) if kind in used and i not in in_place]
    moved = 0
    removed = []
    for i in left:
        match = next((j for j in free if b[j] == a[i]), None)
        if match is None:
            removed.append(i)
        else:
            free.remove(match)
            moved += 1
    return {"same": len(in_place), "moved": moved, "removed": len(removed), "added": len(free)}


@given(tokens, tokens)
def test_counts_equal_those_of_a_plain_search(a: list, b: list) -> None:
    a, b = ([(b"" if kind == Kind.HOLE else surface, kind) for surface, kind in side] for side in (a, b))
    a, b = [(b"only a", Kind.TEXT), *a], [(b"only b", Kind.TEXT), *b]
    found = compat(make_vocab(a, name="a"), make_vocab(b, name="b"))
    expected = slow_match(a, b)
    assert {key: getattr(found, key) for key in expected} == expected
