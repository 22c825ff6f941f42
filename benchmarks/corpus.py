"""Measures `inspect --corpus` against tokenising alone, and that memory does not grow with the corpus.

    python benchmarks/corpus.py [--megabytes N]

Prints the speed of weighing as a share of the tokenizer's own, budget 0.8, and peak memory for a tenth and for all of
the text. Exits with 1 where a budget is missed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from time import perf_counter

from xtoken_align import Vocab, build, read_vocab
from xtoken_align.corpus.texts import pieces, read_texts
from xtoken_align.corpus.weigh import batches, weigh

BUDGET = 0.8
MOST_GROWTH = 1.25


def write_corpus(path: Path, size: int) -> None:
    """Writes text of a size: the standard library's own sources, and words of many scripts from a vocabulary."""
    sources = "".join(
        file.read_text(encoding="utf-8", errors="ignore")
        for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    )
    words = [surface.decode("utf-8", "ignore") for surface in read_vocab("qwen3").surfaces.list[100_000:140_000]]
    mixed = "\n".join(" ".join(words[at : at + 12]) for at in range(0, len(words), 12))
    block = (sources + mixed).encode()
    with path.open("wb") as file:
        for _ in range(size // len(block) + 1):
            file.write(block)


def encode(student: Vocab, path: Path) -> float:
    """Seconds that reading and tokenising a file take, with nothing counted."""
    started = perf_counter()
    for batch in batches(read_texts([path])):
        student.encode_batch([piece for text in batch for piece in pieces(text)])
    return perf_counter() - started


def peak(path: Path) -> float:
    """Peak memory in MB of a process that weighs a file."""
    code = (
        "import sys; from xtoken_align import build, read_vocab\n"
        "from xtoken_align.corpus.texts import read_texts; from xtoken_align.corpus.weigh import weigh\n"
        "student = read_vocab('llama-3')\n"
        "weigh(build(student=student, teacher='qwen3'), student, read_texts([sys.argv[1]]))\n"
        "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024) / 1e6


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100)
    size = parser.parse_args().megabytes * 1_000_000
    student, teacher = read_vocab("llama-3"), read_vocab("qwen3")
    mapping = build(student=student, teacher=teacher)
    with tempfile.TemporaryDirectory() as place:
        small, large = Path(place, "small.txt"), Path(place, "large.txt")
        write_corpus(small, size // 10)
        write_corpus(large, size)
        weigh(mapping, student, read_texts([small]), teacher=teacher)
        # Before and after, and on the pieces that are weighed: machines are noisy, and shorter texts encode faster.
        alone = encode(student, large)
        started = perf_counter()
        found = weigh(mapping, student, read_texts([large]), teacher=teacher)
        weighed = perf_counter() - started
        alone = (alone + encode(student, large)) / 2
        peaks = peak(small), peak(large)
    ratio, growth = alone / weighed, peaks[1] / peaks[0]
    print(f"{found.bytes / 1e6:.0f} MB, {found.tokens:,} tokens: {found.tokens / weighed / 1e6:.2f} million tokens/s")
    print(f"speed against tokenising alone   {ratio:6.2f}  at least {BUDGET}")
    print(f"peak memory, {peaks[0]:.0f} and {peaks[1]:.0f} MB    {growth:6.2f}  at most  {MOST_GROWTH}")
    print(f"peak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")
    sys.exit(ratio < BUDGET or growth > MOST_GROWTH)


if __name__ == "__main__":
    main()
