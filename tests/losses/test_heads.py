"""What a head does is read from its modules and the model's config. `test_fuse_head` compares it with whole models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import Gemma3Config

from xtoken_align.losses.heads import check_head, hidden_of, logit_factors


class Model(torch.nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


def test_factors_are_read_from_the_text_part_of_a_config() -> None:
    assert logit_factors(Model(Gemma3Config(text_config={"final_logit_softcapping": 7.0}))) == (1.0, 7.0)


def test_factors_that_are_unset_change_nothing() -> None:
    config = SimpleNamespace(logit_scale=None, logits_scaling=4, final_logit_softcapping=None)
    assert logit_factors(Model(config)) == (0.25, None)
    assert logit_factors(Model(SimpleNamespace(logit_scale="inv_sqrt_d_model"))) == (1.0, None)
    assert logit_factors(torch.nn.Linear(1, 1)) == (1.0, None)


def test_a_linear_head_is_handed_on_without_a_copy() -> None:
    head, states = torch.nn.Linear(4, 5), torch.ones(1, 2, 4)
    check_head(head)
    hidden = hidden_of(head, states, 2.0, 3.0)
    assert hidden.states is states
    assert hidden.weight is head.weight
    assert hidden.bias is head.bias
    assert (hidden.scale, hidden.softcap) == (2.0, 3.0)


def test_float64_is_left_alone_under_autocast() -> None:
    head = torch.nn.Linear(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert hidden_of(head, torch.ones(1, 2, 4), 1.0, None).states.dtype == torch.bfloat16
        assert hidden_of(head.double(), torch.ones(1, 2, 4).double(), 1.0, None).states.dtype == torch.float64
