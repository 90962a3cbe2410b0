"""What could be trained: the weights that the forward pass reads."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graphopt.graphs import named_once
from graphopt.inspection.facts import ParameterFacts
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.read_model import Reading
from graphopt.stage import Stage
from graphopt.weights import Weights, constants, inlined, tensor_of

_FORWARD = {"forward", "loss"}


def weights_of(reading: Reading, stages: Sequence[Stage]) -> Weights:
    """What tells which constants are weights of the forward pass.

    Args:
        reading: The model.
        stages: The stage of each node.
    """
    model = reading.file.model
    if model.functions and set(stages) <= {"forward"}:
        return Weights(inlined(model))  # of a size that has been checked
    graph = model.graph
    holding = {
        *(parameter.name for parameter in reading.merged.parameters),
        *reading.buffers,
        *(write.input.name for write in reading.carried),
    }
    others = {node for node, stage in zip(graph, stages, strict=True) if stage not in _FORWARD}
    named = (*graph.inputs, *graph.initializers.values())
    named += tuple(value for node in graph for value in node.outputs)
    learned = [value for value in named if value.name in holding]
    return Weights(model, learned=learned, within=lambda node: node not in others)


def could_be_trained(
    reading: Reading, weights: Weights, stages: Sequence[Stage]
) -> tuple[str, ...]:
    """The constants that are weights of the forward pass, and are not trained.

    Args:
        reading: The model.
        weights: What tells them.
        stages: The stage of each node.
    """
    known = {parameter.name for parameter in reading.merged.parameters}
    read = _read_values(weights.graph, stages) if reading.carried else None
    outer, liftable = {*weights.graph.initializers.values()}, named_once(weights.graph)
    trains = reading.carried or set(stages) != {"forward"}
    verdicts = (
        {value: weights.of(value) for value in constants(weights.graph)}
        if trains
        else weights.verdicts()
    )
    return tuple(
        str(value.name)
        for value, verdict in verdicts.items()
        if value.name not in known
        and not value.is_graph_input()
        and verdict.is_weight
        and (
            value in outer
            or (not reading.carried and verdict.why is None and value.name in liftable)
        )
        and (read is None or value in read)
    )


def _read_values(graph: ir.Graph, stages: Sequence[Stage]) -> set[ir.Value | None]:
    """What the forward pass reads."""
    nodes = zip(graph, stages, strict=True)
    return {value for node, stage in nodes if stage == "forward" for value in node.inputs}


def parameters_of(
    reading: Reading, weights: Weights, could_be: Sequence[str]
) -> tuple[ParameterFacts, ...]:
    """The parameters of the optimizer; without one those that have a buffer for gradients.

    Args:
        reading: The model.
        weights: What tells the operator of which a parameter is the weight in the forward pass.
        could_be: Those that could be trained, which are taken where there are no such either.
    """
    flow, buffers = reading.flow, reading.buffers
    named = ir.convenience.create_value_mapping(weights.graph)
    inside = {value.name: tensor_of(value) for value in constants(weights.graph)}

    def weight_of(name: str) -> str | None:
        values = (named.get(name), named.get(f"{name}/shaped"))
        found = (weights.operator_of(value) for value in values if value is not None)
        return next(filter(None, found), None)

    return tuple(
        replace(known, op_type=known.op_type or weight_of(known.name))
        for known in reading.merged.parameters
    ) or tuple(
        ParameterFacts(
            name=name,
            shape=shape,
            dtype=dtype,
            op_type=weight_of(name),
            bytes=math.prod(shape) * np.dtype(dtype).itemsize,
            gradient=buffers[name].name if name in buffers else None,
        )
        for name in buffers or could_be
        for value in [flow.values.get(name) or Value(name, tensor=inside.get(name))]
        for shape in [value.static_shape or ()]
        for dtype in [value.dtype or "float32"]
    )
