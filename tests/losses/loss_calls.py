"""Calling a loss and its slow twin on one batch, each with its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from random_batches import Case, random_case
from slow_kinds import slow_kind
from slow_loss import slow_loss

from xtoken_align.losses import LossOutput, Teacher, XTokenLoss
from xtoken_align.losses.divergence import Measure
from xtoken_align.losses.functional import outcomes_kl
from xtoken_align.losses.inputs import Compared, Rows
from xtoken_align.losses.tables import Outcomes

KINDS = ("partition-kl", "c-kl", "p-kl", "h-kl", "gold", "strict", "bpm", "escd", "simct", "uld", "alm")
FIRST = ("c-kl", "strict", "bpm", "escd", "simct", "alm")
"""The kinds that do not average a chunk's positions."""
PARTIAL = ("partition-kl", "c-kl", "p-kl", "strict", "bpm", "escd", "simct")
"""The kinds that read a teacher of which the best tokens are known."""
SORTED = ("h-kl", "gold", "uld")
"""The kinds that sort: their gradient jumps where two probabilities are one."""


_drawn = cache(random_case)


def case_of(seed: int, **options: Any) -> Case:
    """A case that is drawn once a process, with logits and labels of the caller's own.

    A test may make a leaf of them or write into them, and no other test sees it.
    """
    case = _drawn(seed, **options)
    names = ("student_logits", "teacher_logits", "labels")
    return replace(case, **{name: getattr(case, name).clone() for name in names})


def options_of(*kinds: str) -> list[dict[str, Any]]:
    """Every way in which kinds can be asked for."""
    found: list[dict[str, Any]] = []
    for kind in kinds:
        merges = ("first",) if kind in FIRST else ("first", "mean")
        for merge in merges:
            found.append({"kind": kind, "merge": merge})
            if kind == "c-kl":
                found += [
                    {"kind": kind, "merge": merge, "level_weight": weight, "end": end}
                    for weight in ("plausible", "teacher", "text")
                    for end in (True, False)
                    if weight != "plausible" or not end
                ]
            if kind == "p-kl":
                found += [{"kind": kind, "merge": merge, "top_k": 2}, {"kind": kind, "merge": merge, "top_k": 1000}]
                found += [{"kind": kind, "merge": merge, "unreached": "drop"}]
            if kind in {"h-kl", "gold"}:
                found += [{"kind": kind, "merge": merge, "normalize": "none"}]
                found += [{"kind": kind, "merge": merge, "uncommon_top_k": 2}]
            if kind == "simct":
                found.append({"kind": kind, "merge": merge, "units": "path"})
    return found


MEASURES: list[dict[str, Any]] = [
    {"divergence": "reverse"},
    {"divergence": "jsd", "beta": 0.3},
    {"student_top_k": 2},
    {"divergence": "reverse", "student_top_k": 3},
    {"divergence": "jsd", "student_top_k": 1000},
    {"divergence": "jsd", "beta": 1.0},
]
"""Ways to compare two distributions, the forward KL of all outcomes aside; 1000 is more than there are."""
MEASURED = {"divergence", "beta", "student_top_k"}


BY: list[dict[str, Any]] = [
    {"kind": "c-kl", "merge": "first", "divergence": "jsd", "beta": 0.3},
    {"kind": "c-kl", "merge": "first", "divergence": "reverse", "student_top_k": 2},
    {"kind": "partition-kl", "merge": "mean", "divergence": "reverse"},
    {"kind": "p-kl", "merge": "first", "top_k": 2, "divergence": "jsd"},
    {"kind": "h-kl", "merge": "mean", "divergence": "reverse", "student_top_k": 3},
]
"""Kinds by other divergences, for tests that every way of asking for a loss has to pass."""


def name_of(options: dict[str, Any]) -> str:
    """The options in a test's name."""
    return " ".join(str(value) for value in options.values())


def possible_labels(case: Case) -> torch.Tensor:
    """The labels that the student can say: of the others the cross-entropy is infinite."""
    labels = case.labels.clone()
    own = case.student_logits[:, :-1].gather(2, labels[:, 1:].clamp_min(0).unsqueeze(2)).squeeze(2)
    labels[:, 1:][own == -torch.inf] = -100
    return labels


@dataclass(frozen=True, eq=False)
class Called:
    """What came of a call, on the processor: the loss, its parts, and the gradients of the inputs."""

    loss: torch.Tensor
    kd: torch.Tensor
    ce: torch.Tensor
    gradients: tuple[torch.Tensor, ...]

    @property
    def gradient(self) -> torch.Tensor:
        return self.gradients[0]


def slow(case: Case, student: torch.Tensor, teacher: Teacher, **options: Any) -> Called:
    """The slow twin, in float64."""
    leaf = student.detach().double().requires_grad_()
    teacher = teacher.double() if isinstance(teacher, torch.Tensor) else teacher
    newer = options["kind"] in {"c-kl", "strict", "bpm", "escd", "simct"} or not MEASURED.isdisjoint(options)
    out = (slow_kind if newer else slow_loss)(case.mapping, leaf, teacher, case.spans, **options)
    return Called(out.loss.detach(), out.kd.detach(), out.ce.detach(), torch.autograd.grad(out.loss, leaf))


def fast(case: Case, student: torch.Tensor, teacher: Teacher, *, labels: Any = None, **options: Any) -> Called:
    """The fast loss on logits, in their dtype."""
    leaf = student.detach().clone().requires_grad_()
    out = XTokenLoss(case.mapping, **options).to(leaf.device)(leaf, teacher, case.spans, labels=labels)
    return called(out, [leaf])


def called(out: LossOutput, inputs: Sequence[torch.Tensor]) -> Called:
    """Reads an output and differentiates it."""
    gradients = torch.autograd.grad(out.loss, inputs)
    return Called(out.loss.detach().cpu(), out.kd.cpu(), out.ce.cpu(), tuple(one.cpu() for one in gradients))


def assert_same(one: Called, other: Called, *, rtol: float, atol: float) -> None:
    """Values and gradients; a gradient's entries are compared with the largest of them."""
    for name in ("loss", "kd", "ce"):
        left, right = getattr(one, name).double(), getattr(other, name).double()
        torch.testing.assert_close(left, right, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
    for left, right in zip(one.gradients, other.gradients, strict=True):
        size = right.double().abs().max() if right.numel() else torch.zeros(())
        torch.testing.assert_close(left.double(), right.double(), rtol=rtol, atol=atol + rtol * float(size))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What comparing some rows gave: the formula's numbers, and the gradient of the student's logits."""

    numbers: Compared
    gradient: torch.Tensor | None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.numbers, name)


def by_autograd(
    student: torch.Tensor,
    teacher: torch.Tensor,
    outcomes: Outcomes,
    *,
    measure: Measure,
    coefficient: torch.Tensor | None = None,
) -> Outcome:
    """Rows compared by the formula, of which the fast ways are the shorter form."""
    leaf = student.detach().clone().requires_grad_(coefficient is not None)
    with torch.set_grad_enabled(coefficient is not None):
        made = outcomes_kl(
            Rows(leaf),
            Rows(teacher),
            outcomes,
            measure=measure,
            looks=student.device.type == "cpu",
        )
    if coefficient is None:
        return Outcome(made, None)
    (gradient,) = torch.autograd.grad((made.value * coefficient).sum(), leaf)
    return Outcome(replace(made, value=made.value.detach()), gradient)
