"""Follows one token through the package: from two tokenizers to the gradient of a loss, and through a training step.

    python scripts/trace_token.py            # the token `201`, student Llama-3 from teacher Qwen3
    python scripts/trace_token.py --list     # every function on the way, file by file, in the order of its first call
    python scripts/trace_token.py --step     # a training step of two tiny models instead

It counts the functions of the package that run and the files in which they stand. Functions without a name of their own
(lambdas, comprehensions) belong to the one around them. Needs the extras `demo` and `torch`, with `--step` `train` too.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

import xtoken_align

PACKAGE = Path(xtoken_align.__file__).parent
STUDENT, TEACHER = "llama-3", "qwen3"

Stages = dict[str, dict[CodeType, None]]
"""Stage -> the functions that ran in it, in the order of their first call."""


@contextmanager
def traced(stages: Stages, name: str) -> Iterator[None]:
    """Notes every function of the package that runs inside, on threads that start inside too."""
    functions = stages.setdefault(name, {})

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        # A class body is a code object too, but no function: it has no fast locals.
        is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")
        if event == "call" and is_function and Path(code.co_filename).is_relative_to(PACKAGE):
            functions[code] = None

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]  # None takes the profiler away again


def trace_token(token: str, folder: Path) -> Stages:
    """Build, save, load, align, C-KL forward and backward, as a user calls them.

    What is made once in a process, such as the table of aliases, has been made before: so the numbers do not depend on
    what ran earlier.
    """
    _follow(token, folder)
    return _follow(token, folder)


def _follow(token: str, folder: Path) -> Stages:
    import torch

    from xtoken_align.losses import XTokenLoss

    stages: Stages = {}
    with traced(stages, "build"):
        xtoken_align.build(student=STUDENT, teacher=TEACHER).save(folder / "mapping.npz")
    with traced(stages, "load"):
        mapping = xtoken_align.load(folder / "mapping.npz", student=STUDENT, teacher=TEACHER)
    with traced(stages, "align"):
        spans = xtoken_align.align_texts([f"It is {token} now"], student=STUDENT, teacher=TEACHER)
    with traced(stages, "loss"):
        loss = XTokenLoss(mapping, kind="c-kl")
    torch.manual_seed(0)
    student, teacher = (
        torch.randn(*ids.shape, width)
        for ids, width in zip((spans.student, spans.teacher), mapping.W.shape, strict=True)
    )
    with traced(stages, "forward"):
        out = loss(student.requires_grad_(), teacher, spans)
    with traced(stages, "backward"):
        out.loss.backward()
    return stages


def trace_step(folder: Path) -> Stages:
    """One step of the trainer, the batch included; what a first step alone does has been done before."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from xtoken_align.training import XTokenConfig, XTokenTrainer

    models = {}
    for side in ("student", "teacher"):
        models[side] = folder / side
        width = _write_tokenizer(models[side], digits=side == "teacher")
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        LlamaForCausalLM(LlamaConfig(vocab_size=width, **sizes)).save_pretrained(models[side])
    student, teacher = (LlamaForCausalLM.from_pretrained(path) for path in models.values())
    rows = [{"text": f"the sum of {number} and 30 is {number + 30}"} for number in range(10, 18)]
    config = XTokenConfig(
        output_dir=str(folder / "run"), max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True,
        save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = XTokenTrainer(
        student,
        config,
        teacher=teacher,
        train_dataset=rows,
        processing_class=str(models["student"]),
        store=folder / "store",
    )
    trainer.train()
    stages: Stages = {}
    with traced(stages, "collate"):
        batch = trainer.data_collator(rows[:4])
    with traced(stages, "step"):
        trainer.training_step(trainer.model, batch)
    return stages


def _write_tokenizer(folder: Path, *, digits: bool) -> int:
    """A byte-level BPE that keeps numbers or splits them into digits; returns how many ids it has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole]) if digits else whole
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([f"the sum of {number} and 30 is {number + 30}" for number in range(100)], trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **roles}))
    return tokenizer.get_vocab_size()


def counts(stages: Stages) -> tuple[int, int]:
    """How many files and functions all stages touch together."""
    codes = {code for functions in stages.values() for code in functions}
    return len({code.co_filename for code in codes}), len(codes)


def report(stages: Stages, *, every: bool) -> None:
    """Prints each stage's numbers, the sum last; with `every` the functions too."""
    for name, functions in stages.items():
        files, number = counts({name: functions})
        print(f"{name:10} {files:4} files {number:5} functions")
        by_file: dict[str, list[str]] = {}
        for code in functions:
            by_file.setdefault(Path(code.co_filename).relative_to(PACKAGE).as_posix(), []).append(code.co_qualname)
        for file, names in by_file.items() if every else ():
            print(f"    {file}: {', '.join(names)}")
    files, number = counts(stages)
    print(f"{'together':10} {files:4} files {number:5} functions")


def main() -> None:
    """Reads the command line and prints the trace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("token", nargs="?", default="201", help="the text to follow (201)")
    parser.add_argument("--step", action="store_true", help="follow a training step of two tiny models")
    parser.add_argument("--list", action="store_true", help="name every function, file by file")
    arguments = parser.parse_args()
    trace: Callable[[Path], Stages] = (
        trace_step if arguments.step else lambda folder: trace_token(arguments.token, folder)
    )
    with tempfile.TemporaryDirectory() as folder:
        report(trace(Path(folder)), every=arguments.list)


if __name__ == "__main__":
    main()
