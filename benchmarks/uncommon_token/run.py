"""Which loss teaches across tokenizers? Trains small students with every loss and measures what they learn.

    python benchmarks/uncommon_token/run.py [--quick] [--pairs digits words] [--arms p-kl c-kl] [--seeds 3 4 6]
                                            [--out FOLDER] [--work FOLDER] [--workers 2] [--minutes 60]

Writes `results.json`, `results.png`, `results.svg`, `small.png` and `RESULTS.md` to `--out`. Every arm's result is kept
in `--work` as soon as it is there, so that a run that was broken off goes on where it was. What `results.json` holds of
the same code and settings is not trained again either.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import vocabularies
from arms import Arm, all_arms
from distil import Group, Place, run_group, train_start, train_teacher
from settings import FULL, PAIRS, QUICK, Settings

HERE = Path(__file__).parent
SEEDS = (3, 4, 6, 7, 8)
"""Sizes were chosen on 0 to 2, and C-KL's forms compared on 3 and 4. Nothing was chosen by 6 to 8."""
BASE_CODE = ("texts.py", "vocabularies.py", "models.py")
ARM_CODE = ("distil.py", "measure.py", "settings.py")
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "xtoken-align")


def main() -> None:
    """The command."""
    options = _options()
    settings = QUICK if options.quick else FULL
    begun = time.perf_counter()
    place = place_of(options.work, settings)
    arms = chosen(options.pairs, options.arms)
    place.unpack(options.out / "results.json")
    for line in train(place, settings, arms, options.seeds, options.workers, options.minutes):
        print(f"{time.perf_counter() - begun:7.1f} s  {line}", flush=True)
    results = gathered(place, settings, arms, options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    from report import write_report

    write_report(options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--arms", nargs="+", choices=sorted({arm.name for arm in all_arms()}), help="by default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / "build" / "uncommon_token")
    parser.add_argument("--workers", type=int, default=2, help="processes, each with one thread")
    parser.add_argument("--minutes", type=float, help="begin no further seed of a group after so long; by default all")
    return parser.parse_args()


def chosen(pairs: Sequence[str], names: Sequence[str] | None) -> list[Arm]:
    """The arms of some pairs, of some names or of all."""
    return [arm for arm in all_arms() if arm.pair in pairs and (names is None or arm.name in names)]


def place_of(work: Path, settings: Settings) -> Place:
    """Folders named by a digest of what decides their contents; an arm's own file is named by what the arm is."""
    base = hashlib.sha256(repr((settings.teachers, settings.start, settings.questions)).encode())
    for name in BASE_CODE:
        base.update((HERE / name).read_bytes())
    folder = work / base.hexdigest()[:12]
    code = base.copy()
    code.update(repr(settings).encode())
    for file in (HERE / name for name in ARM_CODE):
        code.update(file.read_bytes())
    place = Place(folder, folder / code.hexdigest()[:12])
    place.results.mkdir(parents=True, exist_ok=True)
    return place


def train(
    place: Place,
    settings: Settings,
    arms: list[Arm],
    seeds: Sequence[int],
    workers: int,
    minutes: float | None = None,
) -> Iterator[str]:
    """Trains what is not there yet: tokenizers, then teachers and starts, then the arms; says what is done."""
    if not (place.folder / "tokenizers" / "student" / "tokenizer.json").exists():
        vocabularies.write(place.folder / "tokenizers")
        yield "tokenizers"
    # A group's arms share their batches. Seed by seed, so that a run that is broken off has whole seeds.
    groups: dict[tuple[str, str, int], list[Arm]] = {}
    for seed in seeds:
        for arm in arms:
            if not place.result(arm, seed).exists():
                groups.setdefault((arm.pair, arm.corpus, seed), []).append(arm)
    pairs, missing = dict.fromkeys(pair for pair, _, _ in groups), dict.fromkeys(seed for _, _, seed in groups)
    first = [(train_teacher, place, settings, pair) for pair in pairs if not place.teacher(pair).exists()]
    first += [(train_start, place, settings, seed) for seed in missing if not place.start(seed).exists()]
    last = None if minutes is None else time.time() + 60 * minutes
    second = [(_run_all, Group(place, settings, *key), some, last) for key, some in groups.items()]
    for tasks in (first, second):
        yield from _done(tasks, workers)


def _run_all(group: Group, arms: list[Arm], last: float | None) -> str:
    """Trains a group's arms, if there is time left for it."""
    if last is not None and time.time() > last:
        return f"{group.pair}, {group.corpus}, seed {group.seed}: no time left"
    # A group of its own, so that what it keeps of its batches goes with it.
    done = [arm.name for arm in run_group(replace(group), arms)]
    return f"{group.pair}, {group.corpus}, seed {group.seed}: {len(done)} arms"


def _done(tasks: list[tuple[Any, ...]], workers: int) -> Iterator[str]:
    """Runs tasks in processes of one thread each."""
    if workers == 1:
        torch.set_num_threads(1)
        for function, *arguments in tasks:
            yield _named(function(*arguments), function, arguments)
        return
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        running: dict[Future[Any], tuple[Any, ...]] = {
            pool.submit(function, *arguments): (function, arguments) for function, *arguments in tasks
        }
        for future in as_completed(running):
            yield _named(future.result(), *running[future])


def _named(result: str | None, function: Any, arguments: Sequence[Any]) -> str:
    return result or f"{function.__name__.replace('_', ' ')}: {arguments[-1]}"


def gathered(place: Place, settings: Settings, arms: list[Arm], seeds: Sequence[int]) -> dict[str, Any]:
    """Everything that was measured. Arms that lack a seed are left out of the tables, but not of the file."""
    teachers = {
        pair: _json(place.teacher(pair).with_suffix(".json")) for pair in dict.fromkeys(arm.pair for arm in arms)
    }
    starts = {str(seed): _json(place.start(seed).with_suffix(".json")) for seed in seeds}
    files = [place.result(arm, seed) for arm in arms for seed in seeds]
    runs = [_json(file) for file in files if file.exists()]
    busy = sum(one["seconds"] for one in (*teachers.values(), *starts.values(), *runs))
    return {
        "settings": asdict(settings),
        "digests": [place.folder.name, place.results.name],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "seeds": list(seeds),
        "processor_minutes": round(busy / 60, 1),
        "mappings": {pair: _coverage(Group(place, settings, pair, "wrong", 0)) for pair in teachers},
        "teachers": teachers,
        "starts": starts,
        "arms": runs,
    }


def _coverage(group: Group) -> dict[str, Any]:
    """How many tokens a pair's vocabularies have, and how many of them are common."""
    coverage = group.mapping.coverage()
    return {
        "student": group.coder.size,
        "teacher": group.teacher_coder.size,
        "strict": sum(row.common_strict for row in coverage.classes.values()),
        "relaxed": sum(row.common_relaxed for row in coverage.classes.values()),
        "recommendation": coverage.recommendation.paper_rule.loss,
    }


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
