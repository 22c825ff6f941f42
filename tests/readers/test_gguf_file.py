"""GGUF files: each tokenizer type reads like the file that it was converted from."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import random
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from xtoken_align.errors import SourceError, VocabularyError
from xtoken_align.readers.gguf_file import read_gguf, read_header
from xtoken_align.readers.parsed import Declared, Encoder, Parsed
from xtoken_align.readers.sentencepiece_model import (
    BYTE_PIECES,
    SPACE_MARK,
    PieceType,
    parse_model_proto,
    read_sentencepiece,
)
from xtoken_align.readers.spelling import ByteFallback, ByteLevel, Replace, Spelling, WordPieces

gguf = pytest.importorskip("gguf")

TEXTS = ["etaoin shrdlu", " éüß тест", "12345 678", "don't <s> [INST] <0x41>", "漢字 🙂\n\n  x", "", "a  b   c"]
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def write(path: Path, model: str | None, tokens: list[str] | None, **fields: Any) -> Path:
    """A GGUF file; `fields` are keys under `tokenizer.ggml.`, `tensors` name -> shape, `arch` its keys."""
    writer = gguf.GGUFWriter(path, "llama")
    if model is not None:
        writer.add_tokenizer_model(model)
    if tokens is not None:
        writer.add_token_list(tokens)
    for name, shape in fields.pop("tensors", {}).items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    for key, value in fields.pop("arch", {}).items():
        writer.add_uint32(f"llama.{key}", value)
    adders = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        str: writer.add_string,
        list: writer.add_array,
        bytes: writer.add_array,
    }
    for key, value in fields.items():
        adders[type(value)](f"tokenizer.ggml.{key.replace('normalizer_', 'normalizer.')}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def speaking(parsed: Parsed) -> Encoder:
    return parsed.make_encoder(~np.isin(parsed.declared, [Declared.SPECIAL, Declared.UNKNOWN, Declared.ABSENT]))


def corpus() -> list[str]:
    rng = random.Random(7)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 7))) for _ in range(300)]
    return [" ".join(rng.choices([*words, "don't", "12345", "été", "тест", "Caps"], k=12)) for _ in range(200)]


@cache
def bpe() -> tuple[list[str], list[str], str]:
    """Tokens, merges and the `tokenizer.json` of a small byte-level BPE with one special and one ordinary addition."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(__import__("tokenizers").Regex(GPT2_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens(["<think>"])
    data = json.loads(tokenizer.to_str())
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return tokens, [" ".join(pair) for pair in data["model"]["merges"]], tokenizer.to_str()


def bpe_types(tokens: list[str]) -> list[int]:
    kinds = {"<|end|>": PieceType.CONTROL, "<think>": PieceType.USER_DEFINED}
    return [int(kinds.get(text, PieceType.NORMAL)) for text in tokens]


def bpe_file(path: Path, **changes: Any) -> Path:
    tokens, merges, _ = bpe()
    fields = {"pre": "gpt-2", "merges": merges, "token_type": bpe_types(tokens), "eos_token_id": len(tokens) - 2}
    given_fields = {**fields, **changes}
    return write(
        path,
        "gpt2",
        given_fields.pop("tokens", tokens),
        **{key: value for key, value in given_fields.items() if value is not None},
    )


@cache
def wordpiece() -> tuple[list[str], str]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[unused0]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([*corpus(), "漢字 ! ? [ ]"], trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__), tokenizer.to_str()


def phantom(text: str) -> str:
    """What the converter writes for an ordinary piece."""
    return text.removeprefix("##") if text.startswith("##") else SPACE_MARK + text


def bert_file(path: Path, tokens: list[str], **fields: Any) -> Path:
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"}
    return write(
        path,
        "bert",
        [text if text in special else phantom(text) for text in tokens],
        token_type=[int(PieceType.CONTROL if text in special else PieceType.NORMAL) for text in tokens],
        **{"bos_token_id": 2, "seperator_token_id": 3, "unknown_token_id": 1, "padding_token_id": 0, **fields},
    )


def packaged(package: str, file: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(found.submodule_search_locations[0]) / file


def model_fields(proto: Any) -> dict[str, Any]:
    return {
        "scores": [piece.score for piece in proto.pieces],
        "token_type": [int(piece.type) for piece in proto.pieces],
    }


def sentencepiece_proto(data: bytes) -> Any:
    pytest.importorskip("sentencepiece")
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(data)
    return proto


def unigram_proto(**options: Any) -> Any:
    spm = pytest.importorskip("sentencepiece")
    stream = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=stream,
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return sentencepiece_proto(stream.getvalue())


def same(left: Parsed, right: Parsed) -> None:
    assert list(left.raw) == list(right.raw)
    assert left.declared.tolist() == right.declared.tolist()
    assert left.spelling == right.spelling
    assert speaking(left).encode_batch(TEXTS) == speaking(right).encode_batch(TEXTS)


# llama and t5


def test_a_llama_file_equals_the_model_it_was_made_from(tmp_path: Path) -> None:
    source = packaged("mistral_common", "data/tokenizer.model.v1")
    proto = sentencepiece_proto(source.read_bytes())
    path = write(
        tmp_path / "m.gguf",
        "llama",
        [piece.piece for piece in proto.pieces],
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
        **model_fields(proto),
    )
    parsed = read_gguf(path)
    same(parsed, read_sentencepiece(source))
    assert parsed.format == "gguf"
    assert parsed.roles == {"bos": ("<s>",), "eos": ("</s>",), "unk": ("<unk>",)}


@pytest.mark.parametrize("strips", [False, True])
def test_a_t5_file_keeps_its_normaliser(tmp_path: Path, strips: bool) -> None:
    proto = unigram_proto(model_type="unigram", byte_fallback=False, remove_extra_whitespaces=strips)
    path = write(
        tmp_path / "m.gguf",
        "t5",
        [piece.piece for piece in proto.pieces],
        add_space_prefix=True,
        remove_extra_whitespaces=strips,
        precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap,
        **model_fields(proto),
    )
    same(read_gguf(path), parse_model_proto(proto))


def tiny_llama() -> tuple[list[str], list[float], list[int]]:
    tokens = ["<unk>", "<s>", *sorted(BYTE_PIECES), SPACE_MARK, "a", "b", "ab", SPACE_MARK + "a"]
    types = [2, 3, *[6] * 256, 1, 1, 1, 1, 1]
    return tokens, [0.0] * 258 + [-5.0, -6.0, -7.0, -1.0, -2.0], types


def test_user_defined_runs_of_spaces_are_matched_although_the_converter_unmarks_them(tmp_path: Path) -> None:
    tokens, scores, types = tiny_llama()
    path = write(
        tmp_path / "m.gguf",
        "llama",
        [*tokens, "   "],
        scores=[*scores, 0.0],
        token_type=[*types, PieceType.USER_DEFINED],
    )
    parsed = read_gguf(path)
    (ids,) = speaking(parsed).encode_batch(["a   b"])
    assert len(tokens) in ids
    assert parsed.declared[len(tokens)] == Declared.ADDED


def test_without_types_the_bytes_and_the_roles_are_known_and_a_warning_says_so(tmp_path: Path) -> None:
    tokens, scores, types = tiny_llama()
    path = write(tmp_path / "m.gguf", "llama", tokens, scores=scores, bos_token_id=1, unknown_token_id=0)
    parsed = read_gguf(path)
    typed = read_gguf(write(tmp_path / "t.gguf", "llama", tokens, scores=scores, token_type=types))
    assert parsed.declared.tolist() == typed.declared.tolist()
    assert parsed.spelling == Spelling((Replace(SPACE_MARK, " "), ByteFallback()))
    assert len(parsed.warnings) == 1
    assert "token types" in parsed.warnings[0]


def test_an_unknown_token_that_the_converter_made_a_control_does_no_harm(tmp_path: Path) -> None:
    tokens, scores, types = tiny_llama()
    path = write(tmp_path / "m.gguf", "llama", tokens, scores=scores, token_type=[3, *types[1:]], unknown_token_id=0)
    parsed = read_gguf(path)
    assert speaking(parsed).encode_batch(["aé"])[0][0] == tokens.index("a")
    assert parsed.roles["unk"] == ("<unk>",)


def test_an_empty_token_becomes_a_filler(tmp_path: Path) -> None:
    tokens, scores, types = tiny_llama()
    path = write(tmp_path / "m.gguf", "llama", [*tokens, ""], scores=[*scores, 0.0], token_type=[*types, 1])
    assert read_gguf(path).raw[len(tokens)] == f"[PAD{len(tokens)}]"


# gpt2


def test_a_byte_level_file_equals_the_tokenizer_json_it_was_made_from(tmp_path: Path) -> None:
    parsed = read_gguf(bpe_file(tmp_path / "m.gguf"))
    tokens, _, text = bpe()
    original = Tokenizer.from_str(text)
    texts = [text for text in TEXTS if "<think>" not in text]
    assert list(parsed.raw) == tokens
    assert parsed.spelling == Spelling((ByteLevel(),))
    assert speaking(parsed).encode_batch(texts) == [original.encode(text).ids for text in texts]
    assert parsed.roles == {"eos": ("<|end|>",)}
    assert parsed.format == "gguf"
    assert not parsed.warnings


def test_added_tokens_are_told_from_the_base_vocabulary_by_their_types(tmp_path: Path) -> None:
    parsed = read_gguf(bpe_file(tmp_path / "m.gguf"))
    assert parsed.declared[-2:].tolist() == [Declared.SPECIAL, Declared.ADDED]
    assert parsed.in_base[-3:].tolist() == [True, False, False]
    assert parsed.base_size == len(parsed.raw) - 2


def test_fillers_stay_raw_strings_of_the_base_vocabulary(tmp_path: Path) -> None:
    tokens = bpe()[0]
    filler = f"[PAD{len(tokens)}]"
    parsed = read_gguf(
        bpe_file(tmp_path / "m.gguf", tokens=[*tokens, filler], token_type=[*bpe_types(tokens), PieceType.UNUSED])
    )
    assert parsed.raw[-1] == filler
    assert parsed.declared[-1] == Declared.NORMAL


def test_without_a_split_pattern_gpt2s_is_taken_with_a_warning(tmp_path: Path) -> None:
    named, unnamed = (read_gguf(bpe_file(tmp_path / f"{pre}.gguf", pre=pre)) for pre in ("gpt-2", None))
    assert speaking(named).encode_batch(TEXTS) == speaking(unnamed).encode_batch(TEXTS)
    assert len(unnamed.warnings) == 1
    assert "GPT-2's" in unnamed.warnings[0]


def test_the_named_split_pattern_is_used(tmp_path: Path) -> None:
    tokens, merges, _ = bpe()
    changes = {"tokens": [*tokens, "12"], "merges": [*merges, "1 2"], "token_type": [*bpe_types(tokens), 1]}
    parsed = [read_gguf(bpe_file(tmp_path / f"{pre}.gguf", pre=pre, **changes)) for pre in ("gpt-2", "qwen2")]
    pieces = [[each.raw[number] for number in speaking(each).encode_batch(["a12"])[0]] for each in parsed]
    assert pieces == [["a", "12"], ["a", "1", "2"]]


def test_an_unknown_split_pattern_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="'no-such-split'"):
        read_gguf(bpe_file(tmp_path / "m.gguf", pre="no-such-split"))


def test_without_types_tokens_that_no_merge_makes_are_added(tmp_path: Path) -> None:
    parsed = read_gguf(bpe_file(tmp_path / "m.gguf", token_type=None))
    assert parsed.declared[-2:].tolist() == [Declared.SPECIAL, Declared.ADDED]
    assert parsed.base_size == len(parsed.raw) - 2


def test_an_unknown_token_of_a_byte_level_file_is_declared_unknown(tmp_path: Path) -> None:
    tokens = bpe()[0]
    types = [*bpe_types(tokens), PieceType.UNKNOWN]
    parsed = read_gguf(bpe_file(tmp_path / "m.gguf", tokens=[*tokens, "<unk>"], token_type=types))
    assert parsed.declared[-1] == Declared.UNKNOWN


def test_missing_merges_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="without merges"):
        read_gguf(bpe_file(tmp_path / "m.gguf", merges=None))


def test_a_broken_merge_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"merge 1 of m\.gguf is 'abc'"):
        read_gguf(bpe_file(tmp_path / "m.gguf", merges=[bpe()[1][0], "abc"]))


# bert


def test_a_bert_file_equals_the_tokenizer_json_it_was_made_from(tmp_path: Path) -> None:
    tokens, text = wordpiece()
    parsed = read_gguf(bert_file(tmp_path / "m.gguf", tokens))
    original = Tokenizer.from_str(text)
    texts = ["etaoin shrdlu", "Don't! [SEP", "été 漢字", "zzz☃"]
    assert list(parsed.raw) == tokens
    assert parsed.spelling == Spelling((WordPieces("##"),))
    assert speaking(parsed).encode_batch(texts) == [original.encode(text).ids for text in texts]
    assert parsed.roles == {"bos": ("[CLS]",), "sep": ("[SEP]",), "unk": ("[UNK]",), "pad": ("[PAD]",)}


def test_brackets_that_an_older_converter_left_unmarked_are_kept(tmp_path: Path) -> None:
    tokens = wordpiece()[0]
    written = [text if text.startswith("[") and text.endswith("]") else phantom(text) for text in tokens]
    path = write(tmp_path / "m.gguf", "bert", written, unknown_token_id=1, bos_token_id=2)
    assert list(read_gguf(path).raw) == tokens


def test_pieces_of_the_mark_itself_come_back(tmp_path: Path) -> None:
    tokens = ["[UNK]", SPACE_MARK, "##" + SPACE_MARK, "a", "##a"]
    path = write(tmp_path / "m.gguf", "bert", ["[UNK]", *map(phantom, tokens[1:])], unknown_token_id=0)
    assert list(read_gguf(path).raw) == tokens


@pytest.mark.parametrize(
    ("pieces", "stated", "ids"),
    [(["ab"], None, [1]), (["ab", "Ab"], None, [2]), (["ab", "Ab"], True, [1]), (["ab"], False, [0])],
)
def test_lower_casing_is_stated_or_seen_in_the_pieces(
    tmp_path: Path, pieces: list[str], stated: bool | None, ids: list[int]
) -> None:
    stated_fields = {} if stated is None else {"normalizer_lowercase": stated}
    path = write(tmp_path / "m.gguf", "bert", ["[UNK]", *map(phantom, pieces)], unknown_token_id=0, **stated_fields)
    assert speaking(read_gguf(path)).encode_batch(["Ab"]) == [ids]


def test_word_pieces_without_an_unknown_token_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="unknown_token_id"):
        read_gguf(write(tmp_path / "m.gguf", "bert", [phantom("ab")]))


# Roles and width


def test_roles_outside_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    parsed = read_gguf(bpe_file(tmp_path / "m.gguf", bos_token_id=10**6, fim_pre_token_id=len(bpe()[0]) - 1))
    assert parsed.roles == {"eos": ("<|end|>",), "fim_prefix": ("<think>",)}


@pytest.mark.parametrize(
    ("tensors", "arch", "width"),
    [
        ({"token_embd.weight": (610, 4)}, {"vocab_size": 700}, 610),
        ({"token_embd.weight": (610, 4), "output.weight": (640, 4)}, {}, 640),
        ({}, {"vocab_size": 700}, 700),
        ({}, {}, None),
    ],
)
def test_the_width_is_the_heads_rows_else_the_stated_size(
    tmp_path: Path, tensors: dict[str, tuple[int, int]], arch: dict[str, int], width: int | None
) -> None:
    assert read_gguf(bpe_file(tmp_path / "m.gguf", tensors=tensors, arch=arch)).width == width


# The header


def test_the_header_equals_what_the_gguf_package_reads(tmp_path: Path) -> None:
    path = bpe_file(tmp_path / "m.gguf", tensors={"token_embd.weight": (61, 4)}, add_bos_token=True)
    header, peer = read_header(path), gguf.GGUFReader(path)
    stored = {key: field.contents() for key, field in peer.fields.items() if not key.startswith("GGUF.")}
    assert stored == {
        key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in header.metadata.items()
    }
    assert {tensor.name: tuple(tensor.shape.tolist()) for tensor in peer.tensors} == header.shapes


def test_a_big_endian_file_reads_the_same(tmp_path: Path) -> None:
    paths = []
    for endian in gguf.GGUFEndian:
        writer = gguf.GGUFWriter(tmp_path / f"{endian.name}.gguf", "llama", endianess=endian)
        writer.add_token_list(["a", "é"])
        writer.add_token_scores([1.5, -2.0])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        paths.append(tmp_path / f"{endian.name}.gguf")
    little, big = (read_header(path).metadata for path in paths)
    assert little["tokenizer.ggml.tokens"] == big["tokenizer.ggml.tokens"] == ["a", "é"]
    assert big["tokenizer.ggml.scores"].tolist() == [1.5, -2.0]


def test_a_large_vocabulary_is_read_without_a_python_object_per_part(tmp_path: Path) -> None:
    tokens = [f"token{number}" for number in range(100_000)]
    path = write(tmp_path / "m.gguf", "gpt2", tokens, merges=[f"a{number} b" for number in range(100_000)])
    began = time.process_time()
    header = read_header(path)
    assert time.process_time() - began < 2  # measured: 0.1 s; a reader with arrays per element needs 10
    assert header.metadata["tokenizer.ggml.tokens"] == tokens


# Refusals


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read"):
        read_gguf(tmp_path / "absent.gguf")


@pytest.mark.parametrize("data", [b"", b"GG", b"PK\x03\x04 not this"])
def test_a_file_without_the_magic_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(SourceError, match="no GGUF file"):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("version", [1, 99])
def test_another_version_is_refused(tmp_path: Path, version: int) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + version.to_bytes(4, "little") + bytes(64))
    with pytest.raises(SourceError, match=f"version {version}"):
        read_gguf(tmp_path / "m.gguf")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_refused_wherever_it_is_cut(tmp_path: Path, share: float) -> None:
    whole = tmp_path / "whole.gguf"
    if not whole.exists():
        bpe_file(whole)
    data = whole.read_bytes().rstrip(b"\0")
    (tmp_path / "m.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SourceError):
        read_gguf(tmp_path / "m.gguf")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(4, 600), byte=st.integers(0, 255))
def test_a_damaged_header_never_ends_in_another_error(tmp_path: Path, position: int, byte: int) -> None:
    whole = tmp_path / "whole.gguf"
    if not whole.exists():
        bpe_file(whole, tensors={"token_embd.weight": (61, 4)})
    data = bytearray(whole.read_bytes())
    data[position] = byte
    (tmp_path / "m.gguf").write_bytes(data)
    with contextlib.suppress(SourceError, VocabularyError):
        read_gguf(tmp_path / "m.gguf")


def test_a_file_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no tokenizer"):
        read_gguf(write(tmp_path / "m.gguf", None, None))


@pytest.mark.parametrize("model", ["rwkv", "plamo2", "no_vocab"])
def test_another_tokenizer_type_is_refused_by_name(tmp_path: Path, model: str) -> None:
    with pytest.raises(SourceError, match=rf"'{model}'.*gpt2, llama, t5, bert"):
        read_gguf(write(tmp_path / "m.gguf", model, ["a"]))


def test_missing_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="no list of tokens"):
        read_gguf(write(tmp_path / "m.gguf", "llama", None, scores=[0.0]))


def test_lengths_that_disagree_are_refused(tmp_path: Path) -> None:
    tokens, scores, types = tiny_llama()
    with pytest.raises(VocabularyError, match="263 tokens but 262 token types"):
        read_gguf(write(tmp_path / "t.gguf", "llama", tokens, scores=scores, token_type=types[1:]))
    with pytest.raises(VocabularyError, match="263 tokens but 262 of the scores"):
        read_gguf(write(tmp_path / "s.gguf", "llama", tokens, scores=scores[1:], token_type=types))
    with pytest.raises(VocabularyError, match="none of the scores"):
        read_gguf(write(tmp_path / "n.gguf", "llama", tokens, token_type=types))


def test_a_string_that_stands_twice_names_two_ids_of_which_text_reaches_the_first(tmp_path: Path) -> None:
    tokens, scores, types = tiny_llama()
    at = next(i for i, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind == 1 and text.isalpha())
    again = write(tmp_path / "m.gguf", "llama", [*tokens, tokens[at]], scores=[*scores, 0.0], token_type=[*types, 1])
    parsed = read_gguf(again)
    assert parsed.raw[at] == parsed.raw[len(tokens)] == tokens[at]
    ids = parsed.make_encoder(np.ones(len(tokens) + 1, dtype=np.bool_)).encode_batch([tokens[at]])
    assert len(tokens) not in ids[0]
    assert ids[0]


def test_of_several_unknown_pieces_the_stated_one_is_unknown_and_the_rest_are_special(tmp_path: Path) -> None:
    tokens, scores, types = tiny_llama()
    names = [*tokens, "<spare>"]
    path = write(tmp_path / "m.gguf", "llama", names, scores=[*scores, 0.0], token_type=[*types, 2])
    declared = read_gguf(path).declared
    assert declared.tolist().count(Declared.UNKNOWN) == 1
    assert declared[len(tokens)] in (Declared.SPECIAL, Declared.UNKNOWN)


def test_a_token_type_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"token 1 of m\.gguf has the type 9"):
        read_gguf(write(tmp_path / "m.gguf", "llama", ["a", "b"], scores=[0.0] * 2, token_type=[1, 9]))


@pytest.mark.parametrize("key", ["pre", "add_space_prefix", "normalizer.lowercase"])
@pytest.mark.parametrize("value", [[1, 2], ["a", "b"], [[1], [2]]])
def test_an_array_where_one_value_belongs_is_refused(tmp_path: Path, key: str, value: list[Any]) -> None:
    with pytest.raises(SourceError, match=rf"tokenizer\.ggml\.{key} of a wrong type: expected"):
        read_gguf(bpe_file(tmp_path / "m.gguf", **{key: value}))
