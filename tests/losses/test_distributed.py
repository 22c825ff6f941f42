"""Several processes make of a batch what one does: by rows, by vocabulary, dynamically scaled, under DDP and FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import ranks as processes
import torch
from random_batches import top_k_of
from ranks import LOSSES, Found

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    """Runs so many processes once, in whatever order the tests come."""
    return cache(lambda count: processes.run(count, tmp_path_factory.mktemp("ranks")))


@pytest.fixture(params=[2, 4])
def found(request: pytest.FixtureRequest, runs: Callable[[int], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What each of several processes found."""
    return runs(request.param)


def of(found: list[dict[str, Any]], name: str) -> list[Found]:
    for rank in found:
        assert not isinstance(rank[name], str), rank[name]
    return [rank[name] for rank in found]


def close(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-9) -> bool:
    return bool((actual - expected).abs().max() <= relative * expected.abs().max())


@pytest.mark.parametrize("name", LOSSES)
def test_ranks_with_rows_of_their_own_add_up_to_the_batch(found: list[dict[str, Any]], name: str) -> None:
    parts, whole = of(found, f"data parallel, {name}"), processes.of_one_process(name)
    assert close(torch.cat([part["gradient 0"] for part in parts]), whole["gradient 0"])
    for value in whole.keys() - {"gradient 0", "scale"}:
        assert close(torch.stack([part[value] for part in parts]).sum(dim=0), whole[value]), value


@pytest.mark.parametrize("teacher", ["spread", "whole"])
@pytest.mark.parametrize("name", LOSSES)
def test_ranks_with_a_part_of_the_vocabulary_each_know_the_batchs_loss(
    found: list[dict[str, Any]], name: str, teacher: str
) -> None:
    agree(of(found, f"vocabulary, {name}, the teacher {teacher}"), processes.of_one_process(name))


def test_a_vocabulary_over_ranks_may_have_a_cached_teacher(found: list[dict[str, Any]]) -> None:
    whole = processes.of_one_process("c-kl", top_k_of(processes.batch(), 4))
    agree(of(found, "vocabulary, c-kl, the teacher a cache"), whole)


def agree(parts: list[Found], whole: Found) -> None:
    """All values are the batch's on each rank, and the gradients are its parts."""
    sizes = {part["gradient 0"].shape[-1] for part in parts}
    assert len(parts) == 4 or len(sizes) == 2
    assert close(torch.cat([part["gradient 0"] for part in parts], dim=-1), whole["gradient 0"])
    for value in whole.keys() - {"gradient 0"}:
        assert all(close(part[value], whole[value]) for part in parts), value


def test_a_student_that_is_whole_gets_its_whole_gradient_on_each_rank(found: list[dict[str, Any]]) -> None:
    whole = processes.of_one_process("c-kl")
    for part in of(found, "whole student"):
        assert all(close(part[value], whole[value]) for value in whole)


def test_fewer_chunks_than_ranks_are_enough(found: list[dict[str, Any]]) -> None:
    case = processes.of_one_chunk()
    student = case.student_logits.clone().requires_grad_()
    loss = processes.XTokenLoss(case.mapping, kind="c-kl")(student, case.teacher_logits, case.spans).loss
    loss.backward()
    parts = of(found, "small batch")
    assert all(close(part["loss"], loss.detach()) for part in parts)
    assert close(torch.cat([part["gradient 0"] for part in parts], dim=-1), student.grad)


def test_logits_that_are_spread_otherwise_are_refused(found: list[dict[str, Any]]) -> None:
    for part in of(found, "refusals"):
        by_row, states, head, likelihoods, peer = bytes(part["said"].tolist()).decode().split("\n")
        assert "sharded by their last dimension" in by_row
        assert "not hidden states" in states
        assert "the head's matrix must be whole on each rank" in head
        assert "alm" in likelihoods
        assert "compat" in peer


def test_learnt_weights_get_their_whole_gradient_on_each_rank(found: list[dict[str, Any]]) -> None:
    case, loss = processes.batch(), processes.learning()
    loss(case.student_logits, case.teacher_logits, case.spans, labels=case.labels).loss.backward()
    gradients = {name: one.grad for name, one in loss.named_parameters() if one.grad is not None}
    assert gradients
    for part in of(found, "learnt"):
        assert part.keys() == gradients.keys()
        # Weights are kept in float32.
        assert all(close(part[name], gradients[name], 1e-5) for name in gradients)


@pytest.mark.parametrize("name", ["dynamic", "dynamic, vocabulary"])
def test_a_dynamic_scale_is_the_same_on_all_ranks_and_in_one_process(found: list[dict[str, Any]], name: str) -> None:
    whole = processes.dynamic(0, 1)
    assert len(whole["factors"].unique()) == 2
    for part in of(found, name):
        assert close(part["factors"], whole["factors"])
    if name == "dynamic":
        assert close(torch.stack([part["loss"] for part in of(found, name)]).sum(), whole["loss"])


@pytest.mark.parametrize(
    "name", ["ddp", "ddp, tied", "fsdp", "fsdp, tied", "fsdp, the head too", "fsdp, the whole alone"]
)
def test_a_fused_head_under_ddp_and_fsdp_gives_the_gradients_of_one_process(
    found: list[dict[str, Any]], name: str
) -> None:
    model = processes.Toy(tied="tied" in name)
    output = processes.train(model, processes.fuse_head(model), processes.batch())
    parts = of(found, name)
    assert close(torch.stack([part["loss"] for part in parts]).sum(), output.loss.detach())
    for part in parts:
        for parameter, value in model.named_parameters():
            # Both average over the ranks.
            assert value.grad is not None
            assert close(len(parts) * part[parameter], value.grad), parameter
