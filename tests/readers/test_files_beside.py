"""What the files beside a tokenizer say: added tokens, stop tokens, widths; and where they contradict it."""

import base64
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, vocab_of

from xtoken_align import Vocab, read_vocab
from xtoken_align.errors import XTokenWarning
from xtoken_align.limits import MAX_ID

FORMS = ("model", "ranks", "json", "tekken", "gguf", "gguf of pieces")
MARKERS = ("<|im_start|>", "<|im_end|>")
FLAGS = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
RANKS = b"".join(b"%s %d\n" % (base64.b64encode(bytes([at])), at) for at in range(256))


def model_of_sentencepiece(**options: bool) -> bytes:
    import io

    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello there world"] * 20),
        model_writer=made,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return made.getvalue()


def decoder(first: int, **flags: bool) -> dict[str, Any]:
    return {str(first + at): {"content": text, "special": True, **FLAGS, **flags} for at, text in enumerate(MARKERS)}


def read(folder: Path, **files: Any) -> Vocab:
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_vocab(folder)


def gguf_bytes(folder: Path, model: str, tokens: list[str], **arrays: list[Any]) -> bytes:
    """A GGUF file of a tokenizer."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(folder / "writing", "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    for key, values in arrays.items():
        writer.add_array(f"tokenizer.ggml.{key}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    data = (folder / "writing").read_bytes()
    (folder / "writing").unlink()
    return data


def gguf_of_merges(folder: Path) -> tuple[dict[str, Any], int]:
    data = FAMILIES["gpt2"].data()
    tokens = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]]
    return {"file__gguf": gguf_bytes(folder, "gpt2", tokens, merges=merges, token_type=[1] * len(tokens))}, len(tokens)


def gguf_of_pieces(folder: Path) -> tuple[dict[str, Any], int]:
    tokens = ["<unk>", *(f"<0x{at:02X}>" for at in range(256)), "▁", *"helotr"]
    types = [2, *[6] * 256, *[1] * 7]
    scores = [-float(at) for at in range(len(tokens))]
    return {"file__gguf": gguf_bytes(folder, "llama", tokens, scores=scores, token_type=types)}, len(tokens)


def tekken_of_bytes() -> tuple[dict[str, Any], int]:
    config = {"pattern": r"\s+|\S+", "default_vocab_size": 256 + 3, "default_num_special_tokens": 3}
    ranks = [{"rank": at, "token_bytes": base64.b64encode(bytes([at])).decode()} for at in range(256)]
    named = [{"rank": at, "token_str": text, "is_control": True} for at, text in enumerate(["<unk>", "<s>", "</s>"])]
    return {"tekken__json": {"config": config, "vocab": ranks, "special_tokens": named}}, 259


def first_free(name: str, folder: Path) -> tuple[dict[str, Any], int]:
    if name == "model":
        sentencepiece = pytest.importorskip("sentencepiece")
        model = model_of_sentencepiece()
        return {"tokenizer__model": model}, sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    if name == "ranks":
        return {"ranks__tiktoken": RANKS}, 256
    if name == "tekken":
        return tekken_of_bytes()
    if name == "gguf":
        return gguf_of_merges(folder)
    if name == "gguf of pieces":
        return gguf_of_pieces(folder)
    data = FAMILIES["gpt2"].data()
    return {"tokenizer__json": data}, max(
        *data["model"]["vocab"].values(), *(one["id"] for one in data["added_tokens"])
    ) + 1


@pytest.mark.filterwarnings("ignore::xtoken_align.errors.XTokenWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("listed_in", ["added_tokens_decoder", "added_tokens.json"])
def test_added_tokens_beside_a_file_are_its_own(tmp_path: Path, form: str, listed_in: str) -> None:
    files, first = first_free(form, tmp_path)
    config: dict[str, Any] = {"eos_token": "<|im_end|>"}
    if listed_in == "added_tokens_decoder":
        config["added_tokens_decoder"] = decoder(first)
    else:
        files["added_tokens__json"] = {text: first + at for at, text in enumerate(MARKERS)}
    vocab = read(tmp_path, tokenizer_config__json=config, config__json={"vocab_size": first + 4}, **files)
    assert [vocab.raw[first], vocab.raw[first + 1]] == list(MARKERS)
    assert vocab.roles["eos"] == (first + 1,)
    assert len(vocab) == first + 4
    plain = (
        read_vocab(
            next(
                path
                for path in tmp_path.iterdir()
                if path.suffix in {".model", ".tiktoken", ".gguf"} or path.stem == "tekken"
            )
        )
        if form != "json"
        else vocab
    )
    assert vocab.encode_batch(["hello there"]) == plain.encode_batch(["hello there"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("listed_in", ["added_tokens_decoder", "added_tokens.json"])
def test_an_id_that_no_tokenizer_has_is_left_out(tmp_path: Path, form: str, listed_in: str) -> None:
    files, first = first_free(form, tmp_path)
    if listed_in == "added_tokens_decoder":
        files["tokenizer_config__json"] = {"added_tokens_decoder": decoder(MAX_ID)}
    else:
        files["added_tokens__json"] = {text: MAX_ID + at for at, text in enumerate(MARKERS)}
    vocab = read(tmp_path, config__json={"vocab_size": first + 4}, **files)
    assert vocab.sizes.ids <= MAX_ID + 1
    assert MARKERS[1] not in vocab.raw


@pytest.mark.parametrize("form", FORMS)
def test_what_contradicts_the_file_is_a_warning_that_names_both(tmp_path: Path, form: str) -> None:
    files, _ = first_free(form, tmp_path)
    config = {"added_tokens_decoder": decoder(40)}
    with pytest.warns(XTokenWarning) as caught:
        vocab = read(tmp_path, tokenizer_config__json=config, **files)
    sentences = [str(one.message) for one in caught if "beside it" in str(one.message)]
    assert len(sentences) == 2
    assert all(marker in sentence for marker, sentence in zip(MARKERS, sentences, strict=True))
    assert "holds" in sentences[0]
    assert vocab.raw[40] != MARKERS[0]


def test_flags_follow_the_configuration_as_in_transformers(tmp_path: Path) -> None:
    files, first = first_free("json", tmp_path)
    files["tokenizer__json"]["added_tokens"] += [
        {"id": first + at, "content": text, "special": True, **FLAGS} for at, text in enumerate(MARKERS)
    ]
    with pytest.warns(XTokenWarning, match=r"'<\|im_start\|>' has other flags \(rstrip\) in tokenizer_config.json"):
        vocab = read(tmp_path, tokenizer_config__json={"added_tokens_decoder": decoder(first, rstrip=True)}, **files)
    runs = vocab.row_encoder.encode_parts([[("<|im_start|>", first), ("\na", None)]])[0]
    assert [run.text for run in runs] == ["<|im_start|>\n", "a"]


def test_agreeing_files_warn_of_nothing(tmp_path: Path) -> None:
    files, first = first_free("json", tmp_path)
    tokens = [{"id": first + at, "content": text, "special": True, **FLAGS} for at, text in enumerate(MARKERS)]
    files["tokenizer__json"]["added_tokens"] += tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(
            tmp_path,
            tokenizer_config__json={"added_tokens_decoder": decoder(first), "eos_token": "<|im_end|>"},
            added_tokens__json={text: first + at for at, text in enumerate(MARKERS)},
            **files,
        )


def test_a_role_whose_token_no_file_has_is_a_warning(tmp_path: Path) -> None:
    files, _ = first_free("json", tmp_path)
    with pytest.warns(XTokenWarning, match=r"'<\|gone\|>' is to be eos by tokenizer_config.json, and no file has"):
        read(tmp_path, tokenizer_config__json={"eos_token": "<|gone|>"}, **files)


def test_stop_tokens_come_from_generation_config(tmp_path: Path) -> None:
    files, first = first_free("json", tmp_path)
    vocab = read(
        tmp_path,
        tokenizer_config__json={"added_tokens_decoder": decoder(first)},
        generation_config__json={"eos_token_id": [first, first + 1]},
        **files,
    )
    assert vocab.roles["stop"] == (first, first + 1)


@pytest.mark.parametrize(
    "config", [{"thinker_config": {"text_config": {"vocab_size": 999}}}, {"text_config": {"vocab_size": 999}}]
)
def test_nested_widths_are_found(tmp_path: Path, config: dict[str, Any]) -> None:
    files, _ = first_free("json", tmp_path)
    assert len(read(tmp_path, config__json=config, **files)) == 999


def step(kind: str, **options: Any) -> dict[str, Any]:
    return {"type": kind, **options}


def replacing(old: str, new: str, *, regex: bool = False) -> dict[str, Any]:
    return step("Replace", pattern={"Regex" if regex else "String": old}, content=new)


@pytest.mark.parametrize(
    "behind",
    [
        replacing(r"\A (?! )", "", regex=True),
        replacing(" .", "."),
        replacing("n't", " not"),
        step("Strip", content=" ", start=1, stop=0),
    ],
    ids=str,
)
def test_steps_that_see_the_whole_text_say_nothing_of_single_tokens(behind: dict[str, Any]) -> None:
    data = FAMILIES["llama2"].data()
    start = [replacing("▁", " "), step("ByteFallback"), step("Fuse")]
    plain = vocab_of({**data, "decoder": step("Sequence", decoders=start)})
    whole = vocab_of({**data, "decoder": step("Sequence", decoders=[*start, behind])})
    assert whole.surfaces.list == plain.surfaces.list
    early = vocab_of(
        {**data, "decoder": step("Sequence", decoders=[step("Fuse"), replacing("▁", " "), step("ByteFallback")])}
    )
    assert early.surfaces.list == plain.surfaces.list


def test_a_bpe_behind_white_space_without_marks_loses_no_alignment() -> None:
    from xtoken_align import align_texts

    letters = "abcdehlorw"
    vocab = {letter: at for at, letter in enumerate(letters)}
    data = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    unmarked, marked = vocab_of(data), FAMILIES["gpt2"].vocab()
    spans = align_texts(["hello world"], student=unmarked, teacher=marked)
    assert spans.statistics().student_gaps == 0
    assert int(spans.count[0]) >= 2


def test_white_space_as_suffix_is_aligned_and_encoded_as_the_library_does(tmp_path: Path) -> None:
    from xtoken_align import align_texts

    sentencepiece = pytest.importorskip("sentencepiece")
    model = model_of_sentencepiece(treat_whitespace_as_suffix=True)
    (tmp_path / "tokenizer.model").write_bytes(model)
    vocab, other = read_vocab(tmp_path / "tokenizer.model"), FAMILIES["gpt2"].vocab()
    text = "hello there world"
    spans = align_texts([text], student=vocab, teacher=other)
    assert spans.student_ids[0].tolist() == sentencepiece.SentencePieceProcessor(model_proto=model).encode(text)
    # Where a token may bring a space that the text does not have, a space by itself is no text.
    assert spans.statistics().student_gaps == 0
    assert int(spans.count[0]) == 3
