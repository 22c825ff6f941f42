"""SentencePiece models: what the file declares, and text encoded as in mid-sequence."""

from __future__ import annotations

import importlib
import importlib.util
import io
import random
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtoken_align.errors import SourceError, VocabularyError
from xtoken_align.readers.parsed import Declared, Encoder, Parsed
from xtoken_align.readers.sentencepiece_model import (
    SPACE_MARK,
    PieceType,
    looks_like_sentencepiece,
    model_proto_class,
    parse_model_proto,
    read_sentencepiece,
)
from xtoken_align.readers.spelling import ByteFallback, Replace, Spelling

spm = pytest.importorskip("sentencepiece")

SCRIPTS = ("etaoinshrdlu", "éüßñ", "дтоеани", "αβγδ", "漢字仮名", "0123456789", ".,!?-[]<>/", "🙂🎉")


def packaged(package: str, file: str) -> Path:
    """A file inside an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(found.submodule_search_locations[0]) / file


def mixed_text(seed: int, words: int) -> str:
    rng = random.Random(seed)
    chosen = ("".join(rng.choices(rng.choice(SCRIPTS), k=rng.randint(1, 6))) for _ in range(words))
    return " ".join(chosen)


@cache
def trained(**options: Any) -> bytes:
    """A small model; `options` are the trainer's."""
    stream = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([mixed_text(seed, 12) for seed in range(400)]),
        model_writer=stream,
        **{
            "vocab_size": 420,
            "hard_vocab_limit": False,
            "character_coverage": 1.0,
            "minloglevel": 2,
            "num_threads": 1,
            **options,
        },
    )
    return stream.getvalue()


def proto_of(data: bytes) -> Any:
    proto = model_proto_class()()
    proto.ParseFromString(data)
    return proto


def speaking(parsed: Parsed, *silent: str) -> Encoder:
    """The encoder under the mask that a vocabulary without odd tokens gives it."""
    mask = ~np.isin(parsed.declared, [Declared.SPECIAL, Declared.UNKNOWN, Declared.ABSENT])
    mask[[parsed.raw.index(text) for text in silent]] = False
    return parsed.make_encoder(mask)


def surface(token: str | None, spelling: Spelling) -> bytes:
    """The slow reading of the two steps that these models have."""
    assert token is not None
    for step in spelling.steps:
        if isinstance(step, Replace):
            token = token.replace(step.pattern, step.content)
        elif isinstance(step, ByteFallback) and (escape := re.fullmatch("<0x([0-9A-F]{2})>", token)):
            return bytes([int(escape[1], 16)])
    return token.encode()


def surfaces(parsed: Parsed, ids: list[int]) -> bytes:
    return b"".join(surface(parsed.raw[token_id], parsed.spelling) for token_id in ids)


def pieces(parsed: Parsed, ids: list[int]) -> list[str | None]:
    return [parsed.raw[token_id] for token_id in ids]


@pytest.fixture(params=["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def mistral(request: pytest.FixtureRequest) -> Path:
    return packaged("mistral_common", f"data/{request.param}")


@pytest.fixture(scope="module")
def j2() -> Path:
    return packaged("ai21_tokenizer", "resources/j2-tokenizer/j2-tokenizer.model")


# What the file declares


def test_mistral_declares_bytes_controls_and_roles() -> None:
    parsed = read_sentencepiece(packaged("mistral_common", "data/tokenizer.model.v1"))
    counts = {
        Declared(value): int(count)
        for value, count in zip(*np.unique(parsed.declared, return_counts=True), strict=True)
    }
    assert counts == {Declared.NORMAL: 31741, Declared.BYTE: 256, Declared.SPECIAL: 2, Declared.UNKNOWN: 1}
    assert parsed.roles == {"bos": ("<s>",), "eos": ("</s>",), "unk": ("<unk>",)}
    assert parsed.spelling == Spelling((Replace(SPACE_MARK, " "), ByteFallback()))
    assert parsed.base_size == 32000
    assert parsed.in_base.all()
    assert parsed.format == "sentencepiece"


def test_user_defined_pieces_are_added_tokens_of_the_base_vocabulary() -> None:
    parsed = parse_model_proto(proto_of(trained(model_type="bpe", user_defined_symbols="<sep>,[X]")))
    assert [parsed.declared[parsed.raw.index(text)] for text in ("<sep>", "[X]")] == [Declared.ADDED] * 2
    assert parsed.in_base.all()


def test_a_role_whose_id_is_an_ordinary_piece_is_left_out() -> None:
    proto = proto_of(trained(model_type="bpe"))
    proto.trainer_spec.bos_id = 10
    proto.trainer_spec.pad_id = len(proto.pieces)
    assert set(parse_model_proto(proto).roles) == {"eos", "unk"}


def test_a_user_defined_bos_keeps_its_role() -> None:
    parsed = parse_model_proto(proto_of(trained(model_type="bpe", user_defined_symbols="<s>")))
    assert parsed.roles["bos"] == ("<s>",)


def test_a_model_that_writes_spaces_as_spaces_replaces_nothing() -> None:
    proto = proto_of(trained(model_type="unigram"))
    proto.normalizer_spec.escape_whitespaces = False
    assert parse_model_proto(proto).spelling == Spelling()


# Encoding


@pytest.mark.parametrize("head", ["x", "é", "7"])
def test_text_is_encoded_as_the_library_encodes_it_in_mid_sequence(mistral: Path, head: str) -> None:
    # "\n" never merges with a neighbour in these vocabularies, so what follows it is encoded as in mid-sequence.
    parsed = read_sentencepiece(mistral)
    unpatched = spm.SentencePieceProcessor(model_file=str(mistral))
    texts = [head + mixed_text(seed, 9) for seed in range(200)] + [" " + mixed_text(seed, 5) for seed in range(50)]
    lead = unpatched.encode("\n")
    whole = unpatched.encode(["\n" + text for text in texts], out_type=int)
    assert all(ids[: len(lead)] == lead for ids in whole)
    assert speaking(parsed).encode_batch(texts) == [ids[len(lead) :] for ids in whole]


def test_a_leading_space_is_what_the_dummy_prefix_adds(mistral: Path) -> None:
    parsed = read_sentencepiece(mistral)
    unpatched = spm.SentencePieceProcessor(model_file=str(mistral))
    texts = [mixed_text(seed, 9) for seed in range(200)]
    assert speaking(parsed).encode_batch([" " + text for text in texts]) == unpatched.encode(texts, out_type=int)


def test_a_model_without_dummy_prefix_is_encoded_as_the_library_does(j2: Path) -> None:
    parsed = read_sentencepiece(j2)
    unpatched = spm.SentencePieceProcessor(model_file=str(j2))
    texts = [mixed_text(seed, 9) for seed in range(200)] + [" a", "  a ", "\n", "", "ﬁ"]
    assert speaking(parsed).encode_batch(texts) == unpatched.encode(texts, out_type=int)


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<0x41>", "a<0x0A>b<s>"])
def test_literal_markers_are_ordinary_text(mistral: Path, text: str) -> None:
    parsed = read_sentencepiece(mistral)
    (ids,) = speaking(parsed).encode_batch([text])
    assert set(parsed.declared[ids]) == {Declared.NORMAL}
    assert surfaces(parsed, ids) == text.encode()


@pytest.mark.parametrize("text", ["<|pad|>", "<|startoftext|>", "<0x41>"])
def test_literal_markers_are_ordinary_text_in_a_unigram_model(j2: Path, text: str) -> None:
    parsed = read_sentencepiece(j2)
    (ids,) = speaking(parsed).encode_batch([text])
    assert Declared.SPECIAL not in parsed.declared[ids]
    assert Declared.BYTE not in parsed.declared[ids]
    assert surfaces(parsed, ids) == text.encode()


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_piece_that_must_not_be_spoken_comes_out_as_its_letters(model_type: str) -> None:
    data = trained(model_type=model_type, user_defined_symbols="<sep>,[X]", byte_fallback=True)
    parsed = parse_model_proto(proto_of(data))
    sep, brackets = parsed.raw.index("<sep>"), parsed.raw.index("[X]")
    spoken, silenced = (speaking(parsed, *silent).encode_batch(["a<sep>[X]"])[0] for silent in ((), ("<sep>",)))
    assert sep in spoken
    assert brackets in spoken
    assert sep not in silenced
    assert brackets in silenced
    assert surfaces(parsed, silenced[:-1]) == b"a<sep>"


def test_silencing_a_piece_leaves_the_parsed_model_alone() -> None:
    proto = proto_of(trained(model_type="bpe", user_defined_symbols="<sep>"))
    before = proto.SerializeToString(deterministic=True)
    speaking(parse_model_proto(proto), "<sep>").encode_batch(["a<sep>"])
    assert proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "word", "char"])
@pytest.mark.parametrize("suffix", [False, True])
@pytest.mark.parametrize("strips", [False, True])
def test_no_model_type_adds_a_dummy_prefix_or_suffix(model_type: str, suffix: bool, strips: bool) -> None:
    data = trained(
        model_type=model_type,
        treat_whitespace_as_suffix=suffix,
        remove_extra_whitespaces=strips,
        normalization_rule_name="identity",
    )
    parsed = parse_model_proto(proto_of(data))
    texts = ["eta shr", " eta", "e"]
    rows = speaking(parsed).encode_batch(texts)
    unknown = parsed.raw.index("<unk>")
    assert [surfaces(parsed, row) for row in rows if unknown not in row] == [
        text.encode() for text, row in zip(texts, rows, strict=True) if unknown not in row
    ]


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_where_outer_spaces_are_stripped_the_leading_ones_count_as_one(rule: str) -> None:
    data = trained(model_type="unigram", normalization_rule_name=rule, byte_fallback=True)
    parsed = parse_model_proto(proto_of(data))
    unpatched = spm.SentencePieceProcessor(model_proto=data)
    prefixed = unpatched.encode("eta shr")
    rows = speaking(parsed).encode_batch([" eta shr", "   eta shr", "eta shr", " ", "    ", ""])
    assert rows[0] == rows[1] == prefixed
    assert surfaces(parsed, rows[2]) == b"eta shr"
    assert [pieces(parsed, row) for row in rows[3:]] == [[SPACE_MARK], [SPACE_MARK], []]


def test_white_space_that_the_normaliser_turns_into_a_space_counts_as_one() -> None:
    parsed = parse_model_proto(proto_of(trained(model_type="unigram", byte_fallback=True)))
    encoder = speaking(parsed)
    rows = encoder.encode_batch([" eta", "\neta", "\u00a0\teta", "\u3000eta"])
    assert rows == [rows[0]] * 4


def test_white_space_that_the_normaliser_keeps_is_kept() -> None:
    parsed = parse_model_proto(
        proto_of(trained(model_type="unigram", byte_fallback=True, normalization_rule_name="identity"))
    )
    assert surfaces(parsed, speaking(parsed).encode_batch(["\neta"])[0]) == b"\neta"


def test_what_cannot_be_spelled_is_unknown() -> None:
    parsed = parse_model_proto(proto_of(trained(model_type="bpe")))
    (ids,) = speaking(parsed).encode_batch(["e\u0e01e"])
    assert parsed.raw.index("<unk>") in ids


def test_a_model_without_unknown_piece_spells_nothing_rather_than_id_zero() -> None:
    proto = proto_of(trained(model_type="bpe"))
    for piece in proto.pieces:
        if piece.type == PieceType.UNKNOWN:
            piece.type = PieceType.CONTROL
    encoder = speaking(parse_model_proto(proto))
    spelled, unspelled = encoder.encode_batch(["eta", "e\u0e01e"])
    assert spelled
    assert unspelled == []


def test_no_texts_give_no_rows_and_lone_surrogates_give_some() -> None:
    encoder = speaking(parse_model_proto(proto_of(trained(model_type="bpe", byte_fallback=True))))
    assert encoder.encode_batch([]) == []
    assert encoder.encode_batch(["", "e\ud800"])[0] == []
    assert encoder.encode_bytes(b"\xff") is None


MODELS = [
    {"model_type": model_type, "byte_fallback": fallback, "remove_extra_whitespaces": False, **extra}
    for model_type in ("bpe", "unigram")
    for fallback in (False, True)
    for extra in ({}, {"user_defined_symbols": "<sep>,[X]"})
]


@pytest.mark.parametrize("options", MODELS, ids=lambda options: "-".join(map(str, options.values())))
@given(text=st.text(alphabet="".join(SCRIPTS) + "  \n<sep>[X]", max_size=30) | st.text(max_size=12))
def test_surfaces_spell_the_text_where_nothing_normalises_it(options: dict[str, Any], text: str) -> None:
    parsed = parse_model_proto(proto_of(trained(normalization_rule_name="identity", **options)))
    (ids,) = speaking(parsed).encode_batch([text])
    if SPACE_MARK not in text and parsed.raw.index("<unk>") not in ids:
        assert surfaces(parsed, ids) == text.encode()


@given(text=st.text(alphabet="".join(SCRIPTS) + "  \n", min_size=1, max_size=30))
def test_where_spaces_are_removed_surfaces_spell_what_is_left(text: str) -> None:
    parsed = parse_model_proto(
        proto_of(trained(model_type="unigram", byte_fallback=True, normalization_rule_name="identity"))
    )
    (ids,) = speaking(parsed).encode_batch([text])
    lead = " " if text.startswith(" ") else ""
    assert surfaces(parsed, ids).decode() == lead + re.sub(" +", " ", text.strip(" "))


# Sniffing


def test_models_are_recognised_by_their_first_bytes(mistral: Path, j2: Path) -> None:
    for head in (mistral.read_bytes()[:4096], j2.read_bytes()[:4096], trained(model_type="bpe")[:64]):
        assert looks_like_sentencepiece(head)


@pytest.mark.parametrize(
    "head",
    [b"", b"\n", b"\n\n\n\n\n", b"{}", b"GGUF\x03", b"IQ== 0\nIg== 1\n", b"\n\x02\n\x00", b"\n" * 4096,
     b"\n\x0e\n\x05<unk", bytes(range(256)), b"\n\x06\n\x04\xff\xff\xff\xff"],
)  # fmt: skip
def test_other_files_are_not(head: bytes) -> None:
    assert not looks_like_sentencepiece(head)


@given(st.binary(max_size=64))
def test_sniffing_never_fails(head: bytes) -> None:
    assert looks_like_sentencepiece(head) in (True, False)


# Refusals


def written(folder: Path, data: bytes) -> Path:
    file = folder / "tokenizer.model"
    file.write_bytes(data)
    return file


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read"):
        read_sentencepiece(tmp_path / "absent.model")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is empty"):
        read_sentencepiece(written(tmp_path, b""))


def test_a_file_that_is_no_protobuf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no SentencePiece model"):
        read_sentencepiece(written(tmp_path, b"this is prose, not a model" * 10))


def test_a_piece_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    data = trained()
    at = data.index("▁".encode())
    with pytest.raises(
        VocabularyError, match=r"piece \d+ of tokenizer\.model is b'\\xff.*: expected a string in UTF-8"
    ):
        read_sentencepiece(written(tmp_path, data[:at] + b"\xff" + data[at + 1 :]))


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.9, 0.97])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    data = trained(model_type="unigram", normalization_rule_name="identity")
    with pytest.raises(SourceError, match="cut short"):
        read_sentencepiece(written(tmp_path, data[: int(len(data) * share)]))


def test_a_file_cut_between_two_pieces_is_refused(tmp_path: Path) -> None:
    proto = proto_of(trained(model_type="bpe"))
    for part in ("trainer_spec", "normalizer_spec"):
        proto.ClearField(part)
    with pytest.raises(SourceError, match="ends with a trainer_spec"):
        read_sentencepiece(written(tmp_path, proto.SerializeToString()))


def test_a_model_without_pieces_is_refused(tmp_path: Path) -> None:
    proto = proto_of(trained(model_type="bpe"))
    del proto.pieces[:]
    with pytest.raises(VocabularyError, match="no pieces"):
        read_sentencepiece(written(tmp_path, proto.SerializeToString()))
    with pytest.raises(VocabularyError, match="empty vocabulary"):
        parse_model_proto(proto)


def test_a_piece_that_stands_twice_is_refused_with_both_ids() -> None:
    proto = proto_of(trained(model_type="bpe"))
    proto.pieces[50].piece = proto.pieces[40].piece
    with pytest.raises(VocabularyError, match="ids 40 and 50"):
        parse_model_proto(proto)


def test_an_empty_piece_is_refused() -> None:
    proto = proto_of(trained(model_type="bpe"))
    proto.pieces[50].piece = ""
    with pytest.raises(VocabularyError, match="piece 50"):
        parse_model_proto(proto)


def test_incomplete_bytes_are_refused() -> None:
    proto = proto_of(trained(model_type="bpe", byte_fallback=True))
    next(piece for piece in proto.pieces if piece.type == PieceType.BYTE).type = PieceType.NORMAL
    with pytest.raises(VocabularyError, match="255 byte pieces"):
        parse_model_proto(proto)


def test_bytes_without_fallback_are_refused() -> None:
    proto = proto_of(trained(model_type="bpe", byte_fallback=True))
    proto.trainer_spec.byte_fallback = False
    with pytest.raises(VocabularyError, match="byte_fallback is off"):
        parse_model_proto(proto)


def test_two_unknown_pieces_are_refused() -> None:
    proto = proto_of(trained(model_type="bpe"))
    proto.pieces[50].type = PieceType.UNKNOWN
    with pytest.raises(VocabularyError, match="several pieces of the type unknown"):
        parse_model_proto(proto)


def test_what_only_the_library_can_judge_is_translated_when_it_loads() -> None:
    proto = proto_of(trained(model_type="bpe"))
    proto.normalizer_spec.precompiled_charsmap = b"damage"
    with pytest.raises(VocabularyError, match="sentencepiece cannot load"):
        speaking(parse_model_proto(proto)).encode_batch(["e"])


def test_another_copy_of_the_schema_in_the_process_does_no_harm(mistral: Path) -> None:
    # Protobuf refuses to register a second schema of one name; transformers has its own copy.
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    script = (
        "import sys; from pathlib import Path; from transformers.utils import sentencepiece_model_pb2_new\n"
        "from xtoken_align.readers.sentencepiece_model import read_sentencepiece\n"
        "import numpy as np; parsed = read_sentencepiece(Path(sys.argv[1]))\n"
        "print(parsed.base_size, parsed.make_encoder(np.ones(parsed.base_size, bool)).encode_batch(['a']))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(mistral)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("32")
