"""H-KL, GOLD, ULD and ALM, against sums written out."""

from __future__ import annotations

from math import exp, log

import pytest
from tiny import Tiny, kl

from xtoken_align.errors import OptionError

# Strict: a with a. Relaxed: also 12 with 1, which has 10/11 of its row.
STUDENT, TEACHER = ["a", "12", "x"], ["a", "1", "2", "y"]
OURS, THEIRS = [0.5, 0.2, 0.3], [0.4, 0.3, 0.2, 0.1]


def pair_loss(kind: str, **options: object) -> float:
    return Tiny(STUDENT, TEACHER).loss([0], [0], [OURS] * 2, [THEIRS] * 2, kind=kind, **options).kd.item()


def tempered(masses: list[float], temperature: float) -> list[float]:
    powers = [mass ** (1 / temperature) for mass in masses]
    return [power / sum(powers) for power in powers]


def test_h_kl_has_relaxed_pairs_a_rest_and_the_sorted_remainders() -> None:
    # Remainders: the student's 0.3 against the larger of the teacher's 0.2 and 0.1.
    assert pair_loss("h-kl") == pytest.approx(kl([0.4, 0.3, 0.3], [0.5, 0.2, 0.3]) + 0.1)


def test_gold_has_strict_pairs() -> None:
    # Remainders: 0.3, 0.2 against 0.3, 0.2 and one that is not compared.
    assert pair_loss("gold") == pytest.approx(kl([0.4, 0.6], [0.5, 0.5]))
    assert pair_loss("h-kl", threshold=0.95) == pytest.approx(pair_loss("gold"))


def test_the_remainders_are_of_the_whole_tempered_distribution() -> None:
    ours, theirs = tempered(OURS, 2.0), tempered(THEIRS, 2.0)
    common = kl([0.4, 0.3, 0.3], [0.5, 0.2, 0.3], 2.0)
    assert pair_loss("h-kl", temperature=2.0) == pytest.approx(common + 4 * abs(ours[2] - theirs[2]))


def test_the_papers_form_leaves_the_common_part_as_it_is() -> None:
    ours, theirs = tempered(OURS, 2.0), tempered(THEIRS, 2.0)
    common = sum(t * log(t / s) for t, s in zip(theirs[:2], ours[:2], strict=True))
    value = pair_loss("h-kl", normalize="none", temperature=2.0)
    assert value == pytest.approx(4 * (common + abs(ours[2] - theirs[2])))


def test_uncommon_ranks_past_the_limit_are_not_compared() -> None:
    rows = [[0.1, 0.6, 0.3]] * 2, [[0.4, 0.3, 0.2, 0.1]] * 2
    pair, common = Tiny(STUDENT, TEACHER), kl([0.4, 0.6], [0.1, 0.9])
    for limit, remainder in ((0, 0.0), (1, 0.3), (2, 0.4), (8192, 0.4)):
        out = pair.loss([0], [0], *rows, kind="gold", uncommon_top_k=limit)
        assert out.kd.item() == pytest.approx(common + remainder)


def test_without_a_rest_on_one_side_the_pairs_alone_are_compared() -> None:
    out = Tiny(["a", "b"], ["a", "b", "c"]).loss([0], [0], [[0.5, 0.5]] * 2, [[0.1, 0.2, 0.7]] * 2, kind="gold")
    assert out.kd.item() == pytest.approx(kl([0.1, 0.2], [0.5, 0.5]))
    assert out.kept.tolist() == pytest.approx([0.3])


def test_two_student_tokens_of_one_teacher_token_are_one_pair() -> None:
    pair = Tiny(["a", "b", "b"], ["a", "b"])
    out = pair.loss([0], [0], [[0.2, 0.3, 0.5]] * 2, [[0.6, 0.4]] * 2, kind="gold")
    # The second b is left over, and the teacher has no rest.
    assert out.kd.item() == pytest.approx(kl([0.6, 0.4], [0.2, 0.3]))


def test_h_kl_averages_probabilities_at_temperature_one() -> None:
    pair = Tiny(["1", "2", "x"], ["12", "1", "2"])
    student, teacher = [[0.6, 0.2, 0.2], [0.2, 0.4, 0.4], [1.0, 0.0, 0.0]], [[0.3, 0.5, 0.2]] * 2
    out = pair.loss([0, 1], [0], student, teacher, kind="gold", merge="mean", temperature=2.0)
    mean = [0.4, 0.3, 0.3]
    remainder = 4 * abs(tempered(mean, 2.0)[2] - tempered(teacher[0], 2.0)[0])
    assert out.kd.item() == pytest.approx(kl([0.5, 0.2, 0.3], mean, 2.0) + remainder)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_uld_pads_the_shorter_list_with_zeros(temperature: float) -> None:
    ours, theirs = sorted(tempered(OURS, temperature))[::-1], sorted(tempered(THEIRS, temperature))[::-1]
    distance = sum(abs(s - t) for s, t in zip([*ours, 0.0], theirs, strict=True))
    assert pair_loss("uld", temperature=temperature) == pytest.approx(temperature**2 * distance)


def test_alm_compares_the_likelihoods_of_a_chunks_own_tokens() -> None:
    pair = Tiny(["1", "2", "12"], ["1", "2"])
    student, teacher = [[0.3, 0.3, 0.4]] * 2, [[0.5, 0.5], [0.2, 0.8], [1.0, 0.0]]
    out = pair.loss([2], [0, 1], student, teacher, kind="alm", temperature=2.0)
    a, b = log(0.5 * 0.8) / 100 - 1e-6, log(0.4) / 100 - 1e-6
    assert out.kd.item() == pytest.approx(-(exp(a) * b + (1 - exp(a)) * log(1 - exp(b))))


def test_alm_refuses_the_mean_of_positions() -> None:
    with pytest.raises(OptionError, match="alm reads single positions"):
        pair_loss("alm", merge="mean")
