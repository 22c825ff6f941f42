"""`XTokenLoss`: one loss of a student against one teacher, as a module that training code calls.

`kinds` says of what each kind of loss is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch._compile import _disable_dynamo
from torch.utils._pytree import tree_map_only

from ..errors import OptionError
from ..mapping.mapping import Mapping
from ..spans.spans import IGNORED, Predictions, Spans
from ..vocab.vocab import Vocab
from .advantages import chunk_log_likelihoods
from .blocks import Objective, Term, attach, run_batch
from .chain import Left, LevelOne, chain_trees
from .checks import check_ids, check_labels, check_mapping, check_sides, check_spans
from .exact import ExactPaths
from .functional import alm
from .inputs import (
    Hidden,
    Logits,
    Number,
    Result,
    Student,
    Teacher,
    TopK,
    Totals,
    Weights,
    source_of,
    totals_of,
    weights_of,
)
from .kinds import KINDS, LinkWeights, LossOptions, bins_of
from .options import (
    check_count,
    check_weight,
)
from .plan import (
    Batch,
    Ids,
    Planned,
    all_of_chunk,
    begin_plan,
    blank_tokens,
    block_sizes,
    plan_batch,
    rows_of_states,
    take_plan,
)
from .scale import DynamicScale
from .sharded import Shares, shared_out, shares_of
from .tables import Outcomes, live_tokens

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
class _Buffer:
    """Stands in a table for a tensor that the module holds as a buffer."""

    name: str


@dataclass(frozen=True, eq=False)
class _Call:
    """What a call multiplies and counts.

    Attributes:
        factors: see `Weights`.
        chunks: how many chunks there are.
        labels: how many labels.
        scale: the factor of KD.
        batch: the plan, where it was made ahead.
    """

    factors: tuple[Number, ...]
    chunks: int
    labels: int
    scale: Number
    batch: Batch | None = None

    def weights(self, chunk: NDArray[np.float32], misfits: int, like: torch.Tensor) -> tuple[Weights, torch.Tensor]:
        """The weights of chunks, and the numbers of the metrics: chunks, labels, scale, 1, misfits, how many chunks."""
        return weights_of(chunk, self.factors, (self.chunks, self.labels, self.scale, 1, misfits, len(chunk)), like)


class XTokenLoss(torch.nn.Module):
    """Distils a teacher with another tokenizer.

    loss = kd_weight * scale * KD + ce_weight * CE. KD is the mean over chunks of the kind's divergence, CE the mean
    over labels of the student's cross-entropy.

    Args:
        mapping: of the two tokenizers.
        kind: "partition-kl", "c-kl", "p-kl", "h-kl", "gold", "strict", "bpm", "escd", "simct", "uld", "alm", or "auto",
            the mapping's choice; for research "exact", which is slow.
        temperature: T, which the logits of both sides are divided by.
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
        self._formulas = tuple((term.formula, term.both) for term in terms)
        self._tables = tree_map_only(torch.Tensor, self._as_buffer, [tuple(term.table for term in terms), *silent])
        own = KINDS[options.kind]
        self._bins = bins_of(terms[0]) if own.bins else None
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
            tuple(Term(formula, table, both) for (formula, both), table in zip(self._formulas, tables, strict=True)),
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
        host = check_spans(spans, student, teacher, self.mapping).with_predictions()
        check_ids("student", student_ids, host)
        check_ids("teacher", teacher_ids, host)
        reads = bool(self.options.ce_weight) and not is_peers
        planned = take_plan(spans, self._name_of_plan(labels, fused=isinstance(student, Hidden)))
        if planned is None:
            host_labels = check_labels(labels, host, self.mapping.matrix.shape[0], read=reads)
        else:
            host_labels = planned.labels
        check_count("num_chunks_in_batch", num_chunks_in_batch)
        check_count("num_items_in_batch", num_items_in_batch)
        if share is None:
            self.check_labels_given(labels)
        share = check_weight("share", 1.0 if share is None else share)
        predictions = host.predictions()
        shares = shares_of(student, teacher)
        self._check_forms(teacher, shares)
        if is_peers:
            options = replace(self.options, kd_weight=share * self.options.kd_weight)
            return _peer_loss(self.mapping, options, student, teacher, spans, labels)
        own_labels = None if host_labels is None else _next_labels(host_labels)
        label_count = 0 if own_labels is None else int((own_labels != IGNORED).sum())
        chunks = _divisor(num_chunks_in_batch, len(predictions))
        items = _divisor(num_items_in_batch, label_count)
        factor = 1.0 if self.scale is None else self.scale.factor.clone()
        factors = (share * self.options.kd_weight * factor / chunks, self.options.ce_weight / items)
        batch = None if planned is None else planned.batch
        call = _Call((*factors, 1 / chunks, 1 / items), len(predictions), label_count, factor, batch)
        compare = self._apart if self.options.kind in {"alm", "exact"} else self._distributions
        loss, totals, constants = compare(student, teacher, host, own_labels, call, shares)
        own = (totals.kd_mean, totals.ce_mean)
        if shares is not None:
            loss = loss + (shares.sum(loss) - loss).detach()
            own = (shares.sum(own[0]), shares.sum(own[1]))
        metrics = self._metrics(totals, constants, shares)
        if self.scale is not None and self.training:
            self.scale.add(metrics["kd"], metrics["ce"])
        return LossOutput(loss, *own, metrics)

    def _check_forms(self, teacher: Teacher, shares: Shares | None) -> None:
        """Refuses a teacher's or sharded logits' form that the kind cannot read."""
        kind, compat = self.options.kind, self.options.compat
        if shares is not None and (kind in {"alm", "exact"} or compat is not None):
            raise OptionError(
                "alm, exact and the compat forms read whole logits, but these are sharded by the vocabulary (kind "
                f"{kind!r}, compat {compat!r}); gather them first or take another kind"
            )
        if compat is None and isinstance(teacher, TopK) and not KINDS[kind].partial_teachers:
            able = [name for name in KINDS if KINDS[name].partial_teachers]
            raise OptionError(
                f"{kind} needs the teacher's whole distribution, but the teacher is a TopK; use "
                f"{', '.join(able[:-1])} or {able[-1]}"
            )

    def _metrics(self, totals: Totals, constants: torch.Tensor, shares: Shares | None) -> dict[str, Metric]:
        """The parts and the counts of a call, summed over the ranks that share its logits; see `_Call.weights`."""
        total = (lambda value: value) if shares is None else shares.sum
        chunks, labels, scale, one, misfits, count = constants.unbind()
        metrics = {
            "kd": (total(totals.kd), chunks),
            "ce": (total(totals.ce), labels),
            "scale": (scale, one),
            "agreement": (total(totals.agrees), total(totals.compared)),
            "chunks_used": (total(totals.chunks_used), total(count)),
            "misfits": (total(misfits), total(count)),
            "dropped_mass": (total(totals.dropped), total(totals.used)),
            "empty_mass": (total(totals.empty), total(totals.used)),
        }
        if not KINDS[self.options.kind].agreement:
            del metrics["agreement"]
        return metrics

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

    def plan_ahead(self, spans: Spans, labels: torch.Tensor | None = None, *, fused: bool = False) -> None:
        """Plans a batch on a thread of its own while the models run; the next call with the same spans takes the plan.

        Args:
            spans: the object that is handed in then.
            labels: those that are; they are read on that thread, too.
            fused: whether the student will be `Hidden`.

        What is wrong with labels is raised by that call.
        """
        if self.options.compat is not None or self.options.kind in {"alm", "exact"}:
            return
        name = self._name_of_plan(labels, fused=fused)
        if name is None:
            return

        def work() -> Planned:
            host = spans.numpy().with_predictions()
            width, reads = self.mapping.matrix.shape[0], bool(self.options.ce_weight)
            host_labels = check_labels(labels, host, width, read=reads)
            own = None if host_labels is None else _next_labels(host_labels)
            return Planned(self._plan_of(host, own, fused=fused), host_labels)

        begin_plan(spans, name, work, kept=(self, labels))

    def _name_of_plan(self, labels: object, *, fused: bool) -> tuple[object, ...] | None:
        """Tells plans apart that are made of the same spans: by the loss, the labels as they are, and the form.

        None for labels that do not count their changes, so that a plan may be out of date; and for what is no tensor.
        """
        if labels is None:
            return id(self), None, fused
        if not isinstance(labels, torch.Tensor) or labels.is_inference():
            return None
        return id(self), (id(labels), labels._version), fused  # noqa: SLF001 - how often they were changed

    def _plan_of(self, spans: Spans, labels: Ids | None, *, fused: bool) -> Batch:
        """The plan of a batch on the host."""
        predictions = spans.predictions()
        left = None if self._level_one is None else self._level_one.left(spans, predictions)
        return self._plan(predictions, labels, left, fused=fused)

    def _plan(self, predictions: Predictions, labels: Ids | None, left: Left | None, *, fused: bool) -> Batch:
        device = next(self.buffers()).device
        sizes = block_sizes(device, *self.mapping.matrix.shape)
        by_table, further = (None, ()) if self._find is None else self._find(predictions)
        return plan_batch(
            predictions,
            labels,
            sizes,
            rows=rows_of_states(device, sizes, len(predictions)) if fused else sizes.logits,
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
        call: _Call,
        shares: Shares | None,
    ) -> tuple[torch.Tensor, Totals, torch.Tensor]:
        """The loss with its graph, what the pass adds up to, and the constants of `_Call.weights`."""
        if shares is None:
            batch = call.batch or self._plan_of(spans, labels, fused=isinstance(student, Hidden))
        else:
            predictions = spans.predictions()
            left = None if self._level_one is None else self._level_one.left(spans, predictions)
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
        sources = source_of(student), source_of(teacher)
        weights, constants = call.weights(batch.weight, batch.misfits, sources[0].states)
        loss, result = run_batch(*sources, objective, batch, weights, log_weight)
        assert result.totals is not None
        return loss, result.totals, constants

    def _apart(
        self,
        student: Student,
        teacher: Teacher,
        spans: Spans,
        labels: Ids | None,
        call: _Call,
        shares: Shares | None,
    ) -> tuple[torch.Tensor, Totals, torch.Tensor]:
        """`_distributions` for kinds without a common space, of which the cross-entropy alone is made in blocks."""
        assert shares is None
        predictions = spans.predictions()
        loss, result = self._cross_entropy(student, teacher, predictions, labels, call)
        weights, constants = call.weights(predictions.weight, 0, result.cross_entropy)
        if self._paths is None:
            values, known = self._likelihoods(student, teacher, predictions)
            kd = (values * weights.of_values).sum()
        else:
            kd, values = self._exact(self._paths, student, teacher, spans, weights)
            known = torch.ones_like(values)
        return loss + kd, totals_of(_with_values(result, values.detach(), known), weights), constants

    def _likelihoods(
        self, student: Student, teacher: Teacher, predictions: Predictions
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ALM's value of each chunk, with its graph, and whether it has one."""
        objective = self.objective()
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
        return torch.where(known, alm(*(one.where(known, 0.0) for one in likelihoods), reduction="none"), 0.0), known

    def _exact(
        self,
        paths: ExactPaths,
        student: Student,
        teacher: Teacher,
        spans: Spans,
        weights: Weights,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Exact's part of the loss, with its graph, and each chunk's value, found along the bytes of its tokens."""
        predictions, objective = spans.predictions(), self.objective()
        sources = source_of(student), source_of(teacher)
        given: dict[str, Any] = {
            "silent": (objective.student_silent, objective.teacher_silent),
            "measure": self.options.measure,
            "weight": weights.of_values,
            "wanted": [torch.is_grad_enabled() and one is not None and one.requires_grad for one in sources[0].inputs],
        }
        values, gradients = paths.run(*sources, spans, predictions, **given)
        kd = attach(
            (values * weights.of_values).sum(),
            sources[0].inputs,
            gradients,
            lambda: paths.run(*sources, spans, predictions, **given)[1],
        )
        return kd, values

    def _cross_entropy(
        self,
        student: Student,
        teacher: Teacher,
        predictions: Predictions,
        labels: Ids | None,
        call: _Call,
    ) -> tuple[torch.Tensor, Result]:
        """The labels' part alone, made in blocks."""
        nothing = Predictions(
            **{name: values[: 1 if name.endswith("offsets") else 0] for name, values in vars(predictions).items()}
        )
        batch = self._plan(nothing, labels, None, fused=isinstance(student, Hidden))
        sources = source_of(student), source_of(teacher)
        weights, _ = call.weights(batch.weight, 0, sources[0].states)
        return run_batch(*sources, self.objective(), batch, weights)


def _with_values(result: Result, values: torch.Tensor, compared: torch.Tensor) -> Result:
    """A pass of the labels alone with the values of chunks that were made without it."""
    zeros = torch.zeros_like(values)
    return replace(result, value=values, agrees=zeros, dropped=zeros, empty=zeros, compared=compared.to(zeros))


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
    return given.double().clamp_min(1) if isinstance(given, torch.Tensor) else max(given, 1)


def _with_weights(objective: Objective, log_weight: torch.Tensor) -> Objective:
    """The objective with learnt link weights."""
    (term,) = objective.terms
    assert isinstance(term.table, Outcomes)
    assert term.table.links is not None
    links = replace(term.table.links, log_weight=log_weight.detach())
    return replace(objective, terms=(Term(term.formula, replace(term.table, links=links)),))
