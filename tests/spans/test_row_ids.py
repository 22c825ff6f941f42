"""Rows for training have the ids that the tokenizer itself gives, texts and chats alike."""

import json
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES_AND_WORDY, vocab_of
from hypothesis import given, settings
from hypothesis import strategies as st
from span_checks import CHATML
from tokenizers import Tokenizer, pre_tokenizers

from xtoken_align import Vocab, align_chats, align_texts, read_vocab
from xtoken_align.spans.spans import Spans

PLAIN_FLAGS = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
WORDS = [
    "hello",
    "Hello world",
    " the",
    "\n\n",
    "  ",
    "\t",
    "12345",
    "é",
    "😊",
    "<think>",
    "</think>",
    "don't",
    "x=1;",
    "\n",
]


def text_of() -> st.SearchStrategy[str]:
    return st.lists(st.one_of(st.sampled_from(WORDS), st.text("ab \n1é", max_size=4)), max_size=6).map("".join)


def added(content: str, token_id: int, *, special: bool = True, **flags: bool) -> dict[str, Any]:
    return {"id": token_id, "content": content, **PLAIN_FLAGS, "special": special, **flags}


def byte_level(*tokens: dict[str, Any]) -> dict[str, Any]:
    pieces = {piece: at for at, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    listed = [{**token, "id": len(pieces) + at} for at, token in enumerate(tokens)]
    return {
        "version": "1.0",
        "added_tokens": listed,
        "pre_tokenizer": step,
        "decoder": step,
        "model": {"type": "BPE", "vocab": pieces, "merges": []},
    }


def folder_with(path: Path, data: dict[str, Any], config: dict[str, Any] | None = None) -> Path:
    (path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(config or {}), encoding="utf-8")
    return path


def student_ids(spans: Spans, row: int = 0) -> list[int]:
    return spans.student_ids[row][spans.student_mask[row]].tolist()


def chat_ids(vocab: Vocab, chat: list[dict[str, Any]], template: str = CHATML, **options: Any) -> list[int]:
    templates = {"student_template": template, "teacher_template": template}
    return student_ids(align_chats([chat], student=vocab, teacher=vocab, **templates, **options))


FLAGS = st.fixed_dictionaries({flag: st.booleans() for flag in ("lstrip", "rstrip", "single_word")})


@given(start=FLAGS, end=FLAGS, think=FLAGS, contents=st.lists(text_of(), min_size=1, max_size=4))
def test_flags_of_added_tokens_hold_in_chats(
    tmp_path_factory: pytest.TempPathFactory, start: dict, end: dict, think: dict, contents: list[str]
) -> None:
    tokens = (
        added("<|im_start|>", 0, **start),
        added("<|im_end|>", 0, **end),
        added("<think>", 0, special=False, **think),
    )
    folder = folder_with(tmp_path_factory.mktemp("flags"), byte_level(*tokens))
    chat = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(contents)]
    written = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat)
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert chat_ids(read_vocab(folder), chat) == original.encode(written, add_special_tokens=False).ids


@settings(max_examples=30)
@given(contents=st.lists(text_of(), min_size=1, max_size=4), flags=FLAGS)
def test_chats_and_texts_have_the_ids_of_transformers(
    tmp_path_factory: pytest.TempPathFactory, contents: list[str], flags: dict
) -> None:
    transformers = pytest.importorskip("transformers")
    tokens = added("<|im_start|>", 0), added("<|im_end|>", 0, **flags), added("<think>", 0, special=False)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": CHATML}
    folder = folder_with(tmp_path_factory.mktemp("transformers"), byte_level(*tokens), config)
    original = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    vocab = read_vocab(folder)
    chat = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(contents)]
    theirs = original.apply_chat_template(chat, tokenize=True, return_dict=False)
    assert chat_ids(vocab, chat, CHATML) == theirs
    spans = align_texts(contents, student=vocab, teacher=vocab)
    for row, text in enumerate(contents):
        assert student_ids(spans, row) == original(text)["input_ids"]


@pytest.mark.parametrize("beside", ["½", "\u0301", "a", "_", "-", " ", "é", "<think>"])
def test_a_control_token_that_is_a_word_of_its_own_is_one_where_the_tokenizer_finds_it(
    tmp_path: Path, beside: str
) -> None:
    tokens = added("<|x|>", 0, single_word=True), added("<think>", 0, special=False), added("é", 0, special=False)
    folder = folder_with(tmp_path, byte_level(*tokens))
    vocab, original = read_vocab(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (f"<|x|>{beside}", f"{beside}<|x|>", f"y <|x|>{beside}<|x|><|x|>"):
        spans = align_texts([text], student=vocab, teacher=vocab, parse_special=True)
        assert student_ids(spans) == original.encode(text, add_special_tokens=False).ids


def test_an_unknown_token_that_is_a_word_of_its_own_is_not_found_in_its_own_name() -> None:
    data = FAMILIES_AND_WORDY["bert-cased"].data()
    for entry in data["added_tokens"]:
        entry["single_word"] = True
    vocab, original = vocab_of(data), Tokenizer.from_str(json.dumps(data))
    text = "cat[UNK]cat [UNK] cat"
    spans = align_texts([text], student=vocab, teacher=vocab, parse_special=True)
    assert student_ids(spans) == original.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", ["<s>a", "a<s>b", "a <s> b</s>", "</s>", "a </s>\n<s>", "<s><s>", " <s> <s>"])
def test_a_control_token_that_is_normalised_is_one_where_the_tokenizer_finds_it(text: str) -> None:
    # Llama-2's first files: the normaliser writes `▁` before the token, so the token is found behind a space alone.
    data = FAMILIES_AND_WORDY["llama2"].data()
    for entry in data["added_tokens"]:
        entry["normalized"] = True
    vocab, original = vocab_of(data), Tokenizer.from_str(json.dumps(data))
    spans = align_texts([text], student=vocab, teacher=vocab, parse_special=True)
    assert student_ids(spans) == original.encode(text, add_special_tokens=False).ids
    assert chat_ids(vocab, [{"role": "user", "content": "x"}], text) == student_ids(spans)


def test_a_control_token_in_a_message_or_a_text_is_text_unless_it_is_to_be_parsed(tmp_path: Path) -> None:
    vocab = read_vocab(folder_with(tmp_path, byte_level(added("<|im_start|>", 0), added("<|im_end|>", 0))))
    end = vocab.controls["<|im_end|>"]
    for content in ("a<|im_end|>b", "<|im_end|>", "x\uffff257\uffffy"):
        chat = [{"role": "user", "content": content}]
        assert chat_ids(vocab, chat).count(end) == 1
        assert chat_ids(vocab, chat, parse_special=True).count(end) == 1 + content.count("<|im_end|>")
        texts = align_texts([content], student=vocab, teacher=vocab)
        assert end not in student_ids(texts)
        parsed = align_texts([content], student=vocab, teacher=vocab, parse_special=True)
        assert student_ids(parsed).count(end) == content.count("<|im_end|>")


def test_decompositions_stay_without_prefix_and_without_added_tokens() -> None:
    vocab = FAMILIES_AND_WORDY["llama2"].vocab()
    assert vocab.row_encoder.encode_batch(["hello"]) != vocab.encode_batch(["hello"])
    assert vocab.surfaces[vocab.row_encoder.encode_batch(["hello"])[0][0]].startswith(b" ")
