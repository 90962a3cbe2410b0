"""What a provider does not run in half precision is computed in float32, between two casts."""

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.graphs import captured, replace_captured
from graphopt.half.casts import cast
from graphopt.half.kernels import runs
from graphopt.shapes.in_place import infer_shapes

_FLOAT = ir.DataType.FLOAT
_SMALL = 1024  # elements of a constant that is made float32 when the graph is built
_SAYS_DTYPE = {"EyeLike": "dtype", "RandomNormalLike": "dtype", "RandomUniformLike": "dtype"}


def fit_kernels(op: GraphBuilder, model: ir.Model, half: ir.DataType, provider: str) -> None:
    """Compute in float32 what a provider does not run in half precision.

    Each result is rounded all the same, so that all that reads it sees what half precision gives.

    Args:
        op: Appends to the graph of the model.
        model: Its nodes are sorted; changed in place. What is computed in float32 are the values
            that were half precision, and casts give these.
        half: The type of 16 bits.
        provider: The execution provider.
    """
    infer_shapes(model)
    _Fitting(op, half, provider).fit()


class _Fitting:
    def __init__(self, op: GraphBuilder, half: ir.DataType, provider: str) -> None:
        self.op, self.half, self.provider = op, half, provider
        self.exact: set[ir.Value] = set()  # float32 now, which nothing but a Cast reads
        self.rounded: dict[ir.Value, ir.Value] = {}
        self.widened: dict[ir.Value, ir.Value] = {}

    def fit(self) -> None:
        for node in list(self.op.graph):
            read = [v for v in (*node.inputs, *captured(node)) if v is not None]
            if not any(self._is_half(value) for value in (*read, *node.outputs)):
                continue
            with self.op.before(node):
                self._fit(node)
        for index, value in enumerate(self.op.graph.outputs):
            if value in self.exact:
                self._report(index, value)

    def _fit(self, node: ir.Node) -> None:
        if node.op_type == "CastLike" and not node.domain and node.outputs[0].dtype == self.half:
            self._say_half(node)
        fits = runs(node, self.half, self.provider, self.op.opset)
        form = self._in_half if fits else self._in_float32
        for at, value in enumerate(node.inputs):
            if value is not None and self._is_half(value):
                node.replace_input_with(at, form(value))
        for value in captured(node):
            if self._is_half(value):
                replace_captured(node, value, self._in_half(value))
        if fits:
            return
        _say_float32(node)
        for value in node.outputs:
            if value.dtype == self.half:
                value.dtype = _FLOAT
                self.exact.add(value)

    def _say_half(self, node: ir.Node) -> None:
        """Cast to half precision without a value of it to look at."""
        node.op_type = "Cast"
        node.resize_inputs(1)
        node.attributes["to"] = ir.AttrInt64("to", int(self.half))

    def _is_half(self, value: ir.Value) -> bool:
        known = value.const_value.dtype if value.const_value is not None else value.dtype
        return value in self.exact or known == self.half

    def _in_half(self, value: ir.Value) -> ir.Value:
        if value not in self.exact:
            return value
        if value not in self.rounded:
            self.rounded[value] = cast(self.op, value, self.half)
        return self.rounded[value]

    def _in_float32(self, value: ir.Value) -> ir.Value:
        if value not in self.widened:
            tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
            if tensor is not None and tensor.size <= _SMALL:
                wide = self.op.constant(tensor.numpy().astype(np.float32))
            else:
                wide = cast(self.op, self._in_half(value), _FLOAT)
            self.widened[value] = wide
        return self.widened[value]

    def _report(self, index: int, value: ir.Value) -> None:
        name, half = str(value.name), self._in_half(value)
        self.op.graph.outputs[index] = half
        value.name = self.op.fresh_name(f"{name}/float32")
        self.op.release_name(name)
        half.name = self.op.fresh_name(name)


def _say_float32(node: ir.Node) -> None:
    """Let a node whose attributes say a dtype give float32."""
    if node.op_type == "ConstantOfShape":
        value = node.attributes["value"].as_tensor().numpy().astype(np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(value))
    elif node.op_type in _SAYS_DTYPE:
        name = _SAYS_DTYPE[node.op_type]
        node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))
