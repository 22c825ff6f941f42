"""A model's head computes the loss in place of logits: values, gradients, and everything around it as before."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from tiny_models import assert_same, fused, inputs, loss_of, make_model, plain
from torch.utils._python_dispatch import TorchDispatchMode

from xtoken_align.errors import OptionError
from xtoken_align.losses import FusedHead, Hidden, LossOutput, fuse_head, unfuse_head

# PEFT reads a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", {}),
    "tied Llama": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "Phi, a head with a bias": ("PhiForCausalLM", {}),
    "Gemma2, a softcap": ("Gemma2ForCausalLM", {"final_logit_softcapping": 2.0, "tie_word_embeddings": True}),
    "Gemma3, a softcap": ("Gemma3ForCausalLM", {"final_logit_softcapping": 1.5}),
    "RecurrentGemma, a softcap": ("RecurrentGemmaForCausalLM", {"logits_soft_cap": 3.0, "lru_width": 16}),
    "Cohere, a scale": ("CohereForCausalLM", {"logit_scale": 0.25, "tie_word_embeddings": True}),
    "Granite, a divisor": ("GraniteForCausalLM", {"logits_scaling": 3.0}),
    "Falcon-H1, a scale": ("FalconH1ForCausalLM", {"lm_head_multiplier": 0.5}),
}

ADAPTERS: dict[str, dict[str, Any]] = {
    "attention alone": {"target_modules": ["q_proj", "v_proj"]},
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "the head, with dropout": {"target_modules": ["lm_head"], "lora_dropout": 0.3},
    "a copy of the head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


class Toy(torch.nn.Module):
    """A model that is a head and something after it."""

    def __init__(self, head: torch.nn.Module, factor: float = 1.0, calls: int = 1) -> None:
        super().__init__()
        self.head, self.factor, self.calls = head, factor, calls

    def get_output_embeddings(self) -> Any:
        return self.head

    def forward(self, states: torch.Tensor) -> Any:
        for _ in range(self.calls):
            logits = self.head(states) * self.factor
        return SimpleNamespace(logits=logits if self.calls else None)


def lora(model: torch.nn.Module, **changes: Any) -> torch.nn.Module:
    torch.manual_seed(4)
    options = {"r": 3, "lora_alpha": 5, "init_lora_weights": False, "lora_dropout": 0.0, **changes}
    return peft.get_peft_model(model, peft.LoraConfig(**options))


def head_of(model: torch.nn.Module) -> Any:
    return model.get_output_embeddings()


def unfused(model: torch.nn.Module) -> torch.nn.Module:
    unfuse_head(model)
    return model


def summed(hidden: Hidden) -> LossOutput:
    zero = torch.zeros(())
    return LossOutput((hidden.states.sum(dim=(0, 1)) * hidden.weight.sum(dim=0)).sum(), zero, zero)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_all_gradients_are_those_of_logits(name: str) -> None:
    of_class, changes = MODELS[name]
    model = make_model(of_class, **changes)
    assert_same(fused(model), plain(unfused(model)), 1e-5)


@pytest.mark.parametrize("name", ["tied Llama", "Gemma2, a softcap", "Granite, a divisor"])
def test_in_float64_they_agree_to_ten_digits(name: str) -> None:
    of_class, changes = MODELS[name]
    model = make_model(of_class, dtype=torch.float64, **changes)
    assert_same(fused(model, torch.float64), plain(unfused(model), torch.float64), 1e-10)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_get_the_gradients_that_logits_give_them(name: str) -> None:
    model = lora(make_model("LlamaForCausalLM"), **ADAPTERS[name])
    torch.manual_seed(5)
    by_head = fused(model)
    assert fused_class_of(model) == "FusedLinear"
    torch.manual_seed(5)
    assert_same(by_head, plain(unfused(model)), 1e-5)


def fused_class_of(model: torch.nn.Module) -> str:
    return next(type(module).__name__ for module in model.modules() if isinstance(module, FusedHead))


def test_an_adapter_with_a_bias_counts_with_it() -> None:
    model = lora(make_model("PhiForCausalLM"), target_modules=["lm_head"], lora_bias=True)
    assert_same(fused(model), plain(unfused(model)), 1e-5)


def test_several_adapters_of_the_head_are_added_and_inactive_ones_are_not() -> None:
    model: Any = make_model("LlamaForCausalLM")
    for number, name in enumerate(("one", "two", "three")):
        torch.manual_seed(number)
        config = peft.LoraConfig(r=2 + number, target_modules=["lm_head"], init_lora_weights=False)
        if number:
            model.add_adapter(name, config)
        else:
            model = peft.get_peft_model(model, config, name)
    model.base_model.set_adapter(["one", "three"])
    by_head = fused(model)
    assert len(by_head[1]) == 4
    assert_same(by_head, plain(unfused(model)), 1e-5)


@pytest.mark.parametrize("what", ["merge_adapter", "disable_adapter_layers"])
def test_adapters_that_are_merged_or_disabled_after_fusing_are_seen_as_such(what: str) -> None:
    model: Any = lora(make_model("LlamaForCausalLM"), target_modules=["lm_head", "q_proj"])
    for parameter in model.parameters():
        parameter.requires_grad_()
    before, _ = fused(model)
    getattr(model.base_model, what)()
    by_head = fused(model)
    assert_same(by_head, plain(unfused(model)), 1e-5)
    assert (abs(by_head[0] - before) > 1e-3) == (what == "disable_adapter_layers")


def test_merging_and_unloading_reaches_a_fused_head() -> None:
    model: Any = lora(make_model("LlamaForCausalLM"), target_modules=["lm_head"]).eval()
    before = model(**inputs()).logits
    fuse_head(model)
    merged = model.merge_and_unload()
    assert type(head_of(merged)) is torch.nn.Linear
    assert torch.allclose(merged(**inputs()).logits, before, atol=1e-5)


def test_no_gradient_is_made_for_a_frozen_head() -> None:
    model = make_model("LlamaForCausalLM")
    head_of(model).weight.requires_grad_(requires_grad=False)
    expected = plain(model)
    seen = []
    head = fuse_head(model)
    with head.computing(lambda hidden: seen.append(hidden.weight.requires_grad) or loss_of(hidden)):  # type: ignore[func-returns-value]
        model(**inputs())
    assert seen == [False]
    by_head = fused(model)
    assert "lm_head.weight" not in by_head[1]
    assert_same(by_head, expected, 1e-5)


def test_a_tied_head_stays_tied() -> None:
    model = make_model("LlamaForCausalLM", tie_word_embeddings=True)
    head = fuse_head(model)
    assert head.weight is model.get_input_embeddings().weight
    model.tie_weights()
    assert head.weight is model.get_input_embeddings().weight
    assert head_of(model) is head


def test_outside_of_computing_everything_is_as_before() -> None:
    model: Any = make_model("Gemma2ForCausalLM", final_logit_softcapping=2.0).eval()
    ids = inputs()["input_ids"][:, :5]
    before = model(ids).logits, model.generate(ids, max_new_tokens=4, do_sample=False), model.state_dict()
    fused(model)
    assert torch.equal(model(ids).logits, before[0])
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), before[1])
    assert list(model.state_dict()) == list(before[2])
    assert sum(1 for _ in model.modules()) == sum(1 for _ in make_model("Gemma2ForCausalLM").modules())
    head = unfuse_head(model)
    assert type(head) is torch.nn.Linear
    assert not hasattr(head, "fusion")
    assert unfuse_head(model) is head
    assert torch.equal(model(ids).logits, before[0])


def test_a_head_fused_twice_is_one_and_works_again_after_unfusing() -> None:
    model = make_model("LlamaForCausalLM")
    head = fuse_head(model)
    assert fuse_head(model) is head
    first = fused(model)
    unfuse_head(model)
    assert fuse_head(model) is head
    assert_same(fused(model), first, 0.0)


def test_a_fused_model_can_be_copied_after_a_loss_and_the_copy_works() -> None:
    model = make_model("GraniteForCausalLM", logits_scaling=3.0)
    by_head = fused(model)
    other = copy.deepcopy(model)
    assert head_of(other).fusion.model() is other
    assert head_of(other).fusion.output is None
    assert_same(fused(other), by_head, 0.0)


def test_the_head_makes_no_logits_while_it_computes() -> None:
    model = Toy(torch.nn.Linear(4, 997))
    shapes: list[tuple[int, ...]] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            shapes.extend(tuple(one.shape) for one in [made] if isinstance(one, torch.Tensor))
            return made

    head = fuse_head(model)
    with Record(), head.computing(summed):
        result = model(torch.ones(2, 3, 4))
    assert result.logits.shape == (2, 1, 1)
    assert shapes
    assert not [shape for shape in shapes if shape[-1:] == (997,) and len(shape) > 1]


def test_without_gradients_the_loss_is_the_same() -> None:
    model = make_model("LlamaForCausalLM")
    with_graph, _ = fused(model)
    head = fuse_head(model)
    with torch.no_grad(), head.computing(loss_of):
        model(**inputs())
    assert not head.output.loss.requires_grad
    assert torch.equal(head.output.loss, with_graph)
    assert torch.allclose(head.output.loss, 0.7 * head.output.kd + 0.4 * head.output.ce)


def test_the_models_own_checkpointing_changes_nothing() -> None:
    model: Any = make_model("LlamaForCausalLM")
    expected = plain(model)
    ran = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: ran.append(1))
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()
    assert_same(fused(model), expected, 1e-5)
    assert len(ran) == 2


def test_under_autocast_it_is_as_near_to_float32_as_logits_are() -> None:
    model = make_model("Gemma2ForCausalLM", final_logit_softcapping=4.0)
    exact = plain(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        of_logits = plain(model)
        seen = []
        head = fuse_head(model)
        with head.computing(lambda hidden: seen.append(hidden.states.dtype) or loss_of(hidden)):  # type: ignore[func-returns-value]
            model(**inputs())
        by_head = fused(model)
    assert seen == [torch.bfloat16]
    assert abs(by_head[0] - of_logits[0]) < 0.01 * exact[0]
    for name, gradient in exact[1].items():
        assert by_head[1][name].dtype == torch.float32
        error, allowed = ((one[1][name] - gradient).norm() for one in (by_head, of_logits))
        assert error <= 1.5 * allowed + 0.01 * gradient.norm(), name


def test_a_bfloat16_model_is_as_near_to_float32_as_from_logits() -> None:
    model = make_model("LlamaForCausalLM", dtype=torch.bfloat16)
    of_logits, by_head = plain(model), fused(model)
    exact = plain(unfused(model).float())
    assert abs(by_head[0] - exact[0]) < 0.02 * exact[0]
    for name, gradient in exact[1].items():
        error, allowed = ((one[1][name].float() - gradient).norm() for one in (by_head, of_logits))
        assert error <= 1.5 * allowed + 0.01 * gradient.norm(), name


@pytest.mark.parametrize("where", ["in the loss", "after it"])
def test_in_half_precision_with_a_scaler_small_gradients_are_not_lost(where: str) -> None:
    model = make_model("LlamaForCausalLM")
    exact = fused(model)[1]
    model.zero_grad()
    small = 2e-9
    inside, outside = (small, 1.0) if where == "in the loss" else (1.0, small)
    weights = (0.7 * inside, 0.4 * inside)
    head = fuse_head(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**28)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with torch.autocast("cpu", dtype=torch.float16), head.computing(lambda hidden: loss_of(hidden, weights=weights)):
        model(**inputs())
    scaler.scale(head.output.loss * outside).backward()
    scaler.unscale_(optimizer)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad / small - exact[name]).norm() <= 0.05 * exact[name].norm(), name


# The compiler looks at tensors that are no leaves, where it leaves the graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model_gives_the_same() -> None:
    model = make_model("LlamaForCausalLM")
    expected = fused(model)
    compiled = torch.compile(model, backend="eager")
    assert_same(fused(model, through=compiled), expected, 1e-5)
    assert torch.allclose(compiled(**inputs()).logits, model(**inputs()).logits, atol=1e-5)


def test_hooks_on_the_head_and_on_what_it_returns_run() -> None:
    model = Toy(torch.nn.Linear(4, 5))
    head = fuse_head(model)
    ran: list[str] = []

    def watch(_module: Any, _args: Any, result: torch.Tensor) -> None:
        ran.append("forward")
        result.register_hook(lambda _gradient: ran.append("backward"))

    def watch_model(_module: Any, _args: Any, result: Any) -> None:
        result.logits.register_hook(lambda _gradient: ran.append("backward of the model"))

    head.register_forward_hook(watch)
    model.register_forward_hook(watch_model)
    states = torch.ones(2, 3, 4, requires_grad=True)
    with head.computing(summed):
        model(states)
    head.output.loss.backward()
    assert ran == ["forward", "backward of the model", "backward"]
    assert torch.equal(states.grad, head.weight.sum(dim=0).expand(2, 3, 4))


def test_something_unknown_after_the_head_is_refused() -> None:
    model = Toy(torch.nn.Linear(4, 5), factor=2.0)
    head = fuse_head(model)
    for _ in range(2):
        with pytest.raises(OptionError, match="makes 2 of a logit of 1 after its head"), head.computing(summed):
            model(torch.ones(2, 3, 4))
    assert torch.equal(
        model(torch.ones(2, 3, 4)).logits, 2 * torch.nn.functional.linear(torch.ones(2, 3, 4), head.weight, head.bias)
    )


def test_a_model_that_calls_its_head_never_or_twice_is_refused() -> None:
    silent, eager = Toy(torch.nn.Linear(4, 5), calls=0), Toy(torch.nn.Linear(4, 5), calls=2)
    with pytest.raises(OptionError, match="called again"), fuse_head(eager).computing(summed):
        eager(torch.ones(2, 3, 4))
    with pytest.raises(OptionError, match="its head was not called"), fuse_head(silent).computing(summed):
        pass
    with pytest.raises(OptionError, match="no loss has been computed yet"):
        _ = fuse_head(silent).output


def test_an_error_in_the_model_ends_computing() -> None:
    model = Toy(torch.nn.Linear(4, 5))
    head = fuse_head(model)
    with pytest.raises(OptionError, match="shape"), head.computing(summed):
        model(torch.ones(2, 3, 3))
    with head.computing(summed):
        with pytest.raises(OptionError, match="already computes"), head.computing(summed):
            pass
        model(torch.ones(2, 3, 4))
    assert head.output.loss.requires_grad


class Doubled(torch.nn.Linear):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(states)


class NoHead(Toy):
    def get_output_embeddings(self) -> Any:
        return None


def tied() -> torch.nn.Module:
    return make_model("LlamaForCausalLM", tie_word_embeddings=True)


def patched() -> torch.nn.Module:
    head = torch.nn.Linear(4, 5)
    head.forward = lambda states: states  # type: ignore[method-assign]
    return head


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: torch.nn.Linear(4, 5), "but Linear has none"),
        (lambda: NoHead(torch.nn.Linear(4, 5)), "but NoHead has none"),
        (lambda: Toy(torch.nn.ModuleList([torch.nn.Linear(4, 5)])), "torch.nn.modules.container.ModuleList"),
        (lambda: Toy(Doubled(4, 5)), r"but it is a .*test_fuse_head\.Doubled"),
        (lambda: Toy(patched()), "the forward of the head, a Linear, has been replaced"),
        (
            lambda: lora(make_model("LlamaForCausalLM"), target_modules=["lm_head"], use_dora=True),
            "a DoraLinearVariant",
        ),
        (
            lambda: lora(tied(), target_modules=["q_proj"], trainable_token_indices=[3]),
            "Trainable",
        ),
    ],
)
def test_what_is_no_plain_head_is_refused_by_name(model: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        fuse_head(model())


def test_a_class_that_was_changed_after_fusing_is_not_given_back() -> None:
    model = Toy(torch.nn.Linear(4, 5))
    head = fuse_head(model)
    head.__class__ = type("Sharded", (type(head),), {})
    with pytest.raises(OptionError, match="has become a Sharded"):
        unfuse_head(model)
