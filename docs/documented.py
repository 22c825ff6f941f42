"""What the documentation shows: the commands under short names, the folder its examples run in, and console blocks.

`python docs/documented.py` runs every command of `commands.md` and writes its output below it. A test does the same and
compares, so the page cannot go stale.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

HERE = Path(__file__).parent
STORE = "~/.local/share/xtoken-align"
"""Where the pages say that the store is; the examples run with one of their own."""

CONSOLE = re.compile(r"(```console\n)(.*?)(```)", re.DOTALL)
RUN = """\
student: {model: ./student}
teachers: [{model: ./teacher}]
texts: [corpus.jsonl]
output: ./run
holdout: 4
training: {max_steps: 8, per_device_train_batch_size: 8, learning_rate: 1.0e-2, logging_steps: 4}
"""
WORDS = (
    *("the", "sum", "of", "12", "and", "30", "is", "42", "while", "a", "river", "runs", "to", "the", "sea"),
    *("nobody", "counts", "2026", "stones", "in", "it"),
)


def group() -> click.Group:
    """The command line; only pyproject.toml spells its module's name."""
    (entry,) = entry_points(group="console_scripts", name="xtoken-align")
    cli: click.Group = import_module(entry.module).cli
    return cli


def commands() -> dict[str, click.Command]:
    """Every command by name."""
    context = click.Context(group())
    by_name = {name: group().get_command(context, name) for name in group().list_commands(context)}
    return {name: command for name, command in by_name.items() if command is not None}


def __getattr__(name: str) -> click.Command:
    """`documented:build` is the command `build`, for the page's list of options."""
    try:
        return commands()[name]
    except KeyError:
        raise AttributeError(name) from None


def write_example(folder: Path) -> None:
    """Writes what the examples read: models `student` and `teacher` of a few hundred tokens, a text and a run file."""
    texts = [" ".join(WORDS[(7 * row + 3 * word) % len(WORDS)] for word in range(4 + row % 9)) for row in range(48)]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "corpus.jsonl").write_text(rows, encoding="utf-8")
    (folder / "run.yaml").write_text(RUN, encoding="utf-8")
    for seed, (name, size) in enumerate({"student": 290, "teacher": 330}.items()):
        _write_model(folder / name, texts, size=size, digits=name == "teacher", seed=seed)


def _write_model(folder: Path, texts: list[str], *, size: int, digits: bool, seed: int) -> None:
    """A byte-level BPE trained on the texts, with a token for each digit or not, and a random Llama."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **roles}))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size() + 3,  # logits beyond the tokenizer's ids, as most models have them
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Runs what is inside with a folder as the working directory, and with a store of its own there."""
    before, environment = Path.cwd(), dict(os.environ)
    os.environ |= {"XTOKEN_ALIGN_STORE": str(folder / "store"), "COLUMNS": "100", "NO_COLOR": "1"}
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ |= environment


@contextmanager
def example_folder(folder: Path) -> Iterator[None]:
    """Runs what is inside in a folder that is filled with the example's files first."""
    write_example(folder)
    with working_in(folder):
        yield


def run(command: str) -> str:
    """What a command prints, data and notes as a terminal shows them; `| tail -N` and `| head -N` keep N lines."""
    command, _, last = command.partition(" | tail -")
    command, _, first = command.partition(" | head -")
    words = shlex.split(command)
    result = CliRunner().invoke(group(), words[1:], prog_name=words[0])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    text = result.output.replace(os.environ["XTOKEN_ALIGN_STORE"], STORE).replace(f"{Path.cwd()}/", "")
    shipped = Path(import_module("xtoken_align").__file__ or "").parents[1] / "mappings"
    text = text.replace(str(shipped), "site-packages/xtoken_align/mappings")
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    lines = lines[: int(first)] if first else lines[-int(last or 0) :]
    return "\n".join(lines) + "\n"


def refreshed(page: str) -> str:
    """A page whose console blocks hold what their commands print now; blocks without a `$` stay as they are."""

    def block(match: re.Match[str]) -> str:
        lines = [line for line in match[2].splitlines() if line.startswith("$ ")]
        shown = [f"{line}\n{run(line.removeprefix('$ '))}" for line in lines]
        return f"{match[1]}{''.join(shown) or match[2]}{match[3]}"

    return CONSOLE.sub(block, page)


def stable(text: str) -> str:
    """A page without what may differ from run to run: seconds, ages, the widths of columns, a training's figures."""
    text = re.sub(r"\b\d+(\.\d+)? ?(s|min|h|d|days)\b", "TIME", text)
    text = re.sub(r"(?<=[ :(])-?\d+\.\d+\b", "FIGURE", text)
    text = re.sub(r"\([-+](\d+|FIGURE|\d+\.\d+)%\)|[\d,]+ tokens/s", "FIGURE", text)
    return re.sub(r"[ ─]+", " ", text)


if __name__ == "__main__":
    page = HERE / "commands.md"
    before = page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as place, example_folder(Path(place)):
        text = refreshed(before)
    if stable(text) == stable(before):
        sys.stdout.write("as it was\n")
    else:
        page.write_text(text, encoding="utf-8")
        sys.stdout.write("changed\n")
