"""Random small batches for comparing the losses with their slow twins: odd vocabularies, odd chunks, odd logits.

    case = random_case(seed)
    slow_loss(case.mapping, case.student_logits, case.teacher_logits, case.spans, kind="c-kl", labels=case.labels)

Every case has some of everything; `FEATURES[seed % len(FEATURES)]` is what it has for certain.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from small_vocabs import Token, make_vocab

from xtoken_align import Mapping, Spans, Vocab, align_ids, build
from xtoken_align.errors import XTokenWarning
from xtoken_align.losses import TopK
from xtoken_align.vocab.kinds import Kind

FEATURES = (
    "plain",
    "one chunk",
    "long chunks",
    "one-sided begin of text",
    "specials",
    "padding and holes",
    "empty rows",
    "bytes",
    "no chunk",
    "nothing in common",
    "packed rows",
    "one vocabulary",
    "split at random",
)

_SHARED = ("ab", "11", " a", "ba1", "bb", "a1")
"""Tokens that both sides have more often than by chance."""

_LONG = ("abababa", "bababab")
"""One token of up to seven characters for each side, which the other may write in as many."""


@dataclass(frozen=True, eq=False)
class Case:
    """A batch.

    Attributes:
        feature: what it has for certain.
        student: the student's vocabulary.
        teacher: the teacher's.
        mapping: built from them.
        student_logits: (B, T_s, V_s), without a graph.
        teacher_logits: (B, T_t, V_t).
        spans: numpy arrays.
        labels: int64 (B, T_s), -100 where there is none.
    """

    feature: str
    student: Vocab
    teacher: Vocab
    mapping: Mapping
    student_logits: torch.Tensor
    teacher_logits: torch.Tensor
    spans: Spans
    labels: torch.Tensor


def random_case(
    seed: int, *, dtype: torch.dtype = torch.float64, infinities: float = 0.0, scale: float = 3.0, **options: Any
) -> Case:
    """A batch that depends on nothing but the arguments.

    Args:
        seed: any integer from 0 on.
        dtype: of the logits.
        infinities: the share of logits that are -inf; whole rows are so, too, then.
        scale: standard deviation of the logits.
        options: of `build`, before those that are drawn.
    """
    draw = np.random.default_rng(seed)
    feature = FEATURES[seed % len(FEATURES)]
    student, teacher = _vocabularies(draw, feature)
    if feature == "nothing in common" and draw.random() < 0.5:
        # W is empty then, and the text has chunks all the same.
        options = {"rules": ["exact"], **options}
    elif draw.random() < 0.3:
        options = {"reverse_pass": True, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XTokenWarning)
        mapping = build(student=student, teacher=teacher, **options)
    spans = _spans(draw, feature, student, teacher)
    labelled = spans.student_loss_mask & spans.student_mask
    return Case(
        feature=feature,
        student=student,
        teacher=teacher,
        mapping=mapping,
        student_logits=_logits(draw, (*spans.student.shape, len(student)), scale, infinities).to(dtype),
        teacher_logits=_logits(draw, (*spans.teacher.shape, len(teacher)), scale, infinities).to(dtype),
        spans=spans,
        labels=torch.from_numpy(np.where(labelled, spans.student_ids, -100)),
    )


def top_k_of(case: Case, count: int) -> TopK:
    """The teacher's best tokens of a case, by a softmax over the ids that are tokens; unused places if there are more.

    Args:
        case: a case with finite logits.
        count: how many places there are.
    """
    live = torch.from_numpy(case.teacher.kinds < Kind.PADDING)
    log_probs = torch.where(live, case.teacher_logits, -torch.inf).log_softmax(-1)
    best = log_probs.topk(min(count, log_probs.shape[-1]), dim=-1)
    ids = torch.where(best.values > -torch.inf, best.indices, -1)
    gap = count - ids.shape[-1]
    rest = (1 - best.values.exp().sum(-1)).clamp(min=0.0)
    return TopK(
        torch.nn.functional.pad(ids, (0, gap), value=-1),
        torch.nn.functional.pad(best.values, (0, gap), value=-torch.inf),
        torch.where((ids >= 0).sum(-1) == live.sum(), 0.0, rest),
        log_probs.shape[-1],
    )


def _logits(draw: np.random.Generator, shape: tuple[int, ...], scale: float, infinities: float) -> torch.Tensor:
    values = scale * draw.standard_normal(shape)
    if infinities:
        values[draw.random(shape) < infinities] = -np.inf
        values[draw.random(shape[:2]) < infinities / 4] = -np.inf
    return torch.from_numpy(values)


def _vocabularies(draw: np.random.Generator, feature: str) -> tuple[Vocab, Vocab]:
    if feature == "nothing in common":
        # No token of the student's is one of the teacher's, but the teacher writes them in two.
        pairs = make_vocab([(b"<x>", Kind.SPECIAL), "ab", "bb", "ba"], name="student")
        return pairs, make_vocab(["b", (b"<y>", Kind.SPECIAL), "a", "c", (b"", Kind.PADDING)], name="teacher")
    student = _vocabulary(draw, feature, "student")
    if feature == "one vocabulary":
        return student, student
    return student, _vocabulary(draw, feature, "teacher")


def _vocabulary(draw: np.random.Generator, feature: str, name: str) -> Vocab:
    alphabet = "ab1 "
    surfaces = {*alphabet, *(text for text in _SHARED if draw.random() < 0.5)}
    for _ in range(draw.integers(0, 26)):
        surfaces.add("".join(draw.choice(list(alphabet), size=draw.integers(2, 5))))
    if feature == "long chunks":
        mixed = draw.random() < 0.4
        surfaces = {text for text in surfaces if len(text) == 1 or (len(text) == 2 and (mixed or not text.isalpha()))}
        surfaces.add(_LONG[name == "teacher"][: draw.choice([5, 7, 7, 7])])
    tokens: list[Token] = [(text.encode(), Kind.TEXT) for text in sorted(surfaces)]
    if name == "student" and feature == "bytes":
        tokens += [(b"\xc3", Kind.BYTE), (b"\xa9", Kind.BYTE), (b"a", Kind.BYTE)]
    elif feature == "bytes":
        tokens += [("é".encode(), Kind.TEXT), (b"\xc3", Kind.TEXT), (b"\xa9", Kind.TEXT)]
    if feature == "empty rows" or draw.random() < 0.5:
        own = "ж" if name == "student" else "щ"
        tokens += [(own.encode(), Kind.TEXT), (b"<unused1>", Kind.RESERVED)]
    specials = {"bos": b"<s>", "eos": b"</s>"}
    if feature == "specials" or draw.random() < 0.5:
        tokens.append((b"<x>" if name == "student" else b"<y>", Kind.SPECIAL))
        specials["eot"] = b"<turn>"
    tokens += [(text, Kind.SPECIAL) for text in specials.values()]
    if feature == "padding and holes" or draw.random() < 0.3:
        tokens += [(b"", Kind.HOLE)] * int(draw.integers(1, 3))
    tokens = [tokens[at] for at in draw.permutation(len(tokens))]
    if feature == "padding and holes" or draw.random() < 0.5:
        tokens += [(b"", Kind.PADDING)] * int(draw.integers(1, 6))
    at = {text: number for number, (text, kind) in enumerate(tokens) if kind == Kind.SPECIAL}
    return make_vocab(tokens, name=name, roles={role: [at[text]] for role, text in specials.items()})


@dataclass
class _Side:
    """The ids of one side of a row, and the number of each one's document."""

    vocab: Vocab
    bos: bool
    at_random: float
    ids: list[int] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], document: int) -> None:
        self.ids += ids
        self.documents += [document] * len(ids)

    def role(self, role: str) -> list[int]:
        return list(self.vocab.roles.get(role, ()))[:1]


def _spans(draw: np.random.Generator, feature: str, student: Vocab, teacher: Vocab) -> Spans:
    count = 1 if feature == "one chunk" else int(draw.integers(1, 4))
    rows = [_row(draw, feature, student, teacher) for _ in range(count)]
    left = bool(draw.random() < 0.5)
    arrays: dict[str, Any] = {}
    for number, name in enumerate(("student", "teacher")):
        sides = [row[number] for row in rows]
        ids = _padded(sides, lambda side: side.ids, left, 0)
        arrays[f"{name}_segments"] = _padded(sides, lambda side: side.documents, left, -1)
        labelled = draw.random(ids.shape) < (1.0 if draw.random() < 0.5 else 0.85)
        if feature == "no chunk":
            labelled[:] = False
        elif feature in {"one chunk", "long chunks"}:
            labelled[:] = True
        arrays[f"{name}_ids"], arrays[f"{name}_loss_mask"] = ids, labelled
    return align_ids(arrays.pop("student_ids"), arrays.pop("teacher_ids"), student=student, teacher=teacher, **arrays)


def _row(draw: np.random.Generator, feature: str, student: Vocab, teacher: Vocab) -> tuple[_Side, _Side]:
    one_sided = feature == "one-sided begin of text"
    starts = bool(feature in {"one chunk", "long chunks"} or draw.random() < 0.7)
    random_split = {"split at random": 0.7, "long chunks": 0.05}.get(feature, float(draw.choice([0.0, 0.2])))
    sides = (
        _Side(student, starts or one_sided, random_split),
        _Side(teacher, starts and not one_sided, random_split),
    )
    for document in range(3 if feature == "packed rows" else 1):
        _add_document(draw, feature, sides, document)
    for side in sides:
        if not side.ids:
            side.add([int(np.flatnonzero(side.vocab.kinds == Kind.TEXT)[0])], 0)
    return sides


def _add_document(draw: np.random.Generator, feature: str, sides: tuple[_Side, _Side], document: int) -> None:
    for side in sides:
        if side.bos:
            side.add(side.role("bos"), document)
    if feature == "one chunk":
        letter = str(draw.choice(["a", "b", "1", " "]))
        for side in sides:
            side.add(_split(draw, side, letter), document)
        return
    for word in _words(draw, feature, int(draw.integers(1, 6))):
        for side in sides:
            side.add(_split(draw, side, word), document)
        _add_specials(draw, sides, document, often=feature == "specials")
    if draw.random() < 0.7:
        for side in sides:
            side.add(side.role("eos"), document)


def _words(draw: np.random.Generator, feature: str, count: int) -> list[str]:
    pool = ["a", "b", "1", " ", "ab", " a", "11", "ba1", "a1 b", "bbab"]
    if feature == "nothing in common":
        pool = ["ab", "ba", "abba", "bbab"]
    if feature == "long chunks":
        return [*_LONG, *(str(word) for word in draw.choice(pool, size=count))]
    if feature == "bytes":
        pool += ["é", "aé"] * 4
    return [str(word) for word in draw.choice(pool, size=count)]


def _split(draw: np.random.Generator, side: _Side, word: str) -> list[int]:
    """A word in tokens: the longest that fits, or any that does; what the side cannot write is left out."""
    table = {
        side.vocab.surfaces[token]: token
        for token in reversed(range(len(side.vocab)))
        if side.vocab.kinds[token] in {Kind.TEXT, Kind.BYTE}
    }
    data, ids = word.encode(), []
    while data:
        fitting = [data[:size] for size in range(len(data), 0, -1) if data[:size] in table]
        if not fitting:
            data = data[1:]
            continue
        piece = fitting[0]
        if draw.random() < side.at_random:
            piece = fitting[int(draw.integers(len(fitting)))]
        ids.append(table[piece])
        data = data[len(piece) :]
    return ids


def _add_specials(draw: np.random.Generator, sides: tuple[_Side, _Side], document: int, *, often: bool) -> None:
    if draw.random() < (0.5 if often else 0.1):
        for side in sides:
            side.add(side.role("eot"), document)
    for side, surface in zip(sides, (b"<x>", b"<y>"), strict=True):
        if draw.random() < (0.5 if often else 0.1):
            side.add([token for token in range(len(side.vocab)) if side.vocab.surfaces[token] == surface], document)


def _padded(sides: Sequence[_Side], values: Callable[[_Side], list[int]], left: bool, fill: int) -> np.ndarray:
    longest = max(len(side.ids) for side in sides)
    made = np.full((len(sides), longest), fill, dtype=np.int64)
    for row, side in enumerate(sides):
        own = values(side)
        made[row, longest - len(own) if left else 0 :][: len(own)] = own
    return made
