"""Writing a cache and what is in it: the same as running the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from cache_models import DEAD, WIDTH, Causal, corpus, files_of, small_vocab

from xtoken_align import read_vocab
from xtoken_align.errors import MismatchError, MissingExtraError, OptionError
from xtoken_align.files import TEMPORARY_PATTERN
from xtoken_align.spans.batch import SpanCollator
from xtoken_align.training import TeacherCache, write_teacher_cache
from xtoken_align.training.cache.format import MANIFEST
from xtoken_align.training.cache.model import TeacherModel
from xtoken_align.vocab.kinds import Kind
from xtoken_align.vocab.vocab import Vocab

TEXTS = ["the cat sat", "", "on the mat", "x" * 30]


def tiny_llama(width: int) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=width,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config)


def check_against(
    model: Callable[..., Any], cache: TeacherCache, row: int, *, dead: Sequence[int] = DEAD, rounded: bool = False
) -> None:
    """A cached row against a run of its own, without batch and padding."""
    found = cache[row]
    if not len(found.ids):
        assert len(found.top_ids) == len(found.rest) == 0
        return
    ids = torch.from_numpy(found.ids.astype(np.int64))[None]
    with torch.no_grad():
        made = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    logits = (made if isinstance(made, torch.Tensor) else made.logits)[0].float()
    logits[:, dead] = -torch.inf
    best = logits.log_softmax(-1).topk(cache.settings.top_k)
    # Batches of other shapes round otherwise, which may swap two tokens that are nearly alike.
    assert (torch.from_numpy(found.top_ids) == best.indices).float().mean() > 0.98
    tolerance = {"rtol": 1.2e-3, "atol": 2e-3} if rounded else {"rtol": 0, "atol": 2e-5}
    torch.testing.assert_close(torch.from_numpy(found.log_probs), best.values, **tolerance)
    expected = 1 - best.values.double().exp().sum(-1)
    torch.testing.assert_close(torch.from_numpy(found.rest).double(), expected, rtol=1e-3, atol=1e-5)
    sums = np.exp(found.log_probs.astype(np.float64)).sum(1) + found.rest
    np.testing.assert_allclose(sums, 1.0, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("precision", "batch_size"), [(torch.float32, 12), (torch.bfloat16, 1)])
def test_a_cache_holds_what_a_transformers_model_says(
    tmp_path: Path, vocab: Vocab, dtype: Any, precision: torch.dtype, batch_size: int
) -> None:
    model = tiny_llama(WIDTH).to(precision).eval()
    rows = corpus(12)
    report = write_teacher_cache(
        model, rows, tmp_path, teacher=vocab, top_k=8, dtype=dtype, batch_size=batch_size, rows_per_shard=5
    )
    assert (report.written, report.kept, report.rows) == (3, 0, 12)
    assert report.positions == sum(len(row["teacher_ids"]) for row in rows)
    assert report.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.parquet"))
    cache = TeacherCache(tmp_path, teacher=vocab)
    assert len(cache) == 12
    for row, given in enumerate(rows):
        assert cache[row].ids.tolist() == given["teacher_ids"]
        check_against(model, cache, row, rounded=dtype == "float16")
    assert not np.isin(np.concatenate([cache[row].top_ids.ravel() for row in range(12)]), DEAD).any()
    rest = np.concatenate([cache[row].rest for row in range(12)])
    assert report.mean_rest == pytest.approx(rest.mean(dtype=np.float64))
    assert report.max_rest == rest.max()
    seen = cache.truncation()
    assert (seen.positions, seen.mean_rest, seen.max_rest) == (report.positions, report.mean_rest, report.max_rest)


def test_a_trained_tokenizer_and_texts_cache_what_the_collator_gives(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    teacher = read_vocab(tokenizer, logits=320, name="trained")
    model = tiny_llama(320).train()
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    write_teacher_cache(model, rows, tmp_path, teacher=teacher, top_k=16, max_teacher_tokens=9)
    assert model.training
    cache = TeacherCache(tmp_path, teacher=teacher)
    collate = SpanCollator(student=small_vocab(), teacher=teacher, max_teacher_tokens=9, padding_side="left")
    batch = collate(list(rows))
    made = cache.top_k(range(4), ids=batch["teacher_input_ids"], mask=batch["teacher_attention_mask"])
    assert made.width == 320
    assert made.ids.shape == (*batch["teacher_input_ids"].shape, 16)
    assert torch.equal(made.ids[..., 0] >= 0, batch["teacher_attention_mask"].bool())
    model.eval()
    for row in range(4):
        check_against(model, cache, row, dead=np.flatnonzero(teacher.kinds >= Kind.PADDING), rounded=True)


def test_texts_get_the_begin_and_end_that_are_asked_for(tmp_path: Path, vocab: Vocab, model: Causal) -> None:
    for name, options in (("with", {}), ("without", {"bos": False, "eos": False})):
        write_teacher_cache(model, [{"text": "abc"}], tmp_path / name, teacher=vocab, **options)
    assert TeacherCache(tmp_path / "with")[0].ids.tolist() == [58, *vocab.encode_batch(["abc"])[0], 59]
    assert TeacherCache(tmp_path / "without")[0].ids.tolist() == vocab.encode_batch(["abc"])[0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_ids_are_cut_on_the_side_asked_for(tmp_path: Path, vocab: Vocab, model: Causal, side: Any) -> None:
    rows = [[7, 8, 9, 10], [11]]
    write_teacher_cache(model, rows, tmp_path, teacher=vocab, max_teacher_tokens=3, truncation_side=side)
    cache = TeacherCache(tmp_path)
    assert cache[0].ids.tolist() == ([7, 8, 9] if side == "right" else [8, 9, 10])
    assert cache[1].ids.tolist() == [11]


def test_lists_arrays_and_data_sets_of_the_same_ids_give_the_same_bytes(
    tmp_path: Path, vocab: Vocab, model: Causal
) -> None:
    rows = corpus(9)
    forms = {
        "rows": rows,
        "bare": [row["teacher_ids"] for row in rows],
        "arrays": [np.array(row["teacher_ids"], dtype=np.int32) for row in rows],
        "data set": datasets.Dataset.from_list(rows),
    }
    for name, form in forms.items():
        write_teacher_cache(model, form, tmp_path / name, teacher=vocab, top_k=5, rows_per_shard=4)
    made = [files_of(tmp_path / name) for name in forms]
    assert list(made[0]) == [MANIFEST, *(f"shard-{shard:05d}.parquet" for shard in range(3))]
    assert made[1:] == made[:1] * 3


def test_rows_of_like_lengths_share_a_batch(tmp_path: Path, vocab: Vocab, model: Causal) -> None:
    rows = [[7] * length for length in (1, 9, 2, 8, 1, 9, 2, 8)]
    write_teacher_cache(model, rows, tmp_path, teacher=vocab, batch_size=2)
    assert sorted(model.calls[1:]) == [(2, 1), (2, 2), (2, 8), (2, 9)]


def test_the_model_is_asked_once_for_every_batch_and_never_again(tmp_path: Path, vocab: Vocab, model: Causal) -> None:
    first = write_teacher_cache(model, corpus(), tmp_path, teacher=vocab, rows_per_shard=6)
    before, files = len(model.calls), files_of(tmp_path)
    again = write_teacher_cache(model, corpus(), tmp_path, teacher=vocab, rows_per_shard=6)
    assert len(model.calls) - before == 1  # the probe
    assert (first.written, first.kept, again.written, again.kept) == (4, 0, 0, 4)
    assert (again.rows, again.positions, again.bytes) == (first.rows, first.positions, first.bytes)
    assert files_of(tmp_path) == files


def test_processes_share_the_shards(tmp_path: Path, vocab: Vocab, model: Causal) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    write_teacher_cache(model, corpus(), whole, teacher=vocab, rows_per_shard=4)
    seen: list[tuple[int, int]] = []
    for number in (2, 0, 1):
        report = write_teacher_cache(
            model,
            corpus(),
            parts,
            teacher=vocab,
            rows_per_shard=4,
            process=(number, 3),
            progress=lambda done, share: seen.append((done, share)),
        )
        assert report.written == 2
    assert seen == [(4, 7), (7, 7), (4, 8), (8, 8), (4, 8), (8, 8)]
    assert files_of(parts) == files_of(whole)
    assert TeacherCache(parts).missing == []


def test_an_empty_corpus_gives_an_empty_cache_without_asking_the_model(
    tmp_path: Path, vocab: Vocab, model: Causal
) -> None:
    report = write_teacher_cache(model, [], tmp_path, teacher=vocab)
    assert (report.rows, report.positions, report.mean_rest, model.calls) == (0, 0, 0.0, [])
    cache = TeacherCache(tmp_path, teacher=vocab)
    assert (len(cache), list(cache), cache.missing, cache.verify().positions) == (0, [], [], 0)
    assert cache.top_k([]).ids.shape == (0, 0, 64 - len(DEAD))


def test_more_tokens_than_there_are_keep_all_and_leave_no_rest(tmp_path: Path, vocab: Vocab, model: Causal) -> None:
    report = write_teacher_cache(model, corpus(4), tmp_path, teacher=vocab, top_k=5000)
    cache = TeacherCache(tmp_path)
    assert cache[0].top_ids.shape[1] == WIDTH - len(DEAD)
    assert sorted(cache[0].top_ids[0].tolist()) == [token for token in range(WIDTH) if token not in DEAD]
    assert report.max_rest == 0.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": 3}, "top_k is 64|59 there"),
        ({"dtype": "float32"}, "dtype"),
        ({"rows_per_shard": 3}, "rows_per_shard"),
    ],
)
def test_a_run_with_other_settings_is_refused(
    tmp_path: Path, vocab: Vocab, model: Causal, options: dict[str, Any], said: str
) -> None:
    write_teacher_cache(model, corpus(4), tmp_path, teacher=vocab)
    with pytest.raises(MismatchError, match=said):
        write_teacher_cache(model, corpus(4), tmp_path, teacher=vocab, **options)


def test_another_tokenizer_another_model_and_other_rows_are_refused(
    tmp_path: Path, vocab: Vocab, model: Causal
) -> None:
    write_teacher_cache(model, corpus(4), tmp_path, teacher=vocab)
    before = files_of(tmp_path)
    with pytest.raises(MismatchError, match="fingerprint"):
        write_teacher_cache(model, corpus(4), tmp_path, teacher=small_vocab(normalise={"q": "k"}))
    with pytest.raises(MismatchError, match="the model is another"):
        write_teacher_cache(Causal(seed=1), corpus(4), tmp_path, teacher=vocab)
    with pytest.raises(MismatchError, match="other rows"):
        write_teacher_cache(model, corpus(4, seed=1), tmp_path, teacher=vocab)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (iter([[1]]), "a length and places"),
        ("abc", "a length and places"),
        ({"text": ["a"]}, "a length and places"),
        ([{"ids": [1]}], "got \\['ids'\\]"),
        ([{"teacher_ids": [1], "teacher_segments": [0]}], "several documents"),
        ([{"teacher_ids": [1], "seq_lengths": [1]}], "several documents"),
        ([{"teacher_ids": [1]}, {"text": "a"}], "some rows have `teacher_ids`"),
        ([{"teacher_ids": [64]}], "a teacher id is 64"),
        ([{"teacher_ids": [-1]}], "a teacher id is -1"),
        ([{"teacher_ids": None}], "teacher ids"),
        ([{"text": None}], "sequence of strings"),
    ],
)
def test_rows_that_cannot_be_cached_are_refused(
    tmp_path: Path, vocab: Vocab, model: Causal, rows: Any, said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        write_teacher_cache(model, rows, tmp_path, teacher=vocab)
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize("process", [(1, 1), (-1, 2), 3, (0, 0), ("a", "b")])
def test_a_process_is_one_of_how_many(tmp_path: Path, vocab: Vocab, model: Causal, process: Any) -> None:
    with pytest.raises(OptionError, match="0 <= p < n"):
        write_teacher_cache(model, corpus(4), tmp_path, teacher=vocab, process=process)


def test_logits_of_another_width_name_the_width(tmp_path: Path, vocab: Vocab) -> None:
    with pytest.raises(OptionError, match="logits=60"):
        write_teacher_cache(
            lambda input_ids, attention_mask: torch.zeros(*input_ids.shape, 60), [[1]], tmp_path, teacher=vocab
        )


@pytest.mark.parametrize("answer", [None, torch.zeros(3), {"logits": torch.zeros(2, 2, 64)}])
def test_a_model_without_logits_is_refused(tmp_path: Path, vocab: Vocab, answer: Any) -> None:
    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return answer

    if isinstance(answer, dict):
        with pytest.raises(OptionError, match="got \\(2, 2, 64\\)"):
            write_teacher_cache(model, [[1]], tmp_path, teacher=vocab)
        return
    with pytest.raises(OptionError, match="gives logits"):
        write_teacher_cache(model, [[1]], tmp_path, teacher=vocab)


def test_logits_that_are_no_numbers_are_refused(tmp_path: Path, vocab: Vocab) -> None:
    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = torch.zeros(*input_ids.shape, WIDTH)
        logits[input_ids == 7] = torch.nan
        return {"logits": logits}

    with pytest.raises(OptionError, match="no numbers"):
        write_teacher_cache(model, [[8, 7, 9]], tmp_path, teacher=vocab)
    assert not list(tmp_path.glob("*.parquet"))


def test_dropout_is_off_while_the_teacher_runs_and_modules_are_left_as_they_were(tmp_path: Path, vocab: Vocab) -> None:
    class Dropping(Causal):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.dropout = torch.nn.Identity(), torch.nn.Dropout(0.9)
            self.frozen.eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.dropout(super().forward(input_ids, attention_mask))

    model = Dropping()
    write_teacher_cache(model, corpus(5), tmp_path / "a", teacher=vocab)
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    write_teacher_cache(Causal(), corpus(5), tmp_path / "b", teacher=vocab)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_model_that_can_keep_keys_and_values_is_told_not_to(vocab: Vocab) -> None:
    told: list[bool] = []

    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool = True) -> torch.Tensor:  # noqa: FBT002
        told.append(use_cache)
        return torch.zeros(*input_ids.shape, WIDTH)

    list(TeacherModel(model=model, vocab=vocab, top_k=2, batch_size=1).rows([np.array([1], dtype=np.int32)]))
    assert told == [False]


def test_unfinished_files_of_killed_processes_are_removed_and_young_ones_stay(
    tmp_path: Path, vocab: Vocab, model: Causal
) -> None:
    import os

    old, young = (tmp_path / TEMPORARY_PATTERN.replace("*", name) for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    write_teacher_cache(model, corpus(4), tmp_path, teacher=vocab)
    assert not old.exists()
    assert young.exists()


def test_writing_holds_a_few_rows_at_a_time(tmp_path: Path, vocab: Vocab, model: Causal) -> None:
    import tracemalloc

    def peak(rows: int) -> int:
        tracemalloc.start()
        corpus_of = [[7] * 40 for _ in range(rows)]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        write_teacher_cache(model, corpus_of, tmp_path / str(rows), teacher=vocab, top_k=50, rows_per_shard=16)
        found = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        return found

    peak(16)
    assert peak(256) < 1.5 * peak(32)


def test_without_pyarrow_the_error_names_the_extra(
    tmp_path: Path, vocab: Vocab, model: Causal, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"xtoken-align\[train\]"):
        write_teacher_cache(model, corpus(4), tmp_path, teacher=vocab)
    assert not list(tmp_path.iterdir())


def test_an_aligner_gives_the_options_of_texts_that_training_has(tmp_path: Path) -> None:
    vocab = small_vocab()
    collate = SpanCollator(student=vocab, teacher=vocab, eos=False, max_teacher_tokens=5, truncation_side="left")
    rows = [{"text": text} for text in TEXTS]
    write_teacher_cache(Causal(), rows, tmp_path, teacher=collate, top_k=4)
    cache = TeacherCache(tmp_path, teacher=vocab)
    assert (cache.settings.eos, cache.settings.max_teacher_tokens, cache.settings.truncation_side) == (False, 5, "left")
    batch = collate(rows)
    cached = cache.top_k(ids=batch["teacher_input_ids"], mask=batch["teacher_attention_mask"])
    assert cached.ids.shape[:2] == batch["teacher_input_ids"].shape
    with pytest.raises(OptionError, match="max_teacher_tokens is given twice"):
        write_teacher_cache(Causal(), rows, tmp_path, teacher=collate, max_teacher_tokens=3)
