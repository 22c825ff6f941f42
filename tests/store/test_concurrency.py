"""The store under many processes, and under processes that are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xtoken_align import Store
from xtoken_align.mapping.mapping import load_mapping
from xtoken_align.store.store import collect

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
KILLED = (
    BUILD
    + """
import os, random, signal, time
from pathlib import Path
from xtoken_align.mapping.mapping import load_mapping
mappings = [build(student=student, teacher=teacher, decay=0.1 + i / 100) for i in range(4)]
chance = random.Random(0)
for _ in range(50):
    begun, begin = os.pipe()
    child = os.fork()
    while not child:
        for mapping in mappings:
            store.save(mapping, force=True)
            os.write(begin, b"x")
    os.read(begun, 1)
    os.close(begun), os.close(begin)
    # Not a wait for something to happen: the moment of the kill is the experiment.
    time.sleep(chance.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for file in Path(sys.argv[1]).glob("*/*.npz"):
        assert load_mapping(file).version == file.stem
print(len(list(Path(sys.argv[1]).glob("*/*.npz"))), len(list(Path(sys.argv[1]).glob("*/.*.tmp"))))
"""
)
ASKED = (
    BUILD
    + """
from xtoken_align.store import load
build = load.build
def counted(**options):
    print("built")
    return build(**options)
load.build = counted
print(load.get_or_build(student=student, teacher=teacher, store=sys.argv[1]).version)
"""
)
LISTED = (
    BUILD
    + """
from xtoken_align.store.load import get_or_build
from xtoken_align.store.store import collect, entries
for _ in range(60):
    {work}
"""
)
TESTS = str(Path(__file__).parents[1])


def start(code: str, store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(store), TESTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_four_processes_that_build_one_pair_at_once_all_succeed(tmp_path: Path) -> None:
    processes = [start(ONCE, tmp_path) for _ in range(4)]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, [stderr for _, stderr in ends]
    assert len({stdout for stdout, _ in ends}) == 1
    (file,) = tmp_path.glob("*/*.npz")
    load_mapping(file)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_build_that_is_killed_at_any_moment_leaves_only_whole_mappings(tmp_path: Path) -> None:
    process = start(KILLED, tmp_path)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    whole, unfinished = map(int, stdout.split())
    assert whole > 0
    # Some were killed while they wrote, or the experiment shows nothing.
    assert unfinished > 0
    # What they left behind is cleared away, and their locks did not outlive them.
    collect(Store(tmp_path), keep=10)
    assert not list(tmp_path.glob("*/.*.tmp"))
    assert len(list(tmp_path.glob("*/*.npz"))) == whole


def test_eight_processes_that_ask_for_one_pair_at_once_build_it_once(tmp_path: Path) -> None:
    processes = [start(ASKED, tmp_path) for _ in range(8)]
    ends = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, [stderr for _, stderr in ends]
    lines = [line for stdout, _ in ends for line in stdout.split()]
    assert lines.count("built") == 1
    assert len(set(lines)) == 2


def test_lists_and_requests_beside_a_clearing_out_find_what_is_there_or_build_it(tmp_path: Path) -> None:
    works = ("entries(store)", "get_or_build(student=student, teacher=teacher, store=sys.argv[1])",
             "collect(store, keep=0)")  # fmt: skip
    processes = [start(LISTED.format(work=work), tmp_path) for work in works]
    ends = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, [stderr for _, stderr in ends]
