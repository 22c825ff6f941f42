"""The fingerprint: equal exactly where text means and becomes the same ids."""

from __future__ import annotations

from small_vocabs import make_vocab

from xtoken_align.vocab.kinds import Kind

END = (b"<end>", Kind.SPECIAL)


def test_names_specials_roles_and_padding_do_not_count() -> None:
    plain = make_vocab(["a", "b"], name="one")
    assert plain.fingerprint == make_vocab(["a", "b"], name="two").fingerprint
    assert plain.fingerprint == make_vocab(["a", "b", END], roles={"eos": [2]}).fingerprint
    assert plain.fingerprint == make_vocab(["a", "b", (b"", Kind.PADDING), (b"<unused1>", Kind.RESERVED)]).fingerprint


def test_a_surface_an_id_or_the_way_of_encoding_counts() -> None:
    plain = make_vocab(["a", "b", "T", "h"]).fingerprint
    assert plain != make_vocab(["a", "c", "T", "h"]).fingerprint
    assert plain != make_vocab(["b", "a", "T", "h"]).fingerprint
    assert plain != make_vocab(["a", "b", "T", "h", "e"]).fingerprint
    assert plain != make_vocab(["a", "b", "T", "h"], normalise={"T": "h"}).fingerprint


def test_where_one_token_ends_and_the_next_begins_counts() -> None:
    assert make_vocab(["ab", "c"]).fingerprint != make_vocab(["a", "bc"]).fingerprint
