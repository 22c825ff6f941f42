"""On a GPU the losses are what they are on the processor: values, gradients, memory, and no needless waiting."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu import DEVICE, needs_gpu, on_device
from loss_calls import BY, KINDS, Called, assert_same, called, case_of, fast, name_of, options_of, possible_labels, slow
from random_batches import FEATURES, Case, top_k_of
from test_compile import FUNCTIONS, LINKS, LIVE, PAIRS, STUDENT_BIN, TEACHER_BIN, rows
from test_fast_against_slow import on_a_grid
from test_fused_loss import hidden, inputs_of
from test_invariance import taken
from test_learned_w import learning
from tiny_models import case as tiny_case
from tiny_models import inputs, make_model, plain

from xtoken_align import Mapping, Vocab, align_texts
from xtoken_align.losses import Hidden, MultiTeacherLoss, XTokenLoss, fuse_head, h_kl, p_kl, partition_kl, uld

pytestmark = [
    needs_gpu,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.parametrize("options", options_of(*KINDS), ids=name_of)
def test_values_and_gradients_are_the_slow_ones(options: dict[str, Any]) -> None:
    for seed in range(len(FEATURES)):
        case = case_of(seed, dtype=torch.float32, infinities=0.3 if seed % 5 == 4 else 0.0)
        given = {**options, "temperature": 1.0 + (seed % 3) / 2}
        truth = slow(case, case.student_logits, case.teacher_logits, labels=possible_labels(case), **given)
        sides, labels = (case.student_logits, case.teacher_logits), on_device(possible_labels(case))
        exact = fast(case, *(on_device(side.double()) for side in sides), labels=labels, **given)
        weighted = options["kind"] == "p-kl" and options["merge"] == "mean"
        assert_same(exact, truth, rtol=1e-7 if weighted else 1e-9, atol=1e-10)
        single = fast(case, *(on_device(side) for side in sides), labels=labels, **given)
        assert_same(single, truth, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["partition-kl", "c-kl", "p-kl"])
@pytest.mark.parametrize("count", [1, 3, 1000])
def test_teachers_of_which_the_best_tokens_are_known_are_the_slow_ones(kind: str, count: int) -> None:
    for seed in range(len(FEATURES)):
        case = case_of(seed)
        teacher = top_k_of(case, count)
        truth = slow(case, case.student_logits, teacher, kind=kind, temperature=2.0)
        made = fast(case, on_device(case.student_logits), on_device(teacher), kind=kind, temperature=2.0)
        assert_same(made, truth, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_rounded_once(kind: str, dtype: torch.dtype) -> None:
    for seed, options in enumerate(options_of(kind)):
        case = case_of(seed + 2, dtype=torch.float32)
        student, teacher = on_a_grid(case)
        truth = fast(case, student.double(), teacher.double(), **options)
        made = fast(case, on_device(student.to(dtype)), on_device(teacher.to(dtype)), **options)
        torch.testing.assert_close(made.loss.double(), truth.loss, rtol=1e-5, atol=2e-6)
        epsilon = torch.finfo(dtype).eps
        torch.testing.assert_close(made.gradient.double(), truth.gradient, rtol=2 * epsilon, atol=epsilon / 50)


@pytest.mark.parametrize("options", [*BY, *(one for kind in KINDS for one in options_of(kind)[:2])], ids=name_of)
def test_the_fused_loss_is_the_processors(options: dict[str, Any]) -> None:
    for seed, head in enumerate(({"scale": 0.7, "softcap": 3.0}, {})):
        case = case_of(seed + 4)
        found = []
        for place in (lambda made: made, on_device):
            student, teacher = place(hidden(case, "student", **head)), place(hidden(case, "teacher"))
            loss = XTokenLoss(case.mapping, temperature=2.0, **options).to(student.states.device)
            found.append(called(loss(student, teacher, case.spans, labels=place(case.labels)), inputs_of(student)))
        assert_same(found[1], found[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["partition-kl", "p-kl", "c-kl"])
def test_fused_half_precision_is_as_near_as_the_plain_form(kind: str) -> None:
    errors = torch.zeros(2, dtype=torch.float64)
    for seed in (2, 4, 6, 7):
        case = case_of(seed)
        student, teacher = (on_device(hidden(case, side, torch.bfloat16)) for side in ("student", "teacher"))
        loss = XTokenLoss(case.mapping, kind).to(DEVICE)
        exact = Hidden(*(part.detach().double().requires_grad_() for part in inputs_of(student)))
        target = (teacher.states @ teacher.weight.T + teacher.bias).detach()
        labels = on_device(case.labels)

        def logits(side: Hidden) -> torch.Tensor:
            return side.states @ side.weight.T + side.bias

        truth = called(loss(logits(exact), target.double(), case.spans, labels=labels), inputs_of(exact))
        whole = called(loss(logits(student), target, case.spans, labels=labels), inputs_of(student))
        parts = called(loss(student, target, case.spans, labels=labels), inputs_of(student))
        for number, one in enumerate((parts, whole)):
            for made, right in zip((one.loss, *one.gradients), (truth.loss, *truth.gradients), strict=True):
                errors[number] += ((made.double() - right).norm() / right.norm()) ** 2
    assert errors[0].sqrt() <= 1.25 * errors[1].sqrt() + 1e-6, errors


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_one_graph_with_the_same_value_and_gradient(name: str) -> None:
    place = [one.to(DEVICE) for one in (STUDENT_BIN, TEACHER_BIN, *LINKS, PAIRS, LIVE)]
    functions = {
        "partition_kl": lambda z, t: partition_kl(z, t, place[0], place[1], temperature=2.0),
        "p_kl": lambda z, t: p_kl(z, t, *place[2:5], top_k=3, weight=z.detach()[:, 0].abs()),
        "h_kl": lambda z, t: h_kl(z, t, place[5], student_live=place[6], reduction="none").sum(),
        "reverse": lambda z, t: partition_kl(z, t, place[0], place[1], divergence="reverse", student_top_k=3),
        "jsd": lambda z, t: p_kl(z, t, *place[2:5], top_k=3, divergence="jsd", beta=0.3, temperature=2.0),
        "uld": uld,
    }
    torch._dynamo.reset()
    z, t = rows(40)
    found = []
    for function, move in (
        (FUNCTIONS[name], lambda made: made),
        (functions[name], on_device),
        (torch.compile(functions[name], fullgraph=True), on_device),
    ):
        leaf = move(z.clone()).requires_grad_()
        value = function(2 * leaf, move(t)) * 3
        value.backward()
        found.append((value.detach().cpu(), leaf.grad.cpu()))
    torch._dynamo.reset()
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[2], found[1])


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Gemma2ForCausalLM", "CohereForCausalLM"])
def test_a_models_own_head_computes_the_loss(name: str) -> None:
    expected = plain(make_model(name))
    model, made = make_model(name).to(DEVICE), tiny_case()
    loss = XTokenLoss(made.mapping, kind="c-kl", kd_weight=0.7, ce_weight=0.4).to(DEVICE)
    head = fuse_head(model)
    teacher, labels = on_device(made.teacher_logits), on_device(made.labels)
    with head.computing(lambda hidden: loss(hidden, teacher, made.spans, labels=labels)):
        model(**{key: on_device(value) for key, value in inputs().items()})
    head.output.loss.backward()
    gradients = {key: one.grad.cpu() for key, one in model.named_parameters() if one.grad is not None}
    assert float(head.output.loss.detach()) == pytest.approx(float(expected[0]), rel=1e-4)
    assert gradients.keys() == expected[1].keys()
    for part, gradient in expected[1].items():
        assert (gradients[part] - gradient).abs().max() <= 1e-3 * gradient.abs().max(), part


def test_learnt_weights_move_and_learn() -> None:
    case = case_of(4)
    found = []
    for device in (torch.device("cpu"), DEVICE):
        loss = learning(case).to(device)
        out = loss(case.student_logits.to(device), case.teacher_logits.to(device), case.spans)
        out.loss.backward()
        found.append([one.grad.cpu() for one in loss.parameters()])
    assert found[0][0].abs().max() > 0
    torch.testing.assert_close(found[1], found[0])


def test_several_teachers_and_the_dynamic_scale() -> None:
    case = case_of(4)
    found = []
    for device in (torch.device("cpu"), DEVICE):
        options: list[dict[str, Any]] = [{"kind": "c-kl", "scale": "dynamic"}, {"kind": "p-kl", "merge": "mean"}]
        loss = MultiTeacherLoss([XTokenLoss(case.mapping, **one) for one in options]).to(device)
        leaf = case.student_logits.to(device).requires_grad_()
        for _ in range(2):
            out = loss(leaf, [case.teacher_logits.to(device)] * 2, [case.spans] * 2, labels=case.labels.to(device))
            loss.step_scale()
        found.append(called(out, [leaf]))
    assert_same(found[1], found[0], rtol=1e-9, atol=1e-10)


def test_spans_move_with_their_batch() -> None:
    case = case_of(4)
    truth = fast(case, on_device(case.student_logits), on_device(case.teacher_logits), kind="c-kl")
    spans = case.spans.torch()
    moved = (spans.pin_memory() if DEVICE.type == "cuda" else spans).to(DEVICE, non_blocking=True)
    assert moved.student.device.type == DEVICE.type
    loss = XTokenLoss(case.mapping, "c-kl").to(DEVICE)
    leaf = on_device(case.student_logits).requires_grad_()
    assert_same(called(loss(leaf, on_device(case.teacher_logits), moved), [leaf]), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [one for kind in KINDS for one in options_of(kind)[:1]], ids=name_of)
def test_logits_without_bounds_stay_finite(options: dict[str, Any]) -> None:
    for seed in range(len(FEATURES)):
        case = case_of(seed, dtype=torch.float32, scale=1e4)
        made = fast(case, on_device(case.student_logits), on_device(case.teacher_logits), **options)
        assert torch.isfinite(made.loss)
        assert torch.isfinite(made.gradient).all()


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the processor does not wait for itself")
def test_the_processor_does_not_wait_for_every_row(llama_qwen: Mapping) -> None:
    bins = [torch.from_numpy(part).long().to(DEVICE) for part in llama_qwen.bins()]
    waits = []
    for number in (16, 256):
        student, teacher = (torch.randn(number, width, device=DEVICE) for width in llama_qwen.matrix.shape)
        student.requires_grad_()
        partition_kl(student, teacher, *bins).backward()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                partition_kl(student, teacher, *bins).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits.append([f"{one.filename}:{one.lineno}" for one in seen if "synchroniz" in str(one.message)])
    assert len(waits[0]) == len(waits[1]), waits


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the processor does not wait for itself")
@pytest.mark.parametrize("kind", ["partition-kl", "c-kl", "p-kl", "strict"])
def test_the_processor_never_waits_for_a_loss(kind: str) -> None:
    case = case_of(3, dtype=torch.float32)
    loss = XTokenLoss(case.mapping, kind).to(DEVICE)
    student, teacher = on_device(case.student_logits).requires_grad_(), on_device(case.teacher_logits)
    # The first call compiles and tries the kernels.
    loss(student, teacher, case.spans, labels=case.labels).loss.backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(student, teacher, case.spans, labels=case.labels).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(student.grad).all()


@pytest.mark.skipif(DEVICE.type != "cuda", reason="a processor has no graphs")
@pytest.mark.parametrize("divergence", ["forward", "jsd"])
def test_a_function_can_be_captured(divergence: str) -> None:
    bins = STUDENT_BIN.to(DEVICE), TEACHER_BIN.to(DEVICE)
    student, teacher = (on_device(side) for side in rows(5))
    student.requires_grad_()

    def step() -> torch.Tensor:
        student.grad = None
        value = partition_kl(2 * student, teacher, *bins, divergence=divergence)
        value.backward()
        return value.detach()

    # Before a capture tables are made and kernels compiled, on a stream of their own as PyTorch asks.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step()
    captured = student.grad
    assert captured is not None
    for seed in (3, 4):
        fresh = torch.randn(*student.shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        with torch.no_grad():
            student.copy_(fresh)
        graph.replay()
        found = value.clone(), captured.clone()
        leaf = fresh.clone().requires_grad_()
        truth = partition_kl(2 * leaf, teacher, *bins, divergence=divergence)
        truth.backward()
        torch.testing.assert_close(found, (truth.detach(), leaf.grad))


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the processor launches nothing")
@pytest.mark.parametrize("kind", ["partition-kl", "p-kl", "strict"])
def test_a_loss_takes_at_most_twelve_launches(kind: str) -> None:
    case = case_of(3, dtype=torch.float32)
    loss = XTokenLoss(case.mapping, kind).to(DEVICE)
    student, teacher = on_device(case.student_logits).requires_grad_(), on_device(case.teacher_logits)
    loss(student, teacher, case.spans, labels=case.labels).loss.backward()
    student.grad = None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        loss(student, teacher, case.spans, labels=case.labels).loss.backward()
        torch.cuda.synchronize()
    started = [event.name for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    # A gradient of logits is handed on to the model; as that of a leaf it may be copied once.
    assert len(started) <= 12, started


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the memory is the device's")
@pytest.mark.parametrize("kind", ["partition-kl", "p-kl", "c-kl"])
def test_hidden_states_take_the_memory_of_a_block(kind: str, llama_qwen: Mapping, real: Callable[[str], Vocab]) -> None:
    text = " ".join(f"{number} bottles of beer" for number in range(700))
    spans = align_texts([text], student=real("llama-3"), teacher=real("qwen3"))
    torch.manual_seed(0)
    sides = []
    for side, width in zip((spans.student, spans.teacher), llama_qwen.matrix.shape, strict=True):
        states, head = torch.randn(1, side.shape[1], 64), torch.randn(width, 64) / 8
        sides.append(Hidden(*(on_device(part.bfloat16()) for part in (states, head))))
    sides[0].states.requires_grad_()
    loss = XTokenLoss(llama_qwen, kind).to(DEVICE)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss(*sides, spans).loss.backward()
    lengths = spans.student.shape[1], spans.teacher.shape[1]
    whole = sum(4 * length * width for length, width in zip(lengths, llama_qwen.matrix.shape, strict=True))
    assert torch.cuda.max_memory_allocated() - before < whole / 3
    gradient = sides[0].states.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


def test_logits_whose_rows_do_not_lie_together_are_read_aright() -> None:
    case: Case = case_of(10, dtype=torch.float32)
    loss = XTokenLoss(case.mapping, "partition-kl").to(DEVICE)
    sides = on_device(case.student_logits[:1]), on_device(case.teacher_logits[:1])
    spans = taken(case.spans, slice(0, 1))
    found = []
    for student, teacher in (sides, [side.transpose(1, 2).contiguous().transpose(1, 2) for side in sides]):
        leaf = student.detach().requires_grad_()
        found.append(called(loss(leaf, teacher, spans), [leaf]))
    assert_same(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_two_runs_differ_by_rounding_alone() -> None:
    case: Case = case_of(10, dtype=torch.float32)
    sides = on_device(case.student_logits), on_device(case.teacher_logits)
    for kind in KINDS:
        one, other = (fast(case, *sides, kind=kind) for _ in range(2))
        assert isinstance(one, Called)
        assert_same(one, other, rtol=1e-6, atol=1e-7)
