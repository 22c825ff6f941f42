"""Tiny random language models for the student's side of a random batch, and a loss of theirs in both forms.

loss, gradients = plain(model)      # from the model's logits
loss, gradients = fused(model)      # by its head
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from random_batches import Case, random_case

from xtoken_align.losses import LossOutput, XTokenLoss, fuse_head

Gradients = dict[str, torch.Tensor]

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


@cache
def case(dtype: torch.dtype = torch.float32) -> Case:
    """Three packed rows with chunks of many shapes."""
    return random_case(75, dtype=dtype)


@cache
def loss_fn(kd_weight: float, ce_weight: float) -> XTokenLoss:
    """Of that batch."""
    return XTokenLoss(case().mapping, kind="c-kl", kd_weight=kd_weight, ce_weight=ce_weight)


def make_model(name: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> torch.nn.Module:
    """A model by the name of its class, with weights so large that a softcap or a scale matters."""
    config_class = getattr(transformers, name).config_class
    sizes = {**_SIZES, "vocab_size": len(case().student), **changes}
    if name == "FalconH1ForCausalLM":
        sizes |= {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 4}
    config = config_class(**sizes)
    config._attn_implementation = "eager"
    torch.manual_seed(3)
    model: torch.nn.Module = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.4)
    return model.to(dtype).train()


def inputs() -> dict[str, torch.Tensor]:
    """What the model is called with."""
    spans = case().spans
    return {
        "input_ids": torch.from_numpy(spans.student_ids).long(),
        "attention_mask": torch.from_numpy(spans.student_mask).long(),
        "use_cache": False,
    }


def loss_of(student: Any, dtype: torch.dtype = torch.float32, weights: tuple[float, float] = (0.7, 0.4)) -> LossOutput:
    """The loss of logits or hidden states."""
    made = case(dtype)
    return loss_fn(*weights)(student, made.teacher_logits, made.spans, labels=made.labels)


def plain(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, Gradients]:
    """Loss and gradients from the model's logits."""
    model.zero_grad()
    output = loss_of(model(**inputs()).logits, dtype)
    output.loss.backward()
    return output.loss.detach(), _gradients(model)


def fused(
    model: torch.nn.Module, dtype: torch.dtype = torch.float32, through: Callable[..., Any] | None = None
) -> tuple[torch.Tensor, Gradients]:
    """Loss and gradients by the model's head; the model is called as `through`, if that is given."""
    model.zero_grad()
    head = fuse_head(model)
    with head.computing(lambda hidden: loss_of(hidden, dtype)):
        (model if through is None else through)(**inputs())
    head.output.loss.backward()
    return head.output.loss.detach(), _gradients(model)


def _gradients(model: torch.nn.Module) -> Gradients:
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def assert_same(
    actual: tuple[torch.Tensor, Gradients], expected: tuple[torch.Tensor, Gradients], relative: float
) -> None:
    """Losses, and gradients relative to each parameter's largest."""
    assert abs(actual[0] - expected[0]) <= relative * abs(expected[0])
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (actual[1][name] - gradient).abs().max() <= relative * gradient.abs().max(), name
