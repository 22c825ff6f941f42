"""Trains the students of a group: the arms of one pair, one corpus and one seed, which see the same texts."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from arms import Arm, loss_of
from measure import Probe, answers, numerals, perplexity
from models import Coder, endless, load, optimiser, step, teach, written
from settings import CORPORA, TOKENIZERS, Settings
from texts import Text, draw, pools

import xtoken_align

HELD_OUT_SEED, PROBE_SEED = 7_000_001, 7_000_002
LAST = 50  # steps at the end over which what the losses note is averaged


@dataclass(frozen=True)
class Place:
    """Where models and results are kept.

    Attributes:
        folder: of everything that depends on texts, tokenizers and models alone.
        results: of the arms' results.
    """

    folder: Path
    results: Path

    def coder(self, tokenizer: str) -> Coder:
        """A tokenizer."""
        return Coder(self.folder / "tokenizers" / tokenizer / "tokenizer.json")

    def teacher(self, pair: str) -> Path:
        """The weights of a pair's teacher, which all seeds share."""
        return self.folder / f"teacher.{pair}.pt"

    def start(self, seed: int | str) -> Path:
        """The weights with which a seed's students begin."""
        return self.folder / f"start.{seed}.pt"

    def result(self, arm: Arm, seed: int) -> Path:
        """An arm's result."""
        return self.results / f"{arm.key}.{seed}.json"

    def unpack(self, file: Path) -> None:
        """Takes over what an earlier run's `results.json` holds, if code and settings were the same."""
        if not file.exists():
            return
        results = json.loads(file.read_text(encoding="utf-8"))
        if results.get("digests") != [self.folder.name, self.results.name]:
            return
        measured = {self.teacher(pair).with_suffix(".json"): one for pair, one in results["teachers"].items()}
        measured |= {self.start(seed).with_suffix(".json"): one for seed, one in results["starts"].items()}
        measured |= {self.results / f"{one['key']}.{one['seed']}.json": one for one in results["arms"]}
        for place, one in measured.items():
            if not place.exists():
                place.write_text(json.dumps(one, indent=1) + "\n", encoding="utf-8")


def held_out(settings: Settings) -> Any:
    """The held-out texts that are asked about."""
    return draw(pools()[1], settings.questions, HELD_OUT_SEED)


def measured(model: Any, coder: Coder, settings: Settings) -> dict[str, float | None]:
    """What is measured of a model once."""
    texts = held_out(settings)
    return {**asdict(answers(model, coder, texts)), "perplexity": _mean([perplexity(model, coder, texts)])}


def train_teacher(place: Place, settings: Settings, pair: str) -> None:
    """Trains a pair's teacher on clean text."""
    _train(place, settings, TOKENIZERS[pair], settings.teachers[pair], 0, place.teacher(pair))


def train_start(place: Place, settings: Settings, seed: int) -> None:
    """Trains a seed's student for a while, on clean text."""
    _train(place, settings, "student", settings.start, seed, place.start(seed))


def _train(place: Place, settings: Settings, tokenizer: str, course: Any, seed: int, file: Path) -> None:
    begun, coder = time.process_time(), place.coder(tokenizer)
    model = teach(coder, pools()[0], course, 100 * seed)
    report = {**measured(model, coder, settings), "seconds": time.process_time() - begun}
    file.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    torch.save(model.state_dict(), file)


@dataclass(frozen=True)
class Group:
    """The arms that share their batches.

    Attributes:
        place: where models and results are kept.
        settings: the sizes.
        pair: of tokenizers.
        corpus: that the students are trained on.
        seed: of the batches, and of the student that they begin with.
    """

    place: Place
    settings: Settings
    pair: str
    corpus: str
    seed: int

    @cached_property
    def coder(self) -> Coder:
        """The student's tokenizer."""
        return self.place.coder("student")

    @cached_property
    def teacher_coder(self) -> Coder:
        """The teacher's tokenizer."""
        return self.place.coder(TOKENIZERS[self.pair])

    @cached_property
    def vocabs(self) -> dict[str, Any]:
        """Both vocabularies as the library reads them."""
        return {
            "student": xtoken_align.read_vocab(self.coder.file, name="student"),
            "teacher": xtoken_align.read_vocab(self.teacher_coder.file, name=self.pair),
        }

    @cached_property
    def mapping(self) -> Any:
        """The mapping between them."""
        return xtoken_align.build(**self.vocabs)

    @cached_property
    def texts(self) -> list[list[Text]]:
        """The batches' texts."""
        drawn = endless(self.coder, pools()[0], self.settings.rows, 100 * self.seed + 50, CORPORA[self.corpus])
        return list(islice(drawn, self.settings.steps))

    @cached_property
    def teacher(self) -> Any:
        """The teacher."""
        layers = self.settings.teachers[self.pair].layers
        return load(self.place.teacher(self.pair), self.teacher_coder.size, layers).eval()

    @cached_property
    def collate(self) -> Any:
        """Makes batches."""
        return xtoken_align.SpanCollator(**self.vocabs)

    def scored(self, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], torch.Tensor]:
        """A batch, and the teacher's logits."""
        batch = self.collate(rows)
        with torch.no_grad():
            logits = self.teacher(batch["teacher_input_ids"], attention_mask=batch["teacher_attention_mask"]).logits
        return batch, logits

    @cached_property
    def off_policy(self) -> list[tuple[dict[str, Any], torch.Tensor]]:
        """The batches of the corpus's own text: one pass of the teacher serves all arms."""
        return [self.scored([{"text": text.text} for text in some]) for some in self.texts]

    def on_policy(self, student: Any) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
        """Batches of what the student writes after each text's first question, as it is at that step."""
        for number, some in enumerate(self.texts):
            questions = [text.prompt for text in some]
            ours, theirs = self.coder.prompts(questions), self.teacher_coder.prompts(questions)
            end = self.coder.edges[1]
            said = written(student, ours, self.settings.longest, end, 1000 * self.seed + number)
            whole = [question + self.coder.tokenizer.decode(ids) for question, ids in zip(questions, said, strict=True)]
            rows = []
            for own, ids, asked, read in zip(ours, said, theirs, self.teacher_coder.prompts(whole), strict=True):
                # The ids that the student wrote are the ids that are scored. The teacher reads their text.
                sides = {"student": (own, [*own, *ids])}
                stop = [self.teacher_coder.edges[1]] if ids[-1:] == [end] else []
                sides["teacher"] = sides["student"] if self.pair == "same" else (asked, [*read, *stop])
                row: dict[str, Any] = {}
                for side, (prompt, tokens) in sides.items():
                    row[f"{side}_ids"] = tokens
                    row[f"{side}_loss_mask"] = [0] * len(prompt) + [1] * (len(tokens) - len(prompt))
                rows.append(row)
            yield self.scored(rows)

    @cached_property
    def probe(self) -> Probe:
        """Looks at numerals, and at words that the teacher has no token for."""
        theirs = set(self.teacher_coder.surfaces)
        cut = [any(sign.isalpha() for sign in text) and text not in theirs for text in self.coder.surfaces]
        token_sets = {"numerals": numerals(self.coder), "cut words": torch.tensor(cut)}
        return Probe.of(self.coder, draw(pools()[1], self.settings.probes, PROBE_SEED), token_sets)

    def run(self, arm: Arm) -> dict[str, Any]:
        """Trains a student."""
        begun = time.process_time()
        torch.manual_seed(self.seed)
        student = load(self.place.start(self.seed), self.coder.size, self.settings.start.layers)
        loss_fn = loss_of(arm, self.mapping if self.pair != "same" else None)
        made, schedule = optimiser(student, self.settings.rate, self.settings.steps, warm=10, last=self.settings.last)
        steps, curves, noted = [0], [self.probe(student)], []
        batches = self.off_policy if arm.policy == "off" else self.on_policy(student)
        for number, (batch, teacher) in enumerate(batches, start=1):
            logits = student(batch["student_input_ids"], attention_mask=batch["student_attention_mask"]).logits
            loss, more = loss_fn(logits, teacher, batch)
            step(student, loss, made, schedule)
            noted.append({"loss": float(loss.detach()), **more})
            if number % self.settings.probe_every == 0:
                steps.append(number)
                curves.append(self.probe(student))
        return {
            "pair": arm.pair,
            "corpus": arm.corpus,
            "arm": arm.name,
            "ce": arm.ce,
            "policy": arm.policy,
            "key": arm.key,
            "seed": self.seed,
            **measured(student.eval(), self.coder, self.settings),
            "steps": steps,
            "mass": {name: [_mean([curve[name]]) for curve in curves] for name in curves[0]},
            "noted": {name: _mean([one[name] for one in noted[-LAST:]]) for name in noted[0]},
            "seconds": time.process_time() - begun,
        }


def run_group(group: Group, arms: list[Arm]) -> Iterator[Arm]:
    """Trains the students of a group and writes each result as soon as it is there."""
    for arm in arms:
        result = group.run(arm)
        file = group.place.result(arm, group.seed)
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(file)
        yield arm


def _mean(values: list[float]) -> float | None:
    """The mean; None where a value is infinite or no number, which JSON does not know."""
    mean = sum(values) / len(values)
    return mean if math.isfinite(mean) else None
