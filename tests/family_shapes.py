"""`tokenizer.json` files of every family's shape, with small vocabularies trained on text of many scripts.

Each shape is rebuilt from what the published files of a family have in common.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

WORDS = (
    *("the", "cat", "sat", "Hello", "World", "naïve", "cafe\u0301", "Größe", "don't", "x86", "200", "2024", "7"),
    *("привет", "мир", "Ёлка", "مرحبا", "عالم", "你好", "世界", "中文", "日本語"),
    *("テキスト", "ひらがな", "한국어", "텍스트"),
    *("👩‍👩‍👧", "🏳️‍🌈", "😀", "ﬁn", "½", "Å", "def", "f(x):", "return", "+=", "!=", "{}", "[0]", "<div>", "...", "?!"),
)
GAPS = (" ", " ", " ", "  ", "    ", "\n", "\n\n", "\t", "")
ASCII = frozenset(map(chr, range(0x20, 0x7F)))
# Without the combining accent: before it any letter would become one that no vocabulary here has.
ALPHABET = sorted((ASCII | {character for word in (*WORDS, *GAPS) for character in word}) - {"\u0301"})


@cache
def corpus() -> tuple[str, ...]:
    rng = random.Random(5)
    lines = ("".join(rng.choice(WORDS) + rng.choice(GAPS) for _ in range(12)) for _ in range(150))
    # Every character alone, so that each is in every vocabulary, at the start of a word and inside one.
    return (*lines, *(f"{character}{character} {character}" for character in ALPHABET))


def next_id(data: dict[str, Any]) -> int:
    """The first id that no token has."""
    vocab = data["model"]["vocab"]
    base = range(len(vocab)) if isinstance(vocab, list) else vocab.values()
    return max([*base, *(entry["id"] for entry in data["added_tokens"])]) + 1


def id_in(data: dict[str, Any], text: str) -> int | None:
    """A base token's id."""
    vocab = data["model"]["vocab"]
    if isinstance(vocab, list):
        return next((token_id for token_id, (piece, _) in enumerate(vocab) if piece == text), None)
    return vocab.get(text)


def add(data: dict[str, Any], *tokens: str, special: bool = False, **flags: bool) -> dict[str, Any]:
    """Adds tokens as the file would list them: under their base id where there is one, else above the last."""
    for text in tokens:
        known = id_in(data, text)
        entry = {"id": next_id(data) if known is None else known, "content": text, "special": special}
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        data["added_tokens"] = [*data["added_tokens"], {**entry, **plain, **flags}]
    data["added_tokens"].sort(key=lambda entry: entry["id"])
    return data


def _trained(tokenizer: Tokenizer, trainer: Any) -> dict[str, Any]:
    tokenizer.train_from_iterator(corpus(), trainer)
    return json.loads(tokenizer.to_str())


# Byte-level BPE.

GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def byte_level(
    splitter: Any, normalizer: Any = None, specials: Sequence[str] = ("<|endoftext|>",), **model: Any
) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = splitter
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=520, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    return _trained(tokenizer, trainer)


def _split(pattern: str, **options: Any) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, **options),
        ]
    )


def gpt2() -> dict[str, Any]:
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def roberta() -> dict[str, Any]:
    data = byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False), specials=("<s>", "<pad>", "</s>", "<unk>"), unk_token=None
    )
    data["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False}
    return add(data, "<mask>", special=True, lstrip=True)


def neox() -> dict[str, Any]:
    data = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True), normalizers.NFC())
    return add(data, *(" " * width for width in range(24, 1, -1)), "|||IP_ADDRESS|||", normalized=True)


def starcoder() -> dict[str, Any]:
    digits = pre_tokenizers.Digits(individual_digits=True)
    data = byte_level(pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]))
    return add(data, "<fim_prefix>", "<fim_middle>", "<fim_suffix>", special=True)


def falcon() -> dict[str, Any]:
    return byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        )
    )


def llama3() -> dict[str, Any]:
    data = byte_level(_split(CL100K_SPLIT), specials=(), ignore_merges=True)
    return add(data, "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", special=True)


def qwen() -> dict[str, Any]:
    data = byte_level(_split(CL100K_SPLIT.replace("{1,3}", "")), normalizers.NFC(), specials=())
    data = add(data, "<|endoftext|>", "<|im_start|>", "<|im_end|>", special=True)
    return add(data, "<think>", "</think>", "<tool_call>", "<s>", "<unk>")


def byte_normaliser() -> dict[str, Any]:
    pattern = pre_tokenizers.Split(Regex("[^ĠĊ]+|[ĠĊ]+"), "isolated")
    return byte_level(pattern, normalizers.ByteLevel())


def prefix_space() -> dict[str, Any]:
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))


# SentencePiece-style BPE.

SPACES = ("▁▁", "▁▁▁▁")


def _metaspace_bpe(splitter: Any, *, steps: Sequence[Any], inside: Sequence[str] = ()) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence(list(steps))
    escapes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *inside, *escapes], show_progress=False
    )
    data = _trained(tokenizer, trainer)
    data["added_tokens"] = [entry for entry in data["added_tokens"] if entry["content"] in ("<unk>", "<s>", "</s>")]
    return data


def _sp_decoder(*more: Any) -> list[Any]:
    return [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more]


def llama2() -> dict[str, Any]:
    # Trained with words apart: nothing in the finished file splits, as in Llama-2's.
    data = _metaspace_bpe(pre_tokenizers.Metaspace(), steps=_sp_decoder(decoders.Strip(" ", 1, 0)))
    prepend = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    data["normalizer"] = _component(normalizer=prepend)
    return data | {"pre_tokenizer": None}


def metaspace(scheme: str) -> dict[str, Any]:
    return _metaspace_bpe(pre_tokenizers.Metaspace(prepend_scheme=scheme), steps=_sp_decoder(decoders.Strip(" ", 1, 0)))


def gemma() -> dict[str, Any]:
    data = _metaspace_bpe(
        pre_tokenizers.Metaspace(prepend_scheme="never"), steps=_sp_decoder(), inside=("\n\n", "▁▁", "<table>")
    )
    data["normalizer"] = _component(normalizer=normalizers.Replace(" ", "▁"))
    data["pre_tokenizer"] = _component(pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"))
    data = add(data, "\n\n", "▁▁", "<table>")
    return add(data, "<unused0>", "<start_of_turn>", "<image_soft_token>", special=False)


def _component(**parts: Any) -> Any:
    tokenizer = Tokenizer(models.BPE())
    ((name, part),) = parts.items()
    setattr(tokenizer, name, part)
    return json.loads(tokenizer.to_str())[name]


# Unigram.


def unigram(normalizer: Any, splitter: Any, *, byte_fallback: bool = False, unk: str = "<unk>") -> dict[str, Any]:
    tokenizer = Tokenizer(models.Unigram())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=420,
        special_tokens=["<pad>", "</s>", unk],
        unk_token=unk,
        initial_alphabet=[*ALPHABET, "▁"],
        show_progress=False,
    )
    data = _trained(tokenizer, trainer)
    if byte_fallback:
        data["model"]["vocab"] += [[f"<0x{byte:02X}>", -30.0] for byte in range(256)]
        data["model"]["byte_fallback"] = True
        data["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, data["decoder"]]}
    return data


@cache
def charsmap() -> bytes:
    """SentencePiece's own NFKC table, as its trainer writes it."""
    import sentencepiece

    from xtoken_align.readers.sentencepiece_model import model_proto_class

    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"] * 9), model_writer=stream, vocab_size=7, hard_vocab_limit=False, minloglevel=2
    )
    proto = model_proto_class()()
    proto.ParseFromString(stream.getvalue())
    return bytes(proto.normalizer_spec.precompiled_charsmap)


def _precompiled(*more: Any) -> Any:
    return normalizers.Sequence([normalizers.Precompiled(charsmap()), *more])


def _words_metaspace() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])


def t5() -> dict[str, Any]:
    data = unigram(_precompiled(), _words_metaspace())
    return add(data, "<extra_id_1>", "<extra_id_0>", special=True)


def albert() -> dict[str, Any]:
    steps = [
        normalizers.Replace("``", '"'),
        normalizers.Replace("''", '"'),
        normalizers.NFKD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Precompiled(charsmap()),
    ]
    return unigram(normalizers.Sequence(steps), _words_metaspace())


def deberta() -> dict[str, Any]:
    more = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    return unigram(_precompiled(*more), pre_tokenizers.Metaspace(), unk="[UNK]")


def nllb() -> dict[str, Any]:
    return unigram(None, pre_tokenizers.Metaspace(prepend_scheme="always"))


# WordPiece, CLIP, words.


def wordpiece(*, lowercase: bool, strip_accents: bool | None = None) -> dict[str, Any]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    data = _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=600, special_tokens=specials, show_progress=False))
    data["added_tokens"] = [entry for entry in data["added_tokens"] if "unused" not in entry["content"]]
    # Every character as a word's start and inside one: training keeps the forms that it saw alone.
    vocab = data["model"]["vocab"]
    for character in [*ALPHABET, *"abcdefghijklmnopqrstuvwxyz"]:
        for piece in (character, "##" + character):
            if character.strip():
                vocab.setdefault(piece, len(vocab))
    return data


def clip() -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    data = _trained(tokenizer, trainer)
    for letter in alphabet:
        data["model"]["vocab"].setdefault(f"{letter}</w>", len(data["model"]["vocab"]))
    return add(data, "<|startoftext|>", "<|endoftext|>", special=True)


def gpt1() -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    return _trained(tokenizer, trainer)


def word_level() -> dict[str, Any]:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _trained(tokenizer, trainers.WordLevelTrainer(special_tokens=["[UNK]", "[PAD]"], show_progress=False))
