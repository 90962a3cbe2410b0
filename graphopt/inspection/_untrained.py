"""What could be trained: the weights that the forward pass reads."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx

from graphopt.inspection._dataflow import Dataflow, Operation, Value
from graphopt.inspection.facts import ParameterFacts, Stage, static
from graphopt.parameters import SETTING_INPUTS, WEIGHT_INPUTS

_FLOATING = {"float16", "bfloat16", "float32", "float64"}
_MOVED = {"Cast", "Identity", "Transpose", "Reshape"}
# Operators whose other operands are biases, or weights that are written out.
_DEEPEST = 3  # changes of shape or precision between a weight and its operator
_BIASED = {*WEIGHT_INPUTS, "Add", "Mul", "Sub"}


def could_be_trained(
    model: onnx.ModelProto, flow: Dataflow, stages: Sequence[Stage], trained: Collection[str]
) -> tuple[str, ...]:
    """The initializers that are weights of the forward pass, and are not trained.

    Args:
        model: The model.
        flow: Its flow of values.
        stages: The stage of each node.
        trained: The names of those that are trained.
    """
    known = set(trained)
    return tuple(
        tensor.name
        for tensor in model.graph.initializer
        if tensor.name not in known and math.prod(tensor.dims) > 1
        for value in [flow.values[tensor.name]]
        if value.dtype in _FLOATING
        and any(stages[r.node] == "forward" and _is_weight(r, value) for r in value.readers)
    )


def weight_of(flow: Dataflow, name: str) -> str | None:
    """The operator of which a parameter is the weight, if it is of one."""
    for value in (flow.values.get(name), flow.values.get(f"{name}/shaped")):
        if value is not None and (found := _weight_of(value, 0)) is not None:
            return found
    return None


def _weight_of(value: Value, depth: int) -> str | None:
    for reader in value.readers:
        if _reads(reader, value, WEIGHT_INPUTS.get(reader.op_type, ())):
            return reader.op_type
        if reader.op_type in ("Cast", "Identity") and depth < _DEEPEST and reader.outputs:
            found = _weight_of(reader.outputs[0], depth + 1)
            if found is not None:
                return found
    return None


def _is_weight(reader: Operation, value: Value, depth: int = 0) -> bool:
    if _reads(reader, value, SETTING_INPUTS.get(reader.op_type, ())):
        return False
    if reader.op_type in _MOVED and depth < _DEEPEST:
        return any(
            _is_weight(after, output, depth + 1)
            for output in reader.outputs
            for after in output.readers
        )
    return reader.op_type in _BIASED


def _reads(reader: Operation, value: Value, places: Sequence[int]) -> bool:
    return any(place < len(reader.inputs) and reader.inputs[place] is value for place in places)


def untrained(
    names: Sequence[str], flow: Dataflow, buffers: Mapping[str, Value]
) -> tuple[ParameterFacts, ...]:
    """Those that have a buffer for gradients, or could be trained."""
    return tuple(
        ParameterFacts(
            name=name,
            shape=shape,
            dtype=dtype,
            op_type=weight_of(flow, name),
            group=None,
            learning_rate=None,
            weight_decay=None,
            grad_centralization=False,
            states=(),
            bytes=math.prod(shape) * np.dtype(dtype).itemsize,
            state_bytes=0,
            gradient=buffers[name].name if name in buffers else None,
        )
        for name in buffers or names
        if name in flow.values
        for shape in [static(flow.values[name].shape)]
        for dtype in [flow.values[name].dtype or "float32"]
    )
