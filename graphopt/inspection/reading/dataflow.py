"""A model as one flow of values: functions, scans and branches written out.

What a function computes is found where it is called, whatever it is called: a graph reads the same
before and after its functions have been inlined. The body of a Scan that goes over the rows of its
inputs, and of nothing else, is taken as what happens to the whole tensors, because an update works
element by element. The two branches of an If are written out too, but its results are its own.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.graphs import functions, subgraphs
from graphopt.inspection.facts import Shape, static
from graphopt.operators import Moves, name_of, of

# A graph of two thousand parameters, each by itself, has a hundred thousand.
_MAX_OPERATIONS = 500_000
# Values of a constant are looked at up to this size: longer ones are weights.
_MAX_CONSTANT = 2**20

_HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
_FLOATING = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


@dataclass(slots=True, eq=False)
class Value:
    """A tensor of the model.

    Attributes:
        name: Its name in the graph; in a function or a loop, if its elements do not leave that.
        operation: What computes it; None for an input or an initializer.
        tensor: Its value, if it is an initializer or a Constant.
        declared: The value of the graph that says its type, if there is one.
        is_input: Whether it is fed.
        readers: What reads it.
        source: The value of which this one has the same elements in the same order.
    """

    name: str
    operation: "Operation | None" = None
    tensor: ir.TensorProtocol | None = None
    declared: ir.Value | None = None
    is_input: bool = False
    readers: list["Operation"] = field(default_factory=list)
    source: "Value" = field(init=False, repr=False)
    _number: tuple[float | None] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        before = _same_elements(self.operation)
        self.source = self if before is None else before.source

    @property
    def constant(self) -> np.ndarray | None:
        """The array, if it is a constant that the file holds and no weight."""
        tensor = self.tensor
        if tensor is None or math.prod(tensor.shape.numpy()) > _MAX_CONSTANT:
            return None
        return array_of(tensor)

    @property
    def number(self) -> float | None:
        """The value of a constant of one element; a float32 as the decimal that it is written."""
        if self._number is None:
            self._number = (_number(self.constant),)
        return self._number[0]

    @property
    def shape(self) -> Shape | None:
        """Its dimensions, as far as the model says them."""
        if self.tensor is not None:
            return tuple(self.tensor.shape.numpy())
        return None if self.declared is None else declared_shape(self.declared)

    @property
    def static_shape(self) -> tuple[int, ...] | None:
        """Its dimensions, if the model says all of them."""
        return static(self.shape)

    @property
    def dtype(self) -> str | None:
        """NumPy's name of its element type, if the model says it."""
        if self.tensor is not None:
            return dtype_name(self.tensor.dtype)
        return None if self.declared is None else declared_dtype(self.declared)


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
    attributes: Mapping[str, ir.Attr]
    node: int

    def number(self, name: str, default: float) -> float:
        """A float or int attribute."""
        attribute = self.attributes.get(name)
        if attribute is None:
            return default
        if attribute.type == ir.AttributeType.FLOAT:
            return float(str(np.float32(attribute.value)))
        return float(attribute.value) if attribute.type == ir.AttributeType.INT else 0.0


def _same_elements(operation: Operation | None) -> Value | None:
    """What an operation changes in shape or precision only, if that is all it does."""
    if operation is None or not operation.inputs:
        return None
    moves = of(operation.op_type).moves
    if moves is Moves.SHAPE or (moves is Moves.PRECISION and _between_floats(operation)):
        return operation.inputs[0]
    if operation.op_type == "Where" and operation.inputs[1] is operation.inputs[2]:
        return operation.inputs[1]  # it only waits for the condition
    return None


def _between_floats(cast: Operation) -> bool:
    """Whether a Cast is to a floating-point type, and not from a comparison.

    One back to more digits does not give those again that a Cast before it has taken; and NumPy
    holds no bfloat16, so that what is computed in it is looked at behind the Cast.
    """
    to, operand = cast.number("to", 0), cast.inputs[0]
    if to not in _FLOATING or (to not in _HALVES and _is_rounded(operand)):
        return False
    before = operand.operation if operand is not None else None
    return before is None or not of(before.op_type).is_boolean


def _is_rounded(value: Value | None) -> bool:
    """Whether a value was cast to 16 bits, but for changes of shape behind that."""
    while value is not None and value.operation is not None:
        if value.dtype == "bfloat16":
            return True
        if value.operation.op_type == "Cast" and value.operation.number("to", 0) in _HALVES:
            return True
        value = _same_elements(value.operation)
    return False


class Dataflow:
    """The values of a model, functions and scans written out.

    Attributes:
        values: Those of the graph, by name.
        operations: All, in an order in which they can run.

    Raises:
        ValueError: There are too many.
    """

    def __init__(self, model: ir.Model) -> None:
        self.operations: list[Operation] = []
        self._graph = model.graph
        self._functions = functions(model)
        known: _Known = {}
        for value in (*model.graph.inputs, *model.graph.initializers.values()):
            self._value(value, known)
        for index, node in enumerate(model.graph):
            self._append(node, known, {}, index)
        self.values = {
            str(value.name): found
            for value, found in known.items()
            if value.graph in (model.graph, None)
        }

    def after(self, values: Collection[int]) -> set[int]:
        """What is computed from any of these values, which are given and returned by their id."""
        found = set(values)
        for operation in self.operations:
            if any(operand is not None and id(operand) in found for operand in operation.inputs):
                found.update(id(output) for output in operation.outputs)
        return found - set(values)

    def _append(
        self, node: ir.Node, known: "_Known", given: Mapping[str, ir.Attr], index: int
    ) -> None:
        """Write out a node of a scope that has these values and attributes."""
        if len(self.operations) > _MAX_OPERATIONS:
            raise ValueError(
                f"the model has more than {_MAX_OPERATIONS:,} nodes when its functions are written "
                "out; that is too large to inspect"
            )
        inputs = [None if value is None else self._value(value, known) for value in node.inputs]
        attributes = {
            name: attribute
            for name, said in node.attributes.items()
            if (attribute := given.get(said.ref_attr_name) if said.ref_attr_name else said)
        }
        function = self._functions.get((node.domain, node.op_type))
        if function is not None:
            defaults = {n: a for n, a in function.attributes.items() if a.value is not None}
            given = {**defaults, **attributes}
            self._inside(function.graph, node, inputs, known, {}, given, index)
        elif not node.domain and node.op_type == "Scan" and _goes_over_rows(node, attributes):
            body = attributes["body"].as_graph()
            self._inside(body, node, inputs, known, known, given, index)
        else:
            operation = Operation(name_of(node), inputs, [], attributes, index)
            tensor = _constant(operation)
            for value in node.outputs:
                made = Value(str(value.name), operation, tensor, self._typed(value))
                known[value] = made
                operation.outputs.append(made)
            for read in inputs:
                if read is not None:
                    read.readers.append(operation)
            self.operations.append(operation)
            if operation.op_type == "If":
                for branch in subgraphs(node):
                    self._body(branch, known, given, index)

    def _value(self, value: ir.Value, known: "_Known") -> Value:
        """A value of this scope; what no one computes is stored or fed."""
        found = known.get(value)
        if found is None:
            # An input that has an initializer is fed; that is its default.
            stored = value.is_initializer() and not value.is_graph_input()
            tensor = value.const_value if stored else None
            found = Value(str(value.name), None, tensor, self._typed(value), tensor is None)
            known[value] = found
        return found

    def _typed(self, value: ir.Value) -> ir.Value | None:
        """The value, if what it says of its type holds for all of it, and not for a row."""
        return value if value.graph is self._graph else None

    def _leaving(
        self, made: ir.Value, outside: ir.Value, known: "_Known", inputs: list[Value | None]
    ) -> Value:
        """What a function or a loop computes, under its name outside."""
        value = self._value(made, known)
        if value.operation is not None and value not in inputs:
            value.name = str(outside.name)
            source = value.source.operation  # whose elements are seen outside by this name only
            if source is not None and source.node == value.operation.node:
                value.source.name = value.name
            if outside.type is not None:
                value.declared = self._typed(outside) or value.declared
        return value

    def _inside(
        self,
        body: ir.Graph,
        node: ir.Node,
        inputs: list[Value | None],
        known: "_Known",
        inner: "_Known",
        given: Mapping[str, ir.Attr],
        index: int,
    ) -> None:
        """Write out what a node runs, of which these values are known inside."""
        formal = zip(body.inputs, inputs, strict=False)
        inner.update((name, value) for name, value in formal if value is not None)
        self._body(body, inner, given, index)
        for outside, made in zip(node.outputs, body.outputs, strict=False):
            known[outside] = self._leaving(made, outside, inner, inputs)

    def _body(
        self, nodes: Iterable[ir.Node], known: "_Known", given: Mapping[str, ir.Attr], index: int
    ) -> None:
        for node in nodes:
            self._append(node, known, given, index)


_Known = dict[ir.Value, Value]
"""What is known of the values of a graph and of the graphs in it, or of a call of a function."""


def _constant(operation: Operation) -> ir.TensorProtocol | None:
    """The value of a Constant."""
    if operation.op_type != "Constant":
        return None
    for name, attribute in operation.attributes.items():
        kind, dtype = _CONSTANTS.get(name, (None, None))
        if kind is not None and attribute.type == kind:
            value: ir.TensorProtocol = attribute.value
            return value if dtype is None else ir.Tensor(np.array(attribute.value, dtype))
    return None


_CONSTANTS = {
    "value": (ir.AttributeType.TENSOR, None),
    "value_float": (ir.AttributeType.FLOAT, np.float32),
    "value_int": (ir.AttributeType.INT, np.int64),
    "value_floats": (ir.AttributeType.FLOATS, np.float32),
    "value_ints": (ir.AttributeType.INTS, np.int64),
}


def _goes_over_rows(node: ir.Node, attributes: Mapping[str, ir.Attr]) -> bool:
    """Whether a Scan hands nothing from row to row, and goes over the first axis of everything."""
    count, body = attributes.get("num_scan_inputs"), attributes.get("body")
    return (
        count is not None
        and body is not None
        and body.type == ir.AttributeType.GRAPH
        and count.value == len(node.inputs) == len(body.as_graph().inputs)
        and not any(name.startswith("scan_") for name in attributes)
    )


def array_of(tensor: ir.TensorProtocol) -> np.ndarray | None:
    """The values of a tensor; None where they have been taken out."""
    try:
        array = tensor.numpy()
    except (ValueError, TypeError):
        return None
    is_text = tensor.dtype == ir.DataType.STRING
    return None if array.size and not is_text and not tensor.tobytes() else array


def _number(array: np.ndarray | None) -> float | None:
    if array is None or array.size != 1 or array.dtype.kind not in "fiub":
        return None
    (value,) = array.reshape(-1)
    return float(str(value)) if isinstance(value, np.float32 | np.float16) else float(value)


def declared_shape(value: ir.Value) -> Shape | None:
    """The dimensions that the model says a tensor has; None where it says none."""
    if value.shape is None or not isinstance(value.type, ir.TensorType | None):
        return None
    return tuple(size if isinstance(size, int) else size.value or None for size in value.shape)


def declared_dtype(value: ir.Value) -> str | None:
    """NumPy's name of the element type that the model says a tensor has."""
    return dtype_name(value.type.dtype) if isinstance(value.type, ir.TensorType) else None


def dtype_name(dtype: ir.DataType) -> str | None:
    """NumPy's name of an element type; None if there is none."""
    try:
        return dtype.numpy().name
    except TypeError:
        return None
