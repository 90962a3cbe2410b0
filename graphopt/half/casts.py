"""Casts in a float32 forward model, which let the safe part of it be computed in half precision.

Initializers stay float32, and so do the inputs and outputs of the model. The gradient of a Cast is
a Cast, so that gradients of parameters arrive in float32.
"""

from collections.abc import Collection, Iterator, Sequence
from enum import IntEnum

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.graphs import captured, replace_captured
from graphopt.half.operators import In, computed
from graphopt.half.precision import limits
from graphopt.shapes.in_place import infer_shapes

_FLOAT = ir.DataType.FLOAT
_SMALL = 1024  # elements of a constant that is rounded when the graph is built
_SUMS = ("Add", "Sub", "Sum")  # which hardly see elements that are much smaller than others


class _Kind(IntEnum):
    """What a floating-point value is, from what gives way to what does not."""

    STORED = 0
    """Float32, computed from initializers alone, or an initializer: it takes any precision."""
    HALF = 1
    """Half precision."""
    ROUNDS = 2
    """Float32, of which elementwise operators take a rounded copy."""
    FLOAT32 = 3
    """Float32, and elementwise operators beside it compute in it too."""


def compute_in_half(model: ir.Model, half: ir.DataType, trained: Collection[str]) -> None:
    """Let what is safe in half precision be computed in it.

    Args:
        model: A float32 forward model without functions, whose shapes are known; changed in place.
        half: The type of 16 bits.
        trained: The names of the trained parameters.
    """
    _Casts(model, half, trained).put()
    infer_shapes(model)


class _Casts:
    def __init__(self, model: ir.Model, half: ir.DataType, trained: Collection[str]) -> None:
        self.graph, self.half, self.trained = model.graph, half, trained
        self.op = GraphBuilder(model.graph)
        self.kinds: dict[ir.Value, _Kind] = {}
        self.rounded: dict[ir.Value, ir.Value] = {}
        self.widened: dict[ir.Value, ir.Value] = {}

    def put(self) -> None:
        for value in self.graph.inputs:
            self.kinds[value] = _Kind.FLOAT32
        for node in list(self.graph):
            with self.op.before(node):
                self._put_around(node)
        for index, value in enumerate(self.graph.outputs):
            if self._is_half(value):
                self._report(index, value)

    def _put_around(self, node: ir.Node) -> None:
        self._make_plain(node)
        for value in captured(node):
            if self._is_half(value):
                replace_captured(node, value, self._float32(value))
        floats = {at: v for at, v in enumerate(node.inputs) if v is not None and self._is_float(v)}
        places = _typed(node, self.op.opset)
        kinds = [self._kind(value) for at, value in floats.items() if at in places]
        group = self._group(node)
        is_half = group is In.HALF or (group is In.OPERANDS and _rounds(kinds))
        for at, value in floats.items():
            if is_half and at in places:
                node.replace_input_with(at, self._rounded(value))
            elif self._is_half(value):
                node.replace_input_with(at, self._float32(value))
        if node.op_type == "Constant" or (group is In.OPERANDS and {*kinds} == {_Kind.STORED}):
            return  # stored, unless it is a number that does not fit
        made = _Kind.ROUNDS if group is In.AND_BACK else _Kind.FLOAT32
        if is_half:
            made = _Kind.HALF
        for value in node.outputs:
            if value.dtype == _FLOAT:
                self.kinds[value] = made
                if is_half:
                    value.dtype = self.half

    def _make_plain(self, node: ir.Node) -> None:
        """A cast from float32 to float32 does nothing, and one like a value says to what."""
        if node.domain or node.op_type not in ("Cast", "CastLike"):
            return
        source, result = node.inputs[0], node.outputs[0]
        if result.dtype != _FLOAT or source is None:
            return
        node.resize_inputs(1)
        node.attributes.clear()
        if self._is_float(source):
            node.op_type = "Identity"
        else:
            node.op_type = "Cast"
            node.attributes["to"] = ir.AttrInt64("to", int(_FLOAT))

    def _group(self, node: ir.Node) -> In:
        """In which precision a node is computed; division by a constant is a product.

        One with a number that half precision does not hold is computed in float32.
        """
        if not all(_fits(number, self.half) for number in _numbers(node)):
            return In.FLOAT32
        group = self._group_by_operator(node)
        if group is In.HALF and self._kind_of_constants(node) is _Kind.FLOAT32:
            return In.FLOAT32
        if group is In.OPERANDS and node.op_type not in _SUMS and self._loses_elements(node):
            return In.FLOAT32
        return group

    def _kind_of_constants(self, node: ir.Node) -> _Kind:
        """What does not give way of those that are known before the graph runs."""
        constants = (v for v in node.inputs if v is not None and self._constant(v) is not None)
        return max((self._kind(value) for value in constants), default=_Kind.STORED)

    def _loses_elements(self, node: ir.Node) -> bool:
        """Whether an element of a constant would be zero in half precision, and is not."""
        constants = (self._constant(value) for value in node.inputs if value is not None)
        with np.errstate(over="ignore"):
            return any(
                bool(np.any((array != 0) & (array.astype(self.half.numpy()) == 0)))
                for array in constants
                if array is not None and array.dtype == np.float32
            )

    def _group_by_operator(self, node: ir.Node) -> In:
        divisor = node.inputs[1] if node.op_type == "Div" and not node.domain else None
        if divisor is not None and self._constant(divisor) is not None:
            return In.OPERANDS
        return computed(node.op_type, node.domain)

    def _is_float(self, value: ir.Value) -> bool:
        """Whether a value was float32 in the model."""
        return self._is_half(value) or _dtype(value) == _FLOAT

    def _is_half(self, value: ir.Value) -> bool:
        return self.kinds.get(value) == _Kind.HALF

    def _kind(self, value: ir.Value) -> _Kind:
        if value not in self.kinds:
            constant = self._constant(value)
            fits = constant is None or _fits(constant, self.half)
            self.kinds[value] = _Kind.STORED if fits else _Kind.FLOAT32
        return self.kinds[value]

    def _constant(self, value: ir.Value) -> np.ndarray | None:
        """What is known before the graph runs, and is not trained."""
        if value.name in self.trained or value.is_graph_input():
            return None
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()

    def _rounded(self, value: ir.Value) -> ir.Value:
        """A value in half precision."""
        if self._is_half(value):
            return value
        if value not in self.rounded:
            constant = self._constant(value)
            if constant is not None and constant.size <= _SMALL:
                rounded = self.op.constant(constant.astype(self.half.numpy()))
            else:
                rounded = self._cast(value, self.half)
            self.rounded[value] = rounded
        return self.rounded[value]

    def _float32(self, value: ir.Value) -> ir.Value:
        """A value in float32 that was computed in half precision."""
        if value not in self.widened:
            self.widened[value] = self._cast(value, _FLOAT)
        return self.widened[value]

    def _cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        return cast(self.op, value, to)

    def _report(self, index: int, value: ir.Value) -> None:
        """Let an output of the model be float32 as it was, under its name."""
        name, wide = str(value.name), self._float32(value)
        self.graph.outputs[index] = wide
        value.name = self.op.fresh_name(f"{name}/{self.half.numpy().name}")
        self.op.release_name(name)
        wide.name = self.op.fresh_name(name)


def cast(op: GraphBuilder, value: ir.Value, to: ir.DataType) -> ir.Value:
    """A value in another dtype, which its name says."""
    result = op.Cast(value, to=int(to))
    result.dtype, result.shape = to, value.shape
    op.release_name(str(result.name))
    result.name = op.fresh_name(f"{value.name}/{to.numpy().name}")
    return result


def _numbers(node: ir.Node) -> Iterator[np.ndarray]:
    """The attributes of a node that are numbers, not integers."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.FLOAT and node.op_type != "Constant":
            yield np.array(attribute.as_float(), np.float32)


def _dtype(value: ir.Value) -> ir.DataType | None:
    return value.const_value.dtype if value.const_value is not None else value.dtype


def _rounds(kinds: Sequence[_Kind]) -> bool:
    """Whether operands may be rounded, and one of them is more than what is stored."""
    return _Kind.FLOAT32 not in kinds and (_Kind.HALF in kinds or _Kind.ROUNDS in kinds)


def _fits(array: np.ndarray, half: ir.DataType) -> bool:
    """Whether half precision holds the largest finite element, which tells a constant apart."""
    if array.dtype.kind != "f" or not array.size:
        return True
    sizes = np.abs(array.astype(np.float64))
    largest = float(np.max(sizes, where=np.isfinite(sizes), initial=0.0))
    least, most = limits(half)
    return largest == 0 or least <= largest <= most


def _typed(node: ir.Node, opset: int) -> set[int]:
    """The inputs of a node that have the dtype of its result, or of what it looks at."""
    if node.domain:
        return set()
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return set()
    inputs = [formal.type_str for formal in schema.inputs] or [""]
    result = schema.outputs[0].type_str
    kind = result if result in inputs else inputs[0]
    last = len(inputs) - 1
    return {at for at in range(len(node.inputs)) if inputs[min(at, last)] == kind}
