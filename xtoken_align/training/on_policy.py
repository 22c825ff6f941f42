"""On-policy batches: the student writes, and the teachers say what they think of it."""

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
from ..spans.batch import IGNORED
from ..spans.spans import Spans
from ..vocab.kinds import Kind
from ..vocab.vocab import Vocab
from .cache.write import at_rest
from .distillation import Distillation
from .teachers import CachedTeacher, plain

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class OnPolicy:
    """Turns some batches into on-policy ones.

    Which batches, and what the student writes, is drawn from the seed and the step alone, so that a run that was cut
    off goes on as it would have.

    Attributes:
        distillation: the teachers.
        lmbda: the probability that a batch is on-policy.
        max_new_tokens: the most tokens that the student writes.
        prompt_tokens: how many tokens of a text the student goes on from, half of it at most.
        temperature: at which the student writes.
        seed: of the run.

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
            rank: the process's; all processes draw alike, but write different things.
        """
        # Not one generator for all places: what is drawn must not depend on how often was drawn before.
        if random.Random(f"{self.seed} {place}").random() >= self.lmbda:  # noqa: S311 - no secret
            return batch
        sides = [side["spans"].spans.numpy() for side in batch["teachers"]]
        prompts = [self._prompt(sides[0], row) for row in range(len(sides[0]))]
        with _drawing(f"{self.seed} {place} {rank}", batch["input_ids"].device):
            written = self._written(model, [prompt for prompt, _ in prompts], batch["input_ids"].device)
        made = self.distillation.collate.batch(
            [
                [self._row(number, spans, row, (*prompts[row], ids)) for row, ids in enumerate(written)]
                for number, spans in enumerate(sides)
            ]
        )
        moved: dict[str, Any] = send_to_device(made, batch["input_ids"].device)
        return {**moved, "labels": torch.full_like(moved["labels"], IGNORED)}

    def _prompt(self, spans: Spans, row: int) -> tuple[Ids, int]:
        """What the student goes on from, and how many of its tokens are no text that a teacher has to be told."""
        ids = spans.student_ids[row][spans.student_mask[row]]
        begin = _beginning(ids, spans.student_loss_mask[row][spans.student_mask[row]], self.distillation.vocab)
        own = int(spans.student_loss_mask[row].sum())
        # A chat is labelled from its first answer on: the student writes that answer.
        kept = begin if begin > 1 else begin + min(self.prompt_tokens, max(own // 2, 1))
        return ids[: max(kept, 1)], begin

    def _written(self, model: Any, prompts: Sequence[Ids], device: torch.device) -> list[Ids]:
        """What the student writes after each prompt, the token that ends it included."""
        vocab = self.distillation.vocab
        ends = [token for role in ("eos", "eot") for token in vocab.roles.get(role, ())]
        pad = (vocab.roles.get("pad") or tuple(ends) or (0,))[0]
        longest = max(map(len, prompts))
        ids = np.full((len(prompts), longest), pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        # Checkpointing of activations would have no use for the keys of past positions.
        with at_rest(plain(model)):
            made = model.generate(
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
        return [_until_end(row, ends) for row in made[:, longest:].cpu().numpy()]

    def _row(self, number: int, spans: Spans, row: int, said: tuple[Ids, int, Ids]) -> dict[str, Any]:
        """A row of ids: the student's, and the same text after the teacher's own beginning."""
        prompt, begin, written = said
        student, teacher = self.distillation.vocab, self.distillation.teacher_vocabs[number]
        theirs = spans.teacher_ids[row][spans.teacher_mask[row]]
        own = spans.teacher_loss_mask[row][spans.teacher_mask[row]]
        first = theirs[: _beginning(theirs, own, teacher)]
        text = _text(np.concatenate([prompt[begin:], written]), student)
        ids = [*first.tolist(), *teacher.encode_batch([text])[0], *_end(written, student, teacher)]
        return {
            "student_ids": [*prompt.tolist(), *written.tolist()],
            "teacher_ids": ids,
            "student_loss_mask": [0] * len(prompt) + [1] * len(written),
            "teacher_loss_mask": [0] * len(first) + [1] * (len(ids) - len(first)),
        }


def _beginning(ids: Ids, counted: NDArray[np.bool_], vocab: Vocab) -> int:
    """How many tokens stand before the first that counts and says text."""
    says = counted & (vocab.kinds[ids] <= Kind.BYTE)
    return int(says.argmax()) if says.any() else len(ids)


def _until_end(ids: Ids, ends: Sequence[int]) -> Ids:
    """What was written, up to and with the first token that ends it; the rest is padding."""
    found = np.flatnonzero(np.isin(ids, ends))
    return ids[: found[0] + 1] if len(found) else ids


def _text(ids: Ids, vocab: Vocab) -> str:
    """The text of ids; specials say nothing. A character of which only a part was written is left out."""
    said = b"".join(vocab.surfaces[token] for token in ids.tolist() if vocab.kinds[token] <= Kind.BYTE)
    return said.decode(errors="ignore")


def _end(written: Ids, student: Vocab, teacher: Vocab) -> list[int]:
    """The teacher's token for the one that the student ended with."""
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
