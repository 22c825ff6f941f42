"""Running a model: what it is called with, its logits, or its last hidden states with the head."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import OptionError
from ..losses import FusedHead, Hidden, LossOutput, fuse_head
from ..spans.batch import block_mask


def plain(model: Any) -> Any:
    """The model as transformers made it, under what trainers and adapters wrap around it."""
    inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
    if inner is None and hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        inner = model.get_base_model()
    return model if inner is None or inner is model else plain(inner)


def try_fuse_head(model: Any) -> FusedHead | None:
    """The model's head, made to compute losses, or None where it is no matrix with a bias and adapters."""
    if hasattr(model, "_orig_mod"):
        # A compiled model has its head's class compiled in.
        return None
    try:
        return fuse_head(model)
    except OptionError:
        return None


def model_inputs(model: Any, side: Mapping[str, Any], segments: Any = None) -> dict[str, Any]:
    """What a model is called with.

    Args:
        model: the model, wrapped or not.
        side: a side of a batch: `input_ids`, `attention_mask` and `position_ids`.
        segments: int (B, T), the number of each token's document in packed rows; None where rows are documents.
    """
    inner = plain(model)
    made = {"input_ids": side["input_ids"], "attention_mask": side["attention_mask"], "use_cache": False}
    if segments is not None:
        allowed = block_mask(segments).to(side["input_ids"].device)
        dtype = next(inner.parameters()).dtype
        zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        made["attention_mask"] = zeros.masked_fill(~allowed, torch.finfo(dtype).min)
    if "position_ids" in inspect.signature(inner.forward).parameters:
        made["position_ids"] = side["position_ids"]
    return made


def run_whole(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Logits (B, T, V)."""
    logits: torch.Tensor = model(**inputs).logits
    return logits


def run_to_hidden(model: Any, inputs: Mapping[str, Any], head: FusedHead) -> Hidden:
    """The last hidden states with the head, without the logits; for models whose parameters are in one place."""
    found: list[Hidden] = []

    def keep(hidden: Hidden) -> LossOutput:
        found.append(hidden)
        nothing = hidden.states.new_zeros(())
        return LossOutput(nothing, nothing, nothing)

    with head.computing(keep):
        model(**inputs)
    return found[0]
