"""Tekken files: special ids first, ranks cut and moved behind them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from xtoken_align import Vocab, read_vocab
from xtoken_align.errors import VocabularyError
from xtoken_align.readers.tekken import looks_like_tekken, read_tekken
from xtoken_align.vocab.kinds import Kind

pytest.importorskip("tiktoken")

Json = dict[str, Any]


def tekken(*, specials: int = 6, unused: int = 2) -> Json:
    """256 bytes, ` a` and `ab`, `unused` further ranks, and three named specials."""
    tokens = [*(bytes([byte]) for byte in range(256)), b" a", b"ab", *(b"u%d" % number for number in range(unused))]
    return {
        "config": {
            "pattern": r" ?\p{L}+|\s+|.",
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": len(tokens) - unused + specials,
            "default_num_special_tokens": specials,
            "version": "v3",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(tokens)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": text, "is_control": True}
            for rank, text in enumerate(("<unk>", "<s>", "[INST]"))
        ],
    }


def vocab_of(tmp_path: Path, data: Json) -> Vocab:
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return read_vocab(path)


def test_ids_are_ranks_behind_the_special_ones(tmp_path: Path) -> None:
    vocab = vocab_of(tmp_path, tekken())
    assert vocab.encode_batch(["ab a"]) == [[257 + 6, 256 + 6]]
    assert vocab.surfaces[257 + 6] == b"ab"


def test_ranks_beyond_the_default_size_are_no_tokens(tmp_path: Path) -> None:
    vocab = vocab_of(tmp_path, tekken())
    assert len(vocab) == vocab.sizes.ids == 258 + 6
    assert b"u0" not in vocab.lowest_text_id


def test_special_ids_without_a_name_are_fillers(tmp_path: Path) -> None:
    vocab = vocab_of(tmp_path, tekken())
    assert [vocab.raw[token] for token in range(6)] == [
        *("<unk>", "<s>", "[INST]"),
        *("<SPECIAL_3>", "<SPECIAL_4>", "<SPECIAL_5>"),
    ]
    assert [Kind(value) for value in vocab.kinds[:6]] == [Kind.SPECIAL] * 3 + [Kind.RESERVED] * 3
    assert vocab.roles["bos"] == (1,)


def test_text_that_spells_a_special_token_stays_text(tmp_path: Path) -> None:
    vocab = vocab_of(tmp_path, tekken())
    ids = vocab.encode_batch(["<s>[INST]<SPECIAL_3>"])[0]
    assert min(ids) >= 6
    assert b"".join(vocab.surfaces[token] for token in ids) == b"<s>[INST]<SPECIAL_3>"


def test_the_users_pattern_wins() -> None:
    parsed = read_tekken(tekken(), pattern=r"(?s).")
    encoder = parsed.make_encoder(parsed.in_base)
    assert encoder.encode_batch(["ab"]) == [[97 + 6, 98 + 6]]


@pytest.mark.parametrize("data", [None, [], {}, {"config": {}}, {"config": {"default_num_special_tokens": 1}}])
def test_other_json_is_no_tekken_file(data: object) -> None:
    assert not looks_like_tekken(data)
    assert looks_like_tekken(tekken())


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (("config", "default_vocab_size"), 2**40, "no whole number"),
        (("config", "default_num_special_tokens"), 1.5, "no whole number"),
        (("vocab", 0, "rank"), float("inf"), "no whole number"),
        (("vocab", 0, "rank"), True, "no whole number"),
        (("vocab", 0, "rank"), 1, "belongs to two tokens"),
        (("special_tokens", 0, "rank"), 1, "two on one id"),
        (("special_tokens", 0, "rank"), 77, "outside the 6 ids"),
        (("special_tokens", 0, "token_str"), None, "without a string"),
    ],
)
def test_a_wrong_field_is_refused_by_what_is_wrong(place: tuple[Any, ...], value: object, sentence: str) -> None:
    data = tekken()
    node: Any = data
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    with pytest.raises(VocabularyError, match=sentence):
        read_tekken(data)


@pytest.mark.parametrize("field", ["pattern", "default_vocab_size"])
def test_a_missing_field_is_named(field: str) -> None:
    data = tekken()
    del data["config"][field]
    with pytest.raises(VocabularyError, match=field):
        read_tekken(data)
