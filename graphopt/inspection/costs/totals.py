"""The bytes that a step needs, added up."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.inspection.costs import memory
from graphopt.inspection.facts import MemoryFacts, ParameterFacts
from graphopt.inspection.reading.dataflow import dtype_name
from graphopt.inspection.reading.read_model import Reading
from graphopt.shapes.engine import Shapes
from graphopt.stage import Stage


def memory_facts(
    reading: Reading,
    parameters: Sequence[ParameterFacts],
    stages: Sequence[Stage],
    shapes: Shapes,
    sizes: Mapping[str, int],
) -> MemoryFacts:
    """What a step needs, with these sizes of open dimensions."""
    model, nodes = reading.file.proto, reading.recovered
    size = sum(parameter.bytes for parameter in parameters)
    trained = nodes.trained if nodes is not None else ()
    own = {parameter.name for parameter in parameters}
    resident = [write.input.name for write in reading.carried]
    resident += [tensor.name for tensor in model.graph.initializer]
    resident += [t.gradient.source.name for t in trained if t.gradient is not None]
    return MemoryFacts(
        parameters=size,
        frozen=sum(
            math.prod(tensor.dims) * (np.dtype(dtype).itemsize if dtype else 0)
            for tensor in model.graph.initializer
            if tensor.name not in own
            for dtype in [dtype_name(ir.DataType(tensor.data_type))]
        ),
        gradients=size if any(parameter.gradient for parameter in parameters) else 0,
        states=sum(parameter.state_bytes for parameter in parameters),
        activations=memory.peak_activations(model, stages, shapes, resident),
        sizes=sizes,
    )
