"""From a YAML file, or from plain values, to a `DistillConfig`: every mistake is found, and told with its line."""

from __future__ import annotations

import math
import os
import reprlib
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import OptionError
from ..limits import MAX_YAML_VALUES
from .config import DistillConfig, LoraConfig, Mistake, XTokenConfig, inside, nearest, refuse, unknown_settings

T = TypeVar("T")

_RENAMED = {
    # What `distill` called transformers' options before it took over their names.
    "steps": "is called max_steps",
    "epochs": "is called num_train_epochs",
    "batch_size": "is called per_device_train_batch_size",
    "accumulation": "is called gradient_accumulation_steps",
    "schedule": "is called lr_scheduler_type",
    "save_every": "is called save_steps",
    "keep": "is called save_total_limit",
    "log_every": "is called logging_steps",
    "workers": "is called dataloader_num_workers",
    "precision": "is written as bf16: true or fp16: true; without either it is float32",
    "device": "is written as use_cpu: true",
    # TRL's names for what stands elsewhere or is two things here.
    "max_completion_length": "is called max_new_tokens",
    "max_length": "is max_student_tokens and max_teacher_tokens, since the two sides count differently",
    "beta": "is beta under `loss`, where divergence: jsd reads it",
    "temperature": "is generation_temperature for sampling, and temperature under `loss` for the divergence",
    # What the file says in another place.
    "output_dir": "is the file's `output`",
    "resume_from_checkpoint": "is not needed: the same command goes on from the last checkpoint",
}

_RENAMED_LORA = {
    "rank": "is called r",
    "alpha": "is called lora_alpha",
    "dropout": "is called lora_dropout",
    "targets": "is called target_modules",
}


def read_config(path: str | os.PathLike[str], change: Callable[[dict[str, Any]], None] | None = None) -> DistillConfig:
    """Reads a YAML file.

    Args:
        path: the file.
        change: changes its values before they are checked.

    Raises:
        OptionError: the file cannot be read, is no YAML, or has settings that make no sense. Every mistake is named,
            with its line.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is not None:
            _count_values(node, {})
        lines: dict[str, int] = {}
        mistakes: list[Mistake] = []
        values = None if node is None else _plain_values(loader, node, "", {}, lines, mistakes)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    # PyYAML lets what makes no date, or has too many digits for a number, out as Python's own error.
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise OptionError(f"{path} is no YAML:\n{error}") from error
    if values is None:
        raise OptionError(f"{path} is empty: it needs student, teachers, texts and output at least")
    if isinstance(values, dict) and change is not None:
        change(values)
    config = _read(DistillConfig, values, "", mistakes)
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
    import yaml

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
        mistakes: receives keys that stand twice in one mapping.
    """
    import yaml

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
        return loader.construct_object(node, deep=True)
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
    if not isinstance(values, Mapping):
        place = f"under {where}" if where else "in the file"
        mistakes.append((where, f"expected settings by name {place}, got {_shown(values)}"))
        return None
    assert is_dataclass(cls)
    known = {each.name: each for each in fields(cls) if each.init}
    renamed = _RENAMED if issubclass(cls, XTokenConfig) else _RENAMED_LORA if issubclass(cls, LoraConfig) else {}
    mistakes += unknown_settings(values, list(known), where, renamed)
    begun, hints, usable = len(mistakes), get_type_hints(cls), {}
    for name, each in known.items():
        place = inside(where, name)
        if name in values and name not in renamed:
            before = len(mistakes)
            value = _value(hints[name], values[name], place, mistakes)
            if len(mistakes) == before:
                usable[name] = value
        elif each.default is MISSING and each.default_factory is MISSING:
            mistakes.append((place, f"the setting {place} is missing: it is {_described(hints[name])}"))
    together: Any = getattr(cls, "mistakes_in", None)
    if together is not None:
        mistakes += together(usable, where)
    if len(mistakes) > begun:
        return None
    try:
        return cls(**usable)
    except OptionError as error:
        mistakes.append((where, f"{where}: {error}" if where else str(error)))
        return None


def _value(hint: Any, value: Any, place: str, mistakes: list[Mistake]) -> Any:
    """A value of a type; what is wrong with it is added to `mistakes`."""
    options = _alternatives(hint)
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
            # One teacher need not be written as a list.
            alone = isinstance(value, Mapping) and is_dataclass(inner)
            if alone or isinstance(value, (list, tuple)):
                each = [("", value)] if alone else [(f"[{number}]", one) for number, one in enumerate(value)]
                listed = [_value(inner, one, f"{place}{end}", mistakes) for end, one in each]
                return listed if get_origin(option) is list else tuple(listed)
    words = [each.value for option in options if _is_enum(option) for each in option]
    close = nearest(value, words) if isinstance(value, str) else None
    meant = f": did you mean {close}?" if close else ""
    mistakes.append((place, f"{place} must be {_described(hint)}, but it is {_shown(value)}{meant}"))
    return None


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
