"""What the experiment is: its sizes, and the names of what it makes."""

from __future__ import annotations

from dataclasses import dataclass

PAIRS = {
    "digits": "the teacher has a token per digit, the student packs up to three",
    "words": "both pack up to three digits; their words differ",
    "same": "the teacher has the student's tokenizer",
}
TOKENIZERS = {"digits": "splits", "words": "words", "same": "student"}
"""The teacher's tokenizer in each pair; the student and its tokenizer are the same in all."""
CORPORA = {"wrong": 0.25, "mostly": 0.75}
"""Share of wrong answers in the texts that students are trained on."""


@dataclass(frozen=True)
class Course:
    """How a model is trained on text.

    Attributes:
        layers: of the model.
        rows: texts in a batch.
        steps: of the optimiser.
        rate: the learning rate.
        last: the share of it at the end.
        weight: what a token of an answer counts; every other counts 1.
    """

    layers: int
    rows: int
    steps: int
    rate: float
    last: float
    weight: float


@dataclass(frozen=True)
class Settings:
    """The sizes.

    Attributes:
        teachers: how each pair's teacher is trained.
        start: how the student is trained, briefly, before its arms begin.
        steps: of an arm.
        rate: an arm's learning rate.
        last: the share of it at the end.
        rows: texts in a batch.
        probe_every: steps between two looks at where the student's probability lies.
        probes: held-out texts that are looked at.
        questions: held-out texts whose first answer is asked for, and whose perplexity is measured.
        longest: tokens that a student writes on its own policy.
    """

    teachers: dict[str, Course]
    start: Course
    steps: int
    rate: float
    last: float
    rows: int
    probe_every: int
    probes: int
    questions: int
    longest: int


FULL = Settings(
    teachers={
        "digits": Course(layers=3, rows=64, steps=2000, rate=2e-3, last=0.05, weight=4.0),
        "words": Course(layers=3, rows=64, steps=800, rate=2e-3, last=0.05, weight=4.0),
        "same": Course(layers=3, rows=64, steps=800, rate=2e-3, last=0.05, weight=4.0),
    },
    start=Course(layers=2, rows=64, steps=500, rate=2e-3, last=0.3, weight=4.0),
    steps=160,
    rate=1e-3,
    last=0.1,
    rows=48,
    probe_every=10,
    probes=48,
    questions=400,
    longest=20,
)
QUICK = Settings(
    teachers=dict.fromkeys(PAIRS, Course(layers=1, rows=8, steps=6, rate=2e-3, last=0.05, weight=4.0)),
    start=Course(layers=1, rows=8, steps=4, rate=2e-3, last=0.3, weight=4.0),
    steps=4,
    rate=1e-3,
    last=0.1,
    rows=8,
    probe_every=2,
    probes=16,
    questions=24,
    longest=6,
)
