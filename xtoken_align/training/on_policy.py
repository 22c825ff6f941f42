"""On-policy batches: the student continues the beginnings of a batch's rows, and the teachers score what it wrote."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from numpy.typing import NDArray

from ..errors import OptionError
from ..spans.spans import IGNORED, Spans
from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab
from .cache.write import at_rest
from .distillation import Distillation
from .teachers import CachedTeacher, plain

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Prompt:
    """What the student continues.

    Attributes:
        ids: the student's tokens.
        template: how many of them stand before the text (BOS, a chat's template): each teacher has its own instead.
    """

    ids: Ids
    template: int


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """Turns some batches into on-policy ones.

    Which batches these are, and what the student writes, depends on the seed and the step alone, so that a run that was
    cut off goes on as it would have.

    Attributes:
        distillation: the teachers.
        lmbda: the probability that a batch is on-policy.
        max_new_tokens: the most tokens that the student writes.
        prompt_tokens: how many tokens of a text the student continues, at most half of the text.
        temperature: the temperature at which the student samples.
        seed: the run's.

    Source: generalised knowledge distillation (Agarwal et al., 2024), whose lambda this is.
    """

    distillation: Distillation
    lmbda: float
    max_new_tokens: int
    prompt_tokens: int
    temperature: float
    seed: int

    @classmethod
    def of(cls, args: Any, distillation: Distillation) -> OnPolicy | None:
        """From a trainer's arguments; None where no batch is on-policy.

        Raises:
            OptionError: a teacher is a cache, or rows are packed.
        """
        lmbda = getattr(args, "lmbda", 0.0)
        if not lmbda:
            return None
        if any(isinstance(teacher, CachedTeacher) for teacher in distillation.teachers):
            raise OptionError(
                "a cached teacher knows nothing of what the student writes: set lmbda=0, or give the model itself"
            )
        if distillation.collate.options.get("pack"):
            raise OptionError("packed rows have no single beginning to go on from: set lmbda=0, or leave pack out")
        return cls(
            distillation=distillation,
            lmbda=lmbda,
            max_new_tokens=getattr(args, "max_new_tokens", 128),
            prompt_tokens=getattr(args, "prompt_tokens", 32),
            temperature=getattr(args, "generation_temperature", 1.0),
            seed=args.seed,
        )

    def __call__(self, model: Any, batch: dict[str, Any], place: tuple[int, int], rank: int) -> dict[str, Any]:
        """The batch itself, or in its place one that the student wrote.

        Args:
            model: the student.
            batch: of the distillation's collator.
            place: the number of the step, and of the batch in it.
            rank: the process's; all processes decide alike, but write different things.
        """
        # A generator per place: what is drawn here must not depend on how often was drawn before.
        if random.Random(f"{self.seed} {place}").random() >= self.lmbda:  # noqa: S311 - no secret
            return batch
        device = batch["input_ids"].device
        sides = [side["spans"].spans.numpy() for side in batch["teachers"]]
        prompts = [self._prompt(sides[0], row) for row in range(len(sides[0]))]
        with _drawing(f"{self.seed} {place} {rank}", device):
            written = self._write(model, [prompt.ids for prompt in prompts], device)
        # Both sides as ids, since the student may have written what its tokenizer would cut otherwise.
        rows = [
            [
                self._row(number, spans, row, prompt, ids)
                for row, (prompt, ids) in enumerate(zip(prompts, written, strict=True))
            ]
            for number, spans in enumerate(sides)
        ]
        moved: dict[str, Any] = send_to_device(self.distillation.collate.batch(rows), device)
        # What the student wrote is no label.
        return {**moved, "labels": torch.full_like(moved["labels"], IGNORED)}

    def _prompt(self, spans: Spans, row: int) -> Prompt:
        """What the student continues.

        Of a text `<s> a b c d e` with prompt_tokens 3: `<s> a b`, two of five text tokens, since three are more than
        half. Of a chat, whose first counted token is the answer's first: all that stands before the answer.
        """
        tokens = spans.student_mask[row]
        ids, is_counted = spans.student_ids[row][tokens], spans.student_loss_mask[row][tokens]
        template = _tokens_before_text(ids, is_counted, self.distillation.vocab)
        from_text = 0 if template > 1 else min(self.prompt_tokens, max(int(is_counted.sum()) // 2, 1))
        return Prompt(ids[: max(template + from_text, 1)], template)

    def _write(self, model: Any, prompts: Sequence[Ids], device: torch.device) -> list[Ids]:
        """What the student writes after each prompt, including the token that ends it."""
        vocab = self.distillation.vocab
        ends = [token for role in ("eos", "eot") for token in vocab.roles.get(role, ())]
        pad = (vocab.roles.get("pad") or tuple(ends) or (0,))[0]
        longest = max(map(len, prompts))
        # Padded on the left, so that all rows go on from the last column.
        ids = np.full((len(prompts), longest), pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        # Activation checkpointing would have no use for the keys of past positions.
        with at_rest(plain(model)):
            sequences = model.generate(
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=torch.from_numpy(mask).to(device),
                max_new_tokens=self.max_new_tokens,
                do_sample=True,
                temperature=self.temperature,
                top_k=0,
                top_p=1.0,
                eos_token_id=ends or None,
                pad_token_id=pad,
            )
        written = []
        for row in sequences[:, longest:].cpu().numpy():
            stops = np.flatnonzero(np.isin(row, ends))
            # After the first token that ends a row there is only padding.
            written.append(row[: stops[0] + 1] if len(stops) else row)
        return written

    def _row(self, number: int, spans: Spans, row: int, prompt: Prompt, written: Ids) -> dict[str, Any]:
        """A row of ids: the student's, and for a teacher the same text after the teacher's own beginning."""
        student, teacher = self.distillation.vocab, self.distillation.teacher_vocabs[number]
        tokens = spans.teacher_mask[row]
        teacher_ids, is_counted = spans.teacher_ids[row][tokens], spans.teacher_loss_mask[row][tokens]
        beginning = teacher_ids[: _tokens_before_text(teacher_ids, is_counted, teacher)]
        text = _text(np.concatenate([prompt.ids[prompt.template :], written]), student)
        ids = [*beginning.tolist(), *teacher.encode_batch([text])[0], *_end(written, student, teacher)]
        return {
            "student_ids": [*prompt.ids.tolist(), *written.tolist()],
            "teacher_ids": ids,
            "student_loss_mask": [0] * len(prompt.ids) + [1] * len(written),
            "teacher_loss_mask": [0] * len(beginning) + [1] * (len(ids) - len(beginning)),
        }


def _tokens_before_text(ids: Ids, is_counted: NDArray[np.bool_], vocab: Vocab) -> int:
    """How many tokens stand before the first that counts in the loss and says text; all if there is none."""
    is_text = is_counted & (vocab.kinds[ids] <= Kind.BYTE)
    return int(is_text.argmax()) if is_text.any() else len(ids)


def _text(ids: Ids, vocab: Vocab) -> str:
    """The text of ids, to which specials add nothing. A character of which only a part was written is left out."""
    said = b"".join(vocab.surfaces[token] for token in ids.tolist() if vocab.kinds[token] <= Kind.BYTE)
    return said.decode(errors="ignore")


def _end(written: Ids, student: Vocab, teacher: Vocab) -> list[int]:
    """The teacher's token for the one with which the student ended; nothing if it did not end."""
    for role in ("eot", "eos"):
        if len(written) and written[-1] in student.roles.get(role, ()):
            return list(teacher.roles.get(role, teacher.roles.get("eos", ()))[:1])
    return []


@contextmanager
def _drawing(seed: str, device: torch.device) -> Iterator[None]:
    """Draws from a seed of its own, and leaves the run's generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(random.Random(seed).getrandbits(63))  # noqa: S311 - no secret
        yield
