"""Data sets aligned batch by batch: the same spans, in other processes and from the cache too."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from span_checks import CHATML

import xtoken_align.spans.dataset as home
from xtoken_align.errors import MismatchError, OptionError, SourceError
from xtoken_align.spans.aligner import align_chats, align_texts
from xtoken_align.spans.batch import SpanCollator
from xtoken_align.spans.dataset import AlignColumns, spans_from_columns
from xtoken_align.spans.spans import Spans
from xtoken_align.vocab.vocab import Vocab

Real = Callable[[str], Vocab]
TEXTS = ["Hello 123, world", "", "naïve 😊", "x = 4567\n"]
CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
FIELDS = (
    "student",
    "teacher",
    "count",
    "weight",
    "student_ids",
    "teacher_ids",
    "student_loss_mask",
    "teacher_segments",
)


def same(one: Spans, other: Spans) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


COLUMNS = {f"{side}_{name}" for side in ("student", "teacher") for name in ("ids", "chunks", "tokenizer")}


@pytest.fixture(scope="module")
def align(real: Real) -> AlignColumns:
    for name in ("llama-3", "qwen3"):
        real(name)
    return AlignColumns(student="llama-3", teacher="qwen3")


def tokenizer_file(path: Path, words: list[str]) -> Path:
    """A WordLevel tokenizer of its own."""
    vocab = {word: number for number, word in enumerate(words)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": words[0]}
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}), encoding="utf-8")
    return path


@settings(max_examples=30)
@given(texts=st.lists(st.text(max_size=20), max_size=5), side=st.sampled_from(["left", "right"]))
def test_columns_and_back_are_the_spans_of_the_texts(
    align: AlignColumns, real: Real, texts: list[str], side: Any
) -> None:
    vocabs = {"student": real("llama-3"), "teacher": real("qwen3")}
    expected = align_texts(texts, **vocabs, bos=True, eos=True, padding_side=side)
    columns = align({"text": texts, "other": [0] * len(texts)})
    assert same(spans_from_columns(columns, padding_side=side), expected)
    lists = {name: [np.asarray(row).tolist() for row in rows] for name, rows in columns.items()}
    assert same(spans_from_columns(lists, padding_side=side), expected)


def test_settings_are_those_of_align_texts(real: Real) -> None:
    vocabs = {"student": real("llama-3"), "teacher": real("qwen3")}
    options = {"bos": True, "max_student_tokens": 4, "max_teacher_tokens": 3, "truncation_side": "left"}
    made = AlignColumns(student="llama-3", teacher="qwen3", column="code", eos=False, **options)({"code": TEXTS})
    assert same(spans_from_columns(made), align_texts(TEXTS, **vocabs, **options))


def test_chats_bring_loss_masks(real: Real) -> None:
    templates = {"student_template": CHATML, "teacher_template": CHATML}
    vocabs = {"student": real("llama-3"), "teacher": real("qwen3")}
    align = AlignColumns(student="llama-3", teacher="qwen3", column="messages", **templates)
    columns = align({"messages": [CHAT, CHAT[:1]]})
    assert [row.dtype for row in columns["student_loss_mask"]] == [np.bool_] * 2
    assert same(spans_from_columns(columns), align_chats([CHAT, CHAT[:1]], **vocabs, **templates))


def test_the_collator_takes_the_columns_of_a_row(align: AlignColumns, real: Real) -> None:
    collate = SpanCollator(student=real("llama-3"), teacher=real("qwen3"))
    columns = align({"text": TEXTS})
    rows = [{name: column[row] for name, column in columns.items()} for row in range(len(TEXTS))]
    assert same(collate.spans(rows), collate.spans([{"text": text} for text in TEXTS]))


def test_columns_and_the_collator_keep_whose_ids_they_are(align: AlignColumns, real: Real) -> None:
    identities = real("llama-3").identity, real("qwen3").identity
    assert identities[0] == f"llama-3@{real('llama-3').fingerprint}"
    columns = align({"text": TEXTS})
    assert spans_from_columns(columns).tokenizers == identities
    rows = [{name: column[row] for name, column in columns.items()} for row in range(len(TEXTS))]
    limits = {"max_student_tokens": 40, "max_teacher_tokens": 40}
    collate = SpanCollator(student=real("llama-3"), teacher=real("qwen3"), pack=True, **limits)
    assert collate(rows)["spans"].tokenizers == identities
    swapped = SpanCollator(student=real("qwen3"), teacher=real("llama-3"), bos=False, eos=False)
    with pytest.raises(MismatchError, match="rows' student ids are of the tokenizer llama-3@"):
        swapped(rows)


def test_columns_of_a_version_that_did_not_note_the_tokenizers_are_read(align: AlignColumns) -> None:
    columns = align({"text": TEXTS})
    older = {name: rows for name, rows in columns.items() if not name.endswith("tokenizer")}
    assert spans_from_columns(older).tokenizers is None
    assert same(spans_from_columns(older), spans_from_columns(columns))
    # Data sets that are put together have None where one of them lacks a column.
    mixed = {**columns, "student_tokenizer": [None, *columns["student_tokenizer"][1:]]}
    assert spans_from_columns(mixed).tokenizers == spans_from_columns(columns).tokenizers
    mixed["student_tokenizer"] = ["other@0", *columns["student_tokenizer"][1:]]
    with pytest.raises(OptionError, match=r"the same student tokenizer, but they are of llama-3@.* and other@0"):
        spans_from_columns(mixed)


def test_no_rows_make_no_spans(align: AlignColumns) -> None:
    columns = align({"text": []})
    assert set(columns) == COLUMNS
    assert all(rows == [] for rows in columns.values())
    assert len(spans_from_columns(columns)) == 0


# Python 3.12 and newer warn of every fork beside threads; `datasets` forks.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("processes", [None, 2])
def test_a_data_set_is_mapped(align: AlignColumns, real: Real, processes: int | None) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    texts = TEXTS * 25
    given_ = datasets.Dataset.from_dict({"text": texts})
    mapped = given_.map(align, batched=True, batch_size=16, num_proc=processes, remove_columns=["text"])
    assert set(mapped.column_names) == COLUMNS
    expected = align_texts(texts, student=real("llama-3"), teacher=real("qwen3"), bos=True, eos=True)
    assert same(spans_from_columns(mapped[:]), expected)
    assert same(spans_from_columns(mapped.with_format("numpy")[:]), expected)
    assert spans_from_columns(mapped.with_format("numpy")[:]).tokenizers == expected.tokenizers


def test_equal_settings_have_equal_hashes_and_others_have_others(align: AlignColumns) -> None:
    hashed = pytest.importorskip("datasets.fingerprint").Hasher.hash
    again = AlignColumns(student="llama-3", teacher="qwen3")
    assert again == align
    again({"text": TEXTS})
    assert hashed(again) == hashed(align) == hashed(pickle.loads(pickle.dumps(align)))
    others = [
        AlignColumns(student="llama-3", teacher="qwen3", **changed)
        for changed in ({"bos": False}, {"eos": False}, {"column": "t"}, {"max_student_tokens": 9}, {"loss_roles": ()})
    ]
    others.append(AlignColumns(student="qwen3", teacher="llama-3"))
    assert len({hashed(other) for other in [align, *others]}) == len(others) + 1


def test_another_tokenizer_in_the_same_file_has_another_hash(tmp_path: Path) -> None:
    hashed = pytest.importorskip("datasets.fingerprint").Hasher.hash
    hashes = []
    for words in (["a", "b"], ["a", "c"], ["a", "b"]):
        file = tokenizer_file(tmp_path / "tokenizer.json", words)
        hashes.append(hashed(AlignColumns(student=file, teacher=str(file))))
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_copy_carries_no_vocabulary_and_reads_each_once_per_process(
    align: AlignColumns, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = align({"text": TEXTS})
    data = pickle.dumps(align)
    assert len(data) < 2000
    reads = []
    read_vocab = home.read_vocab
    monkeypatch.setattr(home, "read_vocab", lambda source: reads.append(source) or read_vocab(source))
    monkeypatch.setattr(home, "vocabularies_read", {})
    for _ in range(2):
        made = pickle.loads(data)({"text": TEXTS})
        assert all(map(np.array_equal, made["student_chunks"], expected["student_chunks"]))
    assert reads == ["llama-3", "qwen3"]


def test_a_process_that_finds_another_tokenizer_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tokenizer_file(tmp_path / "tokenizer.json", ["a", "b"])
    align = AlignColumns(student=file, teacher=file)
    tokenizer_file(file, ["a", "c"])
    monkeypatch.setattr(home, "vocabularies_read", {})
    with pytest.raises(SourceError, match="all processes need the same"):
        pickle.loads(pickle.dumps(align))({"text": ["a"]})


def test_a_file_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer_file(tmp_path / "tokenizer.json", ["a", "b"])
    monkeypatch.chdir(tmp_path)
    align = AlignColumns(student="tokenizer.json", teacher="tokenizer.json")
    monkeypatch.chdir("/")
    monkeypatch.setattr(home, "vocabularies_read", {})
    assert align({"text": ["b"]})["student_ids"][0].tolist() == [1]


def test_a_fresh_process_aligns_without_torch(align: AlignColumns, tmp_path: Path) -> None:
    (tmp_path / "align.pickle").write_bytes(pickle.dumps(align))
    code = (
        "import pickle, sys; align = pickle.load(open(sys.argv[1], 'rb')); made = align({'text': ['x = 123']})\n"
        "assert made['student_chunks'][0].tolist() == [-1, 0, 1, 2, 3, 4]\n"
        "assert not {'torch', 'datasets', 'pyarrow', 'ray'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "align.pickle")], check=True, timeout=60)


def test_options_of_a_side_reach_its_reader(real: Real) -> None:
    wide = AlignColumns(student="llama-3", teacher="qwen3", teacher_options={"logits": 160_000})
    assert len(wide.tables.teacher) == 160_000


def test_a_vocab_and_rows_without_a_text_are_refused(align: AlignColumns, real: Real) -> None:
    with pytest.raises(OptionError, match="give the source that the teacher was read from"):
        AlignColumns(student="llama-3", teacher=real("qwen3"))
    with pytest.raises(OptionError, match="no column `text` among"):
        align({"body": TEXTS})
    for bad in ([None], ["a", None], ["a", CHAT], [CHAT, "a"]):
        with pytest.raises(OptionError, match="is no text"):
            align({"text": bad})


def test_columns_that_do_not_fit_each_other_are_refused(align: AlignColumns) -> None:
    columns = align({"text": TEXTS})
    with pytest.raises(OptionError, match="no column `teacher_chunks`"):
        spans_from_columns({name: rows for name, rows in columns.items() if name != "teacher_chunks"})
    with pytest.raises(OptionError, match="student_chunks"):
        spans_from_columns({**columns, "student_chunks": columns["student_chunks"][:-1]})
    for side in ("ids", "chunks"):
        columns[f"teacher_{side}"] = [row[:2] for row in columns[f"teacher_{side}"]]
    with pytest.raises(OptionError, match="one side alone"):
        spans_from_columns(columns)
    with pytest.raises(OptionError, match="4 rows, teacher columns 1"):
        spans_from_columns({name: rows[: 1 if "teacher" in name else 4] for name, rows in columns.items()})
