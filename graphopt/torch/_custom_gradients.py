"""Gradients of a module's own, which a captured program does not show.

A ``torch.autograd.Function`` whose backward pass computes the derivative of its forward pass, to
save memory for example, is captured as its forward pass. Whether it does is tried out, with the
example inputs and with larger and smaller ones; any other is refused, and so are hooks.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction

from graphopt.torch._errors import NotExportableError

Function = type[torch.autograd.Function]
_BASE: Any = torch.autograd.Function.__mro__[1]
"""What `apply` of all functions calls, also where a module has kept it: ``swish = Swish.apply``."""
_DATA: Any = torch.Tensor.data
_SCALES = (1.0, -1.0, 0.1, 3.0, 30.0)
_TOLERANCE = 1e-4


class OwnGradientError(NotExportableError):
    """A module has called a function whose gradient is not known to be the derivative."""


def check_hooks(module: torch.nn.Module) -> None:
    """Refuse hooks that change gradients.

    Raises:
        ValueError: A submodule or parameter has one.
    """
    hooked = [
        *(entry for entry in module.named_modules() if getattr(entry[1], "_backward_pre_hooks", 0)),
        *(
            (name, owner)
            for name, owner in (*module.named_modules(), *module.named_parameters())
            if getattr(owner, "_backward_hooks", None)
        ),
    ]
    if hooked:
        raise ValueError(
            f"'{hooked[0][0]}' ({type(hooked[0][1]).__name__}) has a hook for its gradient, which "
            "the exported model would not have; remove it"
        )


def _set_data(tensor: torch.Tensor, value: torch.Tensor) -> None:
    _DATA.__set__(tensor, value)


@contextmanager
def refused(derivatives: frozenset[Function]) -> Iterator[None]:
    """Refuse gradients of a module's own while it is captured; ``x.data`` is ``x.detach()``.

    Args:
        derivatives: Functions whose gradient is the derivative, which are captured.
    """

    def apply(cls: Function, *args: Any) -> Any:
        if cls is not CheckpointFunction and cls not in derivatives:
            raise _refusal(cls)
        return _forward(cls, args)

    def register_hook(*_: Any) -> None:
        raise NotExportableError(
            "a hook of a tensor gets its gradient, which the exported model would not call; write "
            "what it does with differentiable functions, or remove it"
        )

    with (
        patch.object(_BASE, "apply", classmethod(apply)),
        patch.object(torch.Tensor, "register_hook", register_hook),
        patch.object(torch.Tensor, "data", property(torch.Tensor.detach, _set_data)),
    ):
        yield


def derivatives_of(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> frozenset[Function]:
    """The functions that a module calls with these inputs, if all compute their derivatives.

    Raises:
        OwnGradientError: One does not.
    """
    found: set[Function] = set()

    def apply(cls: Function, *inputs: Any) -> Any:
        if cls is not CheckpointFunction:
            if not all(_is_derivative(cls, inputs, scale) for scale in _SCALES):
                raise _refusal(cls)
            found.add(cls)
        return _applied(cls, inputs)

    with torch.random.fork_rng(devices=[]), patch.object(_BASE, "apply", classmethod(apply)):
        copy.deepcopy(module)(*args, **kwargs)
    return frozenset(found)


def _applied(cls: Function, inputs: Any) -> Any:
    """What a function gives, with its own gradient."""
    applied: Any = super(_BASE, cls)
    return applied.apply(*inputs)


def _is_derivative(cls: Function, inputs: tuple[Any, ...], scale: float) -> bool:
    """Whether the backward pass gives the derivative of the forward pass, at scaled inputs."""

    def leaf(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return (value.detach() * scale).requires_grad_()
        return value

    own, derived = ([leaf(value) for value in inputs] for _ in range(2))
    results = [pytree.tree_leaves(f(cls, x)) for f, x in ((_applied, own), (_forward, derived))]
    state = torch.get_rng_state()
    gradients = []
    for values, outputs in zip((own, derived), results, strict=True):
        torch.set_rng_state(state)
        floats = [y for y in outputs if isinstance(y, torch.Tensor) and y.is_floating_point()]
        moving = [(y, torch.randn_like(y)) for y in floats]
        moving = [(y, dy) for y, dy in moving if y.requires_grad]
        leaves = [x for x in values if isinstance(x, torch.Tensor) and x.requires_grad]
        gradients.append(
            torch.autograd.grad(
                [y for y, _ in moving],
                leaves,
                [dy for _, dy in moving],
                allow_unused=True,
                materialize_grads=True,
            )
            if moving
            else [torch.zeros_like(x) for x in leaves]
        )
    return all(
        torch.allclose(
            a, b, rtol=_TOLERANCE, atol=_TOLERANCE * float(b.abs().max()), equal_nan=True
        )
        for a, b in zip(*gradients, strict=True)
        if a.numel()
    )


def _forward(cls: Function, inputs: Any) -> Any:
    """The forward pass of a function, as if it stood in the module."""
    if cls is CheckpointFunction:
        run, _, *inputs = inputs
        return run(*inputs)
    if cls.setup_context is not torch.autograd.Function.setup_context:
        return cls.forward(*inputs)
    context = SimpleNamespace(needs_input_grad=[True] * len(inputs))
    for name in (
        "save_for_backward", "mark_dirty", "mark_non_differentiable", "set_materialize_grads"
    ):  # fmt: skip
        setattr(context, name, lambda *_: None)
    return cls.forward(context, *inputs)


def _refusal(cls: Function) -> OwnGradientError:
    return OwnGradientError(
        f"{cls.__name__} is a torch.autograd.Function whose gradient is not the derivative of what "
        "it computes, and the exported model would have the derivative. Write it with "
        "differentiable functions and detach(): a straight-through gradient, for example, is "
        "x + (f(x) - x).detach()"
    )
