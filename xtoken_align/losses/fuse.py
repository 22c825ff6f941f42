"""`fuse_head`: a model's own output head computes the loss, so that the logits of a batch never exist at once."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch

from ..errors import OptionError
from .heads import check_head, hidden_of, logit_factors, output_head
from .inputs import Hidden
from .loss import LossOutput

Compute = Callable[[Hidden], LossOutput]


@dataclass(eq=False)
class Fusion:
    """What a fused head knows beside its parameters.

    Attributes:
        cls: the class that the head had.
        model: whose head it is.
        scale: of the logits, applied by the model.
        softcap: of the logits, applied by the model.
        run: computes the loss from the hidden states, while one is to be computed.
        output: of the last call.
        checked: whether the model was seen to do to the head's result what its config says.
    """

    cls: type[torch.nn.Module]
    model: weakref.ref[torch.nn.Module]
    scale: float
    softcap: float | None
    run: Callable[[torch.Tensor], torch.Tensor] | None = None
    output: LossOutput | None = None
    checked: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Fusion:
        """Of the copy of a model; a loss, which has a graph, cannot be copied."""
        model = self.model()
        copied = self.model if model is None else weakref.ref(memo.get(id(model), model))
        return Fusion(self.cls, copied, self.scale, self.softcap)


class FusedHead(torch.nn.Module):
    """A head after `fuse_head`: of the class that it was, with the same parameters and hooks.

    Its forward returns logits, except inside of `computing`.
    """

    fusion: Fusion

    def forward(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Logits (B, T, V); inside of `computing` ones (B, 1, 1), with the loss's graph."""
        state = self.fusion
        if state.run is None:
            logits: torch.Tensor = super().forward(states, *args, **kwargs)
            return logits
        if args or kwargs or state.output is not None:
            raise OptionError(
                "while it computes a loss, the head must be called once and with hidden states alone, but it was "
                "called again or with more; hand logits to the loss instead"
            )
        return state.run(states)

    @contextmanager
    def computing(self, compute: Compute) -> Iterator[None]:
        """Inside, a forward of the model computes a loss in place of logits; it is in `output` then.

        Args:
            compute: takes the `Hidden` of the model's positions and returns what `XTokenLoss` returns.

        Raises:
            OptionError: the model did not call its head, or does something to its logits that is not known.
        """
        state = self.fusion
        if state.run is not None:
            raise OptionError("this head already computes a loss; leave the first computing() before entering another")
        model, handle = state.model(), None
        if model is not None:
            handle = model.register_forward_hook(_uncompiled(partial(_finish, state)))
        state.run, state.output = _uncompiled(partial(_run, self, compute)), None
        try:
            yield
        finally:
            state.run = None
            if handle is not None:
                handle.remove()
        if state.output is None:
            raise OptionError(
                "expected one forward of the model inside of computing(), but its head was not called; call the model "
                "there, and fuse the head again if it has been exchanged"
            )

    @property
    def output(self) -> LossOutput:
        """The last loss that was computed.

        Raises:
            OptionError: none was.
        """
        if self.fusion.output is None:
            raise OptionError("no loss has been computed yet; call the model inside of head.computing(...) first")
        return self.fusion.output


def fuse_head(model: torch.nn.Module) -> FusedHead:
    """Lets a model's output head compute the loss.

        head = fuse_head(model)
        with head.computing(lambda hidden: loss_fn(hidden, teacher, spans, labels=labels)):
            model(input_ids=ids, attention_mask=mask)
        head.output.loss.backward()

    The head gets a subclass of its class and stays the module that it was, so tied weights, PEFT's adapters, FSDP's
    hooks and the names in the state dict are untouched; outside of `computing` it returns logits as before. A softcap
    or a scale of the logits, which the model applies after its head, is read from the config and applied in the loss.
    Labels go to the loss, not to the model. Fuse before DDP or FSDP wraps the model. Save it by its state dict.

    Args:
        model: has `get_output_embeddings`, as those of transformers; adapted by PEFT or not.

    Returns:
        The head. Fusing it again changes nothing.

    Raises:
        OptionError: there is no head, or its forward is more than a matrix, a bias and LoRA.

    Example:
        >>> class Model(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.head = torch.nn.Linear(4, 7, bias=False)
        ...     def get_output_embeddings(self):
        ...         return self.head
        ...     def forward(self, states):
        ...         return self.head(states)
        >>> model = Model()
        >>> head = fuse_head(model)
        >>> with head.computing(lambda hidden: LossOutput(hidden.states.sum(), torch.zeros(()), torch.zeros(()))):
        ...     _ = model(torch.ones(2, 3, 4))
        >>> float(head.output.loss)
        24.0
    """
    head = output_head(model)
    if isinstance(head, FusedHead):
        return head
    check_head(head)
    cls: Any = type(head)
    head.__class__ = _fused_class(cls)
    assert isinstance(head, FusedHead)
    head.fusion = Fusion(cls, weakref.ref(model), *logit_factors(model))
    return head


def unfuse_head(model: torch.nn.Module) -> torch.nn.Module:
    """Gives the head back the class that it had.

    Args:
        model: whose head was fused; else nothing is changed.

    Returns:
        The head, the same module.

    Raises:
        OptionError: something, FSDP2 say, has made a subclass of the fused head since.
    """
    head = output_head(model)
    if not isinstance(head, FusedHead):
        return head
    cls: Any = head.fusion.cls
    if type(head) is not _fused_class(cls):
        raise OptionError(
            f"the fused head has become a {type(head).__name__} since it was fused, so its class cannot be given back; "
            "unfuse it before the model is wrapped"
        )
    del head.fusion
    head.__class__ = cls
    return head


def captured(head: FusedHead, forward: Callable[[], object]) -> Hidden:
    """The hidden states that a model hands to its head, with the head; nothing is computed of them.

    Args:
        head: the model's, fused.
        forward: calls the model once.

    Raises:
        OptionError: as `FusedHead.computing`.
    """
    received: list[Hidden] = []

    def keep(hidden: Hidden) -> LossOutput:
        # In place of a loss.
        received.append(hidden)
        nothing = hidden.states.new_zeros(())
        return LossOutput(nothing, nothing, nothing)

    with head.computing(keep):
        forward()
    return received[0]


@cache
def _fused_class(cls: Any) -> type[FusedHead]:
    return type(f"Fused{cls.__name__}", (FusedHead, cls), {})


def _run(head: FusedHead, compute: Compute, states: torch.Tensor) -> torch.Tensor:
    """Computes the loss into the head's output and returns what stands for the logits."""
    state = head.fusion
    output = compute(hidden_of(head, states, state.scale, state.softcap))
    ones = torch.ones((len(states), 1, 1), dtype=output.loss.dtype, device=output.loss.device)
    carrier = _through(ones, output.loss)
    state.output = replace(output, loss=_through(output.loss, carrier))
    return carrier


def _uncompiled(run: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps the planning of a batch out of the graph of a compiled model."""
    if "torch._dynamo" not in sys.modules:
        # Nothing is compiled, and importing the compiler takes seconds.
        return run
    disabled: Callable[..., Any] = torch.compiler.disable(run)  # type: ignore[no-untyped-call]
    return disabled


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        ctx.other = other.shape, other.dtype, other.device
        return value.clone()

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        shape, dtype, device = ctx.other
        return slope, torch.zeros(shape, dtype=dtype, device=device)


def _through(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The value; its backward passes through `other` too, with a gradient of 0.

    So hooks on `other` run before whatever it was made of, by which FSDP2 knows that backward has come to a module.
    """
    same: torch.Tensor = _Through.apply(value, other)  # type: ignore[no-untyped-call]
    return same


def _finish(state: Fusion, _model: torch.nn.Module, _args: Any, result: Any) -> None:
    """Looks at what has become of the head's ones, and lets backward begin there, where FSDP2 has a hook."""
    logits = result[0] if type(result) is tuple else getattr(result, "logits", None)
    if state.run is None or state.output is None or not isinstance(logits, torch.Tensor):
        return
    if not state.checked:
        _check_factors(state, logits.detach())
        state.checked = True
    state.output = replace(state.output, loss=_through(state.output.loss, logits))


def _check_factors(state: Fusion, logits: torch.Tensor) -> None:
    """Compares the ones with the factors that the loss was given."""
    expected = torch.tensor(state.scale, dtype=torch.float64)
    if state.softcap is not None:
        expected = (expected / state.softcap).tanh() * state.softcap
    found = logits.double().cpu()
    if not torch.allclose(found, expected.expand_as(found), rtol=100 * torch.finfo(logits.dtype).eps, atol=0):
        raise OptionError(
            f"the model makes {found.flatten()[0]:.6g} of a logit of 1 after its head, but the config says "
            f"{expected:.6g}; what it does there is unknown, so hand logits to the loss instead"
        )
