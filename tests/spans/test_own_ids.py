"""Rows for training have the ids that `transformers` gives: every family and every real vocabulary, texts and chats.

The number of generated cases for each tokenizer stands in XTOKEN_ALIGN_TEST_CASES. A thorough run takes 1,000.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import ALPHABET, FAMILIES_AND_WORDY, GAPS, SPELLED_SPECIALS, WORDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers

from xtoken_align import Vocab, align_chats, align_texts, read_vocab
from xtoken_align.readers.sentencepiece_model import model_proto_class
from xtoken_align.sources.locate import package_file
from xtoken_align.sources.presets import Preset, presets

transformers = pytest.importorskip("transformers")

CASES = int(os.environ.get("XTOKEN_ALIGN_TEST_CASES", "20"))
cases = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)

MORE_WORDS = (
    *(
        "hello",
        " the",
        "Hello world",
        "  ",
        "\n\n\n",
        "\t\t",
        " \n \n",
        "\r\n",
        "    return x",
        "12345",
        "3.14",
        "1,000",
    ),
    *(
        "don't",
        "IT'S",
        "we'LL",
        "é",
        "e\u0301",
        "Å",
        "ﬁ",
        "\u00a0",
        "\u200b",
        "😊",
        "👩‍👩‍👧",
        "<0x0A>",
        "▁",
        "▁▁the",
        "Ġthe",
        "Ċ",
    ),
    *(
        "你好",
        "こんにちは",
        "สวัสดี",
        "नमस्ते",
        "\ufffd",
        "\ufeff",
        "\x00",
        "\x7f",
        "https://a.b/c?d=e&f",
        "x=[1,2];",
        "//",
        "***",
        "＿",
    ),
)


def texts_with(tokens: list[str]) -> st.SearchStrategy[str]:
    """Texts of many scripts, white space of all kinds, and a tokenizer's own added tokens."""
    parts = [
        st.sampled_from(WORDS),
        st.sampled_from(MORE_WORDS),
        st.sampled_from(GAPS),
        st.text(st.sampled_from(ALPHABET), max_size=4),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
        st.sampled_from([*SPELLED_SPECIALS, *tokens]),
    ]
    return st.lists(st.one_of(parts), max_size=10).map("".join)


def template_of(vocab: Vocab) -> str:
    """A template that puts control tokens around and between messages, where the vocabulary has some."""
    begin, end = (sorted(vocab.controls)[:1] or [""])[0], (sorted(vocab.controls)[-1:] or [""])[0]
    between = "" if not vocab.controls else sorted(vocab.controls)[len(vocab.controls) // 2]
    return (
        "{% for m in messages %}" + begin + "{{ m.role }}" + between + "\n{{ m.content }}"
        "{% if m.role == 'assistant' %}" + end + "\n{% endif %}{% endfor %}"
    )


def rows_of(spans: Any) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(spans.student_ids, spans.student_mask, strict=True)]


def check_ids(vocab: Vocab, original: Any, *, literals: bool = True) -> None:
    """Compares ids of generated texts and of a chat of them with those of a tokenizer of `transformers`.

    Args:
        vocab: the vocabulary.
        original: the tokenizer.
        literals: whether texts have added tokens that are no control tokens.
    """
    controls, template = vocab.controls, template_of(vocab)
    literal = sorted(vocab.row_tokens.literal) if literals and vocab.row_tokens is not None else []
    listed = [*literal[:: max(len(literal) // 40, 1)], *sorted(controls)[:: max(len(controls) // 40, 1)]]

    @cases
    @given(st.lists(texts_with(listed), min_size=1, max_size=4), st.booleans())
    def holds(texts: list[str], parse: bool) -> None:
        parse = parse or any(control in text for text in texts for control in controls)
        spans = align_texts(texts, student=vocab, teacher=vocab, parse_special=parse)
        for text, ids in zip(texts, rows_of(spans), strict=True):
            assert ids == original(text, add_special_tokens=False)["input_ids"], text
        chat = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
        templates = {"student_template": template, "teacher_template": template}
        spans = align_chats([chat], student=vocab, teacher=vocab, parse_special=parse, **templates)
        expected = original.apply_chat_template(chat, chat_template=template, tokenize=True, return_dict=False)
        assert rows_of(spans) == [expected]

    holds()


@pytest.mark.parametrize("name", FAMILIES_AND_WORDY)
def test_a_familys_rows_have_the_ids_of_transformers(name: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(FAMILIES_AND_WORDY[name].data()), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    check_ids(read_vocab(tmp_path), transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path))


# Real ones


def with_added(tokenizer: Tokenizer, tokens: list[tuple[int, str, bool]], normalizer: str | None = None) -> Tokenizer:
    """A converted file with its family's added tokens, under their own ids."""
    data = json.loads(tokenizer.to_str())
    vocab = data["model"]["vocab"]
    # `tokenizers` numbers added tokens from the vocabulary's size on: a hole would move them.
    vocab |= {text: token_id for token_id, text, _ in tokens}
    vocab |= {f"\uffff{token_id}": token_id for token_id in {*range(max(vocab.values()))} - {*vocab.values()}}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    data["added_tokens"] = [{"id": at, "content": text, "special": special, **plain} for at, text, special in tokens]
    data["normalizer"] = {"type": normalizer} if normalizer else None
    return Tokenizer.from_str(json.dumps(data))


def of_ranks(preset: Preset, path: Path, folder: Path) -> Tokenizer:
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    if path.suffix == ".gz":
        path = folder / path.stem
        path.write_bytes(gzip.decompress(package_file(preset.locations[0]).read_bytes()))
    # Of tiktoken's `{1,3}+` the regular expressions of `tokenizers` make any number of times one to three.
    pattern = (preset.pattern or "").replace("{1,3}+", "{1,3}")
    converted = convert.TikTokenConverter(str(path), pattern=pattern).converted()
    return with_added(converted, [(token.id, token.text, token.special) for token in preset.added], preset.normalizer)


def of_pieces(path: Path) -> Tokenizer:
    """What Llama's and Mistral's published files make of a SentencePiece model: `legacy`, with the pieces' scores."""
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    proto = model_proto_class()()
    proto.ParseFromString(path.read_bytes())
    pieces = {piece.piece: token_id for token_id, piece in enumerate(proto.pieces)}
    merges = convert.generate_merges(pieces, {piece.piece: piece.score for piece in proto.pieces})
    tokenizer = Tokenizer(models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    added = [(piece.piece, piece.type == 3) for piece in proto.pieces if piece.type in (2, 3, 4)]
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=special) for text, special in added])
    return tokenizer


THOROUGH = "XTOKEN_ALIGN_TEST_CASES" in os.environ
REAL = (
    "deepseek",
    "llama-3",
    "llama-4",
    "qwen3",
    "qwen3.6",
    "cl100k",
    "o200k",
    "gpt-oss",
    "mistral-tekken",
    "mistral-tekken-240718",
    "mistral-v1",
    "mistral-v3",
)


@pytest.mark.parametrize("name", REAL if THOROUGH else REAL[:2])
def test_a_real_vocabularys_rows_have_the_ids_of_transformers(
    name: str, real: Callable[[str], Vocab], tmp_path: Path
) -> None:
    vocab, preset = real(name), presets()[name]
    path = package_file(preset.locations[0])
    if preset.format == "tiktoken":
        tokenizer = of_ranks(preset, path, tmp_path)
    elif preset.format == "tekken":
        convert = pytest.importorskip("transformers.integrations.mistral.tokenizer")
        tokenizer = convert.MistralConverter(str(path)).converted()
    elif preset.format == "sentencepiece":
        tokenizer = of_pieces(path)
        (tmp_path / "tokenizer.model").write_bytes(path.read_bytes())
        (tmp_path / "tokenizer_config.json").write_text('{"legacy": true}')
        vocab = read_vocab(tmp_path)
    else:
        tokenizer = Tokenizer.from_file(str(path))
    # SentencePiece puts its prefix before user-defined pieces too, and `tokenizers` not before added tokens.
    literals = preset.format != "sentencepiece"
    check_ids(vocab, transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer), literals=literals)
