"""Ray Data gives the same spans: two workers on a cluster of this machine alone, which ends with the test."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from xtoken_align.errors import MissingExtraError, OptionError, XTokenWarning
from xtoken_align.spans.dataset import AlignColumns
from xtoken_align.spans.ray_data import AlignBlocks, align_ray, warn_of_waiting
from xtoken_align.vocab.vocab import Vocab

Real = Callable[[str], Vocab]
TEXTS = ["Hello 123, world", "", "naïve 😊", "x = 4567\n"] * 10

# A process of its own: Ray installs handlers, threads and warning filters in the one that starts it. Reading and
# writing are tasks that need a core, beside two workers on two cores.
CLUSTER = """
import json, sys
import ray
from ray import data
from xtoken_align.spans.dataset import AlignColumns
from xtoken_align.spans.ray_data import align_ray

place, given, made = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=100_000_000,
         log_to_driver=False, configure_logging=False, _temp_dir=place)
data.DataContext.get_current().enable_progress_bars = False
try:
    align = AlignColumns(student="llama-3", teacher="qwen3")
    align_ray(data.read_parquet(given), align, workers=2, keep=["number"], batch_size=8).write_parquet(made)
finally:
    ray.shutdown()
"""


@pytest.fixture(scope="module")
def align(real: Real) -> AlignColumns:
    for name in ("llama-3", "qwen3"):
        real(name)
    return AlignColumns(student="llama-3", teacher="qwen3")


@pytest.fixture
def place() -> Iterator[str]:
    """A folder for the cluster's sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


def running(place: str) -> list[str]:
    """The command lines of processes that belong to a cluster."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if place in line:
            found.append(line)
    return found


def test_two_workers_align_as_one_process_does(align: AlignColumns, place: str, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray has no build for this Python or system")
    import pyarrow as pa
    from pyarrow import parquet

    numbers = list(range(len(TEXTS)))
    parquet.write_table(pa.table({"text": TEXTS, "number": numbers}), tmp_path / "given.parquet", row_group_size=10)
    environment = {
        **os.environ,
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, place, str(tmp_path / "given.parquet"), str(tmp_path / "made")],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    rows = sorted(parquet.read_table(tmp_path / "made").to_pylist(), key=lambda row: row["number"])
    assert [row.pop("number") for row in rows] == numbers
    columns = align({"text": TEXTS})
    assert all(row.keys() == columns.keys() for row in rows)
    for name, column in columns.items():
        assert [row[name] for row in rows] == [np.asarray(entry).tolist() for entry in column]
    assert not running(place)


def test_workers_that_leave_no_core_for_reading_are_warned_of() -> None:
    with pytest.warns(XTokenWarning, match="take 2 of 2 cores"):
        warn_of_waiting(2, 2)
    warn_of_waiting(1, 2)


def test_a_block_keeps_the_columns_asked_for(align: AlignColumns) -> None:
    pa = pytest.importorskip("pyarrow")
    made = AlignBlocks(align, keep=["number"])(pa.table({"text": TEXTS, "number": range(len(TEXTS)), "other": TEXTS}))
    columns = align({"text": TEXTS})
    assert made.column_names == ["number", *columns]
    assert made.column("student_ids").type == pa.large_list(pa.int32())
    for name, column in columns.items():
        assert all(map(np.array_equal, made.column(name).to_pylist(), column))


def test_a_block_without_a_column_is_refused(align: AlignColumns) -> None:
    pa = pytest.importorskip("pyarrow")
    for block in (AlignBlocks(align, keep=["number"]), AlignBlocks(align)):
        with pytest.raises(OptionError, match=r"no column `(text|number)`"):
            block(pa.table({"body": TEXTS}))


def test_without_ray_the_error_names_the_extra(align: AlignColumns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(MissingExtraError, match=r"xtoken-align\[ray\]"):
        align_ray(None, align, workers=2)


def test_without_a_worker_nothing_aligns(align: AlignColumns) -> None:
    with pytest.raises(OptionError, match="got 0"):
        align_ray(None, align, workers=0)
