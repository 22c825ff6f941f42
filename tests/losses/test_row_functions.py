"""The functions on rows (N, V): the plain lines that they equal, finite differences, weights, reductions, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own name for it
from loss_calls import case_of

from xtoken_align.errors import OptionError
from xtoken_align.losses import XTokenLoss, alm, functional, gold, h_kl, p_kl, partition_kl, uld
from xtoken_align.losses.divergence import DIVERGENCES
from xtoken_align.losses.tables import outcomes_of_bins

STUDENT_BIN = torch.tensor([0, 1, 1, 2, -1, 3, 0, -2, 7])
TEACHER_BIN = torch.tensor([2, 0, 1, 1, -1, 5, 3])
LINKS = torch.tensor([0, 1, 1, 2, 5]), torch.tensor([0, 1, 2, 2, 4]), torch.tensor([1.0, 0.75, 0.25, 1.0, 1.0])
TARGET = torch.tensor([-1, -1, -1, 1, -1, -1, -2])
PAIRS = torch.tensor([[0, 1], [3, 0], [8, 6]])

Loss = Callable[..., torch.Tensor]

FUNCTIONS: dict[str, Loss] = {
    "partition_kl": lambda z, t, **options: partition_kl(z, t, STUDENT_BIN, TEACHER_BIN, **options),
    "p_kl": lambda z, t, **options: p_kl(z, t, *LINKS, target=TARGET, **options),
    "p_kl of the best": lambda z, t, **options: p_kl(z, t, *LINKS, target=TARGET, top_k=2, **options),
    "h_kl": lambda z, t, **options: h_kl(z, t, PAIRS, **options),
    "h_kl as in the paper": lambda z, t, **options: h_kl(z, t, PAIRS, normalize="none", uncommon_top_k=3, **options),
    "gold": lambda z, t, **options: gold(z, t, PAIRS, **options),
    "partition_kl reversed": lambda z, t, **options: partition_kl(
        z, t, STUDENT_BIN, TEACHER_BIN, divergence="reverse", student_top_k=3, **options
    ),
    "p_kl by jsd": lambda z, t, **options: p_kl(
        z, t, *LINKS, target=TARGET, top_k=2, divergence="jsd", beta=0.3, **options
    ),
    "uld": uld,
}

each = pytest.mark.parametrize("loss", FUNCTIONS.values(), ids=FUNCTIONS)


def rows(count: int = 5, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(count)
    draw = [2 * torch.randn(count, width, generator=source, dtype=torch.float64) for width in (9, 7)]
    return draw[0].to(dtype).requires_grad_(), draw[1].to(dtype)


def plain_partition_kl(z: torch.Tensor, t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Softmax in float32 or better, the sums in `dtype`."""
    sides = []
    for logits, bins in ((z, STUDENT_BIN), (t, TEACHER_BIN)):
        number = torch.where(bins == -2, 5, torch.where((bins < 0) | (bins > 3), 4, bins))
        masked = logits.masked_fill(bins == -2, -torch.inf)
        probability = masked.softmax(1, dtype=max(dtype, torch.float32, key=lambda one: one.itemsize)).to(dtype)
        sides.append(probability.new_zeros(len(logits), 6).index_add(1, number, probability)[:, :5])
    return F.kl_div(sides[0].log(), sides[1], reduction="none").sum(1)


def plain_p_kl(z: torch.Tensor, t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    wide = max(dtype, torch.float32, key=lambda one: one.itemsize)
    matrix = torch.zeros(9, 7, dtype=dtype).index_put((LINKS[0], LINKS[1]), LINKS[2].to(dtype))
    linked = torch.isin(torch.arange(9), LINKS[0])
    q = z.masked_fill(~linked, -torch.inf).softmax(1, dtype=wide).to(dtype) @ matrix
    p = t[:, :6].softmax(1, dtype=wide).to(dtype)
    p = torch.stack([p[:, 0], p[:, 1] + p[:, 3], p[:, 2], p[:, 4]], 1)
    kept = p.sum(1, keepdim=True)
    return F.kl_div(q[:, [0, 1, 2, 4]].log(), p / kept, reduction="none").sum(1) * kept.squeeze(1)


def plain_uld(z: torch.Tensor, t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    wide = max(dtype, torch.float32, key=lambda one: one.itemsize)
    q, p = (side.softmax(1, dtype=wide).to(dtype) for side in (z, t))
    return (q.sort(-1, descending=True)[0] - F.pad(p, (0, 2)).sort(-1, descending=True)[0]).abs().sum(-1)


def plain_h_kl(z: torch.Tensor, t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    wide = max(dtype, torch.float32, key=lambda one: one.itemsize)
    q, p = (side.softmax(1, dtype=wide).to(dtype) for side in (z, t))
    sides, rests = [], []
    for side, ids in ((q, PAIRS[:, 0]), (p, PAIRS[:, 1])):
        other = side[:, ~torch.isin(torch.arange(side.shape[1]), ids)]
        sides.append(torch.cat([side[:, ids], other.sum(1, keepdim=True)], 1))
        rests.append(other.sort(-1, descending=True)[0][:, :4])
    return F.kl_div(sides[0].log(), sides[1], reduction="none").sum(1) + (rests[0] - rests[1]).abs().sum(1)


PLAIN = {
    "partition_kl": plain_partition_kl,
    "p_kl": plain_p_kl,
    "h_kl": plain_h_kl,
    "gold": plain_h_kl,
    "uld": plain_uld,
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_function_is_its_plain_line(name: str) -> None:
    # 40 rows are two blocks.
    z, t = rows(40)
    made, truth = FUNCTIONS[name](z, t, reduction="none"), PLAIN[name](z, t, torch.float64)
    torch.testing.assert_close(made, truth, rtol=1e-7, atol=1e-12)
    slopes = [torch.autograd.grad((one * torch.linspace(0, 1, 40)).sum(), z)[0] for one in (made, truth)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", PLAIN)
def test_in_bfloat16_a_function_is_nearer_to_the_truth_than_its_plain_line(name: str) -> None:
    z, t = (side.detach().bfloat16() for side in rows(200))
    z.requires_grad_()
    exact = z.detach().double().requires_grad_()
    truth = PLAIN[name](exact, t.double(), torch.float64)
    made, plain = FUNCTIONS[name](z, t, reduction="none"), PLAIN[name](z, t, torch.bfloat16)
    errors = [(one.double() - truth).abs().max() for one in (made, plain)]
    assert made.dtype == torch.float32
    assert errors[0] <= errors[1] + 1e-5
    assert errors[0] < errors[1] / 100
    # Which of two equal probabilities stands first is anyone's choice, so slopes of sorted values have no truth here.
    if name in {"partition_kl", "p_kl"}:
        (slope,) = torch.autograd.grad(truth.sum(), exact)
        off = [(torch.autograd.grad(one.sum(), z)[0].double() - slope).abs().max() for one in (made, plain)]
        assert off[0] <= off[1] + 1e-6
        assert off[0] <= slope.abs().max() * 2**-8


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@each
def test_gradients_are_those_of_finite_differences(loss: Loss, temperature: float) -> None:
    z, t = rows(3)
    weight = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)
    for reduction in ("none", "mean"):
        assert torch.autograd.gradcheck(
            lambda given, how=reduction: loss(given, t, temperature=temperature, weight=weight, reduction=how),
            (z,),
            fast_mode=reduction == "mean",
        )


def test_the_gradient_of_alm_is_that_of_finite_differences() -> None:
    likelihoods = -torch.rand(4, dtype=torch.float64) * torch.tensor([1.0, 10.0, 100.0, 300.0])
    teacher = likelihoods.flip(0)
    assert torch.autograd.gradcheck(lambda given: alm(given, teacher, reduction="none"), likelihoods.requires_grad_())


@pytest.mark.parametrize("low", [None, -1e30, torch.finfo(torch.float32).min, -torch.inf])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_ways_agree_at_a_high_temperature_whatever_the_teacher_cannot_give(divergence: str, low: float | None) -> None:
    for dtype in (torch.float64, torch.float32):
        found = []
        for way in ("reference", "cpu"):
            z, t = rows(dtype=dtype)
            if low is not None:
                t[:3, [0, 3]] = low
            options = {"divergence": divergence, "temperature": 8.0, "implementation": way, "reduction": "sum"}
            value = partition_kl(z, t, STUDENT_BIN, TEACHER_BIN, **options)
            found.append((value.detach(), *torch.autograd.grad(value, z)))
        assert found[0][0] > 0
        assert found[0][1].isfinite().all()
        rtol = 1e-9 if dtype == torch.float64 else 1e-4
        torch.testing.assert_close(found[1], found[0], rtol=rtol, atol=rtol)


def test_the_gradient_of_alm_times_tau_is_of_the_size_of_a_kls_whatever_tau_is() -> None:
    student, teacher = torch.tensor([-0.7, -3.0], dtype=torch.float64).requires_grad_(), torch.tensor([-0.5, -9.0])
    slopes = [
        torch.autograd.grad(tau * alm(student, teacher, tau=tau, reduction="sum"), student)[0] for tau in (1e2, 1e3)
    ]
    # (l_S - l_T) / |l_S| in the limit: the student is moved by the share of its likelihood that is wrong.
    limit = (student - teacher) / student.abs()
    for slope in slopes:
        torch.testing.assert_close(slope, limit.detach(), rtol=0.1, atol=0.0)


@pytest.mark.parametrize("kind", ["partition-kl", "c-kl", "p-kl", "h-kl", "gold", "uld", "alm"])
def test_the_modules_gradients_are_those_of_finite_differences(kind: str) -> None:
    case = case_of(25)
    loss = XTokenLoss(case.mapping, kind=kind, temperature=1.5, merge="first" if kind in {"c-kl", "alm"} else "mean")
    assert torch.autograd.gradcheck(
        lambda given: loss(given, case.teacher_logits, case.spans, labels=case.labels).loss,
        case.student_logits.clone().requires_grad_(),
        fast_mode=True,
    )


@each
def test_a_second_derivative_is_refused(loss: Loss) -> None:
    z, t = rows()
    with pytest.raises(OptionError, match="can be differentiated once"):
        torch.autograd.grad(loss(z, t), z, create_graph=True)


def test_the_modules_second_derivative_is_refused() -> None:
    case = case_of(0)
    z = case.student_logits.clone().requires_grad_()
    out = XTokenLoss(case.mapping, "c-kl")(z, case.teacher_logits, case.spans)
    with pytest.raises(OptionError, match="leave create_graph out"):
        torch.autograd.grad(out.loss, z, create_graph=True)


@each
def test_a_graph_that_was_kept_gives_the_same_gradients_again(loss: Loss) -> None:
    z, t = rows(40)
    slopes = torch.linspace(-1, 1, 40)
    values = loss(z, t, reduction="none")
    first = torch.autograd.grad(values, z, slopes, retain_graph=True)[0].clone()
    (second,) = torch.autograd.grad(values, z, 2 * slopes, retain_graph=True)
    torch.testing.assert_close(second, 2 * first)
    second.zero_()
    torch.testing.assert_close(torch.autograd.grad(values, z, slopes)[0], first)


@each
def test_teachers_get_no_gradient_and_nothing_is_changed(loss: Loss) -> None:
    z, t = rows()
    before = z.detach().clone(), t.clone()
    loss(z, t.requires_grad_(), temperature=2.0).backward()
    assert t.grad is None
    assert torch.equal(z, before[0])
    assert torch.equal(t, before[1])
    with torch.no_grad():
        assert not loss(z, t).requires_grad


@each
def test_weights_and_reductions_are_those_of_torch(loss: Loss) -> None:
    z, t = rows(40)
    weight = torch.arange(40.0) % 4
    plain = loss(z, t, reduction="none")
    torch.testing.assert_close(loss(z, t, weight=weight, reduction="none"), plain * weight)
    torch.testing.assert_close(loss(z, t, weight=weight, reduction="sum"), (plain * weight).sum())
    torch.testing.assert_close(loss(z, t, weight=weight), (plain * weight).sum() / weight.sum())
    torch.testing.assert_close(loss(z, t), plain.mean())
    for weights in (weight, None):
        slopes = [
            torch.autograd.grad(one, z)[0]
            for one in (
                loss(z, t, weight=weights),
                (plain * (1 if weights is None else weight)).sum() / (40 if weights is None else weight.sum()),
            )
        ]
        plain = loss(z, t, reduction="none")
        torch.testing.assert_close(slopes[0], slopes[1])


@each
def test_no_rows_and_no_weight_are_zero_with_a_gradient(loss: Loss) -> None:
    for z, t, weight in ((*(side[:0] for side in rows()), None), (*rows(), torch.zeros(5))):
        leaf = z.detach().requires_grad_()
        value = loss(leaf, t, weight=weight)
        value.backward()
        assert value.item() == 0
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_strided_rows_are_read_as_they_stand() -> None:
    z, t = rows()
    spread = torch.zeros(9, 5, dtype=torch.float64).copy_(z.detach().t()).t().requires_grad_()
    FUNCTIONS["partition_kl"](spread, t).backward()
    FUNCTIONS["partition_kl"](z, t).backward()
    torch.testing.assert_close(spread.grad, z.grad)


Z, T = (side.detach() for side in rows())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: partition_kl(Z[:3], T, STUDENT_BIN, TEACHER_BIN), r"\(N, V_s\) and \(N, V_t\).*\(3, 9\) and \(5, 7\)"),
        (lambda: partition_kl(Z[None], T[None], STUDENT_BIN, TEACHER_BIN), r"shapes \(1, 5, 9\)"),
        (lambda: partition_kl(Z, T, TEACHER_BIN, TEACHER_BIN), r"student_bin must have shape .*\(9,\).*\(7,\)"),
        (lambda: partition_kl(Z, T, STUDENT_BIN, STUDENT_BIN), r"teacher_bin must have shape .*\(7,\).*\(9,\)"),
        (lambda: partition_kl(Z, T, STUDENT_BIN, TEACHER_BIN, temperature=0.0), "temperature must be a finite number"),
        (lambda: partition_kl(Z, T, STUDENT_BIN, TEACHER_BIN, reduction="batchmean"), "reduction must be one of mean"),
        (lambda: partition_kl(Z, T, STUDENT_BIN, TEACHER_BIN, weight=torch.ones(4)), r"weight must have shape \(N,\)"),
        (lambda: p_kl(Z, T, LINKS[0] + 4, *LINKS[1:]), "rows must lie between 0 and 8.*4 to 9"),
        (lambda: p_kl(Z, T, LINKS[0], LINKS[1] - 1, LINKS[2]), "columns must lie between 0 and 6.*-1 to 3"),
        (lambda: p_kl(Z, T, LINKS[0], LINKS[1][:3], LINKS[2]), "columns must have shape"),
        (lambda: p_kl(Z, T, *LINKS, target=TARGET[:2]), "target must have shape"),
        (lambda: p_kl(Z, T, *LINKS, top_k=0), "top_k must be at least 1"),
        (lambda: p_kl(Z, T, *LINKS, temperature=float("nan")), "temperature must be"),
        (lambda: h_kl(Z, T, PAIRS[:, :1]), r"pairs must have shape \(M, 2\)"),
        (lambda: h_kl(Z, T, PAIRS + 1), "student ids of pairs must lie between 0 and 8.*1 to 9"),
        (lambda: h_kl(Z, T, torch.tensor([[0, 1], [0, 2]])), "a student id stands in several pairs"),
        (lambda: h_kl(Z, T, torch.tensor([[0, 1], [2, 1]])), "a teacher id stands in several pairs"),
        (lambda: h_kl(Z, T, PAIRS, student_live=torch.arange(9) > 0), "a student id of the pairs has no probability"),
        (
            lambda: h_kl(Z, T, PAIRS, normalize="none", student_top_k=4),
            "normalize='none' is the paper's sum over pairs",
        ),
        (lambda: p_kl(Z, T, *LINKS, divergence="js"), "divergence must be one of forward, reverse, jsd"),
        (lambda: p_kl(Z, T, *LINKS, beta=0.1), "beta is the teacher's share in divergence='jsd'"),
        (lambda: h_kl(Z, T, PAIRS, normalize="all"), "normalize must be one of rest, none"),
        (lambda: h_kl(Z, T, PAIRS, uncommon_top_k=-1), "uncommon_top_k must be an integer of at least 0"),
        (lambda: uld(Z, T, student_live=torch.ones(3)), r"width of the logits \(9,\).*\(3,\)"),
        (lambda: uld(Z, T, temperature=-1.0), "temperature must be"),
        (lambda: alm(Z[:, 0], T[:3, 0]), "student must have shape"),
        (lambda: alm(Z[:, 0], T[:, 0], tau=0.0), "tau must be"),
        (lambda: alm(Z[:, 0], T[:, 0], reduction="all"), "reduction must be one of"),
    ],
)
def test_what_does_not_belong_together_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call()


def test_tables_are_made_anew_only_where_bins_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counting(*bins: torch.Tensor, **options: Any) -> Any:
        made.append(len(bins))
        return outcomes_of_bins(*bins, **options)

    # On a GPU; here the processor stands in for it.
    monkeypatch.setattr(functional, "_REMEMBERS", ("cuda", "cpu"))
    monkeypatch.setattr(functional, "outcomes_of_bins", counting)
    student, teacher = torch.randn(3, 6), torch.randn(3, 5)
    bins = torch.tensor([0, 1, 1, 2, 2, 0]), torch.tensor([2, 1, 0, 0, 1])
    first, again = (partition_kl(student, teacher, *bins) for _ in range(2))
    assert torch.equal(first, again)
    assert len(made) == 1
    bins[0][0] = 1
    changed = partition_kl(student, teacher, *bins)
    assert len(made) == 2
    assert torch.equal(changed, partition_kl(student, teacher, *(one.clone() for one in bins)))
    for _ in range(9):
        partition_kl(student, teacher, *(one.clone() for one in bins))
    assert len(functional._tables) <= functional._AT_MOST
    functional._tables.clear()
