"""Several teachers: a weighted sum of losses, each with its own mapping, and one cross-entropy.

Weights are the same for all rows, or differ by row: by how well a teacher knows the row's text, or by a number per row
that names its teacher. A row of two teachers with the weights 0.5 each, of which the first finds the text likelier:

    static            0.5 * KD_0 + 0.5 * KD_1
    cross-entropy     0.7 * KD_0 + 0.3 * KD_1      0.7 / 0.3 = exp(CE_1 - CE_0)
    with select       1.0 * KD_0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import torch

from ..errors import MismatchError, OptionError
from ..spans.spans import Spans
from .checks import check_losses, check_several
from .inputs import Logits, Student, Teacher, TopK, compute_dtype, source_of
from .loss import Count, LossOutput, XTokenLoss
from .options import check_integers, check_positive, check_weight

WeighBy = Literal["static", "cross-entropy", "entropy", "confidence"]
"""What teachers' weights depend on, see `MultiTeacherLoss`."""


class MultiTeacherLoss(torch.nn.Module):
    """sum over teachers m of alpha_m * KD_m + CE.

    KD_m is the mean over that teacher's own chunks. The cross-entropy is that of the first loss, with its weight; the
    others' is not computed. A teacher with the student's own tokenizer is a loss whose mapping is the identity.

    Weights by row b, where `weigh_by` is not "static", have the same sum A = sum over m of alpha_m in every row:

        alpha_mb = A alpha_m exp(s_mb / t) / sum over n of alpha_n exp(s_nb / t),   t = weight_temperature

    s_mb is, over the row's tokens that count in the loss,

    - "cross-entropy": minus the teacher's cross-entropy of the row, in nats per token of the student, so that teachers
      with other tokenizers compare;
    - "entropy": minus the mean entropy of the teacher's distributions, in nats;
    - "confidence": the logarithm of the mean of its highest probability.

    Of a `TopK` the rest counts as spread evenly over the tokens that it does not list.

    Args:
        losses: one per teacher, with its own mapping, kind and options.
        weights: alpha, one per teacher; 1 divided by their number by default.
        weigh_by: what the weights depend on besides.
        select: each row learns from its best teacher alone, with the weight A; of equal ones from the first.
        weight_temperature: t: above 1 the weights are more equal, below 1 less.
        average: the teachers have one tokenizer, and the student learns from the weighted mean of their logits.

    Raises:
        OptionError: no loss, not as many weights as losses, or options that contradict each other.
        MismatchError: the losses' mappings are of several students, or of several teachers that are to be averaged.
    """

    def __init__(
        self,
        losses: Sequence[XTokenLoss],
        weights: Sequence[float] | None = None,
        *,
        weigh_by: WeighBy = "static",
        select: bool = False,
        weight_temperature: float = 1.0,
        average: bool = False,
    ) -> None:
        super().__init__()
        check_losses(losses, XTokenLoss)
        given = [1 / len(losses)] * len(losses) if weights is None else list(weights)
        if len(given) != len(losses):
            raise OptionError(f"expected one weight per teacher, {len(losses)}, got {len(given)}")
        self.losses = torch.nn.ModuleList(losses)
        self.weights = tuple(check_weight(f"weights[{number}]", value) for number, value in enumerate(given))
        self.weigh_by, self.select, self.average = weigh_by, select, average
        self.weight_temperature = check_positive("weight_temperature", weight_temperature)
        if weigh_by not in get_args(WeighBy):
            raise OptionError(f"weigh_by is one of {', '.join(get_args(WeighBy))}, got {weigh_by!r}")
        if select and weigh_by == "static":
            raise OptionError("select takes the best teacher of each row, so weigh_by has to say what is better")
        if average and weigh_by != "static":
            raise OptionError(f"average takes one mean of all teachers, so weigh_by is static, got {weigh_by!r}")
        if average:
            self._check_one_teacher(losses)
        if weigh_by != "static":
            self._check_by_row()

    @staticmethod
    def _check_one_teacher(losses: Sequence[XTokenLoss]) -> None:
        sides = [loss.mapping.teacher for loss in losses]
        names = {(side.fingerprint, side.sizes.logits): side.name for side in sides}
        if len(names) > 1:
            raise MismatchError(
                f"average needs teachers with one tokenizer, but there are {' and '.join(names.values())}"
            )

    def _check_by_row(self) -> None:
        """Refuses losses that cannot be weighed by row."""
        for number, loss in enumerate(self.losses):
            options = cast("XTokenLoss", loss).options
            if options.compat is not None or options.scale == "dynamic":
                raise OptionError(
                    f"losses[{number}] cannot be weighed by row: a peer's form divides by counts of its own, and "
                    "scale='dynamic' would undo the weights"
                )

    def forward(
        self,
        student: Student,
        teachers: Sequence[Teacher],
        spans: Sequence[Spans],
        labels: torch.Tensor | None = None,
        student_ids: torch.Tensor | None = None,
        teacher_ids: Sequence[torch.Tensor | None] | None = None,
        num_chunks_in_batch: Sequence[Count | None] | None = None,
        num_items_in_batch: Count | None = None,
        routes: torch.Tensor | None = None,
    ) -> LossOutput:
        """One batch; arguments as for `XTokenLoss`, those of the teachers as lists.

        Args:
            student: as for `XTokenLoss`.
            teachers: what each teacher says.
            spans: each teacher's chunks.
            labels: as for `XTokenLoss`.
            student_ids: likewise.
            teacher_ids: each teacher's.
            num_chunks_in_batch: each teacher's.
            num_items_in_batch: as for `XTokenLoss`.
            routes: integers (B,), the number of the one teacher that each row learns from, with all teachers' weight
                A; -1 for all of them.

        Raises:
            OptionError: not as many teachers, spans or counts as losses, or a route to no teacher.
        """
        count = len(self.losses)
        ids = [None] * count if teacher_ids is None else teacher_ids
        chunks = [None] * count if num_chunks_in_batch is None else num_chunks_in_batch
        for name, given in (
            ("teachers", teachers),
            ("spans", spans),
            ("teacher_ids", ids),
            ("num_chunks_in_batch", chunks),
        ):
            check_several(name, given, count)
        cast("XTokenLoss", self.losses[0]).check_labels_given(labels)
        if self.average:
            if routes is not None:
                raise OptionError(
                    "average takes one mean of all teachers, so that no row has a route: leave routes out"
                )
            mean = average_logits(teachers, self.weights)
            counts = {"num_chunks_in_batch": chunks[0], "num_items_in_batch": num_items_in_batch}
            named = {"labels": labels, "student_ids": student_ids, "teacher_ids": ids[0], **counts}
            averaged: LossOutput = self.losses[0](student, mean, spans[0], **named, share=sum(self.weights))
            # Each teacher's part is that of the mean, so that the parts by their weights add up to the whole.
            parts = {f"{name}/{number}": averaged.metrics[name] for name in ("kd", "scale") for number in range(count)}
            kd = averaged.kd * sum(self.weights)
            return replace(averaged, kd=kd, metrics={**averaged.metrics, **parts, "kd": (kd, torch.ones_like(kd))})
        by_row, totals = None, [0] * count
        if routes is not None or self.weigh_by != "static":
            by_row = self.row_weights(teachers, spans, routes)
            # A chunk that a row's weight takes out of the loss still counts in what the loss is divided by.
            totals = [len(one.predictions()) for one in spans]
            chunks = [total if given is None else given for total, given in zip(totals, chunks, strict=True)]
            spans = [_weighed(one, weight) for one, weight in zip(spans, by_row, strict=True)]
        outputs = [
            loss(
                student,
                teachers[number],
                spans[number],
                labels=labels if number == 0 else None,
                student_ids=student_ids,
                teacher_ids=ids[number],
                num_chunks_in_batch=chunks[number],
                num_items_in_batch=num_items_in_batch,
                share=self.weights[number] if by_row is None else 1.0,
            )
            for number, loss in enumerate(self.losses)
        ]
        ce = outputs[0].metrics.get("ce")
        for other in self.losses[1:]:
            # The labels went to the first loss alone, but every dynamic scale compares with their cross-entropy.
            if isinstance(other, XTokenLoss) and other.scale is not None and other.training and ce is not None:
                nothing = torch.zeros_like(ce[0])
                other.scale.add((nothing, nothing), ce)
        if by_row is None:
            return self._sum(outputs, self.weights)
        made = self._sum(outputs, [1.0] * count)
        for number, weight in enumerate(by_row):
            kd, _ = made.metrics[f"kd/{number}"]
            # Beside what its weight is for all rows, so that parts add up as those of equal rows do.
            alpha = self.weights[number] or 1.0
            made.metrics[f"kd/{number}"] = (kd / alpha, torch.ones_like(kd) * totals[number])
            made.metrics[f"weight/{number}"] = (weight.sum().to(kd), torch.ones_like(kd) * len(weight))
        return made

    def row_weights(
        self, teachers: Sequence[Teacher], spans: Sequence[Spans], routes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """How much each teacher counts in each row: float64 (teachers, B), on the CPU.

        Args:
            teachers: what each teacher says.
            spans: each teacher's chunks.
            routes: as for `forward`.

        Raises:
            OptionError: a route is to no teacher, or there is not one per row.
        """
        self._check_by_row()
        rows = len(spans[0])
        alpha = torch.tensor(self.weights, dtype=torch.float64)
        scores = torch.zeros(len(alpha), rows, dtype=torch.float64)
        if self.weigh_by != "static":
            pairs = zip(teachers, spans, strict=True)
            scores = torch.stack([row_scores(teacher, one, self.weigh_by) for teacher, one in pairs])
        scores = alpha.log()[:, None] + scores / self.weight_temperature
        if self.select:
            share = torch.zeros_like(scores).scatter_(0, scores.argmax(0, keepdim=True), 1.0)
        else:
            # Without any weight at all, there is nothing to share out.
            share = scores.softmax(0).nan_to_num(0.0)
        if routes is not None:
            check_integers("routes", routes)
            routed = routes.detach().cpu().long()
            if routed.shape != (rows,) or bool(((routed < -1) | (routed >= len(alpha))).any()):
                raise OptionError(
                    f"routes must be one number per row, from 0 to {len(alpha) - 1}, or -1 for all teachers, but they "
                    f"are {routed.tolist()} for {rows} rows"
                )
            one_alone = torch.nn.functional.one_hot(routed.clamp(min=0), len(alpha)).T.double()
            share = torch.where(routed >= 0, one_alone, share)
        return share * alpha.sum()

    def _sum(self, outputs: Sequence[LossOutput], weights: Sequence[float]) -> LossOutput:
        """One output of those of all teachers."""
        metrics = {
            f"{name}/{number}": value
            for number, out in enumerate(outputs)
            for name, value in out.metrics.items()
            if name != "ce"
        }
        kd = torch.stack([alpha * out.kd for alpha, out in zip(weights, outputs, strict=True)]).sum()
        metrics |= {
            "kd": (kd, torch.ones_like(kd)),
            "ce": outputs[0].metrics.get("ce", (outputs[0].ce, torch.ones_like(kd))),
        }
        loss = outputs[0].loss
        for out in outputs[1:]:
            loss = loss + out.loss
        return LossOutput(loss, kd, outputs[0].ce, metrics)

    def step_scale(self) -> None:
        """As `XTokenLoss.step_scale`, for every teacher."""
        for loss in self.losses:
            cast("XTokenLoss", loss).step_scale()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Calls `step_scale` after every step of the optimiser."""
        optimizer.register_step_post_hook(lambda *_: self.step_scale())


def average_logits(teachers: Sequence[Teacher], weights: Sequence[float] | None = None) -> Logits:
    """The weighted mean of several teachers' logits: z = sum over m of w_m z_m / sum over m of w_m.

    Equals the logits of the normalised geometric mean of their distributions.

    Args:
        teachers: logits (B, T, V), or `Hidden`, all of one shape.
        weights: one per teacher; equal ones by default.

    Raises:
        OptionError: a teacher is a `TopK`, shapes differ, or no weight is above 0.

    >>> one, other = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[4.0, 0.0]]])
    >>> average_logits([one, other], [3.0, 1.0]).logits.tolist()
    [[[1.0, 1.5]]]
    """
    shares = [1.0] * len(teachers) if weights is None else list(weights)
    if not teachers or len(shares) != len(teachers) or not sum(shares) > 0:
        raise OptionError(f"expected one weight per teacher and one above 0, got {shares} for {len(teachers)} teachers")
    mean: Any = None
    shapes = []
    for teacher, share in zip(teachers, shares, strict=True):
        if isinstance(teacher, TopK):
            raise OptionError("a mean of logits needs whole logits, but a teacher is a TopK: weigh the losses instead")
        whole = teacher.logits if isinstance(teacher, Logits) else teacher
        if not isinstance(whole, torch.Tensor):
            source = source_of(whole)
            scores = source.read(torch.arange(len(source.states), device=source.states.device), source.states.dtype)
            whole = scores.scores.reshape(*whole.states.shape[:2], source.width)
        shapes.append(tuple(whole.shape))
        if len(set(shapes)) > 1:
            raise OptionError(f"a mean of logits needs one shape (B, T, V), but there are {shapes[0]} and {shapes[-1]}")
        part = whole.detach() * (share / sum(shares))
        mean = part if mean is None else mean.add_(part)
    return Logits(mean)


def row_scores(teacher: Teacher, spans: Spans, measure: WeighBy) -> torch.Tensor:
    """How well a teacher knows each row by some measure, the more the better: float64 (B,) on the CPU.

    A row whose loss counts no token has 0. See `MultiTeacherLoss` for the measures.

    Args:
        teacher: what it says.
        spans: its chunks.
        measure: what is measured.
    """
    host = spans.numpy()
    source = source_of(teacher)
    device, (height, width) = source.states.device, host.teacher_ids.shape
    scores = torch.zeros(height, dtype=torch.float64)
    students = _predicted(host.student_segments, host.student_loss_mask)
    theirs = _predicted(host.teacher_segments, host.teacher_loss_mask)
    for row in range(height):
        places = torch.from_numpy(theirs[row].nonzero()[0]).to(device)
        if not len(places) or not students[row].any():
            continue
        # Tokens at 1 and 2 of row 3 are predicted by the logits at 0 and 1.
        read = source.read(places + row * width - 1, compute_dtype(source.states))
        own = torch.from_numpy(host.teacher_ids[row]).to(device)[places]
        log_probs = read.scores.log_softmax(-1) if read.log_rest is None else read.scores
        scores[row] = _row_score(log_probs, read.log_rest, own, int(students[row].sum()), measure)
    return scores


def _row_score(
    log_probs: torch.Tensor, log_rest: torch.Tensor | None, own: torch.Tensor, students: int, measure: WeighBy
) -> float:
    """One row's score, from log-probabilities (n, V) at the positions that predict the tokens `own` (n,)."""
    if measure == "confidence":
        return float(log_probs.amax(-1).exp().double().mean().log())
    each = log_rest
    if log_rest is not None:
        # What each of the tokens that are not listed has, if all have the same.
        each = log_rest - (log_probs == -torch.inf).sum(-1).clamp(min=1).log()
    if measure == "entropy":
        entropy = torch.special.entr(log_probs.exp()).sum(-1)
        if log_rest is not None and each is not None:
            entropy = entropy - torch.where(log_rest > -torch.inf, log_rest.exp() * each, 0.0)
        return -float(entropy.double().mean())
    said = log_probs.gather(-1, own[:, None])[:, 0]
    if each is not None:
        said = torch.where(said == -torch.inf, each, said)
    return float(said.double().sum()) / students


def _predicted(segments: Any, counts: Any) -> Any:
    """Tokens, bool (B, T), that count and have a token of their own document before them."""
    found = counts.copy()
    found[:, 0] = False
    found[:, 1:] &= segments[:, 1:] == segments[:, :-1]
    return found


def _weighed(spans: Spans, weight: torch.Tensor) -> Spans:
    """Spans whose chunks count by their row's weight (B,)."""
    host = spans.numpy()
    return replace(host, weight=(host.weight * weight.numpy()[:, None]).astype("float32"))
