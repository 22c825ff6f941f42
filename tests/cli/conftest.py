"""Two small tokenizers on disk, and the command line run in this process or in one of its own."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import START, part
from command_results import Result
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from xtoken_align.errors import XTokenWarning

TEXT = ["the cat sat on the mat 12 120 201 über naïve слово", "a hat and a cat, the end: 2012; the the the 12 12 20 20"]


def byte_level(path: Path, size: int, *, split_digits: bool) -> Path:
    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<s>", "</s>"],
            show_progress=False,
        ),
    )
    path.mkdir(parents=True)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Teacher and student: the teacher splits numerals into digits, the student does not."""
    folder = tmp_path_factory.mktemp("tokenizers")
    teacher = byte_level(folder / "master", 290, split_digits=True)
    student = byte_level(folder / "pupil", 300, split_digits=False)
    return str(teacher), str(student)


Invoke = Callable[..., Result]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Runs a command in this process, as `main` runs it."""

    def call(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["xtoken-align", *map(str, arguments)])
        with warnings.catch_warnings():
            warnings.simplefilter("always", XTokenWarning)
            try:
                code = part("main").run(part("main").cli)
            finally:
                gc.enable()
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def execute() -> Invoke:
    """Runs a command in a process of its own."""

    def call(*arguments: str | Path, before: str = "", **environment: str) -> Result:
        start = f"import sys\nsys.argv[0] = 'xtoken-align'\n{before}\n{START}"
        done = subprocess.run(
            [sys.executable, "-c", start, *map(str, arguments)],
            env={**os.environ, **environment},
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=120,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def built(invoke: Invoke, tokenizers: tuple[str, str], tmp_path: Path) -> Path:
    """A mapping file of the two."""
    path = tmp_path / "built.npz"
    assert invoke("build", *tokenizers, "-o", path, "-q").code == 0
    return path
