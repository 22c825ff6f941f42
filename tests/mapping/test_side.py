"""What a mapping keeps of a vocabulary."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from small_vocabs import make_vocab, vocabs

from xtoken_align import Vocab
from xtoken_align.mapping.side import Side
from xtoken_align.vocab.kinds import Kind


@given(vocabs())
@settings(max_examples=40, deadline=None)
def test_a_side_comes_back_from_its_metadata(vocab: Vocab) -> None:
    side = Side.of(vocab)
    again = Side.from_file(json.loads(json.dumps(side.metadata())), side.kinds, side.surfaces)
    assert again.metadata() == side.metadata()
    assert (again.roles, again.sizes) == (dict(vocab.roles), vocab.sizes)
    np.testing.assert_array_equal(again.kinds, vocab.kinds)


def test_the_summary_counts_tokens_with_the_added_ones() -> None:
    side = Side.of(make_vocab(["a", (b"<s>", Kind.SPECIAL), (b"", Kind.PADDING)], name="x"))
    assert side.summary() == {"name": "x", "fingerprint": side.fingerprint, "size": 2, "logits": 3}
