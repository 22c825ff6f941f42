"""Trains a student by one loss, and measures it in bits per byte."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from material import Passage, drawn, make_sums, model_file, new_model, own_tokenizer, passages

import xtoken_align
from xtoken_align.export.model_folder import load_model
from xtoken_align.losses import Hidden, TopK, XTokenLoss

HELD_OUT_SEED = 9_000_001
JAVASCRIPT = 16
"""Held-out passages of a language that no arm reads: they say what a student keeps of what it knew."""
MEASURED = 1
"""To be raised where a change of the code changes numbers: what was measured before is then measured again."""


@dataclass(frozen=True)
class Settings:
    """The sizes.

    Attributes:
        size: least bytes of a passage.
        rows: passages in a batch.
        steps: of the optimiser.
        rates: the highest learning rates that every arm of `transfer` is trained with: none suits every loss.
        warm: steps until the rate is reached; then it falls in a line.
        last: the share of it at the end.
        held_out: passages of prose and of code, together, that models are measured on.
        numerals: further passages for it, those with the most digits.
    """

    size: int = 600
    rows: int = 1
    steps: int = 40
    rates: tuple[float, ...] = (2e-4, 6e-4)
    warm: int = 4
    last: float = 0.1
    held_out: int = 16
    numerals: int = 8


FULL = Settings()
QUICK = Settings(rows=1, steps=2, warm=1, held_out=2, numerals=1)
GPU = Settings(rows=32, steps=120, warm=8, held_out=256, numerals=64)


@dataclass(frozen=True)
class Pair:
    """A student and a teacher, and how much the student reads.

    Attributes:
        title: of the pair, in reports.
        student: the model that is trained, as `World.model` takes it.
        teacher: the model that teaches.
        steps: how many times the steps of the settings.
        rows: how many times the passages of a batch.
        epochs: how often each passage is read.
        checks: shares of the steps after which held-out text is measured, besides the end.
        top_k: the teacher's best tokens that are kept, for losses that need no more; None keeps hidden states alone.
    """

    title: str
    student: str
    teacher: str
    steps: int = 1
    rows: int = 1
    epochs: int = 1
    checks: tuple[float, ...] = ()
    top_k: int | None = None


HALFWAY = (0.25, 0.5, 0.75)
PAIRS = {
    "transfer": Pair(
        "SmolLM2-135M gets Llama-3's tokenizer; the teacher is SmolLM2-135M as it was", "transfer", "smollm2"
    ),
    "longer": Pair("The same with four times the text", "transfer", "smollm2", steps=4, checks=HALFWAY),
    "scratch": Pair(
        "A student of 10 million parameters from nothing; the teacher is SmolLM2-135M",
        "scratch",
        "smollm2",
        steps=4,
        rows=4,
        epochs=8,
        checks=HALFWAY,
        top_k=64,
    ),
    "families": Pair("SmolLM2-135M learns from Gemma-3-270m", "smollm2", "gemma-3"),
    "sums": Pair("The first pair, with rows that are sums by W", "sums", "smollm2"),
}
WHOLE = {"gold", "h-kl", "alm"}
"""Losses that need more than a teacher's best tokens."""


@dataclass(frozen=True)
class Arm:
    """A way to train a student.

    Attributes:
        name: of the loss, as reports have it.
        kind: of `XTokenLoss`, None without a teacher.
        options: of `XTokenLoss`.
        ce: the weight of the cross-entropy.
    """

    name: str
    kind: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    ce: float = 1.0


ARMS = {
    arm.name: arm
    for arm in (
        Arm("CE"),
        Arm("CE + C-KL", "c-kl"),
        Arm("CE + GOLD", "gold"),
        Arm("CE + P-KL", "p-kl"),
        Arm("CE + ALM", "alm", {"kd_weight": 100.0}),
        Arm("CE + H-KL", "h-kl"),
        Arm("C-KL alone", "c-kl", ce=0.0),
        Arm("CE + C-KL x 2", "c-kl", {"kd_weight": 2.0}),
    )
}


@dataclass(frozen=True)
class Place:
    """Where things are kept, by digests of what decides them.

    Attributes:
        folder: of downloads and all that is kept.
        settings: the sizes.
        device: that models are on.
    """

    folder: Path
    settings: Settings
    device: str = "cpu"

    @cached_property
    def digest(self) -> str:
        """Of the sizes, and of what these files and the library measured when it was last raised."""
        return hashlib.sha256(repr((MEASURED, self.settings)).encode()).hexdigest()[:12]

    def bounds(self, pair: str) -> Path:
        """What teacher and student are before any arm: of the first pair that has the same two models."""
        models = (PAIRS[pair].student, PAIRS[pair].teacher)
        first = next(name for name, other in PAIRS.items() if (other.student, other.teacher) == models)
        return self.folder / "results" / self.digest / f"{first}.bounds.json"

    def result(self, pair: str, arm: Arm, rate: float, seed: int) -> Path:
        """An arm's result, named by what the arm is."""
        own = hashlib.sha256(repr(sorted(asdict(arm).items())).encode()).hexdigest()[:8]
        name = arm.name.replace(" ", "").lower()
        return self.folder / "results" / self.digest / f"{pair}.{name}.{rate:g}.{seed}.{own}.json"


def learning_rate(settings: Settings, rate: float, step: int) -> float:
    """Of a step, from 0: it rises to the highest, then falls in a line.

    >>> [round(learning_rate(Settings(steps=6, warm=2, last=0.0), 1.0, step), 2) for step in range(6)]
    [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    if step < settings.warm:
        return rate * (step + 1) / settings.warm
    done = (step - settings.warm + 1) / (settings.steps - settings.warm + 1)
    return rate * (1 - (1 - settings.last) * done)


def vocab_of(name: str, place: Place) -> xtoken_align.Vocab:
    """The vocabulary of a model, as `World.model` takes its name."""
    if name in {"transfer", "sums"}:
        return xtoken_align.read_vocab("llama-3")
    if name == "scratch":
        train, _ = passages(place.folder, place.settings.size)
        return xtoken_align.read_vocab(own_tokenizer(train, place.folder / "models" / "scratch.tokenizer"))
    return xtoken_align.read_vocab(model_file(name, place.folder))


@dataclass(frozen=True, eq=False)
class World:
    """The models of a pair, the texts, and what the teacher says of them.

    Attributes:
        place: where things are kept.
        pair: its name.
        student_name: of the model that is trained, as `model` takes it.
        student_vocab: its vocabulary.
        teacher_name: of the model that teaches.
        teacher_vocab: its vocabulary.
        train: passages to train on.
        held_out_pool: passages of other files.
    """

    place: Place
    pair: str
    student_name: str
    student_vocab: xtoken_align.Vocab
    teacher_name: str
    teacher_vocab: xtoken_align.Vocab
    train: list[Passage]
    held_out_pool: list[Passage]

    @classmethod
    def read(cls, place: Place, pair: str) -> World:
        """A pair by its name, from the models and the texts that the place has or gets."""
        texts = passages(place.folder, place.settings.size)
        student, teacher = PAIRS[pair].student, PAIRS[pair].teacher
        return cls(place, pair, student, vocab_of(student, place), teacher, vocab_of(teacher, place), *texts)

    @property
    def settings(self) -> Settings:
        """The sizes, as this pair has them."""
        sizes, pair = self.place.settings, PAIRS[self.pair]
        return replace(sizes, steps=sizes.steps * pair.steps, rows=sizes.rows * pair.rows)

    @cached_property
    def mapping(self) -> xtoken_align.Mapping:
        """From the student's tokenizer to the teacher's."""
        return xtoken_align.build(student=self.student_vocab, teacher=self.teacher_vocab)

    @cached_property
    def collate(self) -> xtoken_align.SpanCollator:
        """Makes batches of texts."""
        return xtoken_align.SpanCollator(student=self.student_vocab, teacher=self.teacher_vocab, bos=True, eos=False)

    @cached_property
    def held_out(self) -> list[Passage]:
        """Prose and code in turn, then what has the most digits."""
        chosen = drawn(self.held_out_pool, self.settings.held_out, HELD_OUT_SEED)
        rest = [one for one in self.held_out_pool if one not in set(chosen) and one.kind != "javascript"]
        digits = sorted(rest, key=lambda one: (-sum(map(str.isdigit, one.text)), one.text))
        return [*chosen, *digits[: self.settings.numerals]]

    def model(self, name: str) -> Any:
        """A model in float32: one that was downloaded, or `transfer`, SmolLM2 with another tokenizer.

        It is kept in the form that loads fastest: a GGUF file takes 20 seconds.
        """
        import transformers

        kept = self.place.folder / "models" / name
        if not kept.exists():
            made: Any
            if name in {"transfer", "sums"}:
                made = xtoken_align.transplant(self.model("smollm2"), self.mapping).model
                if name == "sums":
                    make_sums(made, self.model("smollm2"), self.mapping)
            elif name == "scratch":
                made = new_model(len(self.student_vocab))
            else:
                made = load_model(str(model_file(name, self.place.folder)))
            beside = kept.with_name(f"{name}.{os.getpid()}")
            made.save_pretrained(beside)
            if not kept.exists():
                beside.rename(kept)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(kept, dtype=torch.float32)
        return loaded.to(self.place.device)

    def batches(self, seed: int) -> Iterator[dict[str, Any]]:
        """The batches of a seed, the same for every arm."""
        sizes, epochs = self.settings, PAIRS[self.pair].epochs
        batches = _in_rows(drawn(self.train, sizes.rows * sizes.steps // epochs, seed), sizes.rows)
        for _ in range(epochs):
            for some in batches:
                yield self.collate([{"text": one.text} for one in some])

    def teacher(self, seed: int, kind: str = "gold") -> Iterator[Hidden | TopK]:
        """What the teacher says of a seed's batches, in the form that a loss needs.

        Its last hidden states are kept on the disk. They are the smallest thing that says everything: 576 numbers a
        position, where the logits are 49,152. On a GPU nothing is kept, since the teacher is faster than the disk.
        """
        pair = PAIRS[self.pair]
        teacher = self.model(self.teacher_name).eval().requires_grad_(False)  # noqa: FBT003 - torch's signature
        head = teacher.get_output_embeddings().weight
        if self.place.device != "cpu":
            for batch in self.batches(seed):
                yield Hidden(states_of(teacher, _side(batch, "teacher", self.place.device)), head)
            return

        states = self._kept(f"{self.pair}.{seed}", partial(self._states, teacher, seed))
        del teacher
        said: list[Hidden | TopK] = [Hidden(one, head) for one in states]
        if pair.top_k and kind not in WHOLE:
            best = self._kept(f"{self.pair}.{seed}.top", partial(best_of, states, head, pair.top_k))
            said = [TopK(*one, width=len(head)) for one in best]
        for _ in range(pair.epochs):
            yield from said

    @torch.no_grad()
    def _states(self, teacher: Any, seed: int) -> list[torch.Tensor]:
        once = islice(self.batches(seed), self.settings.steps // PAIRS[self.pair].epochs)
        return [states_of(teacher, _side(batch, "teacher", "cpu")) for batch in once]

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What is on the disk under a name, made if it is not there."""
        file = self.place.folder / "teachers" / self.place.digest / f"{name}.pt"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            beside = file.with_suffix(f".{os.getpid()}")
            torch.save(make(), beside)
            beside.replace(file)
        return torch.load(file)


def best_of(
    batches: list[torch.Tensor], head: torch.Tensor, count: int
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The best tokens (B, T, K) at each position, their log-probabilities, and the probability of the rest (B, T)."""
    made = []
    for states in batches:
        log_probs, ids = (states @ head.T).log_softmax(-1).topk(count)
        made.append((ids, log_probs, (1 - log_probs.exp().sum(-1)).clamp(0, 1)))
    return made


def _in_rows(texts: list[Passage], rows: int) -> list[list[Passage]]:
    return [texts[start : start + rows] for start in range(0, len(texts), rows)]


def _side(batch: dict[str, Any], side: str, device: str) -> dict[str, Any]:
    return {name: batch[f"{side}_{name}"].to(device) for name in ("input_ids", "attention_mask")}


def states_of(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The last hidden states (B, T, D) in float32; products are in bfloat16."""
    with torch.autocast(model.device.type, torch.bfloat16):
        states: torch.Tensor = model.model(**inputs, use_cache=False).last_hidden_state
    return states.float()


@torch.no_grad()
def measure(model: Any, vocab: Any, texts: list[Passage], made: np.ndarray | None = None) -> dict[str, Any]:
    """Bits and bytes of some passages, by class.

    A byte's class is prose or code by its passage, or numerals if its token is made of digits alone. Of a student with
    another tokenizer bits are also summed by how the token's row was made.

    Args:
        model: that is measured.
        vocab: its vocabulary.
        texts: the passages.
        made: bool (vocabulary,), the tokens whose rows were made of several.
    """
    model.eval()
    head = model.get_output_embeddings().weight
    digits = np.array([surface.isdigit() for surface in vocab.surfaces])
    length = np.array([len(surface) for surface in vocab.surfaces])
    bits: dict[str, float] = {}
    size: dict[str, int] = {}
    tokens: dict[str, int] = {}
    start = vocab.roles["bos"][0]
    for begin in range(0, len(texts), 4):
        some = texts[begin : begin + 4]
        coded = vocab.encode_batch([one.text for one in some])
        width = max(map(len, coded)) + 1
        ids = torch.tensor([[start, *row, *[start] * (width - 1 - len(row))] for row in coded])
        mask = torch.tensor([[1] * (len(row) + 1) + [0] * (width - 1 - len(row)) for row in coded])
        inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
        states = states_of(model, inputs)
        for one, row, state in zip(some, coded, states, strict=True):
            scores = (state[: len(row)] @ head.T.to(state.dtype)).log_softmax(-1)
            targets = torch.tensor(row, device=scores.device)
            spent = (-scores.gather(1, targets[:, None])[:, 0].double() / math.log(2)).cpu().numpy()
            chosen = np.array(row)
            if int(length[chosen].sum()) != len(one.text.encode()):
                raise ValueError("tokens and text differ in bytes, so bits per byte would be wrong")
            names = [("numerals" if is_digit else one.kind) for is_digit in digits[chosen]]
            if made is not None:
                names = [
                    f"{name}, {'split' if is_made else 'exact'}"
                    for name, is_made in zip(names, made[chosen], strict=True)
                ]
            for name, bit, token in zip(names, spent.tolist(), row, strict=True):
                bits[name] = bits.get(name, 0.0) + bit
                size[name] = size.get(name, 0) + int(length[token])
                tokens[name] = tokens.get(name, 0) + 1
    return {"bits": bits, "bytes": size, "tokens": tokens}


def evaluated(world: World, model: Any, vocab: Any, made: np.ndarray | None = None) -> dict[str, Any]:
    """What is measured of a model: the drawn passages (`text`), those with the most digits (`numerals`), JavaScript."""
    count = world.settings.held_out
    foreign = [one for one in world.held_out_pool if one.kind == "javascript"]
    foreign = random.Random(HELD_OUT_SEED).sample(foreign, min(JAVASCRIPT, len(foreign)))  # noqa: S311 - no secret
    return {
        "text": measure(model, vocab, world.held_out[:count], made),
        "numerals": measure(model, vocab, world.held_out[count:], made),
        "javascript": measure(model, vocab, foreign, made),
    }


def made_rows(world: World) -> np.ndarray | None:
    """Which of the student's tokens have rows that were made of several."""
    from xtoken_align.export.transplant import plan_rows

    if world.student_name not in {"transfer", "sums"}:
        return None
    made = np.zeros(len(world.student_vocab), dtype=np.bool_)
    made[plan_rows(world.mapping).split] = True
    return made


@cache
def world_of(place: Place, pair: str) -> World:
    """The world of a pair, read once in a process."""
    return World.read(place, pair)


def run_arm(place: Place, pair: str, arm: Arm, rate: float, seed: int) -> Path:
    """Trains an arm and writes its result."""
    return _write(place.result(pair, arm, rate, seed), train_arm(world_of(place, pair), arm, rate, seed))


def train_arm(world: World, arm: Arm, rate: float, seed: int) -> dict[str, Any]:
    """Trains an arm; returns what `results.json` has of it."""
    torch.manual_seed(seed)
    student = world.model(world.student_name).train()
    checked_at = [round(share * world.settings.steps) for share in PAIRS[world.pair].checks]
    steps, checks = [], []
    for step in _steps(world, student, arm, rate, seed):
        steps.append(step)
        if len(steps) in checked_at:
            text = measure(student, world.student_vocab, world.held_out[: world.settings.held_out], made_rows(world))
            checks.append({"steps": len(steps), "text": text})
            student.train()
    return {
        "pair": world.pair,
        "arm": arm.name,
        "options": arm.options,
        "rate": rate,
        "seed": seed,
        "tokens": sum(step["tokens"] for step in steps),
        **evaluated(world, student, world.student_vocab, made_rows(world)),
        "processor_seconds_a_step": float(np.median([step["processor_seconds"] for step in steps])),
        "wall_seconds_a_step": float(np.median([step["wall_seconds"] for step in steps])),
        "checks": checks,
        "steps": steps,
    }


def _steps(world: World, student: Any, arm: Arm, rate: float, seed: int) -> Iterator[dict[str, float]]:
    """Trains the student step by step, and says what was seen: `bits` on text that it had not read before."""
    settings, device = world.settings, world.place.device
    head = student.get_output_embeddings().weight
    optimiser = torch.optim.AdamW(student.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    loss = XTokenLoss(world.mapping, arm.kind, ce_weight=arm.ce, **arm.options).to(device) if arm.kind else None
    teacher = world.teacher(seed, arm.kind) if loss else None
    for step, batch in enumerate(world.batches(seed)):
        said = next(teacher) if teacher else None
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings, rate, step)
        labels = batch["labels"].to(device)
        count = int((labels >= 0).sum())
        begun, begun_wall = time.process_time(), time.perf_counter()
        states = states_of(student, _side(batch, "student", device))
        noted = {}
        if loss is None:
            value = noted["ce"] = cross_entropy(states, head, labels)
        else:
            assert said is not None
            out = loss(Hidden(states, head), said, batch["spans"], labels=labels if arm.ce else None)
            value, noted["kd"] = out.loss, out.kd
            if arm.ce:
                noted["ce"] = out.ce
        value.backward()
        noted["norm"] = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        spent = {"processor_seconds": time.process_time() - begun, "wall_seconds": time.perf_counter() - begun_wall}
        yield {"tokens": count, **{name: float(tensor.detach()) for name, tensor in noted.items()}, **spent}


def cross_entropy(states: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The plain cross-entropy of a student, as training without this library computes it."""
    logits = states[:, :-1].flatten(0, 1) @ weight.T
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())


def _write(place: Path, result: dict[str, Any]) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return temporary.replace(place)


def run_bounds(place: Place, pair: str) -> Path:
    """Measures the teacher, the ceiling, and the student before any arm, the floor."""
    world = world_of(place, pair)
    student, teacher = world.model(world.student_name), world.model(world.teacher_name)
    result = {
        "pair": pair,
        "teacher": evaluated(world, teacher, world.teacher_vocab),
        "student": evaluated(world, student, world.student_vocab, made_rows(world)),
    }
    return _write(place.bounds(pair), result)
