"""Measures aligning: from ids, from texts, against TRL's aligner, and on data sets larger than memory.

    python benchmarks/align.py [--quick] [--only ids texts peers datasets] [--json]

Tokens are those of both sides together. All but `datasets` counts processor time of one core. Texts are sources and
documents of the installed standard library and packages, drawn with a fixed seed. Exits with 1 where a budget is
missed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from xtoken_align import Vocab, align_ids, align_texts, read_vocab

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "spans"))
from slow_spans import slow_chunks

STUDENT, TEACHER = "llama-3", "qwen3"
PAIRS = (("llama-3", "qwen3"), ("llama-4", "qwen3.6"), ("mistral-v1", "qwen3"), ("deepseek", "llama-3"))
LENGTH = 2000  # characters per text: some 500 tokens a side
ROW = 512  # tokens per row of ids
ONE_CORE = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "RAYON")}
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


@dataclass(frozen=True)
class Figure:
    """One measured value and the budget that it has, if any."""

    what: str
    value: float
    unit: str
    budget: float | None = None
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the budget is kept."""
        if self.budget is None:
            return True
        return self.value >= self.budget if self.at_least else self.value <= self.budget

    def line(self) -> str:
        """The figure's line in the table."""
        start = f"{self.what:<60}  {self.value:9.2f} {self.unit:<9}"
        if self.budget is None:
            return start.rstrip()
        limit = f"{'at least' if self.at_least else 'at most'} {self.budget:.2f}"
        return f"{start}  {limit:<14}  {'holds' if self.holds else 'MISSED'}"


def texts_of(size: int) -> list[str]:
    """Real texts of about a size in bytes: code and prose of installed files, in an order drawn with a fixed seed."""
    paths = sysconfig.get_paths()
    folders = {Path(paths[name]) for name in ("stdlib", "purelib")}
    endings = ("py", "md", "rst", "txt")
    files = sorted({file for folder in folders for ending in endings for file in folder.rglob(f"*.{ending}")})
    random.Random(0).shuffle(files)  # noqa: S311 - a fixed order, no secret
    texts: list[str] = []
    for file in files:
        text = file.read_bytes()[: 20 * LENGTH].decode("utf-8", "ignore")
        texts += [text[at : at + LENGTH] for at in range(0, len(text) - LENGTH // 4, LENGTH)]
        if len(texts) * LENGTH > size:
            break
    return texts


def best(work: Callable[[], object], *, seconds: float = 1.0, least: int = 3) -> float:
    """The shortest processor time of several runs: other work on the machine only ever adds."""
    work()
    times: list[float] = []
    while len(times) < least or (sum(times) < seconds and len(times) < 1000):
        started = process_time()
        work()
        times.append(process_time() - started)
    return min(times)


def padded(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids as a training batch has them: an array and its mask."""
    counts = np.array([len(row) for row in rows])
    mask = np.arange(counts.max()) < counts[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.concatenate(rows)
    return ids, mask


def ids_figures(*, quick: bool) -> Iterator[Figure]:
    """From id arrays: speed by size, against the slow twin and against the tokenizers."""
    vocabs = {"student": read_vocab(STUDENT), "teacher": read_vocab(TEACHER)}
    texts = texts_of(2_000_000)
    whole = [[np.array(row) for row in vocab.encode_batch(texts)] for vocab in vocabs.values()]
    # Cut as for training, so that a batch is not mostly padding.
    pool = [[row[:ROW] for row in side] for side in whole]
    tokens = [len(one) + len(other) for one, other in zip(*pool, strict=True)]
    some = texts[:200]
    said = sum(len(row) for side in whole for row in side[:200])
    tokenizers = said / best(lambda: [vocab.encode_batch(some) for vocab in vocabs.values()]) / 1e6
    speeds: dict[int, float] = {}
    for size in (1_000, 10_000, 100_000, 1_000_000, 10_000_000)[: 4 if quick else 5]:
        rows = int(np.searchsorted(np.cumsum(tokens * (size // sum(tokens) + 1)), size)) + 1
        chosen = [row % len(texts) for row in range(rows)]
        (ours, our_mask), (theirs, their_mask) = (padded([side[row] for row in chosen]) for side in pool)
        taken = best(lambda: align_ids(ours, theirs, student_mask=our_mask, teacher_mask=their_mask, **vocabs))  # noqa: B023 - called at once
        speeds[size] = sum(tokens[row] for row in chosen) / taken / 1e6
        budget = 20 if size >= 100_000 else None
        yield Figure(f"from ids, {size:,} tokens", speeds[size], "million/s", budget, at_least=True)
    one = [np.concatenate(side)[None] for side in whole]
    size = one[0].size + one[1].size
    taken = best(lambda: align_ids(*one, **vocabs))
    yield Figure(f"from ids, one row of {size:,} tokens", size / taken / 1e6, "million/s", 20, at_least=True)
    pairs = [(one.tolist(), other.tolist()) for one, other in zip(*(side[:10] for side in pool), strict=True)]
    slow = sum(tokens[:10]) / best(lambda: [slow_chunks(*pair, **vocabs) for pair in pairs]) / 1e6
    yield Figure("both tokenizers alone", tokenizers, "million/s")
    yield Figure("from ids, 1,000,000 tokens, against both tokenizers", speeds[1_000_000] / tokenizers, "times")
    yield Figure("from ids, 10,000 tokens, against the slow twin", speeds[10_000] / slow, "times")


def texts_figures(*, quick: bool) -> Iterator[Figure]:
    """From texts: aligning against tokenising both sides alone, batch by batch in turn."""
    texts = texts_of(500_000 if quick else 2_000_000)
    batches = [texts[at : at + 64] for at in range(0, len(texts), 64)]
    for names in PAIRS:
        student, teacher = map(read_vocab, names)
        works: tuple[Callable[[list[str]], object], ...] = (
            lambda batch: (student.encode_batch(batch), teacher.encode_batch(batch)),  # noqa: B023 - called at once
            lambda batch: align_texts(batch, student=student, teacher=teacher),  # noqa: B023 - the same
        )
        times = np.full((2, len(batches)), np.inf)
        for turn in range(4 if quick else 8):
            for number, batch in enumerate(batches):
                for which in (0, 1) if turn % 2 else (1, 0):
                    started = process_time()
                    works[which](batch)
                    times[which, number] = min(times[which, number], process_time() - started)
        alone, aligned = times.sum(axis=1)
        yield Figure(f"from texts, {' x '.join(names)}, against tokenising", aligned / alone, "times", 1.15)


def peers_figures(*, quick: bool) -> Iterator[Figure]:
    """TRL's aligner of byte offsets, which are given to it, against ours from ids."""
    try:
        from trl.experimental.gold.gold_trainer import ULDLoss
    except ImportError:
        print("TRL is not installed: pip install 'xtoken-align[bench]' to compare with it", file=sys.stderr)
        return
    vocabs = {"student": read_vocab(STUDENT), "teacher": read_vocab(TEACHER)}
    texts = texts_of(200_000 if quick else 1_000_000)
    rows = [vocab.encode_batch(texts) for vocab in vocabs.values()]
    offsets = [[offsets_of(row, vocab) for row in side] for side, vocab in zip(rows, vocabs.values(), strict=True)]
    tokens = sum(len(row) for side in rows for row in side)
    trl = best(lambda: [ULDLoss._align_by_byte_offsets(*pair) for pair in zip(*offsets, strict=True)])  # noqa: SLF001 - the only form it has
    (ours, our_mask), (theirs, their_mask) = (padded([np.array(row) for row in side]) for side in rows)
    taken = best(lambda: align_ids(ours, theirs, student_mask=our_mask, teacher_mask=their_mask, **vocabs))
    yield Figure("TRL's aligner, byte offsets given", tokens / trl / 1e6, "million/s")
    yield Figure("from ids on the same texts", tokens / taken / 1e6, "million/s")
    yield Figure("from ids, against TRL's aligner", trl / taken, "times")


def offsets_of(ids: list[int], vocab: Vocab) -> list[list[int]]:
    """Where each token begins and ends in the text's bytes."""
    ends = vocab.surfaces.lengths[np.array(ids)].cumsum().tolist()
    return [[begin, end] for begin, end in zip([0, *ends], ends, strict=False)]


def datasets_figures(*, quick: bool) -> Iterator[Figure]:
    """Speed and memory of whole data sets, the larger one ten times the smaller."""
    vocabs = [read_vocab(STUDENT), read_vocab(TEACHER)]
    texts = texts_of(1_000_000 if quick else 10_000_000)
    tokens = sum(len(row) for vocab in vocabs for row in vocab.encode_batch(texts))
    size = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory(prefix="align-") as place:
        corpora = [write_corpus(Path(place, f"{times}.parquet"), texts, times) for times in (1, 10)]
        for library, processes in (("datasets", 1), ("datasets", 2), ("ray", 2)):
            name = f"{library}, {processes} process{'es' * (processes > 1)}"
            runs = [run_worker(library, processes, corpus) for corpus in corpora]
            if not all(runs):
                print(f"{library} is not installed: pip install 'xtoken-align[bench]' to measure it", file=sys.stderr)
                continue
            yield Figure(f"{name}, {10 * size:.0f} MB of text", 10 * tokens / runs[1][0] / 1e6, "million/s")
            yield Figure(f"{name}, memory at {10 * size:.0f} MB", runs[1][1], "MB")
            yield Figure(f"{name}, memory against {size:.0f} MB of text", runs[1][1] / runs[0][1], "times", 1.25)


def write_corpus(file: Path, texts: list[str], times: int) -> Path:
    """Writes texts several times over as Parquet, in row groups of about a megabyte."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"text": texts})
    with parquet.ParquetWriter(file, table.schema) as writer:
        for _ in range(times):
            writer.write_table(table, row_group_size=500)
    return file


def run_worker(library: str, processes: int, corpus: Path) -> tuple[float, float] | None:
    """Seconds, and the peak in MB of what all its processes hold of their own; None where the library is missing."""
    command = [sys.executable, __file__, "--worker", library, str(processes), str(corpus)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0.0
    while True:
        try:
            out, err = worker.communicate(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            peak = max(peak, held(worker.pid))
    if worker.returncode == MISSING:
        return None
    if worker.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {err}")
    return float(out.split()[-1]), peak


MISSING = 3


def held(root: int) -> float:
    """MB of memory that a process and its descendants hold, what they share counted once, without mapped files."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # The name, in parentheses, may hold spaces; the parent is the second field after it.
        for parent in readable(stat).rpartition(")")[2].split()[1:2]:
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    total, left = 0, [root]
    while left:
        process = left.pop()
        lines = readable(Path(f"/proc/{process}/smaps_rollup")).splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
        left += children.get(process, [])
    return total * 1024 / 1e6


def readable(file: Path) -> str:
    """A file's text, "" where the process that it is about has ended."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def work(library: str, processes: int, corpus: str) -> float:
    """Aligns a corpus with a library and writes the result to the disk.

    Returns:
        Seconds from the first row to the last, with the start of the processes.

    Raises:
        ImportError: the library is not installed.
    """
    from xtoken_align.spans.dataset import AlignColumns

    align = AlignColumns(student=STUDENT, teacher=TEACHER)
    with tempfile.TemporaryDirectory(prefix="align-", ignore_cleanup_errors=True) as place:
        if library == "datasets":
            from datasets import load_dataset

            rows = load_dataset("parquet", data_files=corpus, split="train", cache_dir=place)
            started = perf_counter()
            rows.map(align, batched=True, num_proc=processes if processes > 1 else None, remove_columns=["text"])
            return perf_counter() - started
        import ray
        from ray import data

        from xtoken_align.spans.ray_data import align_ray

        ray.init(
            num_cpus=processes,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=200_000_000,
            _temp_dir=place,
        )
        try:
            started = perf_counter()
            align_ray(data.read_parquet(corpus), align, workers=processes).write_parquet(f"{place}/aligned")
            return perf_counter() - started
        finally:
            ray.shutdown()


PARTS: dict[str, Callable[..., Iterator[Figure]]] = {
    "ids": ids_figures,
    "texts": texts_figures,
    "peers": peers_figures,
    "datasets": datasets_figures,
}


def measured(part: str, *, quick: bool) -> list[Figure]:
    """The figures of a part, from a process of its own on one core."""
    command = [sys.executable, __file__, "--part", part, *(["--quick"] if quick else [])]
    environment = {**os.environ, **QUIET, **ONE_CORE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [Figure(**figure) for figure in json.loads(done.stdout)]


def main() -> None:
    """Parses arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less text and fewer runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        try:
            print(work(options.worker[0], int(options.worker[1]), options.worker[2]))
        except ImportError:
            sys.exit(MISSING)
        return
    if options.part:
        print(json.dumps([asdict(figure) for figure in PARTS[options.part](quick=options.quick)]))
        return
    figures: list[Figure] = []
    for part in options.only:
        figures_of_part = measured(part, quick=options.quick)
        if not options.json:
            print("\n".join(figure.line() for figure in figures_of_part), flush=True)
        figures += figures_of_part
    if options.json:
        print(json.dumps([{**asdict(figure), "holds": figure.holds} for figure in figures], indent=2))
    sys.exit(not all(figure.holds for figure in figures))


if __name__ == "__main__":
    main()
