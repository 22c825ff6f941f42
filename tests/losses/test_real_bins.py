"""Partition-KL on Llama-3 and Qwen3: what the bins are, and that the loss counts them right at full width."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from xtoken_align import Mapping, load
from xtoken_align.losses import XTokenLoss, partition_kl
from xtoken_align.losses.tables import Outcomes
from xtoken_align.vocab.kinds import Kind


@cache
def mapping() -> Mapping:
    """The one that ships, so that no tokenizer is needed."""
    (file,) = (Path(__file__).parents[2] / "mappings" / "llama-3--qwen3").glob("*.npz")
    return load(file)


def live(side: str) -> np.ndarray:
    return getattr(mapping(), side).kinds < Kind.PADDING


@pytest.fixture(scope="module")
def comparison() -> Outcomes:
    made = XTokenLoss(mapping(), "partition-kl").objective().terms[0].table
    assert isinstance(made, Outcomes)
    return made


def test_there_is_a_bin_per_shared_surface_and_one_per_matched_special(comparison: Outcomes) -> None:
    bins = mapping().bins()
    shared = np.intersect1d(
        *(side[(side >= 0) & live(name)] for side, name in zip(bins, ("student", "teacher"), strict=True))
    )
    specials = np.isin(shared, bins[0][mapping().student.kinds == Kind.SPECIAL])
    assert (len(shared), int(specials.sum()), int((~specials).sum())) == (109_568, 2, 109_566)
    largest = [int(np.bincount(side[np.isin(side, shared[~specials])]).max()) for side in bins]
    assert largest == [376, 872]
    # Both sides have tokens in no such bin: these are one more.
    used = [
        side.group[torch.from_numpy(live(name))].unique()
        for name, side in (("student", comparison.student), ("teacher", comparison.teacher))
    ]
    assert torch.equal(*used)
    assert len(used[0]) == 109_568 + 1


def test_every_token_is_in_the_group_of_its_bin_and_padding_in_none(comparison: Outcomes) -> None:
    bins = mapping().bins()
    shared = np.intersect1d(bins[0][live("student")], bins[1][live("teacher")])
    numbers: dict[int, int] = {}
    for name, grouping, part in zip(
        ("student", "teacher"), (comparison.student, comparison.teacher), bins, strict=True
    ):
        group = grouping.group.numpy()
        assert np.array_equal(group < grouping.count, live(name))
        assert not grouping.outside.mask.any()
        bin_or_rest = np.where(np.isin(part, shared), part, -1)[live(name)]
        pairs = np.unique(np.stack([bin_or_rest, group[live(name)]], axis=1), axis=0)
        assert len(pairs) == 109_569
        # The same bin has the same group on both sides.
        assert {one: numbers.setdefault(one, group_) for one, group_ in pairs.tolist()} == dict(pairs.tolist())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_loss_is_that_of_counted_masses(dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(0)
    logits = [
        3 * torch.randn(2, len(live(side)), generator=source, dtype=torch.float64) for side in ("student", "teacher")
    ]
    bins = mapping().bins()
    shared = np.intersect1d(bins[0][live("student")], bins[1][live("teacher")])
    masses = []
    for side, rows, part in zip(("student", "teacher"), logits, bins, strict=True):
        rows[:, ~live(side)] = 50.0
        with_rest = np.where(np.isin(part, shared) & (part >= 0), part, part.max() + 1)
        probability = np.exp(rows.numpy()) * live(side)
        counted = [np.bincount(with_rest, row, minlength=200_000) for row in probability]
        masses.append(np.stack(counted)[:, [*shared[shared >= 0], part.max() + 1]])
    q, p = (side / side.sum(1, keepdims=True) for side in masses)
    truth = (p * np.log(p / q)).sum(1)
    masked = [
        torch.from_numpy(np.where(live(side), part, -2))
        for side, part in zip(("student", "teacher"), bins, strict=True)
    ]
    made = partition_kl(logits[0].to(dtype), logits[1].to(dtype), *masked, reduction="none")
    assert made.tolist() == pytest.approx(truth.tolist(), rel=1e-10 if dtype == torch.float64 else 1e-5)
