"""`XTokenLoss`: one loss of a student against one teacher, as a module that training code calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Self

import numpy as np
import torch
from torch._compile import _disable_dynamo

from ..errors import OptionError
from ..mapping.mapping import Mapping
from ..spans.spans import Predictions, Spans
from .batch import Planner, Result, block_rows, metrics_of, next_labels, run_batch
from .chain import chain_tables
from .comparison import Comparison
from .functional import alm, chunk_log_likelihoods
from .inputs import Logits, Student, Teacher, TopK, check_positions
from .learned import LinkWeights
from .operator import CLASSES
from .options import LossOptions, same_shape
from .packing import pack, unpack
from .passes import Recipe
from .plan import IGNORED
from .prefix_tree import Ids
from .recipes import make_recipe
from .scale import DynamicScale
from .sharded import Shares, local_rows, shares_of, take_rows

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


Count = int | float | torch.Tensor


class XTokenLoss(torch.nn.Module):
    """Distils a teacher with another tokenizer.

    loss = kd_weight * scale * KD + ce_weight * CE. KD is the mean over chunks of the kind's divergence, CE the mean
    over labels of the student's cross-entropy.

    Args:
        mapping: of the two tokenizers.
        kind: "partition-kl", "c-kl", "p-kl", "h-kl", "gold", "uld", "alm", or "auto", the mapping's choice.
        temperature: T.
        merge: which of a chunk's predicting positions are read: "first", at which both models have read the same bytes,
            or "mean", the average of all.
        kd_weight: factor of KD.
        ce_weight: factor of CE.
        scale: "fixed", or "dynamic": KD is scaled to CE by running averages; call `step_scale` once per optimiser step.
        top_k: p-kl: the teacher's columns that are kept per chunk; None for all.
        unreached: p-kl: what becomes of the teacher's mass on columns that no student token reaches, "reroute" or
            "drop".
        normalize: h-kl, gold: "rest" or "none", see `h_kl`.
        threshold: h-kl: the least weight of a row's top link.
        uncommon_top_k: h-kl, gold: how many ranks of the remainders are compared.
        learn_w: p-kl with merge="mean": W's weights are trained too.
        compat: "nemo-rl", "trl" or "tokenkit": that peer's form of the kind, for reproducing its numbers.

    Raises:
        OptionError: for an option out of range, or one that the kind has no use for.

    The index arrays are buffers outside of the state dict: they move with `.to()` and are made anew from the mapping.

    Source: X-Token (arXiv:2605.21699, 2026) for P-KL and H-KL; Partition-KL and C-KL are this library's.
    """

    def __init__(
        self,
        mapping: Mapping,
        kind: str = "auto",
        temperature: float = 1.0,
        merge: str = "first",
        kd_weight: float = 1.0,
        ce_weight: float = 1.0,
        scale: str = "fixed",
        top_k: int | None = None,
        unreached: str = "reroute",
        normalize: str = "rest",
        threshold: float = 0.6,
        uncommon_top_k: int = 8192,
        learn_w: bool = False,  # noqa: FBT002 - a switch among named options
        compat: str | None = None,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {
            name: value for name, value in locals().items() if name in LossOptions.__dataclass_fields__
        }
        options = LossOptions(**given)
        if options.kind == "auto":
            options = replace(options, kind=mapping.coverage().recommendation.loss)
        options.check_together()
        self.options = options
        self.mapping = mapping
        recipe = make_recipe(mapping, options)
        tensors, self._text = pack(recipe, CLASSES)
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"_index_{number}", tensor, persistent=False)
        self._tensors = len(tensors)
        self._planner = Planner(
            options.merge,
            _bin_numbers(recipe) if options.kind in ("partition-kl", "c-kl") else None,
            chain_tables(mapping) if options.kind == "c-kl" else None,
        )
        self.scale = DynamicScale() if options.scale == "dynamic" and options.compat is None else None
        self.links = LinkWeights(mapping, recipe) if options.learn_w else None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:  # noqa: FBT002 - as torch
        """Moves the arrays, but leaves float64 as it is: W's weights and averages, in a model of any precision."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            made = fn(tensor)
            return tensor.to(made.device) if tensor.dtype == torch.float64 != made.dtype else made

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def kind(self) -> str:
        """The kind, `auto` decided."""
        return self.options.kind

    def extra_repr(self) -> str:
        """What distinguishes this loss from a default one."""
        default = LossOptions(self.kind)
        changed = {name: value for name, value in vars(self.options).items() if value != getattr(default, name)}
        return ", ".join([f"kind={self.kind!r}", *(f"{name}={value!r}" for name, value in changed.items())])

    def recipe(self) -> Recipe:
        """What is compared, with the index arrays where the module is."""
        tensors = [getattr(self, f"_index_{number}") for number in range(self._tensors)]
        made: Recipe = unpack(tensors, self._text, CLASSES)
        return made

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
        share: float = 1.0,
    ) -> LossOutput:
        """One batch.

        Args:
            student: logits (B, T_s, V_s), or `Hidden` states with the head, from which the loss is fused.
            teacher: logits (B, T_t, V_t), `Hidden`, or `TopK`; gets no gradient.
            spans: the batch's chunks, best on the CPU, where they are planned.
            labels: integers (B, T_s), -100 where not labelled, not shifted: the logits at t are compared with
                labels[t + 1]. Without them there is no cross-entropy.
            student_ids: integers (B, T_s); those of `spans` by default.
            teacher_ids: integers (B, T_t); those of `spans` by default.
            num_chunks_in_batch: what KD is divided by, counted over accumulation steps and ranks; by default the
                chunks of this call with a weight, misfits included (`len(spans.predictions())`).
            num_items_in_batch: what CE is divided by; by default the labels of this call.
            share: multiplies KD once more; teachers that share a student have one each.

        Returns:
            The loss and its parts. Without a chunk and a label the loss is 0, with a graph.

        Raises:
            OptionError: for shapes that do not belong together, or a form that the kind cannot read.
        """
        check_positions("the student", student, spans.student.shape)
        check_positions("the teacher", teacher, spans.teacher.shape)
        if labels is not None:
            same_shape("labels", labels, spans.student.shape, "(B, T_s)")
        predictions = _predictions(spans, student_ids, teacher_ids)
        shares = shares_of(student, teacher)
        if shares is not None and (self.kind == "alm" or self.options.compat is not None):
            raise OptionError(
                "alm and the compat forms read whole logits, but these are sharded by the vocabulary (kind "
                f"{self.kind!r}, compat {self.options.compat!r}); gather them first or take another kind"
            )
        if self.options.compat is not None:
            options = replace(self.options, kd_weight=share * self.options.kd_weight)
            return _peer_loss(self.mapping, options, student, teacher, spans, labels)
        if isinstance(teacher, TopK) and self.kind not in ("partition-kl", "c-kl", "p-kl"):
            raise OptionError(
                f"{self.kind} needs the teacher's whole distribution, but the teacher is a TopK; use partition-kl, "
                "c-kl or p-kl"
            )
        wanted = None if labels is None or not self.options.ce_weight else next_labels(labels.numpy(force=True))
        found = 0 if wanted is None else int((wanted != IGNORED).sum())
        chunks, items = (
            _positive(given, own)
            for given, own in ((num_chunks_in_batch, len(predictions)), (num_items_in_batch, found))
        )
        factor = torch.ones((), dtype=torch.float64) if self.scale is None else self.scale.factor.clone()
        kd_factor = share * self.options.kd_weight * factor / chunks
        ce_factor = self.options.ce_weight / torch.as_tensor(items, dtype=torch.float64)
        result, misfits = self._result(student, teacher, predictions, wanted, kd_factor, ce_factor, shares)
        return self._output(result, misfits, (chunks, len(predictions)), (items, found), factor, shares)

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

    def _result(
        self,
        student: Student,
        teacher: Teacher,
        predictions: Predictions,
        labels: Ids | None,
        kd_factor: torch.Tensor,
        ce_factor: torch.Tensor,
        shares: Shares | None,
    ) -> tuple[Result, int]:
        if self.kind == "alm":
            return self._likelihoods(student, teacher, predictions, labels, kd_factor, ce_factor)
        rows = block_rows(student, teacher)
        if shares is None:
            batch = self._planner.plan(predictions, labels, block_rows=rows)
        else:
            # Every rank plans for all, since it must know which rows the others read.
            plans = [
                self._planner.plan(shares.chunks(predictions, rank), shares.labels(labels, rank), block_rows=rows)
                for rank in range(shares.ranks)
            ]
            read = [[np.unique(getattr(one.plan, side)) for one in plans] for side in ("student_rows", "teacher_rows")]
            student, teacher = take_rows(student, shares, read[0]), take_rows(teacher, shares, read[1])
            batch = local_rows(plans[shares.rank], (read[0][shares.rank], read[1][shares.rank]))
        weights = None if self.links is None else self.links()
        if weights is not None and shares is not None:
            weights = shares.replicated(weights)
        result = run_batch(
            student,
            teacher,
            _with_weights(self.recipe(), weights),
            batch,
            chunk_factor=kd_factor,
            label_factor=ce_factor,
            link_log_weight=weights,
        )
        return result, batch.misfits

    def _likelihoods(
        self,
        student: Student,
        teacher: Teacher,
        predictions: Predictions,
        labels: Ids | None,
        kd_factor: torch.Tensor,
        ce_factor: torch.Tensor,
    ) -> tuple[Result, int]:
        """ALM has no common space; only the cross-entropy is made in a pass."""
        recipe = self.recipe()
        silent = recipe.student_silent, recipe.teacher_silent
        tensors = _tensors(predictions, silent[0].device)
        likelihoods = [
            chunk_log_likelihoods(side, tensors, which, silent=one)
            for side, which, one in ((student, "student", silent[0]), (teacher, "teacher", silent[1]))
            if not isinstance(side, TopK)
        ]
        # A student that cannot say the chunk is infinitely far away, and without a distribution there is no likelihood.
        known = (likelihoods[0] > -torch.inf) & ~likelihoods[1].isnan()
        values = torch.where(known, alm(*(one.where(known, 0.0) for one in likelihoods), reduction="none"), 0.0)
        nothing = self._planner.plan(_none_of(predictions), labels, block_rows=block_rows(student, teacher))
        result = run_batch(student, teacher, recipe, nothing, chunk_factor=kd_factor, label_factor=ce_factor)
        weight = torch.from_numpy(predictions.weight).to(values)
        zeros = torch.zeros_like(weight)
        found = replace(
            result.found,
            value=values.detach(),
            agrees=zeros,
            dropped=zeros,
            empty=zeros,
            compared=known.to(zeros),
        )
        return Result(result.loss + (values * weight).sum() * kd_factor.to(values), found, weight), 0

    def _output(
        self,
        result: Result,
        misfits: int,
        chunks: tuple[Any, int],
        items: tuple[Any, int],
        factor: torch.Tensor,
        shares: Shares | None,
    ) -> LossOutput:
        total = (lambda value: value) if shares is None else shares.sum
        loss = result.loss if shares is None else result.loss + (shares.sum(result.loss) - result.loss).detach()
        kd = total((result.found.value * result.weight).sum())
        ce = total(result.found.cross_entropy)
        one = kd.new_ones(())
        metrics = {
            "kd": (kd, one * chunks[1]),
            "ce": (ce, one * items[1]),
            "scale": (factor.to(kd), one),
            **{
                name: (total(numerator), total(denominator))
                for name, (numerator, denominator) in metrics_of(result, misfits).items()
            },
        }
        if self.kind in ("uld", "alm"):
            del metrics["agreement"]
        if self.scale is not None and self.training:
            self.scale.add(metrics["kd"], metrics["ce"])
        return LossOutput(loss, kd / chunks[0], ce / items[0], metrics)


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
    kd = peer.on_spans(mapping, options, *logits, spans.to(logits[0].device))
    if labels is None:
        return LossOutput(options.kd_weight * kd, kd.detach(), torch.zeros_like(kd.detach()))
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


def _predictions(spans: Spans, student_ids: torch.Tensor | None, teacher_ids: torch.Tensor | None) -> Predictions:
    """The chunks in use, as numpy arrays; ids that are given take the place of the spans' own."""
    host = spans.numpy()
    if student_ids is None and teacher_ids is None:
        return host.predictions()
    ids = {
        name: given.numpy(force=True).astype(np.int64)
        for name, given in (("student_ids", student_ids), ("teacher_ids", teacher_ids))
        if given is not None
    }
    for name, given in ids.items():
        expected = getattr(host, name).shape
        if given.shape != expected:
            raise OptionError(f"{name} must have the shape of the spans' {expected}, but they have shape {given.shape}")
    return replace(host, _predictions=None, **ids).predictions()


def _tensors(predictions: Predictions, device: torch.device) -> Predictions:
    return Predictions(**{name: torch.from_numpy(values).to(device) for name, values in vars(predictions).items()})


def _none_of(predictions: Predictions) -> Predictions:
    return Predictions(
        **{name: values[: 1 if name.endswith("offsets") else 0] for name, values in vars(predictions).items()}
    )


def _positive(given: Count | None, own: int) -> Count:
    """A divisor; where there is nothing to divide, 1."""
    if given is None:
        return max(own, 1)
    return given.clamp_min(1) if isinstance(given, torch.Tensor) else max(given, 1)


def _bin_numbers(recipe: Recipe) -> tuple[Ids, Ids] | None:
    """The bins as the pass numbers them, the rest included; -1 for tokens in none."""
    if not isinstance(recipe.comparison, Comparison):
        return None
    count = recipe.comparison.student.count
    student, teacher = (
        np.where(side.group.numpy() == count, -1, side.group.numpy())
        for side in (recipe.comparison.student, recipe.comparison.teacher)
    )
    return student, teacher


def _with_weights(recipe: Recipe, log_weight: torch.Tensor | None) -> Recipe:
    """The recipe with learnt link weights."""
    comparison = recipe.comparison
    if log_weight is None or not isinstance(comparison, Comparison) or comparison.links is None:
        return recipe
    links = replace(comparison.links, log_weight=log_weight.detach())
    return replace(recipe, comparison=replace(comparison, links=links))
