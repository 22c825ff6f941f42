"""Loading the models of a run, and writing the student at its end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from ..errors import MissingExtraError, OptionError, SourceError
from ..sources.hub import CONFIGURATION_FILES, VOCABULARY_FILES
from ..sources.locate import locate
from .config import LoraConfig

UNFINISHED = ".unfinished"
"""The ending of a folder that is being written."""

_NOT_TOKENIZERS = ("config.json", "generation_config.json")


def load_model(name: str, *, revision: str | None, dtype: str | None) -> Any:
    """A causal language model from a folder or the Hub; code that comes with it is not run.

    Raises:
        SourceError: it cannot be found or loaded.
    """
    from transformers import AutoModelForCausalLM

    folder = Path(name).expanduser()
    try:
        return AutoModelForCausalLM.from_pretrained(
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
    targets = "all-linear" if config.targets is None else list(config.targets)
    options = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, options)
    except ValueError as error:
        reason = str(error).strip().split("\n")[0]
        raise OptionError(f"lora cannot be put into this student ({reason}): see lora.targets") from error


def write_student(model: Any, folder: Path, tokenizer: str, revision: str | None) -> None:
    """Writes the student with its tokenizer's files; the folder appears whole or not at all.

    Args:
        model: the student; adapters are merged into its weights.
        folder: takes its name in the last step; what was there before is replaced.
        tokenizer: the source of the student's tokenizer.
        revision: of a Hub id.
    """
    whole = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    beside = folder.with_name(folder.name + UNFINISHED)
    shutil.rmtree(beside, ignore_errors=True)
    whole.save_pretrained(beside)
    for path in tokenizer_files(tokenizer, revision):
        shutil.copyfile(path, beside / path.name)
    if folder.exists():
        shutil.rmtree(folder)
    beside.rename(folder)


def tokenizer_files(source: str, revision: str | None) -> list[Path]:
    """The files of a tokenizer."""
    path = locate(source, revision=revision).path
    if not path.is_dir():
        return [path]
    names = [name for name in (*VOCABULARY_FILES, *CONFIGURATION_FILES) if name not in _NOT_TOKENIZERS]
    return sorted({found for name in names for found in path.glob(name) if found.is_file()})
