"""Log-likelihoods of chunks, and signals for policy gradients: how much better the teacher likes what was written."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch

from ..errors import OptionError
from ..mapping.mapping import Mapping
from ..spans.spans import Predictions, Spans
from .checks import check_positions, check_tokenizers
from .inputs import Hidden, Logits, TopK, compute_dtype, logits_at, source_of
from .options import check_floats, check_one_of, check_shape
from .tables import live_tokens

Spread = Literal["share", "whole"]

_ROUNDING = 1e-2
"""How far above 0 a logarithm may be that an engine made in half precision."""

_ELEMENTS = 1 << 24
"""Logits that are read at a time: 64 MB in float32, which is little beside a batch's logits."""


def chunk_log_likelihoods(
    side: torch.Tensor | Logits | Hidden, predictions: Predictions, which: str, silent: torch.Tensor
) -> torch.Tensor:
    """Floats (N,): the log-likelihood of each chunk's tokens, at most 0; NaN where a position has no distribution.

    They have a graph, which ALM needs. From hidden states the logits of all predicting positions are made at once: this
    baseline is not fused.

    Args:
        side: logits (B, T, V), or hidden states with their head.
        predictions: tensors on the side's device.
        which: "student" or "teacher".
        silent: int64, tokens without a probability.
    """
    rows = getattr(predictions, which)
    logits = logits_at(side, rows)
    scores = logits.to(compute_dtype(logits)).index_fill(1, silent, -torch.inf)
    own = getattr(predictions, f"{which}_tokens").long()
    # A row without any mass would make NaN of its gradient too.
    undefined = (scores == -torch.inf).all(dim=1)
    scores = scores.masked_fill(undefined.unsqueeze(1), 0.0)
    log_probabilities = scores.log_softmax(dim=1).gather(1, own.unsqueeze(1)).squeeze(1)
    log_probabilities = log_probabilities.masked_fill(undefined, torch.nan)
    offsets = getattr(predictions, f"{which}_offsets")
    chunk = torch.arange(len(offsets) - 1, device=rows.device).repeat_interleave(offsets.diff())
    return log_probabilities.new_zeros(len(offsets) - 1).index_add(0, chunk, log_probabilities).clamp_max(0)


def chunk_advantages(
    student: torch.Tensor | Logits | Hidden,
    teacher: torch.Tensor | Logits | Hidden,
    spans: Spans,
    *,
    mapping: Mapping | None = None,
    student_reference: torch.Tensor | Logits | Hidden | None = None,
    teacher_reference: torch.Tensor | Logits | Hidden | None = None,
    spread: Spread = "share",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-likelihood ratios of teacher and student per chunk, spread over the student's tokens.

        A_c = w_c ((l_T(c) - l_T'(c)) - (l_S(c) - l_S'(c)))

    l(c) is the sum of the log-probabilities that a side gives its own tokens of chunk c, and w_c the chunk's weight. T'
    and S' are reference models, each with its side's tokenizer; without one l' = 0. Where both sides have one
    tokenizer, it is a token's `teacher_log_probs - student_log_probs`. Without references, minus the mean of A_c over
    text that the student writes is the chunks' part of KL(p_S || p_T). A teacher's reference takes away how likely its
    tokens are for any model: what is left is what the teacher learnt beyond it, an implicit reward.

    What counts is said by the spans: a chunk with a token that their loss masks leave out has the weight 0.

    Args:
        student: floats (B, T_s), the log-probability of the token at each position, as verl, slime and NeMo-RL hand
            them on (what stands at the first position of a row is not read); or what makes them: logits (B, T_s, V_s),
            of which those at position t - 1 predict the token at t, or `Hidden` states with their head. Without
            temperature.
        teacher: the same of the teacher, (B, T_t) or (B, T_t, V_t).
        spans: of the batch, on any device.
        mapping: of the pair, where logits or hidden states are given: it says which ids are tokens.
        student_reference: as `student`.
        teacher_reference: as `teacher`.
        spread: `share` gives each of a chunk's n student tokens A_c / n, so that a row's tokens sum to the row's ratio:
            a reward per token. `whole` gives each of them A_c: an advantage, for the gradient of a chunk's
            log-probability is the sum of its tokens' gradients.

    Returns:
        Floats (B, T_s) without a graph, the advantage of the token at each position, 0 outside of the chunks in use;
        and bool (B, T_s), which positions those are. A chunk that a side cannot say (its ratio is not finite) is not in
        use. float64 from float64, else float32.

    Raises:
        OptionError: shapes are not those of the spans, logits come without a mapping, or a teacher is a `TopK`.
        MismatchError: the spans are of other tokenizers than the mapping.

    Example:
        The student writes `123` in three tokens of -0.6 together, the teacher in one of -0.9: each of the three tokens
        gets -0.1. Nothing predicts the first token, `x`.

        >>> import xtoken_align
        >>> student, teacher = xtoken_align.read_vocab("qwen3"), xtoken_align.read_vocab("llama-3")
        >>> spans = xtoken_align.align_texts(["x = 123"], student=student, teacher=teacher)
        >>> log_probs = torch.tensor([[0.0, -0.5, -0.7, -0.3, -0.2, -0.1]])
        >>> advantages, used = chunk_advantages(log_probs, torch.tensor([[0.0, -0.4, -0.9, -0.9]]), spans)
        >>> [round(value, 4) for value in advantages[0].tolist()], used[0].tolist()
        ([0.0, 0.1, -0.2, -0.1, -0.1, -0.1], [False, True, True, True, True, True])

    Source: this library, 2026; the ratio as a reward is that of on-policy distillation (Gu et al. 2024, MiniLLM), with
    a reference that of implicit rewards (Rafailov et al. 2023).
    """
    check_one_of("spread", spread, get_args(Spread))
    if mapping is not None:
        check_tokenizers(spans, mapping)
    likelihoods = [
        None if side is None else _likelihoods_of(side, spans, which, name, mapping)
        for side, which, name in (
            (teacher, "teacher", "the teacher"),
            (teacher_reference, "teacher", "the teacher's reference"),
            (student, "student", "the student"),
            (student_reference, "student", "the student's reference"),
        )
    ]
    device = _tensor(student).device
    of_teacher, its_reference, of_student, own_reference = (
        None if values is None else values.to(device) for values in likelihoods
    )
    assert of_teacher is not None
    assert of_student is not None
    ratio = of_teacher - (0 if its_reference is None else its_reference)
    ratio = ratio - (of_student - (0 if own_reference is None else own_reference))
    return _spread(ratio, spans, spread)


def _spread(ratio: torch.Tensor, spans: Spans, spread: Spread) -> tuple[torch.Tensor, torch.Tensor]:
    """Ratios of chunks, floats (N,), over the student's tokens: what `chunk_advantages` returns.

    Two chunks of one and two tokens with the ratios 3 and 4 give 3 2 2 as shares, and 3 4 4 whole.
    """
    predictions = spans.torch().predictions()
    places, offsets = predictions.student.to(ratio.device) + 1, predictions.student_offsets.to(ratio.device)
    is_finite = ratio.isfinite()
    weighted = torch.where(is_finite, ratio * predictions.weight.to(ratio), 0)
    sizes = offsets.diff()
    if spread == "share":
        weighted = weighted / sizes
    shape = tuple(spans.student.shape)
    advantages = weighted.new_zeros(shape)
    used = torch.zeros(shape, dtype=torch.bool, device=ratio.device)
    advantages.view(-1)[places] = weighted.repeat_interleave(sizes)
    used.view(-1)[places] = is_finite.repeat_interleave(sizes)
    return advantages, used


@torch.no_grad()
def _likelihoods_of(side: Any, spans: Spans, which: str, name: str, mapping: Mapping | None) -> torch.Tensor:
    """Floats (N,), l(c) of every chunk in use; infinite or NaN where a token's log-probability is."""
    if isinstance(side, TopK):
        raise OptionError(
            f"{name} is a TopK, whose best tokens need not be the text's: give the log-probabilities of the text's own "
            "tokens, floats (B, T), which servers give as well"
        )
    predictions, shape = spans.torch().predictions(), tuple(getattr(spans, which).shape)
    tensor = _tensor(side)
    rows, tokens, offsets = (getattr(predictions, which + end).to(tensor.device) for end in ("", "_tokens", "_offsets"))
    if isinstance(side, torch.Tensor) and side.dim() == 2:
        check_shape(name, side, shape, "(B, T), one log-probability for the token at each position,")
        check_floats(name, side)
        values = side.to(compute_dtype(side)).flatten()[rows + 1]
        if values.numel() and float(values.max()) > _ROUNDING:
            raise OptionError(f"{name} must hand in log-probabilities, at most 0, but one is {float(values.max()):.4g}")
    else:
        check_positions(name, side, shape)
        values = _log_probs_of(side, rows, tokens, _silent(mapping, which, name, side))
    chunk = torch.arange(len(offsets) - 1, device=values.device).repeat_interleave(offsets.diff())
    return values.new_zeros(len(offsets) - 1).index_add(0, chunk, values)


def _log_probs_of(side: Any, rows: torch.Tensor, tokens: torch.Tensor, silent: torch.Tensor) -> torch.Tensor:
    """Floats (n,), the log-probabilities of tokens by logits that are read block by block.

    Args:
        side: logits (B, T, V), or hidden states.
        rows: int64 (n,), flattened positions.
        tokens: int64 (n,).
        silent: int64, ids that are no tokens.
    """
    source = source_of(side)
    dtype = compute_dtype(source.states)
    values = torch.zeros(len(rows), dtype=dtype, device=rows.device)
    step = max(_ELEMENTS // source.width, 1)
    for begin in range(0, len(rows), step):
        part = slice(begin, begin + step)
        scores = source.read(rows[part], dtype).scores.index_fill(1, silent, -torch.inf)
        # A row without any mass has no distribution, and its tokens no probability: NaN.
        values[part] = scores.gather(1, tokens[part, None]).squeeze(1) - scores.logsumexp(dim=1)
    return values


def _silent(mapping: Mapping | None, which: str, name: str, side: Any) -> torch.Tensor:
    """The ids of a side that are no tokens."""
    if mapping is None:
        raise OptionError(
            f"{name} hands in logits, and padding among them has no probability: give the mapping, or log-probabilities"
        )
    live = live_tokens(mapping)[which == "teacher"]
    width = len(side.weight) if isinstance(side, Hidden) else _tensor(side).shape[-1]
    if width != len(live):
        raise OptionError(f"{name} must have the mapping's {len(live)} logits, but it has {width}")
    return (~live).nonzero().squeeze(1).to(_tensor(side).device)


def _tensor(side: torch.Tensor | Logits | Hidden) -> torch.Tensor:
    if isinstance(side, Hidden):
        return side.states
    return side.logits if isinstance(side, Logits) else side
