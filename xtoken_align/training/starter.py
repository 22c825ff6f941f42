"""A configuration to begin with: every setting of `distill` with its default and what it is, as YAML.

What stands in it is read from the classes of the configuration and their docstrings.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

import yaml

from ..losses import LossOptions, XTokenLoss
from ..spans.aligner import Aligner
from ..spans.batch import SpanCollator
from .config import COLLATE, DistillConfig, LoraConfig, StudentConfig, TeacherConfig, XTokenConfig

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
