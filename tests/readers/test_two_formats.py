"""One vocabulary in two formats is one vocabulary: equal surfaces, kinds, encodings, fingerprints and W."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from xtoken_align import Vocab, build, read_vocab
from xtoken_align.readers.rank_file import GPT2_PATTERN, parse_ranks
from xtoken_align.readers.spelling import bytes_of, characters_of
from xtoken_align.sources.locate import package_file

TEXTS = [
    "The quick brown fox jumps over 1234 lazy dogs, isn't it?",
    " leading and  double   spaces\n\n\ttabs",
    "naïve café 你好，世界 Привет мир 😀👩‍👩‍👧 é",
    "<s> <unk> </s> <|endoftext|> [INST] <0x41>",
    "",
    " ",
    "foo",
]
CORPUS = [
    "the cat sat on the mat, the hat and the 12 rats in 2012",
    "你好世界 привет мир naïve café",
    "for i in range(10):\n    x += i",
]


def assert_equal(first: Vocab, second: Vocab) -> None:
    width = min(first.sizes.ids, second.sizes.ids)
    assert first.surfaces[:width] == second.surfaces[:width]
    np.testing.assert_array_equal(first.kinds[:width], second.kinds[:width])
    assert first.encode_batch(TEXTS) == second.encode_batch(TEXTS)
    assert first.fingerprint == second.fingerprint


def merges_of(ranks: list[tuple[bytes, int]]) -> list[tuple[str, str]]:
    """The merge that makes each token: the last that byte-pair encoding by lower ranks alone leaves to do."""
    table = dict(ranks)
    merges = []
    for token, rank in sorted(ranks, key=lambda pair: pair[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [(table.get(a + b, rank), at) for at, (a, b) in enumerate(pairwise(parts))]
            lowest, at = min(pairs)
            if lowest >= rank:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((characters_of(parts[0]), characters_of(parts[1])))
    return merges


def as_tokenizer_json(ranks: list[tuple[bytes, int]], pattern: str) -> dict[str, Any]:
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": {characters_of(token): rank for token, rank in ranks},
            "merges": [list(pair) for pair in merges_of(ranks)],
            # As tiktoken does: a whole word that is a token is not merged up to.
            "ignore_merges": True,
        },
    }


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GPT2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS * 20, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def rank_file(tokenizer: Tokenizer, path: Path) -> Path:
    """The ranks in the order of merging, which is the order of ids once the alphabet's come first."""
    vocab = json.loads(tokenizer.to_str())["model"]["vocab"]
    lines = [base64.b64encode(bytes_of(text) or b"") + b" %d" % token_id for text, token_id in vocab.items()]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_a_rank_file_and_the_tokenizer_it_was_taken_from(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(str(tmp_path / "tokenizer.json"))
    from_ranks = read_vocab(rank_file(trained, tmp_path / "ranks.tiktoken"), pattern=GPT2_PATTERN)
    from_json = read_vocab(tmp_path / "tokenizer.json")
    assert_equal(from_ranks, from_json)
    assert_equal(from_json, read_vocab(trained))


def test_the_two_make_equal_mappings_with_a_third(
    trained: Tokenizer, tmp_path: Path, real: Callable[[str], Vocab]
) -> None:
    trained.save(str(tmp_path / "tokenizer.json"))
    pair = [
        read_vocab(rank_file(trained, tmp_path / "ranks.tiktoken"), pattern=GPT2_PATTERN),
        read_vocab(tmp_path / "tokenizer.json"),
    ]
    third = real("mistral-v1")
    as_students = [build(student=vocab, teacher=third) for vocab in pair]
    as_teachers = [build(student=third, teacher=vocab) for vocab in pair]
    for first, second in (as_students, as_teachers):
        assert (first.W != second.W).nnz == 0
        assert first.matrix.rule.tolist() == second.matrix.rule.tolist()
        assert first.content_hash == second.content_hash


def test_a_real_rank_file_and_a_tokenizer_json_made_from_it(tmp_path: Path, real: Callable[[str], Vocab]) -> None:
    llama = real("llama-3")
    path = package_file("pkg:llama_models/llama3/tokenizer.model")
    ranks = parse_ranks(path.read_bytes(), path.name)
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    data = as_tokenizer_json(list(zip(ranks.tokens, ranks.ranks, strict=True)), pattern)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    from_json = read_vocab(tmp_path / "tokenizer.json", logits=128_256)
    np.testing.assert_array_equal(from_json.kinds[:128_000], llama.kinds[:128_000])
    assert from_json.surfaces[:128_000] == llama.surfaces[:128_000]
    assert from_json.encode_batch(TEXTS) == llama.encode_batch(TEXTS)
    assert from_json.fingerprint == llama.fingerprint
    qwen = real("qwen3")
    first, second = (build(student=vocab, teacher=qwen).W[:128_000] for vocab in (llama, from_json))
    assert (first != second).nnz == 0


def test_a_sentencepiece_model_and_the_tokenizer_json_that_transformers_makes_of_it(
    tmp_path: Path, real: Callable[[str], Vocab]
) -> None:
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    sentencepiece = pytest.importorskip("sentencepiece")
    mistral = real("mistral-v1")
    model = package_file("pkg:mistral_common/data/tokenizer.model.v1")
    pieces = sentencepiece.SentencePieceProcessor(str(model))
    ids = range(pieces.vocab_size())
    # Llama's form of a SentencePiece model: merges in the order of the pieces' scores.
    vocab = {pieces.id_to_piece(token_id): token_id for token_id in ids}
    scores = {pieces.id_to_piece(token_id): pieces.get_score(token_id) for token_id in ids}
    merges = convert.generate_merges(vocab, scores)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    from_json = read_vocab(tmp_path / "tokenizer.json")
    assert_equal(mistral, from_json)
    third = real("qwen3")
    assert (build(student=mistral, teacher=third).W != build(student=from_json, teacher=third).W).nnz == 0
