"""The options of a slow loss, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import OptionError
from .. import options

Kind = Literal["partition-kl", "c-kl", "p-kl", "h-kl", "gold", "uld", "alm"]
Merge = Literal["first", "mean"]

KINDS = ("partition-kl", "c-kl", "p-kl", "h-kl", "gold", "uld", "alm")


@dataclass(frozen=True, kw_only=True)
class SlowOptions:
    """What the families read; `slow_loss` says what each is."""

    kind: str
    temperature: float = 1.0
    merge: str = "first"
    top_k: int | None = None
    unreached: str = "reroute"
    normalize: str = "rest"
    threshold: float = 0.6
    uncommon_top_k: int = 8192

    def __post_init__(self) -> None:
        options.one_of("kind", self.kind, KINDS)
        options.one_of("merge", self.merge, ("first", "mean"))
        options.one_of("unreached", self.unreached, ("reroute", "drop"))
        options.one_of("normalize", self.normalize, ("rest", "none"))
        options.positive("temperature", self.temperature)
        options.share("threshold", self.threshold)
        options.size("uncommon_top_k", self.uncommon_top_k)
        if self.top_k is not None:
            options.size("top_k", self.top_k)
        if self.merge == "mean" and self.kind in {"c-kl", "alm"}:
            raise OptionError(f"{self.kind} reads single positions: it takes merge='first', but got merge='mean'")
