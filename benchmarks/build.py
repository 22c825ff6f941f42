"""Measures the budgets of building and reporting, each against its limit, and prints them.

    python benchmarks/build.py [--runs N] [--json]

Times are medians of whole processes, measured in turn with what they are compared with, since machines are noisy.
Exits with 1 where a median misses its budget.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from xtoken_align.readers.rank_file import parse_ranks
from xtoken_align.readers.spelling import characters_of
from xtoken_align.sources.locate import package_file
from xtoken_align.sources.presets import presets

TEACHER, STUDENT = "qwen3", "llama-3"
# The largest vocabularies that packages carry: two real pairs near 262 thousand tokens a side.
LARGE = (("qwen3.6", "llama-4"), ("pkg:ai21_tokenizer/resources/j2-tokenizer/j2-tokenizer.model", "qwen3.6"))
LOAD = f"from xtoken_align import read_vocab; read_vocab({TEACHER!r}); read_vocab({STUDENT!r})"


@dataclass(frozen=True)
class Figure:
    """One measured value and the most it may be."""

    what: str
    value: float
    budget: float
    unit: str

    @property
    def holds(self) -> bool:
        """Whether the budget is kept."""
        return self.value <= self.budget


@dataclass(frozen=True)
class Run:
    """One finished process: wall seconds, seconds of processor time, and peak memory in MB."""

    seconds: float
    busy: float
    peak: float


LAUNCH = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
process.returncode = os.waitstatus_to_exitcode(status)
seconds = time.perf_counter() - started
# Linux counts in KiB, macOS in bytes.
peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
print(json.dumps({"seconds": seconds, "busy": usage.ru_utime + usage.ru_stime, "peak": peak}))
sys.exit(process.returncode)
"""


def run(command: Sequence[str]) -> Run:
    """Runs a process to its end.

    Raises:
        RuntimeError: it failed.
    """
    # Started by a small process of its own: the peak that the system reports for a process begins with the size of its
    # parent.
    launch = [sys.executable, "-S", "-c", LAUNCH, *command]
    done = subprocess.run(launch, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
    return Run(**json.loads(done.stdout))


def tokenizer_json(alias: str, folder: Path) -> Path:
    """Writes the rank file of an alias as the `tokenizer.json` that converters make of it: every way to merge a token.

    Args:
        alias: the alias.
        folder: an empty folder, which gets a `config.json` too.
    """
    preset = presets()[alias]
    path = package_file(preset.locations[0])
    ranks = parse_ranks(path.read_bytes(), path.name)
    rank_of = dict(zip(ranks.tokens, ranks.ranks, strict=True))
    merges = [
        [characters_of(token[:at]), characters_of(token[at:])]
        for token in sorted(rank_of, key=rank_of.__getitem__)
        for at in range(1, len(token))
        if token[:at] in rank_of and token[at:] in rank_of
    ]
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    split = {"type": "Split", "pattern": {"Regex": preset.pattern}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    data = {
        "version": "1.0",
        "added_tokens": [
            {"id": token.id, "content": token.text, "special": token.special, **plain} for token in preset.added
        ],
        "normalizer": {"type": preset.normalizer} if preset.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "decoder": to_bytes,
        "model": {
            "type": "BPE",
            "vocab": {characters_of(token): rank for token, rank in rank_of.items()},
            "merges": merges,
            "ignore_merges": True,
        },
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"vocab_size": preset.logits}))
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(data, ensure_ascii=False, indent=2), encoding="utf-8")
    return file


def measure_tokenizer_json(runs: int, place: Path) -> list[Figure]:
    """The figures of two `tokenizer.json`, the commonest case, against `tokenizers` reading both."""
    files = [tokenizer_json(alias, place / alias) for alias in (TEACHER, STUDENT)]
    read = "from tokenizers import Tokenizer; both = [Tokenizer.from_file(file) for file in {!r}]"
    load = [sys.executable, "-P", "-c", read.format([str(file) for file in files])]
    sources = [str(file.parent) for file in files]
    builds = [command("build", *sources, "--store", str(place / f"json-{number}"), "-q") for number in range(runs + 1)]
    pairs = [(run(build), run(load)) for build in builds][1:]
    ratio = statistics.median(built.seconds / loaded.seconds for built, loaded in pairs)
    return [
        Figure("build of two tokenizer.json, against reading both with tokenizers", ratio, 2.5, "times"),
        Figure("build of two tokenizer.json, peak memory", max(built.peak for built, _ in pairs), 350, "MB"),
    ]


def command(*arguments: str) -> list[str]:
    """The command line of this interpreter's environment."""
    return [str(Path(sys.executable).parent / "xtoken-align"), *arguments]


def load_command() -> list[str]:
    """The process that a build is compared with."""
    # Like the command line, from wherever it is started, it imports what is installed.
    return [sys.executable, "-P", "-c", LOAD]


def measure(runs: int, place: Path) -> list[Figure]:
    """All figures.

    Args:
        runs: counted runs of each process, after one that is not counted.
        place: an empty folder.
    """
    # Every build meets an empty store. The first pair of runs warms the disk's cache and is not counted.
    stores = [place / f"store-{number}" for number in range(runs + 1)]
    builds = [command("build", TEACHER, STUDENT, "--store", str(store), "-q") for store in stores]
    pairs = [(run(build), run(load_command())) for build in builds][1:]
    (file,) = stores[0].glob("*/*.npz")
    ratio = statistics.median(built.seconds / loaded.seconds for built, loaded in pairs)
    figures = [
        Figure("build, against loading the two vocabularies", ratio, 2.0, "times"),
        Figure("build, peak memory", max(built.peak for built, _ in pairs), 400, "MB"),
        Figure("file of Llama-3 x Qwen3", file.stat().st_size / 1e6, 3, "MB"),
    ]
    figures += measure_tokenizer_json(runs, place)
    reports = {
        "--help": ("--help",),
        "inspect": ("inspect", str(file)),
        "show": ("show", str(file), "201"),
        "verify": ("verify", str(file)),
        "diff": ("diff", str(file), str(file)),
        "list": ("list", "--store", str(stores[0])),
    }
    for name, arguments in reports.items():
        run(command(*arguments))
        median = statistics.median(run(command(*arguments)).seconds for _ in range(runs))
        figures.append(Figure(name, median, 0.25 if name == "--help" else 0.6, "s"))
    for teacher, student in LARGE:
        large = place / "large.npz"
        run(command("build", teacher, student, "-o", str(large), "--force", "-q"))
        name = f"file of {student} x {teacher.rsplit('/', 1)[-1]}"
        figures.append(Figure(name, large.stat().st_size / 1e6, 8, "MB"))
    return figures


def main() -> None:
    """Parses arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each process")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        figures = measure(options.runs, Path(place))
    if options.json:
        print(json.dumps([{**asdict(figure), "holds": figure.holds} for figure in figures], indent=2))
    else:
        width = max(len(figure.what) for figure in figures)
        for figure in figures:
            verdict = "holds" if figure.holds else "MISSED"
            print(f"{figure.what:<{width}}  {figure.value:8.2f}  of {figure.budget:6.2f} {figure.unit:<5}  {verdict}")
    sys.exit(not all(figure.holds for figure in figures))


if __name__ == "__main__":
    main()
