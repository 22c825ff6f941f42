"""What can be seen to be wrong with a run by looking at the disk, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import CorpusError, OptionError, SourceError, XTokenError
from ..sources.presets import presets
from .config import DistillConfig, refuse
from .rows import sources_of
from .spelling import Mistake

Problem = tuple[str, type[XTokenError], str]
"""The place of a mistake, the error that it is alone, and a sentence about it."""


def check_config(config: DistillConfig) -> None:
    """Refuses a run whose files are not there, or whose output would replace what it reads.

    Raises:
        CorpusError: a file with texts is missing.
        SourceError: a folder of a model or cache is missing.
        OptionError: the output would replace what is read, nothing may be uploaded, or several of these.
    """
    problems = list(_problems(vars(config)))
    kinds = {kind for _, kind, _ in problems}
    refuse([(place, said) for place, _, said in problems], kinds.pop() if len(kinds) == 1 else OptionError)


def mistakes_of_files(values: Mapping[str, Any]) -> Iterator[Mistake]:
    """What the disk has against those parts of a configuration that could be read, by their names."""
    return ((place, said) for place, _, said in _problems(values))


def _problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    try:
        sources_of(values.get("texts", ()))
    except CorpusError as error:
        for said in str(error).split("\n  "):
            if not said.endswith("mistakes:"):
                yield "texts", CorpusError, said
    parts = {f"teachers[{number}]": teacher for number, teacher in enumerate(values.get("teachers", ()))}
    if "student" in values:
        parts = {"student": values["student"], **parts}
    for where, part in parts.items():
        yield from _missing(part, where)
    for name in _not_installed(values.get("training")):
        said = (
            f"training.report_to names {name}, which is not installed: install it (pip install {name}), or leave it out"
        )
        yield "training.report_to", OptionError, said
    if "output" in values:
        yield from _in_the_way(Path(values["output"]).expanduser(), parts)
    training = values.get("training")
    if training is not None and training.push_to_hub and not _has_token(training.hub_token):
        advice = "log in (hf auth login), or set HF_TOKEN"
        yield "training.push_to_hub", OptionError, f"training.push_to_hub needs a token of the Hub: {advice}"


def _missing(part: Any, where: str) -> Iterator[Problem]:
    """Files of a student or a teacher that are not there."""
    for name in ("model", "tokenizer"):
        path = getattr(part, name)
        # Hub ids begin with a letter or digit and have one slash at most; anything else can only be a path.
        is_path = path is not None and (path.startswith((".", "/", "~")) or path.count("/") > 1)
        if is_path and not Path(path).expanduser().exists():
            advice = "name one from the folder that the run starts in, or a Hub id"
            yield f"{where}.{name}", SourceError, f"there is no folder {path}, which {where}.{name} names: {advice}"
    if part.model in presets() and not Path(part.model).exists():
        advice = f"name a folder, a GGUF file or a Hub id, and {part.model} as {where}.tokenizer if need be"
        said = f"{part.model} is a tokenizer's name, and {where}.model a model: {advice}"
        yield f"{where}.model", SourceError, said
    cache = getattr(part, "cache", None)
    if cache is not None and not Path(cache).expanduser().is_dir():
        yield f"{where}.cache", SourceError, f"there is no folder {cache}, which {where}.cache names"
    template = part.chat_template
    if template is not None and not Path(template).expanduser().is_file():
        said = f"there is no file {template}, which {where}.chat_template names: name a file with a Jinja template"
        yield f"{where}.chat_template", SourceError, said


def _in_the_way(folder: Path, parts: Mapping[str, Any]) -> Iterator[Problem]:
    """What the student would be written over."""
    student = folder / "student"
    for where, part in parts.items():
        for name in ("model", "tokenizer"):
            path = getattr(part, name)
            if path is not None and student.resolve() == Path(path).expanduser().resolve():
                advice = f"which is what {where}.{name} names: choose another output"
                yield "output", OptionError, f"the student would be written to {student}, {advice}"
    if student.exists() and not (folder / "run.json").exists():
        advice = "choose another output, or move it away"
        yield "output", OptionError, f"{student} is there already, and no run has written it: {advice}"


def _not_installed(training: Any) -> list[str]:
    """What a run is to report to and cannot."""
    if training is None or not training.report_to:
        return []
    from transformers.integrations import integration_utils

    asked = training.report_to if isinstance(training.report_to, list) else [training.report_to]
    able = integration_utils.get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    return [name for name in asked if name not in (*able, "none", "all")]


def _has_token(given: str | None) -> bool:
    from huggingface_hub import get_token

    return bool(given or get_token())
