"""The script for a machine with a GPU runs without one, at toy sizes, so that a GPU's minutes are not spent on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"


@pytest.mark.skipif(sys.platform == "win32", reason="it is a shell script")
def test_the_script_for_a_gpu_runs_without_one(tmp_path: Path) -> None:
    variables = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [SCRIPT, "--tiny", "--seconds", "600"], env=variables, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    first, *lines = (json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text("utf-8").splitlines())
    assert {"card", "commit", "date", "torch", "triton"} <= set(first)
    names = [line["what"] for line in lines]
    assert len(names) == len(set(names))
    assert {"eager KL", "Partition-KL", "C-KL with labels", "p-kl fused, D 16", "TRL's ULD"} <= set(names)
    assert all(line["ms"] > 0 and line["rows"] == 5 for line in lines)
    assert all("against eager" in line for line in lines if line["what"] in {"Partition-KL", "ULD", "strict"})
