"""Training through quantization, as if nothing were rounded.

The derivative of rounding is 0 wherever it exists, so that nothing before a QuantizeLinear could
be trained. With ``straight_through``, a gradient passes where the integer is within its range, and
is 0 where it was clipped: so do PyTorch's ``fake_quantize_per_tensor_affine`` and
``fake_quantize_per_channel_affine``, and like there, none flows to the scale.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.forward import to_ir
from graphopt.gradients._inline import without_functions
from graphopt.gradients._opset import convert_opset, opset_of
from graphopt.graphs import needed_for
from graphopt.marks import STOP_GRADIENT
from graphopt.operators import Moves, of
from graphopt.operators.path import depending, follow
from graphopt.operators.quantization import along_axis
from graphopt.operators.rewriting import add_outputs, describe
from graphopt.shapes.in_place import infer_shapes
from graphopt.versions import MIN_OPSET

_ROUND = {"QuantizeLinear", "DynamicQuantizeLinear"}
_RANGES = {
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT16: (-32768, 32767),
}
_MOVES = (Moves.SHAPE, Moves.ORDER)
_INDICES = (ir.DataType.INT64, ir.DataType.BOOL)


def check_rounding(graph: ir.Graph, names: Collection[str], loss: ir.Value) -> None:
    """Refuse to train what lies before a quantization, unless it is asked for.

    Raises:
        ValueError: The loss depends on a parameter through a QuantizeLinear.
    """
    needed = needed_for([loss], graph)
    depends = depending(graph, (graph.initializers[name] for name in names))
    for node in graph:
        if _rounds(node) and node.inputs[0] in depends and not needed.isdisjoint(node.outputs):
            raise ValueError(
                f"{describe(node)}: it rounds, so that nothing before it could be trained; pass "
                "straight_through=True to train as if it did not, which is what PyTorch's fake "
                "quantization does, or leave the parameters before it out of the optimizer"
            )


def with_straight_through(proto: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The forward model, through whose quantizations gradients pass.

    What DequantizeLinear gives becomes y + (x - x), where y and the second x have no gradient: the
    same number, with the gradient of x.

    Args:
        proto: The forward model, which is left as it is.
        names: The trained parameters.

    Raises:
        ValueError: Integers are dequantized by another scale, or an operator calculates with them.
    """
    own = without_functions(proto) if proto.functions else proto
    model = to_ir(convert_opset(own, MIN_OPSET, max(MIN_OPSET, opset_of(own))))
    infer_shapes(model)
    _pass(GraphBuilder(model.graph), names)
    return ir.to_proto(model)


def _pass(op: GraphBuilder, names: Collection[str]) -> None:
    graph = op.graph
    depends = {graph.initializers[name] for name in names}
    passed: dict[ir.Value, _Passed] = {}
    for node in list(graph):
        x = node.inputs[0] if node.inputs else None
        if _rounds(node) and x in depends:
            passed[node.outputs[0]] = _within_range(op, node)
        elif x in passed and node.op_type == "DequantizeLinear":
            depends.add(_pass_on(op, node, passed[x]))
        elif x in passed and of(node).moves in _MOVES:
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            value, *_ = op.node(node.op_type, [passed[x].x, *node.inputs[1:]], **attributes)
            passed[node.outputs[0]] = replace(passed[x], x=value)
        elif not passed.keys().isdisjoint(node.inputs):
            _check_indices(node)
        else:
            follow(node, depends)
    graph.sort()


@dataclass(frozen=True)
class _Passed:
    """What was quantized, 0 where it was clipped; and by which scale."""

    x: ir.Value
    scale: ir.Value


def _rounds(node: ir.Node) -> bool:
    is_stopped = STOP_GRADIENT in node.metadata_props
    return node.op_type in _ROUND and not node.domain and not is_stopped


def _within_range(op: GraphBuilder, node: ir.Node) -> _Passed:
    x = node.inputs[0]
    if node.op_type == "DynamicQuantizeLinear":
        add_outputs(op, node, 3)
        dtype: ir.DataType | None = ir.DataType.UINT8
        scale = divisor = node.outputs[1]
        offset: ir.Value | None = op.CastLike(node.outputs[2], x)
    else:
        scale, *more = (value for value in node.inputs[1:] if value is not None)
        dtype = more[0].dtype if more else ir.DataType.UINT8
        dtype = ir.DataType(node.attributes.get_int("output_dtype", 0)) or dtype
        divisor = along_axis(op, node, scale)
        offset = along_axis(op, node, op.CastLike(more[0], x), more[0]) if more else None
    if dtype not in _RANGES:
        raise ValueError(
            f"{describe(node)}: it quantizes to {dtype}, expected one of "
            f"{', '.join(known.name for known in _RANGES)}, which straight_through knows"
        )
    level = op.Round(op.Div(x, divisor))
    if offset is not None:
        level = op.Add(level, offset)
    least, most = map(float, _RANGES[dtype])
    inside = op.And(op.GreaterOrEqual(level, least), op.LessOrEqual(level, most))
    return _Passed(op.Where(inside, x, 0.0), scale)


def _pass_on(op: GraphBuilder, node: ir.Node, passed: _Passed) -> ir.Value:
    """Let a gradient pass from the result of a DequantizeLinear to what was quantized."""
    scale = node.inputs[1]
    if scale is not passed.scale and not _equal(scale, passed.scale):
        raise ValueError(
            f"{describe(node)}: its scale is not that of the quantization before it, so that no "
            "gradient can pass straight through; give both the same"
        )
    y, x = node.outputs[0], passed.x
    if x.dtype != y.dtype:
        x = op.CastLike(x, y)
    nothing = op.Sub(x, _without_gradient(op, x))
    held = _without_gradient(op, y)
    result = op.Add(held, nothing)
    result.type, result.shape = y.type, y.shape
    ir.convenience.replace_all_uses_with(y, result, replace_graph_outputs=True)
    held_node = held.producer()
    assert held_node is not None
    held_node.replace_input_with(0, y)
    name, y.name = y.name, op.fresh_name(f"{y.name}/quantized")
    result.name = name
    return result


def _without_gradient(op: GraphBuilder, value: ir.Value) -> ir.Value:
    copy = op.Identity(value)
    node = copy.producer()
    assert node is not None
    node.metadata_props[STOP_GRADIENT] = "straight_through"
    return copy


def _equal(left: ir.Value | None, right: ir.Value | None) -> bool:
    tensors = [ir.convenience.get_const_tensor(value) for value in (left, right) if value]
    arrays = [tensor.numpy() for tensor in tensors if tensor is not None]
    return len(arrays) == 2 and np.array_equal(arrays[0], arrays[1])


def _check_indices(node: ir.Node) -> None:
    """Integers may become indices and conditions, through which no gradient flows anyway."""
    if all(value.dtype in _INDICES for value in node.outputs):
        return
    raise ValueError(
        f"{describe(node)}: it calculates with the integers of a quantization, through which no "
        "gradient passes; write it as the operator for floating-point numbers, between "
        "DequantizeLinear and QuantizeLinear"
    )
