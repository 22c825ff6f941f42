"""Caching on Ray Data: the files of one process, written by workers."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cache_models import Causal, files_of, tiny

from xtoken_align import read_vocab
from xtoken_align.errors import MismatchError, MissingExtraError, OptionError
from xtoken_align.training import write_teacher_cache
from xtoken_align.training.cache.format import CacheSettings, corpus_facts, hash_of_sum, make_settings
from xtoken_align.training.cache.ray_data import CacheShards, CorpusRows, _Number, cache_teacher_ray
from xtoken_align.vocab.vocab import Vocab

HERE = Path(__file__).parent
WIDTH = 300
TEXTS = ["the cat", "", "sat on the mat", "x" * 30, "a b c"] * 6
OPTIONS: dict[str, Any] = {"top_k": 8, "batch_size": 3, "rows_per_shard": 4}

# A process of its own, as in the tests of aligning.
CLUSTER = """
import json, sys
import ray
import torch
from ray import data
from cache_models import Causal
from xtoken_align.training.cache.ray_data import cache_teacher_ray

place, given, folder, teacher, width, options = sys.argv[1:]
options = json.loads(options)

def make_model():
    torch.set_num_threads(1)
    return Causal(int(width))

ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=100_000_000,
         log_to_driver=False, configure_logging=False, _temp_dir=place)
context = data.DataContext.get_current()
context.enable_progress_bars = False
try:
    rows = data.read_parquet(given)
    report = cache_teacher_ray(rows, make_model, folder, teacher=teacher, logits=int(width), workers=2, number="number",
                               **options)
    empty = cache_teacher_ray(rows.limit(0), make_model, folder + "-empty", teacher=teacher, workers=2)
    print(json.dumps([[each.written, each.kept, each.rows, each.positions, each.bytes] for each in (report, empty)]))
finally:
    ray.shutdown()
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False))
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def teacher(tokenizer: Path) -> Vocab:
    return read_vocab(tokenizer, logits=WIDTH)


@pytest.fixture
def settings_of(teacher: Vocab) -> CacheSettings:
    given = {name: OPTIONS[name] for name in ("top_k", "rows_per_shard")}
    options: dict[str, Any] = {"bos": True, "eos": True, "max_teacher_tokens": None, "truncation_side": "right"}
    return make_settings(teacher, 6, dtype="float16", **given, **options)


@pytest.fixture
def place() -> Iterator[str]:
    """A folder for the cluster's sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


def table_of(numbers: list[int]) -> pa.Table:
    return pa.table({"row": numbers, "text": [TEXTS[number] for number in numbers], "other": numbers})


def test_two_workers_add_to_the_shards_of_one_process_and_write_the_same_files(
    tokenizer: Path, teacher: Vocab, place: str, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray has no build for this Python or system")
    rows = [{"text": text} for text in TEXTS]
    expected = write_teacher_cache(Causal(WIDTH), rows, tmp_path / "plain", teacher=teacher, **OPTIONS)
    write_teacher_cache(Causal(WIDTH), rows, tmp_path / "made", teacher=teacher, process=(1, 3), **OPTIONS)
    order = [(row * 7) % len(TEXTS) for row in range(len(TEXTS))]
    shuffled = pa.table({"text": [TEXTS[row] for row in order], "number": order})
    pq.write_table(shuffled, tmp_path / "given.parquet", row_group_size=7)
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    arguments = [place, tmp_path / "given.parquet", tmp_path / "made", tokenizer, WIDTH, json.dumps(OPTIONS)]
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "made") == files_of(tmp_path / "plain")
    assert list(files_of(tmp_path / "made-empty")) == ["cache.json"]
    counts = [expected.rows, expected.positions, expected.bytes]
    assert json.loads(done.stdout.splitlines()[-1]) == [[5, 3, *counts], [0, 0, 0, 0, 0]]


def test_parts_of_a_corpus_in_any_order_have_the_hash_of_the_whole(
    tokenizer: Path, teacher: Vocab, settings_of: CacheSettings
) -> None:
    count = CorpusRows(str(tokenizer), settings_of, "row")
    parts = [count(table_of(numbers)) for numbers in ([4, 1], [5], [0, 3, 2])]
    assert [part["rows"] for part in parts] == [[2], [1], [3]]
    whole = hash_of_sum(sum(int(part["sum"][0], 16) for part in parts), 6)
    rows = [{"text": text} for text in TEXTS[:6]]
    assert whole == corpus_facts(rows, teacher, settings_of).hash
    # Every row counts, and its place: a corpus with one other row, or two exchanged, is another.
    for at in range(6):
        other = [*rows]
        other[at] = {"text": f"{rows[at]['text']}."}
        assert corpus_facts(other, teacher, settings_of).hash != whole
    assert corpus_facts([rows[1], rows[0], *rows[2:]], teacher, settings_of).hash != whole
    assert corpus_facts([], teacher, settings_of).hash == hash_of_sum(0, 0) == ""


def test_a_worker_sorts_its_rows_and_refuses_gaps_and_repeats(
    tokenizer: Path, settings_of: CacheSettings, tmp_path: Path
) -> None:
    work = CacheShards(lambda: Causal(WIDTH), str(tokenizer), str(tmp_path / "cache"), settings_of, "row", 3)
    number = _Number("row", 4)
    made = work(number(table_of([2, 0, 3, 1])))
    assert (made["rows"], made["state"], made["shard"]) == ([(0, 4)], ["written"], [0])
    for wrong in ([0, 1, 2], [0, 1, 1, 3], [4, 4, 5]):
        with pytest.raises(OptionError, match="counts rows from 0 without gaps"):
            work(number(table_of(wrong)))
    assert work(number(table_of([5, 4])))["rows"] == [(4, 6)]


def test_workers_write_hidden_states_and_their_head_as_one_process_does(
    tokenizer: Path, teacher: Vocab, settings_of: CacheSettings, tmp_path: Path
) -> None:
    rows = [{"text": text} for text in TEXTS[:6]]
    options: dict[str, Any] = {"keep": "hidden", "rows_per_shard": 4}
    write_teacher_cache(tiny("Llama", WIDTH), rows, tmp_path / "plain", teacher=teacher, batch_size=3, **options)
    texts: dict[str, Any] = {"bos": True, "eos": True, "max_teacher_tokens": None, "truncation_side": "right"}
    settings = replace(
        make_settings(teacher, 6, **options, **texts), corpus=corpus_facts(rows, teacher, settings_of).hash
    )
    for part in ([5, 4], [2, 0, 3, 1]):
        work = CacheShards(lambda: tiny("Llama", WIDTH), str(tokenizer), str(tmp_path / "made"), settings, "row", 3)
        assert work(_Number("row", 4)(table_of(part)))["state"] == ["written"]
    assert files_of(tmp_path / "made") == files_of(tmp_path / "plain")


def test_a_row_number_beyond_the_corpus_is_refused(tokenizer: Path, settings_of: CacheSettings, tmp_path: Path) -> None:
    work = CacheShards(lambda: Causal(WIDTH), str(tokenizer), str(tmp_path), settings_of, "row", 3)
    for wrong in ([8, 9], [-1]):
        table = table_of([0] * len(wrong)).set_column(0, "row", pa.array(wrong))
        with pytest.raises(OptionError, match="counts rows from 0"):
            work(_Number("row", 4)(table))


def test_a_worker_with_another_tokenizer_or_model_refuses(
    tokenizer: Path, settings_of: CacheSettings, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="not what it was"):
        CacheShards(Causal, str(tokenizer), str(tmp_path), replace(settings_of, fingerprint="0"), "row", 3)
    CacheShards(lambda: Causal(WIDTH), str(tokenizer), str(tmp_path), settings_of, "row", 3)
    with pytest.raises(MismatchError, match="the model is another"):
        CacheShards(lambda: Causal(WIDTH, seed=1), str(tokenizer), str(tmp_path), settings_of, "row", 3)


def test_columns_that_are_not_there_are_named() -> None:
    for table in (pa.table({"text": ["a"]}), pa.table({"row": [0], "body": ["a"]})):
        with pytest.raises(OptionError, match="their place in the corpus as `row`"):
            _Number("row", 4)(table)


def test_a_vocabulary_in_memory_does_not_travel(teacher: Vocab, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot travel"):
        cache_teacher_ray(None, Causal, tmp_path, teacher=teacher, workers=1)


def test_without_ray_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(MissingExtraError, match=r"xtoken-align\[ray\]"):
        cache_teacher_ray(None, Causal, tmp_path, teacher="llama-3", workers=2)


def test_without_a_worker_nothing_is_cached() -> None:
    with pytest.raises(OptionError, match="workers is a whole number above 0, got 0"):
        cache_teacher_ray(None, Causal, "cache", teacher="llama-3", workers=0)
