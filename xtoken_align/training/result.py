"""What a run has made: its numbers, the student's folder with its model card, and the upload."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._version import __version__
from ..export.model_folder import write_tokenizer
from ..files import TEMPORARY_PATTERN, whole_folder
from ..mapping.mapping import Side
from ..visible import printable
from .config import DistillConfig
from .distillation import TEACHER_BITS


@dataclass(frozen=True, kw_only=True)
class DistillResult:
    """What a run has made.

    Attributes:
        student: the folder of the distilled student.
        steps: how many the run has had.
        rows: how many it was trained on.
        held_out: how many it was measured on.
        teachers: each one's name, loss, mapping version and weight.
        before: loss, bits per byte, kd, ce, agreement and so on, on the held-out rows; empty without any.
        after: the same at the end.
        training: the same of the last logging, on rows trained on.
        seconds: of this call.
        resumed: the step that this call went on from; 0 for the beginning.
        cut: the share of the tokens that rows lose at their limits, by side; of several teachers the largest.
        tokens_per_second: of the student, in training, by the call that ended the run.
        peak_memory: bytes, of the GPU where there is one, else of the process.
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
    cut: dict[str, float] = field(default_factory=dict)
    tokens_per_second: float | None = None
    peak_memory: int | None = None

    @property
    def headline(self) -> str:
        """What came of it, in a few words: `held-out loss 2.31 -> 2.05 bits per byte (-11%)`."""
        return headline_of(vars(self))

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `distill`."""
        return {**vars(self), "student": str(self.student), "teachers": list(self.teachers)}


def headline_of(result: Mapping[str, Any]) -> str:
    """What came of a run, in a few words.

    >>> headline_of({"before": {"bits_per_byte": 2.31}, "after": {"bits_per_byte": 2.05}, "training": {}})
    'held-out loss 2.31 -> 2.05 bits per byte (-11%)'
    >>> teacher = {"teacher_bits_per_byte": 1.98}
    >>> headline_of({"before": {"bits_per_byte": 2.31}, "after": {"bits_per_byte": 2.05, **teacher}, "training": {}})
    'held-out loss 2.31 -> 2.05 bits per byte (-11%); teacher 1.98, 79% of the way'
    >>> headline_of({"before": {}, "after": {}, "training": {"bits_per_byte": 1.5}})
    'loss 1.50 bits per byte on the last rows trained on; no rows were held out'
    """
    before, after = (result[name].get("bits_per_byte") for name in ("before", "after"))
    if before is not None and after is not None:
        change = 100 * (after / before - 1) if before else 0.0
        # 0.975 -> 0.968 shows in three digits behind the point alone.
        digits = 2 if max(before, after) >= 1 else 3
        change_of = f"{before:.{digits}f} -> {after:.{digits}f} bits per byte ({change:+.{_digits(change)}f}%)"
        return f"held-out loss {change_of}{_ceiling(before, result['after'])}"
    last = result["training"].get("bits_per_byte")
    if last is None:
        return "no rows were held out"
    return f"loss {last:.2f} bits per byte on the last rows trained on; no rows were held out"


def _ceiling(before: float, measured: Mapping[str, float]) -> str:
    """What the teacher itself reaches, and how much of the way there the student has come; of several, the best one."""
    of_teachers = [value for name, value in measured.items() if name.partition("/")[0] == TEACHER_BITS]
    if not of_teachers:
        return ""
    best, after = min(of_teachers), measured["bits_per_byte"]
    way = ""
    if after < best:
        way = ", passed"
    elif after < before:
        way = f", {(before - after) / (before - best):.0%} of the way"
    return f"; {'best ' if len(of_teachers) > 1 else ''}teacher {best:.{2 if best >= 1 else 3}f}{way}"


def _digits(change: float) -> int:
    """Digits behind the point: -11%, but -0.4%."""
    return 0 if abs(change) >= 2 else 1


def peak_memory() -> int | None:
    """The most bytes that this process has had at a time: of the GPU where there is one, else of the processor."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return None
    # In kilobytes, but on macOS in bytes (getrusage(2)).
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_student(
    model: Any, folder: Path, *, tokenizer: str, side: Side, chat_template: str | None = None, card: str = ""
) -> None:
    """Writes the student with its tokenizer and its model card; the folder appears whole or not at all.

    Args:
        model: the student; adapters are merged into its weights, and written into `adapter` beside the folder.
        folder: takes its name in the last step; what was there before is replaced.
        tokenizer: the source of the student's tokenizer.
        side: what a mapping keeps of this tokenizer.
        chat_template: a Jinja template that the student was trained with, in place of the tokenizer's own.
        card: the model card.
    """
    for leftover in folder.parent.glob(TEMPORARY_PATTERN):
        # Of a process that was killed here.
        if leftover.is_dir():
            shutil.rmtree(leftover)
    if hasattr(model, "merge_and_unload"):
        with whole_folder(folder.with_name("adapter"), overwrite=True, holds="adapter_config.json") as beside:
            model.save_pretrained(beside)
        model = model.merge_and_unload()
    with whole_folder(folder, overwrite=True) as beside:
        model.save_pretrained(beside)
        write_tokenizer(tokenizer, beside, side)
        if chat_template is not None:
            (beside / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
        (beside / "README.md").write_text(card, encoding="utf-8")


def upload(folder: Path, args: Any, repository: str) -> None:
    """Uploads the student's folder to the Hub."""
    from huggingface_hub import HfApi

    api = HfApi(token=args.hub_token)
    api.upload_folder(repo_id=repository, folder_path=folder, revision=args.hub_revision)


def model_card(config: DistillConfig, result: Mapping[str, Any]) -> str:
    """The README.md of the student's folder: who learnt from whom, through which mapping, and what came of it."""

    def shown(value: Any) -> str:
        return printable(str(value), one_line=True)

    teachers = "\n".join(
        f"| {shown(each['name'])} | {each['loss']} | {shown(each['mapping'])} | {each['weight']:g} |"
        for each in result["teachers"]
    )
    measured = "\n".join(
        f"| {name} | {result['before'][name]:.4f} | {value:.4f} |"
        for name, value in result["after"].items()
        if name in result["before"]
    )
    numbers = f"\n| held-out rows | before | after |\n|---|---|---|\n{measured}\n" if measured else ""
    training = config.training
    facts = {
        "steps": f"{result['steps']:,}",
        "rows": f"{result['rows']:,}, and {result['held_out']:,} held out",
        "learning rate": f"{training.learning_rate:g}, {shown(_word(training.lr_scheduler_type))}",
        "rows of a step": training.per_device_train_batch_size * training.gradient_accumulation_steps,
        "weights": "all" if config.lora is None else f"adapters of rank {config.lora.r}, merged",
        "options of the loss": ", ".join(f"{name} {shown(value)}" for name, value in config.loss.items()) or "none",
        "training texts": ", ".join(map(shown, config.texts)),
    }
    stated = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return f"""---
library_name: transformers
tags: [xtoken-align, knowledge-distillation]
---

# {shown(config.folder.name)}: {shown(Path(config.student.model).name)}, distilled

{shown(config.sentence[0].upper() + config.sentence[1:])}, each with its own tokenizer, by `xtoken-align` {__version__}.
Result: {headline_of(result)}. The licences of the models and of the texts hold as before.

| teacher | loss | mapping | weight |
|---|---|---|---|
{teachers}
{numbers}
{stated}

Bits per byte are the student's cross-entropy by the bytes of the text, so that they compare between tokenizers.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")
```
"""


def _word(option: Any) -> Any:
    return getattr(option, "value", option)
