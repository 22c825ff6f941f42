"""Builds as a whole: reproducible, honest about pairs with nothing in common, and silent about who asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from small_vocabs import make_vocab, vocabs

from xtoken_align import Mapping, Vocab, build
from xtoken_align.errors import OptionError, XTokenWarning
from xtoken_align.vocab.kinds import Kind


def small(**options: Any) -> Mapping:
    student = make_vocab(["12", "a", " a", (b"<s>", Kind.SPECIAL)], name="student", roles={"bos": [3]})
    teacher = make_vocab(["1", "2", "a", (b"<b>", Kind.SPECIAL)], name="teacher", roles={"bos": [3]})
    return build(student=student, teacher=teacher, **options)


@given(vocabs("student"), vocabs("teacher"))
def test_two_builds_of_one_pair_are_equal(student: Vocab, teacher: Vocab) -> None:
    first, second = (build(student=student, teacher=teacher, reverse_pass=True) for _ in range(2))
    assert first.content_hash == second.content_hash


def test_two_builds_write_the_same_bytes(tmp_path: Path) -> None:
    files = [small().save(tmp_path / f"{name}.npz") for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


_BUILD = """
import sys
from xtoken_align import build
print(build(student=sys.argv[1], teacher=sys.argv[2]).save(sys.argv[3]))
"""


@pytest.mark.usefixtures("llama_qwen")
def test_two_processes_with_other_hash_seeds_write_the_same_bytes_as_w(llama_qwen: Mapping, tmp_path: Path) -> None:
    files = []
    for seed in ("1", "2"):
        files.append(tmp_path / f"{seed}.npz")
        subprocess.run(
            [sys.executable, "-c", _BUILD, "llama-3", "qwen3", str(files[-1])],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
    content = files[0].read_bytes()
    assert content == files[1].read_bytes() == llama_qwen.save(tmp_path / "here.npz").read_bytes()
    assert len(content) <= 3 * 1024 * 1024
    matrix = scipy.sparse.load_npz(files[0])
    assert matrix.shape == (128_256, 151_936)
    assert (matrix != llama_qwen.W).nnz == 0
    assert matrix.dtype == np.float32


def test_names_and_sources_change_no_hash() -> None:
    tokens, teacher = ["12", "a"], ["1", "2", "a"]
    hashes = {
        build(
            student=make_vocab(tokens, name=name, source=f"{name}/x"), teacher=make_vocab(teacher, name=f"{name}-t")
        ).content_hash
        for name in ("one", "two")
    }
    assert len(hashes) == 1


def test_the_date_is_recorded_only_on_demand_and_changes_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    undated = small()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    dated = small()
    assert (undated.created, dated.created) == (None, "1970-01-02T00:00:00+00:00")
    assert undated.content_hash == dated.content_hash


@pytest.mark.parametrize("epoch", ["²", "yesterday", "1e9", "99999999999999999999"])
def test_a_source_date_epoch_that_is_no_date_is_refused(epoch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    with pytest.raises(OptionError, match="SOURCE_DATE_EPOCH"):
        small()


def test_options_change_the_hash() -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"decay": 0.2},
        {"lead": 0.8},
        {"top_k": 3},
        {"rules": ["exact"]},
        {"case": True},
        {"reverse_pass": True},
        {"overrides": [{"student": "a", "teacher": ["1"]}]},
    ]
    assert len({small(**options).content_hash for options in variants}) == len(variants)


def test_options_are_recorded_as_given() -> None:
    options = small(top_k=np.int64(2), overrides=[{"student": {"id": 1}, "teacher": "a", "weights": [2]}]).options
    assert options["top_k"] == 2
    assert type(options["top_k"]) is int
    assert options["overrides"] == [{"student": {"id": 1}, "teacher": ["a"], "weights": [2.0]}]


def test_a_disjoint_pair_gives_an_empty_w_with_a_note_and_p_kl(tmp_path: Path) -> None:
    student, teacher = make_vocab(["a", "b"], name="latin"), make_vocab(["ж", "щ"], name="cyrillic")
    with pytest.warns(XTokenWarning, match="no token of latin has a counterpart in cyrillic: W is empty"):
        mapping = build(student=student, teacher=teacher)
    assert mapping.W.shape == (2, 2)
    assert mapping.W.nnz == 0
    assert mapping.coverage().empty["teacher cannot spell it"] == 2
    assert mapping.coverage().recommendation.paper_rule.loss == "p-kl"
    assert "none of the student's 2 tokens" in mapping.coverage().recommendation.paper_rule.because
    assert mapping.bin_sizes.count == 0
    assert [side.tolist() for side in mapping.bins()] == [[-1, -1], [-1, -1]]
    from xtoken_align import load

    assert load(mapping.save(tmp_path / "empty.npz")).W.nnz == 0


def test_w_has_the_logit_widths_and_nothing_in_the_padding() -> None:
    student = make_vocab(["a", (b"", Kind.PADDING), (b"", Kind.PADDING)])
    teacher = make_vocab(["b", "a", (b"", Kind.HOLE), (b"", Kind.PADDING)], name="teacher")
    mapping = build(student=student, teacher=teacher, reverse_pass=True)
    assert mapping.W.toarray().tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_tokenizers_objects_and_vocabularies_may_be_mixed() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    vocab = make_vocab(["a", "b"])
    made = build(student=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")), teacher=vocab)
    assert made.student.sizes.logits == 2
