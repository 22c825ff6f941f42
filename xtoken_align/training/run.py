"""`distill`: from models and texts to a distilled student, in one call that can be cut off at any moment."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers

from ..corpus.texts import pieces, read_texts
from ..errors import ArtifactError, CorpusError, MismatchError, MissingExtraError, OptionError, SourceError, StoreError
from ..files import write_atomically
from ..read import read_vocab
from ..sources.locate import locate, tokenizer_files
from .cache.read import TeacherCache
from .config import DistillConfig, LoraConfig, XTokenConfig, check_config
from .served import ServedTeacher
from .teachers import TeacherSpec
from .trainer import XTokenTrainer, last_checkpoint, sound_checkpoint

Report = Callable[[int, int, Mapping[str, float]], object]
"""Is told the steps done, the steps of the run, and what was logged: nothing between the steps of a logging."""

Say = Callable[[str], object]

_MEASURES = ("loss", "kd", "ce", "agreement", "misfits", "dropped_mass", "empty_mass", "chunks_used")
"""The metrics that say how good a student is."""

_FREE = (
    *("logging_", "log_", "save_", "hub_", "trackio_", "dataloader_num_workers", "dataloader_pin_memory"),
    *("report_to", "run_name", "project", "push_to_hub", "ddp_timeout"),
)
"""Beginnings of options that may change while a run is going on: they do not change what comes out."""


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
    say: Say = lambda _: None,
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
        MissingExtraError: accelerate, datasets or peft is not installed.
    """
    started = perf_counter()
    check_config(config)
    folder = RunFolder(config.folder)
    result = folder.read("result.json")
    resumed = 0
    if result is not None and folder.student.is_dir():
        # What decides a run and needs no model; vocabularies have one fingerprint whatever width their logits have.
        student = read_vocab(_tokenizer_of(config.student)).fingerprint
        folder.claim(config, {"texts": hashes_of(config.texts), "student": student})
        say(f"{config.sentence}: this run has ended before, nothing is trained")
    else:
        say(f"{config.sentence}: loading the models")
        trainer = _make_trainer(config, folder, store=store, report=report, say=say)
        distillation, processes = trainer.distillation, trainer.args.world_size
        facts = {
            "texts": hashes_of(config.texts),
            "student": distillation.vocab.fingerprint,
            "mappings": [mapping.version for mapping in distillation.mappings],
            "processes": processes,
        }
        with trainer.args.main_process_first(desc="the run's folder"):
            folder.claim(config, facts)
        checkpoint = sound_checkpoint(folder.checkpoints)
        if checkpoint is not None:
            resumed = int(checkpoint.name.rpartition("-")[2])
            say(f"going on from step {resumed:,}")
        say("reading the texts")
        with trainer.args.main_process_first(desc="the texts"):
            rows, held_out = make_rows(config, folder.texts, processes)
        result = _train(trainer, folder, rows, held_out, checkpoint, say)
        say("writing the student")
        _write(trainer, folder, result, _tokenizer_of(config.student))
    return DistillResult(
        **{**result, "student": folder.student, "teachers": tuple(result["teachers"])},
        seconds=perf_counter() - started,
        resumed=resumed,
    )


def _make_trainer(config: DistillConfig, folder: RunFolder, *, store: Any, report: Report, say: Say) -> XTokenTrainer:
    """The student, the teachers, their mappings and the trainer of a run."""
    # This run's progress is shown by its caller.
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given = config.training
    seed = given.seed if given.data_seed is None else given.data_seed
    args: XTokenConfig = replace(given, output_dir=str(folder.checkpoints), data_seed=seed, disable_tqdm=True)
    transformers.set_seed(args.seed)
    student = load_model(config.student.model, revision=config.student.revision, dtype=config.student.dtype)
    if config.lora is not None:
        student = with_lora(student, config.lora)
    teachers = []
    for teacher in config.teachers:
        model: Any
        if teacher.model is not None:
            model = load_model(str(teacher.model), revision=teacher.revision, dtype=teacher.dtype)
        elif teacher.url is not None:
            model = ServedTeacher(teacher.url, _tokenizer_of(teacher), **teacher.served)
        else:
            model = TeacherCache(str(teacher.cache))
        teachers.append(
            TeacherSpec(
                model=model,
                tokenizer=_tokenizer_of(teacher),
                mapping=teacher.mapping,
                weight=teacher.weight,
                loss=teacher.loss,
            )
        )
    say("finding or building the mappings")
    trainer = XTokenTrainer(
        student,
        args,
        teacher=teachers,
        tokenizer=_tokenizer_of(config.student),
        loss=config.loss,
        combine=config.combine,
        store=store,
        callbacks=[_Reporting(report)],
        # The rows are read when it is known that the run's folder may be used.
        eval_dataset=[],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _tokenizer_of(config: Any) -> str:
    """Where the tokenizer of a student or a teacher is read from."""
    if config.tokenizer is not None:
        return str(config.tokenizer)
    return f"{config.model}@{config.revision}" if config.revision else str(config.model)


def _train(
    trainer: XTokenTrainer, folder: RunFolder, rows: Any, held_out: Any, checkpoint: Path | None, say: Say
) -> dict[str, Any]:
    """Measures, trains to the end, measures again, and says what was made."""
    trainer.train_dataset, trainer.eval_dataset = rows, held_out
    # Batches that do not come out even are filled up with rows that were measured already.
    most = trainer.args.per_device_eval_batch_size
    trainer.args.per_device_eval_batch_size = even_batch(len(held_out) // trainer.args.world_size, most)

    def measured() -> dict[str, float]:
        if not len(held_out):
            return {}
        say("measuring")
        return _measures(trainer.evaluate(held_out), "eval_")

    before = folder.read("before.json")
    if before is None:
        before = measured()
        if before and trainer.args.should_save:
            folder.write("before.json", before)
    say("training")
    # Measuring draws from the generators, and a run that goes on does not measure again.
    transformers.set_seed(trainer.args.seed)
    trainer.train(checkpoint)
    after = measured()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    distillation = trainer.distillation
    losses = getattr(distillation.loss, "losses", [distillation.loss])
    parts = zip(distillation.mappings, losses, distillation.weights, strict=True)
    return {
        "steps": trainer.state.global_step,
        "rows": len(rows),
        "held_out": len(held_out),
        "teachers": [
            {"name": mapping.teacher.name, "loss": loss.kind, "mapping": mapping.version, "weight": weight}
            for mapping, loss, weight in parts
        ],
        "before": before,
        "after": after,
        "training": _measures(logged[-1], "") if logged else {},
    }


def _write(trainer: XTokenTrainer, folder: RunFolder, result: Mapping[str, Any], tokenizer: str) -> None:
    """Writes the student and then the result, in one process; uploads the student where `push_to_hub` says so."""
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        write_student(trainer.accelerator.unwrap_model(trainer.model), folder.student, tokenizer)
        if trainer.args.push_to_hub:
            from huggingface_hub import HfApi

            # The trainer itself uploads checkpoints.
            api, place = HfApi(token=trainer.args.hub_token), str(trainer.hub_model_id)
            api.upload_folder(repo_id=place, folder_path=folder.student, revision=trainer.args.hub_revision)
        folder.write("result.json", result)
    trainer.accelerator.wait_for_everyone()


def even_batch(rows: int, most: int) -> int:
    """The largest size of batches, `most` or less, that some rows can be cut into.

    >>> even_batch(32, 8), even_batch(9, 4), even_batch(7, 4), even_batch(3, 8)
    (8, 3, 1, 3)
    """
    return max(size for size in range(1, most + 1) if rows % size == 0)


def _measures(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    names = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    return {name: float(value) for name, value in names.items() if name.partition("/")[0] in _MEASURES}


class _Reporting(transformers.TrainerCallback):
    """Tells how training goes."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        logs = kwargs.get("logs") or {}
        # What is measured before and after training is told by the result.
        measured = control.should_evaluate and "eval_loss" in logs
        if ("loss" in logs or measured) and state.is_world_process_zero:
            self._report(state.global_step, state.max_steps, logs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            self._report(state.global_step, state.max_steps, {})


class RunFolder:
    """The folder of a run: what it was begun with, and what has been reached. Its files appear whole.

    Attributes:
        path: the folder.
        checkpoints: where checkpoints are.
        texts: where the rows are kept.
        student: where the student will be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.texts = path / "texts"
        self.student = path / "student"

    def claim(self, config: DistillConfig, facts: Mapping[str, Any]) -> None:
        """Writes down what a run is begun with, or checks that it was begun with the same.

        Args:
            config: the run's.
            facts: what else decides it: hashes of its files, its tokenizers, its mappings.

        Raises:
            MismatchError: the folder is another run's; says what differs.
            StoreError: the folder cannot be made or written.
        """
        deciding = config.to_dict()
        del deciding["output"]
        deciding["training"] = {
            name: value for name, value in deciding["training"].items() if not name.startswith(_FREE)
        }
        given = json.loads(json.dumps({"config": deciding, **facts}))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {self.path} ({error.strerror}): choose another output") from error
        begun = self.read("run.json")
        reached = last_checkpoint(self.checkpoints) is not None or (self.path / "result.json").exists()
        if begun is None or not reached:
            # What was measured before a run with other settings is not what this one begins with.
            if begun != given:
                (self.path / "before.json").unlink(missing_ok=True)
            self.write("run.json", given)
        elif different := _differences({name: begun.get(name) for name in given}, given):
            raise MismatchError(
                f"{self.path} was begun with other settings ({'; '.join(different[:3])}): run with those to go on, or "
                "name another output"
            )

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, None where it is not there.

        Raises:
            ArtifactError: it is damaged.
        """
        path = self.path / name
        try:
            values: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged ({error}): remove the folder and begin anew") from error
        return values

    def write(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes a JSON file."""
        write_atomically(self.path / name, json.dumps(values, indent=1).encode() + b"\n")


def _differences(begun: Any, given: Any, where: str = "") -> list[str]:
    """What differs between two JSON values, place by place.

    >>> _differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b is 1 there, 3 here']
    """
    if isinstance(begun, dict) and isinstance(given, dict):
        return [
            line
            for name in dict.fromkeys([*begun, *given])
            for line in _differences(begun.get(name), given.get(name), f"{where}.{name}" if where else name)
        ]
    if isinstance(begun, list) and isinstance(given, list) and len(begun) == len(given):
        pairs = enumerate(zip(begun, given, strict=True))
        return [line for number, pair in pairs for line in _differences(*pair, f"{where}[{number}]")]
    return [] if begun == given else [f"{where} is {begun!r} there, {given!r} here"]


def make_rows(config: DistillConfig, folder: Path, processes: int = 1) -> tuple[Any, Any]:
    """The rows to train on and those to measure on, as data sets that are read from the disk.

    Args:
        config: the run's.
        folder: where they are kept; what is there already is taken from there.
        processes: among which those to measure on can be shared out.

    Raises:
        CorpusError: a file cannot be read, or there are no texts.
        MissingExtraError: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("Training", "train") from error
    files = hashes_of(config.texts)
    datasets.disable_progress_bars()
    try:
        rows = datasets.Dataset.from_generator(
            _rows,
            gen_kwargs={"given": (tuple(config.texts), tuple(files.items()), config.text_field, config.characters)},
            features=datasets.Features({"text": datasets.Value("large_string")}),
            cache_dir=str(folder),
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, CorpusError):
            raise error.__cause__ from error
        raise
    return split(rows, config.holdout, config.training.seed, processes)


def _rows(given: tuple[Any, ...]) -> Iterator[dict[str, str]]:
    paths, _, field, characters = given
    empty = True
    for text in read_texts(paths, field=field):
        for piece in pieces(text, characters):
            if piece.strip():
                empty = False
                yield {"text": piece}
    if empty:
        # A data set without rows cannot be read back.
        raise CorpusError(f"there is no text in {', '.join(paths)}: name files that have some")


def split(rows: Any, holdout: int, seed: int, processes: int = 1) -> tuple[Any, Any]:
    """Rows to train on, in their order, and rows to measure on, drawn from all; a tenth of them at most."""
    aside = min(holdout, len(rows) // 10)
    aside -= aside % processes
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(np.sort(order[aside:])), rows.select(np.sort(order[:aside]))


def hashes_of(names: Sequence[str]) -> dict[str, str]:
    """A hash of each file's bytes; what is no file has none."""
    hashes = {}
    for name in names:
        path = Path(name)
        if path.is_file():
            facts = path.stat()
            hashes[name] = _hash_of(path.resolve(), facts.st_size, facts.st_mtime_ns)
    return hashes


@lru_cache(maxsize=1024)
def _hash_of(path: Path, size: int, changed: int) -> str:  # noqa: ARG001 - a file that was changed is read again
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    return f"content {digest}"


def load_model(name: str, *, revision: str | None, dtype: str | None) -> Any:
    """A causal language model from a folder or the Hub; code that comes with it is not run.

    Raises:
        SourceError: it cannot be found or loaded.
    """
    folder = Path(name).expanduser()
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            str(folder) if folder.is_dir() else name,
            revision=revision or "main",
            dtype=getattr(torch, dtype) if dtype else "auto",
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise SourceError(
            f"cannot load the model {name} ({reason}): give a folder or a Hub id with a causal language model"
        ) from error


def with_lora(model: Any, config: LoraConfig) -> Any:
    """The model with adapters.

    Raises:
        MissingExtraError: `peft` is not installed.
        OptionError: the targets are no modules of the model.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("Training adapters (lora)", "lora") from error
    targets = "all-linear" if config.target_modules is None else list(config.target_modules)
    options = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, options)
    except ValueError as error:
        reason = str(error).strip().split("\n")[0]
        raise OptionError(f"lora cannot be put into this student ({reason}): see lora.target_modules") from error


def write_student(model: Any, folder: Path, tokenizer: str) -> None:
    """Writes the student with its tokenizer's files; the folder appears whole or not at all.

    Args:
        model: the student; adapters are merged into its weights.
        folder: takes its name in the last step; what was there before is replaced.
        tokenizer: the source of the student's tokenizer.
    """
    whole = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    beside = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    whole.save_pretrained(beside)
    for file in tokenizer_files(locate(tokenizer).path):
        shutil.copyfile(file, beside / file.name)
    if folder.exists():
        shutil.rmtree(folder)
    beside.rename(folder)
