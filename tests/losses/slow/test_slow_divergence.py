"""Divergences, held against TRL's own and against their definitions."""

from __future__ import annotations

import ast
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from loss_calls import case_of
from random_batches import FEATURES
from slow_divergence import Measure
from slow_kinds import slow_kind
from slow_loss import slow_loss

from xtoken_align.errors import OptionError

BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)


@pytest.fixture(scope="module")
def generalized_jsd_loss():
    """TRL's own function, taken out of its file: importing the trainer around it takes seconds."""
    found = importlib.util.find_spec("trl")
    if found is None:
        pytest.skip("trl is not installed")
    tree = ast.parse(
        (Path(found.origin).parent / "experimental" / "gkd" / "gkd_trainer.py").read_text(encoding="utf-8")
    )
    functions = [node for node in ast.walk(tree) if getattr(node, "name", "") == "generalized_jsd_loss"]
    functions[0].decorator_list = []
    names = {"torch": torch, "F": torch.nn.functional}
    exec(compile(ast.Module(functions, []), "gkd_trainer.py", "exec"), names)
    return names["generalized_jsd_loss"]


def rows(*, width: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(width)
    student, teacher = (2 * torch.randn(width, generator=source, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", BETAS)
def test_beta_means_what_trls_gkd_means_by_it(generalized_jsd_loss, beta: float, temperature: float) -> None:
    student, teacher = rows()
    theirs = generalized_jsd_loss(
        student[None, None], teacher[None, None], beta=beta, temperature=temperature, reduction="batchmean"
    )
    ours = Measure(divergence="jsd", beta=beta, temperature=temperature)(teacher, student)
    # TRL tempers without the factor T^2.
    torch.testing.assert_close(ours, temperature**2 * theirs, rtol=1e-12, atol=0)
    slopes = [torch.autograd.grad(loss, student)[0] for loss in (ours, temperature**2 * theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-14)


def test_the_ends_of_jsd_are_the_two_kls() -> None:
    student, teacher = rows()
    for beta, name in ((0.0, "forward"), (1.0, "reverse")):
        assert Measure(divergence="jsd", beta=beta)(teacher, student) == Measure(divergence=name)(teacher, student)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_what_a_side_cannot_give_makes_no_divergence_infinite(divergence: str) -> None:
    student = torch.tensor([0.4, 0.3, -torch.inf, 0.1], dtype=torch.float64).requires_grad_()
    teacher = torch.tensor([0.1, -torch.inf, 0.5, 0.4], dtype=torch.float64)
    measure = Measure(divergence=divergence)
    found = measure(teacher, student)
    (slope,) = torch.autograd.grad(found, student)
    assert 0.01 < found < 10
    # What the student cannot give is dropped; what the teacher cannot give is taken away from the student.
    assert slope[2] == 0 < slope[1]
    torch.testing.assert_close(found, measure(teacher[[0, 1, 3]], student[[0, 1, 3]]))


def test_a_reverse_kl_is_zero_only_where_the_student_gives_nothing_that_the_teacher_cannot() -> None:
    measure = Measure(divergence="reverse")
    teacher = torch.tensor([0.6, 0.4, 0.0]).log()
    assert measure(teacher, torch.tensor([0.6, 0.4, 0.0]).log()).abs() < 1e-6
    assert measure(teacher, torch.tensor([0.54, 0.36, 0.1]).log()) == pytest.approx(-math.log(0.9), rel=1e-5)


@pytest.mark.parametrize("kind", ["partition-kl", "p-kl", "h-kl", "gold"])
def test_the_forward_kl_is_the_losses_own(kind: str) -> None:
    for seed in range(0, len(FEATURES), 3 if kind in {"h-kl", "gold"} else 1):
        case = case_of(seed, infinities=0.3 if seed % 5 == 4 else 0.0)
        options = {"kind": kind, "temperature": 1.0 + seed % 2}
        outs = []
        for loss in (slow_loss, slow_kind):
            student = case.student_logits.clone().requires_grad_()
            out = loss(case.mapping, student, case.teacher_logits, case.spans, **options)
            out.loss.backward()
            outs.append((out, student.grad))
        (one, slope), (other, other_slope) = outs
        torch.testing.assert_close(one.chunk_kd, other.chunk_kd, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(slope, other_slope, rtol=1e-12, atol=1e-12)
        assert one.misfits.equal(other.misfits)


def test_a_beta_outside_of_its_range_is_refused() -> None:
    with pytest.raises(OptionError, match="beta"):
        Measure(divergence="jsd", beta=1.5)
    with pytest.raises(OptionError, match="divergence"):
        Measure(divergence="backward")
