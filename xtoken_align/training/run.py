"""`distill`: from models and texts to a distilled student, in one call that can be cut off at any moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers
from transformers import TrainerState
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME

from ..errors import ArtifactError, MismatchError, MissingExtraError, OptionError, StoreError
from ..export.model_folder import load_model
from ..files import write_atomically
from ..read import read_vocab
from ..spans.batch import SpanCollator
from .cache.format import Keep, Precision
from .cache.read import TeacherCache
from .cache.write import CacheReport, write_teacher_cache
from .config import DistillConfig, LoraConfig, XTokenConfig, model_source, template_of, tokenizer_source
from .config_file import check_config
from .distillation import TEACHER_BITS, Distillation
from .result import DistillResult, model_card, peak_memory, upload, write_student
from .rows import check_templates, collator_of, cut_shares, hashes_of, make_rows, sources_of
from .served import ServedTeacher
from .teachers import CACHED_KINDS, TeacherSpec
from .trainer import XTokenTrainer, last_checkpoint, sound_checkpoint

Report = Callable[[int, int, Mapping[str, float]], object]
"""Is told the steps done, the steps of the run, and what was logged: nothing between the steps of a logging."""

Say = Callable[[str], object]

_SAMPLE = 256
"""Rows by which it is told how much of all rows is cut off."""

_LENGTH = ("max_steps", "num_train_epochs")
"""Options that may grow when a run has ended: it goes on."""

_MEASURES = (
    "loss",
    "bits_per_byte",
    TEACHER_BITS,
    "kd",
    "ce",
    "agreement",
    "misfits",
    "dropped_mass",
    "empty_mass",
    "chunks_used",
)
"""The metrics that say how good a student is."""

_FREE = (
    *("logging_", "log_", "save_", "hub_", "trackio_", "dataloader_num_workers", "dataloader_pin_memory"),
    *("report_to", "run_name", "project", "push_to_hub", "ddp_timeout"),
)
"""Beginnings of options that may change while a run is going on: they do not change what comes out."""


def distill(
    config: DistillConfig,
    *,
    store: str | Path | None = None,
    report: Report = lambda *_: None,
    say: Say = lambda _: None,
) -> DistillResult:
    """Distils a student as a configuration says.

    Called again with the same configuration, it goes on from the last checkpoint and ends with the same student. Called
    again after the end, it says what was made; with more steps (`max_steps` or `num_train_epochs`) it goes on to those.

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
    result = _ended_before(config, folder)
    resumed = 0
    if result is not None:
        say(f"{config.sentence}: this run has ended before, nothing is trained; more steps go on from its end")
    else:
        say(f"{config.sentence}: loading the models")
        trainer = _make_trainer(config, folder, store=store, report=report, say=say)
        distillation, processes = trainer.distillation, trainer.args.world_size
        facts = {
            "texts": hashes_of(sources_of(config.texts)),
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

        def told(count: int) -> None:
            say(f"reading the texts: {count:,} rows")

        with trainer.args.main_process_first(desc="the texts"):
            rows, held_out = make_rows(config, folder.texts, processes, told)
        if "messages" in rows.column_names:
            check_templates(config, distillation.vocab, distillation.teacher_vocabs)
        cut = _cut(distillation, rows, say)
        result = {**_train(trainer, folder, rows, held_out, checkpoint, say), "cut": cut}
        say("writing the student")
        _write(trainer, folder, result, config)
    return DistillResult(
        **{**result, "student": folder.student, "teachers": tuple(result["teachers"])},
        seconds=perf_counter() - started,
        resumed=resumed,
    )


def cache_teacher(
    config: DistillConfig,
    folder: str | Path | None = None,
    *,
    teacher: int = 0,
    keep: Keep = "top_k",
    top_k: int | None = None,
    dtype: Precision | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], object] = lambda *_: None,
    say: Say = lambda _: None,
    space: Say = lambda _: None,
) -> CacheReport:
    """Runs a teacher of a configuration over its rows, those that are held out too, and keeps what it says of them.

    Args:
        config: of the run.
        folder: the cache's folder; by default `cache` in the run's.
        teacher: which of the teachers.
        keep: the best tokens (`top_k`) or the last hidden states (`hidden`) of each position.
        top_k: tokens that are kept of each position, 64 by default.
        dtype: how log-probabilities or hidden states are kept; see `write_teacher_cache`.
        batch_size: rows that the teacher reads at a time.
        progress: is told the rows done, and how many there are.
        say: is told what is being done.
        space: is told, before the teacher runs, how much space the cache takes.

    Raises:
        OptionError: there is no such teacher, it is a cache already, or its loss cannot be learnt from what is kept.
        MismatchError: the folder is the cache of other rows, settings or of another model.
        SourceError: the model or a tokenizer cannot be found.
        CorpusError: the texts cannot be read.
    """
    check_config(config)
    if teacher >= len(config.teachers):
        raise OptionError(f"no teacher has the number {teacher}: they run from 0 to {len(config.teachers) - 1}")
    part, run_folder = config.teachers[teacher], RunFolder(config.folder)
    kind = {**config.loss, **part.loss}.get("kind", "auto")
    if part.cache is not None:
        raise OptionError(f"teachers[{teacher}] is the cache {part.cache} already")
    if part.url is not None:
        raise OptionError(
            f"teachers[{teacher}] is served at {part.url}: in Python, write_teacher_cache takes a ServedTeacher"
        )
    if keep == "top_k" and kind not in ("auto", *CACHED_KINDS):
        raise OptionError(
            f"{kind} needs the teacher's whole distribution: keep hidden states (--keep hidden), since a top k serves "
            f"{', '.join(CACHED_KINDS)} alone"
        )
    _silence_transformers()
    say("reading the texts")
    rows, held_out = make_rows(config, run_folder.texts)
    every = [*rows, *held_out]
    say(f"loading {model_source(part)}")
    model = load_model(model_source(part), part.dtype)
    if torch.cuda.is_available() and not config.training.use_cpu:
        model = model.to("cuda")
    spec = TeacherSpec(model=model, tokenizer=tokenizer_source(part), chat_template=template_of(part))
    collate = collator_of(config, read_vocab(tokenizer_source(config.student)), spec.vocab(), part)
    if "messages" in rows.column_names:
        check_templates(replace(config, teachers=(part,)), collate.tables.student, [collate.tables.teacher])
        every = _ids_of_chats(every, collate, say)
    say("running the teacher")
    place = run_folder.path / "cache" if folder is None else Path(folder).expanduser()
    return write_teacher_cache(
        model,
        every,
        place,
        teacher=collate,
        keep=keep,
        top_k=top_k,
        dtype=dtype,
        batch_size=batch_size,
        progress=progress,
        space=space,
    )


def _ids_of_chats(chats: Sequence[Any], collate: SpanCollator, say: Say) -> list[dict[str, Any]]:
    """Rows with the ids that the teacher's template makes of chats."""
    rows = []
    for number, chat in enumerate(chats, start=1):
        spans = collate.spans([chat])
        rows.append({"teacher_ids": spans.teacher_ids[0][spans.teacher_mask[0]]})
        if number % 100 == 0:
            say(f"tokenising chats: {number:,} of {len(chats):,}")
    return rows


def _silence_transformers() -> None:
    """What is done is told by whoever called."""
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _ended_before(config: DistillConfig, folder: RunFolder) -> dict[str, Any] | None:
    """What a run has made that has ended; None for one that has not, or is to go on."""
    result = folder.read("result.json")
    if result is None or not folder.student.is_dir():
        return None
    # What decides a run and needs no model; vocabularies have one fingerprint whatever width their logits have.
    student = read_vocab(tokenizer_source(config.student)).fingerprint
    folder.claim(config, {"texts": hashes_of(sources_of(config.texts)), "student": student})
    return folder.read("result.json")


def _cut(distillation: Distillation, rows: Any, say: Say) -> dict[str, float]:
    """The share of the tokens that rows lose at their limits, by the first rows; says so where some are lost."""
    sample = [rows[number] for number in range(min(len(rows), _SAMPLE))]
    by_teacher = [cut_shares(collate, sample) for collate in distillation.collate.collators]
    shares = {side: max(each[side] for each in by_teacher) for side in ("student", "teacher")}
    lost = [f"{100 * share:.1f}% of the {side}'s tokens" for side, share in shares.items() if share]
    if lost:
        say(f"cut off at max_student_tokens and max_teacher_tokens: {' and '.join(lost)}")
    return shares


def _make_trainer(config: DistillConfig, folder: RunFolder, *, store: Any, report: Report, say: Say) -> XTokenTrainer:
    """The student, the teachers, their mappings and the trainer of a run."""
    _silence_transformers()
    given = config.training
    seed = given.seed if given.data_seed is None else given.data_seed
    args: XTokenConfig = replace(given, output_dir=str(folder.checkpoints), data_seed=seed, disable_tqdm=True)
    transformers.set_seed(args.seed)
    student = load_model(model_source(config.student), config.student.dtype)
    if config.lora is not None:
        student = with_lora(student, config.lora)
    teachers = []
    for teacher in config.teachers:
        model: Any
        if teacher.model is not None:
            model = load_model(model_source(teacher), teacher.dtype)
        elif teacher.url is not None:
            model = ServedTeacher(teacher.url, tokenizer_source(teacher), **teacher.served)
        else:
            model = TeacherCache(str(teacher.cache))
        teachers.append(
            TeacherSpec(
                model=model,
                tokenizer=tokenizer_source(teacher),
                mapping=teacher.mapping,
                weight=teacher.weight,
                loss=teacher.loss,
                chat_template=template_of(teacher),
            )
        )
    say("finding or building the mappings")
    trainer = XTokenTrainer(
        student,
        args,
        teacher=teachers,
        tokenizer=tokenizer_source(config.student),
        loss=config.loss,
        combine=config.combine,
        collate={**config.collate, "student_template": template_of(config.student)},
        store=store,
        callbacks=[_Reporting(report, folder.metrics)],
        # The rows are read when it is known that the run's folder may be used.
        eval_dataset=[],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    for callback in trainer.callback_handler.callbacks:
        # It knows its folder from where training begins, and what is measured before would go to the working directory.
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder.tensorboard)
    return trainer


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
    _begin_metrics(trainer, folder, before, checkpoint)
    say("training")
    # Measuring draws from the generators, and a run that goes on does not measure again.
    transformers.set_seed(trainer.args.seed)
    started = perf_counter()
    trainer.train(checkpoint)
    speed = trainer.tokens_trained_on() / (perf_counter() - started)
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
        "tokens_per_second": speed or None,
        "peak_memory": peak_memory(),
    }


def _begin_metrics(
    trainer: XTokenTrainer, folder: RunFolder, before: Mapping[str, float], checkpoint: Path | None
) -> None:
    """Begins `metrics.jsonl` with what was measured first, and with what was logged up to a checkpoint."""
    if not trainer.args.should_save:
        return
    first = [{"step": 0, **{f"eval_{name}": value for name, value in before.items()}}] if before else []
    state = None if checkpoint is None else TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    logged = [] if state is None else [entry for entry in state.log_history if _is_logged(entry)]
    lines = "".join(json.dumps(entry) + "\n" for entry in [*first, *logged])
    write_atomically(folder.metrics, lines.encode())


def _is_logged(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of the trainer's log is one of `metrics.jsonl`."""
    return "loss" in entry or "eval_loss" in entry


def _write(trainer: XTokenTrainer, folder: RunFolder, result: Mapping[str, Any], config: DistillConfig) -> None:
    """Writes the student and then the result, in one process; uploads the student where `push_to_hub` says so."""
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        write_student(
            trainer.accelerator.unwrap_model(trainer.model),
            folder.student,
            tokenizer=tokenizer_source(config.student),
            side=trainer.distillation.mappings[0].student,
            chat_template=template_of(config.student),
            card=model_card(config, result),
        )
        if trainer.args.push_to_hub:
            # The trainer itself uploads checkpoints.
            upload(folder.student, trainer.args, str(trainer.hub_model_id))
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
    """Tells how training goes, and adds what is logged to a file, a line of JSON each."""

    def __init__(self, report: Report, metrics: Path) -> None:
        self._report, self._metrics = report, metrics

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        logs = kwargs.get("logs") or {}
        # Before training there is no file yet: what is measured then is its first line.
        if _is_logged(logs) and state.is_world_process_zero and self._metrics.exists():
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**logs, "step": state.global_step}) + "\n")
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
        metrics: what is logged, as JSON lines.
        tensorboard: what is logged, for TensorBoard, if `report_to` names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.texts = path / "texts"
        self.student = path / "student"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"

    def claim(self, config: DistillConfig, facts: Mapping[str, Any]) -> None:
        """Writes down what a run is begun with, or checks that it was begun with the same, or with fewer steps.

        A run that is to go on beyond its end has no result any more.

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
        elif self._is_longer(begun, given):
            # First the result, so that a process that is killed here is not taken for one that has ended.
            (self.path / "result.json").unlink(missing_ok=True)
            self.write("run.json", {**begun, **given})
        elif different := _differences({name: begun.get(name) for name in given}, given):
            raise MismatchError(
                f"{self.path} was begun with other settings ({'; '.join(different[:3])}): run with those to go on, or "
                "name another output"
            )

    def _is_longer(self, begun: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
        """Whether nothing differs but the steps, and there are more of them.

        Raises:
            MismatchError: there is no checkpoint to go on from.
        """
        before, now = dict(begun["config"]["training"]), dict(given["config"]["training"])
        # Of 20 steps that were begun: 30 go on, 10 are another run. Epochs decide where steps are not given (-1).
        steps, more_steps = (training.pop("max_steps", -1) for training in (before, now))
        epochs, more_epochs = (training.pop("num_train_epochs", 1.0) for training in (before, now))
        begun_rest = {name: begun.get(name) for name in given} | {"config": {**begun["config"], "training": before}}
        rest = {**given, "config": {**given["config"], "training": now}}
        checkpoint = last_checkpoint(self.checkpoints)
        reached = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
        longer = more_steps > max(steps, reached) if more_steps > 0 else steps <= 0 and more_epochs > epochs
        if not longer or _differences(begun_rest, rest):
            return False
        if checkpoint is None:
            raise MismatchError(f"{self.path} has no checkpoint to go on from: name another output")
        return True

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
