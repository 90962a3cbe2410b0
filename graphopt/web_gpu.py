"""Formulations for ONNX Runtime's WebGPU execution provider, in place of what it has no kernel of.

What it lacks runs on the CPU: what the GPU has computed is copied there, and back. It has no
float64 at all, not even a Cast on the CPU, so learning rates are computed in float32.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder, Operand
from graphopt.operators.rewriting import describe, reduced, take_place

PROVIDER = "WebGpuExecutionProvider"
"""The name of the execution provider; in JavaScript, ``"webgpu"``."""

# A shader has eight storage buffers for sure, one of them for what it writes.
_MOST_TENSORS = 7
_DOUBLE = ir.DataType.DOUBLE


def suit_web_gpu(op: GraphBuilder, model: ir.Model) -> None:
    """Rewrite nodes of a training graph; what it computes stays the same, within rounding.

    Args:
        op: Appends to the graph of the model.
        model: Changed in place.

    Raises:
        ValueError: The model computes in float64, or pools in a way that the provider cannot.
    """
    for node in list(model.graph.all_nodes()):
        if node.op_type in _REWRITES and not node.domain and node.graph is not None:
            with op.inside(node.graph), op.before(node):
                _REWRITES[node.op_type](op, node)
    _use_float32(model)


def _log_softmax(op: GraphBuilder, node: ir.Node) -> None:
    """With z = x - max x, it is z - log Σ exp(z)."""
    x, axis = node.inputs[0], node.attributes.get_int("axis", -1)
    assert x is not None
    centered = op.Sub(x, reduced(op, "ReduceMax", x, [axis], keepdims=True))
    total = reduced(op, "ReduceSum", op.Exp(centered), [axis], keepdims=True)
    take_place(node, [op.Sub(centered, op.Log(total))])


def _one_hot(op: GraphBuilder, node: ir.Node) -> None:
    """Where the index is that of the place."""
    indices, depth, values = node.inputs
    if indices is None or depth is None or values is None or indices.shape is None:
        return
    rank = len(indices.shape) + 1
    axis = node.attributes.get_int("axis", -1) % rank
    count = op.Cast(op.Reshape(depth, np.zeros(0, np.int64)), to=ir.DataType.INT32)
    index = op.Cast(indices, to=ir.DataType.INT32)
    index = op.Where(op.Less(index, np.int32(0)), op.Add(index, count), index)
    places = op.Range(np.int32(0), count, np.int32(1))
    places = op.Reshape(places, [-1 if at == axis else 1 for at in range(rank)])
    off, on = (op.Gather(values, at) for at in (0, 1))
    take_place(node, [op.Where(op.Equal(op.Unsqueeze(index, [axis]), places), on, off)])


def _constant_of_shape(op: GraphBuilder, node: ir.Node) -> None:
    """One number, expanded; a shape alone stays on the CPU."""
    given, shape = node.attributes.get_tensor("value", None), node.inputs[0]
    value = np.zeros((), np.float32) if given is None else given.numpy().reshape(())
    if value.dtype.kind == "f":
        take_place(node, [op.Expand(value, shape)])


def _sign(op: GraphBuilder, node: ir.Node) -> None:
    """Whether it is above zero less whether it is below."""
    x = node.inputs[0]
    assert x is not None
    above, below = (
        op.CastLike(compare(x, op.CastLike(0.0, x)), x) for compare in (op.Greater, op.Less)
    )
    take_place(node, [op.Sub(above, below)])


def _few_at_a_time(op: GraphBuilder, node: ir.Node) -> None:
    """Of a few operands at a time, which computes the same."""
    if node.outputs[0].dtype == ir.DataType.INT64:  # counters, on the CPU
        return
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    operands = list(node.inputs)
    while len(operands) > _MOST_TENSORS:
        groups = [
            operands[start : start + _MOST_TENSORS]
            for start in range(0, len(operands), _MOST_TENSORS)
        ]
        operands = [
            op.node(node.op_type, group, **attributes)[0] if len(group) > 1 else group[0]
            for group in groups
        ]
    if len(operands) < len(node.inputs):
        take_place(node, op.node(node.op_type, operands, **attributes))


def _split(op: GraphBuilder, node: ir.Node) -> None:
    """One Slice for each of many parts."""
    x, count, axis = node.inputs[0], len(node.outputs), node.attributes.get_int("axis", 0)
    if count <= _MOST_TENSORS or x is None:
        return
    sizes = node.inputs[1] if len(node.inputs) > 1 else None
    if sizes is None:
        if x.shape is None or not isinstance(size := x.shape[axis], int):
            return
        widths: Operand = np.diff([*range(0, size, -(-size // count)), size])
    else:
        tensor = ir.convenience.get_const_tensor(sizes)
        widths = sizes if tensor is None else tensor.numpy()
    ends = [_sum_of(op, widths, index) for index in range(count + 1)]
    parts = [op.Slice(x, begin, end, [axis]) for begin, end in pairwise(ends)]
    take_place(node, parts)


def _sum_of(op: GraphBuilder, numbers: Operand, count: int) -> Operand:
    """Of the first of some numbers, a vector of one."""
    if isinstance(numbers, np.ndarray):
        return np.array([numbers[:count].sum()], np.int64)
    return op.ReduceSum(op.Slice(numbers, [0], [count]), [0])


def _max_pool(op: GraphBuilder, node: ir.Node) -> None:
    """Not where it says which elements were the largest."""
    del op
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise ValueError(
            f"{describe(node)}: its gradient needs the places of the largest elements, which "
            f"{PROVIDER} does not give; let windows of at most 4 elements tile the input, or use "
            "AveragePool or a stride of the convolution before it; or run on the CPU (wasm)"
        )


_REWRITES: dict[str, Callable[[GraphBuilder, ir.Node], None]] = {
    "ConstantOfShape": _constant_of_shape,
    "LogSoftmax": _log_softmax,
    "OneHot": _one_hot,
    "Sign": _sign,
    **dict.fromkeys(("Concat", "Max", "Min", "Sum"), _few_at_a_time),
    "Split": _split,
    "MaxPool": _max_pool,
}


def _use_float32(model: ir.Model) -> None:
    """Let what the update computes in float64 be float32."""
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype == _DOUBLE:
            raise ValueError(
                f"'{value.name}' is float64, which {PROVIDER} does not have; "
                "convert the model to float32"
            )
    for initializer in graph.initializers.values():
        if initializer.dtype == _DOUBLE and initializer.const_value is not None:
            initializer.const_value = _float32(initializer.const_value)
            initializer.dtype = ir.DataType.FLOAT
    for node in graph.all_nodes():
        if node.attributes.get_int("to", 0) == _DOUBLE:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        tensor = node.attributes.get_tensor("value", None)
        if tensor is not None and tensor.dtype == _DOUBLE:
            node.attributes["value"] = ir.AttrTensor("value", _float32(tensor))
        for output in node.outputs:
            if output.dtype == _DOUBLE:
                output.dtype = ir.DataType.FLOAT


def _float32(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
