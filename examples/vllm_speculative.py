"""vLLM: a draft model with another tokenizer proposes by the map of this library.

vLLM pairs the tokens of two vocabularies by their strings (`use_heterogeneous_vocab`). This plug-in pairs them by
their bytes: it also finds tokens that the two files write in different ways, and pairs no two that differ.

    xtoken-align export DRAFT--TARGET --format tli -o tli.safetensors  # the student is the draft model

Install this file with the entry point that vLLM loads in each of its processes, in a package's pyproject.toml

    [project.entry-points."vllm.general_plugins"]
    xtoken_align_map = "vllm_speculative:register"

and name the file when vLLM starts:

    XTOKEN_ALIGN_TLI=tli.safetensors vllm serve TARGET --speculative-config \
        '{"method": "draft_model", "model": "DRAFT", "num_speculative_tokens": 3, "use_heterogeneous_vocab": true}'
"""

from __future__ import annotations

import os
from typing import Any

from safetensors.torch import load_file
from vllm.v1.spec_decode import draft_model


class FileVocabMapping(draft_model.VocabMapping):  # type: ignore[misc]
    """vLLM's map with the pairs of the file that XTOKEN_ALIGN_TLI names.

    vLLM reads three tensors: `draft_to_target_ids` (V_draft,) and `target_to_draft_ids` (V_target,), int64 with -1
    where a token has no counterpart, and `intersection_mask_draft` (V_draft,), which tokens may be proposed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # also finds the tokens that stand for what has no counterpart
        pairs = load_file(os.environ["XTOKEN_ALIGN_TLI"], device=str(self.device))
        sizes = len(pairs["draft_to_target_ids"]), len(pairs["target_to_draft_ids"])
        if sizes != (self.draft_vocab_size, self.target_vocab_size):
            raise ValueError(
                f"the map is of a draft model with {sizes[0]} logits and a target with {sizes[1]}, but the models have "
                f"{self.draft_vocab_size} and {self.target_vocab_size}: build the mapping from these models' folders"
            )
        self.draft_to_target_ids = pairs["draft_to_target_ids"]
        self.target_to_draft_ids = pairs["target_to_draft_ids"]
        self.intersection_mask_draft = pairs["intersection_mask_draft"]
        self.intersection_size = int(self.intersection_mask_draft.sum())


def register() -> None:
    """Puts the map in the place of vLLM's own."""
    if "XTOKEN_ALIGN_TLI" in os.environ:
        draft_model.VocabMapping = FileVocabMapping
