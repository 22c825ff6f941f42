"""C-KL's second form: END and the weights of levels, by facts of toy worlds and sums written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_calls import case_of
from random_batches import FEATURES, top_k_of
from slow_chain import ChainKL, chain_values, chunks_before
from slow_divergence import Measure
from slow_kinds import slow_kind
from slow_loss import slow_loss
from slow_parts import Batch, chunks_of
from small_vocabs import make_vocab
from tiny import Tiny, kl
from toy_world import CROSSING, UNCLOSED, WORLDS, ToyWorld

from xtoken_align import align_ids

FIRST_FORM = {"level_weight": "text", "end": False}


def by_tokens(world: ToyWorld, *, never: float = -40.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A student and a teacher that are perfect by tokens; what is impossible for the student has a finite logit."""
    student = world.logits("student", world.by_tokens("student"))
    return student.clamp_min(never).requires_grad_(), world.logits("teacher", world.by_tokens("teacher"))


@pytest.mark.parametrize("known", ["logits", "top k"])
def test_the_first_form_is_a_choice_of_the_second(known: str) -> None:
    for seed in range(len(FEATURES)):
        case = case_of(seed, infinities=0.3 if seed % 5 == 4 and known == "logits" else 0.0)
        teacher = case.teacher_logits if known == "logits" else top_k_of(case, 1 + seed % 3)
        outs = []
        for loss, options in ((slow_loss, {}), (slow_kind, FIRST_FORM)):
            student = case.student_logits.clone().requires_grad_()
            out = loss(case.mapping, student, teacher, case.spans, kind="c-kl", temperature=1 + seed % 2, **options)
            out.loss.backward()
            outs.append((out, student.grad))
        (one, slope), (other, other_slope) = outs
        assert one.chunk_kd.equal(other.chunk_kd)
        assert slope.equal(other_slope)
        assert one.misfits.equal(other.misfits)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"level_weight": "teacher", "divergence": "reverse", "temperature": 2.0},
        {"level_weight": "text", "divergence": "jsd"},
    ],
)
@pytest.mark.parametrize("name", WORLDS)
def test_a_student_that_is_perfect_token_by_token_pays_nothing(name: str, options: dict[str, Any]) -> None:
    world = WORLDS[name](1)
    student, teacher = by_tokens(world)
    out = slow_kind(world.mapping, student, teacher, world.spans, kind="c-kl", **options)
    (slope,) = torch.autograd.grad(out.loss, student)
    assert out.chunk_kd.abs().max() < (1e-7 if options.get("temperature") else 1e-12)
    assert slope.abs().max() < (1e-7 if options.get("temperature") else 1e-12)


@pytest.mark.parametrize("name", WORLDS)
def test_without_end_it_pays_for_what_its_tokens_exclude(name: str) -> None:
    world = WORLDS[name](1)
    student, teacher = by_tokens(world)
    out = slow_kind(world.mapping, student, teacher, world.spans, kind="c-kl", end=False)
    assert out.chunk_kd.max() > 0.1


@pytest.mark.parametrize("name", WORLDS)
def test_masking_one_side_alone_leaves_its_direction_biased(name: str) -> None:
    world = WORLDS[name](1)
    student, teacher = by_tokens(world)

    class OneSided(ChainKL):
        side = 0

        def leaving(self, chunk, before):
            both = super().leaving(chunk, before)
            return tuple(tokens if number == self.side else set() for number, tokens in enumerate(both))

    total = []
    for side in (0, 1):
        kind = OneSided(world.mapping, Measure())
        kind.side = side
        total.append(sum(value.kd.item() for value in values(kind, world, student, teacher)))
    packs = {"the student packs": [1], "the teacher packs": [0]}.get(name, [])
    assert [side for side in (0, 1) if total[side] < 1e-9] == packs


def values(kind, world, student, teacher):
    return chain_values(kind, Batch.of(world.mapping, student, teacher), world.spans)


@pytest.mark.parametrize("name", WORLDS)
def test_text_that_no_side_would_write_changes_no_zero(name: str) -> None:
    # Every text is in the batch once, whatever its probability, so what the losses say of each is seen; here the
    # weights of the chunks are random, too.
    world = WORLDS[name](2)
    student, teacher = by_tokens(world)
    source = torch.Generator().manual_seed(0)
    weight = world.spans.weight * torch.rand(world.spans.weight.shape, generator=source).numpy()
    spans = replace(world.spans, weight=weight.astype("float32"))
    out = slow_kind(world.mapping, student, teacher, spans, kind="c-kl")
    assert abs(out.kd.item()) < 1e-12


def test_only_a_piece_that_ends_a_token_leaves() -> None:
    # The student has 1, 2, 122 and no 12, so after its 1 a 2 may well follow. A mask of all that 1 2 2 goes on with
    # teaches "never 2" there; the strings that a student then never writes make the KL infinite.
    world = UNCLOSED["a student's token has no beginning"](1)

    class Naive(ChainKL):
        def _continuing(self, table, pieces):
            size = len(pieces)
            return {found[size] for found in table.values() if len(found) > size and found[:size] == pieces}

    one, two = 0, 1
    pairs = list(zip(chunks_of(world.spans), chunks_before(world.spans), strict=True))
    after_one = [
        pair for pair in pairs if pair[1] and pair[1].student_tokens == [one] and pair[0].teacher_tokens != [two]
    ]
    assert after_one
    assert world.by_tokens("student")((one,)).exp()[two] > 0.1
    for kind, leaves in ((ChainKL, set()), (Naive, {two})):
        assert all(kind(world.mapping, Measure()).leaving(*pair) == (set(), leaves) for pair in after_one)


def test_nothing_leaves_where_the_text_goes_on_with_it_all_the_same() -> None:
    pair = Tiny(["1", "2", "12", "a"], ["1", "2", "a"])
    rows = [[0.4, 0.3, 0.2, 0.1]] * 3, [[0.5, 0.3, 0.2]] * 3
    student, teacher = (pair.logits(side, one) for side, one in zip(("student", "teacher"), rows, strict=True))
    # The text says 1 2, though the student has 12.
    against = {
        end: slow_kind(pair.mapping, student, teacher, pair.spans([0, 1], [0, 1]), kind="c-kl", end=end)
        for end in (True, False)
    }
    assert against[True].chunk_kd.equal(against[False].chunk_kd)
    # The text says 1 a.
    on = slow_kind(pair.mapping, student, teacher, pair.spans([0, 3], [0, 2]), kind="c-kl")
    assert on.chunk_kd[1].item() == pytest.approx(kl([0.5, 0.0, 0.2], [0.6, 0.3, 0.1]))


def test_end_knows_of_both_sides_tokens() -> None:
    # 1 goes on as 12 for the student, as 1a for the teacher: after it the teacher knows no 2, the student no a.
    pair = Tiny(["1", "2", "a", "12"], ["1", "2", "a", "1a"])
    student, teacher = [[0.4, 0.1, 0.2, 0.3]] * 3, [[0.3, 0.1, 0.4, 0.2]] * 3
    logits = pair.logits("student", student), pair.logits("teacher", teacher)
    out = slow_kind(pair.mapping, *logits, pair.spans([0, 0], [0, 0]), kind="c-kl", level_weight="text")
    levels = out.chunk_kd[0].item() - kl([0.5, 0.1, 0.4], [0.7, 0.1, 0.2])
    # 1 and 1a are one bin, as are 1 and 12; of the student 1, 12 and 2 are left, of the teacher 1, 1a and a.
    assert out.chunk_kd[1].item() == pytest.approx(kl([0.5, 0.0], [0.7, 0.1]) + levels)


def test_a_chunk_that_the_mapping_does_not_write_so_conditions_nothing() -> None:
    pair = Tiny(["1", "2", "12", "122", "a"], ["1", "2", "22", "a"])
    # 12 is followed by 2, but for the teacher, whose text here is 1 2 2, the mapping says 1 22.
    kind = ChainKL(pair.mapping, Measure())
    spans = pair.spans([3, 4], [0, 1, 1, 3])
    assert kind.leaving(chunks_of(spans)[1], chunks_before(spans)[1]) == (set(), set())


def test_the_chunk_before_counts_though_no_label_marks_it() -> None:
    pair = Tiny(["1", "2", "12", "a"], ["1", "2", "a"])
    labelled = torch.tensor([[False, False, True]]).numpy()
    spans = align_ids([[4, 0, 3]], [[3, 0, 2]], student=pair.student, teacher=pair.teacher, student_loss_mask=labelled)
    student, teacher = pair.logits("student", [[0.4, 0.3, 0.2, 0.1]] * 3), pair.logits("teacher", [[0.5, 0.3, 0.2]] * 3)
    out = slow_kind(pair.mapping, student, teacher, spans, kind="c-kl")
    assert out.chunk_kd.tolist() == pytest.approx([kl([0.5, 0.0, 0.2], [0.6, 0.3, 0.1])])


def test_the_begin_of_a_document_follows_nothing() -> None:
    vocab = make_vocab(["1", "2", "12"])
    teacher = make_vocab(["1", "2"], name="teacher")
    for segments, expected in (([[0, 0, 0, 0]], [1, 1, 1]), ([[0, 0, 1, 1]], [1, 1])):
        spans = align_ids(
            [[0, 0, 0, 0]],
            [[0, 0, 0, 0]],
            student=vocab,
            teacher=teacher,
            student_segments=segments,
            teacher_segments=segments,
        )
        assert [before is not None for before in chunks_before(spans)] == [bool(one) for one in expected]


PACKED = Tiny(["1", "2", "12", "121", "a"], ["1", "2", "a"])
PACKED_ROWS = [[0.1, 0.2, 0.3, 0.15, 0.25]] * 2, [[0.2, 0.5, 0.3], [0.3, 0.6, 0.1], [0.2, 0.1, 0.7]]


def weighted(pair: Tiny, student_ids, teacher_ids, rows, level_weight: str) -> float:
    student, teacher = pair.logits("student", rows[0]), pair.logits("teacher", rows[1])
    spans = pair.spans(student_ids, teacher_ids)
    return slow_kind(pair.mapping, student, teacher, spans, kind="c-kl", level_weight=level_weight).kd.item()


def test_levels_count_as_much_as_their_way_is_plausible() -> None:
    one = kl([0.2, 0.5, 0.3], [0.55, 0.2, 0.25])
    two, three = kl([0.6, 0.4], [0.45, 0.1]), kl([0.2, 0.8], [0.15, 0.3])
    # The teacher's best first piece is 2 with 0.5, the text's is 1 with 0.2; after it 2 is the best there is.
    ways = {"text": (1, 1), "teacher": (0.2, 0.2 * 0.6), "plausible": (0.4, 0.4)}
    for name, (second, third) in ways.items():
        found = weighted(PACKED, [2], [0, 1], PACKED_ROWS, name)
        assert found == pytest.approx(one + second * two + third * three), name


def test_where_the_teacher_packs_a_level_counts_as_much_as_its_tokens_that_still_fit() -> None:
    pair = Tiny(["1", "2", "a"], ["1", "2", "12", "121", "a"])
    rows = PACKED_ROWS[1], PACKED_ROWS[0]
    one = kl([0.55, 0.2, 0.25], [0.2, 0.5, 0.3])
    two, three = kl([0.45, 0.1], [0.6, 0.4]), kl([0.15, 0.3], [0.2, 0.8])
    ways = {"text": (1, 1), "teacher": (0.55, 0.45), "plausible": (1, 1)}
    for name, (second, third) in ways.items():
        found = weighted(pair, [0, 1], [2], rows, name)
        assert found == pytest.approx(one + second * two + third * three), name


def test_weights_and_what_leaves_are_constants_for_the_gradient() -> None:
    # A slope through the weights would come from the teacher's rows alone, and those are detached: the student's
    # slope is that of the weighted sum with numbers for weights.
    student = PACKED.logits("student", PACKED_ROWS[0])
    teacher = PACKED.logits("teacher", PACKED_ROWS[1])
    spans = PACKED.spans([2], [0, 1])
    parts = {
        name: slow_kind(PACKED.mapping, student, teacher, spans, kind="c-kl", level_weight=name).kd
        for name in ("text", "plausible")
    }
    first = slow_kind(PACKED.mapping, student, teacher, spans, kind="partition-kl").kd
    slopes = {name: torch.autograd.grad(value, student)[0] for name, value in (parts | {"one": first}).items()}
    possible = student.isfinite() & slopes["text"].isfinite()
    expected = slopes["one"] + 0.4 * (slopes["text"] - slopes["one"])
    torch.testing.assert_close(slopes["plausible"][possible], expected[possible], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_levels_weighted_by_the_teacher_sum_to_the_whole_divergence_on_any_text(seed: int) -> None:
    # With the teacher's weights over all ways, KL_1 + sum over ways of p_T(way) KL(way) is the KL over the student's
    # next tokens; each way is asked once, at a text that goes along it.
    world = WORLDS["the student packs"](seed)
    guess = world.random("student", seed)
    student, teacher = world.logits("student", guess), world.logits("teacher", world.by_text("teacher"))
    truth = world.by_text("student")(())
    possible = truth > -torch.inf
    whole = (truth[possible].exp() * (truth - guess(()))[possible]).sum()
    out = {
        name: slow_kind(world.mapping, student, teacher, world.spans, kind="c-kl", level_weight=name).chunk_kd
        for name in ("teacher",)
    }
    first = slow_kind(world.mapping, student, teacher, world.spans, kind="partition-kl").chunk_kd
    # The levels of a packed token include those of its beginnings, so the first chunks of texts are taken by token.
    seen, total = {}, None
    chunks = chunks_of(world.spans)
    rows = world.row_of_chunk
    for number, chunk in enumerate(chunks):
        if number and rows[number] == rows[number - 1]:
            continue
        total = first[number] if total is None else total
        seen[tuple(chunk.teacher_tokens)] = (out["teacher"] - first)[number]
    # The value of `12` has the levels after 1 and after 1 2; of `1` those after 1 alone.
    deepest = {way: value - seen.get(way[:-1], 0.0) for way, value in seen.items()}
    assert float(total + sum(deepest.values())) == pytest.approx(whole.item(), abs=1e-9)


@pytest.mark.parametrize("name", [*CROSSING, *UNCLOSED])
def test_crossing_and_unclosed_tokens_cost_a_perfect_student(name: str) -> None:
    world = {**CROSSING, **UNCLOSED}[name](1)
    student, teacher = by_tokens(world)
    out = slow_kind(world.mapping, student, teacher, world.spans, kind="c-kl")
    assert out.chunk_kd.isfinite().all()
    assert world.expectation(out.chunk_kd) > 1e-3
