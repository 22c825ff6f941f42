"""The same on Ray Data: actors that read the vocabularies once and then align block after block."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ..errors import MissingExtraError, OptionError, XTokenWarning
from .dataset import AlignColumns


class AlignBlocks:
    """What an actor runs: made once per worker, called with a pyarrow table for every batch.

    Args:
        align: what to align, and how.
        keep: columns that stay beside the new ones.
    """

    def __init__(self, align: AlignColumns, keep: Sequence[str] = ()) -> None:
        self._align = align
        self._keep = list(keep)
        _ = align.tables  # read before the first batch comes

    def __call__(self, table: Any) -> Any:
        """Aligns a batch.

        Args:
            table: pyarrow table.

        Returns:
            A pyarrow table of the columns that stay and those that `AlignColumns` makes.

        Raises:
            OptionError: a column is missing, or a row has neither a text nor a chat.
        """
        import pyarrow as pa

        align = self._align
        missing = [name for name in (align.column, *self._keep) if name not in table.column_names]
        if missing:
            raise OptionError(f"there is no column `{missing[0]}` among {table.column_names}")
        aligned = table.select(self._keep)
        tools = table.column("tools").to_pylist() if "tools" in table.column_names else None
        for name, (values, offsets) in align.columns(table.column(align.column).to_pylist(), tools).items():
            lists = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))
            aligned = aligned.append_column(name, lists)
        for name, identity in align.identities.items():
            aligned = aligned.append_column(name, pa.array([identity] * table.num_rows, pa.string()))
        return aligned


def align_ray(
    dataset: Any,
    align: AlignColumns,
    *,
    workers: int,
    keep: Sequence[str] = (),
    batch_size: int = 256,
    cores: float = 0.5,
) -> Any:
    """Aligns a Ray data set with actors; like all of Ray Data, it runs when the result is read.

    Args:
        dataset: `ray.data.Dataset`.
        align: what to align, and how.
        workers: how many actors; each holds both vocabularies.
        keep: columns that stay beside the new ones. Ray does not keep the order of rows: keep what tells them apart.
        batch_size: rows that an actor takes at once.
        cores: what Ray sets aside for an actor, which keeps a core busy. Tasks that read and write need a core each and
            wait for ever where the actors have all, hence only half.

    Returns:
        `ray.data.Dataset` with the columns of `AlignColumns`.

    Raises:
        OptionError: there is no worker.
        MissingExtraError: ray is not installed.

    >>> align = AlignColumns(student="llama-3", teacher="qwen3", max_student_tokens=512)
    >>> align_ray([{"text": "Hello"}], align, workers=0)
    Traceback (most recent call last):
    xtoken_align.errors.OptionError: at least one worker aligns, got 0
    """
    if workers < 1:
        raise OptionError(f"at least one worker aligns, got {workers}")
    try:
        import ray
        from ray.data import ActorPoolStrategy
    except ImportError as error:
        raise MissingExtraError("Aligning on Ray Data", "ray") from error
    cluster: Any = ray
    if cluster.is_initialized():
        warn_of_waiting(workers * cores, cluster.cluster_resources().get("CPU", 0))
    return dataset.map_batches(
        AlignBlocks,
        fn_constructor_args=(align, tuple(keep)),
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ActorPoolStrategy(size=workers),
        num_cpus=cores,
    )


def warn_of_waiting(taken: float, cores: float) -> None:
    """Warns where actors leave no core for reading and writing; a cluster may still grow."""
    if taken > cores - 1:
        warnings.warn(
            f"the workers take {taken:g} of {cores:g} cores, and tasks that read and write need one: without it Ray "
            "waits; take fewer `workers` or a smaller part of `cores` for each",
            XTokenWarning,
            stacklevel=3,
        )
