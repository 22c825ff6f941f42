"""`distill`: from models and text to a distilled student, in one call that can be cut off at any moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from ..errors import MissingExtraError
from .check import check_config
from .checkpoints import last_checkpoint
from .config import DistillConfig
from .run_folder import RunFolder

Report = Callable[[int, int, Mapping[str, float]], object]
"""Is told the steps done, the steps of the run, and what was logged: nothing between the steps of a logging."""


@dataclass(frozen=True, kw_only=True)
class DistillResult:
    """What a run has made.

    Attributes:
        student: the folder of the distilled student.
        steps: how many the run has had.
        rows: how many it was trained on.
        held_out: how many it was measured on.
        teachers: each one's name, loss, mapping version and weight.
        before: loss, kd, ce, agreement and so on, on the held-out rows; empty without any.
        after: the same at the end.
        training: the same of the last logging, on rows trained on.
        seconds: of this call.
        resumed: the step that this call went on from; 0 for the beginning.
    """

    student: Path
    steps: int
    rows: int
    held_out: int
    teachers: tuple[dict[str, Any], ...]
    before: dict[str, float]
    after: dict[str, float]
    training: dict[str, float]
    seconds: float
    resumed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `distill`."""
        return {**vars(self), "student": str(self.student), "teachers": list(self.teachers)}


def distill(
    config: DistillConfig,
    *,
    store: str | Path | None = None,
    report: Report = lambda *_: None,
    say: Callable[[str], object] = lambda _: None,
) -> DistillResult:
    """Distils a student as a configuration says.

    Called again with the same configuration, it goes on from the last checkpoint and ends with the same student; called
    again after the end, it says what was made.

    Args:
        config: of the run.
        store: the store's folder.
        report: is told how training goes.
        say: is told what is being done.

    Raises:
        OptionError: a setting makes no sense.
        MismatchError: the output folder is another run's, or a mapping or cache is of another tokenizer.
        SourceError: a model or tokenizer cannot be found.
        CorpusError: the texts cannot be read.
        MissingExtraError: transformers, accelerate or datasets is not installed.
    """
    started = perf_counter()
    check_config(config)
    try:
        from .run import Run
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] in ("transformers", "accelerate"):
            raise MissingExtraError("Training", "train") from error
        raise
    folder = RunFolder(Path(config.output).expanduser())
    say("loading the models")
    run = Run(config, folder, store=store, report=report, say=say)
    run.claim()
    finished = folder.read("result.json")
    resumed = 0
    if finished is None or not folder.student.is_dir():
        checkpoint = last_checkpoint(folder.checkpoints)
        resumed = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        if resumed:
            say(f"going on from step {resumed:,}")
        finished = run.finish(checkpoint)
    else:
        say("this run has ended before: nothing is trained")
    return DistillResult(
        **{**finished, "student": folder.student, "teachers": tuple(finished["teachers"])},
        seconds=perf_counter() - started,
        resumed=resumed,
    )
