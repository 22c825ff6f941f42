"""The kinds of loss: of what each is made, and what options it has.

A new loss is a formula in `functional`, a table in `tables`, and a line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ..errors import OptionError
from ..mapping.mapping import Mapping
from .blocks import Term
from .divergence import Measure
from .functional import outcomes_kl, simct, sorted_l1, strict
from .further import Finder, find_children, find_positions, find_units, prefix_outcomes
from .inputs import Compared
from .options import (
    IMPLEMENTATIONS,
    check_one_of,
    check_share,
    check_size,
    check_switch,
    check_weight,
)
from .plan import Ids
from .prefixes import Prefixes
from .tables import (
    Outcomes,
    Stops,
    live_tokens,
    mapping_bins,
    mapping_links,
    mapping_pairs,
    pair_outcomes,
    ranks_of_all,
    ranks_of_pairs,
)


@dataclass(frozen=True)
class Kind:
    """What a kind of loss is made of.

    Attributes:
        terms: from a mapping and options to the formulas with their tables; they add up.
        options: the options that this kind and few others read.
        divergence: how it compares distributions unless told otherwise; None where it compares none.
        merges: how a chunk's positions can be merged.
        partial_teachers: whether a teacher may be a `TopK`.
        agreement: whether the two sides' best choices can be compared.
        bins: whether a chunk whose first tokens lie in two bins is a misfit.
        single: whether a chunk of several tokens on a side is one, too; misfits are then not read.
        further: finds what is compared beside the terms; see `Finder`.
    """

    terms: Callable[[Mapping, LossOptions], tuple[Term, ...]]
    options: tuple[str, ...] = ()
    divergence: str | None = "forward"
    merges: tuple[str, ...] = ("first", "mean")
    partial_teachers: bool = False
    agreement: bool = True
    bins: bool = False
    single: bool = False
    further: Callable[[Mapping, LossOptions, tuple[Term, ...]], Finder] | None = None


def _bins(mapping: Mapping, options: LossOptions) -> tuple[Term, ...]:
    return (Term(outcomes_kl, mapping_bins(mapping, stops=options.stops(mapping), indexed=options.indexed)),)


def _projection(mapping: Mapping, options: LossOptions) -> tuple[Term, ...]:
    links = mapping_links(
        mapping,
        merge=options.merge,
        unreached=options.unreached,
        stops=options.stops(mapping),
        indexed=options.indexed,
    )
    return (Term(outcomes_kl, links),)


def _pairs(mapping: Mapping, options: LossOptions) -> tuple[Term, ...]:
    """Common pairs and two remainders."""
    stops = options.stops(mapping)
    pairs = mapping_pairs(mapping, threshold=None if options.kind == "gold" else options.threshold, stops=stops)
    paper = options.normalize == "none"
    ranks = ranks_of_pairs(
        pairs,
        *live_tokens(mapping),
        limit=options.uncommon_top_k,
        with_common=paper,
        stops=stops,
        indexed=options.indexed,
    )
    if paper:
        return (Term(sorted_l1, ranks),)
    common = pair_outcomes(mapping, pairs, stops=stops, indexed=options.indexed)
    return Term(outcomes_kl, common), Term(sorted_l1, ranks)


def _everything(mapping: Mapping, options: LossOptions) -> tuple[Term, ...]:
    return (Term(sorted_l1, ranks_of_all(*live_tokens(mapping), indexed=options.indexed)),)


def _exact_pairs(formula: Callable[..., Compared]) -> Callable[[Mapping, LossOptions], tuple[Term, ...]]:
    """Exact pairs and nothing else."""

    def terms(mapping: Mapping, options: LossOptions) -> tuple[Term, ...]:
        stops = options.stops(mapping)
        pairs = mapping_pairs(mapping, threshold=None, stops=stops)
        table = pair_outcomes(mapping, pairs, stops=stops, rest="none", indexed=options.indexed)
        return (Term(formula, table, both=formula is simct),)

    return terms


def _byte_prefixes(mapping: Mapping, options: LossOptions) -> tuple[Term, ...]:
    return (Term(outcomes_kl, prefix_outcomes(mapping, stops=options.stops(mapping), indexed=options.indexed)),)


def bins_of(term: Term) -> tuple[Ids, Ids]:
    """Both sides' bins as a term numbers them, the rest included; -1 for tokens in none."""
    table = term.table
    assert isinstance(table, Outcomes)
    student, teacher = (side.group.numpy() for side in (table.student, table.teacher))
    count = table.student.count
    return np.where(student == count, -1, student), np.where(teacher == count, -1, teacher)


def _find_units(mapping: Mapping, options: LossOptions, terms: tuple[Term, ...]) -> Finder:
    prefixes = Prefixes.of(mapping) if options.units == "path" else None
    return partial(find_units, mapping, prefixes, bins_of(terms[0]), options.stops(mapping))


KINDS = {
    "partition-kl": Kind(_bins, partial_teachers=True, bins=True),
    "c-kl": Kind(_bins, ("level_weight", "end"), merges=("first",), partial_teachers=True, bins=True),
    "p-kl": Kind(_projection, ("top_k", "unreached"), partial_teachers=True),
    "h-kl": Kind(_pairs, ("normalize", "threshold", "uncommon_top_k")),
    "gold": Kind(_pairs, ("normalize", "uncommon_top_k")),
    "strict": Kind(
        _exact_pairs(strict), divergence="reverse", merges=("first",), partial_teachers=True, bins=True, single=True
    ),
    "bpm": Kind(
        _byte_prefixes,
        divergence="jsd",
        merges=("first",),
        partial_teachers=True,
        further=lambda mapping, *_: partial(find_positions, mapping, Prefixes.of(mapping)),
    ),
    "escd": Kind(
        _byte_prefixes,
        merges=("first",),
        partial_teachers=True,
        further=lambda mapping, *_: partial(find_children, Prefixes.of(mapping)),
    ),
    "simct": Kind(
        _exact_pairs(simct),
        ("units",),
        divergence="reverse",
        merges=("first",),
        partial_teachers=True,
        further=_find_units,
    ),
    "uld": Kind(_everything, divergence=None, agreement=False),
    "alm": Kind(lambda *_: (), divergence=None, merges=("first",), agreement=False),
    "exact": Kind(lambda *_: (), ("tolerance",), merges=("first",), agreement=False),
}
"""Every kind of loss. C-KL has levels beside its terms; ALM compares likelihoods, and exact goes along bytes: they have
no terms."""


PEERS = {"nemo-rl": ("p-kl", "h-kl", "gold"), "trl": ("uld", "gold"), "tokenkit": ("alm",)}
"""The peers whose numbers can be reproduced, and the kinds of loss that each has."""


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "kind": "p-kl",
        "temperature": 1.0,
        "merge": "mean",
        "top_k": 8192,
        "scale": "dynamic",
        "learn_w": True,
        "compat": None,
        "divergence": None,
        "student_top_k": None,
    }
}
"""Options by one word. "paper" is X-Token's P-KL as published (arXiv:2605.21699, 2026): the 8,192 best of the teacher's
columns at temperature 1, averaged over a chunk's positions, scaled to the cross-entropy, W trained; what the paper
leaves open stays as it is here."""


@dataclass(frozen=True)
class LossOptions:
    """What `XTokenLoss` was asked for; see there."""

    kind: str
    temperature: float = 1.0
    merge: str = "first"
    kd_weight: float = 1.0
    ce_weight: float = 1.0
    scale: str = "fixed"
    top_k: int | None = None
    unreached: str = "reroute"
    normalize: str = "rest"
    threshold: float = 0.6
    uncommon_top_k: int = 8192
    level_weight: str = "plausible"
    end: bool = True
    learn_w: bool = False
    compat: str | None = None
    implementation: str = "auto"
    divergence: str | None = None
    beta: float = 0.5
    student_top_k: int | None = None
    stop_bridge: bool = False
    skip_white_space: bool = False
    units: str = "text"
    tolerance: float = 0.0
    preset: str | None = None

    def decided(self, mapping: Mapping) -> LossOptions:
        """The options with the preset's, and with the mapping's kind for "auto".

        Raises:
            OptionError: for an option that would be ignored or has no meaning.
        """
        preset = {} if self.preset is None else dict(PRESETS[self.preset])
        if preset.get("learn_w") and not (np.diff(mapping.matrix.indptr) > 1).any():
            # Where each row has one link at most, there is nothing to learn.
            del preset["learn_w"]
        options = replace(self, **preset)
        if options.kind == "auto":
            options = replace(options, kind=mapping.coverage().recommendation.loss)
        options.check_together()
        return options

    def stops(self, mapping: Mapping) -> Stops | None:
        """The stops that are one outcome, if any."""
        return Stops.of(mapping) if self.stop_bridge else None

    @property
    def measure(self) -> Measure:
        """How distributions are compared, once `auto` is decided."""
        own = KINDS[self.kind].divergence or "forward"
        return Measure(self.divergence or own, self.beta, self.temperature, self.top_k, self.student_top_k)

    @property
    def indexed(self) -> bool:
        """Whether tables have places looked up; the reference works without."""
        return self.implementation != "reference"

    def __post_init__(self) -> None:
        check_one_of("kind", self.kind, ("auto", *KINDS))
        # Until the kind is known its own divergence may be any.
        Measure(self.divergence or "jsd", self.beta, self.temperature, self.top_k, self.student_top_k)
        check_one_of("merge", self.merge, ("first", "mean"))
        check_weight("kd_weight", self.kd_weight)
        check_weight("ce_weight", self.ce_weight)
        check_one_of("scale", self.scale, ("fixed", "dynamic"))
        check_one_of("unreached", self.unreached, ("reroute", "drop"))
        check_one_of("normalize", self.normalize, ("rest", "none"))
        check_one_of("units", self.units, ("text", "path"))
        check_share("threshold", self.threshold)
        check_size("uncommon_top_k", self.uncommon_top_k)
        check_switch("learn_w", self.learn_w)
        check_one_of("level_weight", self.level_weight, ("plausible", "teacher", "text"))
        check_switch("end", self.end)
        check_switch("stop_bridge", self.stop_bridge)
        check_switch("skip_white_space", self.skip_white_space)
        check_share("tolerance", self.tolerance)
        check_one_of("implementation", self.implementation, IMPLEMENTATIONS)
        if self.compat is not None:
            check_one_of("compat", self.compat, tuple(PEERS))
        if self.preset is not None:
            check_one_of("preset", self.preset, tuple(PRESETS))
            self._check_preset(PRESETS[self.preset])

    def _check_preset(self, preset: dict[str, Any]) -> None:
        """Refuses what was asked for beside a preset and contradicts it."""
        for name, value in preset.items():
            given = getattr(self, name)
            default = "auto" if name == "kind" else getattr(LossOptions, name)
            if given not in (default, value):
                raise OptionError(
                    f"preset={self.preset!r} has {name}={value!r}, but {name}={given!r} was asked for; leave one of "
                    "them out"
                )

    def check_together(self) -> None:
        """Refuses options that the kind has no use for, once `auto` is decided.

        Raises:
            OptionError: for an option that would be ignored or has no meaning.
        """
        if self.compat is not None and self.kind not in PEERS[self.compat]:
            theirs = " or ".join(PEERS[self.compat])
            raise OptionError(f"compat={self.compat!r} needs kind {theirs}, but the kind is {self.kind!r}")
        if self.merge not in KINDS[self.kind].merges and self.compat is None:
            raise OptionError(
                f"{self.kind} reads every position of a chunk by itself, so merge must be 'first', but it is 'mean'"
            )
        self._check_measure()
        for name in dict.fromkeys(name for kind in KINDS.values() for name in kind.options):
            kinds = [kind for kind in KINDS if name in KINDS[kind].options]
            if self.kind not in kinds and getattr(self, name) != getattr(LossOptions, name):
                raise OptionError(
                    f"{name} belongs to {' and '.join(kinds)}, but the kind is {self.kind!r}; leave it out"
                )
        if self.kind == "exact" and (self.stop_bridge or self.skip_white_space):
            raise OptionError(
                "exact goes along all bytes, so it has neither stop_bridge nor skip_white_space; leave them out"
            )
        if self.learn_w and self.stop_bridge:
            raise OptionError(
                "learn_w trains W's links as they are, but stop_bridge exchanges some; leave one of them out"
            )
        if self.learn_w and (self.kind != "p-kl" or self.merge != "mean" or self.compat is not None):
            raise OptionError(
                "learn_w needs kind='p-kl' with merge='mean', since no other loss reads W's weights, but the kind is "
                f"{self.kind!r} and merge {self.merge!r}"
            )

    def _check_measure(self) -> None:
        """Refuses options of a divergence where none is computed, and a beta that nothing reads."""
        form = None if KINDS[self.kind].divergence else self.kind
        if self.compat is not None:
            form = f"compat={self.compat!r}"
        if form is not None and self.skip_white_space:
            raise OptionError(f"skip_white_space is no option of {form}, which reads whole texts; leave it out")
        if form is None and self.normalize == "none":
            form = "normalize='none'"
        for name in ("divergence", "beta", "student_top_k", "stop_bridge"):
            if form is not None and getattr(self, name) != getattr(LossOptions, name):
                raise OptionError(
                    f"{name} says how distributions over common outcomes are compared, which {form} does not do; leave "
                    "it out"
                )
        _ = self.measure


class LinkWeights(torch.nn.Module):
    """One parameter per link; a softmax over each row's links makes weights of them.

    Rows with one link have nothing to learn: their weight is 1 whatever the parameter says.

    Args:
        mapping: whose W is the start.
        outcomes: the projection's table.

    Raises:
        OptionError: no row has several links, or W has links that a loss cannot read, to tokens without a probability.

    Source: X-Token (arXiv:2605.21699, 2026), which trains them at a learning rate of 1e-2.
    """

    row: torch.Tensor

    def __init__(self, mapping: Mapping, outcomes: Outcomes) -> None:
        super().__init__()
        if outcomes.links is None:
            raise OptionError(
                "learn_w needs a mapping with a row of several links, but each row has one at most, whose weight is 1; "
                "leave learn_w out"
            )
        links = outcomes.links
        if len(links.token) != len(mapping.matrix.data):
            raise OptionError(
                "W has links to padding, which cannot be learnt; build the mapping without those overrides"
            )
        self.mapping = mapping
        self.scores = torch.nn.Parameter(links.log_weight.float())
        self.register_buffer("row", links.token.clone(), persistent=False)

    def forward(self) -> torch.Tensor:
        """Floats (links,): log weights, each row's weights sum to 1."""
        rows = self.mapping.matrix.shape[0]
        top = (
            self.scores.detach().new_full((rows,), -torch.inf).scatter_reduce(0, self.row, self.scores.detach(), "amax")
        )
        above = self.scores - top[self.row]
        return above - above.new_zeros(rows).index_add(0, self.row, above.exp()).log()[self.row]

    def export(self) -> Mapping:
        """The mapping with the weights as they are now, of provenance `learned`."""
        weights = self().detach().double().exp().cpu().numpy()
        sums = np.bincount(self.mapping.matrix.rows, weights, minlength=self.mapping.matrix.shape[0])
        # A weight that was trained down to nothing still is a link: W holds weights above 0.
        data = np.maximum((weights / sums[self.mapping.matrix.rows]).astype(np.float32), np.finfo(np.float32).tiny)
        return replace(self.mapping, matrix=replace(self.mapping.matrix, data=data), provenance="learned")
