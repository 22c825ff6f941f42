"""How far the code is spread: the files and functions between two tokenizers and a gradient, and in a training step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import trace_token

pytest.importorskip("torch")


def test_a_tokens_way_to_its_gradient_stays_short(tmp_path: Path) -> None:
    stages = trace_token.trace_token("201", tmp_path)
    assert {"build", "load", "align", "loss", "forward", "backward"} == stages.keys()
    assert all(stages.values())
    files, functions = trace_token.counts(stages)
    # Of these, checks of the call, END and plausible paths, and the parts of fingerprints are about 60 functions. More
    # are the parts of functions that did not fit on a screen.
    assert files <= 52
    assert functions <= 370


def test_a_training_step_stays_short(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    files, functions = trace_token.counts(trace_token.trace_step(tmp_path))
    assert files <= 29
    assert functions <= 172
