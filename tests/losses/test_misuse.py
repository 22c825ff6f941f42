"""Every wrong call is refused in a sentence that names the mistake: none is silent, none ends in an error of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from loss_calls import KINDS, case_of
from random_batches import top_k_of
from small_vocabs import make_vocab

from xtoken_align import Spans, align_ids, build
from xtoken_align.errors import MismatchError, OptionError
from xtoken_align.losses import Hidden, Logits, MultiTeacherLoss, TopK, XTokenLoss
from xtoken_align.vocab.kinds import Kind

NAN, INF = float("nan"), float("inf")

CASE = case_of(4)
Z, T, SPANS, LABELS = CASE.student_logits, CASE.teacher_logits, CASE.spans, CASE.labels
ROWS, LENGTH, WIDTH = Z.shape
IDS = torch.from_numpy(SPANS.student_ids)
TOP = top_k_of(CASE, 3)
LOSS = XTokenLoss(CASE.mapping, "partition-kl")
HEAD = torch.ones(WIDTH, 3, dtype=torch.float64)

Refused = Callable[[], Any]


def call(*given: Any, kind: str = "partition-kl", options: dict[str, Any] | None = None, **named: Any) -> Refused:
    """The loss with these sides, and the case's own for what is missing."""
    return lambda: XTokenLoss(CASE.mapping, kind, **(options or {}))(*given, *(Z, T, SPANS)[len(given) :], **named)


def many(*given: Any, **named: Any) -> Refused:
    """The loss of two teachers with these arguments, and right ones for what is missing."""
    return lambda: MultiTeacherLoss([LOSS, LOSS])(*given, *(Z, [T, T], [SPANS, SPANS])[len(given) :], **named)


def spans_with(**arrays: Any) -> Spans:
    return replace(SPANS, **arrays)


def changed(tensor: torch.Tensor, place: tuple[int, ...], value: float) -> torch.Tensor:
    other = tensor.clone()
    other[place] = value
    return other


def label_at() -> tuple[int, int]:
    """A labelled position that is not a row's first."""
    row, at = next((row, at) for row, at in (LABELS >= 0).nonzero().tolist() if at > 0)
    return row, at


def shifted(labels: torch.Tensor) -> torch.Tensor:
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)


def top(**changes: Any) -> Refused:
    """A cached teacher with other fields."""
    return lambda: replace(TOP, **changes)


@dataclass
class ModelOutput(dict[str, Any]):
    """As transformers' models give: a dict whose entries are attributes, too."""

    logits: torch.Tensor


OTHER_IDS = changed(IDS, label_at(), (int(IDS[label_at()]) + 1) % WIDTH)
TWICE = TOP.ids.clone()
TWICE[..., 1] = TWICE[..., 0]
NARROW = Hidden(torch.ones(ROWS, LENGTH, 3), torch.ones(WIDTH - 1, 3))
INTEGERS = torch.zeros(ROWS, LENGTH, WIDTH, dtype=torch.int64)
BOUNDS = torch.tensor([1.0, 2.0])

SIDES: dict[str, tuple[Refused, str]] = {
    "a model output": (call(ModelOutput(Z)), "student must be a tensor of logits .* a ModelOutput; pass its `.logits`"),
    "a teacher's output": (call(Z, ModelOutput(T)), "the teacher must be .*Hidden or TopK, .*; pass its `.logits`"),
    "a namespace": (call(SimpleNamespace(logits=Z)), "a SimpleNamespace; pass its `.logits`"),
    "a dict with logits": (call({"logits": Z}), r"but it is a dict; pass its `\[\"logits\"\]`"),
    "a dict": (call({"loss": 1.0}), "the student must be a tensor of logits .*, but it is a dict$"),
    "a path": (call(Path("model")), "but it is a PosixPath; pass what the model gives|WindowsPath"),
    "a name": (call(Z, "qwen3"), "the teacher must be .*, but it is a str; pass what the model gives"),
    "nothing": (call(None), "the student must be a tensor .*, but it is None"),
    "a model": (call(torch.nn.Linear(2, 2)), "a Linear; call the model and pass the `.logits`"),
    "numpy logits": (call(Z.numpy()), "but it is a ndarray; make a tensor of it with torch.from_numpy"),
    "a tuple": (call((Z,)), "but it is a tuple; a model's tuple has the logits first"),
    "several teachers": (call(Z, [T, T]), "several teachers need MultiTeacherLoss"),
    "spans first": (call(SPANS, Z, T), "but it is a Spans; the order is student, teacher, spans"),
    "a student's top k": (call(TOP), "student must be logits or Hidden, .*a TopK is what a teacher may hand in"),
    "integer logits": (call(INTEGERS), "student's logits must be floats, but they are a tensor of int64"),
    "a teacher's integer logits": (
        call(Z, T.long()),
        "teacher's logits must be floats, but they are a tensor of int64",
    ),
    "complex logits": (call(Z + 0j), "student's logits must be floats, but they are a tensor of complex128"),
    "rows of logits": (
        call(Z[0]),
        r"the student's logits must have shape \(B, T, V\), but they have shape \(\d+, \d+\)",
    ),
    "a teacher's rows": (call(Z, T[0]), r"the teacher's logits must have shape \(B, T, V\)"),
    "a narrow student": (call(Z[..., :-1]), f"must have the mapping's width of {WIDTH}, but they have {WIDTH - 1}"),
    "a narrow teacher": (call(Z, T[..., :-1]), "teacher's logits must have the mapping's width .*of another tokenizer"),
    "a narrow student of alm": (call(Z[..., :2], kind="alm"), "student's logits must have the mapping's width"),
    "a narrow head": (call(NARROW), "student's logits must have the mapping's width"),
    "exchanged sides": (call(T, Z), "but they have .*: student and teacher are exchanged"),
    "another device": (call(Z.to("meta"), T.to("meta")), "the loss is on cpu, but what the student .* is on meta"),
    "two devices": (call(Z, T.to("meta")), "student and teacher must be on one device, but they are on cpu and meta"),
    "a top k for h-kl": (call(Z, TOP, kind="h-kl"), "h-kl needs the teacher's whole distribution"),
    "a top k for uld": (call(Z, TOP, kind="uld"), "use partition-kl, c-kl, p-kl, strict, bpm, escd or simct"),
    "a top k for alm": (call(Z, TOP, kind="alm"), "alm needs the teacher's whole"),
    "hidden states for a peer": (
        call(Hidden(Z[..., :3], HEAD), kind="uld", options={"compat": "trl"}),
        "the peers' forms read logits, but the student is a Hidden",
    ),
}
"""What stands in the place of the student or of the teacher."""

FORMS: dict[str, tuple[Refused, str]] = {
    "logits of two dimensions": (lambda: Logits(Z[0]), r"logits must have shape \(B, T, V\)"),
    "logits in numpy": (lambda: Logits(Z.numpy()), "logits must be a tensor, but it is a ndarray"),  # type: ignore[arg-type]
    "integers as logits": (lambda: Logits(INTEGERS), "logits must be floats, but it is a tensor of int64"),
    "states of two dimensions": (lambda: Hidden(Z[0], Z[0]), r"states must have shape \(B, T, D\)"),
    "a head's module": (
        lambda: Hidden(Z[..., :3], torch.nn.Linear(3, WIDTH)),  # type: ignore[arg-type]
        "the head's weight must be a tensor, but it is a Linear",
    ),
    "a head of another size": (
        lambda: Hidden(Z, torch.ones(4, 3)),
        rf"weight must have shape \(V, D\) with D = {WIDTH}",
    ),
    "a bias of another size": (lambda: Hidden(Z, torch.ones(4, WIDTH), torch.ones(5)), r"bias must have shape \(V,\)"),
    "a head elsewhere": (
        lambda: Hidden(Z[..., :3], HEAD.to("meta")),
        "must be on one device, but the head's weight is",
    ),
    "a softcap of 0": (lambda: Hidden(Z[..., :3], HEAD, softcap=0.0), "softcap must be a finite number above 0"),
    "a scale of NaN": (lambda: Hidden(Z[..., :3], HEAD, scale=NAN), "scale must be a finite number, but it is nan"),
    "probabilities": (top(log_probs=TOP.log_probs.exp()), "log_probs must be logarithms of probabilities, 0 at most"),
    "normalised over the best": (
        top(log_probs=TOP.log_probs.log_softmax(-1)),
        "probabilities and its rest must add up to 1, .*not normalised over the best tokens",
    ),
    "a wrong rest": (top(rest=TOP.rest * 0.5), "probabilities and its rest must add up to 1"),
    "a rest in logarithms": (top(rest=TOP.rest.log()), "rest must be probabilities from 0 to 1, .*it is no logarithm"),
    "an id twice": (top(ids=TWICE), r"no id may be twice at a position, but id \d+ is"),
    "an id too high": (top(width=3), r"ids must lie between 0 and 2, .*, but they run from 0 to \d+"),
    "an id of -2": (top(ids=TOP.ids - 2), "or be -1 at unused places, but they run from -2"),
    "ids as floats": (top(ids=TOP.ids.float()), "ids must be integers, but it is a tensor of float32"),
    "log-probabilities as integers": (top(log_probs=TOP.log_probs.long()), "log_probs must be floats"),
    "no rest": (top(rest=None), "rest must be a tensor, but it is None"),
    "a rest of another shape": (top(rest=TOP.rest[:1, :1]), r"rest \(B, T\), but they have shapes"),
    "a rest elsewhere": (top(rest=TOP.rest.to("meta")), "must be on one device, but they are on cpu, cpu and meta"),
    "no width": (top(width=None), "width must be the number of the teacher's logits, but it is None"),
}
"""What cannot be made at all."""

AROUND: dict[str, tuple[Refused, str]] = {
    "no spans": (call(Z, T, None), "spans must be Spans, .*, but they are None"),
    "a collator's batch": (call(Z, T, {"spans": SPANS}), r"but they are a dict; pass its `\[\"spans\"\]`"),
    "spans with a name": (call(Z, T, SimpleNamespace(spans=SPANS)), "a SimpleNamespace; pass its `.spans`"),
    "several spans": (call(Z, T, [SPANS]), "but they are a list; several teachers need MultiTeacherLoss"),
    "predictions": (call(Z, T, SPANS.predictions()), "but they are a Predictions"),
    "a longer student": (
        call(torch.cat([Z, Z], 1)),
        r"student must have the spans' positions \(B, T\) = .*padding included",
    ),
    "fewer rows": (call(Z[:-1]), "the student must have the spans' positions"),
    "a longer teacher": (call(Z, torch.cat([T, T], 1)), "the teacher must have the spans' positions"),
    "a longer top k": (
        call(
            Z, replace(TOP, **{name: torch.cat([getattr(TOP, name)] * 2, 1) for name in ("ids", "log_probs", "rest")})
        ),
        "the teacher must have the spans' positions",
    ),
    "a longer hidden student": (
        call(Hidden(torch.ones(ROWS, LENGTH + 1, 3), torch.ones(WIDTH, 3))),
        "the student must have the spans' positions",
    ),
    "a negative weight": (call(Z, T, spans_with(weight=-SPANS.weight)), "weights of chunks must be .*, but one is -1"),
    "a weight of NaN": (
        call(Z, T, spans_with(weight=SPANS.weight * NAN)),
        "weights of chunks must be .*but one is nan",
    ),
    "an endless weight": (call(Z, T, spans_with(weight=SPANS.weight + INF)), "weights of chunks .*, but one is inf"),
    "ids of another vocabulary": (
        call(Z, T, spans_with(student_ids=SPANS.student_ids + 1000)),
        f"spans' student ids must lie between 0 and {WIDTH - 1}, .*, but they run from 1000 .*of another tokenizer",
    ),
    "ids below 0": (call(Z, T, spans_with(teacher_ids=SPANS.teacher_ids - 1)), "spans' teacher ids must lie between 0"),
    "chunks past the count": (
        call(Z, T, spans_with(student=SPANS.student + 99)),
        "must be in chunks below the row's count",
    ),
    "ids of another length": (call(Z, T, spans_with(student_ids=SPANS.student_ids[:, 1:])), "student_ids of the spans"),
    "other student ids": (
        call(student_ids=OTHER_IDS),
        r"student_ids must be the ids that were aligned, but at 1 of \d+ tokens .*the spans are of another batch",
    ),
    "other teacher ids": (
        call(teacher_ids=torch.zeros_like(torch.from_numpy(SPANS.teacher_ids))),
        "teacher_ids must be the ids that were aligned",
    ),
    "student ids of another shape": (call(student_ids=IDS[:, 1:]), "student_ids must have shape that of the spans"),
    "student ids as floats": (
        call(student_ids=IDS.float()),
        "student_ids must be integers, but it is a tensor of float",
    ),
    "student ids as a list": (call(student_ids=IDS.tolist()), "student_ids must be a tensor, but it is a list"),
    "float labels": (call(labels=LABELS.float()), "labels must be integers, but it is a tensor of float32"),
    "labels as a mask": (call(labels=LABELS >= 0), "labels must be integers, but it is a tensor of bool"),
    "labels as a list": (call(labels=LABELS.tolist()), "labels must be a tensor, but it is a list"),
    "shorter labels": (call(labels=LABELS[:, :-1]), r"labels must have shape \(B, T_s\)"),
    "flat labels": (call(labels=LABELS.flatten()), r"labels must have shape \(B, T_s\)"),
    "shifted labels": (call(labels=shifted(LABELS)), r"shifted by one already, .*: pass them unshifted"),
    "a label past the width": (
        call(labels=changed(LABELS, label_at(), WIDTH)),
        f"labels must be ids .*but one is {WIDTH}",
    ),
    "a label of -1": (call(labels=changed(LABELS, label_at(), -1)), "labels must be ids .*-100 where .*but one is -1"),
    "labels of another batch": (
        call(labels=torch.where(LABELS >= 0, OTHER_IDS, -100)),
        r"1 of \d+ are others, first at row \d+, position \d+, label .*of another batch",
    ),
    "a peer's labels of another batch": (
        call(kind="uld", options={"compat": "trl"}, labels=torch.where(LABELS >= 0, OTHER_IDS, -100)),
        "of another batch",
    ),
    "no labels": (call(options={"ce_weight": 0.5}), "ce_weight=0.5 was asked for, but there are no labels"),
    "a negative count": (call(num_chunks_in_batch=-3), "num_chunks_in_batch must be a finite number of at least 0"),
    "a count of NaN": (call(num_items_in_batch=torch.tensor(NAN)), "num_items_in_batch must be a finite number"),
    "a count in words": (call(num_items_in_batch="8"), "num_items_in_batch must be .*, but it is a str: '8'"),
    "several counts": (call(num_chunks_in_batch=BOUNDS), "num_chunks_in_batch must be one number, but it is a tensor"),
    "a negative share": (call(share=-1.0), "share must be a finite number of at least 0"),
    "a mapping's path": (
        lambda: XTokenLoss("map.npz"),
        "mapping must be a Mapping, .*, but it is a str; load it first",
    ),  # type: ignore[arg-type]
    "no mapping": (lambda: XTokenLoss(None), "mapping must be a Mapping, .*, but it is None"),  # type: ignore[arg-type]
    "no learnt W": (lambda: XTokenLoss(CASE.mapping, "uld").learned_mapping(), "make it with learn_w=True"),
}
"""What stands beside the two sides."""

SEVERAL: dict[str, tuple[Refused, str]] = {
    "no losses": (lambda: MultiTeacherLoss([]), "at least one loss"),
    "a loss that stands alone": (
        lambda: MultiTeacherLoss(LOSS),
        "losses must be a list with one XTokenLoss per teacher",
    ),  # type: ignore[arg-type]
    "mappings": (lambda: MultiTeacherLoss([CASE.mapping]), r"but losses\[0\] is a Mapping"),  # type: ignore[list-item]
    "too many weights": (lambda: MultiTeacherLoss([LOSS], [0.5, 0.5]), "one weight per teacher, 1, got 2"),
    "a negative weight": (lambda: MultiTeacherLoss([LOSS], [-1.0]), r"weights\[0\] must be a finite number"),
    "one teacher": (many(Z, [T]), "expected 2 teachers, one per teacher, got 1"),
    "a teacher alone": (many(Z, T), "teachers must be a list with one entry per teacher, but they are a tensor"),
    "spans alone": (many(Z, [T, T], SPANS), "spans must be a list with one entry per teacher, but they are a Spans"),
    "ids of one teacher": (many(teacher_ids=[None]), "expected 2 teacher_ids, one per teacher, got 1"),
    "one count": (many(num_chunks_in_batch=3), "num_chunks_in_batch must be a list with one entry per teacher"),
    "no labels": (
        lambda: MultiTeacherLoss([XTokenLoss(CASE.mapping, "uld", ce_weight=2.0)])(Z, [T], [SPANS]),
        "ce_weight=2.0 was asked for, but there are no labels",
    ),
}
"""Calls with several teachers."""

WRONG = {
    f"{place}: {name}": case
    for place, cases in (("side", SIDES), ("form", FORMS), ("beside", AROUND), ("several", SEVERAL))
    for name, case in cases.items()
}


def test_there_are_more_than_sixty_wrong_calls() -> None:
    assert len(WRONG) >= 60


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_refused_in_one_sentence(name: str) -> None:
    refused, message = WRONG[name]
    with pytest.raises(OptionError, match=message) as caught:
        refused()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 350


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_call_is_taken_by_every_kind(kind: str) -> None:
    ids = {f"{side}_ids": torch.from_numpy(getattr(SPANS, f"{side}_ids")) for side in ("student", "teacher")}
    loss = XTokenLoss(CASE.mapping, kind, ce_weight=1.0)
    plain, checked = loss(Z, T, SPANS, labels=LABELS), loss(Logits(Z), T, SPANS.torch(), labels=LABELS.int(), **ids)
    torch.testing.assert_close(checked.loss, plain.loss)


def test_what_padding_holds_does_not_matter() -> None:
    case = case_of(5)
    assert not case.spans.student_mask.all()
    ids = torch.from_numpy(np.where(case.spans.student_mask, case.spans.student_ids, 1))
    loss = XTokenLoss(case.mapping, "partition-kl")
    plain = loss(case.student_logits, case.teacher_logits, case.spans, labels=case.labels)
    given = loss(case.student_logits, case.teacher_logits, case.spans, labels=case.labels, student_ids=ids)
    assert torch.equal(plain.loss, given.loss)
    row, at = (int(place[0]) for place in (~case.spans.student_mask).nonzero())
    with pytest.raises(OptionError, match="where the spans have padding"):
        loss(case.student_logits, case.teacher_logits, case.spans, labels=changed(case.labels, (row, at), 1))


# Whose ids they are

STUDENT = make_vocab(["a", "b", "ab", (b"<s>", Kind.SPECIAL)], name="small-1", roles={"bos": [3]})
OTHER = make_vocab(["b", "a", "ab", (b"<s>", Kind.SPECIAL)], name="small-2", roles={"bos": [3]})
TEACHER = make_vocab(["a", "b", "ba", (b"<s>", Kind.SPECIAL)], name="large", roles={"bos": [3]})
PAIR_SPANS = align_ids([[3, 0, 1]], [[3, 0, 1]], student=STUDENT, teacher=TEACHER)
LOGITS = torch.zeros(1, 3, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mapping_of_another_tokenizer_of_equal_width_is_refused_by_name(kind: str) -> None:
    loss = XTokenLoss(build(student=OTHER, teacher=TEACHER), kind)
    sentence = r"the student of the spans is small-1 \(\w{12}\), that of the mapping small-2 \(\w{12}\); build or load"
    with pytest.raises(MismatchError, match=sentence):
        loss(LOGITS, LOGITS, PAIR_SPANS)
    both = XTokenLoss(build(student=OTHER, teacher=OTHER), kind)
    with pytest.raises(MismatchError, match=r"small-1 .* small-2 .* and the teacher of the spans is large .* small-2"):
        both(LOGITS, LOGITS, PAIR_SPANS.torch())


@pytest.mark.parametrize("kind", KINDS)
def test_a_mapping_the_other_way_round_is_refused_by_name(kind: str) -> None:
    loss = XTokenLoss(build(student=TEACHER, teacher=STUDENT), kind)
    with pytest.raises(MismatchError, match=r"from large as student to small-1 as teacher, but .* are exchanged"):
        loss(LOGITS, LOGITS, PAIR_SPANS)


def test_spans_that_do_not_say_whose_ids_they_hold_are_taken() -> None:
    older = replace(PAIR_SPANS, _tokenizers=None)
    assert torch.isfinite(XTokenLoss(build(student=OTHER, teacher=TEACHER), "uld")(LOGITS, LOGITS, older).loss)


def test_teachers_of_two_students_are_refused() -> None:
    losses = [XTokenLoss(build(student=student, teacher=TEACHER), "uld") for student in (STUDENT, OTHER)]
    with pytest.raises(MismatchError, match="the mappings are of the students small-1 and small-2"):
        MultiTeacherLoss(losses)


def test_a_mapping_of_an_earlier_version_is_taken_though_its_fingerprints_have_another_form() -> None:
    new = build(student=STUDENT, teacher=TEACHER)
    sides = (
        replace(side, parts=None, fingerprint=digit * 64) for side, digit in ((new.student, "1"), (new.teacher, "2"))
    )
    earlier = replace(new, **dict(zip(("student", "teacher"), sides, strict=True)))
    losses = [XTokenLoss(mapping, "uld") for mapping in (earlier, new)]
    assert torch.isfinite(losses[0](LOGITS, LOGITS, PAIR_SPANS).loss)
    assert torch.isfinite(MultiTeacherLoss(losses)(LOGITS, [LOGITS] * 2, [PAIR_SPANS] * 2).loss)


# What a call says


def test_a_metric_is_a_number() -> None:
    out = LOSS(Z, T, SPANS, labels=LABELS)
    assert out.value("kd") == pytest.approx(float(out.kd))
    assert out.value("ce") == pytest.approx(float(out.ce))
    assert out.value("scale") == 1.0
    assert np.isnan(LOSS(Z, T, SPANS).value("ce"))
    with pytest.raises(OptionError, match=r"no metric 'kl' here; there are agreement, ce, chunks_used, .*, scale"):
        out.value("kl")
    with pytest.raises(OptionError, match=r"no metric 'agreement' here; there are .*agreement/0, agreement/1, ce,"):
        MultiTeacherLoss([LOSS, LOSS])(Z, [T, T], [SPANS, SPANS]).value("agreement")


def test_of_a_large_cached_teacher_some_positions_are_looked_at() -> None:
    ids = torch.arange(64).expand(1, 8192, 64)
    log_probs = torch.full((1, 8192, 64), -5.0)
    rest = 1 - log_probs.exp().sum(-1)
    assert TopK(ids, log_probs, rest, 64).width == 64
    with pytest.raises(OptionError, match="no id may be twice at a position, but id 0 is"):
        TopK(torch.zeros_like(ids), log_probs, rest, 64)
    with pytest.raises(OptionError, match="must add up to 1"):
        TopK(ids, log_probs, rest / 2, 64)
