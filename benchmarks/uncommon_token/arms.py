"""The arms of the experiment: which loss a student is trained with, and on whose text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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
        ce: "fixed" for the cross-entropy beside the distillation with weight 1 each, "none" for distillation alone.
        pair: of tokenizers.
        corpus: that the student is trained on, or whose questions it answers.
        policy: "off" for the corpus's text, "on" for text that the student itself writes after the corpus's questions.
    """

    name: str
    kind: str | None
    options: dict[str, Any] = field(default_factory=dict)
    ce: str = "fixed"
    pair: str = "same"
    corpus: str = "wrong"
    policy: str = "off"

    @property
    def key(self) -> str:
        """The arm's name among all arms, with a digest of everything that it is."""
        digest = hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()[:8]
        return f"{self.pair}.{self.corpus}.{self.policy}.{self.name}.{self.ce}.{digest}".replace(" ", "-")


FIRST_FORM = {"level_weight": "text", "end": False}
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "c-kl": ("c-kl", {}),
    "c-kl-first": ("c-kl", FIRST_FORM),
    "c-kl-end": ("c-kl", {"level_weight": "text"}),
    "c-kl-paths": ("c-kl", {"end": False}),
    "c-kl-teacher": ("c-kl", {"level_weight": "teacher"}),
    "c-kl-reverse": ("c-kl", {"divergence": "reverse"}),
    "c-kl-jsd": ("c-kl", {"divergence": "jsd"}),
    "partition-kl": ("partition-kl", {}),
    "p-kl": ("p-kl", {}),
    "gold": ("gold", {}),
    "uld": ("uld", {}),
    "alm": ("alm", {"kd_weight": 100.0}),
    "strict": ("strict", {}),
    "strict-16": ("strict", {"student_top_k": 16}),
    "bpm": ("bpm", {}),
    "escd": ("escd", {}),
    "simct": ("simct", {}),
}
"""The losses, each by the divergence with which it was published. ALM is weighted by its tau of 100."""

WORDS = (
    *("c-kl", "c-kl-first", "c-kl-reverse", "c-kl-jsd", "partition-kl", "p-kl", "gold", "uld"),
    *("strict", "bpm", "escd", "simct"),
)
"""What is also tried where words differ, and digits do not."""
DISAGREEING = ("c-kl", "c-kl-first", "p-kl", "strict", "bpm", "escd", "simct")
"""What is also tried on text most of which the teacher disagrees with."""
ON_POLICY = {
    "digits": ("c-kl", "c-kl-reverse", "c-kl-jsd", "partition-kl", "strict", "bpm", "escd", "simct"),
    "words": ("c-kl", "strict", "bpm", "escd"),
}
"""What is also tried on the student's own text."""


def all_arms() -> list[Arm]:
    """Every arm, in the order of the tables; those that answer the first questions come first."""
    made = []
    for corpus in ("wrong", "mostly"):
        made += [Arm("no teacher", None, corpus=corpus)]
        made += [Arm("same-kd", "same", corpus=corpus, ce=ce) for ce in ("fixed", "none")]
    for pair in ("digits", "words"):
        names = tuple(LOSSES) if pair == "digits" else WORDS
        made += [Arm(name, *LOSSES[name], pair=pair, ce=ce) for name in names for ce in ("fixed", "none")]
    made += [
        Arm(name, *LOSSES[name], pair="digits", corpus="mostly", ce=ce)
        for name in DISAGREEING
        for ce in ("fixed", "none")
    ]
    made.append(Arm("same-kd", "same", ce="none", policy="on"))
    for pair, names in ON_POLICY.items():
        made += [Arm(name, *LOSSES[name], pair=pair, ce="none", policy="on") for name in names]
    return made


def loss_of(arm: Arm, mapping: Any) -> Loss:
    """An arm's loss."""
    if arm.kind is None:
        return _text_alone
    if arm.kind == "same":
        return _ordinary_alone if arm.ce == "none" else _ordinary
    from xtoken_align.losses import XTokenLoss

    module = XTokenLoss(mapping, kind=arm.kind, **arm.options)

    def one(student: torch.Tensor, teacher: torch.Tensor | None, batch: dict[str, Any]) -> Any:
        labels = batch["labels"] if arm.ce == "fixed" else None
        out = module(student, teacher, batch["spans"], labels=labels)
        return out.loss, {"kd": float(out.kd)}

    return one


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
