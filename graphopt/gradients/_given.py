"""Gradients that stand in the model already, whatever made them."""

from collections.abc import Mapping

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.gradients._fusions import avoid_fusions
from graphopt.gradients._graph import GradientGraph, initializers_to_inputs
from graphopt.graphs import by_name


def given_gradients(model: ir.Model, gradients: Mapping[str, str]) -> GradientGraph:
    """The model as it is, with the parameters as inputs and the gradients no longer outputs.

    Args:
        model: Forward and backward pass; changed in place.
        gradients: The name of the tensor that holds the gradient of each parameter, which is an
            initializer or an input.

    Raises:
        ValueError: A tensor is not in the model, or has not the shape of its parameter.
    """
    graph = model.graph
    avoid_fusions(GraphBuilder(graph), model)
    initializers_to_inputs(model, set(gradients))
    values = by_name(graph)
    parameters = {name: values[name] for name in gradients}
    found = {}
    for name, tensor in gradients.items():
        if tensor not in values:
            raise ValueError(
                f"gradients: '{tensor}', given for parameter '{name}', is not a value of the model"
            )
        found[name] = values[tensor]
        expected, shape = parameters[name].shape, values[tensor].shape
        if expected is not None and shape is not None and not _may_be(shape, expected):
            raise ValueError(
                f"gradients: '{tensor}' has shape {shape}, but parameter '{name}' has {expected}"
            )
    consumed = set(found.values())
    graph.outputs[:] = [value for value in graph.outputs if value not in consumed]
    return GradientGraph(model, parameters, found, {})


def _may_be(shape: ir.Shape, expected: ir.Shape) -> bool:
    return len(shape) == len(expected) and all(
        got == want
        for got, want in zip(shape, expected, strict=True)
        if isinstance(got, int) and isinstance(want, int)
    )
