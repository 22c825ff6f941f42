"""Under `torch.compile` the functions are one graph, and the module runs as it does without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from loss_calls import case_of

from xtoken_align.errors import OptionError
from xtoken_align.losses import Hidden, XTokenLoss, h_kl, p_kl, partition_kl, uld

# PyTorch warns of what its own tracing does: it asks every input for its gradient, also where that is a model's output,
# and makes an object of an autograd function.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]

Loss = Callable[..., torch.Tensor]

STUDENT_BIN, TEACHER_BIN = torch.tensor([0, 1, 1, 2, -1, 3, 0, -2, 7]), torch.tensor([2, 0, 1, 1, -1, 5, 3])
LINKS = torch.tensor([0, 1, 1, 2, 5]), torch.tensor([0, 1, 2, 2, 4]), torch.tensor([1.0, 0.75, 0.25, 1.0, 1.0])
PAIRS = torch.tensor([[0, 1], [3, 0], [8, 6]])
LIVE = torch.arange(9) != 7

FUNCTIONS: dict[str, Loss] = {
    "partition_kl": lambda z, t: partition_kl(z, t, STUDENT_BIN, TEACHER_BIN, temperature=2.0),
    "p_kl": lambda z, t: p_kl(z, t, *LINKS, top_k=3, weight=z.detach()[:, 0].abs()),
    "h_kl": lambda z, t: h_kl(z, t, PAIRS, student_live=LIVE, reduction="none").sum(),
    "reverse": lambda z, t: partition_kl(z, t, STUDENT_BIN, TEACHER_BIN, divergence="reverse", student_top_k=3),
    "jsd": lambda z, t: p_kl(z, t, *LINKS, top_k=3, divergence="jsd", beta=0.3, temperature=2.0),
    "uld": uld,
}


@pytest.fixture(autouse=True)
def _fresh_caches() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(count)
    return torch.randn(count, 9, generator=source), torch.randn(count, 7, generator=source)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_one_graph_with_the_same_value_and_gradient(name: str) -> None:
    loss = FUNCTIONS[name]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    # More than one block; and another number of rows, for which a graph of any number is made.
    for count in (40, 3) if name == "partition_kl" else (40,):
        z, t = rows(count)
        found = []
        for function in (loss, compiled):
            # The loss stands behind a model and before other arithmetic, as in training.
            leaf = z.clone().requires_grad_()
            value = function(2 * leaf, t) * 3
            value.backward()
            found.append((value.detach(), leaf.grad))
        torch.testing.assert_close(found[1], found[0])
        assert found[0][1].abs().max() > 0


def test_a_training_step_with_a_head_is_one_graph() -> None:
    head = torch.nn.Linear(4, 9)

    def step(states: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return partition_kl(head(states), teacher, STUDENT_BIN, TEACHER_BIN)

    states, (_, teacher) = torch.randn(5, 4), rows(5)
    step(states, teacher).backward()
    plain = [parameter.grad for parameter in head.parameters()]
    head.zero_grad()
    torch.compile(step, fullgraph=True, backend="aot_eager")(states, teacher).backward()
    torch.testing.assert_close([parameter.grad for parameter in head.parameters()], plain)


def test_without_a_graph_there_is_none() -> None:
    z, t = rows(3)
    compiled = torch.compile(FUNCTIONS["partition_kl"], fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        value = compiled(z.requires_grad_(), t)
    assert not value.requires_grad
    torch.testing.assert_close(value, FUNCTIONS["partition_kl"](z, t).detach())


def test_shapes_are_refused_all_the_same() -> None:
    z, t = rows(3)
    with pytest.raises(
        (OptionError, torch._dynamo.exc.TorchRuntimeError, torch._dynamo.exc.Unsupported), match="shape"
    ):
        torch.compile(FUNCTIONS["partition_kl"], fullgraph=True, backend="aot_eager")(z[:, :-1], t)


@pytest.mark.parametrize(
    ("options", "hidden"), [({"kind": "c-kl"}, False), ({"kind": "p-kl", "merge": "mean", "learn_w": True}, True)]
)
def test_the_module_may_stand_in_a_compiled_step(options: dict[str, Any], hidden: bool) -> None:
    case = case_of(4)
    loss = XTokenLoss(case.mapping, **options)
    head = torch.nn.Linear(4, case.student_logits.shape[2])
    states = torch.randn(*case.student_logits.shape[:2], 4)

    def step(states: torch.Tensor) -> torch.Tensor:
        student = Hidden(2 * states, head.weight, head.bias) if hidden else head(2 * states)
        return 3 * loss(student, case.teacher_logits.float(), case.spans, labels=case.labels).loss

    found = []
    for function in (step, torch.compile(step, backend="aot_eager")):
        for parameter in (*head.parameters(), *loss.parameters()):
            parameter.grad = None
        leaf = states.clone().requires_grad_()
        value = function(leaf)
        value.backward()
        grads = [parameter.grad for parameter in (*head.parameters(), *loss.parameters())]
        found.append([value.detach(), leaf.grad, *grads])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
