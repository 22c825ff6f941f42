"""Options that mean nothing are refused in a sentence that says what to do; wrong calls are in `test_misuse`."""

from __future__ import annotations

from typing import Any

import pytest
from loss_calls import KINDS, case_of

from xtoken_align.errors import OptionError
from xtoken_align.losses import LossOptions, XTokenLoss

NAN, INF = float("nan"), float("inf")

CASE = case_of(4)

VALUES: list[tuple[dict[str, Any], str]] = [
    ({"kind": "kl"}, "kind must be one of auto, partition-kl, .*, but it is 'kl'"),
    ({"temperature": 0.0}, "temperature must be a finite number above 0, but it is 0.0"),
    ({"temperature": -1.0}, "temperature must be"),
    ({"temperature": NAN}, "temperature must be"),
    ({"temperature": INF}, "temperature must be"),
    ({"merge": "last"}, "merge must be one of first, mean, but it is 'last'"),
    ({"kd_weight": -0.1}, "kd_weight must be a finite number of at least 0, but it is -0.1"),
    ({"kd_weight": NAN}, "kd_weight must be"),
    ({"ce_weight": INF}, "ce_weight must be"),
    ({"scale": "auto"}, "scale must be one of fixed, dynamic"),
    ({"kind": "p-kl", "top_k": 0}, "top_k must be at least 1, or None for all columns"),
    ({"kind": "p-kl", "top_k": -3}, "top_k must be an integer of at least 0, but it is -3"),
    ({"kind": "p-kl", "top_k": 2.0}, "top_k must be an integer"),
    ({"kind": "p-kl", "top_k": True}, "top_k must be an integer"),
    ({"unreached": "rest"}, "unreached must be one of reroute, drop"),
    ({"normalize": "paper"}, "normalize must be one of rest, none"),
    ({"threshold": 1.1}, "threshold must lie between 0 and 1, but it is 1.1"),
    ({"threshold": NAN}, "threshold must lie between 0 and 1"),
    ({"uncommon_top_k": -1}, "uncommon_top_k must be an integer of at least 0"),
    ({"compat": "verl"}, "compat must be one of nemo-rl, trl, tokenkit"),
    ({"divergence": "backward"}, "divergence must be one of forward, reverse, jsd, but it is 'backward'"),
    ({"divergence": "jsd", "beta": 1.5}, "beta must lie between 0 and 1, but it is 1.5"),
    (
        {"divergence": "reverse", "beta": 0.3},
        "beta is the teacher's share in divergence='jsd'.*'reverse'; leave it out",
    ),
    ({"level_weight": "student"}, "level_weight must be one of plausible, teacher, text, but it is 'student'"),
    ({"student_top_k": 0}, "student_top_k must be at least 1, or None for all columns"),
    ({"kind": None}, "kind must be one of auto, .*, but it is None"),
    ({"temperature": "2"}, "temperature must be a finite number above 0, but it is a str: '2'"),
    ({"temperature": True}, "temperature must be a finite number above 0, but it is a bool"),
    ({"kd_weight": None}, "kd_weight must be a finite number of at least 0, but it is None"),
    ({"ce_weight": "1"}, "ce_weight must be a finite number of at least 0, but it is a str"),
    ({"threshold": [0.5]}, "threshold must be a number between 0 and 1, but it is a list"),
    ({"learn_w": "yes"}, "learn_w must be True or False, but it is 'yes'"),
]

TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"kind": "c-kl", "merge": "mean"}, "c-kl reads every position of a chunk by itself, so merge must be 'first'"),
    ({"kind": "alm", "merge": "mean"}, "alm reads every position"),
    ({"kind": "partition-kl", "top_k": 8}, "top_k belongs to p-kl, but the kind is 'partition-kl'; leave it out"),
    ({"kind": "gold", "top_k": 8}, "top_k belongs to p-kl"),
    ({"kind": "c-kl", "unreached": "drop"}, "unreached belongs to p-kl, but the kind is 'c-kl'; leave it out"),
    ({"kind": "p-kl", "normalize": "none"}, "normalize belongs to h-kl and gold, but the kind is 'p-kl'"),
    ({"kind": "gold", "threshold": 0.5}, "threshold belongs to h-kl, but the kind is 'gold'"),
    ({"kind": "uld", "uncommon_top_k": 9}, "uncommon_top_k belongs to h-kl and gold, but the kind is 'uld'"),
    ({"kind": "p-kl", "learn_w": True}, "learn_w needs kind='p-kl' with merge='mean'.*merge 'first'"),
    ({"kind": "h-kl", "merge": "mean", "learn_w": True}, "learn_w needs kind='p-kl'.*'h-kl'"),
    ({"kind": "p-kl", "merge": "mean", "learn_w": True, "compat": "nemo-rl"}, "learn_w needs"),
    ({"kind": "partition-kl", "compat": "nemo-rl"}, "compat='nemo-rl' needs kind p-kl or h-kl or gold"),
    ({"kind": "p-kl", "compat": "trl"}, "compat='trl' needs kind uld or gold, but the kind is 'p-kl'"),
    ({"kind": "uld", "compat": "tokenkit"}, "compat='tokenkit' needs kind alm"),
    ({"kind": "partition-kl", "level_weight": "text"}, "level_weight belongs to c-kl, but the kind is 'partition-kl'"),
    ({"kind": "p-kl", "end": False}, "end belongs to c-kl, but the kind is 'p-kl'; leave it out"),
    ({"kind": "c-kl", "beta": 0.3}, "beta is the teacher's share in divergence='jsd', but the divergence is 'forward'"),
    ({"kind": "uld", "divergence": "forward"}, "divergence says how .*, which uld does not do; leave it out"),
    ({"kind": "alm", "student_top_k": 16}, "student_top_k says how .*, which alm does not do"),
    ({"kind": "gold", "normalize": "none", "divergence": "jsd"}, "divergence says how .*, which normalize='none' does"),
    ({"kind": "p-kl", "compat": "nemo-rl", "divergence": "reverse"}, "divergence says how .*, which compat='nemo-rl'"),
]


@pytest.mark.parametrize(("options", "message"), VALUES)
def test_a_value_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LossOptions(**{"kind": "partition-kl", **options})
    with pytest.raises(OptionError, match=message):
        XTokenLoss(CASE.mapping, **options)


@pytest.mark.parametrize(("options", "message"), TOGETHER)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        LossOptions(**options).check_together()
    with pytest.raises(OptionError, match=message):
        XTokenLoss(CASE.mapping, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_stands_by_itself_and_says_what_it_is(kind: str) -> None:
    loss = XTokenLoss(CASE.mapping, kind, temperature=2.0)
    assert loss.kind == kind
    assert repr(loss) == f"XTokenLoss({kind}, student <- teacher, temperature=2.0)"


def test_auto_takes_the_mappings_recommendation_and_checks_it() -> None:
    loss = XTokenLoss(CASE.mapping)
    assert loss.kind == CASE.mapping.coverage().recommendation.loss
    assert loss.kind in KINDS
    if loss.kind != "p-kl":
        with pytest.raises(OptionError, match="top_k belongs to p-kl"):
            XTokenLoss(CASE.mapping, top_k=8)
