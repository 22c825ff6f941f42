"""What a cache leaves out, and by how much a loss can differ because of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, log1p


@dataclass(frozen=True, slots=True)
class Truncation:
    """How much of a teacher's distributions a cache leaves out.

    Attributes:
        positions: how many positions were counted.
        mean_rest: mean probability, over positions, of the tokens that were not kept.
        max_rest: the largest.
    """

    positions: int
    mean_rest: float
    max_rest: float


def loss_bound(rest: float, *, bins: int, least_log_prob: float) -> float:
    """By how much a KL divergence over bins can differ between a live teacher and a cached one.

        |KL(P || Q) - KL(P' || Q)| <= t (log(B - 1) - log q) + h(t),  t = min(rest, (B - 1) / (B - 1 + q))

    P is the live teacher over B bins, P' the same with the rest's mass put anywhere else, or left out and the kept part
    normalised: the two are at most `rest` apart in total variation. The losses compare the bins without a kept token as
    one, which is the same as giving them the rest in the student's own proportions. Q is the student, q its least
    probability of a bin, h(t) = -t log t - (1 - t) log(1 - t). The term with q bounds the cross-entropies' difference,
    the others that of the entropies. All is concave in `rest`: at the mean rest of some positions the bound holds for
    the mean of their losses. The gradient for the student's logits is at most 2 * `rest` away, in the sum over tokens.

    It is a bound at temperature 1. Logarithms kept as float16 add at most 1/2048 of the teacher's entropy to `rest`.

    Args:
        rest: probability that is not kept, 0 to 1.
        bins: how many bins the loss compares, 2 or more; for losses over tokens the vocabulary's size.
        least_log_prob: the log-probability of the student's least probable bin, in nats.

    Returns:
        Nats per position.

    >>> round(loss_bound(0.01, bins=100_000, least_log_prob=-20.0), 3)
    0.371
    >>> loss_bound(0.0, bins=100_000, least_log_prob=-20.0)
    0.0

    Source: Zhang, Estimating mutual information via Kolmogorov distance, 2007; Audenaert, A sharp continuity estimate
    for the von Neumann entropy, 2007 (for entropies).
    """
    slope = log(max(bins - 1, 1)) - least_log_prob
    # Beyond its maximum the right side falls, while a smaller distance than `rest` is always possible.
    distance = min(max(rest, 0.0), 1.0 / (1.0 + exp(-slope)))
    if distance <= 0.0:
        return 0.0
    entropy = -distance * log(distance) - (1.0 - distance) * log1p(-distance) if distance < 1.0 else 0.0
    return distance * slope + entropy
