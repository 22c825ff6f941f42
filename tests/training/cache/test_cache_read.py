"""Reading a cache: rows, batches, packed batches, other processes, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_models import WIDTH, Causal, corpus, small_vocab
from torch.utils.data import DataLoader

from xtoken_align.errors import MismatchError, OptionError, StoreError
from xtoken_align.spans.batch import SpanCollator
from xtoken_align.training import TeacherCache, write_teacher_cache
from xtoken_align.vocab.vocab import Vocab


def test_rows_are_numbered_as_the_corpus_and_the_first_after_the_last_is_none(written: Path) -> None:
    cache = TeacherCache(written)
    assert [row.ids.tolist() for row in cache] == [row["teacher_ids"] for row in corpus()]
    assert cache[-1].ids.tolist() == corpus()[-1]["teacher_ids"]
    for wrong in (23, -24):
        with pytest.raises(IndexError, match="of 23 rows"):
            cache[wrong]


def test_rows_have_the_types_that_are_promised(written: Path) -> None:
    for row in TeacherCache(written):
        size = len(row.ids)
        assert (row.ids.dtype, row.top_ids.dtype, row.top_ids.shape) == (np.int32, np.int32, (size, 8))
        assert (row.log_probs.dtype, row.log_probs.shape) == (np.float32, (size, 8))
        assert (row.rest.dtype, row.rest.shape) == (np.float32, (size,))
        assert (np.diff(row.log_probs, axis=1) <= 0).all()


def test_a_batch_by_numbers_is_padded_on_the_right(written: Path) -> None:
    cache = TeacherCache(written)
    rows = [0, 3, 7, 0]
    made = cache.top_k(rows)
    assert made.ids.dtype == torch.int64
    assert made.ids.shape == (4, max(len(cache[row].ids) for row in rows), 8)
    for place, row in enumerate(rows):
        size = len(cache[row].ids)
        assert np.array_equal(made.ids[place, :size].numpy(), cache[row].top_ids)
        assert np.array_equal(made.log_probs[place, :size].numpy(), cache[row].log_probs)
        assert np.array_equal(made.rest[place, :size].numpy(), cache[row].rest)
        assert (made.ids[place, size:] == -1).all()
        assert (made.log_probs[place, size:] == -torch.inf).all()
        assert (made.rest[place, size:] == 1).all()
    assert made.width == WIDTH


def test_a_batch_has_the_length_asked_for(written: Path) -> None:
    cache = TeacherCache(written)
    wide, narrow = cache.top_k([0, 1], length=30), cache.top_k([0, 1], length=2)
    assert wide.ids.shape == (2, 30, 8)
    assert torch.equal(narrow.ids, wide.ids[:, :2])
    assert torch.equal(narrow.rest, wide.rest[:, :2])
    assert cache.top_k([3], length=0).ids.shape == (1, 0, 8)
    assert cache.top_k([3], device="meta").ids.device.type == "meta"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_by_ids_lies_where_the_batch_has_its_tokens(written: Path, vocab: Vocab, side: Any) -> None:
    rows = [corpus()[row] | {"student_ids": [7, 8]} for row in (5, 3, 11)]
    collate = SpanCollator(student=small_vocab(), teacher=vocab, padding_side=side, pad_to_multiple_of=8)
    batch = collate(rows)
    given = {"ids": batch["teacher_input_ids"], "mask": batch["teacher_attention_mask"]}
    cache = TeacherCache(written, teacher=vocab)
    made = cache.top_k(**given)
    mask = batch["teacher_attention_mask"].bool()
    assert torch.equal(made.ids[..., 0] >= 0, mask)
    assert np.array_equal(made.ids[mask].numpy(), np.concatenate([cache[row].top_ids for row in (5, 3, 11)]))
    assert np.array_equal(made.rest[mask].numpy(), np.concatenate([cache[row].rest for row in (5, 3, 11)]))
    checked = cache.top_k([5, 3, 11], **given)
    assert torch.equal(checked.log_probs, made.log_probs)


def test_documents_of_packed_rows_are_looked_up_one_by_one(written: Path, vocab: Vocab) -> None:
    numbers = (5, 1, 11, 7, 2)
    rows = [corpus()[row] | {"student_ids": [7, 8]} for row in numbers]
    collate = SpanCollator(
        student=small_vocab(), teacher=vocab, pack=True, max_student_tokens=40, max_teacher_tokens=40
    )
    batch = collate(rows)
    assert len(batch["teacher_input_ids"]) < len(rows)
    cache = TeacherCache(written, teacher=vocab)
    segments = batch["spans"].teacher_segments
    made = cache.top_k(ids=batch["teacher_input_ids"], mask=batch["teacher_attention_mask"], segments=segments)
    for number in numbers:
        found = False
        wanted = cache[number]
        for row in range(len(segments)):
            for segment in range(int(segments[row].max()) + 1):
                at = segments[row] == segment
                if batch["teacher_input_ids"][row][at].tolist() == wanted.ids.tolist():
                    found = True
                    assert np.array_equal(made.ids[row][at].numpy(), wanted.top_ids)
                    assert np.array_equal(made.rest[row][at].numpy(), wanted.rest)
        assert found


def test_rows_cut_on_the_right_are_the_beginnings_of_cached_ones(written: Path) -> None:
    cache = TeacherCache(written)
    ids = corpus()[0]["teacher_ids"]
    made = cache.top_k([0, 1], ids=[ids[:2], corpus()[1]["teacher_ids"]])
    assert np.array_equal(made.ids[0, :2].numpy(), cache[0].top_ids[:2])
    with pytest.raises(OptionError, match="max_teacher_tokens None"):
        cache.top_k(ids=[ids[:2]])


def test_rows_that_were_not_cached_or_in_another_order_are_refused(written: Path) -> None:
    cache = TeacherCache(written)
    ids = [row["teacher_ids"] for row in corpus()]
    with pytest.raises(OptionError, match="row 1 was cached with other ids"):
        cache.top_k([1, 0], ids=[ids[0], ids[1]])
    with pytest.raises(OptionError, match="row 0 was cached with other ids"):
        cache.top_k([0], ids=[[*ids[0], 7]])
    with pytest.raises(OptionError, match="no cached row has these 3 ids"):
        cache.top_k(ids=[[7, 7, 7]])
    with pytest.raises(OptionError, match="give one for each"):
        cache.top_k([1], ids=[ids[0], ids[1]])
    with pytest.raises(OptionError, match="got neither"):
        cache.top_k()


def test_a_row_is_found_by_its_ids_and_of_equal_rows_the_first(tmp_path: Path, vocab: Vocab, model: Causal) -> None:
    rows = [row["teacher_ids"] for row in corpus()]
    write_teacher_cache(model, rows + rows, tmp_path, teacher=vocab, rows_per_shard=4)
    cache = TeacherCache(tmp_path)
    assert [cache.find(ids) for ids in rows] == list(range(len(rows)))


def test_another_vocabulary_is_refused_with_what_differs(written: Path, vocab: Vocab) -> None:
    with pytest.raises(MismatchError, match=r"fingerprint .* there"):
        TeacherCache(written, teacher=small_vocab(normalise={"q": "k"}))
    from small_vocabs import make_vocab

    with pytest.raises(MismatchError, match="logits 64 there, 3 here; live 59 there, 3 here"):
        TeacherCache(written, teacher=make_vocab("abc"))


def test_a_missing_shard_is_named_when_a_row_of_it_is_read(written: Path) -> None:
    (written / "shard-00002.parquet").unlink()
    cache = TeacherCache(written)
    assert cache.missing == [2]
    assert len(cache[0].ids)
    for read in (lambda: cache[9], cache.verify, cache.truncation, lambda: cache.find([7])):
        with pytest.raises(StoreError, match=r"shard-00002\.parquet is missing"):
            read()


def test_only_some_shards_stay_open_and_of_each_some_rows(written: Path) -> None:
    cache = TeacherCache(written, open_shards=2)
    for row in (0, 5, 9, 4, 22):
        cache[row]
    assert list(cache._shards) == [1, 5]


def test_a_cache_travels_to_other_processes_by_fork_and_by_pickle(written: Path) -> None:
    cache = TeacherCache(written)
    expected = [cache[row].top_ids.tolist() for row in range(len(cache))]
    copy = pickle.loads(pickle.dumps(cache))
    assert [row.top_ids.tolist() for row in copy] == expected
    loader = DataLoader(cache, batch_size=None, shuffle=False, num_workers=2, multiprocessing_context="fork")
    assert [row.top_ids.tolist() for row in loader] == expected


def test_verifying_reads_everything_and_says_what_is_left_out(written: Path) -> None:
    cache = TeacherCache(written)
    rest = np.concatenate([row.rest for row in cache])
    found = cache.verify()
    assert found.positions == len(rest)
    assert found.mean_rest == pytest.approx(rest.mean(dtype=np.float64))
    assert found.max_rest == rest.max()
