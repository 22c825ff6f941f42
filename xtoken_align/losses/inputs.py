"""What a loss takes: logits, hidden states with a head, or a teacher's best tokens; and what a pass over them gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import OptionError
from .options import check_finite, check_floats, check_integers, check_positive, check_tensor
from .tables import Cells, log_of

CHECKED = 1 << 18
"""How many of a cached teacher's entries are looked at when it is handed in, in about 20 ms."""
CLOSE = 0.02
"""By how much a position's probabilities may miss 1: log-probabilities may have been kept in half precision."""


@dataclass(frozen=True, eq=False)
class Logits:
    """Logits of a batch; a bare tensor means the same.

    Attributes:
        logits: floats (B, T, V).
    """

    logits: torch.Tensor

    def __post_init__(self) -> None:
        check_floats("logits", self.logits)
        _three_dimensional("logits", self.logits, "(B, T, V)")


@dataclass(frozen=True, eq=False)
class Hidden:
    """The last hidden states with the head that makes logits of them: z = cap * tanh(scale * (h W^T + b) / cap).

    From these the loss is *fused*: logits exist for a block of rows at a time.

    Attributes:
        states: floats (B, T, D), what the model hands to its head.
        weight: floats (V, D), the head's matrix; frozen where it needs no gradient.
        bias: floats (V,), or None.
        scale: what the model multiplies its logits by (Cohere's `logit_scale`).
        softcap: the bound of the logits (Gemma's `final_logit_softcapping`), or None.
    """

    states: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        check_floats("states", self.states)
        head = {"the head's weight": self.weight} | ({} if self.bias is None else {"the head's bias": self.bias})
        for name, tensor in head.items():
            check_floats(name, tensor)
            if tensor.device != self.states.device:
                raise OptionError(
                    f"hidden states and head must be on one device, but {name} is on {tensor.device} and the states "
                    f"are on {self.states.device}"
                )
        _three_dimensional("states", self.states, "(B, T, D)")
        if self.weight.dim() != 2 or self.weight.shape[1] != self.states.shape[-1]:
            raise OptionError(
                f"the head's weight must have shape (V, D) with D = {self.states.shape[-1]}, that of the hidden "
                f"states, but it has shape {tuple(self.weight.shape)}"
            )
        if self.bias is not None and tuple(self.bias.shape) != (len(self.weight),):
            raise OptionError(
                f"the head's bias must have shape (V,) = ({len(self.weight)},), but it has shape "
                f"{tuple(self.bias.shape)}"
            )
        check_finite("scale", self.scale)
        if self.softcap is not None:
            check_positive("softcap", self.softcap)


@dataclass(frozen=True, eq=False)
class TopK:
    """A teacher's best tokens per position, as caches and servers keep them.

    Attributes:
        ids: integers (B, T, K), token ids, no id twice at a position; -1 at unused places.
        log_probs: floats (B, T, K), their log-probabilities in the whole vocabulary; -inf at unused places.
        rest: floats (B, T), the probability of all other tokens together, 0 to 1.
        width: the teacher's logit width V_t.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor
    rest: torch.Tensor
    width: int

    def __post_init__(self) -> None:
        for name in ("ids", "log_probs", "rest"):
            check_tensor(name, getattr(self, name))
        _three_dimensional("ids", self.ids, "(B, T, K)")
        if self.log_probs.shape != self.ids.shape or self.rest.shape != self.ids.shape[:2]:
            raise OptionError(
                f"log_probs must have the shape of ids (B, T, K) = {tuple(self.ids.shape)} and rest (B, T), but they "
                f"have shapes {tuple(self.log_probs.shape)} and {tuple(self.rest.shape)}"
            )
        check_integers("ids", self.ids)
        check_floats("log_probs", self.log_probs)
        check_floats("rest", self.rest)
        if type(self.width) is not int or self.width < 1:
            raise OptionError(f"width must be the number of the teacher's logits, but it is {self.width!r}")
        if not self.ids.device == self.log_probs.device == self.rest.device:
            raise OptionError(
                f"ids, log_probs and rest must be on one device, but they are on {self.ids.device}, "
                f"{self.log_probs.device} and {self.rest.device}"
            )
        # Elsewhere the numbers would have to be waited for.
        if self.ids.device.type == "cpu":
            self._check_numbers()

    def _check_numbers(self) -> None:
        """Refuses impossible numbers. Of many positions some are looked at, evenly spaced, so that it costs little."""
        ids, log_probs, rest = (
            self.ids.flatten(0, 1),
            self.log_probs.detach().flatten(0, 1),
            self.rest.detach().flatten(),
        )
        step = -(-ids.numel() // CHECKED)
        if step > 1:
            ids, log_probs, rest = ids[::step], log_probs[::step], rest[::step]
        if not ids.numel():
            return
        log_probs, rest = log_probs.float(), rest.float()
        lowest, highest = (int(bound) for bound in ids.aminmax())
        if lowest < -1 or highest >= self.width:
            raise OptionError(
                f"ids must lie between 0 and {self.width - 1}, or be -1 at unused places, but they run from "
                f"{lowest} to {highest}"
            )
        used = ids >= 0
        # A logarithm that was rounded may be above 0 by a little.
        most = float(log_probs.masked_fill(~used, -torch.inf).amax())
        if most > CLOSE:
            raise OptionError(
                f"log_probs must be logarithms of probabilities, 0 at most, but one is {most:.4g}: pass the logarithm, "
                "or log_softmax(logits) over the whole vocabulary"
            )
        ordered = ids.sort(dim=1).values
        twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if bool(twice.any()):
            raise OptionError(
                f"no id may be twice at a position, but id {int(ordered[:, 1:][twice][0])} is; add up its probabilities"
            )
        if bool(((rest < -CLOSE) | (rest > 1 + CLOSE)).any()):
            raise OptionError(
                f"rest must be probabilities from 0 to 1, but it runs from {float(rest.amin()):.4g} to "
                f"{float(rest.amax()):.4g}; it is no logarithm"
            )
        known = log_probs.masked_fill(~used, -torch.inf).exp().sum(1)
        wrong = ((known + rest - 1).abs() > CLOSE) & used.any(1)
        if bool(wrong.any()):
            raise OptionError(
                "a position's probabilities and its rest must add up to 1, but they are "
                f"{float(known[wrong][0]):.4g} and {float(rest[wrong][0]):.4g}: log_probs are those of the whole "
                "vocabulary, not normalised over the best tokens, and rest is 1 less their sum"
            )


Student = torch.Tensor | Logits | Hidden
"""What a student may hand in."""

Teacher = torch.Tensor | Logits | Hidden | TopK
"""What a teacher may hand in."""


def _three_dimensional(name: str, tensor: torch.Tensor, meaning: str) -> None:
    if tensor.dim() != 3:
        raise OptionError(f"{name} must have shape {meaning}, but it has shape {tuple(tensor.shape)}")


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float64 stays float64, all else is computed in float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@dataclass(frozen=True, eq=False)
class Rows:
    """One side's rows of c chunks, as a formula reads them.

    Attributes:
        scores: floats (r, V), log-probabilities up to a constant per row: logits are such.
        chunk: int64 (r,), the chunk of each row, 0 to c - 1, each with a row; None where every row is a chunk.
        size: int64 (c,), how many rows each chunk has, or None.
        log_rest: floats (r,), of a cached teacher: log of the mass on the tokens that it does not list, which are at
            -inf in `scores`; None where all are known.
        left: the tokens that the rows leave out, or None.
        text: int64 (c,), of the teacher: the outcome that the text has; None where nobody asks how likely it is.
    """

    scores: torch.Tensor
    chunk: torch.Tensor | None = None
    size: torch.Tensor | None = None
    log_rest: torch.Tensor | None = None
    left: Cells | None = None
    text: torch.Tensor | None = None

    def mean(self, log_rows: torch.Tensor) -> torch.Tensor:
        """Log of the arithmetic mean of exp(log_rows) over each chunk's rows: floats (r, K) to (c, K).

        A row at -inf throughout is no distribution and is left out of the average.

        >>> rows = Rows(torch.zeros(3, 2), torch.tensor([0, 0, 1]), torch.tensor([2, 1]))
        >>> rows.mean(torch.tensor([[0.5, 0.5], [0.1, 0.9], [1.0, 0.0]]).log()).exp()
        tensor([[0.3000, 0.7000],
                [1.0000, 0.0000]])
        """
        if self.chunk is None or self.size is None:
            return log_rows
        plain = log_rows.detach()
        defined = (plain > -torch.inf).any(dim=1).long()
        count = torch.zeros_like(self.size).index_add_(0, self.chunk, defined).clamp_min_(1)
        shape = (len(self.size), log_rows.shape[1])
        index = self.chunk.unsqueeze(1).expand(log_rows.shape)
        top = plain.new_full(shape, -torch.inf).scatter_reduce_(0, index, plain, "amax")
        top.clamp_min_(torch.finfo(plain.dtype).min)
        total = log_rows.new_zeros(shape).index_add(0, self.chunk, (log_rows - top[self.chunk]).exp())
        return top + log_of(total) - count.to(plain.dtype).log().unsqueeze(1)

    def average(self, values: torch.Tensor) -> torch.Tensor:
        """Means of numbers (r,) over each chunk's rows: (c,)."""
        if self.chunk is None or self.size is None:
            return values
        return values.new_zeros(len(self.size)).index_add_(0, self.chunk, values) / self.size


@dataclass(frozen=True, eq=False)
class Compared:
    """What a formula says of c chunks; all but `value` is without a graph.

    Attributes:
        value: floats (c,), with the graph of the student's scores; 0 where nothing could be compared.
        agrees: bool (c,), both sides' likeliest outcome is one.
        dropped: floats (c,), the teacher's mass that was not compared.
        empty: floats (c,), the student's mass on tokens without a counterpart.
        compared: bool (c,), both sides have a common space in which they could agree.
        plausible: floats (c,), the teacher's mass on the text's outcome over that on its likeliest; None where the rows
            do not say which the text's is.
    """

    value: torch.Tensor
    agrees: torch.Tensor
    dropped: torch.Tensor
    empty: torch.Tensor
    compared: torch.Tensor
    plausible: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """One side, flattened to rows.

    Attributes:
        states: floats (rows, V) logits, (rows, D) hidden states, or (rows, K) log-probabilities beside `ids`.
        weight: floats (V, D), of hidden states.
        bias: floats (V,), or None.
        ids: integers (rows, K), of a cached teacher.
        rest: floats (rows,), of a cached teacher.
        scale: of the logits.
        softcap: of the logits.
        width: V.
        inputs: what a student's loss is differentiated by: logits or hidden states, the head's matrix, its bias.
    """

    states: torch.Tensor
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    ids: torch.Tensor | None = None
    rest: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    width: int = 0
    inputs: tuple[torch.Tensor | None, ...] = ()

    def read(self, rows: torch.Tensor, dtype: torch.dtype, first: int = -1) -> Rows:
        """The scores (n, V) of these rows: logits; of a cached teacher log-probabilities, -inf where unknown.

        Args:
            rows: int64 (n,).
            dtype: of the result.
            first: the first row where they follow each other, so that nothing need be copied; else -1. What is
                returned is then not to be changed.
        """
        states, ids, rest = (
            None if one is None else one.index_select(0, rows) if first < 0 else one[first : first + len(rows)]
            for one in (self.states, self.ids, self.rest)
        )
        assert states is not None
        if ids is not None and rest is not None:
            # An unused place, id -1, goes to a column that is cut off.
            scores = states.new_full((len(ids), self.width + 1), -torch.inf, dtype=dtype)
            scores.scatter_(1, torch.where(ids < 0, self.width, ids.long()), states.to(dtype))
            return Rows(scores[:, : self.width], log_rest=rest.to(dtype).log())
        if self.weight is None:
            # What reads rows steps along them: logits that were transposed are put in order, a block at a time.
            scores = states.to(dtype)
            return Rows(scores if scores.stride(1) == 1 else scores.contiguous())
        logits = torch.nn.functional.linear(states, self.weight, self.bias).to(dtype)
        if self.scale != 1:
            logits.mul_(self.scale)
        return Rows(logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap))


@dataclass(frozen=True, eq=False)
class Gradients:
    """The student's gradients as they grow, in float32 or float64 (2e-9 kept in half precision would be 0).

    Attributes:
        source: the student.
        states: of the logits or hidden states, shaped like them.
        weight: of the head, None where frozen.
        bias: of the head's bias.
        link_leaf: floats (links,), W's log weights where they are learnt, as a leaf.
        links: of these.
    """

    source: Source
    states: torch.Tensor
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    link_leaf: torch.Tensor | None = None
    links: torch.Tensor | None = None

    def add(self, rows: torch.Tensor, logits: torch.Tensor, gradient: torch.Tensor) -> None:
        """Adds the gradient of the logits (n, V) of some rows, which `read` returned; overwrites it."""
        source = self.source
        if source.weight is None:
            self.states.index_add_(0, rows, gradient.to(self.states.dtype))
            return
        if source.softcap is not None:
            gradient.mul_(1 - (logits / source.softcap) ** 2)
        if source.scale != 1:
            gradient.mul_(source.scale)
        # The products run in the inputs' dtype, as in an ordinary head; what is added up is float32.
        inputs = gradient.to(source.states.dtype)
        self.states.index_add_(0, rows, (inputs @ source.weight).to(self.states.dtype))
        if self.weight is not None:
            hidden = source.states.index_select(0, rows)
            if inputs.dtype == self.weight.dtype:
                self.weight.addmm_(inputs.t(), hidden)
            elif inputs.is_cuda and _adds_in_float32(inputs.device, inputs.dtype):
                torch.addmm(self.weight, inputs.t(), hidden, out_dtype=torch.float32, out=self.weight)
            else:
                self.weight.add_(inputs.t() @ hidden)
        if self.bias is not None:
            self.bias.add_(gradient.sum(dim=0))


@cache
def _adds_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of half precision can be added to a float32 matrix without being rounded in between."""
    ones, total = torch.ones(16, 16, device=device, dtype=dtype), torch.zeros(16, 16, device=device)
    try:
        torch.addmm(total, ones, ones, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 16).all())


def logits_at(side: torch.Tensor | Logits | Hidden, rows: torch.Tensor) -> torch.Tensor:
    """The logits (n, V) at some positions, int64 (n,), counted through the batch: position t of row b is b * T + t."""
    if isinstance(side, Hidden):
        states = side.states.flatten(0, 1).index_select(0, rows)
        # Under autocast states are in half precision, and a head that is trained stays in float32.
        weight, bias = (None if one is None else one.to(states.dtype) for one in (side.weight, side.bias))
        assert weight is not None
        logits = torch.nn.functional.linear(states, weight, bias) * side.scale
        return logits if side.softcap is None else side.softcap * torch.tanh(logits / side.softcap)
    return (side.logits if isinstance(side, Logits) else side).flatten(0, 1).index_select(0, rows)


def source_of(side: Student | Teacher) -> Source:
    """A side as rows without its graph: what the student or the teacher hands in."""
    if isinstance(side, TopK):
        return Source(
            states=side.log_probs.detach().flatten(0, 1),
            ids=side.ids.flatten(0, 1),
            rest=side.rest.detach().flatten(),
            width=side.width,
        )
    if isinstance(side, Hidden):
        dtype = side.states.dtype
        return Source(
            states=side.states.detach().flatten(0, 1),
            # Once and not block by block: a head in float32 under autocast is copied here, as autocast itself does.
            weight=side.weight.detach().to(dtype),
            bias=None if side.bias is None else side.bias.detach().to(dtype),
            scale=side.scale,
            softcap=side.softcap,
            width=len(side.weight),
            inputs=(side.states, side.weight, side.bias),
        )
    logits = side.logits if isinstance(side, Logits) else side
    return Source(states=logits.detach().flatten(0, 1), width=logits.shape[-1], inputs=(logits, None, None))


def new_gradients(
    source: Source,
    written: Sequence[NDArray[np.int64]],
    *,
    whole: bool = False,
    weight: bool,
    bias: bool,
    links: torch.Tensor | None = None,
) -> Gradients:
    """Zeros to add to; the head's where it is trained.

    Args:
        source: the student.
        written: the rows of logits that are written whole where they are to stand, which need not be set to 0.
        whole: whether that is all of them.
        weight: whether the head's gradient is wanted.
        bias: whether that of its bias is.
        links: W's log weights as a leaf, where they are learnt.
    """
    dtype = compute_dtype(source.states)
    # Of logits the gradient is as large as they are; bfloat16 has the range of float32, so nothing of it becomes 0.
    kept = torch.bfloat16 if source.weight is None and source.states.dtype == torch.bfloat16 else dtype
    if source.weight is None and whole:
        states = torch.empty_like(source.states, dtype=kept, memory_format=torch.contiguous_format)
    elif source.weight is None and written:
        states = torch.empty_like(source.states, dtype=kept, memory_format=torch.contiguous_format)
        others = np.setdiff1d(np.arange(len(states)), np.concatenate(written), assume_unique=True)
        states.index_fill_(0, torch.from_numpy(others).to(states.device, non_blocking=True), 0)
    else:
        states = torch.zeros_like(source.states, dtype=kept, memory_format=torch.contiguous_format)
    return Gradients(
        source,
        states,
        torch.zeros_like(source.weight, dtype=dtype) if weight and source.weight is not None else None,
        torch.zeros_like(source.bias, dtype=dtype) if bias and source.bias is not None else None,
        links,
        None if links is None else torch.zeros_like(links),
    )


def sent(arrays: Sequence[NDArray[np.generic]], device: torch.device) -> list[torch.Tensor]:
    """Arrays of one dtype on a device, which takes one copy; each begins at a multiple of 16 bytes."""
    step = 16 // arrays[0].itemsize
    ends = np.cumsum([-(-one.size // step) * step for one in arrays])
    whole = np.zeros(ends[-1], dtype=arrays[0].dtype)
    begins = [0, *ends[:-1].tolist()]
    for begin, one in zip(begins, arrays, strict=True):
        whole[begin : begin + one.size] = one.ravel()
    there = torch.from_numpy(whole).to(device, non_blocking=True)
    return [there[begin : begin + one.size].view(one.shape) for begin, one in zip(begins, arrays, strict=True)]


@dataclass(eq=False)
class Result:
    """What a pass over the blocks gave; numbers per chunk are floats (N,).

    Attributes:
        value: each chunk's divergence.
        agrees: 1 where both sides' likeliest outcome is one.
        dropped: the teacher's mass that was not compared.
        empty: the student's mass on tokens without a counterpart.
        compared: 1 where there was a common space.
        plausible: the teacher's mass on the text's outcome over that on its likeliest, where that is asked.
        cross_entropy: scalar, summed over the labels.
        gradients: of the logits or hidden states, the head, its bias and the links' log weights; None where not wanted.
        totals: what all of this adds up to, where the kernels made it.
    """

    value: torch.Tensor
    agrees: torch.Tensor
    dropped: torch.Tensor
    empty: torch.Tensor
    compared: torch.Tensor
    plausible: torch.Tensor
    cross_entropy: torch.Tensor
    gradients: list[torch.Tensor | None]
    totals: Totals | None = None


@dataclass(frozen=True, eq=False)
class Weights:
    """What the numbers of a batch are multiplied by, on its device.

    Attributes:
        chunk: floats (N,), each chunk's weight.
        factors: floats (4,): of the chunks' weighted values in the loss, of the labels' cross-entropies there, and of
            both in the means that are reported.
        labels: whether there are labels.
    """

    chunk: torch.Tensor
    factors: torch.Tensor
    labels: bool = False

    @cached_property
    def of_values(self) -> torch.Tensor:
        """Floats (N,), what each chunk's value is multiplied by in the loss."""
        return self.chunk * self.factors[0]


Number = float | torch.Tensor


def weights_of(
    chunk: NDArray[np.float32],
    factors: Sequence[Number],
    constants: Sequence[Number],
    like: torch.Tensor,
    *,
    labels: bool = True,
) -> tuple[Weights, torch.Tensor]:
    """The weights and some further numbers, sent to a device in one copy as far as they are on the host.

    Args:
        chunk: float32 (N,).
        factors: four.
        constants: the further numbers.
        like: says on which device, and in which dtype what is made of it is computed.
        labels: whether there are labels.
    """
    dtype, device = compute_dtype(like), like.device
    values = [*factors, *constants]
    if any(isinstance(one, torch.Tensor) and one.device.type != "cpu" for one in values):
        there = [torch.as_tensor(one).to(device, dtype, non_blocking=True) for one in values]
        own, heads = torch.from_numpy(chunk).to(device, dtype, non_blocking=True), torch.stack(there)
        return Weights(own, heads[: len(factors)], labels), heads[len(factors) :]
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    parts = [np.array([float(one) for one in part], dtype=kind) for part in (factors, constants)]
    made = sent([*parts, chunk.astype(kind)], device)
    return Weights(made[2], made[0], labels), made[1]


@dataclass(frozen=True, eq=False)
class Totals:
    """Sums over a pass's chunks, weighted, and over its labels: scalars in the order of the kernel that makes them.

    Attributes:
        loss: both, times their factors.
        kd: of the values.
        ce: of the labels' cross-entropies.
        kd_mean: the first times the third factor.
        ce_mean: the second times the fourth.
        used: of the weights.
        agrees: of `Result.agrees`; and so on.
        dropped: see there.
        empty: see there.
        compared: see there.
        chunks_used: how many chunks with a weight were compared.
    """

    loss: torch.Tensor
    kd: torch.Tensor
    ce: torch.Tensor
    kd_mean: torch.Tensor
    ce_mean: torch.Tensor
    used: torch.Tensor
    agrees: torch.Tensor
    dropped: torch.Tensor
    empty: torch.Tensor
    compared: torch.Tensor
    chunks_used: torch.Tensor


def totals_of(result: Result, weights: Weights) -> Totals:
    """What a pass's numbers add up to, by plain operations."""
    chunk, factors = weights.chunk, weights.factors
    kd, ce = (result.value * chunk).sum(), result.cross_entropy
    parts = torch.stack([result.agrees, result.dropped, result.empty, result.compared])
    loss, used = kd * factors[0] + ce * factors[1], chunk.sum()
    counted = (result.compared * (chunk > 0)).sum()
    agrees, dropped, empty, compared = (parts * chunk).sum(dim=1)
    return Totals(
        loss, kd, ce, kd * factors[2], ce * factors[3], used, agrees, dropped, empty, compared, chunks_used=counted
    )
