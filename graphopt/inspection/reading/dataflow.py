"""A model as one flow of values: functions, scans and branches written out.

What a function computes is found where it is called, whatever it is called: a graph reads the same
before and after its functions have been inlined. The body of a Scan that goes over the rows of its
inputs, and of nothing else, is taken as what happens to the whole tensors, because an update works
element by element. The two branches of an If are written out too, but its results are its own.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphopt._subgraphs import subgraphs
from graphopt.inspection.facts import Shape

# A graph of two thousand parameters, each by itself, has a hundred thousand.
_MAX_OPERATIONS = 500_000
# Values of a constant are looked at up to this size: longer ones are weights.
_MAX_CONSTANT = 2**20

SAME_ELEMENTS = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators whose result has the same elements in the same order, in another shape or precision."""

_FLOATING = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}


@dataclass(slots=True, eq=False)
class Value:
    """A tensor of the model.

    Attributes:
        name: Its name in the graph; in a function or a loop, if it does not leave that.
        operation: What computes it; None for an input or an initializer.
        tensor: Its value, if it is an initializer or a Constant.
        type: Its type, if the model says it.
        is_input: Whether it is fed.
        readers: What reads it.
        source: The value of which this one has the same elements in the same order.
    """

    name: str
    operation: "Operation | None" = None
    tensor: onnx.TensorProto | None = None
    type: onnx.TypeProto | None = None
    is_input: bool = False
    readers: list["Operation"] = field(default_factory=list)
    source: "Value" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        before = _same_elements(self.operation)
        self.source = self if before is None else before.source

    @property
    def constant(self) -> np.ndarray | None:
        """The array, if it is a constant that the file holds and no weight."""
        tensor = self.tensor
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        if np.prod(tensor.dims, dtype=float) > _MAX_CONSTANT:
            return None
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError):  # its values have been taken out
            return None

    @property
    def number(self) -> float | None:
        """The value of a constant of one element; a float32 as the decimal that it is written."""
        array = self.constant
        if array is None or array.size != 1 or array.dtype.kind not in "fiub":
            return None
        (value,) = array.reshape(-1)
        return float(str(value)) if isinstance(value, np.float32 | np.float16) else float(value)

    @property
    def shape(self) -> Shape | None:
        """Its dimensions, as far as the model says them."""
        if self.tensor is not None:
            return tuple(self.tensor.dims)
        if self.type is None or not self.type.tensor_type.HasField("shape"):
            return None
        return tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in self.type.tensor_type.shape.dim
        )

    @property
    def dtype(self) -> str | None:
        """NumPy's name of its element type, if the model says it."""
        kind = self.tensor.data_type if self.tensor is not None else 0
        if self.type is not None:
            kind = self.type.tensor_type.elem_type
        return dtype_name(kind)


@dataclass(slots=True, eq=False)
class Operation:
    """A node, where it runs.

    Attributes:
        op_type: The operator; those of other domains as ``domain::Name``.
        inputs: What it reads; None for one that is left out.
        outputs: What it computes.
        attributes: Its attributes, those of functions with the values of the call.
        node: The index of the node of the graph that it is part of.
    """

    op_type: str
    inputs: list[Value | None]
    outputs: list[Value]
    attributes: Mapping[str, onnx.AttributeProto]
    node: int

    def number(self, name: str, default: float) -> float:
        """A float or int attribute."""
        attribute = self.attributes.get(name)
        if attribute is None:
            return default
        if attribute.type == onnx.AttributeProto.FLOAT:
            return float(str(np.float32(attribute.f)))
        return float(attribute.i)


def _same_elements(operation: Operation | None) -> Value | None:
    """What an operation changes in shape or precision only, if that is all it does."""
    if operation is None or operation.op_type not in SAME_ELEMENTS or not operation.inputs:
        return None
    if operation.op_type == "Cast" and not _between_floats(operation):
        return None
    return operation.inputs[0]


def _between_floats(cast: Operation) -> bool:
    """Whether a Cast is to a floating-point type, and not from a comparison."""
    to = cast.attributes.get("to")
    if to is None or to.i not in _FLOATING:
        return False
    operand = cast.inputs[0]
    before = operand.operation if operand is not None else None
    return before is None or before.op_type not in _BOOLEAN


_BOOLEAN = {
    "And",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "IsInf",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "Not",
    "Or",
    "Xor",
}


class Dataflow:
    """The values of a model, functions and scans written out.

    Attributes:
        values: Those of the graph, by name.
        operations: All, in an order in which they can run.

    Raises:
        ValueError: There are too many.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.operations: list[Operation] = []
        self._functions = {(f.domain, f.name): f for f in model.functions}
        self.values = self._declared(model.graph)
        for index, node in enumerate(model.graph.node):
            self._append(node, self.values, {}, index)

    def after(self, values: Collection[int]) -> set[int]:
        """What is computed from any of these values, which are given and returned by their id."""
        found = set(values)
        for operation in self.operations:
            if any(operand is not None and id(operand) in found for operand in operation.inputs):
                found.update(id(output) for output in operation.outputs)
        return found - set(values)

    def _declared(self, graph: onnx.GraphProto) -> dict[str, Value]:
        values = {v.name: Value(v.name, type=v.type, is_input=True) for v in graph.input}
        for tensor in graph.initializer:
            # An input that has one is fed; that is its default.
            values.setdefault(tensor.name, Value(tensor.name, tensor=tensor))
        self._types = {v.name: v.type for v in (*graph.value_info, *graph.output)}
        return values

    def _append(
        self,
        node: onnx.NodeProto,
        values: dict[str, Value],
        given: Mapping[str, onnx.AttributeProto],
        index: int,
    ) -> None:
        """Write out a node of a scope that has these values and attributes."""
        if len(self.operations) > _MAX_OPERATIONS:
            raise ValueError(
                f"the model has more than {_MAX_OPERATIONS:,} nodes when its functions are written "
                "out; that is too large to inspect"
            )
        inputs = [self._value(name, values) if name else None for name in node.input]
        attributes = {a.name: a for a in _resolved(node.attribute, given)}
        domain = "" if node.domain == "ai.onnx" else node.domain
        function = self._functions.get((node.domain, node.op_type))
        if function is not None:
            self._call(function, node, inputs, attributes, values, index)
        elif domain == "" and node.op_type == "Scan" and _goes_over_rows(node, attributes):
            self._scan(attributes["body"].g, node, inputs, values, given, index)
        else:
            operation = Operation(
                f"{domain}::{node.op_type}" if domain else node.op_type,
                inputs,
                [],
                attributes,
                index,
            )
            for name in node.output:
                values[name] = Value(name, operation, _constant(operation), self._types.get(name))
                operation.outputs.append(values[name])
            for value in inputs:
                if value is not None:
                    value.readers.append(operation)
            self.operations.append(operation)
            if domain == "" and node.op_type == "If":
                self._branches(node, values, given, index)

    def _value(self, name: str, values: dict[str, Value]) -> Value:
        """A value of this scope; what no one computes is taken as fed."""
        return values.setdefault(name, Value(name, is_input=True))

    def _leaving(
        self, made: str, name: str, inner: dict[str, Value], inputs: list[Value | None]
    ) -> Value:
        """What a function or a loop computes, under its name outside."""
        value = self._value(made, inner)
        if value.operation is not None and value not in inputs:
            value.name = name
            value.type = self._types.get(name, value.type)
        return value

    def _call(
        self,
        function: onnx.FunctionProto,
        node: onnx.NodeProto,
        inputs: list[Value | None],
        attributes: Mapping[str, onnx.AttributeProto],
        values: dict[str, Value],
        index: int,
    ) -> None:
        defaults = {attribute.name: attribute for attribute in function.attribute_proto}
        inner = {
            name: value
            for name, value in zip(function.input, inputs, strict=False)
            if value is not None
        }
        self._body(function.node, inner, {**defaults, **attributes}, index)
        for name, made in zip(node.output, function.output, strict=False):
            values[name] = self._leaving(made, name, inner, inputs)

    def _scan(
        self,
        body: onnx.GraphProto,
        node: onnx.NodeProto,
        inputs: list[Value | None],
        values: dict[str, Value],
        given: Mapping[str, onnx.AttributeProto],
        index: int,
    ) -> None:
        inner = dict(values)
        inner.update(
            (tensor.name, Value(tensor.name, tensor=tensor)) for tensor in body.initializer
        )
        for row, value in zip(body.input, inputs, strict=False):
            if value is not None:
                inner[row.name] = value
        self._body(body.node, inner, given, index)
        for name, made in zip(node.output, body.output, strict=False):
            values[name] = self._leaving(made.name, name, inner, inputs)

    def _branches(
        self,
        node: onnx.NodeProto,
        values: Mapping[str, Value],
        given: Mapping[str, onnx.AttributeProto],
        index: int,
    ) -> None:
        for branch in subgraphs(node):
            inner = dict(values)
            inner.update((t.name, Value(t.name, tensor=t)) for t in branch.initializer)
            self._body(branch.node, inner, given, index)

    def _body(
        self,
        nodes: Iterable[onnx.NodeProto],
        values: dict[str, Value],
        given: Mapping[str, onnx.AttributeProto],
        index: int,
    ) -> None:
        for node in nodes:
            self._append(node, values, given, index)


def _resolved(
    attributes: Iterable[onnx.AttributeProto], given: Mapping[str, onnx.AttributeProto]
) -> Iterator[onnx.AttributeProto]:
    """The attributes of a node in a function that was called with others."""
    for attribute in attributes:
        if not attribute.ref_attr_name:
            yield attribute
        elif attribute.ref_attr_name in given:
            value = onnx.AttributeProto()
            value.CopyFrom(given[attribute.ref_attr_name])
            value.name = attribute.name
            yield value


def _constant(operation: Operation) -> onnx.TensorProto | None:
    """The value of a Constant."""
    if operation.op_type != "Constant":
        return None
    for name, attribute in operation.attributes.items():
        if name == "value" and attribute.HasField("t"):
            return attribute.t
        if name == "value_float":
            return numpy_helper.from_array(np.array(attribute.f, np.float32))
        if name == "value_int":
            return numpy_helper.from_array(np.array(attribute.i, np.int64))
        if name == "value_floats":
            return numpy_helper.from_array(np.array(attribute.floats, np.float32))
        if name == "value_ints":
            return numpy_helper.from_array(np.array(attribute.ints, np.int64))
    return None


def _goes_over_rows(node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto]) -> bool:
    """Whether a Scan hands nothing from row to row, and goes over the first axis of everything."""
    count, body = attributes.get("num_scan_inputs"), attributes.get("body")
    return (
        count is not None
        and body is not None
        and count.i == len(node.input) == len(body.g.input)
        and not any(name.startswith("scan_") for name in attributes)
    )


def dtype_name(kind: int) -> str | None:
    """NumPy's name of an element type of ONNX; None if there is none."""
    try:
        return helper.tensor_dtype_to_np_dtype(kind).name
    except (KeyError, TypeError, ValueError):
        return None
