"""Strict, BPM, ESCD and SimCT as fast kinds: the papers' worked numbers, every option, what they read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loss_calls import Called, assert_same, case_of, fast, possible_labels
from random_batches import FEATURES, Case, top_k_of
from slow_kinds import ESCD, Measure, by_surface, content, slow_kind
from slow_kinds import Prefixes as SlowPrefixes
from small_vocabs import make_vocab
from tiny import Tiny

from xtoken_align import Mapping, Spans, align_ids, build, load
from xtoken_align.errors import OptionError
from xtoken_align.losses import XTokenLoss
from xtoken_align.losses.prefixes import Prefixes
from xtoken_align.vocab.kinds import Kind

NEW = ("strict", "bpm", "escd", "simct")
DIVERGENCES = ("forward", "reverse", "jsd")

BREAD = Tiny(["Br", "Cat", "ead", "eads", "eak", "x"], ["Bread", "Breads", "Break", "Cat", "Dog"])
"""The pair of arXiv:2609.34738 (B.5). The teacher's Dog and the student's x make a rest on both sides."""
BREAD_ROWS = (
    [[0.5, 0.2, 0, 0, 0, 0.3], [0, 0, 0.2, 0.3, 0.1, 0.4], [0.1, 0.1, 0.1, 0.1, 0.1, 0.5]],
    [[0.4, 0.2, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]],
)


BREAD_LINKS = int(np.diff(BREAD.mapping.matrix.indptr).max())


def bread(**options: Any) -> float:
    """The text `Bread`: Br ead for the student, one token for the teacher."""
    student, teacher = BREAD.logits("student", BREAD_ROWS[0]), BREAD.logits("teacher", BREAD_ROWS[1])
    return float(XTokenLoss(BREAD.mapping, **options)(student, teacher, BREAD.spans([0, 2], [0])).kd)


def test_the_worked_numbers_of_escds_paper() -> None:
    root, inside, child = 0.4597, 0.6895, 1.1067
    assert bread(kind="partition-kl") == pytest.approx(root, abs=1e-4)
    assert bread(kind="bpm", divergence="forward") == pytest.approx(root + inside, abs=1e-4)
    assert bread(kind="escd") == pytest.approx(root + child, abs=1e-4)
    assert bread(kind="simct", units="path") == pytest.approx(0.1062, abs=1e-4)


def by_twin(case: Case, teacher: Any, **options: Any) -> Called:
    leaf = case.student_logits.double().requires_grad_()
    out = slow_kind(case.mapping, leaf, teacher, case.spans, labels=possible_labels(case), **options)
    return Called(out.loss.detach(), out.kd.detach(), out.ce.detach(), torch.autograd.grad(out.loss, leaf))


def options_at(seed: int, kind: str) -> dict[str, Any]:
    """Another mixture of options for every seed."""
    options: dict[str, Any] = {"kind": kind, "divergence": DIVERGENCES[seed % 3], "temperature": 1.0 + (seed % 3) / 2}
    if options["divergence"] == "jsd":
        options["beta"] = (0.5, 0.3)[seed % 2]
    if seed % 4 == 1:
        options["student_top_k"] = 3
    if kind == "simct" and seed % 2:
        options["units"] = "path"
    if kind in {"partition-kl", "p-kl", "h-kl", "gold"} and seed % 2:
        options["merge"] = "mean"
    return options | {"stop_bridge": seed % 2 == 0, "skip_white_space": seed % 3 == 2}


@pytest.mark.parametrize("kind", [*NEW, "partition-kl", "c-kl", "p-kl", "h-kl", "gold"])
def test_options_are_the_slow_ones(kind: str) -> None:
    found = 0
    seeds = range(2 * len(FEATURES)) if kind in NEW else range(len(FEATURES))
    for seed in seeds:
        options, infinities = options_at(seed, kind), 0.3 if seed % 5 == 4 else 0.0
        case = case_of(seed, infinities=infinities)
        teacher = case.teacher_logits
        if not infinities and seed % 3 == 0 and kind not in {"h-kl", "gold"}:
            teacher = top_k_of(case, (1, 3, 1000)[seed // 3 % 3])
        truth = by_twin(case, teacher, **options)
        made = fast(case, case.student_logits.double(), teacher, labels=possible_labels(case), **options)
        assert_same(made, truth, rtol=1e-7 if kind == "p-kl" else 1e-9, atol=1e-10)
        found += bool(truth.kd > 1e-3)
    assert found > len(seeds) // 2


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("kind", ["strict", "bpm", "simct"])
def test_equal_sides_have_loss_and_gradient_zero(kind: str, divergence: str) -> None:
    vocab = make_vocab(
        ["a", "b", "ab", (b"", Kind.HOLE), "ba", (b"<s>", Kind.SPECIAL), (b"<unused1>", Kind.RESERVED)],
        roles={"bos": [5]},
    )
    spans = align_ids([[5, 0, 2, 4]], [[5, 0, 2, 4]], student=vocab, teacher=vocab)
    logits = torch.randn(1, 4, len(vocab), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    student = logits.clone().requires_grad_()
    loss = XTokenLoss(build(student=vocab, teacher=vocab), kind, divergence=divergence, temperature=2.0)
    out = loss(student, logits, spans)
    out.loss.backward()
    assert abs(float(out.kd)) < 1e-12
    assert float(student.grad.abs().max()) < 1e-12


def test_strict_reads_no_row_of_another_chunk() -> None:
    pair = Tiny(["a", "b", "12"], ["a", "b", "1", "2"])
    student = pair.logits("student", [[0.5, 0.2, 0.3], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6]])
    teacher = pair.logits("teacher", [[0.4, 0.4, 0.1, 0.1], [0.3, 0.3, 0.2, 0.2], [0.1, 0.2, 0.3, 0.4], [0.25] * 4])
    loss, spans = XTokenLoss(pair.mapping, "strict"), pair.spans([0, 2], [0, 2, 3])
    expected = loss(student, teacher, spans)
    spoiled = [student.detach().clone(), teacher.detach().clone()]
    for side in spoiled:
        side[:, 1:] = torch.nan
    found = loss(spoiled[0].requires_grad_(), spoiled[1], spans)
    found.loss.backward()
    torch.testing.assert_close(found.kd, expected.kd)
    assert float(found.metrics["misfits"][0]) == 1
    assert not spoiled[0].grad[:, 1:].any()


def test_white_space_has_no_value_and_counts_in_the_divisor() -> None:
    pair = Tiny(["a", " ", "\n"], ["a", " ", "\n"])
    rows = [[0.5, 0.2, 0.3], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6], [0.4, 0.3, 0.3]]
    other = [[0.2, 0.5, 0.3]] * 4
    student, teacher, spans = (
        pair.logits("student", rows),
        pair.logits("teacher", other),
        pair.spans([0, 1, 2], [0, 1, 2]),
    )
    for kind in ("partition-kl", "c-kl", "strict", "bpm", "gold"):
        whole, first = (
            XTokenLoss(pair.mapping, kind, skip_white_space=skip)(student, teacher, spans) for skip in (False, True)
        )
        letter = XTokenLoss(pair.mapping, kind)(student[:, :2], teacher[:, :2], pair.spans([0], [0]))
        assert 0 < float(first.kd) < float(whole.kd)
        assert float(first.kd) == pytest.approx(float(letter.kd) / 3)
        assert float(first.metrics["misfits"][0]) == 0


def test_stops_of_several_roles_are_one_outcome() -> None:
    sides = [
        make_vocab(
            ["a", (b"<s>", Kind.SPECIAL), (b"<end>", Kind.SPECIAL), (b"<turn>", Kind.SPECIAL)],
            name=name,
            roles={"bos": [1], "eos": [2], "eot": [3]},
        )
        for name in ("student", "teacher")
    ]
    mapping = build(student=sides[0], teacher=sides[1])
    spans = align_ids([[1, 0]], [[1, 0]], student=sides[0], teacher=sides[1])
    # The student ends by <end>, the teacher by <turn>.
    student = torch.tensor([[[0.5, 0.0, 0.5, 0.0], [0.25] * 4]]).double().log().requires_grad_()
    teacher = torch.tensor([[[0.5, 0.0, 0.0, 0.5], [0.25] * 4]]).double().log()
    for kind in ("partition-kl", "c-kl", "p-kl", "gold", "h-kl", *NEW):
        bridged = XTokenLoss(mapping, kind, divergence="jsd", stop_bridge=True)(student, teacher, spans)
        assert float(bridged.kd) == pytest.approx(0, abs=1e-12), kind
        apart = XTokenLoss(mapping, kind, divergence="jsd")(student, teacher, spans)
        # BPM and ESCD have all specials in the rest, SimCT drops what either side cannot give.
        assert (float(apart.kd) > 0.1) == (kind not in {"bpm", "escd", "simct"}), kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "uld", "stop_bridge": True}, "stop_bridge says how"),
        ({"kind": "alm", "skip_white_space": True}, "skip_white_space is no option of alm"),
        ({"kind": "bpm", "units": "path"}, "units belongs to simct"),
        ({"kind": "simct", "units": "tree"}, "units must be one of text, path"),
        ({"kind": "bpm", "merge": "mean"}, "merge must be 'first'"),
        ({"kind": "strict", "top_k": 8}, "top_k belongs to p-kl"),
        ({"kind": "p-kl", "merge": "mean", "learn_w": True, "stop_bridge": True}, "stop_bridge exchanges some"),
    ],
)
def test_options_without_use_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        XTokenLoss(BREAD.mapping, **options)


def test_the_papers_preset_is_what_it_names() -> None:
    case = case_of(2)
    named = {"kind": "p-kl", "merge": "mean", "top_k": 8192, "scale": "dynamic", "learn_w": True}
    loss, spelled = XTokenLoss(case.mapping, preset="paper"), XTokenLoss(case.mapping, **named)
    assert {name: getattr(loss.options, name) for name in named} == named
    made, expected = (one(case.student_logits, case.teacher_logits, case.spans) for one in (loss, spelled))
    torch.testing.assert_close(made.loss, expected.loss)
    assert loss.links is not None
    # Where every row has one link there is nothing to learn.
    assert XTokenLoss(BREAD.mapping, preset="paper", ce_weight=0.5).options.learn_w == (BREAD_LINKS > 1)
    for contradiction in ({"kind": "c-kl"}, {"top_k": 4}, {"temperature": 2.0}, {"divergence": "reverse"}):
        with pytest.raises(OptionError, match="preset='paper' has"):
            XTokenLoss(case.mapping, preset="paper", **contradiction)
    with pytest.raises(OptionError, match="preset must be one of paper"):
        XTokenLoss(case.mapping, preset="book")


@cache
def real() -> Mapping:
    """Llama-3 learns from Qwen3: the mapping that ships, so that no tokenizer is needed."""
    (file,) = (Path(__file__).parents[2] / "mappings" / "llama-3--qwen3").glob("*.npz")
    return load(file)


def test_phi_of_real_tokens_is_found_by_trying() -> None:
    mapping, prefixes = real(), Prefixes.of(real())
    slow = SlowPrefixes(by_surface(content(mapping.student)))
    surfaces, offsets = mapping.teacher.surfaces, prefixes.teacher.tree.pieces.offsets
    node_of = {
        bytes(mapping.student.surfaces[token]): node for token, node in enumerate(prefixes.student.node.tolist())
    }
    tokens = [token for token in range(0, len(surfaces), 61) if prefixes.teacher.node[token] >= 0]
    assert len(tokens) > 2000
    for token in tokens:
        whole = bytes(surfaces[token])
        for begin in range(len(whole)):
            found = slow(whole[begin:])
            expected = -1 if found is None else node_of[found]
            assert prefixes.phi_inside[offsets[token] + begin] == expected, (whole, begin)
        assert prefixes.phi[token] == prefixes.phi_inside[offsets[token]]


def test_groups_of_real_tokens_are_the_slow_ones() -> None:
    mapping, groups = real(), Prefixes.of(real()).groups
    surfaces = mapping.teacher.surfaces
    found = {
        bytes(surfaces[int(groups.token[begin])]): sorted(groups.token[begin:end].tolist())
        for begin, end in zip(groups.offsets[:-1].tolist(), groups.offsets[1:].tolist(), strict=True)
    }
    expected = {name: sorted(tokens) for name, tokens in ESCD(mapping, Measure()).groups.items()}
    assert len(expected) > 25_000
    assert found == expected


def test_bpm_on_real_tokens_is_that_of_counted_masses() -> None:
    mapping = real()
    # A word that the teacher has whole and the student writes in two pieces.
    student_of, teacher_of = (
        {bytes(side.surfaces[token]): token for token in reversed(range(len(side.kinds))) if side.kinds[token] < 2}
        for side in (mapping.student, mapping.teacher)
    )
    slow = SlowPrefixes(by_surface(content(mapping.student)))
    written = next(
        (ours, theirs)
        for theirs in teacher_of
        if theirs.isascii() and len(theirs) > 8 and theirs not in student_of
        for ours in [slow(theirs)]
        if ours and theirs[len(ours) :] in student_of
    )
    first, rest = written[0], written[1][len(written[0]) :]
    student_ids, teacher_ids = [0, student_of[first], student_of[rest]], [0, teacher_of[written[1]]]
    spans = Spans(
        student=np.array([[-1, 0, 0]]),
        teacher=np.array([[-1, 0]]),
        count=np.array([1]),
        weight=np.ones((1, 1), dtype=np.float32),
        student_ids=np.array([student_ids]),
        teacher_ids=np.array([teacher_ids]),
        student_segments=np.zeros((1, 3), dtype=np.int32),
        teacher_segments=np.zeros((1, 2), dtype=np.int32),
        student_loss_mask=np.ones((1, 3), dtype=np.bool_),
        teacher_loss_mask=np.ones((1, 2), dtype=np.bool_),
    )
    source = torch.Generator().manual_seed(3)
    logits = [
        3 * torch.randn(1, len(ids), width, generator=source, dtype=torch.float64)
        for ids, width in ((student_ids, mapping.matrix.shape[0]), (teacher_ids, mapping.matrix.shape[1]))
    ]
    made = XTokenLoss(mapping, "bpm", divergence="forward")(*logits, spans)
    live = [side.kinds < Kind.PADDING for side in (mapping.student, mapping.teacher)]
    q, p = (np.where(mask, np.exp(side[0].numpy()), 0) for side, mask in zip(logits, live, strict=True))
    theirs = content(mapping.teacher)
    value = 0.0
    for row, begun in ((0, b""), (1, first)):
        masses: dict[bytes | None, float] = {None: 0.0}
        for token in np.flatnonzero(live[1]).tolist():
            surface = theirs.get(token, b"")
            if not begun or surface.startswith(begun):
                name = slow(surface[len(begun) :])
                masses[name] = masses.get(name, 0.0) + p[0, token]
        names = [name for name in masses if name is not None]
        student = np.array([q[row, slow.tokens[name]].sum() for name in names])
        student = np.append(student, q[row].sum() - student.sum()) / q[row].sum()
        teacher = np.array([*(masses[name] for name in names), masses[None]])
        teacher = teacher / teacher.sum()
        some = teacher > 0
        value += float((teacher[some] * np.log(teacher[some] / student[some])).sum())
    assert len(spans.predictions()) == 1
    assert float(made.kd) == pytest.approx(value, rel=1e-9)
