"""From a module to a forward model: captured, marked, translated, tidied."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch

from graphopt import _checks
from graphopt.torch import _attention, _batch_norm, _cross_entropy, _no_gradient, _settle, _special
from graphopt.torch._capture import capture
from graphopt.torch._changed import check_changed
from graphopt.torch._custom_gradients import check_hooks
from graphopt.torch._names import put_names
from graphopt.torch._tidy import tidy
from graphopt.torch._translate import translate


def export(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
    *,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    dynamic_batch: bool,
    dynamic_shapes: Any,
) -> ir.Model:
    """See `graphopt.torch.export`."""
    _check_arguments(module, args, kwargs)
    _check_names("input_names", input_names)
    _check_names("output_names", output_names)
    _checks.boolean("dynamic_batch", dynamic_batch)
    check_hooks(module)
    _batch_norm.check_momentum(module)
    captured = capture(module, args, dict(kwargs or {}), dynamic_batch, dynamic_shapes)
    program = captured.program
    _no_gradient.mark(program)
    _attention.settle(program)
    _batch_norm.settle(program)
    _cross_entropy.settle(program)
    _settle.settle(program)
    _special.settle(program)
    model, changed = translate(program)
    put_names(model, module, input_names, output_names, captured.sizes)
    tidy(model)
    check_changed(model.graph, module, changed)
    return model


def _check_arguments(module: Any, args: Any, kwargs: Any) -> None:
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: got {type(module).__name__}, expected a torch.nn.Module")
    if isinstance(args, torch.Tensor):
        raise TypeError("args: got a tensor, expected a tuple of example inputs: write (x,)")
    if not isinstance(args, tuple):
        raise TypeError(f"args: got {type(args).__name__}, expected a tuple of example inputs")
    if not isinstance(kwargs, Mapping | None):
        raise TypeError(f"kwargs: got {type(kwargs).__name__}, expected a dict of example inputs")


def _check_names(argument: str, names: Any) -> None:
    if names is None:
        return
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"{argument}: got {names!r}, expected a list of names")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{argument}: got {name!r}, expected strings")
    twice = [name for name in names if list(names).count(name) > 1]
    if twice or "" in names:
        raise ValueError(
            f"{argument}: got " + (f"'{twice[0]}' twice" if twice else "an empty name")
        )
