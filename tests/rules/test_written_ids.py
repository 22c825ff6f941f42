"""Of two ids with one surface the one that the encoder writes is linked; ends of turns that find no end are told."""

import warnings

import pytest
from small_vocabs import make_vocab

from xtoken_align import Vocab, build
from xtoken_align.errors import VocabularyError, XTokenWarning
from xtoken_align.training.teachers import vocab_of
from xtoken_align.vocab.kinds import Kind


class Writes:
    """An encoder that writes the second of two ids with one surface."""

    dummy_prefix = False

    def __init__(self, table: dict[str, int]) -> None:
        self.table = table

    def normalize(self, text: str) -> str:
        return text

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[self.table[letter] for letter in text if letter in self.table] for text in texts]

    def encode_bytes(self, data: bytes) -> list[int] | None:
        return None if data else []


def twice() -> Vocab:
    from dataclasses import replace

    return replace(make_vocab(["a", "b", "a"]), make_encoder=lambda: Writes({"a": 2, "b": 1}))


def test_the_id_that_the_encoder_writes_is_linked() -> None:
    assert twice().lowest_text_id[b"a"] == 0
    assert twice().written_text_id == {b"a": 2, b"b": 1}
    mapping = build(student=make_vocab(["a", "b"], name="one"), teacher=twice())
    assert [link.teacher_id for link in mapping.row(0).links] == [2]


def test_where_the_encoder_writes_neither_the_lowest_is() -> None:
    vocab = make_vocab(["a", "b", "a"])
    assert vocab.written_text_id[b"a"] == 0


def test_more_tokens_than_logits_are_refused_in_training() -> None:
    from dataclasses import replace

    vocab = make_vocab(["a", "b", "c"])
    wide = replace(vocab, sizes=replace(vocab.sizes, base=9, with_added=9, ids=9))
    with pytest.raises(VocabularyError, match="the student's tokenizer small has 9 tokens, but its model has 3 logits"):
        vocab_of(wide, None, 3, "student")
    assert vocab_of(vocab, None, 3, "student") is vocab


def ending(name: str, token: str, role: str) -> Vocab:
    return make_vocab(["a", (token.encode(), Kind.SPECIAL)], name=name, roles={role: [1]})


@pytest.mark.parametrize(("ending_side", "silent_side"), [("student", "teacher"), ("teacher", "student")])
def test_one_side_without_any_end_of_turn_is_a_warning_that_the_mapping_keeps(
    ending_side: str, silent_side: str
) -> None:
    sides = {ending_side: ending("one", "<|end|>", "eot"), silent_side: make_vocab(["a", "b"], name="other")}
    said = f"the {ending_side} one has a token that ends a turn, and the {silent_side} other has none by role"
    with pytest.warns(XTokenWarning, match=said):
        mapping = build(**sides)
    assert [said in sentence for sentence in mapping.notes["warnings"]] == [True]


def test_two_sides_without_any_end_of_turn_are_none() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "warnings" not in build(student=make_vocab(["a"]), teacher=make_vocab(["a", "b"])).notes


def test_a_pair_without_a_common_end_of_turn_is_a_warning() -> None:
    with pytest.warns(XTokenWarning, match="no token that ends a turn of one has a counterpart"):
        build(student=ending("one", "<|end|>", "eot"), teacher=ending("other", "<stop>", "stop"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(student=ending("one", "<|end|>", "eot"), teacher=ending("other", "<|eot_id|>", "eot"))
