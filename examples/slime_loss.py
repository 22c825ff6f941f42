"""slime: a teacher with another tokenizer, behind a server, as the loss of what the student wrote.

    --loss-type custom_loss --custom-loss-function-path slime_loss.loss --custom-config-path teacher.yaml

with this file on PYTHONPATH, tensor and context parallel size 1, and in teacher.yaml

    xtoken_student: Qwen/Qwen3-4B
    xtoken_teacher: meta-llama/Llama-3.1-8B-Instruct
    xtoken_url: http://teacher:30000
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from transformers import AutoTokenizer

import xtoken_align
from xtoken_align.losses import XTokenLoss
from xtoken_align.training import Answer, OnPolicy, ServedTeacher


class TextLoss:
    """The distillation loss of one row: a function of the student's logits, its ids, and their text.

    Args:
        student: the student's folder or Hub id.
        teacher: the teacher's, of which only the tokenizer is read.
        served: the teacher's server: anything with the method `top_k` of `ServedTeacher`.
        **options: of `XTokenLoss`.
    """

    def __init__(self, student: str, teacher: str, served: Any, **options: Any) -> None:
        self.loss = XTokenLoss(xtoken_align.get_or_build(student=student, teacher=teacher), **options)
        self.on_policy = OnPolicy(collate=xtoken_align.SpanCollator(student=student, teacher=teacher))
        self.tokenizers = AutoTokenizer.from_pretrained(student), AutoTokenizer.from_pretrained(teacher)
        self.served = served

    def __call__(
        self, logits: torch.Tensor, ids: torch.Tensor, prompt_length: int, teacher_prompt: str | None = None
    ) -> torch.Tensor:
        """Scalar: the mean over the chunks of the answer.

        Args:
            logits: (T, V), with further columns behind the model's own where the framework pads them.
            ids: int64 (T,), the prompt and the answer as the student sampled it.
            prompt_length: how many of the ids are the prompt.
            teacher_prompt: what the teacher reads before the answer, such as the chat in its own template; by default
                the text of the student's prompt without its control tokens.
        """
        mine, its = self.tokenizers
        prompt, answer = ids[:prompt_length].cpu().numpy(), ids[prompt_length:].cpu().numpy()
        if teacher_prompt is None:
            teacher_prompt = mine.decode(prompt, skip_special_tokens=True)
        teacher_ids = its(teacher_prompt, add_special_tokens=False)["input_ids"]
        # Nothing of either prompt counts. The teacher reads the answer's text, cut as its tokenizer cuts it.
        masks = {"student_loss_mask": [0] * len(prompt), "teacher_loss_mask": [0] * len(teacher_ids)}
        prompts = self.on_policy.prompts([{"student_ids": prompt, "teacher_ids": teacher_ids, **masks}])
        batch = self.on_policy.batch(prompts, [Answer(answer, ended=True)])
        best = self.served.top_k(
            ids=batch["teacher_input_ids"], mask=batch["teacher_attention_mask"], device=logits.device
        )
        own = logits[None, :, : self.loss.mapping.W.shape[0]]
        result: torch.Tensor = self.loss.to(logits.device)(own, best, batch["spans"]).loss
        return result


@cache
def text_loss(student: str, teacher: str, url: str) -> TextLoss:
    """Made once in each training process."""
    return TextLoss(student, teacher, ServedTeacher(url, teacher, server="sglang", top_k=64))


def loss(
    args: Any, batch: Mapping[str, Any], logits: torch.Tensor, sum_of_sample_mean: Callable[[torch.Tensor], Any]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The custom loss that slime calls.

    Args:
        args: slime's arguments.
        batch: `unconcat_tokens`, the ids of each sample, with `total_lengths` and `response_lengths`.
        logits: (1, T, V), the samples one after another.
        sum_of_sample_mean: reduces a value for each token that was written, all samples one after another.
    """
    row_loss = text_loss(args.xtoken_student, args.xtoken_teacher, args.xtoken_url)
    values, begin = [], 0
    lengths = zip(batch["unconcat_tokens"], batch["total_lengths"], batch["response_lengths"], strict=True)
    for tokens, total, written in lengths:
        value = row_loss(logits[0, begin : begin + total], tokens, total - written)
        # A sample's mean stands at each of its tokens, so slime's own reduction gives it the weight of its setting.
        values.append(value.expand(written))
        begin += total
    reduced = sum_of_sample_mean(torch.cat(values))
    return reduced, {"loss": reduced.clone().detach()}
