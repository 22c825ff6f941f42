"""The manifest: what it keeps, what it refuses, and who is first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cache_models import WIDTH, small_vocab

from xtoken_align.errors import ArtifactError, MismatchError, OptionError, StoreError
from xtoken_align.training.cache.format import (
    MANIFEST,
    CacheSettings,
    claim_folder,
    make_settings,
    read_manifest,
)
from xtoken_align.vocab.vocab import Vocab


def settings_for(vocab: Vocab, **options: Any) -> CacheSettings:
    given = {"top_k": 8, "dtype": "float16", "rows_per_shard": 4, "bos": True, "eos": True}
    given |= {"max_teacher_tokens": None, "truncation_side": "right"}
    return make_settings(vocab, 10, **given | options)


def test_a_folder_belongs_to_its_first_settings(tmp_path: Path, vocab: Vocab) -> None:
    settings = replace(settings_for(vocab), probe=(-1.0, -0.25))
    assert claim_folder(tmp_path / "a" / "b", settings) == settings
    assert claim_folder(tmp_path / "a" / "b", settings) == settings
    assert read_manifest(tmp_path / "a" / "b") == settings
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [MANIFEST]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"top_k": 9}, "top_k is 8 there, 9 here"),
        ({"dtype": "float32"}, "dtype is float16 there, float32 here"),
        ({"rows": 11}, "rows is 10 there, 11 here"),
        ({"rows_per_shard": 5}, "rows_per_shard is 4 there, 5 here"),
        ({"bos": False}, "bos is True there, False here"),
        ({"max_teacher_tokens": 7}, "max_teacher_tokens is None there, 7 here"),
        ({"fingerprint": "0"}, "fingerprint is .* there, 0 here"),
        ({"logits": 65}, "logits is 64 there, 65 here"),
        ({"probe": (-1.0, -0.9)}, "the model is another: its log-probabilities are 0.33 away"),
        ({"probe": (-1.0,)}, "the model is another"),
        ({"probe": (float("nan"), -0.25)}, "the model is another"),
    ],
)
def test_other_settings_are_refused_with_what_differs(
    tmp_path: Path, vocab: Vocab, change: dict[str, Any], said: str
) -> None:
    settings = replace(settings_for(vocab), probe=(-1.0, -0.25))
    claim_folder(tmp_path, settings)
    before = (tmp_path / MANIFEST).read_bytes()
    with pytest.raises(MismatchError, match=said):
        claim_folder(tmp_path, replace(settings, **change))
    assert (tmp_path / MANIFEST).read_bytes() == before


def test_a_model_that_differs_by_rounding_is_the_same_and_the_first_probe_stays(tmp_path: Path, vocab: Vocab) -> None:
    first = replace(settings_for(vocab), probe=(-1.0, -0.25))
    claim_folder(tmp_path, first)
    assert claim_folder(tmp_path, replace(first, probe=(-1.02, -0.26), name="alias")) == first


def test_a_cache_that_does_not_say_its_corpus_is_read_and_continued(tmp_path: Path, vocab: Vocab) -> None:
    older = settings_for(vocab)
    claim_folder(tmp_path, older)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    del manifest["corpus"]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert claim_folder(tmp_path, replace(older, corpus="a" * 64)) == older
    with pytest.raises(MismatchError, match="its corpus has other rows"):
        claim_folder(tmp_path / "new", replace(claim_folder(tmp_path / "new", replace(older, corpus="a")), corpus="b"))


def test_more_best_tokens_than_live_ones_are_all_live_ones(vocab: Vocab) -> None:
    settings = settings_for(vocab, top_k=1000)
    assert (settings.top_k, settings.live, settings.logits) == (WIDTH - 5, WIDTH - 5, WIDTH)


@pytest.mark.parametrize(
    "option",
    [
        {"top_k": 0},
        {"top_k": True},
        {"top_k": 2.0},
        {"rows_per_shard": -1},
        {"dtype": "bfloat16"},
        {"max_teacher_tokens": 0},
        {"truncation_side": "middle"},
    ],
)
def test_options_without_sense_are_refused_by_name(vocab: Vocab, option: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(option))):
        settings_for(vocab, **option)


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.pop("top_k"),
        lambda values: values.update(top_k=0),
        lambda values: values.update(rows=-1),
        lambda values: values.update(rows="many"),
        lambda values: values.update(rows=3.5),
        lambda values: values.update(rows=True),
        lambda values: values.update(dtype="int8"),
        lambda values: values.update(probe=["x"]),
        lambda values: values.update(schema=2),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path: Path, vocab: Vocab, damage: Any) -> None:
    claim_folder(tmp_path, settings_for(vocab))
    values = json.loads((tmp_path / MANIFEST).read_text())
    damage(values)
    (tmp_path / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match="cache"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_manifest_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=MANIFEST):
        read_manifest(tmp_path)


def test_a_folder_without_a_manifest_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no teacher cache"):
        read_manifest(tmp_path)


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make the folder"):
        claim_folder(tmp_path / "file" / "cache", settings_for(small_vocab()))
