"""`XTokenLoss`: one loss of a student against one teacher, as a module that training code calls.

`KINDS` says of what each kind of loss is made; a new loss is a formula in `functional` and a line there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any, Self

import numpy as np
import torch
from torch._compile import _disable_dynamo
from torch.utils._pytree import tree_map_only

from ..errors import OptionError
from ..mapping.mapping import Mapping
from ..spans.spans import IGNORED, Predictions, Spans
from ..vocab.vocab import Vocab
from .blocks import (
    Batch,
    Ids,
    Objective,
    Result,
    Term,
    all_of_chunk,
    attach,
    block_sizes,
    plan_batch,
    run_batch,
)
from .chain import Left, LevelOne, chain_trees
from .checks import check_ids, check_labels, check_mapping, check_sides, check_spans
from .divergence import Measure
from .exact import ExactPaths
from .functional import alm, chunk_log_likelihoods, outcomes_kl, simct, sorted_l1, strict
from .further import Finder, find_children, find_positions, find_units, prefix_outcomes
from .inputs import Compared, Hidden, Logits, Student, Teacher, TopK, source_of
from .options import (
    IMPLEMENTATIONS,
    check_count,
    check_one_of,
    check_share,
    check_size,
    check_switch,
    check_weight,
)
from .prefixes import Prefixes
from .scale import DynamicScale
from .sharded import Shares, shared_out, shares_of
from .tables import (
    LinkWeights,
    Outcomes,
    Stops,
    blank_tokens,
    live_tokens,
    mapping_bins,
    mapping_links,
    mapping_pairs,
    pair_outcomes,
    ranks_of_all,
    ranks_of_pairs,
)

Count = int | float | torch.Tensor


Metric = tuple[torch.Tensor, torch.Tensor]
"""Numerator and denominator, detached scalars: add both over steps and ranks, then divide."""


@dataclass(frozen=True, eq=False)
class LossOutput:
    """A loss and its parts.

    Attributes:
        loss: scalar with the student's graph, kd_weight * scale * kd + ce_weight * ce.
        kd: scalar, the distillation loss, detached.
        ce: scalar, the cross-entropy, detached; 0 where it is not computed.
        metrics: detached (numerator, denominator) pairs, by name: `kd`, `ce`, `scale`, `agreement` (the two sides' top
            choices in the common space are one), `chunks_used` (of all chunks with a weight), `misfits`,
            `dropped_mass` (the teacher's mass that was not compared), `empty_mass` (the student's mass on tokens
            without a counterpart). With several teachers the names carry the teacher's number: `agreement/0`.
    """

    loss: torch.Tensor
    kd: torch.Tensor
    ce: torch.Tensor
    metrics: dict[str, Metric] = field(default_factory=dict)

    def value(self, name: str) -> float:
        """A metric of this call as a number: its numerator by its denominator, NaN where nothing was counted.

        Raises:
            OptionError: there is no metric of this name; lists those that there are.

        >>> out = LossOutput(*torch.zeros(3), {"agreement": (torch.tensor(3.0), torch.tensor(4.0))})
        >>> out.value("agreement")
        0.75
        """
        if name not in self.metrics:
            raise OptionError(
                f"there is no metric {name!r} here; there are {', '.join(sorted(self.metrics)) or 'none'}"
            )
        numerator, denominator = (float(part) for part in self.metrics[name])
        return numerator / denominator if denominator else math.nan


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
        return (Term(formula, pair_outcomes(mapping, pairs, stops=stops, rest="none", indexed=options.indexed)),)

    return terms


def _byte_prefixes(mapping: Mapping, options: LossOptions) -> tuple[Term, ...]:
    return (Term(outcomes_kl, prefix_outcomes(mapping, stops=options.stops(mapping), indexed=options.indexed)),)


def _bins_of(term: Term) -> tuple[Ids, Ids]:
    """Both sides' bins as a term numbers them, the rest included; -1 for tokens in none."""
    table = term.table
    assert isinstance(table, Outcomes)
    student, teacher = (side.group.numpy() for side in (table.student, table.teacher))
    count = table.student.count
    return np.where(student == count, -1, student), np.where(teacher == count, -1, teacher)


def _find_units(mapping: Mapping, options: LossOptions, terms: tuple[Term, ...]) -> Finder:
    prefixes = Prefixes.of(mapping) if options.units == "path" else None
    return partial(find_units, mapping, prefixes, _bins_of(terms[0]), options.stops(mapping))


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


@dataclass(frozen=True)
class _Buffer:
    """Stands in a table for a tensor that the module holds as a buffer."""

    name: str


class XTokenLoss(torch.nn.Module):
    """Distils a teacher with another tokenizer.

    loss = kd_weight * scale * KD + ce_weight * CE. KD is the mean over chunks of the kind's divergence, CE the mean
    over labels of the student's cross-entropy.

    Args:
        mapping: of the two tokenizers.
        kind: "partition-kl", "c-kl", "p-kl", "h-kl", "gold", "strict", "bpm", "escd", "simct", "uld", "alm", or "auto",
            the mapping's choice; for research "exact", which is slow.
        temperature: T.
        divergence: how two distributions P, Q over common outcomes, the teacher's and the student's, are compared:
            "forward", KL(P || Q), "reverse", KL(Q || P), or "jsd", beta KL(P || M) + (1 - beta) KL(Q || M) with
            M = beta P + (1 - beta) Q. None takes the kind's own.
        beta: "jsd": the teacher's share in M, as in TRL; at 0 it is the forward KL, at 1 the reverse one.
        student_top_k: compare the student's k likeliest outcomes alone, both sides normalised on them; None for all.
        merge: which of a chunk's predicting positions are read: "first", at which both models have read the same bytes,
            or "mean", the average of all.
        kd_weight: factor of KD. The gradient of alm is about 1/100 of the others': beside a cross-entropy take 100.
        ce_weight: factor of CE, 1 by default; where it is given and not 0, labels are expected.
        scale: "fixed", or "dynamic": KD is scaled to CE by running averages; call `step_scale` once per optimiser step.
        top_k: p-kl: the teacher's columns that are kept per chunk; None for all.
        unreached: p-kl: what becomes of the teacher's mass on columns that no student token reaches, "reroute" or
            "drop".
        normalize: h-kl, gold: "rest" or "none", see `h_kl`.
        threshold: h-kl: the least weight of a row's top link.
        uncommon_top_k: h-kl, gold: how many ranks of the remainders are compared.
        level_weight: c-kl: how much a level counts beside level one, as a constant: "plausible", the product over the
            pieces before of the teacher's probability of the text's over that of its best; "teacher", its probability
            of the pieces before; "text", 1.
        end: c-kl: whether level one leaves out what would have continued the chunk before.
        learn_w: p-kl with merge="mean": W's weights are trained too.
        stop_bridge: the tokens that end a turn or a text (roles eot, eos, eom and stop) are one outcome on both sides,
            so that a teacher that ends with another one than the student's text still says that it ends.
        skip_white_space: chunks of which the student's bytes are ASCII white space have the value 0; they count in what
            KD is divided by.
        units: simct: which units are candidates beside the shared tokens: "text", the chunk itself, or "path", all that
            differ from it in the last tokens alone.
        preset: "paper": X-Token's P-KL as published, see `PRESETS`; other options may stand beside it where they do not
            contradict.
        compat: "nemo-rl", "trl" or "tokenkit": that peer's form of the kind, for reproducing its numbers.
        implementation: how outcomes are compared. "auto" takes what suits the device: in place on the CPU, Triton's
            kernels on a GPU. "cpu" and "triton" insist on one of these; "reference" is plain autograd over the
            formulas, whose tables have fixed shapes. All give the same numbers up to rounding.
        tolerance: exact: the share of a comparison's mass that may be left out; vocabularies of models need about
            0.001.
        vocabs: exact: the student's and the teacher's vocabulary, whose encoders say how each side writes.

    Raises:
        OptionError: for an option out of range, or one that the kind has no use for.

    The tables are buffers outside of the state dict: they move with `.to()` and are made anew from the mapping. In a
    function that `torch.compile` compiles, `forward` is one graph break: a batch is planned anew each time.

    Source: X-Token (arXiv:2605.21699, 2026) for P-KL and H-KL; strict arXiv:2610.08448, BPM arXiv:2607.22334, ESCD
    arXiv:2609.34738, SimCT arXiv:2605.07711 (all 2026); Partition-KL and C-KL are this library's.
    """

    def __init__(
        self,
        mapping: Mapping,
        kind: str = "auto",
        temperature: float = 1.0,
        merge: str = "first",
        kd_weight: float = 1.0,
        ce_weight: float | None = None,
        scale: str = "fixed",
        top_k: int | None = None,
        unreached: str = "reroute",
        normalize: str = "rest",
        threshold: float = 0.6,
        uncommon_top_k: int = 8192,
        level_weight: str = "plausible",
        end: bool = True,  # noqa: FBT002 - a switch among named options
        learn_w: bool = False,  # noqa: FBT002 - a switch among named options
        compat: str | None = None,
        implementation: str = "auto",
        divergence: str | None = None,
        beta: float = 0.5,
        student_top_k: int | None = None,
        stop_bridge: bool = False,  # noqa: FBT002 - a switch among named options
        skip_white_space: bool = False,  # noqa: FBT002 - a switch among named options
        units: str = "text",
        tolerance: float = 0.0,
        vocabs: tuple[Vocab, Vocab] | None = None,
        preset: str | None = None,
    ) -> None:
        given: dict[str, Any] = {
            name: value for name, value in locals().items() if name in LossOptions.__dataclass_fields__
        }
        super().__init__()
        check_mapping(mapping)
        given["ce_weight"] = LossOptions.ce_weight if ce_weight is None else ce_weight
        self.options = options = LossOptions(**given).decided(mapping)
        self._expects_labels = ce_weight is not None and ce_weight > 0
        self.mapping = mapping
        terms = KINDS[options.kind].terms(mapping, options)
        silent = [(~live).nonzero().squeeze(1) for live in live_tokens(mapping)]
        self._formulas = tuple(term.formula for term in terms)
        self._tables = tree_map_only(torch.Tensor, self._as_buffer, [tuple(term.table for term in terms), *silent])
        own = KINDS[options.kind]
        self._bins = _bins_of(terms[0]) if own.bins else None
        self._find = own.further(mapping, options, terms) if own.further else None
        self._blank = blank_tokens(mapping.student) if options.skip_white_space else None
        self._paths = None
        if (vocabs is None) == (options.kind == "exact"):
            raise OptionError(
                "kind='exact' needs both vocabularies with their encoders, vocabs=(student, teacher), and no other "
                f"kind does, but the kind is {options.kind!r}"
            )
        if vocabs is not None:
            self._paths = ExactPaths(*vocabs, mapping, tolerance=options.tolerance)
        self._trees = chain_trees(mapping) if options.kind == "c-kl" else None
        self._level_one: LevelOne | None = None
        if self._trees is not None and self._bins is not None and options.end:
            self._level_one = LevelOne(self._trees, self._bins)
        self.scale = DynamicScale() if options.scale == "dynamic" and options.compat is None else None
        self.links = LinkWeights(mapping, terms[0].table) if options.learn_w else None  # type: ignore[arg-type]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:  # noqa: FBT002 - as torch
        """Moves the tables, but leaves float64 as it is: W's weights and averages, in a model of any precision."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            made = fn(tensor)
            return tensor.to(made.device) if tensor.dtype == torch.float64 != made.dtype else made

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def _as_buffer(self, tensor: torch.Tensor) -> _Buffer:
        name = f"_table_{len(self._buffers)}"
        self.register_buffer(name, tensor, persistent=False)
        return _Buffer(name)

    @property
    def kind(self) -> str:
        """The kind, `auto` decided."""
        return self.options.kind

    def __repr__(self) -> str:
        """One line: the kind, who learns from whom, and the options that are not the default ones.

        XTokenLoss(c-kl, llama-3 <- qwen3, temperature=2.0)
        """
        default = LossOptions(self.kind)
        changed = (f"{name}={value!r}" for name, value in vars(self.options).items() if value != getattr(default, name))
        names = f"{self.mapping.student.name} <- {self.mapping.teacher.name}"
        return f"XTokenLoss({', '.join([self.kind, names, *changed])})"

    def objective(self) -> Objective:
        """What is compared, with the tables where the module is."""
        tables, *silent = tree_map_only(_Buffer, lambda buffer: getattr(self, buffer.name), self._tables)
        return Objective(
            tuple(map(Term, self._formulas, tables)),
            self.options.measure,
            self.options.implementation,
            student_silent=silent[0],
            teacher_silent=silent[1],
            level_weight=self.options.level_weight,
        )

    # A graph of the planning would be made anew for every batch. `torch.compiler.disable` would say the same, but loads
    # the compiler when this module is imported.
    @_disable_dynamo
    def forward(
        self,
        student: Student,
        teacher: Teacher,
        spans: Spans,
        labels: torch.Tensor | None = None,
        student_ids: torch.Tensor | None = None,
        teacher_ids: torch.Tensor | None = None,
        num_chunks_in_batch: Count | None = None,
        num_items_in_batch: Count | None = None,
        *,
        share: float | None = None,
    ) -> LossOutput:
        """One batch.

        Args:
            student: logits (B, T_s, V_s), or `Hidden` states with the head, from which the loss is fused.
            teacher: logits (B, T_t, V_t), `Hidden`, or `TopK`; gets no gradient.
            spans: the batch's chunks, best on the CPU, where they are planned.
            labels: integers (B, T_s), -100 where not labelled, not shifted: the logits at t are compared with
                labels[t + 1]. Without them there is no cross-entropy.
            student_ids: integers (B, T_s) that the student read; refused where they are not those of `spans`, so that
                spans of another batch are noticed.
            teacher_ids: integers (B, T_t) that the teacher read, likewise.
            num_chunks_in_batch: what KD is divided by, counted over accumulation steps and ranks; by default the
                chunks of this call with a weight, misfits included (`len(spans.predictions())`).
            num_items_in_batch: what CE is divided by; by default the labels of this call.
            share: multiplies KD once more; teachers that share a student have one each, and labels for the first.

        Returns:
            The loss and its parts. Without a chunk and a label the loss is 0, with a graph.

        Raises:
            OptionError: for what does not belong together, holds impossible numbers, or is of a form that the kind
                cannot read; see `checks`.
            MismatchError: the spans are of other tokenizers than the mapping.
        """
        is_peers = self.options.compat is not None
        check_sides(student, teacher, self.mapping, None if is_peers else next(self.buffers()).device)
        host = check_spans(spans, student, teacher, self.mapping)
        host = replace(host, _predictions=host.predictions())
        check_ids("student", student_ids, host)
        check_ids("teacher", teacher_ids, host)
        reads = bool(self.options.ce_weight) and not is_peers
        host_labels = check_labels(labels, host, self.mapping.matrix.shape[0], read=reads)
        check_count("num_chunks_in_batch", num_chunks_in_batch)
        check_count("num_items_in_batch", num_items_in_batch)
        if share is None:
            self.check_labels_given(labels)
        share = check_weight("share", 1.0 if share is None else share)
        predictions = host.predictions()
        shares = shares_of(student, teacher)
        if shares is not None and (self.options.kind in {"alm", "exact"} or is_peers):
            raise OptionError(
                "alm, exact and the compat forms read whole logits, but these are sharded by the vocabulary (kind "
                f"{self.options.kind!r}, compat {self.options.compat!r}); gather them first or take another kind"
            )
        if is_peers:
            options = replace(self.options, kd_weight=share * self.options.kd_weight)
            return _peer_loss(self.mapping, options, student, teacher, spans, labels)
        if isinstance(teacher, TopK) and not KINDS[self.options.kind].partial_teachers:
            able = [kind for kind in KINDS if KINDS[kind].partial_teachers]
            raise OptionError(
                f"{self.options.kind} needs the teacher's whole distribution, but the teacher is a TopK; use "
                f"{', '.join(able[:-1])} or {able[-1]}"
            )
        own_labels = None if host_labels is None else _next_labels(host_labels)
        label_count = 0 if own_labels is None else int((own_labels != IGNORED).sum())
        chunks = _divisor(num_chunks_in_batch, len(predictions))
        items = _divisor(num_items_in_batch, label_count)
        factor = torch.ones((), dtype=torch.float64) if self.scale is None else self.scale.factor.clone()
        kd_factor = share * self.options.kd_weight * factor / chunks
        ce_factor = self.options.ce_weight / torch.as_tensor(items, dtype=torch.float64)
        compare = self._likelihoods if self.options.kind == "alm" else self._distributions
        if self._paths is not None:
            compare = partial(self._exact, self._paths)
        loss, result, weights, misfits = compare(student, teacher, host, own_labels, kd_factor, ce_factor, shares)
        total = (lambda value: value) if shares is None else shares.sum
        if shares is not None:
            loss = loss + (shares.sum(loss) - loss).detach()
        kd, ce = total((result.value * weights).sum()), total(result.cross_entropy)
        one = kd.new_ones(())
        metrics = {
            "kd": (kd, one * len(predictions)),
            "ce": (ce, one * label_count),
            "scale": (factor.to(kd), one),
            **{
                name: (total(numerator), total(denominator))
                for name, (numerator, denominator) in _metrics(result, weights, misfits).items()
            },
        }
        if not KINDS[self.options.kind].agreement:
            del metrics["agreement"]
        if self.scale is not None and self.training:
            self.scale.add(metrics["kd"], metrics["ce"])
        return LossOutput(loss, kd / chunks, ce / items, metrics)

    def check_labels_given(self, labels: torch.Tensor | None) -> None:
        """Refuses a call without labels where a weight of the cross-entropy was asked for."""
        if labels is None and self._expects_labels:
            raise OptionError(
                f"ce_weight={self.options.ce_weight} was asked for, but there are no labels, so that there is no "
                "cross-entropy: pass labels, or leave ce_weight out"
            )

    def step_scale(self) -> None:
        """Takes what was seen since the last optimiser step into the running averages of `scale="dynamic"`."""
        if self.scale is not None:
            self.scale.step()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Calls `step_scale` after every step of the optimiser."""
        optimizer.register_step_post_hook(lambda *_: self.step_scale())

    def learned_mapping(self) -> Mapping:
        """The mapping with the weights as trained so far, of provenance `learned`.

        Raises:
            OptionError: W is not learnt.
        """
        if self.links is None:
            raise OptionError("this loss does not learn W; make it with learn_w=True")
        return self.links.export()

    def _plan(self, predictions: Predictions, labels: Ids | None, left: Left | None, *, fused: bool) -> Batch:
        sizes = block_sizes(next(self.buffers()).device, *self.mapping.matrix.shape)
        by_table, further = (None, ()) if self._find is None else self._find(predictions)
        return plan_batch(
            predictions,
            labels,
            sizes,
            rows=sizes.hidden if fused else sizes.logits,
            merge=self.options.merge,
            bins=self._bins,
            trees=self._trees,
            left=left,
            single=KINDS[self.options.kind].single,
            blank=None if self._blank is None else all_of_chunk(self._blank, predictions),
            by_table=by_table,
            further=further,
        )

    def _distributions(
        self,
        student: Student,
        teacher: Teacher,
        spans: Spans,
        labels: Ids | None,
        kd_factor: torch.Tensor,
        ce_factor: torch.Tensor,
        shares: Shares | None,
    ) -> tuple[torch.Tensor, Result, torch.Tensor, int]:
        """The loss with its graph, the pass, each chunk's weight, and how many chunks are misfits."""
        predictions = spans.predictions()
        left = None if self._level_one is None else self._level_one.left(spans, predictions)
        if shares is None:
            batch = self._plan(predictions, labels, left, fused=isinstance(student, Hidden))
        else:
            # Every rank plans for all, since it must know which rows the others read.
            plans = []
            for rank in range(shares.ranks):
                first, last = shares.bounds(len(predictions), rank)
                own = None if left is None else left.between(first, last, moved=first)
                chunks = shares.chunks(predictions, rank)
                plans.append(self._plan(chunks, shares.labels(labels, rank), own, fused=False))
            student, teacher, batch = shared_out(student, teacher, plans, shares)
        objective = self.objective()
        log_weight = None if self.links is None else self.links()
        if log_weight is not None:
            log_weight = log_weight if shares is None else shares.replicated(log_weight)
            objective = _with_weights(objective, log_weight)
        loss, result, weights = run_batch(
            source_of(student),
            source_of(teacher),
            objective,
            batch,
            chunk_factor=kd_factor,
            label_factor=ce_factor,
            link_log_weight=log_weight,
        )
        return loss, result, weights, batch.misfits

    def _likelihoods(
        self,
        student: Student,
        teacher: Teacher,
        spans: Spans,
        labels: Ids | None,
        kd_factor: torch.Tensor,
        ce_factor: torch.Tensor,
        shares: Shares | None,
    ) -> tuple[torch.Tensor, Result, torch.Tensor, int]:
        """ALM's form of `_distributions`: it has no common space, and only the cross-entropy is made in blocks."""
        assert shares is None
        predictions, objective = spans.predictions(), self.objective()
        tensors = Predictions(
            **{
                name: torch.from_numpy(values).to(objective.student_silent.device)  # type: ignore[union-attr]
                for name, values in vars(predictions).items()
            }
        )
        likelihoods = [
            chunk_log_likelihoods(side, tensors, which, silent=silent)  # type: ignore[arg-type]
            for side, which, silent in (
                (student, "student", objective.student_silent),
                (teacher, "teacher", objective.teacher_silent),
            )
        ]
        # A student that cannot say the chunk is infinitely far away, and without a distribution there is no likelihood.
        known = (likelihoods[0] > -torch.inf) & ~likelihoods[1].isnan()
        values = torch.where(known, alm(*(one.where(known, 0.0) for one in likelihoods), reduction="none"), 0.0)
        loss, result = self._cross_entropy(student, teacher, predictions, labels, kd_factor, ce_factor)
        weights = torch.from_numpy(predictions.weight).to(values)
        result = _with_values(result, values.detach(), known)
        return loss + (values * weights).sum() * kd_factor.to(values), result, weights, 0

    def _exact(
        self,
        paths: ExactPaths,
        student: Student,
        teacher: Teacher,
        spans: Spans,
        labels: Ids | None,
        kd_factor: torch.Tensor,
        ce_factor: torch.Tensor,
        shares: Shares | None,
    ) -> tuple[torch.Tensor, Result, torch.Tensor, int]:
        """Exact's form of `_distributions`, which goes along the bytes of the chunks' tokens."""
        assert shares is None
        predictions, objective = spans.predictions(), self.objective()
        loss, result = self._cross_entropy(student, teacher, predictions, labels, kd_factor, ce_factor)
        sources = source_of(student), source_of(teacher)
        weights = torch.from_numpy(predictions.weight).to(result.cross_entropy)
        factor = kd_factor.to(weights)
        given: dict[str, Any] = {
            "silent": (objective.student_silent, objective.teacher_silent),
            "measure": self.options.measure,
            "weight": weights * factor,
            "wanted": [torch.is_grad_enabled() and one is not None and one.requires_grad for one in sources[0].inputs],
        }
        values, gradients = paths.run(*sources, spans, predictions, **given)
        kd = attach(
            (values * weights).sum() * factor,
            sources[0].inputs,
            gradients,
            lambda: paths.run(*sources, spans, predictions, **given)[1],
        )
        return loss + kd, _with_values(result, values, torch.ones_like(values)), weights, 0

    def _cross_entropy(
        self,
        student: Student,
        teacher: Teacher,
        predictions: Predictions,
        labels: Ids | None,
        kd_factor: torch.Tensor,
        ce_factor: torch.Tensor,
    ) -> tuple[torch.Tensor, Result]:
        """The labels' part alone, made in blocks."""
        nothing = Predictions(
            **{name: values[: 1 if name.endswith("offsets") else 0] for name, values in vars(predictions).items()}
        )
        batch = self._plan(nothing, labels, None, fused=isinstance(student, Hidden))
        sources = source_of(student), source_of(teacher)
        loss, result, _ = run_batch(*sources, self.objective(), batch, chunk_factor=kd_factor, label_factor=ce_factor)
        return loss, result


def _with_values(result: Result, values: torch.Tensor, compared: torch.Tensor) -> Result:
    """A pass of the labels alone with the values of chunks that were made without it."""
    zeros = torch.zeros_like(values)
    return replace(result, value=values, agrees=zeros, dropped=zeros, empty=zeros, compared=compared.to(zeros))


def _metrics(result: Result, weights: torch.Tensor, misfits: int) -> dict[str, Metric]:
    """What a pass could compare, as numerators and denominators."""
    used, count = weights.sum(), weights.new_tensor(len(weights))
    return {
        "agreement": ((result.agrees * weights).sum(), (result.compared * weights).sum()),
        "chunks_used": ((result.compared * (weights > 0)).sum(), count),
        "misfits": (count.new_tensor(misfits), count),
        "dropped_mass": ((result.dropped * weights).sum(), used),
        "empty_mass": ((result.empty * weights).sum(), used),
    }


def _next_labels(labels: Ids) -> Ids:
    """What the logits at each position are to predict: the next position's label."""
    shifted = np.full(labels.shape, IGNORED, dtype=np.int64)
    shifted[:, :-1] = labels[:, 1:]
    return shifted.ravel()


def _peer_loss(
    mapping: Mapping,
    options: LossOptions,
    student: Student,
    teacher: Teacher,
    spans: Spans,
    labels: torch.Tensor | None,
) -> LossOutput:
    """A peer's form of the loss, and its sum with the cross-entropy as NeMo-RL makes it: counts are those of the call.

    Raises:
        OptionError: a side is not logits.
    """
    # Nothing else needs the peers' forms, so they are loaded here.
    peer = import_module(f".peers.{(options.compat or '').replace('-', '_')}", __package__)
    total = import_module(".peers.nemo_rl", __package__).total
    logits = []
    for side, name in ((student, "student"), (teacher, "teacher")):
        plain = side.logits if isinstance(side, Logits) else side
        if not isinstance(plain, torch.Tensor):
            raise OptionError(f"the peers' forms read logits, but the {name} is a {type(side).__name__}")
        logits.append(plain)
    kd = peer.on_spans(
        mapping,
        *logits,
        spans.to(logits[0].device),
        kind=options.kind,
        temperature=options.temperature,
        merge=options.merge,
        top_k=options.top_k,
        uncommon_top_k=options.uncommon_top_k,
    )
    if labels is None:
        return LossOutput(options.kd_weight * kd, kd.detach(), torch.zeros_like(kd.detach()))
    labels = labels.to(logits[0].device)
    out = total(
        kd,
        logits[0],
        labels.clamp_min(0),
        token_mask=labels >= 0,
        kl_loss_weight=options.kd_weight,
        ce_loss_scale=options.ce_weight,
        dynamic_loss_scaling=options.scale == "dynamic",
    )
    one = torch.ones_like(out.kd)
    metrics = {"kd": (out.kd, one), "ce": (out.ce, one), "scale": (out.kl_scale, one)}
    return LossOutput(out.loss, out.kd, out.ce, metrics)


def _divisor(given: Count | None, own: int) -> Count:
    """What a sum is divided by; where there is nothing to divide, 1."""
    if given is None:
        return max(own, 1)
    return given.clamp_min(1) if isinstance(given, torch.Tensor) else max(given, 1)


def _with_weights(objective: Objective, log_weight: torch.Tensor) -> Objective:
    """The objective with learnt link weights."""
    (term,) = objective.terms
    assert isinstance(term.table, Outcomes)
    assert term.table.links is not None
    links = replace(term.table.links, log_weight=log_weight.detach())
    return replace(objective, terms=(Term(term.formula, replace(term.table, links=links)),))
