"""What a model's output head does to hidden states: its matrix, its adapters, and the model's own factors."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import OptionError
from .inputs import Hidden

MULTIPLIED = ("logit_scale", "lm_head_multiplier", "output_multiplier")
"""By what models multiply their logits, by its name in the config: Cohere, Falcon-H1, Muse."""
DIVIDED = ("logits_scaling",)
"""By what they divide them: Granite."""
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""The bound of the logits: Gemma, RecurrentGemma, xLSTM."""


@dataclass(frozen=True, eq=False)
class Head:
    """An output head without its model: all that makes logits of hidden states.

    Attributes:
        weight: floats (V, D).
        bias: floats (V,), or None.
        scale: what the model multiplies its logits by.
        softcap: the bound of the logits, or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    softcap: float | None

    def to(self, device: torch.device | str | None) -> Head:
        """The head on a device."""
        return Head(
            self.weight.to(device), None if self.bias is None else self.bias.to(device), self.scale, self.softcap
        )

    def hidden(self, states: torch.Tensor) -> Hidden:
        """States (B, T, D) with the head: in its precision, or in that of autocast where it is on."""
        return Hidden(_cast(states.to(self.weight.dtype)), self.weight, self.bias, self.scale, self.softcap)


def output_head(model: torch.nn.Module) -> torch.nn.Module:
    """The module that makes logits of hidden states.

    Raises:
        OptionError: the model has none, or several.
    """
    getter: Any = getattr(model, "get_output_embeddings", None)
    head: Any = getter() if callable(getter) else None
    if head is None:
        raise OptionError(
            f"expected a model with an output head, which get_output_embeddings() returns, but {type(model).__name__} "
            "has none; hand in the language model itself, before it is wrapped for distributed training"
        )
    if type(head).__name__ == "ModulesToSaveWrapper" and head.active_adapters:
        # PEFT trains a copy of the head: it is the copy that the wrapper calls.
        head = head.modules_to_save[head.active_adapters[0]]
    if not isinstance(head, torch.nn.Module):
        raise OptionError(
            f"expected get_output_embeddings() to return one module, but that of {type(model).__name__} returns a "
            f"{type(head).__name__}; hand logits to the loss instead"
        )
    return head


def check_head(head: torch.nn.Module) -> None:
    """Refuses a head whose forward is another than W h + b, with or without LoRA.

    Raises:
        OptionError: the class or the adapter is unknown.
    """
    if "forward" in vars(head):
        raise OptionError(
            f"the forward of the head, a {type(head).__name__}, has been replaced (by accelerate's hooks, say), so "
            "what it computes is unknown; load the model onto one device"
        )
    base: Any = head
    lora = sys.modules.get("peft.tuners.lora.layer")
    if lora is not None and _computes_as(head, lora.Linear):
        adapted: Any = head
        base = adapted.base_layer
        # Versions of PEFT before lora_variant had one other kind of adapter, DoRA, and a switch for it.
        variants = [type(one).__name__ for one in getattr(adapted, "lora_variant", {}).values()]
        variants += ["DoRA" for used in getattr(adapted, "use_dora", {}).values() if used]
        if variants:
            raise OptionError(
                f"the head's LoRA adapter must be a plain one, but it is a {variants[0]}; leave the head out of "
                "target_modules, or hand logits to the loss"
            )
    if not _computes_as(base, torch.nn.Linear):
        raise OptionError(
            f"the head must be a torch.nn.Linear, or PEFT's LoRA on one, but it is a {type(base).__module__}."
            f"{type(base).__qualname__}; hand logits to the loss instead"
        )


def logit_factors(model: torch.nn.Module) -> tuple[float, float | None]:
    """Scale and softcap that the model applies to the head's result, read from its config."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    factors = {
        name: float(value)
        for name in (*MULTIPLIED, *DIVIDED, *SOFTCAPS)
        if isinstance(value := getattr(config, name, None), int | float) and value
    }
    scale = math.prod(factors.get(name, 1.0) for name in MULTIPLIED)
    scale /= math.prod(factors.get(name, 1.0) for name in DIVIDED)
    return scale, next((factors[name] for name in SOFTCAPS if name in factors), None)


def hidden_of(head: torch.nn.Module, states: torch.Tensor, scale: float, softcap: float | None) -> Hidden:
    """The head's product as `Hidden`, with the graph of its parameters.

    LoRA adds s B A drop(h) to W h, which is one product again: (W, s B) with (h, A drop(h)).

    Args:
        head: one that `check_head` lets pass.
        states: floats (B, T, D).
        scale: of the logits.
        softcap: of the logits, or None.

    Raises:
        OptionError: the matrix is spread over ranks.
    """
    linear: Any = getattr(head, "base_layer", head)
    states = _cast(states)
    if hasattr(linear.weight, "device_mesh"):
        raise OptionError(
            "the head's matrix must be whole on each rank while the loss is computed, but it is a DTensor; leave the "
            "head out of tensor parallelism, or hand logits to the loss that are sharded by the vocabulary"
        )
    weights, inputs, bias = [linear.weight], [states], linear.bias
    for lora_a, lora_b, dropout, factor in _adapters(head):
        inputs.append(lora_a(dropout(states.to(lora_a.weight.dtype))).to(states.dtype))
        weights.append(lora_b.weight * factor)
        if lora_b.bias is not None:
            bias = bias + lora_b.bias * factor
    if len(weights) > 1:
        weights = [torch.cat([one.to(states.dtype) for one in weights], dim=1)]
    return Hidden(torch.cat(inputs, dim=-1) if len(inputs) > 1 else states, weights[0], bias, scale, softcap)


def _cast(states: torch.Tensor) -> torch.Tensor:
    """States in the precision that autocast has a head compute in."""
    device = states.device.type
    if torch.is_autocast_enabled(device) and states.dtype != torch.float64:
        return states.to(torch.get_autocast_dtype(device))
    return states


def _adapters(head: Any) -> list[tuple[Any, Any, Any, float]]:
    """A, B, dropout and factor of the LoRA adapters that are active."""
    if not hasattr(head, "lora_A") or head.disable_adapters or head.merged:
        return []
    return [
        (head.lora_A[name], head.lora_B[name], head.lora_dropout[name], head.scaling[name])
        for name in head.active_adapters
        if name in head.lora_A
    ]


def _computes_as(module: torch.nn.Module, expected: type) -> bool:
    """Whether the class's forward is that of `expected`, whatever else (FSDP2, say) made a subclass of it."""
    return type(module).forward is expected.forward  # type: ignore[attr-defined]
