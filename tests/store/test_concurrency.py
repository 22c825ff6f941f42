"""The store under many processes, and under processes that are killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xtoken_align.mapping.storage import load_mapping

BUILD = """
import sys
sys.path.insert(0, sys.argv[2])
from small_vocabs import make_vocab
from xtoken_align import Store, build
student = make_vocab([chr(97 + i % 26) * (1 + i // 26) for i in range(400)], name="student")
teacher = make_vocab([chr(97 + i % 26) * (1 + i // 26) for i in range(100)], name="teacher")
store = Store(sys.argv[1])
"""
ONCE = BUILD + "print(store.save(build(student=student, teacher=teacher)))"
FOR_EVER = (
    BUILD
    + """
mappings = [build(student=student, teacher=teacher, decay=0.1 + i / 100) for i in range(4)]
print("ready", flush=True)
while True:
    for mapping in mappings:
        store.save(mapping, force=True)
"""
)
TESTS = str(Path(__file__).parents[1])


def start(code: str, store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(store), TESTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_eight_processes_that_build_one_pair_at_once_all_succeed(tmp_path: Path) -> None:
    processes = [start(ONCE, tmp_path) for _ in range(8)]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, [stderr for _, stderr in ends]
    assert len({stdout for stdout, _ in ends}) == 1
    (file,) = tmp_path.glob("*/*.npz")
    load_mapping(file)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_build_that_is_killed_at_any_moment_leaves_only_whole_mappings(tmp_path: Path) -> None:
    chance = random.Random(0)
    leftovers = 0
    for _ in range(50):
        process = start(FOR_EVER, tmp_path)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        # Not a wait for something to happen: the moment of the kill is the experiment.
        time.sleep(chance.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        process.stdout.close()
        assert process.stderr is not None
        process.stderr.close()
        for file in tmp_path.glob("*/*.npz"):
            assert load_mapping(file).version == file.stem
        leftovers = len(list(tmp_path.glob("*/.*.tmp")))
    assert leftovers <= 50
    # The lock of a killed process does not outlive it, and what it left behind is cleared away.
    from xtoken_align import Store
    from xtoken_align.store.entries import collect

    collect(Store(tmp_path), keep=10)
    assert not list(tmp_path.glob("*/.*.tmp"))
    assert len(list(tmp_path.glob("*/*.npz"))) == 4
