"""The file of a run: read with every mistake told by its line, checked against the disk, and begun.

What `starter` prints is read from the classes of the configuration and their docstrings.
"""

from __future__ import annotations

import math
import os
import re
import reprlib
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ..errors import CorpusError, OptionError, SourceError, XTokenError
from ..files import kind_of
from ..limits import MAX_YAML_VALUES
from ..losses import LossOptions, XTokenLoss
from ..sources.presets import presets
from ..spans.aligner import Aligner
from ..spans.batch import SpanCollator
from .config import (
    COLLATE,
    LOSS_WORDS,
    DistillConfig,
    LoraConfig,
    StudentConfig,
    TeacherConfig,
    XTokenConfig,
    refuse,
)
from .rows import sources_of
from .spelling import Mistake, inside, nearest, number, respelled, spelled, unknown_settings

T = TypeVar("T")


def read_config(
    path: str | os.PathLike[str], change: Callable[[dict[str, Any]], None] | None = None, *, files: bool = False
) -> DistillConfig:
    """Reads a YAML file.

    Args:
        path: the file.
        change: changes its values before they are checked.
        files: whether to see, too, that the files and folders are there that it names.

    Raises:
        OptionError: the file cannot be read, is no YAML, or has settings that make no sense. Every mistake is named,
            with its line.
    """
    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is not None:
            _count_values(node, {})
        lines: dict[str, int] = {}
        mistakes: list[Mistake] = []
        values = None if node is None else _plain_values(loader, node, "", {}, lines, mistakes)
    except FileNotFoundError as error:
        raise OptionError(f"there is no file {path}: `xtoken-align init` prints one to begin with") from error
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise OptionError(f"{path} is no YAML:\n{error}") from error
    if values is None:
        raise OptionError(f"{path} is empty: it needs student, teachers, texts and output at least")
    if isinstance(values, dict) and change is not None:
        change(values)
    usable = _usable(DistillConfig, values, "", mistakes)
    if files and usable is not None:
        mistakes += mistakes_of_files(usable)
    config = None if mistakes or usable is None else _made(DistillConfig, usable, "", mistakes)
    if mistakes:
        mistakes.sort(key=lambda mistake: _line_of(mistake[0], lines))
        said = [f"{path}:{_line_of(place, lines)}: {sentence}" for place, sentence in mistakes]
        raise OptionError(said[0] if len(said) == 1 else "\n  ".join([f"{path} has {len(said)} mistakes:", *said]))
    assert config is not None
    return config


def from_values(cls: type[T], values: Any) -> T:
    """A configuration from the values under its fields' names, as a YAML file has them.

    Args:
        cls: `DistillConfig`, or another dataclass whose fields are of plain types, literals, optional ones, tuples of
            them, or dataclasses.
        values: by name.

    Raises:
        OptionError: keys are unknown or missing, or values make no sense; every mistake is named.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Size:
    ...     width: int
    ...     unit: str = "mm"
    >>> from_values(Size, {"width": 3})
    Size(width=3, unit='mm')
    >>> from_values(Size, {"width": "3", "unti": "cm"})
    Traceback (most recent call last):
    ...
    xtoken_align.errors.OptionError: 2 mistakes:
      no setting is called 'unti': did you mean 'unit'? The settings are width, unit
      width must be a whole number, but it is '3'
    """
    mistakes: list[Mistake] = []
    config = _read(cls, values, "", mistakes)
    refuse(mistakes)
    assert config is not None
    return config


def _count_values(node: Any, counted: dict[int, int]) -> int:
    """How many values a YAML node stands for: an alias (`*name`) counts for all that is under its anchor.

    Ten lists, each with the one before nine times, are a hundred nodes and three billion values.

    Args:
        node: the node.
        counted: the counts of nodes that were met before, by `id`; 0 for one that is being counted.

    Raises:
        YAMLError: there are more than `MAX_YAML_VALUES`, or a value contains itself.
    """
    known = counted.get(id(node))
    if known is None:
        counted[id(node)] = 0
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        children = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in pairs for each in pair]
        known = counted[id(node)] = 1 + sum(_count_values(child, counted) for child in children)
    if not 0 < known <= MAX_YAML_VALUES:
        problem = "a value contains itself" if not known else f"more than {MAX_YAML_VALUES:,} values"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return known


def _line_of(place: str, lines: Mapping[str, int]) -> int:
    """The line of a place, or of what is around it: a setting that is missing has no line of its own."""
    while place and place not in lines:
        place = place.rpartition("[" if place.endswith("]") else ".")[0]
    return lines.get(place, 1)


def _plain_values(
    loader: Any, node: Any, place: str, by_node: dict[int, Any], lines: dict[str, int], mistakes: list[Mistake]
) -> Any:
    """The values of a YAML node.

    Args:
        loader: makes a scalar's value.
        node: the node.
        place: where it stands: `teachers[0].loss`.
        by_node: values of nodes that were met before, by `id`: an alias (`*name`) is the node that it stands for.
        lines: receives the line of every place.
        mistakes: receives keys that stand twice in one mapping, and values that cannot be.
    """
    lines.setdefault(place, node.start_mark.line + 1)
    if id(node) in by_node:
        return by_node[id(node)]
    if isinstance(node, yaml.SequenceNode):
        listed: list[Any] = []
        by_node[id(node)] = listed
        for number, each in enumerate(node.value):
            listed.append(_plain_values(loader, each, f"{place}[{number}]", by_node, lines, mistakes))
        return listed
    if not isinstance(node, yaml.MappingNode):
        try:
            return loader.construct_object(node, deep=True)
        # PyYAML lets what makes no date, or has too many digits for a number, out as Python's own error.
        except ValueError as error:
            said = f"looks like a date or a number and is none ({error}): put a text into quotes"
            mistakes.append((place, f"{place} is {node.value:.30}, which {said}"))
            return node.value
    values: dict[str, Any] = {}
    by_node[id(node)] = values
    first: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "the name of a setting must be a text", key.start_mark)
        name, line = inside(place, key.value), key.start_mark.line + 1
        if key.value in first:
            mistakes.append((name, f"{name} stands here and in line {first[key.value]}: remove one of the two"))
        first.setdefault(key.value, line)
        lines[name] = line
    # Puts what `<<` merges in before the mapping's own keys, which win.
    loader.flatten_mapping(node)
    for key, value in node.value:
        values[key.value] = _plain_values(loader, value, inside(place, key.value), by_node, lines, mistakes)
    return values


def _read(cls: type[T], values: Any, where: str, mistakes: list[Mistake]) -> T | None:
    """A dataclass from the values of one mapping, or None after adding what is wrong with them to `mistakes`."""
    begun = len(mistakes)
    usable = _usable(cls, values, where, mistakes)
    return None if usable is None or len(mistakes) > begun else _made(cls, usable, where, mistakes)


def _usable(cls: type[Any], values: Any, where: str, mistakes: list[Mistake]) -> dict[str, Any] | None:
    """Those of a dataclass's values that are right by themselves; what is wrong is added to `mistakes`."""
    if not isinstance(values, Mapping):
        place = f"under {where}" if where else "in the file"
        mistakes.append((where, f"expected settings by name {place}, got {_shown(values)}"))
        return None
    assert is_dataclass(cls)
    known = {each.name: each for each in fields(cls) if each.init}
    mistakes += unknown_settings(values, list(known), where, _others(cls))
    hints, usable = get_type_hints(cls), {}
    for name, each in known.items():
        place = inside(where, name)
        # The file says it in a place of its own: `output`.
        if name in values and (name != "output_dir" or cls is not XTokenConfig):
            before = len(mistakes)
            value = _value(hints[name], values[name], place, mistakes)
            if len(mistakes) == before:
                usable[name] = value
        elif each.default is MISSING and each.default_factory is MISSING:
            mistakes.append((place, f"the setting {place} is missing: it is {_described(hints[name])}"))
    together: Any = getattr(cls, "mistakes_in", None)
    if together is not None:
        mistakes += together(usable, where)
    return usable


def _others(cls: type[Any]) -> dict[str, str]:
    """The settings of other places that may be meant in a class's, by name."""
    if cls is XTokenConfig:
        return {each.name: each.name for each in fields(DistillConfig)} | {
            name: f"loss.{name}" for name in LossOptions.__dataclass_fields__
        }
    if cls is not DistillConfig:
        return {}
    parts: dict[str, Iterable[str]] = {
        "lora": LoraConfig.__dataclass_fields__,
        "collate": COLLATE,
        "loss": LossOptions.__dataclass_fields__,
        "training": XTokenConfig.__dataclass_fields__,
    }
    return {name: f"{place}.{name}" for place, names in parts.items() for name in names}


def _made(cls: type[T], usable: dict[str, Any], where: str, mistakes: list[Mistake]) -> T | None:
    """The dataclass, or None where it refuses its values."""
    try:
        return cls(**usable)
    except OptionError as error:
        mistakes.append((where, f"{where}: {error}" if where else str(error)))
        return None


def _value(hint: Any, value: Any, place: str, mistakes: list[Mistake]) -> Any:
    """A value of a type; what is wrong with it is added to `mistakes`."""
    options = _alternatives(hint)
    value = _respelled(hint, options, value, place)
    if isinstance(value, float) and not math.isfinite(value):
        mistakes.append((place, f"{place} must be a finite number, but it is {value}"))
        return None
    if isinstance(value, str) and (problem := _no_path(value)):
        mistakes.append((place, f"{place} {problem}: {_shown(value)}"))
        return None
    if any(_is_plain(option, value) for option in options):
        return value
    for option in options:
        if is_dataclass(option) and isinstance(option, type) and (isinstance(value, Mapping) or len(options) == 1):
            return _read(option, value, place, mistakes)
        if get_origin(option) in (tuple, list):
            inner = get_args(option)[0]
            # One teacher, or one text, need not be written as a list.
            alone = isinstance(value, Mapping) and is_dataclass(inner)
            alone = alone or (isinstance(value, str) and inner is str)
            if alone or isinstance(value, (list, tuple)):
                each = [("", value)] if alone else [(f"[{number}]", one) for number, one in enumerate(value)]
                listed = [_value(inner, one, f"{place}{end}", mistakes) for end, one in each]
                return listed if get_origin(option) is list else tuple(listed)
    words = [each.value for option in options if _is_enum(option) for each in option]
    close = nearest(value, words) if isinstance(value, str) else None
    meant = f": did you mean {close}?" if close else ""
    mistakes.append((place, f"{place} must be {_described(hint)}, but it is {_shown(value)}{meant}"))
    return None


def _respelled(hint: Any, options: tuple[Any, ...], value: Any, place: str) -> Any:
    """A value as it is spelled here: `bf16` for a dtype, `1e-4` for a number, `C_KL` for a kind of loss."""
    if isinstance(value, Mapping) and (get_origin(hint) or hint) is dict and place.rpartition(".")[2] == "loss":
        return respelled({str(name): each for name, each in value.items()}, LOSS_WORDS)
    if any(_is_plain(option, value) for option in options):
        return value
    words = [word for option in options if get_origin(option) is Literal for word in get_args(option)]
    words += [each.value for option in options if _is_enum(option) for each in option]
    if words:
        return spelled(value, words)
    read = number(value)
    return read if any(_is_plain(option, read) for option in options) else value


def _no_path(text: str) -> str | None:
    """What is wrong with a text that no path and no other setting can be, None for all others."""
    if "\0" in text:
        return "must be a text without NUL"
    home_is_unknown = text.startswith("~") and os.path.expanduser(text) == text  # noqa: PTH111 - pathlib would raise
    return "names the home of a user who is not known here" if home_is_unknown else None


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union; where some words are an enumeration, other words are none."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    words = any(map(_is_enum, options))
    return tuple(option for option in options if not (words and option is str))


def _is_plain(hint: Any, value: Any) -> bool:
    """Whether a value is of a type that is none of our own; YAML's true is no number, and 1 is a number."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if _is_enum(hint):
        return value in [each.value for each in hint]
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if (get_origin(hint) or hint) is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    return hint is Any or (hint in (str, bool, type(None)) and isinstance(value, hint))


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "options by name"}


def _described(hint: Any) -> str:
    said = []
    for option in _alternatives(hint):
        if option is type(None):
            said.append("null")
        elif get_origin(option) is Literal:
            said += [str(word) for word in get_args(option)]
        elif _is_enum(option):
            words = [str(each.value) for each in option]
            said += words if len(words) <= 15 else [f"one of transformers' {len(words)} words ({option.__name__})"]
        elif get_origin(option) in (tuple, list):
            said.append(f"a list, each {_described(get_args(option)[0])}")
        elif is_dataclass(option):
            said.append(f"settings by name ({', '.join(each.name for each in fields(option))})")
        else:
            said.append(_WORDS.get(get_origin(option) or option, str(option)))
    return " or ".join(said)


def _shown(value: Any) -> str:
    text = reprlib.repr(value) if isinstance(value, (list, dict)) else repr(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return text
        # YAML 1.1 wants a point and a sign in an exponent.
        return f"{text} (YAML reads 1e-4 as a text: write 1.0e-4)" if "e" in value.lower() else text
    return text


# What can be seen to be wrong by looking at the disk

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
        folder = Path(values["output"]).expanduser()
        yield from _in_the_way(folder, parts)
        yield from _not_writable(folder)
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
        if is_path and kind_of(Path(path).expanduser()) is None:
            advice = "name one from the folder that the run starts in, or a Hub id"
            yield f"{where}.{name}", SourceError, f"there is no folder {path}, which {where}.{name} names: {advice}"
    if part.model in presets() and kind_of(Path(part.model)) is None:
        advice = f"name a folder, a GGUF file or a Hub id, and {part.model} as {where}.tokenizer if need be"
        said = f"{part.model} is a tokenizer's name, and {where}.model a model: {advice}"
        yield f"{where}.model", SourceError, said
    cache = getattr(part, "cache", None)
    if cache is not None and kind_of(Path(cache).expanduser()) != "folder":
        yield f"{where}.cache", SourceError, f"there is no folder {cache}, which {where}.cache names"
    template = part.chat_template
    if template is not None and kind_of(Path(template).expanduser()) != "file":
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
    if kind_of(student) is not None and kind_of(folder / "run.json") is None:
        advice = "choose another output, or move it away"
        yield "output", OptionError, f"{student} is there already, and no run has written it: {advice}"


def _not_writable(folder: Path) -> Iterator[Problem]:
    """What keeps the run's folder from being made or written, found out before hours are spent."""
    above = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if kind_of(above) != "folder":
        yield "output", OptionError, f"output is {folder}, and {above} is no folder: choose another output"
    elif not os.access(above, os.W_OK | os.X_OK):
        yield "output", OptionError, f"output is {folder}, and {above} cannot be written: choose another output"


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


# A configuration to begin with

_WIDTH = 100

_BEGIN = (
    "A run of `xtoken-align distill`. Every setting stands here with its default; all but student, teachers, texts and "
    "output can be left out."
)

_OF_TRANSFORMERS = {
    "max_steps": "optimiser steps; -1 for as many as the epochs have.",
    "per_device_train_batch_size": "rows that one device takes at a time.",
    "gradient_accumulation_steps": "batches of one optimiser step.",
    "warmup_steps": "steps in which the learning rate rises; below 1, their share of all steps.",
    "weight_decay": "of AdamW.",
    "max_grad_norm": "longer gradients are shortened to this.",
    "optim": "the optimiser.",
    "seed": "of all that is drawn.",
    "bf16": "compute in bfloat16; weights stay as they are.",
    "fp16": "compute in float16, on a GPU.",
    "use_cpu": "leave a GPU alone.",
    "dataloader_num_workers": "processes that make batches beside the one that trains.",
    "run_name": "the run's name for what `report_to` names.",
    "push_to_hub": "upload checkpoints, and the student at the end.",
    "hub_model_id": "the repository that they go to.",
}
"""Options of `transformers.TrainingArguments` that are changed most, with what they are."""


_FIXED = ("output_dir", "remove_unused_columns")
"""Settings of the trainer that a file need not say."""

_YAML = {"None": "null", "True": "true", "False": "false"}


def starter(teacher: str, student: str, texts: Sequence[str], output: str = "./run") -> str:
    """A configuration's file.

    Args:
        teacher: the teacher's model.
        student: the student's model.
        texts: what the student is trained on.
        output: the run's folder.

    Returns:
        YAML that `read_config` takes.
    """
    told = _told(DistillConfig.__doc__)
    given = {"texts": list(texts), "output": output}
    lines = [*_comment(_BEGIN, ""), ""]
    for each in fields(DistillConfig):
        lines += _comment(told[each.name], "")
        if each.name == "student":
            lines += ["student:", *_settings(StudentConfig, "  ", {"model": student})]
        elif each.name == "teachers":
            lines += ["teachers:", *_listed(_settings(TeacherConfig, "    ", {"model": teacher}))]
        elif each.name in _SECTIONS:
            lines += [f"{each.name}:", *_SECTIONS[each.name]()]
        elif each.name == "lora":
            lines += ["lora: null", "# lora:", *(f"# {line}" for line in _settings(LoraConfig, "  ", {}))]
        else:
            lines.append(_setting(each.name, given.get(each.name, _default(each)), ""))
        lines.append("")
    return "\n".join(lines)


def _listed(lines: Sequence[str]) -> list[str]:
    """The lines of a list's one entry, with the dash before its first setting: comments come before it."""
    at = next(number for number, line in enumerate(lines) if not line.lstrip().startswith("#"))
    return [*(line[2:] for line in lines[:at]), f"  - {lines[at].lstrip()}", *lines[at + 1 :]]


def _settings(cls: Any, indent: str, given: Mapping[str, Any]) -> list[str]:
    """Lines of a dataclass's settings with their comments."""
    told = _told(cls.__doc__)
    lines: list[str] = []
    for each in fields(cls):
        lines += _comment(told[each.name], indent)
        lines.append(_setting(each.name, given.get(each.name, _default(each)), indent))
    return lines


def _loss() -> list[str]:
    told, lines = _told(XTokenLoss.__doc__), []
    for each in fields(LossOptions):
        value = "auto" if each.name == "kind" else _default(each)
        lines += [*_comment(told[each.name], "  "), _setting(each.name, value, "  ")]
    return lines


def _collate() -> list[str]:
    told, lines = {**_told(Aligner.__doc__), **_told(SpanCollator.__doc__)}, []
    known = {each.name: each for each in fields(SpanCollator)}
    for name in COLLATE:
        lines += [*_comment(told[name], "  "), _setting(name, _default(known[name]), "  ")]
    return lines


def _training() -> list[str]:
    told = {**_told(XTokenConfig.__doc__), **_OF_TRANSFORMERS}
    known = {each.name: each for each in fields(XTokenConfig)}
    own = [name for name in told if name in known and name not in _FIXED]
    lines = _comment("Further options are those of transformers.TrainingArguments.", "  ")
    for name in sorted(own, key=lambda name: (name not in _OF_TRANSFORMERS, own.index(name))):
        lines += [*_comment(told[name], "  "), _setting(name, _default(known[name]), "  ")]
    return lines


_SECTIONS = {"loss": _loss, "collate": _collate, "training": _training}


def _default(each: Field[Any]) -> Any:
    if each.default is not MISSING:
        return each.default
    return None if each.default_factory is MISSING else each.default_factory()


def _setting(name: str, value: Any, indent: str) -> str:
    value = getattr(value, "value", value)
    value = list(value) if isinstance(value, tuple) else value
    shown = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return f"{indent}{name}: {shown.removesuffix('...' + chr(10)).strip()}"


def _comment(text: str, indent: str) -> list[str]:
    text = re.sub(r"\b(None|True|False)\b", lambda word: _YAML[word[0]], text)
    return textwrap.wrap(
        text[0].upper() + text[1:], _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )


def _told(docstring: str | None) -> dict[str, str]:
    """What a docstring says of each argument or attribute, in one line.

    >>> _told('''Words.
    ...
    ...     Args:
    ...         size: how
    ...             large.
    ...         unit: of it.
    ...
    ...     Raises:
    ...         ValueError: never.
    ...     ''')
    {'size': 'how large.', 'unit': 'of it.'}
    """
    told: dict[str, str] = {}
    section = re.search(r"^ *(?:Args|Attributes):\n(.*?)(?:\n\s*\n|\Z)", docstring or "", re.DOTALL | re.MULTILINE)
    lines = textwrap.dedent(section[1]).splitlines() if section else []
    for line in lines:
        name = re.match(r"(\w+): ", line)
        if name:
            told[name[1]] = line[name.end() :].strip()
        elif told:
            told[list(told)[-1]] += f" {line.strip()}"
    return told
