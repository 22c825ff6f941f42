"""What of a configuration can be checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import CorpusError, OptionError, SourceError
from .config import DistillConfig
from .loss_options import check_loss_options, weights_of
from .run_folder import RunFolder


def check_config(config: DistillConfig) -> None:
    """Refuses what can be seen to be wrong with a run before its models are loaded.

    Raises:
        OptionError: an option of a loss or a weight makes no sense, or the output would replace what is read.
        CorpusError: a file with texts is missing.
        SourceError: a folder of a model or cache is missing.
    """
    check_loss_options(config.loss, "loss")
    for number, teacher in enumerate(config.teachers):
        check_loss_options({**config.loss, **teacher.loss}, f"teachers[{number}].loss")
    weights_of([teacher.weight for teacher in config.teachers])
    for name in config.texts:
        if name != "-" and not Path(name).is_file():
            raise CorpusError(f"there is no file {name}: name files with texts, from the folder that the run starts in")
    for where, name in _sources(config):
        if _is_path(name) and not Path(name).expanduser().exists():
            raise SourceError(
                f"there is no folder {name}, which {where} names: name one from the folder that the run starts in, or "
                "a Hub id"
            )
    for number, teacher in enumerate(config.teachers):
        if teacher.cache is not None and not Path(teacher.cache).expanduser().is_dir():
            raise SourceError(f"there is no folder {teacher.cache}, which teachers[{number}].cache names")
    _check_output(config)


def _check_output(config: DistillConfig) -> None:
    """Refuses to write the student over what the run reads, or over what no run has written."""
    folder = RunFolder(Path(config.output).expanduser())
    target = folder.student.resolve()
    for where, name in _sources(config):
        if target == Path(name).expanduser().resolve():
            raise OptionError(
                f"the student would be written to {folder.student}, which is what {where} names: choose another output"
            )
    if folder.student.exists() and not (folder.path / "run.json").exists():
        raise OptionError(
            f"{folder.student} is there already, and no run has written it: choose another output, or move it away"
        )


def _sources(config: DistillConfig) -> Iterator[tuple[str, str]]:
    """What is read as models and tokenizers, and where the configuration names it."""
    teachers = {f"teachers[{number}]": teacher for number, teacher in enumerate(config.teachers)}
    for where, model in {"student": config.student, **teachers}.items():
        for field in ("model", "tokenizer"):
            name = getattr(model, field)
            if name is not None:
                yield f"{where}.{field}", name


def _is_path(name: str) -> bool:
    """Whether a name can be nothing but a path: Hub ids begin with a letter or digit and have one slash at most."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1
