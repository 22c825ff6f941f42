"""The arms of the experiment: which loss a student is trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from models import IGNORED
from torch.nn.functional import cross_entropy, kl_div, log_softmax

Loss = Callable[[torch.Tensor, torch.Tensor | None, dict[str, Any]], tuple[torch.Tensor, dict[str, float]]]
"""From the student's logits, the teacher's, and the batch to the loss and what else is to be noted."""


@dataclass(frozen=True)
class Arm:
    """A way to train a student.

    Attributes:
        name: of the loss.
        kind: of `XTokenLoss`, "same" for an ordinary KL, or None without a teacher.
        options: of `XTokenLoss`.
        ce: "fixed" for the cross-entropy beside the distillation with weight 1 each; "dynamic" with `XTokenLoss`'s
            running scale; "per-batch" with the paper's, which scales each batch's distillation to its cross-entropy;
            "none" for distillation alone.
        pair: of tokenizers.
        corpus: that the student is trained on.
    """

    name: str
    kind: str | None
    options: dict[str, Any] = field(default_factory=dict)
    ce: str = "fixed"
    pair: str = "same"
    corpus: str = "wrong"

    @property
    def key(self) -> str:
        """The arm's name among all arms."""
        return f"{self.pair}.{self.corpus}.{self.name}.{self.ce}"


LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "uld": ("uld", {}),
    "gold-none": ("gold", {"normalize": "none"}),
    "gold": ("gold", {}),
    "h-kl-none": ("h-kl", {"normalize": "none"}),
    "h-kl": ("h-kl", {}),
    "p-kl": ("p-kl", {}),
    "p-kl-mean": ("p-kl", {"merge": "mean"}),
    "partition-kl": ("partition-kl", {}),
    "c-kl": ("c-kl", {}),
}
"""The losses: `-none` leaves the common part unnormalised, as the paper has it; `p-kl-mean` has its decay weights."""

SCALED = {
    "dynamic": ("gold-none", "gold", "p-kl", "c-kl"),
    "per-batch": ("gold-none", "p-kl", "c-kl"),
    "none": ("gold-none", "gold", "p-kl", "c-kl"),
}
CLEAN = ("gold-none", "p-kl", "c-kl")


def all_arms() -> list[Arm]:
    """Every arm, in the order of the tables."""
    made = [Arm("no teacher", None), Arm("same-kd", "same"), Arm("same-kd", "same", ce="none")]
    made += [Arm("no teacher", None, corpus="clean"), Arm("same-kd", "same", corpus="clean")]
    for pair in ("digits", "words"):
        made += [Arm(name, *loss, pair=pair) for name, loss in LOSSES.items()]
        made += [Arm(name, *LOSSES[name], ce=ce, pair=pair) for ce, names in SCALED.items() for name in names]
    return made + [Arm(name, *LOSSES[name], pair="digits", corpus="clean") for name in CLEAN]


def loss_of(arm: Arm, mapping: Any) -> tuple[Loss, Callable[[], None]]:
    """An arm's loss, and what is to be called after each step of the optimiser."""
    if arm.kind is None:
        return _text_alone, _nothing
    if arm.kind == "same":
        return (_ordinary_alone if arm.ce == "none" else _ordinary), _nothing
    from xtoken_align.losses import XTokenLoss

    scale = "dynamic" if arm.ce == "dynamic" else "fixed"
    module = XTokenLoss(mapping, kind=arm.kind, scale=scale, **arm.options)

    def one(student: torch.Tensor, teacher: torch.Tensor | None, batch: dict[str, Any]) -> Any:
        labels = batch["labels"] if arm.ce in ("fixed", "dynamic") else None
        out = module(student, teacher, batch["spans"], labels=labels)
        noted = {"kd": float(out.kd), "scale": float(out.metrics["scale"][0])}
        if arm.ce != "per-batch":
            return out.loss, noted
        ce = _cross_entropy(student, batch["labels"])
        factor = (ce / out.loss).detach()
        return out.loss * factor + ce, {**noted, "scale": float(factor)}

    return one, module.step_scale


def _nothing() -> None:
    """After a step of a loss that keeps nothing."""


def _cross_entropy(student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(student[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def _text_alone(student: torch.Tensor, _: torch.Tensor | None, batch: dict[str, Any]) -> Any:
    return _cross_entropy(student, batch["labels"]), {}


def _ordinary_alone(student: torch.Tensor, teacher: torch.Tensor | None, batch: dict[str, Any]) -> Any:
    assert teacher is not None
    used = (batch["labels"][:, 1:] != IGNORED).flatten()
    ours, theirs = (log_softmax(logits[:, :-1].flatten(0, 1)[used], dim=-1) for logits in (student, teacher))
    loss = kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return loss, {"kd": float(loss.detach())}


def _ordinary(student: torch.Tensor, teacher: torch.Tensor | None, batch: dict[str, Any]) -> Any:
    loss, noted = _ordinary_alone(student, teacher, batch)
    return loss + _cross_entropy(student, batch["labels"]), noted
