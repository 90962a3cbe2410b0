"""A graph with gradients, and what is common to the ways of making one."""

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.operators.rewriting import RunningStatistic


@dataclass
class GradientGraph:
    """A graph whose inputs include the parameters, with everything that the update needs.

    Attributes:
        model: The forward graph, the loss and the backward pass.
        parameters: The graph's input of each parameter.
        gradients: The gradient of each parameter.
        statistics: The running statistics, by name, each with that of the batch.
    """

    model: ir.Model
    parameters: dict[str, ir.Value]
    gradients: dict[str, ir.Value]
    statistics: dict[str, tuple[RunningStatistic, ir.Value]]


def unreached(names: Collection[str]) -> str:
    """What to say about parameters that have no gradient."""
    listed = ", ".join(f"'{name}'" for name in names)
    return (
        f"no gradient of the loss reaches {listed}: the loss does not depend on "
        f"{'it' if len(names) == 1 else 'them'} in a differentiable way; "
        "leave out of the optimizer what is not trained"
    )


def initializers_to_inputs(model: ir.Model, names: Collection[str]) -> None:
    """Turn these initializers into inputs of the graph."""
    graph = model.graph
    inputs = {*graph.inputs}
    for name in [name for name in graph.initializers if name in names]:
        value = graph.initializers.pop(name)
        assert value.const_value is not None
        value.dtype, value.shape = (
            value.const_value.dtype,
            ir.Shape(value.const_value.shape.numpy()),
        )
        value.const_value = None
        if value not in inputs:
            graph.inputs.append(value)
