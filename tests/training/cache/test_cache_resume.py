"""Runs that are killed, and runs beside each other: in the end the files are those of one quiet run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cache_models import files_of

HERE = Path(__file__).parent

# Killed at a moment of every kind: while the teacher runs, before and after files and names reach the disk. A process
# that forks for every moment loads the libraries once.
KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from cache_models import Causal, corpus, small_vocab, tiny
from xtoken_align.training import write_teacher_cache

torch.set_num_threads(1)
place, keep = Path(sys.argv[1]), sys.argv[2]
kept = {"top_k": 8} if keep == "top_k" else {"keep": keep}

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def teacher(dies_at=None):
    model, calls = Causal() if keep == "top_k" else tiny("Llama"), [0]
    def count(*_):
        if calls[0] == dies_at:
            die()
        calls[0] += 1
    model.register_forward_pre_hook(count)
    return model

def write(folder, model, process=(0, 1)):
    write_teacher_cache(model, corpus(), folder, teacher=small_vocab(), batch_size=3, rows_per_shard=2,
                        process=process, **kept)

def after(name, count, before):
    call, seen = getattr(os, name), [0]
    def counted(*arguments, **options):
        seen[0] += 1
        if before and seen[0] == count:
            die()
        made = call(*arguments, **options)
        if not before and seen[0] == count:
            die()
        return made
    setattr(os, name, counted)

def forked(run):
    number = os.fork()
    if not number:
        try:
            run()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return number

def waited(number):
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

def killed_at(moment):
    kind, count = moment
    if kind != "call":
        after(kind.removeprefix("before "), count, kind.startswith("before "))
    write(place / "killed", teacher(count if kind == "call" else None))

teacher()  # loads what every process below would load
codes = {"quiet": waited(forked(lambda: write(place / "quiet", teacher())))}
left = {}
# fsync, twice a file: of the contents and of the folder; the manifest is the first file.
moments = [("call", 0), ("before fsync", 1), ("call", 1), ("call", 2), ("before fsync", 1), ("fsync", 1), ("fsync", 2),
           ("call", 3), ("before replace", 2), ("replace", 1), ("before fsync", 3)]
if keep == "hidden":
    # Three calls show what the model does, and the output head is the second file.
    moments = [("call", 0), ("fsync", 2), ("before fsync", 1), ("replace", 1), ("call", 3), ("call", 4),
               ("before replace", 2)]
for step, moment in enumerate(moments):
    codes[f"{step} {moment}"] = waited(forked(lambda: killed_at(moment)))
    left[f"{step} {moment}"] = sorted(path.name for path in (place / "killed").glob("*")) if step else []
codes["rest"] = waited(forked(lambda: write(place / "killed", teacher())))
both = [forked(lambda: write(place / "same", teacher())) for _ in range(2)]
both += [forked(lambda part=part: write(place / "parts", teacher(), (part, 2))) for part in range(2)]
codes["both"] = [waited(number) for number in both]
print(json.dumps({"codes": codes, "left": left}))
"""


@pytest.fixture(scope="module", params=["top_k", "hidden"])
def ran(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, dict[str, object]]]:
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    place = tmp_path_factory.mktemp("killed")
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(place), request.param],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return place, json.loads(done.stdout)


def test_every_moment_to_kill_at_was_reached(ran: tuple[Path, dict[str, dict[str, object]]]) -> None:
    codes = ran[1]["codes"]
    assert codes.pop("quiet") == codes.pop("rest") == 0
    assert codes.pop("both") == [0, 0, 0, 0]
    assert set(codes.values()) == {-9}, codes


def test_no_name_of_a_shard_ever_stands_for_a_half_one(ran: tuple[Path, dict[str, dict[str, object]]]) -> None:
    place, said = ran
    quiet = files_of(place / "quiet")
    kept: set[str] = set()
    for names in said["left"].values():
        assert isinstance(names, list)
        visible = {name for name in names if not name.startswith(".")}
        assert visible <= quiet.keys()
        assert kept <= visible
        kept = visible
    assert 1 < len(kept) < len(quiet)


def test_a_run_that_was_killed_again_and_again_ends_with_the_files_of_a_quiet_one(
    ran: tuple[Path, dict[str, dict[str, object]]],
) -> None:
    place, _ = ran
    visible = {name: content for name, content in files_of(place / "killed").items() if not name.startswith(".")}
    assert visible == files_of(place / "quiet")


@pytest.mark.parametrize("name", ["same", "parts"])
def test_processes_at_once_end_with_the_files_of_one(ran: tuple[Path, dict[str, dict[str, object]]], name: str) -> None:
    assert files_of(ran[0] / name) == files_of(ran[0] / "quiet")
